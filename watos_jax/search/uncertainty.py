"""What becomes of a design if the constants of its technology are not what was thought.

Constants are drawn from log-normal distributions around the budget's own; what has no stated deviation stays. A pool of
designs holds the nominal one, which co-design finds for the budget as it is, and those that local search (`climb`)
finds for some of the draws. Every design of the pool is then estimated under every draw. The best of the pool is the
optimum of a draw only as far as the pool goes: how far it falls short is measured on draws that no design was made
for. A design is taken as it is: where a limit is exceeded it does not fit, and neither its clock nor its strategy is
changed to make it fit.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float

from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING
from watos_jax.hardware import Budget, Knobs, Wafer
from watos_jax.model import Transformer
from watos_jax.presets.uncertainties import PUBLISHED_N7
from watos_jax.search import lattice
from watos_jax.search.candidates import OPTIONS, Candidates, candidates, take
from watos_jax.search.climb import Climber, Standing, starts_of
from watos_jax.search.codesign import codesign
from watos_jax.search.descend import Point, Score, Shared, score
from watos_jax.search.objective import STEP_TIME, Objective
from watos_jax.search.space import Options
from watos_jax.strategy import Strategy

DRAWS: Final = 4096
"""Draws under which every design is estimated."""
DESIGNS: Final = 16
"""Draws for which a design is looked for."""
CHECKED: Final = 4
"""Further draws for which one is looked for, to see how far the pool falls short."""
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Shares of the draws below the reported values."""
ROUND: Final = 16
"""Designs that a pool is filled up to a multiple of, so that pools share compilations."""
DRAWS_AT_ONCE: Final = 32
"""On one device."""
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
        shortfalls: of each draw that was searched though no design of the pool was made for it, 1 - rate of the best
            of the pool over what the search found; negative where the pool has the better design, None where neither
            fits.
        evaluations: estimates made.
        wall_time: s.
    """

    deviations: dict[str, float]
    draws: int
    pool: tuple[Contender, ...]
    best_rates: tuple[float, ...] | None
    none_fits: float
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


def uncertainty(
    model: Transformer,
    budget: Budget,
    *,
    deviations: Mapping[str, float] = PUBLISHED_N7,
    draws: int = DRAWS,
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
        draws: under which every design is estimated.
        designs: draws for which a design is looked for, the first ones.
        checked: further draws for which one is looked for, to measure how far the pool falls short.
        objective: what is made small per step.
        options: what strategies may choose from.
        seed: of the draws.
        progress: called with a phase's name and the share of it that is done.

    Returns:
        The pool with its shares and quantiles.

    Raises:
        Infeasible: nothing fits the budget as it is.
        ValueError: an unknown constant, one that is 0 or that a design chooses, a negative deviation, or fewer draws
            than are searched.
    """
    started, report = time.perf_counter(), progress or (lambda phase, share: None)
    if draws < 1 or designs < 0 or checked < 0 or draws < designs + checked:
        raise ValueError(f"draws is {draws}: it must be at least 1 and designs + checked ({designs} + {checked})")
    drawn = drawn_wafers(budget.wafer, deviations, draws, seed)
    report("nominal design", 0.0)
    nominal = codesign(model, budget, options=options, objective=objective, prove=False)
    table = candidates(model, budget, options=options, objective=objective)
    starts, evaluations = list(starts_of(nominal, budget)), nominal.evaluations
    searched = []
    for number in range(-1, designs + checked):
        report("designs for draws", max(number, 0) / max(designs + checked, 1))
        climber = Climber([table if number < 0 else _under(table, drawn, number)])
        # for the budget as it is, too: the co-designed one, unless local search finds a better design
        found = climber.best(starts)
        evaluations += climber.evaluations
        searched.append(found if found is not None and found.excess <= ROUNDING else None)
    pool = list({_key(found): found for found in searched[: designs + 1] if found is not None}.values())
    report("all draws", 0.0)
    tokens = float(options.global_batch_size) * float(model.sequence_length)
    rates = tokens * _rates(table, pool, drawn)
    best = rates.max(axis=1)
    own = np.array([0.0 if found is None else tokens * found.value for found in searched[designs + 1 :]])
    there = best[designs : designs + checked]
    return Uncertainty(
        deviations=dict(deviations),
        draws=draws,
        pool=tuple(_contender(table, pool[i], rates[:, i], best, rates.argmax(axis=1) == i) for i in range(len(pool))),
        best_rates=_quantiles(best[best > 0.0]),
        none_fits=float(np.mean(best == 0.0)),
        shortfalls=tuple(1.0 - float(b / o) if o > 0.0 else None for b, o in zip(there, own, strict=True)),
        evaluations=evaluations + rates.size,
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


def _under(table: Candidates, drawn: Wafer, number: int) -> Candidates:
    wafer = jax.tree.map(lambda leaf: float(leaf[number]), drawn)
    budget = eqx.tree_at(lambda b: b.wafer, table.shared.budget, wafer)
    return replace(table, shared=table.shared._replace(budget=budget))


def _key(found: Standing) -> tuple[Any, ...]:
    return found.place, found.rows, tuple(found.knobs.tolist())


class _Pool(NamedTuple):
    # what all draws have in common
    shared: Shared
    points: Point


def _pool_scores(pool: _Pool, wafer: Wafer) -> Score:
    budget = eqx.tree_at(lambda b: b.wafer, pool.shared.budget, wafer)
    return jax.vmap(lambda point: score(pool.shared._replace(budget=budget), point))(pool.points)


def _rates(table: Candidates, pool: Sequence[Standing], drawn: Wafer) -> Float[np.ndarray, "draws designs"]:
    # steps per second (joule, dollar), 0 where a design does not fit
    padded = [*pool, *(pool[0] for _ in range(-len(pool) % ROUND))]
    knobs = lattice.values_at(table.shared.budget, np.array([one.knobs for one in padded]))
    points = take(table.every, np.array([one.rows[0] for one in padded]))._replace(knobs=knobs)
    found = map_chunks(_pool_scores, _Pool(table.shared, points), drawn, chunk=DRAWS_AT_ONCE)
    return np.where(found.excess <= ROUNDING, 1.0 / found.value, 0.0)[:, : len(pool)]


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
