"""The least sum of all stages' times under a cap, a knapsack, and the least step, by a scan over caps."""

from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from watos_jax.recompute.problem import Choices, Sharing, sharing_of, supplies
from watos_jax.recompute.slowest import least_slowest
from watos_jax.units import Scalar

BISECTIONS: Final = 40
"""Halvings of the weight of memory against time."""


def whole_cost(given: Choices) -> Float[Array, "levels stages"]:
    """Seconds that a level adds to the sum over all stages: its own, and its helpers' for what it sends."""
    return given.busy + given.hold_time * jnp.maximum(-given.room, 0.0)


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
    return sharing_of(supply, jnp.asarray(cap, supply.dtype), level), jnp.sum(jnp.min(lagrangian, axis=0)), price


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
