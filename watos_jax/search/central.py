"""The central scheduler: every strategy of a machine, with recomputation and memory settled by GCMR.

All (tensor rectangle, pipeline, data, context, expert) layouts that tile the mesh, times micro-batches, sharding and
interleaving, each with its best levels of recomputation three ways: one level for all stages (`uniform`), the best
level of each stage in its own memory (`local`), and with memory shared (`shared`, GCMR). Strategies are ranked by the
quickest of the three; the first ones are solved again exactly and estimated at their levels.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING, Estimate, estimate
from watos_jax.hardware import System, Wafer
from watos_jax.model import Transformer
from watos_jax.pipeline import step_time
from watos_jax.recompute import Sharing, least_slowest, least_step, near_least_sum
from watos_jax.search.plan import every_option
from watos_jax.search.sharing import Levels, held_bytes, levels_of, shared_step_time, unshared
from watos_jax.search.space import Options, StrategySpace, strategies
from watos_jax.strategy import Layout, Strategy
from watos_jax.units import PerStage, Scalar

WAYS: Final = ("uniform", "local", "shared")
"""Ways of settling recomputation, each at least as quick as the one before."""
EXACT: Final = 20
"""Strategies that are solved again exactly."""
CHUNK: Final = 256
"""Strategies estimated at once, each at every level."""
CHUNKS_PER_CALL: Final = 32
"""Chunks that a device works through per call, where there are as many."""


class Scheduled(eqx.Module):
    """A strategy with its levels of recomputation and its shared memory.

    Attributes:
        strategy: `recompute` has one level per stage.
        layout: its layout.
        estimate: at these levels; its memory is what each stage needs, more than its own DRAM at senders.
        step_time: s, with what shipping takes.
        sent: bytes per die that each stage keeps elsewhere, shape (stages,).
        held: bytes per die that each stage keeps for others, shape (stages,).
    """

    strategy: Strategy
    layout: Layout
    estimate: Estimate
    step_time: Scalar
    sent: PerStage
    held: PerStage

    @property
    def tokens_per_second(self) -> Scalar:
        """Global batch over step time."""
        return self.estimate.tokens_per_second * self.estimate.step_time / self.step_time


@dataclass(frozen=True)
class Schedule:
    """The answer of the central scheduler.

    Attributes:
        best: the fastest strategies, fastest first; empty where none fits.
        evaluated: strategies solved, each at every level of recomputation.
        feasible: those that fit, by way of settling recomputation.
        least_step_time: the least step time of each way in s, as ranked; infinite where nothing fits.
        pruned: combinations of degrees that were ruled out before, by reason.
    """

    best: tuple[Scheduled, ...]
    evaluated: int
    feasible: dict[str, int]
    least_step_time: dict[str, float]
    pruned: dict[str, int] = field(default_factory=dict)


def central(
    system: System | Wafer,
    model: Transformer,
    *,
    options: Options | None = None,
    global_batch_size: int = 512,
    top: int = 1,
) -> Schedule:
    """Find the best strategies with recomputation and memory shared over the wafer.

    Args:
        system: the hardware, concrete.
        model: the transformer, concrete.
        options: what strategies may choose from; `every_option` where None. The levels of `recompute` are all
            considered whatever it says, and schedules other than 1F1B, interleaved or not, are left out.
        global_batch_size: sequences per optimizer step, where `options` is None.
        top: how many of the best to return, at most `EXACT`.

    Raises:
        ValueError: no strategy is legal on the system, or `top` is out of range.
    """
    if not 1 <= top <= EXACT:
        raise ValueError(f"top is {top}: it must be from 1 to {EXACT}")
    chosen = options or every_option(model, global_batch_size)
    space = strategies(system, model, replace(chosen, recompute=("none",), schedule=("1f1b",)))
    shared = (system, model, space.layouts)
    points = (space.strategies, space.geometry.astype(np.int32))
    calls = CHUNKS_PER_CALL if len(space) > CHUNK * CHUNKS_PER_CALL else 1
    times = map_chunks(_outcome, shared, points, chunk=CHUNK, chunks_per_call=calls)
    order = np.argsort(times[:, -1], kind="stable")[:EXACT]
    solved = [_solved(system, model, space, int(row)) for row in order if np.isfinite(times[row, -1])]
    found = sorted((one for one in solved if one is not None), key=lambda one: float(one.step_time))
    return Schedule(
        best=tuple(found[:top]),
        evaluated=len(space),
        feasible={way: int(np.isfinite(times[:, i]).sum()) for i, way in enumerate(WAYS)},
        least_step_time={way: float(times[:, i].min()) for i, way in enumerate(WAYS)},
        pruned=space.pruned,
    )


def _outcome(
    shared: tuple[System | Wafer, Transformer, Layout], point: tuple[Strategy, Int[Array, ""]]
) -> Float[Array, " ways"]:
    # step time of each of `WAYS`, infinite where it does not fit
    (system, model, layouts), (strategy, geometry) = shared, point
    levels = levels_of(system, model, strategy, jax.tree.map(lambda leaf: leaf[geometry], layouts))
    plain = step_time(levels.base.stage_forward, levels.base.stage_backward, strategy)
    closed = jax.vmap(lambda f, b: step_time(f, b, strategy))(levels.forward, levels.backward)
    fits = jnp.all(levels.given.room >= 0.0, axis=-1)
    uniform = jnp.min(jnp.where(fits, levels.base.step_time + (closed - plain), jnp.inf))
    own = unshared(levels)
    local = jnp.where(own.fits, shared_step_time(levels, strategy, own), jnp.inf)
    slowest = least_slowest(levels.given)
    pooled = near_least_sum(levels.given, slowest.slowest)[0]
    together = jnp.where(slowest.fits, shared_step_time(levels, strategy, pooled), jnp.inf)
    ways = jnp.stack([uniform, jnp.minimum(uniform, local), jnp.minimum(jnp.minimum(uniform, local), together)])
    power = levels.base.margins.get("power", jnp.zeros(()))
    return jnp.where(power >= -ROUNDING, ways, jnp.inf)


def _floats(tree: Any) -> Any:
    # one type for floats and arrays alike, so that every strategy finds the same compilation
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), tree)


def _solved(system: System | Wafer, model: Transformer, space: StrategySpace, row: int) -> Scheduled | None:
    strategy, layout = space.strategy(row), space.layout(row)
    levels = levels_of(*_floats((system, model, strategy, layout)))
    weight = float(strategy.num_micro_batches * strategy.virtual_stages) - 1.0
    exact = least_step(levels.given, weight)
    alone = unshared(levels)
    answers = [_scheduled(system, model, strategy, layout, levels, exact[0])] if exact is not None else []
    if bool(alone.fits):
        answers.append(_scheduled(system, model, strategy, layout, levels, alone))
    fitting = [one for one in answers if float(one.estimate.margins.get("power", 0.0)) >= -ROUNDING]
    return min(fitting, key=lambda one: float(one.step_time), default=None)


def _scheduled(
    system: System | Wafer, model: Transformer, strategy: Strategy, layout: Layout, levels: Levels, taken: Sharing
) -> Scheduled:
    number = int(strategy.pipeline_parallel)
    per_stage = eqx.tree_at(lambda s: s.recompute, strategy, np.asarray(taken.level[:number], float))
    answer = estimate(system, model, per_stage, layout=layout)
    return Scheduled(
        strategy=per_stage,
        layout=layout,
        estimate=answer,
        step_time=shared_step_time(levels, strategy, taken, answer),
        sent=jnp.maximum(-taken.supply, 0.0)[:number],
        held=held_bytes(taken)[:number],
    )
