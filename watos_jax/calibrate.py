"""Fit the efficiency of a real machine to measured training runs, by gradient.

Minimises the squared logarithmic error of step times over the logarithms of the fields of `Efficiency`, by
Levenberg-Marquardt steps on the Jacobian that `jax.jacfwd` gives, with residuals beyond 10 % weighted down (Huber).
A weak prior, one row's weight at a factor e from `START`, keeps fields in place that the rows say nothing about.
Errors are quoted on rows whose configuration was left out of the fit.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.estimate import estimate
from watos_jax.hardware import Efficiency, System
from watos_jax.measured import Run
from watos_jax.model import Transformer
from watos_jax.network.layout import layout, padded
from watos_jax.strategy import Layout, Strategy
from watos_jax.units import Scalar

START: Final = Efficiency(
    matmul_overhead=0.3,
    matmul_rows=100.0,
    matmul_cols=300.0,
    attention_overhead=1.0,
    attention_rows=100.0,
    memory_overhead=0.3,
    launch_time=5e-6,
    collective_latency=2e-5,
    network_overhead=0.3,
)
"""Where a fit starts, and the center of its prior; a field that starts at 0 stays there."""
PRIOR_WEIGHT: Final = 0.02
"""Weight of the prior's residual, log(field / start), beside a row's log error."""
HUBER: Final = 0.1
"""Log error beyond which a row's pull stops growing."""
STEPS: Final = 40
"""Levenberg-Marquardt steps."""
FOLDS: Final = 5
"""Parts that configurations are dealt into for cross-validation."""


StepTime = Callable[[System, Transformer, Strategy, Layout], Scalar]
"""An execution model: s per optimizer step of a strategy on a system."""


Times = Callable[[Efficiency, Any], Float[Array, " rows"]]
"""s of every row, from an efficiency and arrays over rows."""


def estimated(system: System, model: Transformer, strategy: Strategy, layout: Layout) -> Scalar:
    """The step time of `estimate`, the execution model of GPU clusters."""
    return estimate(system, model, strategy, layout=layout).step_time


class Stacked(NamedTuple):
    """Runs as arrays: one row each along the first axis of every leaf."""

    systems: System
    models: Transformer
    strategies: Strategy
    layouts: Layout


class Fit(NamedTuple):
    """A fitted efficiency with its quality.

    Attributes:
        efficiency: the fitted fields.
        relative_error: standard error of each field over its value (of its logarithm).
        error: mean absolute relative error on the rows of the fit.
        cross_validated_error: the same on rows whose configuration was left out.
        predictions: cross-validated step times, s, in the order of the runs.
        num_parameters: fitted fields.
        num_rows: rows used.
        num_configurations: distinct configurations among them.
    """

    efficiency: Efficiency
    relative_error: Efficiency
    error: float
    cross_validated_error: float
    predictions: Float[np.ndarray, " rows"]
    num_parameters: int
    num_rows: int
    num_configurations: int


def stack(runs: Sequence[Run]) -> Stacked:
    """Stack runs, with the layouts of their strategies padded to one number of stages.

    Args:
        runs: at least one; systems of one structure (tiers and fabrics).
    """
    stages = padded(max(int(run.strategy.pipeline_parallel) for run in runs))
    rows = [(run.system, run.model, run.strategy, layout(run.system, run.strategy, max_stages=stages)) for run in runs]
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), dtype=jnp.result_type(float)), *rows)
    return Stacked(*stacked)


def predict(stacked: Stacked, efficiency: Efficiency, step_time: StepTime = estimated) -> Float[Array, " rows"]:
    """Step time of every run on machines of one efficiency, s.

    Args:
        stacked: the runs.
        efficiency: replaces that of every system.
        step_time: execution model.
    """
    return _step_times(efficiency, stacked, step_time)


def fit(runs: Sequence[Run], *, seed: int = 0, start: Efficiency = START, step_time: StepTime = estimated) -> Fit:
    """Fit the efficiency of one chip to measured step times.

    Args:
        runs: runs on one chip; those without a measured time are ignored.
        seed: deals configurations into folds.
        start: where the fit starts, and the center of its prior; fields of 0 are not fitted.
        step_time: execution model.

    Raises:
        ValueError: fewer than 10 runs, or fewer than 5 configurations, have a measured time.
    """
    timed = [run for run in runs if run.step_time is not None]
    names = sorted({run.configuration for run in timed})
    if len(timed) < 2 * FOLDS or len(names) < FOLDS:
        raise ValueError(
            f"{len(timed)} runs of {len(names)} configurations have a measured time: a fit needs at least "
            f"{2 * FOLDS} runs of {FOLDS} configurations"
        )
    return fit_times(
        _of_runs(step_time),
        stack(timed),
        np.array([run.step_time for run in timed], float),
        [run.configuration for run in timed],
        start=start,
        seed=seed,
    )


def fit_times(
    times: Times,
    arguments: Any,
    measured: np.ndarray,
    configurations: Sequence[Hashable],
    *,
    start: Efficiency,
    seed: int = 0,
) -> Fit:
    """Fit efficiencies to measured times of anything that a function predicts.

    Args:
        times: s of every row from an efficiency and the arguments; the same function for the same kind of rows, so
            that it compiles once.
        arguments: arrays that the function takes, of all rows.
        measured: s, shape (rows,).
        configurations: label of each row; rows of one label are left out together.
        start: where the fit starts, and the center of its prior; fields of 0 are not fitted.
        seed: deals labels into folds.
    """
    target = np.log(measured)
    problem = _Problem(arguments, target, _fields(start), times)
    center = np.log([float(leaf) for leaf in jax.tree.leaves(start) if leaf > 0])
    vector = _levenberg_marquardt(problem, center, np.ones(len(target)))
    fitted = problem.log_times(vector)
    names = sorted(set(configurations), key=str)
    folds = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % FOLDS, strict=True))
    fold = np.array([folds[name] for name in configurations])
    held_out = np.zeros(len(target))
    for number in range(FOLDS):
        without = _levenberg_marquardt(problem, center, (fold != number).astype(float))
        held_out = np.where(fold == number, problem.log_times(without), held_out)
    return Fit(
        efficiency=_to_record(np.exp(vector), problem.fields),
        relative_error=_to_record(_standard_error(vector, problem), problem.fields),
        error=float(np.mean(np.abs(np.expm1(fitted - target)))),
        cross_validated_error=float(np.mean(np.abs(np.expm1(held_out - target)))),
        predictions=np.exp(held_out),
        num_parameters=len(vector),
        num_rows=len(target),
        num_configurations=len(names),
    )


@cache
def _of_runs(step_time: StepTime) -> Times:
    return lambda efficiency, stacked: _step_times(efficiency, stacked, step_time)


def _fields(start: Efficiency) -> tuple[int, ...]:
    return tuple(number for number, leaf in enumerate(jax.tree.leaves(start)) if leaf > 0)


def _to_record(values: Array | np.ndarray, fields: tuple[int, ...]) -> Efficiency:
    leaves: list[Any] = [0.0] * len(jax.tree.leaves(START))
    for field, value in zip(fields, values, strict=True):
        leaves[field] = value
    return jax.tree.unflatten(jax.tree.structure(START), leaves)


@partial(jax.jit, static_argnames="step_time")
def _step_times(efficiency: Efficiency, stacked: Stacked, step_time: StepTime) -> Float[Array, " rows"]:
    def one(system: System, model: Transformer, strategy: Strategy, layout: Layout) -> Scalar:
        machine = replace(system, efficiency=efficiency)
        return step_time(machine, model, strategy, layout)

    return jax.vmap(one)(*stacked)


@partial(jax.jit, static_argnums=(2, 3))
def _log_times(
    vector: Float[Array, " fields"], arguments: Any, fields: tuple[int, ...], times: Times
) -> Float[Array, " rows"]:
    return jnp.log(times(_to_record(jnp.exp(vector), fields), arguments))


_jacobian = jax.jit(jax.jacfwd(_log_times), static_argnums=(2, 3))


class _Problem(NamedTuple):
    # arguments of the function, logarithms of what was measured, the fields that are fitted, and the function
    arguments: Any
    measured: np.ndarray
    fields: tuple[int, ...]
    times: Times

    def log_times(self, vector: np.ndarray) -> np.ndarray:
        return np.asarray(_log_times(jnp.asarray(vector), self.arguments, self.fields, self.times), float)

    def jacobian(self, vector: np.ndarray) -> np.ndarray:
        return np.asarray(_jacobian(jnp.asarray(vector), self.arguments, self.fields, self.times), float)


def _levenberg_marquardt(problem: _Problem, center: np.ndarray, weights: np.ndarray) -> np.ndarray:
    vector, damping = center.copy(), 1e-2

    def residuals(point: np.ndarray) -> np.ndarray:
        return problem.log_times(point) - problem.measured

    def cost(point: np.ndarray, rest: np.ndarray) -> float:
        size = np.abs(rest)
        huber = np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER))
        return float(np.sum(weights * huber) + 0.5 * PRIOR_WEIGHT**2 * np.sum((point - center) ** 2))

    rest = residuals(vector)
    value = cost(vector, rest)
    for _ in range(STEPS):
        jacobian = problem.jacobian(vector)
        pull = weights * np.minimum(1.0, HUBER / np.maximum(np.abs(rest), 1e-12))
        normal = jacobian.T @ (pull[:, None] * jacobian) + PRIOR_WEIGHT**2 * np.eye(len(vector))
        slope = jacobian.T @ (pull * rest) + PRIOR_WEIGHT**2 * (vector - center)
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slope)
        trial = vector + np.clip(step, -1.0, 1.0)
        trial_rest = residuals(trial)
        trial_value = cost(trial, trial_rest)
        if trial_value < value:
            gained = value - trial_value
            vector, rest, value, damping = trial, trial_rest, trial_value, damping / 3.0
            if gained < 1e-9 * value:
                break
        else:
            damping *= 4.0
    return vector


def _standard_error(vector: np.ndarray, problem: _Problem) -> np.ndarray:
    # of the logarithms, from the curvature at the optimum and the spread of the residuals
    jacobian = problem.jacobian(vector)
    rest = problem.log_times(vector) - problem.measured
    spread = np.sum(rest**2) / max(len(rest) - len(vector), 1)
    normal = jacobian.T @ jacobian / max(spread, 1e-12) + PRIOR_WEIGHT**2 / max(spread, 1e-12) * np.eye(len(vector))
    return np.sqrt(np.diag(np.linalg.inv(normal)))
