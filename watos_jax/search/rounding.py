"""From relaxed designs to the best lattice point around them.

The hard model on every lattice point around the best relaxed designs, then moves along one, two or three knobs until
none improves. All strategies of the grid are tried on the hardware that results, and the best is descended and rounded
again, until neither hardware nor strategy changes.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING
from watos_jax.search import lattice
from watos_jax.search.candidates import take
from watos_jax.search.descend import ROUNDS, STEPS, Point, Shared, descend, score

DESCENDED_AT_ONCE: Final = 128
"""Designs that are descended at once on one device; two devices share them evenly."""
ROUNDED: Final = 24
"""Relaxed designs that are rounded."""
REFINED: Final = 6
"""Rounded designs from which local search starts."""


class Rounding:
    """The hard model and descent for one search: it counts what it evaluates, and tells what is better.

    Args:
        shared: budget, model, objective, layouts.
        improved: called with every better design, as a row of points, its objective, and the estimates made so far.
    """

    def __init__(self, shared: Shared, improved: Callable[[Point, float, int], None] | None = None):
        self.shared, self.budget, self.improved = shared, shared.budget, improved
        self.value, self.evaluations = np.inf, 0

    def scores(self, points: Point) -> tuple[np.ndarray, np.ndarray]:
        """Objective of each point, and log(use / allowance) of its worst limit."""
        self.evaluations += len(points.knobs)
        result = map_chunks(score, self.shared, points)
        return result.value, result.excess

    def descend(self, points: Point) -> tuple[np.ndarray, np.ndarray]:
        """Relaxed knobs reached from each point, and their objective; infinite where they do not fit."""
        self.evaluations += len(points.knobs) * ROUNDS * STEPS
        knobs, result = map_chunks(descend, self.shared, points, chunk=DESCENDED_AT_ONCE, chunks_per_call=1)
        return knobs, np.where(result.excess < 0.01, result.value, np.inf)

    def best(self, every: Point, points: Point, relaxed: np.ndarray, values: np.ndarray) -> Point:
        """The best lattice point that is found, one row; it need not fit where none is found that does.

        Args:
            every: all candidates.
            points: those that were descended.
            relaxed: their relaxed knobs, shape (points, knobs).
            values: their relaxed objectives, shape (points,).
        """
        order = np.argsort(values, kind="stable")[:ROUNDED]
        starts = self._around(points, order, relaxed[order])[:REFINED]
        found = min((self._refine(points, start) for start in starts), key=lambda one: one.rank)
        chosen = take(points, np.array([found.owner]))
        while True:
            # the best strategy for the hardware, the best hardware for the strategy, until neither changes
            same = [np.asarray(every.candidate[i]) == chosen.candidate[i] for i in range(4)]
            rivals = take(every, np.flatnonzero(np.all(same, axis=0)))
            rival = min(self._best_of_each(rivals, *_everywhere(len(rivals.knobs), found.point)), key=lambda r: r.rank)
            if rival.rank >= found.rank:
                return chosen._replace(knobs=lattice.values_at(self.budget, found.point)[None])
            chosen = take(rivals, np.array([rival.owner]))
            knobs, _ = self.descend(self._starts(chosen, lattice.values_at(self.budget, rival.point)))
            starts = [rival._replace(owner=0), *self._around(chosen, np.zeros(len(knobs), int), knobs)]
            found = min((self._refine(chosen, start) for start in starts), key=lambda one: one.rank)

    def note(self, point: Point, value: float) -> None:
        """Tell of a better design."""
        # in single precision the proof's better design may not look better
        self.value = min(self.value, value)
        if self.improved is not None:
            self.improved(point, value, self.evaluations)

    def _starts(self, chosen: Point, knobs: np.ndarray) -> Point:
        # one candidate from its knobs, and from all first guesses of its grid
        grid = [int(np.asarray(chosen.candidate[i])[0]) for i in range(4)]
        guesses = lattice.first_guesses(self.budget, grid[0], grid[1], (grid[2], grid[3]))
        knobs = np.concatenate([knobs[None], guesses])
        return take(chosen, np.zeros(len(knobs), int))._replace(knobs=knobs)

    def _around(self, points: Point, rows: np.ndarray, relaxed: np.ndarray) -> list["_Found"]:
        # of each relaxed design the best lattice point within one step
        boxes = [lattice.inside(self.budget, lattice.box(lattice.nearest(self.budget, knobs))) for knobs in relaxed]
        owners = np.concatenate([np.full(len(box), row) for row, box in zip(rows, boxes, strict=True)])
        return self._best_of_each(points, owners, np.concatenate(boxes))

    def _refine(self, points: Point, found: "_Found") -> "_Found":
        # move to the best lattice point around until there is no better one
        while True:
            around = np.concatenate(
                [lattice.inside(self.budget, lattice.box(found.point)), lattice.moves(self.budget, found.point)]
            )
            there = self._best_of_each(points, np.full(len(around), found.owner), around)[0]
            if there.rank >= found.rank:
                return found
            found = there

    def _best_of_each(self, points: Point, owners: np.ndarray, indices: np.ndarray) -> list["_Found"]:
        # of each candidate the best feasible lattice point, or the one that exceeds its limits least; best first
        knobs = lattice.values_at(self.budget, indices)
        values, excess = self.scores(take(points, owners)._replace(knobs=knobs))
        order = np.lexsort((values, np.maximum(excess - ROUNDING, 0.0)))
        _, first = np.unique(owners[order], return_index=True)
        best = order[np.sort(first)]
        if excess[best[0]] <= ROUNDING and values[best[0]] < self.value:
            row = best[:1]
            self.note(take(points, owners[row])._replace(knobs=knobs[row]), float(values[row[0]]))
        return [_Found(int(owners[row]), indices[row], float(values[row]), float(excess[row])) for row in best]


class _Found(NamedTuple):
    # a lattice point of one candidate: its row, the point, its objective, log(use / allowance) of its worst limit
    owner: int
    point: np.ndarray
    value: float
    excess: float

    @property
    def rank(self) -> tuple[float, float]:
        # what fits comes before what does not, then the better value
        return max(self.excess - ROUNDING, 0.0), self.value


def _everywhere(count: int, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(count), np.repeat(index[None], count, axis=0)
