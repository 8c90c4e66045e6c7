"""Pareto fronts of two objectives: what more of one costs of the other.

The ends of a front are co-designed (`codesign`). Between them the weighted product

    value_1**(1 - s) * value_2**s,  0 < s < 1,

is made small by local search over the lattice (`climb`), from the ends, the weight before, and other die grids. That
finds designs on the convex hull in logarithms; what lies between is looked for among all lattice points around them.
No front here is proven complete: designs beyond it may exist, those on it do.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import jax
import numpy as np
from jaxtyping import Bool, Float

from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING
from watos_jax.hardware import Budget, Knobs
from watos_jax.model import Transformer
from watos_jax.presets.prices import ACTUARY_N7
from watos_jax.prices import Prices
from watos_jax.search import lattice
from watos_jax.search.candidates import OPTIONS, Candidates, candidates, take
from watos_jax.search.climb import Climber, Standing, starts_of
from watos_jax.search.codesign import codesign
from watos_jax.search.descend import Point, score
from watos_jax.search.objective import OBJECTIVES, Objective
from watos_jax.search.space import Options
from watos_jax.strategy import Strategy

WEIGHTS: Final = 9
"""Values of s, the two ends among them."""


@dataclass(frozen=True)
class FrontPoint:
    """One design of a front.

    Attributes:
        rates: tokens per second, joule or dollar, one for each objective.
        die_rows: rows of dies.
        die_cols: columns of dies.
        sides: (horizontal, vertical) die edges that carry memory.
        knobs: lattice values.
        strategy: the training strategy.
    """

    rates: tuple[float, float]
    die_rows: int
    die_cols: int
    sides: tuple[int, int]
    knobs: Knobs
    strategy: Strategy


@dataclass(frozen=True)
class Front:
    """Designs of which none is better than another in both objectives.

    Attributes:
        objectives: names of the two objectives.
        points: the designs, the best of the first objective first.
        hypervolume: share of the rectangle from (0, 0) to the best of both that some design is as good as or better.
        searched: local optima of weighted products that the front was made from.
        evaluations: estimates made, those of the ends included.
        wall_time: s.
    """

    objectives: tuple[str, str]
    points: tuple[FrontPoint, ...]
    hypervolume: float
    searched: int
    evaluations: int
    wall_time: float


def pareto(
    model: Transformer,
    budget: Budget,
    *,
    objectives: tuple[str, str] = ("tokens-per-second", "tokens-per-joule"),
    prices: Prices = ACTUARY_N7,
    options: Options = OPTIONS,
    weights: int = WEIGHTS,
    progress: Callable[[str, float], None] | None = None,
) -> Front:
    """Look for the front of two objectives.

    Args:
        model: the transformer.
        budget: the wafer to fill and the lattice of its knobs.
        objectives: two names of `OBJECTIVES`.
        prices: what dollars are counted with.
        options: what strategies may choose from.
        weights: values of s, the two ends among them.
        progress: called with a phase's name and the share of it that is done.

    Returns:
        The front that was found.

    Raises:
        Infeasible: no design was found that fits.
        ValueError: an unknown or repeated objective, or fewer than two weights.
    """
    _check(objectives, weights)
    started, report = time.perf_counter(), progress or (lambda phase, share: None)
    first, second = (replace(OBJECTIVES[name], prices=prices) for name in objectives)
    ends = (first, second)
    designs = []
    for name, objective in zip(objectives, ends, strict=True):
        report(f"best {name}", 0.0)
        designs.append(codesign(model, budget, options=options, objective=objective, prove=False))
    table = candidates(model, budget, options=options)
    starts = [start for design in designs for start in starts_of(design, budget)]
    found: list[Standing] = []
    evaluations = sum(design.evaluations for design in designs)
    for number, s in enumerate(np.linspace(0.0, 1.0, weights)):
        report("between", number / weights)
        climber = Climber([_valued(table, _between(first, second, float(s)))])
        last = [(found[-1].place, found[-1].knobs)] if found else []
        standing = climber.best([*starts, *last])
        if standing is not None and standing.excess <= ROUNDING:
            found.append(standing)
        evaluations += climber.evaluations
    report("around", 0.0)
    tokens = float(options.global_batch_size) * float(model.sequence_length)
    points, tried = _around(table, ends, found, tokens)
    rates = np.array([point.rates for point in points])
    return Front(
        objectives=objectives,
        points=points,
        hypervolume=hypervolume(rates) / float(rates.max(axis=0).prod()),
        searched=len(found),
        evaluations=evaluations + tried,
        wall_time=time.perf_counter() - started,
    )


def is_dominant(rates: Float[np.ndarray, "points 2"]) -> Bool[np.ndarray, " points"]:
    """Which points no other is better than, of equal ones the first.

    A point is better if it is no worse in both rates and larger in one.

    Args:
        rates: two rates of each point, the more the better.
    """
    order = np.lexsort((-rates[:, 1], -rates[:, 0]))
    second = rates[order, 1]
    best_before = np.maximum.accumulate(np.concatenate([[-np.inf], second[:-1]]))
    kept = np.zeros(len(rates), bool)
    kept[order[second > best_before]] = True
    return kept


def hypervolume(rates: Float[np.ndarray, "points 2"], reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """Area of what some point is at least as good as, above a reference.

    Args:
        rates: two rates of each point, the more the better.
        reference: the corner from which the area is counted; points below it count for nothing.
    """
    above = np.maximum(np.asarray(rates, float) - np.asarray(reference, float), 0.0)
    front = above[is_dominant(above)]
    front = front[np.argsort(-front[:, 0])]
    return float((front[:, 0] * np.diff(front[:, 1], prepend=0.0)).sum())


def _check(objectives: tuple[str, str], weights: int) -> None:
    for name in objectives:
        if name not in OBJECTIVES:
            raise ValueError(f"objectives has {name!r}: it must be one of {', '.join(OBJECTIVES)}")
    if len(set(objectives)) != 2:
        raise ValueError(f"objectives is {objectives!r}: it must be two different names")
    if weights < 2:
        raise ValueError(f"weights is {weights}: it must be at least 2")


def _between(first: Objective, second: Objective, s: float) -> Objective:
    return jax.tree.map(lambda a, b: (1.0 - s) * a + s * b, first, second)


def _valued(table: Candidates, objective: Objective) -> Candidates:
    return replace(table, shared=table.shared._replace(objective=objective))


def _around(
    table: Candidates, ends: tuple[Objective, Objective], found: Sequence[Standing], tokens: float
) -> tuple[tuple[FrontPoint, ...], int]:
    # the best of both objectives among all lattice points around the designs found, with their strategies
    climber = Climber([table])
    distinct = {(one.place, one.rows, tuple(one.knobs.tolist())): one for one in found}.values()
    indices = [climber.around(one) for one in distinct]
    rows = np.concatenate([np.full(len(index), one.rows[0]) for one, index in zip(distinct, indices, strict=True)])
    knobs = lattice.values_at(climber.budget, np.concatenate(indices))
    points = take(table.every, rows)._replace(knobs=knobs)
    scores = [map_chunks(score, _valued(table, objective).shared, points) for objective in ends]
    fits = np.flatnonzero(scores[0].excess <= ROUNDING)
    rates = tokens / np.stack([one.value for one in scores], axis=1)[fits].astype(float)
    best = fits[is_dominant(rates)]
    rates = rates[is_dominant(rates)]
    order = np.argsort(-rates[:, 0])
    return tuple(_point(points, int(best[i]), rates[i]) for i in order), 2 * len(rows)


def _point(points: Point, row: int, rates: Float[np.ndarray, "2"]) -> FrontPoint:
    candidate = jax.tree.map(lambda leaf: float(leaf[row]), points.candidate)
    return FrontPoint(
        rates=(float(rates[0]), float(rates[1])),
        die_rows=int(candidate.die_rows),
        die_cols=int(candidate.die_cols),
        sides=(int(candidate.horizontal_sides), int(candidate.vertical_sides)),
        knobs=jax.tree.map(float, lattice.from_array(np.asarray(points.knobs[row]))),
        strategy=candidate.strategy,
    )
