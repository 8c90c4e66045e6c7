"""What each pipeline stage recomputes, and which stages keep checkpoints for others: GCMR, by exact methods.

Every stage takes one of several levels; a level has a time and a memory. Stages that overflow their own DRAM send the
overflow to stages with room ("senders" and "helpers"), over the links of the wafer. The stated problem:

* stage s at level l takes `t[l, s]` seconds per micro-batch and `m[l, s]` bytes per die, of `capacity`;
* a sender takes `send_time[s]` more seconds per byte of overflow and can send at most `movable[l, s]`, for only
  checkpoints move; a helper takes `hold_time` more seconds per byte that it keeps for others;
* pooled, any stage helps any other: what helpers can keep must cover what senders send. In a line, bytes pass from
  stage to stage, and at most `link_bytes[s]` of them, either way, between stages s and s + 1.

`least_slowest` finds the least time of the slowest stage. Under a cap T each stage may take, independently of all
others, the level of largest net supply

    supply = min(capacity - m, (T - t) / hold_time)   of a helper with t <= T
           = capacity - m                             of a sender with t + send_time (m - capacity) <= T,

for more supply never hurts: bytes that need not travel leave every other way open. A cap is feasible if supplies
add up to at least nothing (pooled), or if one scan along the line finds a flow. Both are monotone in T, so T is
bisected down to neighbouring floating-point numbers: exact, without sorting candidates.

`least_sum` makes the sum of all stages' times least under a cap, a knapsack (`least_step` scans caps with it).

Reference: the problem is that of GCMR in WATOS (arXiv 2512.12279), which solves it by a dynamic program over
quantised memory; design and method here are our own.
"""

from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from watos_jax.units import PerStage, Scalar
from watos_jax.xla import fold

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


def _covered(supply: PerStage, link_bytes: PerStage, pooled: bool) -> Bool[Array, ""]:
    if pooled:
        return fold(jnp.add, supply) >= 0.0

    def cross(state: tuple, stage: tuple) -> tuple[tuple, None]:
        # least and most bytes on their way to later stages, negative to earlier ones; empty once, the range stays so
        (least, most, possible), (gives, link) = state, stage
        least = jnp.maximum(least - gives, -link)
        most = jnp.minimum(most + jnp.maximum(-gives, 0.0), link)
        return (least, most, possible & (least <= most)), None

    ends = jnp.arange(len(supply)) == len(supply) - 1
    zero = jnp.zeros((), supply.dtype)
    state, _ = jax.lax.scan(cross, (zero, zero, jnp.asarray(True)), (supply, jnp.where(ends, 0.0, link_bytes)))
    return state[2]


def least_slowest(given: Choices, *, pooled: bool = True) -> Sharing:
    """The least time of the slowest stage: exact for the stated problem.

    Args:
        given: the problem, one strategy; use `jax.vmap` for many.
        pooled: whether any stage may help any other; else `given.link_bytes` limits what passes each boundary.

    Returns:
        Levels, supplies and the time, which is the least floating-point number at which the stages fit.

    **Neglects:** hops between sender and helper, which `send_time` stands for.
    """

    def enough(cap: Scalar) -> Bool[Array, ""]:
        return _covered(fold(jnp.maximum, supplies(given, cap).T), given.link_bytes, pooled)

    helped = given.busy + given.hold_time * jnp.maximum(given.room, 0.0)
    # above `most` nothing changes any more; below `quickest` some stage has no level left
    most = jnp.max(jnp.where(jnp.isfinite(given.busy), helped, 0.0))
    quickest = jnp.max(jnp.min(given.busy, axis=0))
    fits = enough(most) & jnp.isfinite(quickest)
    low = jnp.where(fits, quickest, most)
    high = jnp.where(enough(low), low, most)

    def between(bounds: tuple[Scalar, Scalar]) -> Scalar:
        return bounds[0] + 0.5 * (bounds[1] - bounds[0])

    def unfinished(bounds: tuple[Scalar, Scalar]) -> Bool[Array, ""]:
        return (bounds[0] < between(bounds)) & (between(bounds) < bounds[1])

    def halve(bounds: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        middle = between(bounds)
        covered = enough(middle)
        return jnp.where(covered, bounds[0], middle), jnp.where(covered, middle, bounds[1])

    _, cap = jax.lax.while_loop(unfinished, halve, (low, high))
    supply = supplies(given, cap)
    return _taken(supply, jnp.where(fits, cap, jnp.inf), jnp.argmax(supply, axis=0))


def _taken(supply: Float[Array, "levels stages"], slowest: Scalar, level: Int[Array, " stages"]) -> Sharing:
    taken = jnp.take_along_axis(supply, level[None], axis=0)[0]
    return Sharing(level, taken, slowest, jnp.sum(taken))


def whole_cost(given: Choices) -> Float[Array, "levels stages"]:
    """Seconds that a level adds to the sum over all stages: its own, and its helpers' for what it sends."""
    return given.busy + given.hold_time * jnp.maximum(-given.room, 0.0)


BISECTIONS: Final = 40
"""Halvings of the weight of memory against time."""


def near_least_sum(given: Choices, cap: Scalar) -> tuple[Sharing, Scalar, Scalar]:
    """Nearly the least sum of times under a cap, pooled, and a lower bound: the Lagrangian of the knapsack.

    Every stage takes the level of least `cost - price supply`; the price is bisected to the least at which supplies
    cover demands.

    Args:
        given: the problem, one strategy; use `jax.vmap` for many.
        cap: s per micro-batch that no stage may exceed; one at which the stages fit, such as that of `least_slowest`.

    Returns:
        Levels and supplies; a sum that no levels are below, in s; and the price, s per byte.
    """
    supply, cost = supplies(given, cap), whole_cost(given)
    able = supply > -jnp.inf
    bytes_scale = jnp.max(jnp.where(able, jnp.abs(supply), 0.0)) + 1.0
    seconds_scale = jnp.max(jnp.where(able, cost, 0.0))
    reduced_supply, reduced_cost = supply / bytes_scale, cost / jnp.where(seconds_scale > 0.0, seconds_scale, 1.0)

    def at(weight: Scalar) -> Int[Array, " stages"]:
        value = (1.0 - weight) * reduced_cost - weight * jnp.where(able, reduced_supply, 0.0)
        return jnp.argmin(jnp.where(able, value, jnp.inf), axis=0)

    def halve(_: Any, bounds: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
        low, high = bounds
        middle = 0.5 * (low + high)
        enough = jnp.sum(jnp.take_along_axis(supply, at(middle)[None], axis=0)) >= 0.0
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    start = jnp.zeros((), supply.dtype), jnp.ones((), supply.dtype)
    _, weight = jax.lax.fori_loop(0, BISECTIONS, halve, start)
    free = at(start[0])
    needless = jnp.sum(jnp.take_along_axis(supply, free[None], axis=0)) >= 0.0
    level = jnp.where(needless, free, jnp.where(weight < 1.0, at(weight), jnp.argmax(supply, axis=0)))
    price = jnp.where(needless, 0.0, weight / jnp.maximum(1.0 - weight, 1e-6)) * seconds_scale / bytes_scale
    lagrangian = jnp.where(able, cost - price * jnp.where(able, supply, 0.0), jnp.inf)
    return _taken(supply, jnp.asarray(cap, supply.dtype), level), jnp.sum(jnp.min(lagrangian, axis=0)), price


def least_sum(given: Choices, cap: float) -> tuple[Sharing, float] | None:
    """The least sum of all stages' times under a cap, pooled: a knapsack, exact by Pareto dynamic programming.

    Stage by stage, keep the (seconds, supply) pairs of which none is at once slower and poorer than another; drop
    those that cannot reach a supply of nothing, and those whose Lagrangian bound exceeds the sum already known from
    `near_least_sum`. Cost: `levels` x the pairs kept, at each stage. The number of pairs has no polynomial bound (the
    knapsack is NP-hard); `experiments/gcmr.py` prints how long it takes.

    Args:
        given: the problem, concrete.
        cap: s per micro-batch that no stage may exceed.

    Returns:
        Levels, supplies, the slowest stage (before it helps others), and the sum in s; None where nothing fits.
    """
    known, _, price = _near(given, cap)
    supply, cost = np.asarray(_supplies(given, cap), float), np.asarray(_cost(given), float)
    rows = np.arange(supply.shape[-1])
    if not float(known.spare) >= 0.0:
        return None
    ceiling = cost[np.asarray(known.level), rows].sum()
    able = supply > -np.inf
    reduced = np.where(able, cost - float(price) * np.where(able, supply, 0.0), np.inf)
    # bounds on what the stages still to come add: least Lagrangian value, largest supply
    rest = np.append(np.cumsum(reduced.min(axis=0)[::-1])[::-1][1:], 0.0)
    most = np.append(np.cumsum(supply.max(axis=0)[::-1])[::-1][1:], 0.0)
    rounding = 1e-12 * ceiling
    seconds, spare = np.zeros(1), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for stage in rows:
        levels = np.flatnonzero(able[:, stage])
        times = (seconds + cost[levels, stage][:, None]).ravel()
        spares = (spare + supply[levels, stage][:, None]).ravel()
        bound = times - float(price) * spares + rest[stage]
        hopeful = (spares + most[stage] >= 0.0) & (bound <= ceiling + rounding)
        kept = np.flatnonzero(hopeful)
        kept = kept[np.lexsort((-spares[kept], times[kept]))]
        richer = np.append(True, spares[kept][1:] > np.maximum.accumulate(spares[kept])[:-1])
        kept = kept[richer]
        trail.append((levels[kept // len(seconds)], kept % len(seconds)))
        seconds, spare = times[kept], spares[kept]
    place, level = 0, np.zeros(len(rows), int)
    for stage in rows[::-1]:
        level[stage], place = trail[stage][0][place], trail[stage][1][place]
    taken = supply[level, rows]
    slowest = np.max(np.asarray(given.busy)[level, rows])
    return Sharing(*(jnp.asarray(part) for part in (level, taken, slowest, taken.sum()))), float(
        cost[level, rows].sum()
    )


_near, _slowest, _supplies, _cost = (jax.jit(f) for f in (near_least_sum, least_slowest, supplies, whole_cost))


def least_step(given: Choices, weight: float) -> tuple[Sharing, float] | None:
    """The levels of least `sum c + weight max c`: the step of 1F1B, by a scan over caps of the slowest stage.

    With m micro-batches and v chunks the closed form of the step is `(sum c + (m v - 1) max c) / v`. Caps are the
    times at which a stage gains a level, or a helper all its room, from that of `least_slowest` on; the scan ends
    where `weight cap` alone, with the least sum under no cap, is more than the best known.

    Args:
        given: the problem, concrete and pooled.
        weight: seconds of the step per second of the slowest stage, beside its part in the sum: `m v - 1`.

    Returns:
        Levels and supplies under the cap, and the value in s; None where nothing fits.

    **Neglects:** caps between those scanned, which can only pay where `hold_time` is above 0.
    """
    first = _slowest(given)
    if not bool(first.fits):
        return None
    busy = np.asarray(given.busy, float)
    full = busy + float(given.hold_time) * np.maximum(np.asarray(given.room, float), 0.0)
    caps = np.unique(np.concatenate([busy.ravel(), full.ravel(), [float(first.slowest)]]))
    caps = caps[np.isfinite(caps) & (caps >= float(first.slowest))]
    unbound = least_sum(given, caps[-1])
    least = 0.0 if unbound is None else unbound[1]
    best: tuple[Sharing, float] | None = None
    for cap in caps:
        if best is not None and weight * cap + least >= best[1]:
            break
        found = least_sum(given, cap)
        if found is None:
            continue
        longest = _longest(given, found[0])
        if best is None or found[1] + weight * longest < best[1]:
            best = eqx.tree_at(lambda s: s.slowest, found[0], jnp.asarray(longest)), found[1] + weight * longest
    return best


def _longest(given: Choices, taken: Sharing) -> float:
    # the slowest stage with levels settled, helpers sharing the load so that it is as quick as it can be
    rows = np.asarray(taken.level)[None]
    busy, room = (jnp.take_along_axis(part, rows, axis=0) for part in (given.busy, given.room))
    return float(_slowest(Choices(busy, room, given.hold_time, given.link_bytes)).slowest)
