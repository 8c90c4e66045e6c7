"""One wafer for several models, or for a technology that is not known: the best mean, or the best worst case.

Every case is co-designed alone first (`codesign`): its design is where the common search starts (`climb`), and what it
proves bounds the case's rate on any wafer. A mean grows with each rate, so the mean of those bounds is above that of
every design: the gap to it is proven, and it also holds what cases lose because they share one wafer.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from watos_jax.estimate import ROUNDING, Estimate
from watos_jax.hardware import Budget, Knobs, Wafer
from watos_jax.model import Transformer
from watos_jax.search import lattice
from watos_jax.search.candidates import OPTIONS, Infeasible, candidates
from watos_jax.search.climb import MEANS, Climber, power_mean, starts_of
from watos_jax.search.codesign import GAP, TIME_LIMIT, codesign
from watos_jax.search.design import Design
from watos_jax.search.objective import STEP_TIME, Objective
from watos_jax.search.space import Options
from watos_jax.strategy import Strategy


@dataclass(frozen=True)
class Case:
    """Something that the wafer must do well.

    Attributes:
        model: the transformer.
        budget: the wafer to fill; budgets of several cases have one lattice, and may differ in technology and limits.
        weight: of its rate in the mean.
        options: what its strategies may choose from.
        name: for reports.
    """

    model: Transformer
    budget: Budget
    weight: float = 1.0
    options: Options = OPTIONS
    name: str = ""

    @property
    def tokens(self) -> float:
        """Tokens per optimizer step."""
        return float(self.options.global_batch_size) * float(self.model.sequence_length)


@dataclass(frozen=True)
class Compromise:
    """One wafer with a strategy for every case.

    Attributes:
        wafers: the wafer as each case has it: knobs and die grid are common, technology and limits its own.
        knobs: lattice values.
        sides: (horizontal, vertical) die edges that carry memory.
        strategies: one of each case.
        estimates: the hard model's answer for each case.
        rates: tokens per second (joule, dollar) of each case.
        value: their mean.
        mean: its name.
        upper_bound: no wafer has a better mean; None where a case has no proof.
        own: each case's own design.
        own_rates: tokens per second (joule, dollar) of each case on its own design.
        evaluations: estimates made, those of the own designs included.
        wall_time: s.
    """

    wafers: tuple[Wafer, ...]
    knobs: Knobs
    sides: tuple[int, int]
    strategies: tuple[Strategy, ...]
    estimates: tuple[Estimate, ...]
    rates: tuple[float, ...]
    value: float
    mean: str
    upper_bound: float | None
    own: tuple[Design, ...]
    own_rates: tuple[float, ...]
    evaluations: int
    wall_time: float

    @property
    def gap(self) -> float | None:
        """Upper bound over the value, minus 1."""
        return None if self.upper_bound is None else self.upper_bound / self.value - 1.0

    @property
    def shares(self) -> tuple[float, ...]:
        """Rate of each case over that of its own design."""
        return tuple(rate / own for rate, own in zip(self.rates, self.own_rates, strict=True))


def compromise(
    cases: Sequence[Case],
    *,
    mean: str = "geometric",
    objective: Objective = STEP_TIME,
    gap: float = GAP,
    time_limit: float = TIME_LIMIT,
    progress: Callable[[str, float], None] | None = None,
) -> Compromise:
    """Choose one wafer for several cases, and the strategy of each.

    The mean is of tokens per second, joule or dollar: "arithmetic" where weights are shares of time, "harmonic" where
    they are shares of tokens, "geometric" for ratios, "worst" for the least of all, whatever their weights.

    Args:
        cases: models, or technologies, with their weights.
        mean: name of the mean.
        objective: what each case makes small per step.
        gap: of each case's own step time over its lower bound, at which its proof ends.
        time_limit: s after which the proof of each case ends.
        progress: called with a phase's name and the share of it that is done.

    Returns:
        The best wafer found, which fits in every case.

    Raises:
        Infeasible: a case has no design that fits, or no wafer was found that fits them all.
        ValueError: no case, an unknown mean, a weight that is not above 0, or budgets of different lattices.
    """
    _check(cases, mean)
    started, report = time.perf_counter(), progress or (lambda phase, share: None)
    own = []
    for number, case in enumerate(cases):
        report(f"{case.name or f'case {number + 1}'} alone", number / len(cases))
        own.append(_own(case, number, objective, gap, time_limit))
    tokens = np.array([case.tokens for case in cases])
    weights = np.array([case.weight for case in cases], float)
    tables = [candidates(case.model, case.budget, options=case.options, objective=objective) for case in cases]
    climber = Climber(tables, scales=tokens.tolist(), weights=weights.tolist(), power=MEANS[mean])
    report("together", 0.0)
    found = climber.best(start for design in own for start in starts_of(design, cases[0].budget))
    if found is None or found.excess > ROUNDING:
        excess = "" if found is None else f"; the nearest exceeds a limit by {np.expm1(found.excess):.1%}"
        raise Infeasible(f"no wafer was found that fits all {len(cases)} cases{excess}")
    proofs = [design.certificate for design in own]
    bounds = [tokens[i] / proof.lower_bound for i, proof in enumerate(proofs) if proof is not None]
    wafers, strategies, estimates = zip(*(climber.built(found, i) for i in range(len(cases))), strict=True)
    values = [float(objective.value(wafer, answer)) for wafer, answer in zip(wafers, estimates, strict=True)]
    rates = tokens / np.array(values)
    return Compromise(
        wafers=wafers,
        knobs=climber.values(found),
        sides=(int(found.place[2]), int(found.place[3])),
        strategies=strategies,
        estimates=estimates,
        rates=tuple(rates.tolist()),
        value=float(power_mean(rates, weights, MEANS[mean])),
        mean=mean,
        upper_bound=float(power_mean(np.array(bounds), weights, MEANS[mean])) if len(bounds) == len(cases) else None,
        own=tuple(own),
        own_rates=tuple(float(tokens[i]) / design.value for i, design in enumerate(own)),
        evaluations=climber.evaluations + sum(design.evaluations for design in own),
        wall_time=time.perf_counter() - started,
    )


def _own(case: Case, number: int, objective: Objective, gap: float, time_limit: float) -> Design:
    try:
        return codesign(
            case.model, case.budget, options=case.options, objective=objective, gap=gap, time_limit=time_limit
        )
    except Infeasible as error:
        raise Infeasible(f"{case.name or f'case {number + 1}'}: {error}") from error


def _check(cases: Sequence[Case], mean: str) -> None:
    if not cases:
        raise ValueError("cases is empty: there must be at least one")
    if mean not in MEANS:
        raise ValueError(f"mean is {mean!r}: it must be one of {', '.join(MEANS)}")
    first = cases[0].budget
    for number, case in enumerate(cases):
        if not 0.0 < case.weight < np.inf:
            raise ValueError(f"cases[{number}].weight is {case.weight:g}: it must be finite, above 0")
        budget = case.budget
        same = (budget.die_rows, budget.die_cols, budget.memory_sides) == (
            first.die_rows,
            first.die_cols,
            first.memory_sides,
        )
        sides = [(getattr(first, side), getattr(budget, side)) for side in ("low", "high", "step")]
        if not same or any((lattice.to_array(a) != lattice.to_array(b)).any() for a, b in sides):
            raise ValueError(
                f"cases[{number}].budget has another lattice than that of the first case: die grids, edges with memory "
                "and low, high and step of every knob must be the same"
            )
