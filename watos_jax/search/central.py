"""The central scheduler: every strategy of a machine, with recomputation and memory settled by GCMR.

All (tensor rectangle, pipeline, data, context, expert) layouts that tile the mesh, times micro-batches, sharding and
interleaving, each with its best levels of recomputation three ways: one level for all stages (`uniform`), the best
level of each stage in its own memory (`local`), and with memory shared (`shared`, GCMR). Strategies are ranked by the
quickest of the three; the first ones are solved again exactly, placed on the mesh, and scored with real distances.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING
from watos_jax.hardware import System, Wafer
from watos_jax.model import Transformer
from watos_jax.pipeline import step_time
from watos_jax.recompute import Sharing, least_slowest, least_step, near_least_sum
from watos_jax.search.placed import Placed, placed
from watos_jax.search.plan import every_option
from watos_jax.search.sharing import Levels, levels_of, shared_step_time, unshared
from watos_jax.search.space import Options, strategies
from watos_jax.strategy import Layout, Strategy

WAYS: Final = ("uniform", "local", "shared")
"""Ways of settling recomputation, each at least as quick as the one before."""
EXACT: Final = 20
"""Strategies that are solved again exactly."""
PLACED: Final = 3
"""Strategies that are placed on the mesh beside those asked for."""
CHUNK: Final = 256
"""Strategies estimated at once, each at every level."""
CHUNKS_PER_CALL: Final = 32
"""Chunks that a device works through per call, where there are as many."""


class Settled(NamedTuple):
    """A strategy whose recomputation is settled, not yet placed.

    Attributes:
        step_time: s, with neighbours as helpers.
        strategy: with one level of recomputation per stage.
        sent: bytes per die that each stage keeps elsewhere.
        room: bytes per die that each stage can keep for others.
    """

    step_time: float
    strategy: Strategy
    sent: Float[np.ndarray, " stages"]
    room: Float[np.ndarray, " stages"]


@dataclass(frozen=True)
class Schedule:
    """The answer of the central scheduler.

    Attributes:
        best: the fastest strategies, fastest first; empty where none fits.
        evaluated: strategies solved, each at every level of recomputation.
        feasible: those that fit, by way of settling recomputation.
        least_step_time: the least step time of each way in s, as ranked; infinite where nothing fits.
        exceeded: strategies that fit in no way, by the limit that they exceed.
        pruned: combinations of degrees that were ruled out before, by reason.
    """

    best: tuple[Placed, ...]
    evaluated: int
    feasible: dict[str, int]
    least_step_time: dict[str, float]
    exceeded: dict[str, int] = field(default_factory=dict)
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
    shared = (system, model, space.roomy_layouts)
    points = (space.strategies, space.geometry.astype(np.int32))
    calls = CHUNKS_PER_CALL if len(space) > CHUNK * CHUNKS_PER_CALL else 1
    times, has_power = map_chunks(_outcome, shared, points, chunk=CHUNK, chunks_per_call=calls)
    unfit = {"power": ~has_power, "memory": has_power & ~np.isfinite(times[:, -1])}
    order = np.argsort(times[:, -1], kind="stable")[:EXACT]
    rows = [int(row) for row in order if np.isfinite(times[row, -1])]
    solved = (settled(system, model, space.strategy(row), space.layout(row)) for row in rows)
    found = sorted((one for several in solved for one in several), key=lambda one: one.step_time)
    # those that ship may lose by real distances: the best that do not are placed as well
    first = found[: top + PLACED] + [c for c in found[top + PLACED :] if not c.sent.any()][:top]
    placings = (placed(system, model, c.strategy, c.sent, c.room) for c in first)
    fitting = [one for one in placings if float(one.estimate.margins.get("power", 0.0)) >= -ROUNDING]
    best = sorted(fitting, key=lambda one: float(one.step_time))
    return Schedule(
        best=tuple(best[:top]),
        evaluated=len(space),
        feasible={way: int(np.isfinite(times[:, i]).sum()) for i, way in enumerate(WAYS)},
        least_step_time={way: float(times[:, i].min()) for i, way in enumerate(WAYS)},
        exceeded={limit: int(which.sum()) for limit, which in unfit.items() if which.any()},
        pruned=space.pruned,
    )


def _outcome(
    shared: tuple[System | Wafer, Transformer, Layout], point: tuple[Strategy, Int[Array, ""]]
) -> tuple[Float[Array, " ways"], Bool[Array, ""]]:
    (system, model, layouts), (strategy, geometry) = shared, point
    levels = levels_of(system, model, strategy, jax.tree.map(lambda leaf: leaf[geometry], layouts))
    return _step_times(levels, strategy), _has_power(levels)


def step_times(system: System | Wafer, model: Transformer, strategy: Strategy, layout: Layout) -> Float[Array, " ways"]:
    """Step time in s of each of `WAYS`, infinite where it does not fit or needs too much power; may be traced.

    Args:
        system: the hardware.
        model: the transformer.
        strategy: one strategy; its own `recompute` is not read.
        layout: what the network makes of it.
    """
    return _step_times(levels_of(system, model, strategy, layout), strategy)


def _step_times(levels: Levels, strategy: Strategy) -> Float[Array, " ways"]:
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
    return jnp.where(_has_power(levels), ways, jnp.inf)


def _has_power(levels: Levels) -> Bool[Array, ""]:
    return levels.base.margins.get("power", jnp.zeros(())) >= -ROUNDING


def _floats(tree: Any) -> Any:
    # one type for floats and arrays alike, so that every strategy finds the same compilation
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), tree)


def settled(system: System | Wafer, model: Transformer, strategy: Strategy, layout: Layout) -> list[Settled]:
    """Settle recomputation exactly, with memory shared and the best with nothing shared; empty where nothing fits.

    Args:
        system: the hardware, concrete.
        model: the transformer.
        strategy: one strategy; its own `recompute` is not read.
        layout: what the network makes of it.
    """
    levels = levels_of(*_floats((system, model, strategy, layout)))
    exact = least_step(levels.given, float(strategy.num_micro_batches * strategy.virtual_stages) - 1.0)
    alone = unshared(levels)
    answers = ([exact[0]] if exact is not None else []) + ([alone] if bool(alone.fits) else [])
    return [_settled(levels, strategy, taken) for taken in answers]


def _settled(levels: Levels, strategy: Strategy, taken: Sharing) -> Settled:
    number = int(strategy.pipeline_parallel)
    supply = np.asarray(taken.supply[:number], float)
    per_stage = eqx.tree_at(lambda s: s.recompute, strategy, np.asarray(taken.level[:number], float))
    step = float(shared_step_time(levels, strategy, taken))
    return Settled(step, per_stage, np.maximum(-supply, 0.0), np.maximum(supply, 0.0))
