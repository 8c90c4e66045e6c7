"""A proof of how far a design is from the best one: branch and bound over strategies and boxes of the lattice.

Every strategy of every die grid is bounded by a tangent (`bounds`) over the boxes of its grid, at first the whole
lattice. What is not better than the incumbent by more than the gap is dropped; the boxes of what is left are halved,
and its tangents taken anew where the bound is least, until nothing is left. Boxes of a single point are given to the
hard model, which may find a better design on the way; where mean power, which no tangent knows, forbids its design of
most columns of cores, the point goes on with fewer. Double precision throughout.

What is bounded is a `Problem`: `local.Local`, where every stage lives in its own memory, or `pooled.Pooled`.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from watos_jax.search.bounds import MACS, SLACK
from watos_jax.search.boxes import Boxes, Grids
from watos_jax.search.descend import Point, Shared
from watos_jax.workload import model_flop

TANGENTS = 6
"""Most tangents per strategy."""
HALVED = 2
"""Times that boxes of the cover are halved before any strategy is bounded: it costs the same for one and for all."""
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


class Problem(ABC):
    """What branch and bound needs to know of the times that it bounds.

    Attributes:
        shared: budget, model, layouts.
    """

    shared: Shared

    @abstractmethod
    def touch(self, points: Point) -> Any:
        """Of each point a bound of the time of its candidate anywhere: a record of arrays, shape (points, ...)."""

    @abstractmethod
    def settle(self, points: Point) -> tuple[Float[np.ndarray, " points"], Bool[np.ndarray, " points"]]:
        """The time of each point in s, and whether it is allowed; else it is infinite, and a smaller design may be."""

    @abstractmethod
    def bound(self, touched: Any, boxes: Boxes) -> Float[np.ndarray, "strategies boxes"]:
        """Seconds that no design in a box is below; infinite where none fits.

        Args:
            touched: bounds of strategies, shape (strategies, bounds of each, ...); each holds by itself.
            boxes: of the grid of these strategies.
        """


def check_ends(gap: float, time_limit: float) -> None:
    """Refuse a gap or time limit at which no proof can end.

    Raises:
        ValueError: either is negative or not finite.
    """
    for name, given in (("gap", gap), ("time_limit", time_limit)):
        if not 0.0 <= given < np.inf:
            raise ValueError(f"{name} is {given:g}: it must be finite, 0 or more")


@dataclass
class _Left:
    # strategies of one grid that are not ruled out: rows of the table, and their bounds, arrays (rows, bounds, ...)
    rows: np.ndarray
    touched: Any


def certify(
    problem: Problem,
    every: Point,
    incumbent: Point,
    *,
    gap: float,
    time_limit: float,
    stacks: Float[np.ndarray, " candidates"] | None = None,
    progress: Callable[[float], None] = lambda gap: None,
) -> tuple[Certificate, Point]:
    """Bound the step time from below until the incumbent is within the gap, or the time is over.

    Args:
        problem: what is bounded; the objective is the step time.
        every: all candidates, with any knobs that are near a good design of their grid.
        incumbent: one candidate with knobs that fit.
        gap: of the incumbent over the bound, at which the search ends; 0 finds the best design.
        time_limit: s.
        stacks: DRAM stacks per die that each candidate needs, where they are known: those that need more than any
            box of their grid has are not looked at again.
        progress: called with the gap proven so far.

    Returns:
        The certificate, and the best design: the incumbent or a better one.
    """
    with jax.enable_x64(True):
        return _Proof(problem, every, incumbent, gap, time_limit, stacks, progress).run()


class _Proof:
    def __init__(
        self,
        problem: Problem,
        every: Point,
        incumbent: Point,
        gap: float,
        time_limit: float,
        stacks: np.ndarray | None,
        progress: Callable[[float], None],
    ):
        self.started = time.perf_counter()
        self.problem, self.shared, self.every, self.best = problem, problem.shared, every, incumbent
        self.gap, self.time_limit, self.stacks, self.progress = gap, time_limit, stacks, progress
        self.boxes = self.evaluations = 0
        self.value = float(self._settled(incumbent)[0][0])
        # least bound of what was dropped, and of single points
        self.dropped = np.inf
        places = np.stack(every.candidate[:4])
        number = np.ravel_multi_index(tuple(places.astype(int)), tuple(places.max(axis=1).astype(int) + 1))
        _, first, self.grid = np.unique(number, return_index=True, return_inverse=True)
        self.grids = Grids(self.shared.budget, places[:, first].T)

    @property
    def target(self) -> float:
        return self.value / (1.0 + self.gap)

    def run(self) -> tuple[Certificate, Point]:
        boxes = self._promising(self.grids.cover())
        for _ in range(HALVED):
            boxes = self._promising(self.grids.split(boxes))
        left, visited = self._first(boxes), 0
        for number in count(1):
            self.boxes += len(boxes.grid)
            left, boxes, least, where = self._prune(left, boxes)
            visited = visited or sum(len(one.rows) for one in left.values())
            self.progress(self.value / min(least, self.dropped, self.value) - 1.0)
            if not left or time.perf_counter() - self.started > self.time_limit:
                break
            single = (boxes.low == boxes.high).all(axis=1)
            open_points = self._settle(left, _rows(boxes, single))
            if number % RENEWED_EVERY == 0:
                self._renew(left, where)
            parts = self.grids.split(_rows(boxes, ~single)), self.grids.narrowed(open_points)
            boxes = Boxes(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        least = min([self.dropped, self.value, *([least] if left else [])])
        points = float(np.prod(self.grids.sizes.astype(float)))
        elapsed = time.perf_counter() - self.started
        counts = self.evaluations, self.boxes, visited, len(self.grid)
        return Certificate(self.value, float(least), *counts, points, elapsed), self.best

    def _touched(self, rows: np.ndarray, knobs: np.ndarray) -> Any:
        self.evaluations += len(rows)
        return jax.tree.map(lambda leaf: leaf[:, None], self.problem.touch(self._at(rows, knobs)))

    def _settled(self, points: Point) -> tuple[np.ndarray, np.ndarray]:
        self.evaluations += len(points.knobs)
        return self.problem.settle(points)

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

    def _first(self, boxes: Boxes) -> dict[int, _Left]:
        most = np.zeros(len(self.grids.grids))
        np.maximum.at(most, boxes.grid, boxes.stacks)
        enough = True if self.stacks is None else self.stacks <= most[self.grid] * (1.0 + SLACK)
        may = np.isin(self.grid, boxes.grid) & enough
        grids = np.unique(self.grid[may])
        rows = [np.flatnonzero((self.grid == number) & may) for number in grids]
        order = np.concatenate([*rows, np.zeros(0, int)])
        if not len(order):
            return {}
        touched = self._touched(order, np.asarray(self.every.knobs)[order])
        ends = np.cumsum([0, *(len(some) for some in rows)])
        spans = [slice(*pair) for pair in pairwise(ends)]
        left = zip(grids.tolist(), rows, spans, strict=True)
        return {number: _Left(some, _part(touched, span)) for number, some, span in left}

    def _prune(
        self, left: dict[int, _Left], boxes: Boxes
    ) -> tuple[dict[int, _Left], Boxes, float, dict[int, np.ndarray]]:
        # strategies and boxes that may hold something better; the least bound; the knobs where each strategy has it
        kept, keep, least, where = {}, np.zeros(len(boxes.grid), bool), np.inf, {}
        for number, one in left.items():
            there = np.flatnonzero(boxes.grid == number)
            bound = self.problem.bound(one.touched, _rows(boxes, there))
            may = bound < self.target
            rows, columns = may.any(axis=1), may.any(axis=0)
            self.dropped = min(self.dropped, bound[~may].min(initial=np.inf))
            if rows.any():
                keep[there[columns]] = True
                kept[number] = _Left(one.rows[rows], _part(one.touched, rows))
                least = min(least, bound.min())
                where[number] = boxes.knobs[there[bound[rows].argmin(axis=1)]]
        return kept, _rows(boxes, keep), least, where

    def _settle(self, left: dict[int, _Left], boxes: Boxes) -> Boxes:
        # single points: the hard model's word, with most columns of cores; those where only fewer may be allowed
        unknown = np.zeros(len(boxes.grid), bool)
        for number, one in left.items():
            own = np.flatnonzero(boxes.grid == number)
            bound = self.problem.bound(one.touched, _rows(boxes, own))
            rows, columns = np.nonzero(bound < self.target)
            if not len(rows):
                continue
            rows, columns = one.rows[rows], own[columns]
            known = self._tried(rows, boxes.knobs[columns])
            if not known.all():
                # a smaller die leaks less
                rows, columns = rows[~known], columns[~known]
                there, place = np.unique(columns, return_inverse=True)
                knobs = self.grids.in_smallest_dies(_rows(boxes, there))
                unknown[columns[~self._tried(rows, knobs[place])]] = True
        return _rows(boxes, unknown)

    def _tried(self, rows: np.ndarray, knobs: np.ndarray) -> np.ndarray:
        # whether the time of each point is known; the best of them may be better than the incumbent
        points = self._at(rows, knobs)
        times, known = self._settled(points)
        self.dropped = min(self.dropped, times.min())
        if times.min() < self.value:
            at = times.argmin()
            self.value, self.best = float(times[at]), jax.tree.map(lambda leaf: leaf[[at]], points)
        return known

    def _renew(self, left: dict[int, _Left], where: dict[int, np.ndarray]) -> None:
        if sum(len(one.rows) for one in left.values()) > RENEWED:
            return
        rows = np.concatenate([one.rows for one in left.values()])
        touched = self._touched(rows, np.concatenate([where[number] for number in left]))
        start = 0
        for one in left.values():
            span = slice(start, start + len(one.rows))
            one.touched = jax.tree.map(
                lambda old, new: np.concatenate([old[:, 1 - TANGENTS :], new], axis=1),
                one.touched,
                _part(touched, span),
            )
            start = span.stop


def _rows(boxes: Boxes, rows: np.ndarray) -> Boxes:
    return Boxes(*(column[rows] for column in boxes))


def _part(touched: Any, rows: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], touched)
