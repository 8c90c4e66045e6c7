"""A proof of how far a design is from the best one: branch and bound over strategies and boxes of the lattice.

Every strategy of every die grid is bounded by a tangent (`bounds`) over the boxes of its grid, at first the whole
lattice. What is not better than the incumbent by more than the gap is dropped; the boxes of what is left are halved,
and its tangents taken anew where the bound is least, until nothing is left. Boxes of a single point are given to the
hard model, which may find a better design on the way. Double precision throughout.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import jax
import numpy as np

from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING
from watos_jax.search.bounds import EXPONENTS, MACS, SLACK, Boxes, Grids, Tangent, exact_times, tangent
from watos_jax.search.descend import Point, Shared
from watos_jax.workload import model_flop

TANGENTS = 6
"""Most tangents per strategy."""
BLOCK = 16384
"""Strategies whose stages are held in memory at once."""
RENEWED = 8192
"""Most strategies whose tangents are taken anew; while more are left, boxes are only halved."""
RENEWED_EVERY = 4
"""Rounds from one renewal to the next: tangents are nearly exact everywhere."""


@dataclass(frozen=True)
class Certificate:
    """What is known of the best step time over all strategies and lattice points.

    Attributes:
        value: s per step of the best design, its schedule replayed.
        lower_bound: s per step; no design is faster.
        evaluations: estimates made, gradients counted once.
        boxes: boxes of the hardware lattice that were bounded.
        strategies_visited: strategies that the first bound, over the whole lattice, did not rule out.
        strategies: strategies of all die grids.
        lattice_points: hardware points per strategy.
        wall_time: s.
    """

    value: float
    lower_bound: float
    evaluations: int
    boxes: int
    strategies_visited: int
    strategies: int
    lattice_points: float
    wall_time: float

    @property
    def gap(self) -> float:
        """Value over its lower bound, minus 1."""
        return self.value / self.lower_bound - 1.0


@dataclass
class _Left:
    # strategies of one grid that are not ruled out: rows of the table, their tangents, the stacks they need
    rows: np.ndarray
    weights: np.ndarray  # (rows, tangents, reciprocals)
    stacks: np.ndarray


def certify(
    shared: Shared,
    every: Point,
    incumbent: Point,
    *,
    gap: float,
    time_limit: float,
    progress: Callable[[float], None] = lambda gap: None,
) -> tuple[Certificate, Point]:
    """Bound the step time from below until the incumbent is within the gap, or the time is over.

    Args:
        shared: budget, model, layouts; the objective is the step time.
        every: all candidates, with any knobs that are near a good design of their grid.
        incumbent: one candidate with knobs that fit.
        gap: of the incumbent over the bound, at which the search ends; 0 finds the best design.
        time_limit: s.
        progress: called with the gap proven so far.

    Returns:
        The certificate, and the best design: the incumbent or a better one.
    """
    with jax.enable_x64(True):
        return _Proof(shared, every, incumbent, gap, time_limit, progress).run()


class _Proof:
    def __init__(
        self,
        shared: Shared,
        every: Point,
        incumbent: Point,
        gap: float,
        time_limit: float,
        progress: Callable[[float], None],
    ):
        self.started = time.perf_counter()
        self.shared, self.every, self.best = shared, every, incumbent
        self.gap, self.time_limit, self.progress = gap, time_limit, progress
        self.boxes = self.evaluations = 0
        self.value = float(exact_times(incumbent.candidate.strategy, self._touch(incumbent))[0])
        # least bound of what was dropped, and of single points
        self.dropped = np.inf
        grids, self.grid = np.unique(np.stack(every.candidate[:4], axis=1), axis=0, return_inverse=True)
        self.grids = Grids(shared.budget, grids)

    @property
    def target(self) -> float:
        return self.value / (1.0 + self.gap)

    def run(self) -> tuple[Certificate, Point]:
        boxes = self._promising(self.grids.whole())
        left, visited = self._first(np.unique(boxes.grid)), 0
        for number in count(1):
            self.boxes += len(boxes.grid)
            left, boxes, least, where = self._prune(left, boxes)
            visited = visited or sum(len(one.rows) for one in left.values())
            self.progress(self.value / min(least, self.dropped, self.value) - 1.0)
            if not left or time.perf_counter() - self.started > self.time_limit:
                break
            single = (boxes.low == boxes.high).all(axis=1)
            if single.any():
                self._settle(left, _rows(boxes, single))
            if number % RENEWED_EVERY == 0:
                self._renew(left, where)
            boxes = self.grids.split(_rows(boxes, ~single)) if not single.all() else _rows(boxes, ~single)
        least = min([self.dropped, self.value, *([least] if left else [])])
        points = float(np.prod(self.grids.sizes.astype(float)))
        elapsed = time.perf_counter() - self.started
        counts = self.evaluations, self.boxes, visited, len(self.grid)
        return Certificate(self.value, float(least), *counts, points, elapsed), self.best

    def _tangents(self, rows: np.ndarray, knobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights: list[Any] = [np.zeros((0, len(EXPONENTS)))]
        stacks: list[Any] = [np.zeros(0)]
        for start in range(0, len(rows), BLOCK):
            block = slice(start, start + BLOCK)
            found = self._touch(self._at(rows[block], knobs[block]))
            weights.append(found.weights)
            stacks.append(found.stacks)
        return np.concatenate(weights)[:, None], np.concatenate(stacks)

    def _touch(self, points: Point) -> Tangent:
        # one shape, hence one compilation, for few and many
        self.evaluations += len(points.knobs)
        return map_chunks(tangent, self.shared, points, chunk=512, chunks_per_call=8)

    def _at(self, rows: np.ndarray, knobs: np.ndarray) -> Point:
        return jax.tree.map(lambda leaf: leaf[rows], self.every)._replace(knobs=knobs)

    def _promising(self, boxes: Boxes) -> Boxes:
        # grids whose dies can do the FLOP of the mathematics in time, all of them busy at the peak of the upper corner
        flop = float(model_flop(self.shared.model, jax.tree.map(lambda leaf: leaf[0], self.every.candidate.strategy)))
        peak = 2.0 * float(self.shared.budget.wafer.die.core.num_macs) / boxes.least[:, MACS]
        bound = flop / (peak * self.grids.grids[boxes.grid, :2].prod(axis=1))
        may = bound < self.target
        self.boxes += len(may)
        self.dropped = min(self.dropped, bound[~may].min(initial=np.inf))
        return _rows(boxes, may)

    def _first(self, grids: np.ndarray) -> dict[int, _Left]:
        rows = [np.flatnonzero(self.grid == number) for number in grids]
        order = np.concatenate([*rows, np.zeros(0, int)])
        weights, stacks = self._tangents(order, np.asarray(self.every.knobs)[order])
        ends = np.cumsum([0, *(len(some) for some in rows)])
        spans = [slice(*pair) for pair in pairwise(ends)]
        left = zip(grids.tolist(), rows, spans, strict=True)
        return {number: _Left(some, weights[span], stacks[span]) for number, some, span in left}

    def _prune(
        self, left: dict[int, _Left], boxes: Boxes
    ) -> tuple[dict[int, _Left], Boxes, float, dict[int, np.ndarray]]:
        # strategies and boxes that may hold something better; the least bound; the knobs where each strategy has it
        kept, keep, least, where = {}, np.zeros(len(boxes.grid), bool), np.inf, {}
        for number, one in left.items():
            there = np.flatnonzero(boxes.grid == number)
            bound = _bound(one, _rows(boxes, there))
            may = bound < self.target
            rows, columns = may.any(axis=1), may.any(axis=0)
            self.dropped = min(self.dropped, bound[~may].min(initial=np.inf))
            if rows.any():
                keep[there[columns]] = True
                kept[number] = _Left(one.rows[rows], one.weights[rows], one.stacks[rows])
                least = min(least, bound.min())
                where[number] = boxes.knobs[there[bound[rows].argmin(axis=1)]]
        return kept, _rows(boxes, keep), least, where

    def _settle(self, left: dict[int, _Left], boxes: Boxes) -> None:
        # single points: the hard model's word, with most columns of cores and the largest die
        for number, one in left.items():
            there = _rows(boxes, boxes.grid == number)
            bound = _bound(one, there)
            rows, columns = np.nonzero(bound < self.target)
            if not len(rows):
                continue
            points = self._at(one.rows[rows], there.knobs[columns])
            found = self._touch(points)
            exact = exact_times(points.candidate.strategy, found)
            fits = found.excess <= ROUNDING
            # where the mean power is exceeded a smaller design may fit, but none is below its bound
            self.dropped = min(self.dropped, np.where(fits, exact, bound[rows, columns]).min())
            times = np.where(fits, exact, np.inf)
            if times.min() < self.value:
                at = times.argmin()
                self.value, self.best = float(times[at]), jax.tree.map(lambda leaf, at=at: leaf[[at]], points)

    def _renew(self, left: dict[int, _Left], where: dict[int, np.ndarray]) -> None:
        if sum(len(one.rows) for one in left.values()) > RENEWED:
            return
        rows = np.concatenate([one.rows for one in left.values()])
        weights, _ = self._tangents(rows, np.concatenate([where[number] for number in left]))
        start = 0
        for one in left.values():
            span = slice(start, start + len(one.rows))
            one.weights = np.concatenate([one.weights[:, 1 - TANGENTS :], weights[span]], axis=1)
            start = span.stop


def _rows(boxes: Boxes, rows: np.ndarray) -> Boxes:
    return Boxes(*(column[rows] for column in boxes))


def _bound(one: _Left, boxes: Boxes) -> np.ndarray:
    # (strategies, boxes) s, infinite where memory needs more stacks than there are
    strategies, tangents, size = one.weights.shape
    flat = one.weights.reshape(-1, size) @ boxes.least.T
    bound = flat.reshape(strategies, tangents, -1).max(axis=1)
    return np.where(one.stacks[:, None] <= boxes.stacks * (1.0 + SLACK), bound, np.inf)
