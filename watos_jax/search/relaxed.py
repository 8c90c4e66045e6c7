"""The relaxed hardware problem of one strategy, and its optimum.

For a fixed strategy, die grid and number of stacks, in the logarithms y of the knobs and c of the constants,

    minimise log value(y, c)  subject to  log(use_i / allowance_i)(y, c) <= 0  and  low <= y <= high,

solved to stationarity (SLSQP, Kraft 1988) in double precision and nearly hard. Multipliers are the least squares ones
of the active limits and ends, none below 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from watos_jax import programs
from watos_jax.estimate import estimate
from watos_jax.hardware import Budget, Knobs, Wafer
from watos_jax.model import Transformer
from watos_jax.network.layout import layout as build_layout
from watos_jax.relax import Smooth
from watos_jax.search.descend import log_ratios
from watos_jax.search.lattice import NAMES, from_array, to_array
from watos_jax.search.objective import STEP_TIME, Objective
from watos_jax.strategy import Layout, Strategy
from watos_jax.xla import compiler_options

SHARPNESS: Final = 2e4
"""Of the smooth model: within 1e-4 of the hard one at a tie."""
ACTIVE: Final = 1e-3
"""A limit whose logarithm is closer to 0 than this may carry a price."""
SLACK: Final = 1e-7
"""Excess that the solver may leave, as a logarithm: a limit that only equality meets must not leave it without room."""
FIXED: Final = ("dram_stacks",)
"""Knobs that keep the value they start with: a stack is too large a step to be relaxed."""
_HELD: Final = np.array([name in FIXED for name in NAMES])
VALUE: Final = "value"
"""Name of the objective beside those of the limits."""
STAGES: Final = 64
"""Stages are padded to a multiple of this, so that nearly all strategies share one compilation."""

LogKnobs = Float[np.ndarray, " knobs"]
Directions = Float[np.ndarray, "directions logs"]
Slopes = Float[np.ndarray, " directions"]


class Relaxed(NamedTuple):
    """One discrete choice: what neither knobs nor constants change, and the budget that holds both.

    Attributes:
        budget: constants, limits, ends of the knobs.
        model: the transformer.
        strategy: the strategy.
        grid: rows and columns of dies.
        sides: horizontal and vertical die edges that carry memory.
        objective: what is made small.
    """

    budget: Budget
    model: Transformer
    strategy: Strategy
    grid: tuple[int, int]
    sides: tuple[int, int]
    objective: Objective = STEP_TIME

    def build(self, knobs: Knobs) -> Wafer:
        """The wafer of some knobs."""
        (die_rows, die_cols), (horizontal, vertical) = self.grid, self.sides
        return self.budget.build(knobs, die_rows * 1.0, die_cols * 1.0, (horizontal * 1.0, vertical * 1.0))


@dataclass(frozen=True)
class Optimum:
    """A stationary point of the relaxed problem; limits and ends are named as in `prices`.

    Attributes:
        log_knobs: y, shape (knobs,).
        terms: log value and log(use / allowance) of every limit.
        slopes: of each term in y, shape (knobs,).
        prices: multiplier of every limit and end ("clock high") that has one.
        residual: largest component of the Lagrangian's gradient that no price explains.
    """

    log_knobs: LogKnobs
    terms: dict[str, float]
    slopes: dict[str, Slopes]
    prices: dict[str, float]
    residual: float

    @property
    def value(self) -> float:
        """The objective."""
        return float(np.exp(self.terms[VALUE]))

    @property
    def knobs(self) -> Knobs:
        """The knobs; those that are held are whole again."""
        knobs = np.exp(self.log_knobs)
        return jax.tree.map(float, from_array(np.where(_HELD, np.rint(knobs), knobs)))


class Linear(NamedTuple):
    """Terms at one point and their slopes along some directions in (y, c)."""

    terms: dict[str, float]
    slopes: dict[str, Slopes]


class Problem:
    """A relaxed problem that can be evaluated and solved; use it under `jax.enable_x64(True)`."""

    def __init__(self, relaxed: Relaxed, start: Knobs):
        budget, wafer = relaxed.budget, relaxed.build(start)
        stages = -(-int(relaxed.strategy.pipeline_parallel) // STAGES) * STAGES
        layout = build_layout(wafer, relaxed.strategy, max_stages=stages)
        self.fixed = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (relaxed, layout))
        leaves = jax.tree_util.tree_leaves_with_path(budget.wafer)
        self.constants = tuple(jax.tree_util.keystr(path).lstrip(".") for path, _ in leaves)
        # what is 0 has no logarithm and takes no part
        self.logs = np.array([np.log(float(leaf)) if float(leaf) > 0 else -np.inf for _, leaf in leaves])
        low, high = np.log(to_array(budget.low)), np.log(to_array(budget.high))
        self.start = np.clip(np.log(to_array(start)), low, high)
        self.ends = np.where(_HELD, self.start, low), np.where(_HELD, self.start, high)
        self._seen: dict[bytes, Linear] = {}

    def at(self, log_knobs: LogKnobs) -> Linear:
        """Terms and slopes in y at a point; the solver asks for each of them apart."""
        key = log_knobs.tobytes()
        if key not in self._seen:
            self._seen[key] = self.along(log_knobs, self.knob_axes())
        return self._seen[key]

    def knob_axes(self) -> Directions:
        """Directions along each knob."""
        return np.eye(len(NAMES), len(NAMES) + len(self.constants))

    def constant_axes(self) -> Directions:
        """Directions along each constant."""
        return np.eye(len(self.constants), len(NAMES) + len(self.constants), len(NAMES))

    def along(self, log_knobs: LogKnobs, directions: Directions) -> Linear:
        """Terms at a point, and their slopes along directions in (y, c)."""
        at = jnp.asarray(np.concatenate([log_knobs, self.logs]))
        program = _program((*self.fixed, at, at))
        found = [program(*self.fixed, at, direction) for direction in directions]
        terms, slopes = found[0][0], [slope for _, slope in found]
        return Linear(
            {name: float(term) for name, term in terms.items()},
            {name: np.array([float(slope[name]) for slope in slopes]) for name in terms},
        )

    def solve(self) -> Optimum:
        """The optimum that is found from the start."""
        import scipy.optimize  # changes the filters of warnings when it is imported

        def limits(y: LogKnobs) -> np.ndarray:
            return np.array([SLACK - term for name, term in self.at(y).terms.items() if name != VALUE])

        def limit_slopes(y: LogKnobs) -> np.ndarray:
            return np.array([-slope for name, slope in self.at(y).slopes.items() if name != VALUE])

        found = scipy.optimize.minimize(
            lambda y: self.at(y).terms[VALUE],
            self.start,
            jac=lambda y: self.at(y).slopes[VALUE],
            method="SLSQP",
            bounds=list(zip(*self.ends, strict=True)),
            constraints={"type": "ineq", "fun": limits, "jac": limit_slopes},
            options={"ftol": 1e-12, "maxiter": 500},
        )
        best = np.clip(found.x, *self.ends)
        return Optimum(best, *self.at(best), *self._multipliers(best))

    def rows(self, log_knobs: LogKnobs) -> dict[str, np.ndarray]:
        """Slopes in y of the limits and ends that are active at a point."""
        terms, slopes = self.at(log_knobs)
        rows = {name: slopes[name] for name in terms if name != VALUE and terms[name] > -ACTIVE}
        for word, sign, end in (("low", -1.0, self.ends[0]), ("high", 1.0, self.ends[1])):
            held = np.flatnonzero(np.abs(log_knobs - end) < ACTIVE)
            rows |= {f"{NAMES[knob]} {word}": sign * np.eye(len(NAMES))[knob] for knob in held}
        return rows

    def _multipliers(self, best: LogKnobs) -> tuple[dict[str, float], float]:
        import scipy.optimize

        # non-negative prices of the active limits and ends that balance the slope of the value (least squares)
        rows, slope = self.rows(best), self.at(best).slopes[VALUE]
        matrix = np.array([*rows.values(), np.zeros(len(NAMES))]).T
        prices = scipy.optimize.nnls(matrix, -slope)[0]
        residual = float(np.abs(slope + matrix @ prices).max())
        return {name: float(price) for name, price in zip(rows, prices[:-1], strict=True) if price > 0.0}, residual


def relaxed_optimum(relaxed: Relaxed, start: Knobs) -> Optimum:
    """Solve a relaxed problem from a start, whose number of stacks it keeps.

    Args:
        relaxed: the discrete choice and its budget.
        start: knobs to start from, on the lattice or not.
    """
    with jax.enable_x64(True):
        return Problem(relaxed, start).solve()


def _terms(relaxed: Relaxed, layout: Layout, logs: Float[Array, " logs"]) -> dict[str, Array]:
    log_knobs, constants = logs[: len(NAMES)], logs[len(NAMES) :]
    wafer = jax.tree.unflatten(jax.tree.structure(relaxed.budget.wafer), list(jnp.exp(constants)))
    changed = relaxed._replace(budget=eqx.tree_at(lambda b: b.wafer, relaxed.budget, wafer))
    # whole again after the logarithm; nothing depends on it, for it is held fixed
    knobs = jnp.where(_HELD, jnp.round(jnp.exp(log_knobs)), jnp.exp(log_knobs))
    built = changed.build(from_array(knobs))
    relax = Smooth(SHARPNESS, smooth_steps=False)
    answer = estimate(built, relaxed.model, relaxed.strategy, layout=layout, relax=relax)
    limits = dict(zip(answer.margins, log_ratios(answer.margins), strict=True))
    return {VALUE: jnp.log(relaxed.objective.value(built, answer))} | limits


def _slope(relaxed: Relaxed, layout: Layout, logs: Array, direction: Array) -> tuple[dict, dict]:
    # one direction at a time: a batch of them takes longer to trace
    return jax.jvp(lambda at: _terms(relaxed, layout, at), (logs,), (direction,))


def _program(args: tuple) -> Callable:
    # compiled: a program that is kept from another process, or traced here
    leaves, structure = jax.tree.flatten(args)
    whole = NamedSharding(Mesh(np.array(jax.local_devices()[:1]), ("device",)), PartitionSpec())
    found = programs.kept(
        lambda *leaves: _slope(*jax.tree.unflatten(structure, leaves)),
        f"{__name__}.slope",
        args,
        (whole,) * len(leaves),
        compiler_options(),
    )
    return _traced() if found is None else lambda *args: found(*jax.tree.leaves(args))


@cache
def _traced() -> Callable:
    return jax.jit(_slope, compiler_options=compiler_options())
