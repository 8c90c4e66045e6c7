"""The problem: levels that every stage may take, and what each supplies where no stage may take longer than a cap.

* stage s at level l takes `t[l, s]` seconds per micro-batch and `m[l, s]` bytes per die, of `capacity`;
* a sender takes `send_time[s]` more seconds per byte of overflow and can send at most `movable[l, s]`, for only
  checkpoints move; a helper takes `hold_time` more seconds per byte that it keeps for others;
* pooled, any stage helps any other: what helpers can keep must cover what senders send. In a line, bytes pass from
  stage to stage, and at most `link_bytes[s]` of them, either way, between stages s and s + 1.

Under a cap T each stage may take, independently of all others, the level of largest net supply

    supply = min(capacity - m, (T - t) / hold_time)   of a helper with t <= T
           = capacity - m                             of a sender with t + send_time (m - capacity) <= T,

for more supply never hurts: bytes that need not travel leave every other way open.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from watos_jax.units import PerStage, Scalar

PerLevel = Float[ArrayLike, "levels stages"]


class Choices(eqx.Module):
    """The levels that every stage may take; build it with `choices`.

    Attributes:
        busy: s per micro-batch with the overflow sent; infinite where it cannot be, shape (levels, stages).
        room: bytes per die left free, negative where the level overflows, shape (levels, stages).
        hold_time: s per byte and micro-batch that a helper keeps for others.
        link_bytes: bytes that may lie beyond each stage's boundary to the next, either way, shape (stages,).
    """

    busy: Float[Array, "levels stages"]
    room: Float[Array, "levels stages"]
    hold_time: Scalar
    link_bytes: PerStage


class Sharing(eqx.Module):
    """A level for every stage, and what each sends or may keep.

    Attributes:
        level: index of the level taken, shape (stages,).
        supply: bytes that the stage can keep for others, negative what it must send, shape (stages,).
        slowest: s per micro-batch of the slowest stage; infinite where nothing fits.
        spare: sum of `supply`; negative where nothing fits, the bytes that are missing at the levels of least memory.
    """

    level: Int[Array, " stages"]
    supply: PerStage
    slowest: Scalar
    spare: Scalar

    @property
    def fits(self) -> Bool[Array, ""]:
        """Whether the stages fit together."""
        return jnp.isfinite(self.slowest)


def choices(
    time: PerLevel,
    memory: PerLevel,
    capacity: Scalar,
    *,
    movable: PerLevel | float = np.inf,
    send_time: PerStage | float = 0.0,
    hold_time: Scalar = 0.0,
    link_bytes: PerStage | float = np.inf,
    active: PerStage | float = 1.0,
) -> Choices:
    """State the problem.

    Args:
        time: s per micro-batch without sharing, shape (levels, stages).
        memory: bytes per die at the peak, likewise.
        capacity: bytes of DRAM per die.
        movable: bytes per die that can be kept elsewhere, likewise.
        send_time: s per micro-batch and byte of overflow at the sender, shape (stages,).
        hold_time: the same at the helper.
        link_bytes: bytes that may be kept beyond the boundary after each stage, shape (stages,).
        active: 0 on padding, which neither works nor helps, shape (stages,).
    """
    time = jnp.asarray(time)
    memory, movable, send_time, active = (
        jnp.broadcast_to(jnp.asarray(part, time.dtype), time.shape) for part in (memory, movable, send_time, active)
    )
    room = jnp.where(active > 0.0, capacity - memory, 0.0)
    excess = jnp.where(room < 0.0, -room, 0.0)
    busy = jnp.where(excess <= movable, time + send_time * excess, jnp.inf)
    links = jnp.broadcast_to(jnp.asarray(link_bytes, time.dtype), time.shape[-1:])
    return Choices(busy, room, jnp.asarray(hold_time, time.dtype), links)


def supplies(given: Choices, cap: Scalar) -> Float[Array, "levels stages"]:
    """Net supply in bytes of every level of every stage where no stage may take longer than a cap.

    Args:
        given: the problem.
        cap: s per micro-batch; a level that takes longer supplies minus infinity.
    """
    slack = cap - given.busy
    per_second = jnp.where(given.hold_time > 0.0, 1.0 / given.hold_time, 0.0)
    limit = jnp.where(given.hold_time > 0.0, slack * per_second, jnp.inf)
    return jnp.where(slack >= 0.0, jnp.where(limit < given.room, limit, given.room), -jnp.inf)


def sharing_of(supply: Float[Array, "levels stages"], slowest: Scalar, level: Int[Array, " stages"]) -> Sharing:
    """The sharing of levels that are chosen, with what they supply."""
    supplied = jnp.take_along_axis(supply, level[None], axis=0)[0]
    return Sharing(level, supplied, slowest, jnp.sum(supplied))
