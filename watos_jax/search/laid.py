"""Strategies that are laid anew on what each of several draws of faults leaves of a wafer, as one problem.

With T(h, s, d) the step time of hardware h and strategy s on what draw d leaves, its rectangles on living dies in the
order of the serpentine, the least over the ways of laying them (`robust.ways_left`), infinite where it does not fit:

    minimise over h and s   max over d of T(h, s, d)      or      mean over d of T(h, s, d)

Dead dies and dead or narrow links change the layout of a strategy and nothing else, so each T(h, s, d) is convex and
grows with the reciprocal resources of `bounds`, and so do their largest and their mean: tangents of all draws together
bound a strategy over boxes of the lattice as one tangent does without faults. Nothing is assumed of how a wafer with
faults compares with a whole one.

Neglects: harvested dies; places that are kept, and orders other than the serpentine (`draws.plan_for_draws`); that the
chance of a fault depends on the hardware.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from typing import Final

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING
from watos_jax.faults import Faults
from watos_jax.hardware import Budget, System, Wafer
from watos_jax.model import Transformer
from watos_jax.search.boxes import Boxes
from watos_jax.search.candidates import Candidates, candidates
from watos_jax.search.certificate import Problem
from watos_jax.search.climb import Climber
from watos_jax.search.descend import Point, Score, Shared, score
from watos_jax.search.draws import OBJECTIVES, stacked_strategies, strategy_keys
from watos_jax.search.local import Local, Touch
from watos_jax.search.robust import ways_left
from watos_jax.search.space import NoStrategy, Options, StrategySpace, strategies

FaultsOf = Callable[[Wafer], Sequence[Faults]]
"""Draws of faults of a wafer; only its die grid may matter, and there are as many for every grid."""
POINTS: Final = 1024
"""Points on one device at once."""


@dataclass(frozen=True)
class Laid(Problem):
    """The problem of several draws.

    Attributes:
        shared: budget, model; of every candidate `draws * ways` layouts one after the other, from its `geometry` on.
        draws: how many.
        ways: layouts per draw; where there are fewer, some are repeated.
        objective: one of `draws.OBJECTIVES`.
    """

    shared: Shared
    draws: int
    ways: int
    objective: str

    def scores(self, points: Point) -> Score:
        """Worst or mean step time of each point, log(use / allowance) of the worst limit in any draw, and stacks."""
        number, count = self.draws * self.ways, len(points.knobs)
        every = jax.tree.map(lambda leaf: np.repeat(leaf, number, axis=0), points)
        found = map_chunks(score, self.shared, _moved(every, np.tile(np.arange(number), count)), chunk=POINTS)
        times, excess, stacks = (part.reshape(count, number) for part in found)
        value, fits = self._settled(times, excess)
        least = times.reshape(count, self.draws, self.ways).min(axis=2)
        beyond = excess.reshape(count, self.draws, self.ways).min(axis=2).max(axis=1)
        # memory is the same however a strategy is laid
        return Score(np.where(fits, value, OBJECTIVES[self.objective](least, axis=1)), beyond, stacks[:, 0])

    def step_times(self, point: Point) -> Float[np.ndarray, " draws"]:
        """Step time of one point in every draw."""
        one = replace(self, objective="worst")
        parts = [
            replace(one, draws=1).scores(_moved(point, np.array([draw * self.ways]))).value
            for draw in range(self.draws)
        ]
        return np.concatenate(parts)

    def touch(self, points: Point) -> Touch:
        """Tangents of every layout, shape (points, draws * ways, ...)."""
        local = Local(self.shared)
        parts = [local.touch(_moved(points, np.array([number]))) for number in range(self.draws * self.ways)]
        return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *parts)

    def settle(self, points: Point) -> tuple[Float[np.ndarray, " points"], Bool[np.ndarray, " points"]]:
        """Worst or mean time by the hard model, schedules replayed, and whether no smaller design has another."""
        local, numbers = Local(self.shared), range(self.draws * self.ways)
        parts = zip(*(local.settle(_moved(points, np.array([number]))) for number in numbers), strict=True)
        times, fits = (np.stack(part, axis=1) for part in parts)
        # a way that exceeds the mean power may be allowed, and quicker than another way, with fewer cores
        return self._settled(times, np.where(fits, 0.0, np.inf))[0], np.asarray(fits.all(axis=1))

    def bound(self, touched: Touch, boxes: Boxes) -> Float[np.ndarray, "strategies boxes"]:
        """Of every layout the highest tangent at the upper corner, of every draw the least of its layouts."""
        local, found = Local(self.shared), []
        for draw in range(self.draws):
            numbers = range(draw * self.ways, (draw + 1) * self.ways)
            laid = [local.bound(jax.tree.map(lambda leaf, n=n: leaf[:, :, n], touched), boxes) for n in numbers]
            found.append(np.min(laid, axis=0))
        return np.asarray(OBJECTIVES[self.objective](found, axis=0))

    def _settled(
        self, times: Float[np.ndarray, "points layouts"], excess: Float[np.ndarray, "points layouts"]
    ) -> tuple[Float[np.ndarray, " points"], Bool[np.ndarray, " points"]]:
        # over draws, of each draw the quickest way that fits; and whether every draw has one
        fitting = np.where(excess <= ROUNDING, times, np.inf).reshape(-1, self.draws, self.ways).min(axis=2)
        return np.asarray(OBJECTIVES[self.objective](fitting, axis=1)), np.isfinite(fitting).all(axis=1)


class LaidClimber(Climber):
    """Local search for several draws, which have hardware and strategy in common.

    Args:
        table: candidates, see `laid_candidates`.
        problem: their problem.
    """

    def __init__(self, table: Candidates, problem: Laid):
        super().__init__([table])
        self.problem = problem

    def scores(self, case: int, points: Point) -> Score:
        self.evaluations += len(points.knobs) * self.problem.draws * self.problem.ways
        return self.problem.scores(points)


def laid_candidates(
    model: Transformer, budget: Budget, faults: FaultsOf, *, options: Options, objective: str
) -> tuple[Candidates, Laid]:
    """Every die grid, choice of edges, and strategy that can be laid in all draws, and the problem of choosing one.

    Args:
        model: the transformer.
        budget: the wafer to fill.
        faults: the draws of every die grid.
        options: what strategies may choose from.
        objective: one of `draws.OBJECTIVES`.

    Raises:
        Infeasible: no die grid can hold the model in all draws; the message counts the reasons.
        ValueError: no draw, not as many for every grid, or one with dies that have lost a part.
    """
    grids = [range(low, high + 1) for low, high in (budget.die_rows, budget.die_cols)]
    drawn = {grid: tuple(faults(_on(budget, *grid))) for grid in product(*grids)}
    count = len(next(iter(drawn.values())))
    for grid, draws in drawn.items():
        if not draws or len(draws) != count:
            raise ValueError(
                f"faults gives {len(draws)} draws of {grid[0]} x {grid[1]} dies: it must give {count or 1}"
            )
        if any(((one.cores % 1.0 > 0.0) | (one.memory < 1.0)).any() for one in draws):
            raise ValueError("faults has dies with a part of their cores or stacks: dies must be whole or dead")
    ways = max(len(ways_left(_on(budget, *grid), one)) for grid, draws in drawn.items() for one in draws)

    def listed(system: System, model: Transformer, options: Options, *, max_stages: int) -> StrategySpace:
        grid = int(system.tiers[0].rows), int(system.tiers[0].cols)
        return _common(_on(budget, *grid), model, drawn[grid], options, max_stages, max(ways, 1))

    table = candidates(model, budget, options=options, listed=listed)
    return table, Laid(table.shared, count, max(ways, 1), objective)


def _on(budget: Budget, rows: int, cols: int) -> Wafer:
    return replace(budget.wafer, die_rows=rows, die_cols=cols)


def _moved(points: Point, layouts: Int[np.ndarray, " points"]) -> Point:
    geometry = np.asarray(points.candidate.geometry + layouts, np.int32)
    return points._replace(candidate=points.candidate._replace(geometry=geometry))


def _common(
    wafer: Wafer, model: Transformer, draws: Sequence[Faults], options: Options, max_stages: int, ways: int
) -> StrategySpace:
    # strategies that are legal in every draw, with all their layouts one after the other
    spaces: list[list[StrategySpace]] = []
    for faults in draws:
        spaces.append([])
        for network, _ in ways_left(wafer, faults):
            try:
                spaces[-1].append(strategies(wafer, model, options, max_stages=max_stages, network=network))
            except NoStrategy:
                continue
        if not spaces[-1]:
            raise NoStrategy("no strategy is legal in every draw")
    keys = [[strategy_keys(space.strategies, len(space)) for space in some] for some in spaces]
    common = reduce(np.intersect1d, (np.unique(np.concatenate(some)) for some in keys))
    if not len(common):
        raise NoStrategy("no strategy is legal in every draw")
    rows, offset = np.full((len(common), len(draws), ways), -1), 0
    for draw, (some, own) in enumerate(zip(spaces, keys, strict=True)):
        for way, (space, key) in enumerate(zip(some, own, strict=True)):
            order = np.argsort(key)
            at = order[np.minimum(np.searchsorted(key, common, sorter=order), len(key) - 1)]
            rows[:, draw, way] = np.where(key[at] == common, offset + space.geometry[at], -1)
            offset += len(space.layouts.pipeline_volume)
    laid = np.where(rows < 0, rows.max(axis=2, keepdims=True), rows).reshape(len(common), -1)
    every = jax.tree.map(lambda *parts: np.concatenate(parts), *(space.layouts for some in spaces for space in some))
    distinct, geometry = np.unique(laid, axis=0, return_inverse=True)
    layouts = jax.tree.map(lambda leaf: leaf[distinct.ravel()], every)
    return StrategySpace(stacked_strategies(common), layouts, geometry.ravel() * laid.shape[1])
