"""What becomes of a design if the constants of its technology are not what was thought.

Constants are drawn from log-normal distributions around the budget's own; what has no stated deviation stays. Every
design of a pool is estimated under every draw. The best of the pool stands for the best of all designs, so the pool is
grown until it does (column generation):

1. It begins with the nominal design, which co-design finds for the budget as it is, and the best of a few other die
   grids.
2. A batch of draws is searched, each from the best designs of the pool (`redesign`). What is better than all of the
   pool enters it.
3. The mean gain of a batch, measured before its designs enter, is how far the pool fell short on draws that it was not
   made for. Once it and its standard error are within a tolerance, or no more draws may be searched, the pool stands.
4. Further draws, which neither made the pool nor ended its growth, are searched in the same way from more designs: they
   say how far it falls short. The draws by which designs are compared are again others.

A design is taken as it is: where a limit is exceeded it does not fit, and neither its clock nor its strategy is changed
to make it fit.

Neglects: designs that local search does not find; constants that depend on each other.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import jax
import numpy as np
from jaxtyping import Bool, Float

from watos_jax.estimate import ROUNDING
from watos_jax.hardware import Budget, Knobs, Wafer
from watos_jax.model import Transformer
from watos_jax.presets.uncertainties import PUBLISHED_N7
from watos_jax.search import lattice
from watos_jax.search.candidates import OPTIONS, Candidates, candidates
from watos_jax.search.climb import Place, Standing, starts_of
from watos_jax.search.codesign import codesign
from watos_jax.search.objective import STEP_TIME, Objective
from watos_jax.search.redesign import BATCH, Redesigner, outcomes
from watos_jax.search.space import Options
from watos_jax.strategy import Strategy

DRAWS: Final = 4096
"""Draws under which every design is estimated."""
TOLERANCE: Final = 0.02
"""Mean share of the rate that designs made for single draws may gain over the pool."""
DESIGNS: Final = 512
"""Most draws for which a design is looked for."""
CHECKED: Final = 64
"""Further draws for which one is looked for, to see how far the pool falls short."""
STARTS: Final = (2, 4)
"""Die grids from whose best designs a draw is searched: while the pool grows, and when it is checked."""
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Shares of the draws below the reported values."""
CHOSEN: Final = (
    "die_rows",
    "die_cols",
    "die.core_rows",
    "die.core_cols",
    "die.core.clock",
    "die.core.sram_bytes",
    "die.memory.num_stacks",
    "die.memory.horizontal_sides",
    "die.memory.vertical_sides",
    "die.width",
    "die.height",
    "d2d.bandwidth",
)
"""Numbers of a wafer that a design chooses (`Budget.build`)."""


@dataclass(frozen=True)
class Contender:
    """One design of the pool, and how it does.

    Attributes:
        die_rows: rows of dies.
        die_cols: columns of dies.
        sides: (horizontal, vertical) die edges that carry memory.
        knobs: lattice values.
        strategy: the training strategy.
        fits: share of all draws in which it fits.
        wins: share of all draws in which it is the best of the pool; of equal ones the first is.
        mean_rate: tokens per second (joule, dollar), 0 where it does not fit, mean over all draws.
        rates: quantiles (`QUANTILES`) of the rate over the draws in which it fits; None where there is none.
        regret: quantiles of 1 - rate over that of the best of the pool, likewise.
    """

    die_rows: int
    die_cols: int
    sides: tuple[int, int]
    knobs: Knobs
    strategy: Strategy
    fits: float
    wins: float
    mean_rate: float
    rates: tuple[float, ...] | None
    regret: tuple[float, ...] | None


@dataclass(frozen=True)
class Uncertainty:
    """How designs do under draws of the constants.

    Attributes:
        deviations: standard deviation of the logarithm of each constant drawn.
        draws: how many.
        pool: the designs, the nominal one first.
        best_rates: quantiles (`QUANTILES`) of the rate of the best of the pool, over the draws in which one fits.
        none_fits: share of the draws in which no design of the pool fits.
        tolerance: mean shortfall at which the pool stops to grow.
        gains: mean shortfall of every batch of draws that was searched to grow the pool, before its designs entered,
            with its standard error.
        searched: draws for which a design was looked for.
        shortfalls: of each further draw, 1 - rate of the best of the pool over what a search found; 1 where only the
            search has one that fits, None where neither has.
        evaluations: estimates made.
        wall_time: s.
    """

    deviations: dict[str, float]
    draws: int
    pool: tuple[Contender, ...]
    best_rates: tuple[float, ...] | None
    none_fits: float
    tolerance: float
    gains: tuple[tuple[float, float], ...]
    searched: int
    shortfalls: tuple[float | None, ...]
    evaluations: int
    wall_time: float

    @property
    def nominal(self) -> Contender:
        """The design for the budget as it is."""
        return self.pool[0]

    @property
    def safest(self) -> Contender:
        """The design of the largest mean rate."""
        return max(self.pool, key=lambda one: one.mean_rate)

    @property
    def shortfall(self) -> tuple[float, float]:
        """Mean of the shortfalls and its standard error."""
        return _mean_and_error(self.shortfalls)


def uncertainty(
    model: Transformer,
    budget: Budget,
    *,
    deviations: Mapping[str, float] = PUBLISHED_N7,
    draws: int = DRAWS,
    tolerance: float = TOLERANCE,
    designs: int = DESIGNS,
    checked: int = CHECKED,
    objective: Objective = STEP_TIME,
    options: Options = OPTIONS,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> Uncertainty:
    """Draw the constants, and compare designs under every draw.

    Args:
        model: the transformer.
        budget: the wafer to fill; its constants are the medians.
        deviations: standard deviation of the natural logarithm of each uncertain constant, by the names of the
            budget's wafer, "technology.mac_area" for instance.
        draws: under which every design is estimated; no design is made for them.
        tolerance: mean shortfall of the pool at which it stops to grow.
        designs: most draws for which a design is looked for.
        checked: further draws for which one is looked for, to measure how far the pool falls short.
        objective: what is made small per step.
        options: what strategies may choose from.
        seed: of the draws.
        progress: called with a phase's name and the share of it that is done.

    Returns:
        The pool with its shares and quantiles.

    Raises:
        Infeasible: nothing fits the budget as it is.
        ValueError: an unknown constant, one that is 0 or that a design chooses, a negative deviation, no draw, or a
            tolerance that is not above 0.
    """
    started, report = time.perf_counter(), progress or (lambda phase, share: None)
    for name, given, least in (("draws", draws, 1), ("designs", designs, 0), ("checked", checked, 0)):
        if given < least:
            raise ValueError(f"{name} is {given}: it must be at least {least}")
    if not 0.0 < tolerance < 1.0:
        raise ValueError(f"tolerance is {tolerance:g}: it must be above 0, below 1")
    drawn = drawn_wafers(budget.wafer, deviations, draws + designs + checked, seed)
    report("nominal design", 0.0)
    nominal = codesign(model, budget, options=options, objective=objective, prove=False)
    table = candidates(model, budget, options=options, objective=objective)
    designer = Redesigner(table)
    starts = [[designer.climber.choose(*start)] for start in starts_of(nominal, budget)]
    # the co-designed one first, unless local search finds a better design
    medians = drawn_wafers(budget.wafer, {}, len(starts))
    first = sorted(designer.best(medians, starts), key=lambda one: one.rank)
    pool = _distinct([one for one in first if one.excess <= ROUNDING])
    gains: list[tuple[float, float]] = []
    searched = 0
    while searched < designs and (not gains or sum(gains[-1]) > tolerance):
        report("designs for draws", searched / designs)
        batch = range(draws + searched, draws + min(searched + BATCH, designs))
        found, gain = _searched(designer, pool, _rows(drawn, batch), STARTS[0])
        pool = _distinct([*pool, *(one for one, more in zip(found, gain, strict=True) if (more or 0.0) > ROUNDING)])
        gains.append(_mean_and_error(gain))
        searched += len(batch)
    shortfalls: list[float | None] = []
    for begin in range(draws + designs, draws + designs + checked, BATCH):
        report("further draws", len(shortfalls) / checked)
        batch = range(begin, min(begin + BATCH, draws + designs + checked))
        shortfalls += _searched(designer, pool, _rows(drawn, batch), STARTS[1])[1]
    report("all draws", 0.0)
    tokens = float(options.global_batch_size) * float(model.sequence_length)
    rates = tokens * outcomes(table, pool, _rows(drawn, range(draws))).fitting
    best, winner = rates.max(axis=1), rates.argmax(axis=1)
    return Uncertainty(
        deviations=dict(deviations),
        draws=draws,
        pool=tuple(_contender(table, pool[i], rates[:, i], best, winner == i) for i in range(len(pool))),
        best_rates=_quantiles(best[best > 0.0]),
        none_fits=float(np.mean(best == 0.0)),
        tolerance=tolerance,
        gains=tuple(gains),
        searched=searched,
        shortfalls=tuple(shortfalls),
        evaluations=nominal.evaluations + designer.evaluations + designer.climber.evaluations + rates.size,
        wall_time=time.perf_counter() - started,
    )


def drawn_wafers(wafer: Wafer, deviations: Mapping[str, float], draws: int, seed: int = 0) -> Wafer:
    """Draw the constants of a wafer: `median * exp(deviation * z)`, z standard normal.

    Args:
        wafer: the medians.
        deviations: standard deviation of the logarithm by name of the constant.
        draws: how many.
        seed: of the random numbers; the first draws do not depend on how many there are.

    Returns:
        A wafer whose every number has shape (draws,).

    Raises:
        ValueError: an unknown constant, one that is 0 or that a design chooses, or a deviation below 0.
    """
    leaves = jax.tree_util.tree_leaves_with_path(wafer)
    names = [jax.tree_util.keystr(path).lstrip(".") for path, _ in leaves]
    for name, deviation in deviations.items():
        if name not in names or name in CHOSEN:
            raise ValueError(f"deviations has {name!r}: it must be a constant of the wafer that no design chooses")
        if not 0.0 <= deviation < np.inf:
            raise ValueError(f"deviations[{name!r}] is {deviation:g}: it must be finite, 0 or more")
        if not float(leaves[names.index(name)][1]) > 0.0:
            raise ValueError(f"deviations has {name!r}: the wafer's value must be above 0")
    normal = np.random.default_rng(seed).standard_normal((draws, len(deviations)))
    factors = {name: np.exp(deviation * normal[:, i]) for i, (name, deviation) in enumerate(deviations.items())}
    drawn = [float(leaf) * factors.get(name, np.ones(draws)) for name, (_, leaf) in zip(names, leaves, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(wafer), drawn)


def _rows(drawn: Wafer, rows: Sequence[int]) -> Wafer:
    return jax.tree.map(lambda leaf: leaf[np.asarray(rows)], drawn)


def _mean_and_error(parts: Sequence[float | None]) -> tuple[float, float]:
    # of the numbers among them; 0 where there are too few
    known = [part for part in parts if part is not None]
    error = np.std(known, ddof=1) / np.sqrt(len(known)) if len(known) > 1 else 0.0
    return float(np.mean(known or [0.0])), float(error)


def _distinct(standings: Sequence[Standing]) -> list[Standing]:
    return list({(one.place, one.rows, tuple(one.knobs.tolist())): one for one in standings}.values())


def _searched(
    designer: Redesigner, pool: Sequence[Standing], drawn: Wafer, grids: int
) -> tuple[list[Standing], list[float | None]]:
    # the best design found for every draw, and the share of its rate that the best of the pool lacks
    known = outcomes(designer.table, pool, drawn)
    designer.evaluations += known.rates.size
    starts = []
    for rates, excess in zip(known.rates, known.excess, strict=True):
        order = np.lexsort((-rates, np.maximum(excess - ROUNDING, 0.0)))
        of_grid: dict[Place, Standing] = {}
        for row in order:
            of_grid.setdefault(pool[row].place, pool[row])
        starts.append(list(of_grid.values())[:grids])
    found = designer.best(drawn, starts)
    best = known.fitting.max(axis=1)
    fits = [one.excess <= ROUNDING for one in found]
    # the searches start from the best of the pool, so that they find nothing worse but for rounding
    gain = [
        max(1.0 - float(b) / one.value, 0.0) if fit else None for b, one, fit in zip(best, found, fits, strict=True)
    ]
    return found, gain


def _contender(
    table: Candidates,
    found: Standing,
    rates: Float[np.ndarray, " draws"],
    best: Float[np.ndarray, " draws"],
    wins: Bool[np.ndarray, " draws"],
) -> Contender:
    fits = rates > 0.0
    rows, cols, *sides = found.place
    candidate = jax.tree.map(lambda leaf: float(leaf[found.rows[0]]), table.every.candidate)
    return Contender(
        die_rows=int(rows),
        die_cols=int(cols),
        sides=(int(sides[0]), int(sides[1])),
        knobs=jax.tree.map(float, lattice.from_array(lattice.values_at(table.shared.budget, found.knobs))),
        strategy=candidate.strategy,
        fits=float(fits.mean()),
        wins=float((wins & fits).mean()),
        mean_rate=float(rates.mean()),
        rates=_quantiles(rates[fits]),
        regret=_quantiles(1.0 - rates[fits] / best[fits]),
    )


def _quantiles(values: Float[np.ndarray, " some"]) -> tuple[float, ...] | None:
    return tuple(np.quantile(values, QUANTILES).tolist()) if len(values) else None
