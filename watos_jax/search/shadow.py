"""Shadow prices: what one per cent more of each allowance, and of each constant, is worth at the relaxed optimum.

For the strategy, die grid and stacks of a design, the relaxed problem in log knobs y,

    minimise log value(y, c)  subject to  log(use_i / allowance_i)(y, c) <= 0  and  low <= y <= high,

is solved to stationarity (SLSQP, Kraft 1988), in double precision and nearly hard. Its multipliers are the prices of
the limits; by the envelope theorem the derivative of the best value in the logarithm of a constant c is that of the
Lagrangian at the optimum. Where the best strategy changes, prices are those of this strategy alone.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.estimate import estimate
from watos_jax.hardware import Budget
from watos_jax.model import Transformer
from watos_jax.network.layout import layout as build_layout
from watos_jax.relax import Smooth
from watos_jax.search.codesign import Design
from watos_jax.search.descend import log_ratios
from watos_jax.search.lattice import NAMES, from_array, to_array
from watos_jax.search.objective import Objective
from watos_jax.strategy import Layout, Strategy

SHARPNESS: Final = 2e4
"""Of the smooth model: within 1e-4 of the hard one at a tie."""
ACTIVE: Final = 1e-3
"""A limit whose logarithm is closer to 0 than this may carry a price."""
FIXED: Final = ("dram_stacks",)
"""Knobs that keep the design's value: a stack is too large a step to be relaxed."""


@dataclass(frozen=True)
class ShadowPrices:
    """Derivatives of the logarithm of the best value.

    Attributes:
        value: objective at the relaxed optimum with the design's grid, stacks and strategy.
        limits: by limit, per cent that the value falls when its allowance grows by one per cent.
        bounds: the same for the ends of the budget that hold a knob, "core_rows high" for instance.
        constants: by number of the budget's wafer, per cent that the value grows when it grows by one per cent.
        residual: largest component of the Lagrangian's gradient that no price explains; 0 at an exact optimum.
    """

    value: float
    limits: dict[str, float]
    bounds: dict[str, float]
    constants: dict[str, float]
    residual: float


def shadow_prices(design: Design, model: Transformer, budget: Budget) -> ShadowPrices:
    """Price the limits and constants of a co-design.

    Args:
        design: what `codesign` returned for this model and budget.
        model: the transformer.
        budget: the budget.

    Returns:
        The prices. They hold for small changes; `residual` says how exactly the optimum was met.
    """
    with jax.enable_x64(True):
        return _solve(design, model, budget)


class _Fixed(NamedTuple):
    # what neither knobs nor constants change
    budget: Budget
    model: Transformer
    objective: Objective
    strategy: Strategy
    layout: Layout
    grid: tuple[float, float]
    sides: tuple[float, float]


def _terms(
    fixed: _Fixed, log_knobs: Float[Array, " knobs"], logs: Float[Array, " constants"]
) -> Float[Array, " terms"]:
    # log value, then log(use / allowance) of every limit
    wafer = jax.tree.unflatten(jax.tree.structure(fixed.budget.wafer), list(jnp.exp(logs)))
    budget = eqx.tree_at(lambda b: b.wafer, fixed.budget, wafer)
    built = budget.build(from_array(jnp.exp(log_knobs)), *fixed.grid, fixed.sides)
    answer = estimate(built, fixed.model, fixed.strategy, layout=fixed.layout, relax=Smooth(SHARPNESS))
    value = jnp.log(fixed.objective.value(built, answer))
    return jnp.concatenate([value[None], log_ratios(answer.margins)])


@jax.jit
def _linearise(fixed: _Fixed, log_knobs: Array, logs: Array) -> tuple[Array, Array]:
    return jax.jacfwd(lambda y: (_terms(fixed, y, logs),) * 2, has_aux=True)(log_knobs)


@jax.jit
def _envelope(fixed: _Fixed, log_knobs: Array, logs: Array, weights: Array) -> Array:
    return jax.grad(lambda constants: weights @ _terms(fixed, log_knobs, constants))(logs)


def _solve(design: Design, model: Transformer, budget: Budget) -> ShadowPrices:
    import scipy.optimize  # changes the filters of warnings when it is imported

    grid = (float(design.wafer.die_rows), float(design.wafer.die_cols))
    sides = (float(design.sides[0]), float(design.sides[1]))
    layout = build_layout(design.wafer, design.strategy)
    fixed = jax.tree.map(jnp.asarray, _Fixed(budget, model, design.objective, design.strategy, layout, grid, sides))
    low, high = np.log(to_array(budget.low)), np.log(to_array(budget.high))
    start = np.clip(np.log(to_array(design.knobs)), low, high)
    whole = np.array([name in FIXED for name in NAMES])
    ends = (np.where(whole, start, low), np.where(whole, start, high))
    leaves = jax.tree_util.tree_leaves_with_path(budget.wafer)
    # what is 0 has no logarithm and takes no part
    logs = np.array([np.log(float(leaf)) if float(leaf) > 0 else -np.inf for _, leaf in leaves])
    evaluated: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def at(log_knobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # terms and their slopes; the solver asks for each of them apart
        key = log_knobs.tobytes()
        if key not in evaluated:
            slopes, terms = _linearise(fixed, jnp.asarray(log_knobs), jnp.asarray(logs))
            evaluated[key] = (np.asarray(terms), np.asarray(slopes))
        return evaluated[key]

    found = scipy.optimize.minimize(
        lambda y: float(at(y)[0][0]),
        start,
        jac=lambda y: at(y)[1][0],
        method="SLSQP",
        bounds=list(zip(*ends, strict=True)),
        constraints={"type": "ineq", "fun": lambda y: -at(y)[0][1:], "jac": lambda y: -at(y)[1][1:]},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    best = np.clip(found.x, *ends)
    terms, slopes = at(best)
    names = tuple(design.estimate.margins)
    prices, residual = _multipliers(best, ends, names, terms, slopes)
    weights = np.array([1.0, *(prices.get(name, 0.0) for name in names)])
    envelope = np.asarray(_envelope(fixed, jnp.asarray(best), jnp.asarray(logs), jnp.asarray(weights)))
    constants = {
        jax.tree_util.keystr(path).lstrip("."): slope for (path, _), slope in zip(leaves, envelope, strict=True)
    }
    return ShadowPrices(
        value=float(np.exp(terms[0])),
        limits={name: price for name, price in prices.items() if name in names},
        bounds={name: price for name, price in prices.items() if name not in names and name.split()[0] not in FIXED},
        constants={name: float(slope) for name, slope in constants.items() if np.isfinite(slope) and slope != 0.0},
        residual=residual,
    )


def _multipliers(
    best: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray],
    names: tuple[str, ...],
    terms: np.ndarray,
    slopes: np.ndarray,
) -> tuple[dict[str, float], float]:
    import scipy.optimize

    # non-negative prices of the active limits and ends that balance the slope of the value (least squares)
    rows = {name: slope for name, term, slope in zip(names, terms[1:], slopes[1:], strict=True) if term > -ACTIVE}
    axes = np.eye(len(NAMES))
    for word, sign, end in (("low", -1.0, ends[0]), ("high", 1.0, ends[1])):
        held = np.flatnonzero(np.abs(best - end) < ACTIVE)
        rows |= {f"{NAMES[knob]} {word}": sign * axes[knob] for knob in held}
    matrix = np.array([*rows.values(), np.zeros(len(NAMES))]).T
    prices = scipy.optimize.nnls(matrix, -slopes[0])[0]
    residual = float(np.abs(slopes[0] + matrix @ prices).max())
    return {name: float(price) for name, price in zip(rows, prices[:-1], strict=True) if price > 0.0}, residual
