"""Local search over the lattice for one wafer that serves one case or several, each with its own best strategy.

A case is a model on a budget (`candidates`); all cases share die grid, memory edges and lattice point, and may differ
in model, technology and limits. From a point, all lattice points around are tried with the strategies of the point,
then, unless strategies are fixed, all strategies of the grid on the best of them, until neither helps: a local optimum,
found by the hard model.

What is made large is the weighted power mean of the cases' rates `r_i = scale_i / value_i`,

    M_p = (sum_i w_i r_i**p / sum_i w_i)**(1 / p);  p = 0: geometric mean;  p = -inf: least rate.

It grows with every rate, so the best strategy of each case can be chosen apart (Hardy, Littlewood and Polya,
Inequalities, 1934, chapter 2).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from watos_jax.batch import map_chunks, placed
from watos_jax.estimate import ROUNDING, Estimate, estimate
from watos_jax.hardware import Budget, Knobs, Wafer
from watos_jax.search import lattice
from watos_jax.search.candidates import Candidates, take
from watos_jax.search.descend import Point, Score, score
from watos_jax.search.design import Design
from watos_jax.strategy import Strategy

MEANS: Final = {"arithmetic": 1.0, "geometric": 0.0, "harmonic": -1.0, "worst": -np.inf}
"""Powers of the mean by name."""
CLIMBED: Final = 3
"""Starting points from which local search goes on, the best of all that are given after one move."""
PLACES: Final = 4
"""Die grids, besides that of a design, on which searches that follow it start."""

Place = tuple[float, ...]
"""(rows, columns of dies, horizontal, vertical edges with memory)."""


class Standing(NamedTuple):
    """A lattice point on one die grid, with a strategy for every case.

    Attributes:
        place: rows and columns of dies, horizontal and vertical edges with memory.
        knobs: index of the lattice point.
        rows: row of each case's strategy among its candidates.
        rates: of each case.
        value: their mean.
        excess: log(use / allowance) of the worst limit of any case.
    """

    place: Place
    knobs: Int[np.ndarray, " knobs"]
    rows: tuple[int, ...]
    rates: tuple[float, ...]
    value: float
    excess: float

    @property
    def rank(self) -> tuple[float, float]:
        """What fits comes before what does not, then the better mean."""
        return max(self.excess - ROUNDING, 0.0), -self.value


def power_mean(
    rates: Float[np.ndarray, "cases *batch"], weights: Float[np.ndarray, " cases"], power: float
) -> Float[np.ndarray, "*batch"]:
    """Weighted power mean over the first axis, in logarithms so that no power overflows.

    Args:
        rates: positive, shape (cases, ...).
        weights: positive, shape (cases,).
        power: p; 0 and -inf are the limits.
    """
    logs = np.log(rates)
    shares = (weights / weights.sum()).reshape(-1, *(1 for _ in logs.shape[1:]))
    if power == -np.inf:
        return np.asarray(np.exp(logs.min(axis=0)))
    if power == 0.0:
        return np.asarray(np.exp((shares * logs).sum(axis=0)))
    most = (power * logs).max(axis=0)
    return np.asarray(np.exp((most + np.log((shares * np.exp(power * logs - most)).sum(axis=0))) / power))


class Climber:
    """Local search for given cases.

    Args:
        cases: candidates of each case; their budgets have one lattice.
        scales: numerator of each case's rate; 1 where None.
        weights: of each case in the mean; 1 where None.
        power: of the mean.
        improved: called with every point that fits and is better than all before.

    Attributes:
        evaluations: estimates made so far.
    """

    def __init__(
        self,
        cases: Sequence[Candidates],
        *,
        scales: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
        power: float = 0.0,
        improved: Callable[[Standing], None] | None = None,
    ):
        self.cases, self.power, self.improved = cases, power, improved
        self.budget = cases[0].shared.budget
        self.scales = np.ones(len(cases)) if scales is None else np.array(scales, float)
        self.weights = np.ones(len(cases)) if weights is None else np.array(weights, float)
        self.evaluations, self._most = 0, 0.0
        self._shared = [placed(case.shared) for case in cases]
        self._rows = [_rows_of_places(case) for case in cases]

    def best(self, starts: Iterable[tuple[Place, Int[np.ndarray, " knobs"]]]) -> Standing | None:
        """The best local optimum from several starting points; None where no case has a strategy on their grids.

        Args:
            starts: places and lattice points.
        """
        distinct = {(place, tuple(index.tolist())): (place, index) for place, index in starts}
        legal = [start for start in distinct.values() if self.has(start[0])]
        moved = sorted((self.step(self.choose(*start)) for start in legal), key=lambda one: one.rank)
        return min((self.climb(start) for start in moved[:CLIMBED]), key=lambda one: one.rank, default=None)

    def climb(self, start: Standing, *, fixed: bool = False) -> Standing:
        """Step until nothing better is around.

        Args:
            start: where to begin.
            fixed: whether its strategies stay.
        """
        while (found := self.step(start, fixed=fixed)) is not start:
            start = found
        return start

    def step(self, start: Standing, *, fixed: bool = False) -> Standing:
        """The best lattice point around with its strategies, then the best strategies there; the start if none is.

        Args:
            start: where to begin.
            fixed: whether its strategies stay.
        """
        (found,) = self.among([(start.place, start.rows, self.around(start))])
        found = found if fixed else self.choose(found.place, found.knobs)
        return found if found.rank < start.rank else start

    def among(self, sets: Sequence[tuple[Place, tuple[int, ...], Int[np.ndarray, "_ knobs"]]]) -> list[Standing]:
        """Of each of several sets of lattice points the best.

        Args:
            sets: place, strategy of every case, and lattice points.
        """
        sizes = [len(index) for _, _, index in sets]
        index = np.concatenate([index for _, _, index in sets])
        rows = np.repeat([rows for _, rows, _ in sets], sizes, axis=0)
        scores = [self.scores(case, self._points(case, own, index)) for case, own in enumerate(rows.T)]
        rates = self.scales[:, None] / np.array([found.value for found in scores])
        means = power_mean(rates, self.weights, self.power)
        excess = np.max([found.excess for found in scores], axis=0)
        found = []
        for (place, own, _), end, size in zip(sets, np.cumsum(sizes), sizes, strict=True):
            best = end - size + _best_first(-means[end - size : end], excess[end - size : end])[0]
            rate = tuple(rates[:, best].tolist())
            found.append(Standing(place, index[best], own, rate, float(means[best]), float(excess[best])))
        self._note(min(found, key=lambda one: one.rank))
        return found

    def choose(self, place: Place, index: Int[np.ndarray, " knobs"]) -> Standing:
        """The best strategy of every case at one lattice point.

        Args:
            place: die grid and memory edges.
            index: the lattice point.
        """
        rows, values, excess = [], [], []
        for case in range(len(self.cases)):
            own = self.rows(case, place)
            value, over, _ = self.scores(case, self._points(case, own, np.repeat(index[None], len(own), axis=0)))
            best = _best_first(value, over)[0]
            rows.append(int(own[best]))
            values.append(value[best])
            excess.append(over[best])
        rates = self.scales / np.array(values)
        mean = float(power_mean(rates, self.weights, self.power))
        found = Standing(place, index, tuple(rows), tuple(rates.tolist()), mean, float(max(excess)))
        self._note(found)
        return found

    def around(self, standing: Standing) -> lattice.Points:
        """Lattice points within one step in every knob, or a few in one or two."""
        center = standing.knobs
        return lattice.inside(self.budget, np.concatenate([lattice.box(center), lattice.moves(self.budget, center)]))

    def points(self, standing: Standing, case: int, index: lattice.Points) -> Point:
        """The strategy of one case at many lattice points.

        Args:
            standing: whose strategy.
            case: number of the case.
            index: lattice points.
        """
        return self._points(case, np.full(len(index), standing.rows[case]), index)

    def rows(self, case: int, place: Place) -> Int[np.ndarray, " rows"]:
        """Rows of the strategies of one case on a die grid, among its candidates.

        Args:
            case: number of the case.
            place: die grid and memory edges.
        """
        return self._rows[case][place]

    def has(self, place: Place) -> bool:
        """Whether every case has a strategy on a die grid.

        Args:
            place: die grid and memory edges.
        """
        return all(place in rows for rows in self._rows)

    def values(self, standing: Standing) -> Knobs:
        """Its knobs, as numbers."""
        return jax.tree.map(float, lattice.from_array(lattice.values_at(self.budget, standing.knobs)))

    def built(self, standing: Standing, case: int) -> tuple[Wafer, Strategy, Estimate]:
        """Wafer, strategy and hard estimate of one case.

        Args:
            standing: the lattice point.
            case: number of the case.
        """
        shared, every = self.cases[case].shared, self.cases[case].every
        rows, cols, *sides = standing.place
        wafer = shared.budget.build(self.values(standing), rows, cols, (sides[0], sides[1]))
        candidate = jax.tree.map(lambda leaf: leaf[standing.rows[case]], every.candidate)
        layout = jax.tree.map(lambda leaf: leaf[int(candidate.geometry)], shared.layouts)
        strategy = jax.tree.map(float, candidate.strategy)
        return wafer, strategy, estimate(wafer, shared.model, strategy, layout=layout)

    def scores(self, case: int, points: Point) -> Score:
        """Score of one case at each point.

        Args:
            case: number of the case.
            points: candidates with their knobs.
        """
        self.evaluations += len(points.knobs)
        found: Score = map_chunks(score, self._shared[case], points)
        return found

    def _points(self, case: int, rows: np.ndarray, index: lattice.Points) -> Point:
        return take(self.cases[case].every, rows)._replace(knobs=lattice.values_at(self.budget, index))

    def _note(self, standing: Standing) -> None:
        if self.improved is not None and standing.excess <= ROUNDING and standing.value > self._most:
            self._most = standing.value
            self.improved(standing)


def place_of(point: Point, row: int = 0) -> Place:
    """Die grid and memory edges of one of several points."""
    return tuple(float(np.asarray(column)[row]) for column in point.candidate[:4])


def starts_of(design: Design, budget: Budget) -> Iterator[tuple[Place, Int[np.ndarray, " knobs"]]]:
    """A design, and the best relaxed designs of a few die grids beside it, as starting points on the lattice.

    Args:
        design: what `codesign` returned.
        budget: the lattice.
    """
    place = (float(design.wafer.die_rows), float(design.wafer.die_cols), *map(float, design.sides))
    yield place, lattice.nearest(budget, lattice.to_array(design.knobs))
    if design.relaxed is not None:
        for row in range(min(PLACES, len(design.relaxed.knobs))):
            yield place_of(design.relaxed, row), lattice.nearest(budget, np.asarray(design.relaxed.knobs[row], float))


def _rows_of_places(case: Candidates) -> dict[Place, np.ndarray]:
    starts = np.flatnonzero(np.diff(case.group, prepend=-1))
    ends = np.append(starts[1:], len(case.group))
    return {place_of(case.every, int(start)): np.arange(start, end) for start, end in zip(starts, ends, strict=True)}


def _best_first(values: np.ndarray, excess: np.ndarray) -> np.ndarray:
    # rows by rank
    return np.lexsort((values, np.maximum(excess - ROUNDING, 0.0)))
