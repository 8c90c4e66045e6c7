"""Lower bounds of the step time: tangents in reciprocal resources.

Hardware enters the time of a strategy through seven reciprocal resources u (`EXPONENTS`), as sums and maxima with
non-negative weights. So the time is convex in u and grows with each of them, and its tangent at any point,

    T(u) >= w . u  with  w_i >= 0  and  T(u0) = w . u0,

holds everywhere. Where u is below that of every design of a box of the lattice (`boxes`), w . u bounds their times.

What makes the bound lower than the truth: `pipeline.step_time_bounds` in place of the replayed schedule, the tangent,
and that the limit of mean power is left out. The tangent is exact where it touches.
"""

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from watos_jax import pipeline
from watos_jax.batch import map_chunks
from watos_jax.estimate import Estimate, estimate
from watos_jax.programs import returned
from watos_jax.search.descend import Point, Shared, log_ratios
from watos_jax.search.lattice import NAMES, from_array
from watos_jax.strategy import Strategy
from watos_jax.units import PerStage, Scalar

RESOURCES: Final = ("core_rows", "core_cols", "sram_bytes_per_core", "dram_stacks", "d2d_bandwidth", "clock")
"""Knobs that the time depends on; the die's width and height only limit them."""
EXPONENTS: Final = np.array(
    [
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # nothing: latencies
        [-1.0, -1.0, 0.0, 0.0, 0.0, -1.0],  # MACs
        [-1.0, 0.0, 0.0, 0.0, 0.0, -1.0],  # NoC, operands that enter by rows
        [0.0, -1.0, 0.0, 0.0, 0.0, -1.0],  # NoC, operands that enter by columns
        [0.0, 0.0, 0.0, -1.0, 0.0, 0.0],  # DRAM, compulsory traffic
        [-0.5, -0.5, -0.5, -1.0, 0.0, 0.0],  # DRAM, traffic that a larger SRAM saves
        [0.0, 0.0, 0.0, 0.0, -1.0, 0.0],  # D2D links
    ]
)
"""Reciprocal resources as products of powers of `RESOURCES`, a row each."""
MACS: Final = 1
"""Row of `EXPONENTS` for MACs."""
SLACK: Final = 1e-5
"""Excess over a limit that still counts as met, more than `estimate.ROUNDING`: no bound may rule out an answer."""
_COLUMN: Final = {name: number for number, name in enumerate(NAMES)}
_RESOURCES: Final = np.array([_COLUMN[name] for name in RESOURCES])
_PARTS: Final = np.linalg.inv(np.concatenate([np.ones((1, len(EXPONENTS))), EXPONENTS.T]))
# seconds that each resource answers for, from a time and its slope in the logarithms of RESOURCES

Reciprocals = Float[np.ndarray, "*batch reciprocals"]


@returned
class Tangent(NamedTuple):
    """A tangent of the time of one strategy, and what the hard model says at the point where it touches.

    Attributes:
        weights: w, shape (reciprocals,); T(u) >= w . u.
        stacks: DRAM stacks per die that its memory needs, not rounded.
        excess: log(use / allowance) of the worst limit at the point.
        forward: s per micro-batch of each stage at the point.
        backward: the same backward.
        rest: s per step that do not depend on the schedule.
    """

    weights: Float[Array, " reciprocals"]
    stacks: Scalar
    excess: Scalar
    forward: PerStage
    backward: PerStage
    rest: Scalar


def log_resources(knobs: Float[ArrayLike, " knobs"]) -> Float[Array, " resources"]:
    """Logarithms of the knobs that the time depends on."""
    return jnp.log(jnp.asarray(knobs)[_RESOURCES])


def with_resources(knobs: Float[ArrayLike, " knobs"], logs: Float[Array, " resources"]) -> Float[Array, " knobs"]:
    """Knobs with other resources, given as logarithms."""
    return jnp.asarray(knobs).at[_RESOURCES].set(jnp.exp(logs))


def resource_seconds(time: Scalar, slope: Float[Array, " resources"]) -> Float[Array, " reciprocals"]:
    """Seconds that each resource answers for; they add up to the time.

    Args:
        time: s.
        slope: its derivative in the logarithms of the resources.
    """
    return jnp.asarray(_PARTS) @ jnp.concatenate([time[None], slope])


def reciprocals(knobs: Float[np.ndarray, "*batch knobs"]) -> Reciprocals:
    """Reciprocal resources u of knobs: `exp(EXPONENTS @ log(resources))`."""
    return np.exp(np.log(knobs[..., _RESOURCES]) @ EXPONENTS.T)


def tangent(shared: Shared, point: Point) -> Tangent:
    """Tangent at one point: the lower time and its slope say what each resource answers for.

    Args:
        shared: budget, model, layouts.
        point: a candidate and any knobs, on the lattice or not.
    """
    candidate = point.candidate
    sides = (candidate.horizontal_sides, candidate.vertical_sides)
    layout = jax.tree.map(lambda leaf: leaf[candidate.geometry], shared.layouts)

    def time_at(logs: Array) -> tuple[Scalar, tuple[Estimate, Scalar]]:
        knobs = from_array(with_resources(point.knobs, logs))
        wafer = shared.budget.build(knobs, candidate.die_rows, candidate.die_cols, sides)
        result = estimate(wafer, shared.model, candidate.strategy, layout=layout)
        stages = result.stage_forward, result.stage_backward, candidate.strategy
        rest = result.step_time - pipeline.step_time(*stages)
        return rest + pipeline.step_time_bounds(*stages)[0], (result, rest)

    logs = log_resources(point.knobs)
    (lower, (result, rest)), slope = jax.value_and_grad(time_at, has_aux=True)(logs)
    return Tangent(
        weights=resource_seconds(lower, slope) * jnp.exp(-jnp.asarray(EXPONENTS) @ logs),
        stacks=(1.0 - result.margins["memory"]) * point.knobs[_COLUMN["dram_stacks"]],
        excess=jnp.max(log_ratios(result.margins)),
        forward=result.stage_forward,
        backward=result.stage_backward,
        rest=rest,
    )


def exact_times(strategy: Strategy, at: Tangent) -> Float[np.ndarray, " points"]:
    """Seconds per step at the points where tangents touch, the schedule replayed.

    Args:
        strategy: one per point.
        at: their tangents.
    """
    rows = (at.forward, at.backward, strategy)
    return at.rest + map_chunks(_replayed, None, rows, chunk=8, chunks_per_call=1)


def _replayed(_: None, stages: tuple[PerStage, PerStage, Strategy]) -> Scalar:
    return pipeline.replay(*stages)
