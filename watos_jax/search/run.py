"""What a search of designs may spend, what it has spent, and what it found when."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from watos_jax.estimate import ROUNDING
from watos_jax.search.descend import Point, Score
from watos_jax.search.genes import Genes, GeneSpace

INFEASIBLE: Final = 1e3
"""Merit of a design that just does not fit; that of one that fits, the logarithm of its objective, is far below."""


class Improvement(NamedTuple):
    """A design better than all before it.

    Attributes:
        time: s since the search began.
        evaluations: estimates made so far.
        value: the objective.
        point: the design, one row.
    """

    time: float
    evaluations: int
    value: float
    point: Point


@dataclass(frozen=True)
class Trace:
    """What a search found, and when.

    Attributes:
        improvements: every better design, in order.
        evaluations: estimates made.
        time: s.
    """

    improvements: tuple[Improvement, ...]
    evaluations: int
    time: float

    @property
    def value(self) -> float:
        """The best objective; infinite where nothing fitted."""
        return self.improvements[-1].value if self.improvements else float("inf")


class Run:
    """One search of a space under limits: it evaluates designs, counts them, and keeps what is better.

    One estimate by the hard model is one evaluation, in whatever batch.

    Args:
        space: the designs.
        time_limit: s after which it is over.
        max_evaluations: estimates after which it is over.
        clock: s that have passed.
        spent: s that count as passed when it begins.
    """

    def __init__(
        self,
        space: GeneSpace,
        *,
        time_limit: int | float = float("inf"),
        max_evaluations: int | float = float("inf"),
        clock: Callable[[], float] = time.perf_counter,
        spent: float = 0.0,
    ):
        self.space, self.time_limit, self.max_evaluations = space, time_limit, max_evaluations
        self._clock, self._began = clock, clock() - spent
        self.evaluations = 0
        self._improvements: list[Improvement] = []

    @property
    def time(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    def is_over(self) -> bool:
        """Whether a limit is reached."""
        return self.evaluations >= self.max_evaluations or self.time >= self.time_limit

    @property
    def trace(self) -> Trace:
        """What it found so far."""
        return Trace(tuple(self._improvements), self.evaluations, self.time)

    def scores(self, rows: Int[np.ndarray, " points"], knobs: Float[np.ndarray, "points knobs"]) -> Score:
        """Scores of candidates with any knobs, on the lattice or not; they are counted, and not kept."""
        self.evaluations += len(rows)
        return self.space.scores(rows, knobs)

    def merits(self, designs: Genes) -> Float[np.ndarray, " designs"]:
        """Merit of every design, repaired; the best is kept. What is beyond the limit of evaluations is infinite.

        A design that fits has the logarithm of its objective; any other `INFEASIBLE` + log(use / allowance) of its
        worst limit, so what fits is better than what does not (Deb, 2000).
        """
        merits = np.full(len(designs), np.inf)
        left = int(min(self.max_evaluations - self.evaluations, len(designs)))
        if left > 0:
            rows, genes = self.space.repaired(designs[:left])
            found = self.scores(rows, self.space.knobs(genes))
            merits[:left] = np.where(found.excess <= ROUNDING, np.log(found.value), INFEASIBLE + found.excess)
            best = int(merits.argmin())
            if found.excess[best] <= ROUNDING:
                self.note(self.space.points(genes[[best]]), float(found.value[best]))
        return merits

    def note(self, point: Point, value: float, evaluations: int | None = None) -> None:
        """Keep a design that fits, if it is better.

        Args:
            point: one row.
            value: its objective.
            evaluations: estimates made so far, where they were not made here.
        """
        self.evaluations = self.evaluations if evaluations is None else evaluations
        if not self._improvements or value < self._improvements[-1].value:
            self._improvements.append(Improvement(self.time, self.evaluations, value, point))
