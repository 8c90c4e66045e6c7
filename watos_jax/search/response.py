"""How the relaxed optimum of a design moves with the constants: implicit differentiation of its conditions.

At the optimum (`relaxed`) the slope of the Lagrangian L in the log knobs y is 0, and so is every limit g with a price.
With log constants c and prices m,

    [ L_yy  g_y' ] [ dy/dc ]     [ L_yc ]
    [ g_y   0    ] [ dm/dc ] = - [ g_c  ]

(implicit function theorem; limits and ends without a price are left out, so a limit that is just met without a price
has another slope on its other side). Where the optimum is not unique, such as rows against columns of cores while
neither waits for the other, dy is the shortest of the solutions.
"""

from dataclasses import dataclass
from typing import Final

import jax
import numpy as np
from jaxtyping import Float

from watos_jax.hardware import Budget
from watos_jax.model import Transformer
from watos_jax.search.design import Design
from watos_jax.search.lattice import NAMES
from watos_jax.search.relaxed import VALUE, Optimum, Problem
from watos_jax.search.shadow import problem_of

STEP: Final = 1e-6
"""Of log knobs, for second derivatives as central differences of exact first ones: well inside the 1e-4 over which the
smooth model turns from one branch of a maximum to the other, and far above rounding."""
FLAT: Final = 1e-10
"""Singular values below this share of the largest belong to directions in which the optimum is not unique."""


@dataclass(frozen=True)
class KnobResponse:
    """Slopes of the optimal knobs.

    Attributes:
        slopes: per cent that each knob moves when a constant grows by one per cent, shape (knobs, constants).
        knobs: names along the first axis.
        constants: names along the second axis, numbers of the budget's wafer.
        residual: of the linear system, largest component; large where limits with a price contradict one another.
    """

    slopes: Float[np.ndarray, "knobs constants"]
    knobs: tuple[str, ...]
    constants: tuple[str, ...]
    residual: float

    def of(self, knob: str, constant: str) -> float:
        """Per cent that one knob moves when one constant grows by one per cent."""
        return float(self.slopes[self.knobs.index(knob), self.constants.index(constant)])


def knob_response(design: Design, model: Transformer, budget: Budget) -> KnobResponse:
    """How the best hardware for a design's strategy, die grid and stacks moves with every constant.

    Args:
        design: what `codesign` returned for this model and budget.
        model: the transformer.
        budget: the budget.
    """
    with jax.enable_x64(True):
        problem = problem_of(design, model, budget)
        return respond(problem, problem.solve())


def respond(problem: Problem, best: Optimum) -> KnobResponse:
    """The same from a solved problem; under `jax.enable_x64(True)`."""
    axes = np.concatenate([problem.knob_axes(), problem.constant_axes()])
    weights = {VALUE: 1.0} | {name: price for name, price in best.prices.items() if name in best.terms}

    def lagrangian(log_knobs: np.ndarray) -> np.ndarray:
        slopes = problem.along(log_knobs, axes).slopes
        return np.sum([weight * slopes[name] for name, weight in weights.items()], axis=0)

    steps = STEP * np.eye(len(NAMES))
    second = np.array(
        [(lagrangian(best.log_knobs + step) - lagrangian(best.log_knobs - step)) / (2.0 * STEP) for step in steps]
    )
    used = np.isfinite(problem.logs)
    curvature, mixed = second[:, : len(NAMES)], second[:, len(NAMES) :][:, used]
    at_ends = problem.rows(best.log_knobs)
    limits = problem.along(best.log_knobs, problem.constant_axes()).slopes
    held = np.array([at_ends[name] for name in best.prices]).reshape(-1, len(NAMES))
    # the ends of the knobs do not move
    nothing = np.zeros(len(problem.logs))
    moved = np.array([limits.get(name, nothing) for name in best.prices]).reshape(-1, len(nothing))[:, used]
    corner = np.zeros((len(held), len(held)))
    matrix = np.block([[0.5 * (curvature + curvature.T), held.T], [held, corner]])
    right = -np.concatenate([mixed, moved])
    found = np.linalg.lstsq(matrix, right, rcond=FLAT)[0]
    names = tuple(name for name, there in zip(problem.constants, used, strict=True) if there)
    residual = float(np.abs(matrix @ found - right).max())
    return KnobResponse(found[: len(NAMES)], NAMES, names, residual)
