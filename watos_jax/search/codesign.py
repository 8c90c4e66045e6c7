"""Co-design: the split of a wafer's area and the training strategy, together.

1. Enumerate die grids, the die edges that carry memory, and every strategy that tiles each grid (`candidates`).
2. Score all of them, hard, at one first guess of the hardware, the best of each grid at several; keep the most
   promising.
3. Descend the hardware knobs of the kept ones, all at once (`descend`).
4. Round to the best lattice point around, until neither hardware nor strategy changes (`rounding`).
5. Prove how far the result is from the best of all candidates and lattice points, and replace it by a better one that
   the proof comes across (`certificate`). Only where the objective is the step time and nothing overlaps; other
   designs have no proof.
6. Where asked for, share memory between stages, place them, and solve the hardware again (`refine`).

Descent ranks hundreds of strategies and says where to round; what the relaxed problem of the answer's strategy is worth
is solved to stationarity (`relaxed`).
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, Final

import jax
import numpy as np

from watos_jax.estimate import ROUNDING, estimate
from watos_jax.hardware import Budget
from watos_jax.model import Transformer
from watos_jax.search import lattice
from watos_jax.search import refine as refinement
from watos_jax.search.candidates import OPTIONS, Candidates, Infeasible, candidates, take
from watos_jax.search.certificate import Certificate, certify, check_ends
from watos_jax.search.climb import Climber, Standing
from watos_jax.search.descend import Point, Score
from watos_jax.search.design import Design, least_change
from watos_jax.search.local import Local
from watos_jax.search.objective import STEP_TIME, Objective
from watos_jax.search.relaxed import Relaxed, relaxed_optimum
from watos_jax.search.rounding import Descended, descended, rounded
from watos_jax.search.space import Options
from watos_jax.strategy import Strategy

KEPT = 256
"""Candidates that are descended."""
SHARE = 64
"""Most candidates kept of one die grid and choice of edges, so that descent sees many grids."""
GAP: Final = 0.001
"""Of the value over its proven lower bound, at which a search may end."""
TIME_LIMIT: Final = 60.0
"""Seconds after which a search ends with the gap that is proven by then."""
OFF_LIMITS = 20.0
"""Weight of a broken limit against the objective when first guesses are ranked, both in logarithms."""


def codesign(
    model: Transformer,
    budget: Budget,
    *,
    options: Options = OPTIONS,
    objective: Objective = STEP_TIME,
    gap: float = GAP,
    time_limit: float = TIME_LIMIT,
    prove: bool = True,
    refine: bool = False,
    progress: Callable[[str, float], None] | None = None,
    improved: Callable[[Point, float, int], None] | None = None,
    start: Design | None = None,
) -> Design:
    """Choose the hardware and the strategy that train the model best within the budget.

    Args:
        model: the transformer.
        budget: the wafer to fill and the lattice of its knobs.
        options: what strategies may choose from.
        objective: what to make small; the step time, so that most tokens are trained per second.
        gap: of the step time over its proven lower bound, at which the proof ends; 0 finds the best design there is.
        time_limit: s after which the proof ends with the gap it has; the search before it is not cut short.
        prove: whether to prove anything; where not, the design is what descent and rounding find.
        refine: whether to go on with memory shared between stages and stages placed on the mesh, see
            `refine.refine`; it has the same gap and as much time again for its own bound.
        progress: called with a phase's name and the share of it that is done.
        improved: called with every better design on the way, as a row of points, its objective, and the estimates made
            so far.
        start: a design of this model for the same or a similar budget, from which to search in place of all strategies'
            guesses; the proof, which looks at everything, then finds what else is better. Without effect where no proof
            is possible, or where the budget has no such grid and strategy.

    Returns:
        The best design found; it is feasible by the hard model.

    Raises:
        Infeasible: no design was found that fits.
        ValueError: no strategy is legal on any die grid, gap or time_limit is negative, or a refined design is asked
            for that has no proof.
    """
    check_ends(gap, time_limit)
    if refine and not (prove and _is_provable(budget, objective)):
        raise ValueError("refine is True: it must be False but for tokens per second, proven, without overlap")
    search = _Search(model, budget, options, objective, progress or (lambda phase, share: None), improved)
    return search.run(gap, time_limit if prove else None, refine, start)


class _Search:
    # the state of one co-design: tables shared by all points, and its phases

    def __init__(
        self,
        model: Transformer,
        budget: Budget,
        options: Options,
        objective: Objective,
        progress: Callable[[str, float], None],
        improved: Callable[[Point, float, int], None] | None = None,
    ):
        self.model, self.budget, self.options, self.progress = model, budget, options, progress
        self.objective = objective
        self.started = time.perf_counter()
        self.phases: dict[str, float] = {}
        self.improved = improved
        self.candidates: Candidates
        self.climber: Climber
        self.stacks: np.ndarray | None = None  # that each candidate needs, once all are scored

    def run(self, gap: float, time_limit: float | None, refine: bool, start: Design | None) -> Design:
        self._timed("enumerate", self._enumerate)
        every = self.candidates.every
        provable = time_limit is not None and _is_provable(self.budget, self.objective)
        begun = self._timed("start", lambda: self._near(start)) if start is not None and provable else None
        relaxed = begun or self._all()
        found = self._timed("round", lambda: rounded(self.climber, relaxed))
        if begun and found.excess > ROUNDING:
            relaxed = self._all()
            found = self._timed("round", lambda: rounded(self.climber, relaxed))
        best = self._point(found)
        proven = None
        places = _best_of_each_place(take(every, relaxed.rows)._replace(knobs=relaxed.knobs), relaxed.values)
        if time_limit is not None and provable and found.excess <= ROUNDING:
            left = max(time_limit - (time.perf_counter() - self.started), 0.0)
            with ThreadPoolExecutor(1) as beside:
                # what most proofs end with compiles on another core
                early = beside.submit(self._design, best, places)
                better, proven = self._timed("prove", lambda: self._prove(every, best, gap, left))
                work = early.result if better is best else lambda: self._design(better, places)
                design = self._timed("report", work)
            best = better
        else:
            design = self._timed("report", lambda: self._design(best, places))
        further = None
        if time_limit is not None and refine:
            further = self._timed("refine", lambda: self._share(every, best, gap, time_limit))
        return design(
            certificate=proven,
            refined=further,
            evaluations=self.climber.evaluations,
            phases=self.phases,
            wall_time=time.perf_counter() - self.started,
        )

    def _timed(self, phase: str, work: Callable[[], Any]) -> Any:
        self.progress(phase, 0.0)
        began = time.perf_counter()
        result = work()
        self.phases[phase] = time.perf_counter() - began
        self.progress(phase, 1.0)
        return result

    def _enumerate(self) -> None:
        self.candidates = candidates(self.model, self.budget, options=self.options, objective=self.objective)
        self.climber = Climber([self.candidates], improved=self._found)

    def _point(self, found: Standing) -> Point:
        return self.climber.points(found, 0, found.knobs[None])

    def _found(self, better: Standing) -> None:
        self._tell(self._point(better), 1.0 / better.rates[0])

    def _tell(self, better: Point, value: float) -> None:
        if self.improved is not None:
            self.improved(better, value, self.climber.evaluations)

    def _all(self) -> Descended:
        # the most promising candidates
        rows, knobs = self._timed("guess", self._guess)
        return self._timed("descend", lambda: descended(self.climber, rows, knobs))

    def _near(self, start: Design) -> Descended | None:
        # the same of the start's candidate alone; None where the budget has none like it
        grid = int(start.wafer.die_rows), int(start.wafer.die_cols)
        every = self.candidates.every.candidate
        wanted, given = (*grid, *start.sides, start.strategy), (*every[:4], every.strategy)
        same = jax.tree.map(lambda one, other: np.asarray(one) == other, given, wanted)
        row = np.flatnonzero(np.all(jax.tree.leaves(same), axis=0))[:1]
        if not len(row):
            return None
        best = relaxed_optimum(self._relaxed(start.strategy, grid, start.sides), start.knobs)
        return Descended(row, lattice.to_array(best.knobs)[None], np.array([best.value]))

    def _relaxed(self, strategy: Strategy, grid: tuple[int, int], sides: tuple[int, int]) -> Relaxed:
        return Relaxed(self.budget, self.model, strategy, grid, sides, self.objective)

    def _guess(self) -> tuple[np.ndarray, np.ndarray]:
        points, group, guesses = self.candidates.every, self.candidates.group, self.candidates.guesses
        scores = self.climber.scores(0, points)
        self.stacks, first = scores.stacks, merit(scores)
        spans = pairwise(np.searchsorted(group, np.arange(len(guesses) + 1)))
        promising = np.concatenate([i + np.argsort(first[i:j], kind="stable")[:SHARE] for i, j in spans])
        rows = np.concatenate([np.full(len(guesses[group[row]]), row) for row in promising])
        knobs = np.concatenate([guesses[group[row]] for row in promising])
        best = np.argsort(merit(self.climber.scores(0, take(points, rows)._replace(knobs=knobs))), kind="stable")
        _, once = np.unique(rows[best], return_index=True)
        kept = best[np.sort(once)[:KEPT]]
        return rows[kept], knobs[kept]

    def _prove(self, every: Point, best: Point, gap: float, time_limit: float) -> tuple[Point, Certificate]:
        def report(proven: float) -> None:
            self.progress(f"prove ({proven:.1%})", 0.0)

        problem = Local(self.candidates.shared)
        found, better = certify(
            problem, every, best, gap=gap, time_limit=time_limit, stacks=self.stacks, progress=report
        )
        self.climber.evaluations += found.evaluations
        if better is not best:
            # in single precision it may not look better
            self._tell(better, float(self.climber.scores(0, better).value[0]))
        return better, found

    def _share(self, every: Point, best: Point, gap: float, time_limit: float) -> refinement.Refined:
        def report(proven: float) -> None:
            self.progress(f"refine ({proven:.1%})", 0.0)

        return refinement.refine(self.candidates.shared, every, best, gap=gap, time_limit=time_limit, progress=report)

    def _design(self, best: Point, relaxed: Point) -> Callable[..., Design]:
        # all but what the search has counted and proven
        candidate = jax.tree.map(lambda leaf: float(leaf[0]), best.candidate)
        grid = int(candidate.die_rows), int(candidate.die_cols)
        sides = int(candidate.horizontal_sides), int(candidate.vertical_sides)
        knobs = jax.tree.map(float, lattice.from_array(best.knobs[0]))
        place = self._relaxed(candidate.strategy, grid, sides)
        wafer = place.build(knobs)
        layout = jax.tree.map(lambda leaf: leaf[int(best.candidate.geometry[0])], self.candidates.shared.layouts)
        answer = estimate(wafer, self.model, candidate.strategy, layout=layout)
        if not answer.feasible:
            raise Infeasible(least_change(answer, wafer))
        value = float(self.objective.value(wafer, answer))
        return partial(
            Design,
            wafer=wafer,
            knobs=knobs,
            sides=sides,
            strategy=candidate.strategy,
            estimate=answer,
            objective=self.objective,
            value=value,
            relaxed_value=min(relaxed_optimum(place, knobs).value, value),
            candidates=len(self.candidates),
            lattice_points=float(np.prod(lattice.counts(self.budget).astype(float))),
            pruned=self.candidates.pruned,
            at_bound=lattice.ends(self.budget, lattice.nearest(self.budget, np.asarray(best.knobs[0]))),
            relaxed=relaxed,
        )


def _is_provable(budget: Budget, objective: Objective) -> bool:
    # hidden communication is a difference of times, which no tangent bounds
    return budget.wafer.overlap is None and (float(objective.time), float(objective.energy), float(objective.cost)) == (
        1.0,
        0.0,
        0.0,
    )


def merit(scores: Score) -> np.ndarray:
    """What first guesses are ranked by: the logarithm of the objective, and a penalty for broken limits."""
    return np.log(scores.value) + OFF_LIMITS * np.maximum(scores.excess - ROUNDING, 0.0) ** 2


def _best_of_each_place(points: Point, values: np.ndarray) -> Point:
    order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
    _, first = np.unique(np.stack(points.candidate[:4], axis=1)[order], axis=0, return_index=True)
    return take(points, order[np.sort(first)])
