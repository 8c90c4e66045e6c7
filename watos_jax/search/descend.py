"""Gradient descent over the hardware knobs of many candidates at once.

Knobs are descended as logarithms of absolute quantities, between the lattice's ends, with Adam (optax). Limits enter
by an augmented Lagrangian on log(use / allowance); the sharpness of the smooth model rises along the way.

Minimise `log(objective) + sum_i (max(0, m_i + r g_i)^2 - m_i^2) / (2 r)` with `g_i = log(use_i / allowance_i)`,
multipliers m_i updated to `max(0, m_i + r g_i)` after every round (Nocedal & Wright, 2006, section 17.4).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from watos_jax.estimate import estimate
from watos_jax.hardware import Budget
from watos_jax.model import Transformer
from watos_jax.programs import returned
from watos_jax.relax import HARD, Relaxation, Smooth
from watos_jax.search.lattice import NAMES, from_array
from watos_jax.search.objective import Objective
from watos_jax.strategy import Layout, Strategy
from watos_jax.units import Scalar

ROUNDS = 12
"""Updates of the multipliers."""
STEPS = 20
"""Steps of Adam between two updates."""
PENALTY = 20.0
"""r of the augmented Lagrangian."""
SHARPNESS = (10.0, 2000.0)
"""Of the smooth model, first and last round."""
LEARNING_RATE = (0.06, 0.002)
"""Of Adam in log knobs, first and last round."""


class Candidate(NamedTuple):
    """One discrete choice: a die grid, the edges that carry memory, a strategy and its layout.

    Attributes:
        die_rows: rows of dies.
        die_cols: columns of dies.
        horizontal_sides: left and right edges that carry memory.
        vertical_sides: top and bottom edges that carry memory.
        strategy: the strategy.
        geometry: row of its layout in the table of layouts.
    """

    die_rows: Scalar
    die_cols: Scalar
    horizontal_sides: Scalar
    vertical_sides: Scalar
    strategy: Strategy
    geometry: Int[Array | np.ndarray, "..."]


class Point(NamedTuple):
    """A candidate with its knobs."""

    candidate: Candidate
    knobs: Float[Array | np.ndarray, "*batch knobs"]


class Shared(NamedTuple):
    """What all points of a search have in common: budget, model, objective and the table of layouts."""

    budget: Budget
    model: Transformer
    objective: Objective
    layouts: Layout


@returned
class Score(NamedTuple):
    """What a search asks of a point.

    Attributes:
        value: objective.
        excess: log(use / allowance) of its worst limit; above 0 it does not fit.
        stacks: DRAM stacks per die that its memory needs, not rounded; they do not depend on the knobs.
    """

    value: Scalar
    excess: Scalar
    stacks: Scalar


def log_ratios(margins: dict[str, Scalar]) -> Float[Array, " limits"]:
    """log(use / allowance) of every limit, not below log 1e-6."""
    ratios = 1.0 - jnp.stack(list(margins.values()))
    return jnp.log(jnp.where(ratios > 1e-6, ratios, 1e-6))


def score(shared: Shared, point: Point) -> Score:
    """Score of one point by the hard model."""
    value, margins = _evaluate(shared, point)
    return _score_of(point.knobs, value, margins)


def descend(shared: Shared, point: Point) -> tuple[Float[Array, " knobs"], Score]:
    """Descend from one point; returns the knobs reached and their score by the smooth model at its sharpest.

    Args:
        shared: budget, model, objective, layouts.
        point: a candidate and where to start.
    """
    low, high = jnp.log(_array(shared.budget.low)), jnp.log(_array(shared.budget.high))
    start = jnp.clip(jnp.log(point.knobs), low, high)

    def objective(log_knobs: Array, multipliers: Array, sharpness: Scalar) -> tuple[Scalar, tuple[Score, Array]]:
        knobs = jnp.exp(log_knobs)
        value, margins = _evaluate(shared, Point(point.candidate, knobs), Smooth(sharpness))
        excess = log_ratios(margins)
        pushed = jnp.maximum(0.0, multipliers + PENALTY * excess)
        penalty = jnp.sum(pushed**2 - multipliers**2) / (2.0 * PENALTY)
        return jnp.log(value) + penalty, (_score_of(knobs, value, margins), excess)

    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=LEARNING_RATE[0], b1=0.8, b2=0.95)
    num_limits = jax.eval_shape(lambda: objective(start, jnp.zeros(()), SHARPNESS[0])[1][1]).size

    def step(carry: tuple, number: Array) -> tuple[tuple, None]:
        (log_knobs, state, multipliers), _ = carry
        progress = jnp.floor(number / STEPS) / (ROUNDS - 1)
        sharpness = SHARPNESS[0] ** (1.0 - progress) * SHARPNESS[1] ** progress
        rate = LEARNING_RATE[0] ** (1.0 - progress) * LEARNING_RATE[1] ** progress
        gradient, (found, excess) = jax.grad(objective, has_aux=True)(log_knobs, multipliers, sharpness)
        reached = (jnp.exp(log_knobs), found)
        state.hyperparams["learning_rate"] = rate
        update, state = optimizer.update(gradient, state)
        log_knobs = jnp.clip(log_knobs + update, low, high)
        ends_round = (number + 1.0) % STEPS == 0.0
        raised = jnp.maximum(0.0, multipliers + PENALTY * excess)
        return ((log_knobs, state, jnp.where(ends_round, raised, multipliers)), reached), None

    nothing = Score(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))
    carry = ((start, optimizer.init(start), jnp.zeros(num_limits)), (jnp.exp(start), nothing))
    # the score of a step is that of the point it starts from, so the last update is made but not used
    (_, reached), _ = jax.lax.scan(step, carry, jnp.arange(float(ROUNDS * STEPS)))
    return reached


def _score_of(knobs: Array | np.ndarray, value: Scalar, margins: dict[str, Scalar]) -> Score:
    stacks = (1.0 - margins["memory"]) * knobs[NAMES.index("dram_stacks")]
    return Score(value, jnp.max(log_ratios(margins)), stacks)


def _array(knobs):  # type: ignore[no-untyped-def]
    return jnp.stack([jnp.asarray(leaf) for leaf in jax.tree.leaves(knobs)], axis=-1)


def _evaluate(shared: Shared, point: Point, relax: Relaxation = HARD) -> tuple[Scalar, dict[str, Scalar]]:
    candidate = point.candidate
    sides = (candidate.horizontal_sides, candidate.vertical_sides)
    wafer = shared.budget.build(from_array(point.knobs), candidate.die_rows, candidate.die_cols, sides)
    layout = jax.tree.map(lambda leaf: leaf[candidate.geometry], shared.layouts)
    result = estimate(wafer, shared.model, candidate.strategy, layout=layout, relax=relax)
    return shared.objective.value(wafer, result), result.margins
