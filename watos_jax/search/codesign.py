"""Co-design: the split of a wafer's area and the training strategy, together.

1. Enumerate die grids, the die edges that carry memory, and every strategy that tiles each grid (`candidates`).
2. Score all of them, hard, at one first guess of the hardware, the best of each grid at several; keep the most
   promising.
3. Descend the hardware knobs of the kept ones, all at once (`descend`).
4. Round: the hard model on every lattice point around the best relaxed designs, then moves along one or two knobs
   until none improves. All strategies of the grid are tried on the hardware that results, and the best is rounded
   again, until neither hardware nor strategy changes.
5. Prove how far the result is from the best of all candidates and lattice points, and replace it by a better one that
   the proof comes across (`certificate`). Only where the objective is the step time and nothing overlaps; other
   designs have no proof.
6. Where asked for, share memory between stages, place them, and solve the hardware again (`refine`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import jax
import numpy as np

from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING, Estimate, estimate
from watos_jax.hardware import Budget, Knobs, Wafer
from watos_jax.model import Transformer
from watos_jax.search import lattice
from watos_jax.search import refine as refinement
from watos_jax.search.candidates import OPTIONS, Candidates, Infeasible, candidates, take
from watos_jax.search.certificate import Certificate, Local, certify
from watos_jax.search.descend import ROUNDS, STEPS, Point, Shared, descend, score
from watos_jax.search.objective import STEP_TIME, Objective
from watos_jax.search.relaxed import Relaxed, relaxed_optimum
from watos_jax.search.space import Options
from watos_jax.strategy import Strategy

KEPT = 256
"""Candidates that are descended."""
DESCENDED_AT_ONCE = 128
"""Of them on one device; two devices share them evenly."""
ROUNDED = 24
"""Relaxed designs that are rounded."""
REFINED = 6
"""Rounded designs from which local search starts."""
SHARE = 64
"""Most candidates kept of one die grid and choice of edges, so that descent sees many grids."""
GAP: Final = 0.001
"""Of the value over its proven lower bound, at which a search may end."""
TIME_LIMIT: Final = 60.0
"""Seconds after which a search ends with the gap that is proven by then."""
OFF_LIMITS = 20.0
"""Weight of a broken limit against the objective when first guesses are ranked, both in logarithms."""


@dataclass(frozen=True)
class Design:
    """A co-designed wafer with its strategy.

    Attributes:
        wafer: the hardware.
        knobs: its lattice values.
        sides: (horizontal, vertical) die edges that carry memory.
        strategy: the training strategy.
        estimate: the hard model's answer.
        objective: what was made small.
        value: the objective of the design.
        relaxed_value: of the best relaxed design known for the same strategy; the lattice is part of the relaxed
            box, so it is never above the value.
        evaluations: estimates made, a gradient counted once.
        candidates: discrete choices enumerated.
        lattice_points: hardware points per discrete choice.
        wall_time: s.
        phases: s of each phase.
        pruned: candidate geometries ruled out, by reason.
        at_bound: knobs at an end of their lattice, "low" or "high"; a wider budget may do better.
        certificate: what is proven about the best step time; None for other objectives, and where communication
            overlaps.
        relaxed: the best relaxed design of each die grid and choice of edges that was descended, best first: where
            further searches may start.
        refined: the design with memory shared and stages placed, its hardware solved again; None where it was not
            asked for.
    """

    wafer: Wafer
    knobs: Knobs
    sides: tuple[int, int]
    strategy: Strategy
    estimate: Estimate
    objective: Objective
    value: float
    relaxed_value: float
    evaluations: int
    candidates: int
    lattice_points: float
    wall_time: float
    phases: dict[str, float] = field(default_factory=dict)
    pruned: dict[str, int] = field(default_factory=dict)
    at_bound: dict[str, str] = field(default_factory=dict)
    certificate: Certificate | None = None
    relaxed: Point | None = None
    refined: refinement.Refined | None = None

    @property
    def rounding_gap(self) -> float:
        """Value over the relaxed one, minus 1."""
        return self.value / self.relaxed_value - 1.0


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
    for name, given in (("gap", gap), ("time_limit", time_limit)):
        if not 0.0 <= given < np.inf:
            raise ValueError(f"{name} is {given:g}: it must be finite, 0 or more")
    if refine and not (prove and _is_provable(budget, objective)):
        raise ValueError("refine is True: it must be False but for tokens per second, proven, without overlap")
    search = _Search(model, budget, options, objective, progress or (lambda phase, share: None), improved)
    return search.run(gap, time_limit if prove else None, refine, start)


class _Search:
    # the state of one co-design: tables shared by all points, counters, and the four phases

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
        self.evaluations = 0
        self.phases: dict[str, float] = {}
        self.improved, self.value = improved, np.inf
        self.candidates: Candidates
        self.shared: Shared

    def run(self, gap: float, time_limit: float | None, refine: bool, start: Design | None) -> Design:
        self._timed("enumerate", self._enumerate)
        every = self.candidates.every
        provable = time_limit is not None and _is_provable(self.budget, self.objective)
        begun = self._timed("start", lambda: self._near(start)) if start is not None and provable else None
        kept, relaxed, values = begun or self._all()
        best, least = self._timed("round", lambda: self._round(every, kept, relaxed, values))
        if begun and not self._fits(best):
            kept, relaxed, values = self._all()
            best, least = self._timed("round", lambda: self._round(every, kept, relaxed, values))
        proven = None
        if time_limit is not None and provable and self._fits(best):
            left = max(time_limit - (time.perf_counter() - self.started), 0.0)
            best, least, proven = self._timed("prove", lambda: self._prove(every, best, least, gap, left))
        places = _best_of_each_place(kept._replace(knobs=relaxed), values)
        design = self._timed("report", lambda: self._design(best, least, proven, places))
        if time_limit is None or not refine:
            return design
        further = self._timed("refine", lambda: self._share(every, best, gap, time_limit))
        return replace(design, refined=further, wall_time=time.perf_counter() - self.started)

    def _timed(self, phase: str, work: Callable[[], Any]) -> Any:
        self.progress(phase, 0.0)
        began = time.perf_counter()
        result = work()
        self.phases[phase] = time.perf_counter() - began
        self.progress(phase, 1.0)
        return result

    def _enumerate(self) -> None:
        self.candidates = candidates(self.model, self.budget, options=self.options, objective=self.objective)
        self.shared = self.candidates.shared

    def _all(self) -> tuple[Point, np.ndarray, np.ndarray]:
        # the most promising candidates with relaxed knobs and their values
        kept = self._timed("guess", self._guess)
        return kept, *self._timed("descend", lambda: self._descend(kept))

    def _near(self, start: Design) -> tuple[Point, np.ndarray, np.ndarray] | None:
        # the same of the start's candidate alone; None where the budget has none like it
        grid = int(start.wafer.die_rows), int(start.wafer.die_cols)
        every = self.candidates.every.candidate
        wanted, given = (*grid, *start.sides, start.strategy), (*every[:4], every.strategy)
        same = jax.tree.map(lambda one, other: np.asarray(one) == other, given, wanted)
        row = np.flatnonzero(np.all(jax.tree.leaves(same), axis=0))[:1]
        if not len(row):
            return None
        place = Relaxed(self.budget, self.model, start.strategy, grid, start.sides, self.objective)
        best = relaxed_optimum(place, start.knobs)
        return take(self.candidates.every, row), lattice.to_array(best.knobs)[None], np.array([best.value])

    def _fits(self, point: Point) -> bool:
        return bool(self._scores(point)[1][0] <= ROUNDING)

    def _scores(self, points: Point) -> tuple[np.ndarray, np.ndarray]:
        self.evaluations += len(points.knobs)
        result = map_chunks(score, self.shared, points)
        return result.value, result.excess

    def _guess(self) -> Point:
        points, group, guesses = self.candidates.every, self.candidates.group, self.candidates.guesses
        order = np.argsort(self._merit(points), kind="stable")
        by_group = order[np.argsort(group[order], kind="stable")]
        starts = np.searchsorted(group[by_group], np.arange(len(guesses)))
        rank = np.arange(len(by_group)) - starts[group[by_group]]
        promising = by_group[rank < SHARE]
        rows = np.concatenate([np.full(len(guesses[group[row]]), row) for row in promising])
        knobs = np.concatenate([guesses[group[row]] for row in promising])
        tried = take(points, rows)._replace(knobs=knobs)
        best = np.argsort(self._merit(tried), kind="stable")
        _, first = np.unique(rows[best], return_index=True)
        return take(tried, best[np.sort(first)[:KEPT]])

    def _merit(self, points: Point) -> np.ndarray:
        values, excess = self._scores(points)
        return np.log(values) + OFF_LIMITS * np.maximum(excess - ROUNDING, 0.0) ** 2

    def _descend(self, points: Point) -> tuple[np.ndarray, np.ndarray]:
        self.evaluations += len(points.knobs) * ROUNDS * STEPS
        knobs, result = map_chunks(descend, self.shared, points, chunk=DESCENDED_AT_ONCE, chunks_per_call=1)
        return knobs, np.where(result.excess < 0.01, result.value, np.inf)

    def _round(self, every: Point, points: Point, relaxed: np.ndarray, values: np.ndarray) -> tuple[Point, float]:
        # the best point of the lattice, and the least relaxed value of its candidate
        best = np.argsort(values, kind="stable")[:ROUNDED]
        starts = self._around(points, best, relaxed[best])[:REFINED]
        found = min((self._refine(points, start) for start in starts), key=lambda one: one.rank)
        least = float(values[found.owner])
        chosen = take(points, np.array([found.owner]))
        while True:
            # the best strategy for the hardware, the best hardware for the strategy, until neither changes
            same = [np.asarray(every.candidate[i]) == chosen.candidate[i] for i in range(4)]
            rivals = take(every, np.flatnonzero(np.all(same, axis=0)))
            rival = min(self._best_of_each(rivals, *_everywhere(len(rivals.knobs), found.point)), key=lambda r: r.rank)
            if rival.rank >= found.rank:
                return chosen._replace(knobs=lattice.values_at(self.budget, found.point)[None]), least
            chosen = take(rivals, np.array([rival.owner]))
            knobs, descended = self._descend(self._starts(chosen, lattice.values_at(self.budget, rival.point)))
            starts = [rival._replace(owner=0), *self._around(chosen, np.zeros(len(knobs), int), knobs)]
            found = min((self._refine(chosen, start) for start in starts), key=lambda one: one.rank)
            least = float(descended.min())

    def _prove(
        self, every: Point, best: Point, least: float, gap: float, time_limit: float
    ) -> tuple[Point, float, Certificate]:
        def report(proven: float) -> None:
            self.progress(f"prove ({proven:.1%})", 0.0)

        found, better = certify(Local(self.shared), every, best, gap=gap, time_limit=time_limit, progress=report)
        self.evaluations += found.evaluations
        if better is not best:
            self._note(better, float(self._scores(better)[0][0]))
            _, descended = self._descend(self._starts(better, np.asarray(better.knobs[0])))
            least = float(descended.min())
        return better, least, found

    def _share(self, every: Point, best: Point, gap: float, time_limit: float) -> refinement.Refined:
        def report(proven: float) -> None:
            self.progress(f"refine ({proven:.1%})", 0.0)

        return refinement.refine(self.shared, every, best, gap=gap, time_limit=time_limit, progress=report)

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
        values, excess = self._scores(take(points, owners)._replace(knobs=knobs))
        order = np.lexsort((values, np.maximum(excess - ROUNDING, 0.0)))
        _, first = np.unique(owners[order], return_index=True)
        best = order[np.sort(first)]
        if excess[best[0]] <= ROUNDING and values[best[0]] < self.value:
            row = best[:1]
            self._note(take(points, owners[row])._replace(knobs=knobs[row]), float(values[row[0]]))
        return [_Found(int(owners[row]), indices[row], float(values[row]), float(excess[row])) for row in best]

    def _note(self, point: Point, value: float) -> None:
        # in single precision the proof's better design may not look better
        self.value = min(self.value, value)
        if self.improved is not None:
            self.improved(point, value, self.evaluations)

    def _design(self, best: Point, least: float, proven: Certificate | None, relaxed: Point) -> Design:
        candidate = jax.tree.map(lambda leaf: float(leaf[0]), best.candidate)
        sides = (candidate.horizontal_sides, candidate.vertical_sides)
        knobs = jax.tree.map(float, lattice.from_array(best.knobs[0]))
        wafer = self.budget.build(knobs, candidate.die_rows, candidate.die_cols, sides)
        layout = jax.tree.map(lambda leaf: leaf[int(best.candidate.geometry[0])], self.shared.layouts)
        answer = estimate(wafer, self.model, candidate.strategy, layout=layout)
        if not answer.feasible:
            raise Infeasible(_least_change(answer, wafer))
        value = float(self.objective.value(wafer, answer))
        return Design(
            wafer=wafer,
            knobs=knobs,
            sides=(int(sides[0]), int(sides[1])),
            strategy=candidate.strategy,
            estimate=answer,
            objective=self.objective,
            value=value,
            relaxed_value=min(least, value),
            evaluations=self.evaluations,
            candidates=len(self.candidates),
            lattice_points=float(np.prod(lattice.counts(self.budget).astype(float))),
            wall_time=time.perf_counter() - self.started,
            phases=self.phases,
            pruned=self.candidates.pruned,
            at_bound=lattice.ends(self.budget, lattice.nearest(self.budget, np.asarray(best.knobs[0]))),
            certificate=proven,
            relaxed=relaxed,
        )


def _is_provable(budget: Budget, objective: Objective) -> bool:
    # hidden communication is a difference of times, which no tangent bounds
    return budget.wafer.overlap is None and (float(objective.time), float(objective.energy), float(objective.cost)) == (
        1.0,
        0.0,
        0.0,
    )


def _best_of_each_place(points: Point, values: np.ndarray) -> Point:
    order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
    _, first = np.unique(np.stack(points.candidate[:4], axis=1)[order], axis=0, return_index=True)
    return take(points, order[np.sort(first)])


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


def _least_change(answer: Estimate, wafer: Wafer) -> str:
    name = answer.binding
    excess = -float(answer.margins[name])
    changes = {
        "memory": f"DRAM per die would have to grow by {excess:.1%} (stacks, stack capacity or die edge)",
        "power": f"power_limit would have to grow by {excess:.1%}, to {float(wafer.power_limit) * (1 + excess):,.0f} W",
        "power_density": f"power_density_limit would have to grow by {excess:.1%}",
        "window_area": f"the window's area would have to grow by {excess:.1%}",
        "window_width": f"window_width would have to grow by {excess:.1%}",
        "window_height": f"window_height would have to grow by {excess:.1%}",
    }
    change = changes.get(name, f"the allowance behind it would have to grow by {excess:.1%}")
    return f"no design of this budget fits: the nearest one exceeds {name} by {excess:.1%}; {change}"
