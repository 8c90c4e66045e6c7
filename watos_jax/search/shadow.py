"""Shadow prices: what more of each allowance, and of each constant, is worth at the relaxed optimum (`relaxed`).

The multipliers are the prices of the limits; by the envelope theorem the derivative of the best value in the logarithm
of a constant c is that of the Lagrangian at the optimum. Prices are those of the design's strategy, die grid and
stacks: where another wins, `resolved` has the finite differences.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jax
import numpy as np

from watos_jax.hardware import Budget, Wafer
from watos_jax.model import Transformer
from watos_jax.search.design import Design
from watos_jax.search.relaxed import FIXED, VALUE, Optimum, Problem, Relaxed
from watos_jax.units import GIGA, MM


class Allowance(NamedTuple):
    """Something that a budget has a certain amount of.

    Attributes:
        unit: "what it is counted in", written behind a number.
        amount: how much a design has of it, in that unit.
        powers: numbers of the wafer that grow with it, by path, each with the power of the amount.
    """

    unit: str
    amount: Callable[[Wafer], Any]
    powers: dict[str, float]


ALLOWANCES: Final = {
    "window": Allowance(
        "mm2", lambda w: w.window_width * w.window_height / MM**2, {"window_width": 0.5, "window_height": 0.5}
    ),
    "dram_capacity": Allowance("GB per die", lambda w: w.die.memory.capacity / GIGA, {"die.memory.stack_bytes": 1.0}),
    "dram_bandwidth": Allowance(
        "GB/s per die", lambda w: w.die.memory.bandwidth / GIGA, {"die.memory.stack_bandwidth": 1.0}
    ),
    "d2d_shoreline": Allowance(
        "GB/s per mm of die edge", lambda w: w.d2d.shoreline_density * MM / GIGA, {"d2d.shoreline_density": 1.0}
    ),
    "power": Allowance("W", lambda w: w.power_limit, {"power_limit": 1.0}),
    "power_density": Allowance(
        "W per mm2 of die", lambda w: w.power_density_limit * MM**2, {"power_density_limit": 1.0}
    ),
}
"""What a budget's owner may buy more of. The window grows in both directions, stacks in what each of them holds."""


@dataclass(frozen=True)
class Worth:
    """What more of one allowance is worth, in per cent of the objective; below 0 would be a loss.

    Attributes:
        unit: what the amount is counted in.
        amount: how much there is.
        one_percent: per cent that the value falls (tokens per second grow) when the amount grows by one per cent.
        one_unit: per cent that it falls per unit more.
    """

    unit: str
    amount: float
    one_percent: float
    one_unit: float


@dataclass(frozen=True)
class ShadowPrices:
    """Derivatives of the logarithm of the best value.

    Attributes:
        value: objective at the relaxed optimum with the design's grid, stacks and strategy.
        limits: by limit, per cent that the value falls when its allowance grows by one per cent.
        bounds: the same for the ends of the budget that hold a knob, "core_rows high" for instance.
        constants: by number of the budget's wafer, per cent that the value grows when it grows by one per cent.
        allowances: by name in `ALLOWANCES`, what more of it is worth.
        residual: largest component of the Lagrangian's gradient that no price explains; 0 at an exact optimum.
    """

    value: float
    limits: dict[str, float]
    bounds: dict[str, float]
    constants: dict[str, float]
    allowances: dict[str, Worth]
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
        problem = problem_of(design, model, budget)
        best = problem.solve()
        constants = envelope(problem, best)
    prices = {name: price for name, price in best.prices.items() if name.split()[0] not in FIXED}
    return ShadowPrices(
        value=best.value,
        limits={name: price for name, price in prices.items() if name in best.terms},
        bounds={name: price for name, price in prices.items() if name not in best.terms},
        constants=constants,
        allowances={name: _worth(one, design.wafer, constants) for name, one in ALLOWANCES.items()},
        residual=best.residual,
    )


def problem_of(design: Design, model: Transformer, budget: Budget) -> Problem:
    """The relaxed problem of a design's grid, stacks and strategy, which starts at its knobs."""
    grid = int(design.wafer.die_rows), int(design.wafer.die_cols)
    return Problem(Relaxed(budget, model, design.strategy, grid, design.sides, design.objective), design.knobs)


def envelope(problem: Problem, best: Optimum) -> dict[str, float]:
    """Slope of the logarithm of the best value in that of each constant that matters; under `jax.enable_x64(True)`."""
    slopes = problem.along(best.log_knobs, problem.constant_axes()).slopes
    whole = slopes[VALUE] + sum(price * slopes[name] for name, price in best.prices.items() if name in slopes)
    found = zip(problem.constants, whole, strict=True)
    return {name: float(slope) for name, slope in found if np.isfinite(slope) and slope != 0.0}


def _worth(allowance: Allowance, wafer: Wafer, constants: dict[str, float]) -> Worth:
    amount = float(allowance.amount(wafer))
    gain = 0.0 - sum(power * constants.get(name, 0.0) for name, power in allowance.powers.items())
    return Worth(allowance.unit, amount, gain, gain / amount * 100.0 if amount else 0.0)
