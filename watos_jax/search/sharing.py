"""The problem that GCMR solves for one strategy, read from the model: levels, room, and what sharing memory costs.

Checkpoints alone move. A sender with k micro-batches in flight ships the same part of each right after its forward
pass and fetches it right before its backward pass; the one at work stays at home. So o bytes kept elsewhere are
`o / (k - 1)` bytes out and back per micro-batch, and at most `(k - 1) / k` of the checkpoints can be away. A byte out
or back takes the longer of its link and its DRAM at the sender, and its DRAM at the helper.

Neglects: memory of idle dies; hiding of transfers behind operators; their energy.
"""

from typing import Final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from watos_jax import pipeline
from watos_jax.estimate import Estimate, estimate
from watos_jax.hardware import System, Wafer
from watos_jax.memory import stages
from watos_jax.model import Transformer
from watos_jax.network.times import over_tiers
from watos_jax.recompute import Choices, Sharing, choices
from watos_jax.strategy import RECOMPUTE_LEVELS, Layout, Strategy
from watos_jax.units import PerStage, Scalar

LEVELS: Final = len(RECOMPUTE_LEVELS)


class Levels(eqx.Module):
    """A strategy at every level of recomputation.

    Attributes:
        given: the problem of GCMR.
        base: the estimate at level 0, nothing recomputed.
        forward: s per micro-batch without shipping, shape (levels, stages).
        backward: likewise.
        memory: bytes per die, likewise.
    """

    given: Choices
    base: Estimate
    forward: Float[Array, "levels stages"]
    backward: Float[Array, "levels stages"]
    memory: Float[Array, "levels stages"]


@jax.jit
def levels_of(system: System | Wafer, model: Transformer, strategy: Strategy, layout: Layout) -> Levels:
    """Estimate a strategy at every level and state its problem; may be traced.

    Args:
        system: the hardware.
        model: the transformer.
        strategy: one strategy; its own `recompute` is not read.
        layout: what the network makes of it.
    """

    def at(level: Scalar) -> Estimate:
        return estimate(system, model, eqx.tree_at(lambda s: s.recompute, strategy, level), layout=layout)

    every = jax.vmap(at)(jnp.arange(float(LEVELS)))
    held = stages(model, strategy, layout.max_stages)
    machine = system.system if isinstance(system, Wafer) else system
    capacity = machine.die.memory.capacity
    again = jnp.where(held.in_flight > 1.0, 1.0 / jnp.where(held.in_flight > 1.0, held.in_flight - 1.0, 1.0), 0.0)
    own, there = shipping_times(machine, layout)
    sends = (held.in_flight > 1.0) & (every.memory[0] > capacity)
    time = every.stage_forward + every.stage_backward
    shares = jnp.where(held.in_flight > 1.0, 1.0 - 1.0 / jnp.where(held.in_flight > 1.0, held.in_flight, 1.0), 0.0)
    given = choices(
        time,
        every.memory,
        capacity,
        movable=every.memory_parts.activations * shares[None],
        send_time=2.0 * own * again,
        # that of the sender of fewest micro-batches: too much for the others, never too little
        hold_time=2.0 * there * jnp.max(jnp.where(sends, again, 0.0)),
        active=held.active,
    )
    base = jax.tree.map(lambda leaf: leaf[0], every)
    return Levels(given, base, every.stage_forward, every.stage_backward, every.memory)


def shipping_times(system: System, layout: Layout) -> tuple[PerStage, Scalar]:
    """Seconds per byte and die that is shipped one way: at a stage that sends to its neighbour, and at the helper."""
    there = (1.0 + system.efficiency.memory_overhead) / system.die.memory.bandwidth
    per_byte = [(1.0 + system.efficiency.network_overhead) / tier.link.bandwidth for tier in system.tiers]
    volume = jnp.asarray(layout.pipeline_volume)
    # the last stage sends back over the boundary before it
    before = jnp.concatenate([volume[:1], volume[:-1]])
    link = over_tiers(jnp.where(volume > 0.0, volume, before), per_byte)
    return jnp.maximum(link, there), there


def unshared(levels: Levels) -> Sharing:
    """The quickest level of every stage that fits its own DRAM: best for any schedule where nothing is shared."""
    time = jnp.where(levels.given.room >= 0.0, levels.forward + levels.backward, jnp.inf)
    level = jnp.argmin(time, axis=0)
    room = jnp.take_along_axis(levels.given.room, level[None], axis=0)[0]
    return Sharing(level, room, jnp.max(jnp.min(time, axis=0)), jnp.sum(room))


def shared_step_time(levels: Levels, strategy: Strategy, taken: Sharing, estimated: Estimate | None = None) -> Scalar:
    """Step time with the levels and shipments of a solution.

    Args:
        levels: the strategy at every level.
        strategy: its schedule.
        taken: levels and supplies.
        estimated: the estimate at the levels taken; where None what follows the last backward pass is that of level 0.

    Returns:
        Seconds by the closed form of `pipeline`; half of what shipping takes falls on the forward pass.
    """
    base = levels.base if estimated is None else estimated
    plain = pipeline.step_time(base.stage_forward, base.stage_backward, strategy)
    forward, backward = (_at(part, taken) for part in (levels.forward, levels.backward))
    extra = 0.5 * shipping_of(levels, taken)
    return base.step_time + (pipeline.step_time(forward + extra, backward + extra, strategy) - plain)


def shipping_of(levels: Levels, taken: Sharing) -> PerStage:
    """Seconds per micro-batch that each stage ships: its own overflow, and what it keeps for others.

    Helpers keep shares of what is sent in proportion to what they can keep, which no cap forbids.
    """
    own = _at(levels.forward + levels.backward, taken)
    return (_at(levels.given.busy, taken) - own) + levels.given.hold_time * held_bytes(taken)


def _at(table: Float[Array, "levels stages"], taken: Sharing) -> PerStage:
    return jnp.take_along_axis(table, taken.level[None], axis=0)[0]


def held_bytes(taken: Sharing) -> PerStage:
    """Bytes per die that each stage keeps for others."""
    can = jnp.maximum(taken.supply, 0.0)
    whole = jnp.sum(can)
    sent = jnp.sum(jnp.maximum(-taken.supply, 0.0))
    return can * jnp.where(whole > 0.0, sent / jnp.where(whole > 0.0, whole, 1.0), 0.0)
