"""Local search over the lattice for one wafer that serves several cases, each with its own best strategy.

A case is a model on a budget (`candidates`); all cases share die grid, memory edges and lattice point, and may differ
in model, technology and limits. From a point, all lattice points around are tried with the strategies of the point,
then all strategies of the grid on the best of them, until neither helps: a local optimum, found by the hard model.

What is made large is the weighted power mean of the cases' rates `r_i = scale_i / value_i`,

    M_p = (sum_i w_i r_i**p / sum_i w_i)**(1 / p);  p = 0: geometric mean;  p = -inf: least rate.

It grows with every rate, so the best strategy of each case can be chosen apart (Hardy, Littlewood and Polya,
Inequalities, 1934, chapter 2).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING, Estimate, estimate
from watos_jax.hardware import Budget, Knobs, Wafer
from watos_jax.search import lattice
from watos_jax.search.candidates import Candidates, take
from watos_jax.search.descend import Point, score
from watos_jax.search.design import Design
from watos_jax.strategy import Strategy

MEANS: Final = {"arithmetic": 1.0, "geometric": 0.0, "harmonic": -1.0, "worst": -np.inf}
"""Powers of the mean by name."""
CLIMBED: Final = 3
"""Starting points from which local search goes on, the best of all that are given after one move."""
PLACES: Final = 4
"""Die grids, besides that of a design, on which searches that follow it start."""
AT_ONCE: Final = 1024
"""Points on one device: a step has some thousands."""

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
    """

    def __init__(
        self,
        cases: Sequence[Candidates],
        *,
        scales: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
        power: float = 0.0,
    ):
        self.cases, self.power = cases, power
        self.budget = cases[0].shared.budget
        self.scales = np.ones(len(cases)) if scales is None else np.array(scales, float)
        self.weights = np.ones(len(cases)) if weights is None else np.array(weights, float)
        self.evaluations = 0
        self._rows = [_rows_of_places(case) for case in cases]

    def best(self, starts: Iterable[tuple[Place, Int[np.ndarray, " knobs"]]]) -> Standing | None:
        """The best local optimum from several starting points; None where no case has a strategy on their grids.

        Args:
            starts: places and lattice points.
        """
        distinct = {(place, tuple(index.tolist())): (place, index) for place, index in starts}
        legal = [start for start in distinct.values() if all(start[0] in rows for rows in self._rows)]
        moved = sorted((self.step(self.choose(*start)) for start in legal), key=lambda one: one.rank)
        return min((self.climb(start) for start in moved[:CLIMBED]), key=lambda one: one.rank, default=None)

    def climb(self, start: Standing) -> Standing:
        """Step until nothing better is around."""
        while (found := self.step(start)) is not start:
            start = found
        return start

    def step(self, start: Standing) -> Standing:
        """The best lattice point around with its strategies, then the best strategies there; the start if none is."""
        around = self.around(start)
        values, excess = zip(
            *(self._scores(i, self.points(start, i, around)) for i in range(len(self.cases))), strict=True
        )
        mean = power_mean(self.scales[:, None] / np.array(values), self.weights, self.power)
        best = np.lexsort((-mean, np.maximum(np.max(excess, axis=0) - ROUNDING, 0.0)))[0]
        found = self.choose(start.place, around[best])
        return found if found.rank < start.rank else start

    def choose(self, place: Place, index: Int[np.ndarray, " knobs"]) -> Standing:
        """The best strategy of every case at one lattice point.

        Args:
            place: die grid and memory edges.
            index: the lattice point.
        """
        knobs = lattice.values_at(self.budget, index)
        rows, values, excess = [], [], []
        for number, case in enumerate(self.cases):
            own = self.rows(number, place)
            points = take(case.every, own)._replace(knobs=np.repeat(knobs[None], len(own), axis=0))
            value, over = self._scores(number, points)
            best = np.lexsort((value, np.maximum(over - ROUNDING, 0.0)))[0]
            rows.append(int(own[best]))
            values.append(value[best])
            excess.append(over[best])
        rates = self.scales / np.array(values)
        mean = float(power_mean(rates, self.weights, self.power))
        return Standing(place, index, tuple(rows), tuple(rates.tolist()), mean, float(max(excess)))

    def around(self, standing: Standing) -> lattice.Points:
        """Lattice points within one step in every knob, or a few in one or two."""
        near = lattice.inside(self.budget, lattice.box(standing.knobs))
        return lattice.inside(self.budget, np.concatenate([near, lattice.moves(self.budget, standing.knobs)]))

    def points(self, standing: Standing, case: int, index: lattice.Points) -> Point:
        """The strategy of one case at many lattice points.

        Args:
            standing: whose strategy.
            case: number of the case.
            index: lattice points.
        """
        repeated = take(self.cases[case].every, np.full(len(index), standing.rows[case]))
        return repeated._replace(knobs=lattice.values_at(self.budget, index))

    def rows(self, case: int, place: Place) -> Int[np.ndarray, " rows"]:
        """Rows of the strategies of one case on a die grid, among its candidates.

        Args:
            case: number of the case.
            place: die grid and memory edges.
        """
        return self._rows[case][place]

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

    def _scores(self, case: int, points: Point) -> tuple[np.ndarray, np.ndarray]:
        self.evaluations += len(points.knobs)
        result = map_chunks(score, self.cases[case].shared, points, chunk=AT_ONCE, chunks_per_call=1)
        return result.value, result.excess


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
