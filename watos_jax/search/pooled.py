"""A lower bound of the step time where stages share memory and lie anywhere on the mesh.

The relaxed problem, which no schedule of `search.placed` can beat on the same hardware:

* every stage takes any level of recomputation; what all stages hold fits the memory of all their dies together
  (pooled), and shipping takes no time;
* all who talk are neighbours and meet no one on their way (`network.bounds.neighbours`);
* the schedule takes `step_time_bounds`, never above its replay;
* recomputation repeats operators, its collectives are free.

With c_s(l) the seconds of stage s at level l, the time is at least `max_s (sum_{i<s} c_i / v + m c_s)`, so for any
shares pi of the stages at least `sum_s alpha_s c_s + rest`, `alpha_s = m pi_s + sum_{i>s} pi_i / v`. What levels add to
it under the limit of memory is a knapsack; its Lagrangian

    more(H) = max_price sum_s min_l (alpha_s (c_s(l) - c_s(0)) + price m_s(l)) - price p H stack_bytes

is below its optimum for any price. Hardware enters, as in `bounds`, through reciprocal resources u. The time at level
0 is above its tangent at any u0; what levels add is made of times of operators, each homogeneous in u and growing with
it, so it shrinks at most as the fastest shrinking resource that it depends on at u0:

    T(u, H) >= w . u + more(H) min_i u_i / u0_i

Neglects: that weights cannot move, the limit of mean power, what shipping takes, the drain of stages after the slowest.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax import pipeline
from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING, Estimate, estimate
from watos_jax.network.bounds import neighbours
from watos_jax.programs import returned
from watos_jax.search import lattice
from watos_jax.search.bounds import (
    EXPONENTS,
    SLACK,
    log_resources,
    reciprocals,
    resource_seconds,
    with_resources,
)
from watos_jax.search.boxes import AXES, Boxes
from watos_jax.search.certificate import Problem
from watos_jax.search.descend import Candidate, Point, Shared, log_ratios
from watos_jax.search.lattice import NAMES, from_array
from watos_jax.strategy import RECOMPUTE_LEVELS, Layout, Strategy
from watos_jax.units import PerStage, Scalar

LEVELS: Final = len(RECOMPUTE_LEVELS)
PRICES: Final = np.concatenate([[0.0], 2.0 ** np.arange(-8.0, 9.0)])
"""Prices of memory that are tried, over the seconds per byte of recomputing everything."""
TURNS: Final = 10
"""Shares of the stages that are tried."""
RATE: Final = 20.0
"""Of the logarithm of a stage's share, by how far its time lies below the slowest one's."""
CHUNK: Final = 128
"""Points per chunk: each is estimated at every level."""
CHUNKS_PER_CALL: Final = 4
_STACKS: Final = AXES.index("dram_stacks")


@returned
class Lower(NamedTuple):
    """Lower bounds of the pooled time of one strategy.

    Attributes:
        weights: w, shape (reciprocals,).
        more: seconds that recomputation adds at least at the point, for each number of stacks of the lattice; infinite
            where memory does not suffice, shape (stacks,).
        inverse: 1 / u0 of the resources that recomputation depends on, infinite for others, shape (reciprocals,).
        excess: log(use / allowance) of the worst limit at the point, memory and mean power aside.
    """

    weights: Float[Array, " reciprocals"]
    more: Float[Array, " stacks"]
    inverse: Float[Array, " reciprocals"]
    excess: Scalar


def lower(given: tuple[Shared, Float[Array, " stacks"]], point: Point) -> Lower:
    """Bound the pooled time of one strategy by what the model says at one point.

    Args:
        given: budget, model and layouts of `neighbours`; numbers of stacks.
        point: a candidate, whose level of recomputation is not read, and any knobs.
    """
    shared, stacks = given
    candidate, strategy = point.candidate, point.candidate.strategy
    layout = jax.tree.map(lambda leaf: leaf[candidate.geometry], shared.layouts)
    sides = candidate.horizontal_sides, candidate.vertical_sides

    def at(logs: Array, level: Scalar, distance: Scalar) -> tuple[PerStage, Scalar, Estimate]:
        # seconds of each stage, of what follows the last one, and the rest; without distance no message takes time
        knobs = from_array(with_resources(point.knobs, logs))
        wafer = shared.budget.build(knobs, candidate.die_rows, candidate.die_cols, sides)
        own = eqx.tree_at(lambda s: s.recompute, strategy, level)
        result = estimate(wafer, shared.model, own, layout=jax.tree.map(lambda leaf: leaf * distance, layout))
        stages = result.stage_forward, result.stage_backward
        return sum(stages), result.step_time - pipeline.step_time(*stages, own), result

    here = log_resources(point.knobs)
    numbers = jnp.arange(float(LEVELS))
    zero, one = jnp.zeros(()), jnp.ones(())
    both, _, every = jax.vmap(at, (None, 0, None))(here, numbers, zero)
    memory, extra = every.memory, jnp.maximum(both - both[:1], 0.0)
    plain, _, base = at(here, zero, one)
    capacity = strategy.pipeline_parallel * shared.budget.wafer.die.memory.stack_bytes
    shares = _shares(strategy, plain, extra, memory, capacity * point.knobs[NAMES.index("dram_stacks")])

    def weighed(logs: Array, level: Scalar, distance: Scalar, weights: PerStage) -> Scalar:
        seconds, after, _ = at(logs, level, distance)
        return jnp.sum(weights * seconds) + after

    modes = (
        jnp.stack([zero, zero, numbers[-1]]),
        jnp.stack([one, zero, zero]),
        jnp.stack([shares, jnp.ones_like(shares), jnp.ones_like(shares)]),
    )
    values, slopes = jax.vmap(jax.value_and_grad(weighed), (None, 0, 0, 0))(here, *modes)
    touching = resource_seconds(values[0], slopes[0])
    again = resource_seconds(values[2] - values[1], slopes[2] - slopes[1])
    inverse = jnp.exp(-jnp.asarray(EXPONENTS) @ here)
    return Lower(
        weights=touching * inverse,
        more=_more(shares, extra, memory, capacity * stacks),
        inverse=jnp.where(again > 1e-9 * jnp.max(again), inverse, jnp.inf),
        excess=jnp.max(log_ratios({n: v for n, v in base.margins.items() if n not in ("memory", "power")})),
    )


def _weights(strategy: Strategy, shares: PerStage) -> PerStage:
    # alpha: seconds of the step per second of each stage
    later = jnp.sum(shares) - jnp.cumsum(shares)
    return strategy.num_micro_batches * shares + later / strategy.virtual_stages


def _prices(weights: PerStage, extra: Array, memory: Array) -> Float[Array, " prices"]:
    saved = jnp.sum(memory[0] - jnp.min(memory, axis=0))
    return jnp.asarray(PRICES) * jnp.sum(weights * extra[-1]) / jnp.where(saved > 0.0, saved, 1.0)


def _lagrangian(weights: PerStage, extra: Array, memory: Array, prices: Array) -> Float[Array, "prices stages"]:
    # of every stage at its best level, before the limit of memory
    return jnp.min((weights[None] * extra)[None] + prices[:, None, None] * memory[None], axis=1)


def _more(weights: PerStage, extra: Array, memory: Array, capacity: Float[Array, " stacks"]) -> Float[Array, " stacks"]:
    prices = _prices(weights, extra, memory)
    whole = jnp.sum(_lagrangian(weights, extra, memory, prices), axis=-1)
    added = jnp.max(whole[:, None] - prices[:, None] * capacity[None], axis=0)
    fits = jnp.sum(jnp.min(memory, axis=0)) <= capacity * (1.0 + SLACK)
    return jnp.where(fits, jnp.maximum(added, 0.0), jnp.inf)


def _shares(strategy: Strategy, plain: PerStage, extra: Array, memory: Array, capacity: Scalar) -> PerStage:
    # weights alpha of the best bound found by multiplicative updates: slow stages gain, any shares are valid
    exists = plain > 0.0

    def step_times(both: PerStage) -> PerStage:
        before = jnp.cumsum(both) - both
        times = before / strategy.virtual_stages + strategy.num_micro_batches * both
        return jnp.where(exists, times, 0.0)

    def value(weights: PerStage) -> tuple[Scalar, PerStage]:
        # the bound, and the seconds of each stage at the levels that its best price leads to
        prices = _prices(weights, extra, memory)
        whole = jnp.sum(_lagrangian(weights, extra, memory, prices), axis=-1) - prices * capacity
        best = jnp.argmax(whole)
        level = jnp.argmin(weights[None] * extra + prices[best] * memory, axis=0)
        return jnp.sum(weights * plain) + whole[best], plain + jnp.take_along_axis(extra, level[None], axis=0)[0]

    def turn(_: Array, state: tuple) -> tuple:
        logs, most, kept = state
        weights = _weights(strategy, jax.nn.softmax(logs))
        bound, both = value(weights)
        times = step_times(both)
        logs = logs + jnp.where(exists, RATE * (times / jnp.max(times) - 1.0), 0.0)
        return logs, jnp.maximum(bound, most), jnp.where(bound > most, weights, kept)

    slowest = jnp.where(jnp.arange(len(plain)) == jnp.argmax(step_times(plain)), 1.0, 0.0)
    first = _weights(strategy, slowest)
    start = jnp.where(exists, 0.0, -jnp.inf), value(first)[0], first
    return jax.lax.fori_loop(0, TURNS, turn, start)[2]


def without_levels(points: Point) -> Point:
    """Candidates whose recomputation is still to be settled: all at level 0."""
    level = np.zeros(len(points.knobs))
    strategy = eqx.tree_at(lambda s: s.recompute, points.candidate.strategy, level)
    return points._replace(candidate=points.candidate._replace(strategy=strategy))


def apart(shared: Shared, every: Point) -> Layout:
    """The table of layouts with `neighbours` in place of the serpentine."""
    candidate: Candidate = every.candidate
    found, rows = np.unique(candidate.geometry, return_index=True)
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], candidate)
    table = jax.tree.map(lambda leaf: np.asarray(leaf)[found], shared.layouts)
    least = neighbours(table, first.die_rows, first.die_cols, first.strategy)
    place = np.minimum(np.searchsorted(found, np.arange(len(shared.layouts.pipeline_volume))), len(found) - 1)
    return jax.tree.map(lambda leaf: leaf[place], least)


@dataclass(frozen=True)
class Pooled(Problem):
    """The relaxed problem as `certificate.certify` wants it; build it with `pooled`."""

    shared: Shared
    stacks: Float[np.ndarray, " stacks"]

    def touch(self, points: Point) -> Lower:
        """Bounds that touch at the points."""
        given = self.shared, self.stacks
        return map_chunks(lower, given, points, chunk=CHUNK, chunks_per_call=CHUNKS_PER_CALL)

    def settle(self, points: Point) -> tuple[np.ndarray, np.ndarray]:
        """The bound at the points themselves, infinite where they cannot be made."""
        found = self.touch(points)
        knobs = np.asarray(points.knobs)
        own = np.searchsorted(self.stacks, knobs[:, NAMES.index("dram_stacks")] - 1e-6)
        plain = (np.asarray(found.weights) * reciprocals(knobs)).sum(axis=1)
        value = plain + np.asarray(found.more)[np.arange(len(own)), own]
        return np.where(found.excess <= ROUNDING, value, np.inf), np.ones(len(value), bool)

    def bound(self, touched: Lower, boxes: Boxes) -> np.ndarray:
        """The highest of the bounds at the upper corner."""
        weights, more, inverse = (np.asarray(part) for part in (touched.weights, touched.more, touched.inverse))
        strategies, bounds, size = weights.shape
        plain = (weights.reshape(-1, size) @ boxes.least.T).reshape(strategies, bounds, -1)
        shrunk = np.ones_like(plain)
        for number in range(size):
            np.minimum(shrunk, inverse[..., number, None] * boxes.least[:, number], out=shrunk)
        bound: np.ndarray = (plain + more[..., boxes.high[:, _STACKS]] * shrunk).max(axis=1)
        return bound


def pooled(shared: Shared, every: Point) -> tuple[Pooled, Point]:
    """State the relaxed problem of a search: its layouts, and one candidate per strategy whatever it recomputes.

    Args:
        shared: budget, model, layouts.
        every: all candidates.
    """
    level = np.asarray(every.candidate.strategy.recompute)
    rows = np.flatnonzero(level == level.min())
    base = without_levels(jax.tree.map(lambda leaf: np.asarray(leaf)[rows], every))
    size = lattice.counts(shared.budget)
    index = np.zeros((size[NAMES.index("dram_stacks")], len(NAMES)), int)
    index[:, NAMES.index("dram_stacks")] = np.arange(len(index))
    stacks = lattice.values_at(shared.budget, index)[:, NAMES.index("dram_stacks")]
    return Pooled(shared._replace(layouts=apart(shared, every)), stacks), base
