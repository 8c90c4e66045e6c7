"""Co-design over draws of faults: the wafer, and the one strategy for all draws, whose worst or mean step is shortest.

1. The wafer without faults is designed (`codesign`).
2. From its hardware, the best relaxed designs of other die grids and the most promising guesses local search goes on
   with every point judged by all draws (`laid`).
3. Branch and bound says how far the result is from the best of all candidates and lattice points, and replaces it by a
   better one that it comes across (`certificate`).
4. The wafer found and the one designed without faults are planned for the draws as `plan_for_draws` does: stages placed
   by local search, or places kept where that is quicker. The better of the two is the answer.

What is proven is the problem of `laid`: how far the third step's value is above the best there is. What the fourth
gains has no bound, so that the answer may lie below that bound.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import jax
import numpy as np
from jaxtyping import Float

from watos_jax.estimate import ROUNDING
from watos_jax.faults import Faults
from watos_jax.hardware import Budget, Knobs, Wafer
from watos_jax.model import Transformer
from watos_jax.search import lattice
from watos_jax.search.candidates import OPTIONS, Candidates, Infeasible, take
from watos_jax.search.certificate import Certificate, certify, check_ends
from watos_jax.search.climb import Standing, place_of, starts_of
from watos_jax.search.codesign import GAP, TIME_LIMIT, codesign, merit
from watos_jax.search.descend import Point
from watos_jax.search.design import Design
from watos_jax.search.draws import OBJECTIVES, DrawPlan, plan_for_draws
from watos_jax.search.laid import FaultsOf, Laid, LaidClimber, laid_candidates
from watos_jax.search.space import Options
from watos_jax.strategy import Strategy

CLIMBED: Final = 4
"""Starting points from which local search goes on."""
GUESSED: Final = 8
"""Die grids and choices of edges whose best candidate at its first guess is a starting point."""


@dataclass(frozen=True)
class Laying:
    """One wafer and its one strategy, laid anew in every draw in the order of the serpentine.

    Attributes:
        wafer: the hardware.
        knobs: its lattice values.
        sides: (horizontal, vertical) die edges that carry memory.
        strategy: the one for all draws.
        step_times: s of every draw, shape (draws,).
        value: their worst or mean, s.
    """

    wafer: Wafer
    knobs: Knobs
    sides: tuple[int, int]
    strategy: Strategy
    step_times: Float[np.ndarray, " draws"]
    value: float


@dataclass(frozen=True)
class DrawDesign:
    """The answer of `codesign_for_draws`.

    Attributes:
        laid: the best wafer and strategy with stages in the order of the serpentine.
        certificate: what is proven of the least value of that problem.
        draws: what faults leave of that wafer.
        plan: the plan of that wafer for its draws, stages placed by local search; its value is at most that of `laid`.
        healthy: the design for a wafer without faults.
        healthy_laid: the best strategy of its wafer in the order of the serpentine; None where none fits every draw.
        healthy_plan: the plan of its wafer for its draws.
        objective: "worst" or "mean".
        evaluations: estimates made, those of the plans aside.
        wall_time: s.
    """

    laid: Laying
    certificate: Certificate
    draws: tuple[Faults, ...]
    plan: DrawPlan
    healthy: Design
    healthy_laid: Laying | None
    healthy_plan: DrawPlan
    objective: str
    evaluations: int
    wall_time: float

    @property
    def is_healthy(self) -> bool:
        """Whether the wafer designed without faults is the better one once both are planned for the draws."""
        return self.healthy_plan.value < self.plan.value

    @property
    def wafer(self) -> Wafer:
        """The wafer to build."""
        return self.healthy.wafer if self.is_healthy else self.laid.wafer

    @property
    def best_plan(self) -> DrawPlan:
        """Its plan."""
        return self.healthy_plan if self.is_healthy else self.plan

    @property
    def value(self) -> float:
        """Worst or mean step time of that plan, s."""
        return self.best_plan.value


def codesign_for_draws(
    model: Transformer,
    budget: Budget,
    faults: FaultsOf,
    *,
    options: Options = OPTIONS,
    objective: str = "worst",
    gap: float = GAP,
    time_limit: float = TIME_LIMIT,
    progress: Callable[[str, float], None] | None = None,
) -> DrawDesign:
    """Choose the hardware and the one strategy that are best over draws of faults, none of which is known before.

    Args:
        model: the transformer.
        budget: the wafer to fill and the lattice of its knobs.
        faults: draws of every die grid, as many for each: dead dies and links, such as
            `lambda wafer: [draw(wafer, dies=0.05, seed=seed) for seed in range(4)]`.
        options: what strategies may choose from; `least_use` is of the dies that a draw leaves.
        objective: "worst" or "mean" step time over the draws.
        gap: of the value over its proven lower bound, at which the proof ends; 0 finds the best.
        time_limit: s for the proof.
        progress: called with a phase's name and the share of it that is done.

    Returns:
        The best wafer found, the certificate, and the wafer designed without faults beside it.

    Raises:
        Infeasible: nothing fits the budget, with faults or without.
        ValueError: an unknown objective, a negative gap or time_limit, communication that overlaps, no draw, or
            harvested dies.
    """
    started, report = time.perf_counter(), progress or (lambda phase, share: None)
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}: it must be one of {', '.join(OBJECTIVES)}")
    check_ends(gap, time_limit)
    if budget.wafer.overlap is not None:
        raise ValueError("budget.wafer.overlap is given: it must be None, for hidden communication has no bound")
    report("draws of faults", 0.0)
    table, problem = laid_candidates(model, budget, faults, options=options, objective=objective)
    report("wafer without faults", 0.0)
    healthy = codesign(model, budget, options=options, prove=False)
    climber = LaidClimber(table, problem)
    report("search", 0.0)
    found, stacks = _searched(climber, table, healthy)
    if found.excess > ROUNDING:
        raise Infeasible(f"no wafer fits all draws: the nearest exceeds a limit by {np.expm1(found.excess):.1%}")
    knobs = lattice.values_at(budget, found.knobs)[None]
    best = take(table.every, np.array(found.rows))._replace(knobs=knobs)
    proven, best = certify(
        problem,
        table.every,
        best,
        gap=gap,
        time_limit=time_limit,
        stacks=stacks,
        progress=lambda left: report(f"prove ({left:.1%})", 0.0),
    )
    report("plans", 0.0)
    laid = _laying(problem, best)
    own = _kept(climber, healthy)
    plans = [
        plan_for_draws(wafer, model, faults(wafer), options=options, objective=objective)
        for wafer in (laid.wafer, healthy.wafer)
    ]
    return DrawDesign(
        laid=laid,
        certificate=proven,
        draws=tuple(faults(laid.wafer)),
        plan=plans[0],
        healthy=healthy,
        healthy_laid=None if own is None else _laying(problem, own),
        healthy_plan=plans[1],
        objective=objective,
        evaluations=healthy.evaluations + climber.evaluations + proven.evaluations * problem.draws * problem.ways,
        wall_time=time.perf_counter() - started,
    )


def _searched(climber: LaidClimber, table: Candidates, healthy: Design) -> tuple[Standing, np.ndarray]:
    # the best local optimum from the healthy wafer, the relaxed designs of other grids, and the best guesses; stacks
    budget = table.shared.budget
    scores = climber.problem.scores(table.every)
    order = np.argsort(merit(scores), kind="stable")
    _, first = np.unique(table.group[order], return_index=True)
    starts = list(starts_of(healthy, budget))
    for row in order[np.sort(first)[:GUESSED]]:
        starts.append((place_of(table.every, int(row)), lattice.nearest(budget, np.asarray(table.every.knobs[row]))))
    legal = [climber.choose(*start) for start in starts if climber.has(start[0])]
    legal.sort(key=lambda one: one.rank)
    return min((climber.climb(one) for one in legal[:CLIMBED]), key=lambda one: one.rank), scores.stacks


def _kept(climber: LaidClimber, healthy: Design) -> Point | None:
    # the best strategy for all draws on the wafer designed without faults
    place, index = next(iter(starts_of(healthy, climber.budget)))
    if not climber.has(place):
        return None
    found = climber.choose(place, index)
    knobs = lattice.values_at(climber.budget, found.knobs)[None]
    return (
        take(climber.cases[0].every, np.array(found.rows))._replace(knobs=knobs) if found.excess <= ROUNDING else None
    )


def _laying(problem: Laid, point: Point) -> Laying:
    candidate = jax.tree.map(lambda leaf: float(leaf[0]), point.candidate)
    sides = candidate.horizontal_sides, candidate.vertical_sides
    knobs = jax.tree.map(float, lattice.from_array(np.asarray(point.knobs[0], float)))
    times = problem.step_times(point)
    return Laying(
        wafer=problem.shared.budget.build(knobs, candidate.die_rows, candidate.die_cols, sides),
        knobs=knobs,
        sides=(int(sides[0]), int(sides[1])),
        strategy=candidate.strategy,
        step_times=times,
        value=float(OBJECTIVES[problem.objective](times)),
    )
