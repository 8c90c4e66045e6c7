"""Many estimates at once: chunks that fit the cache, over every local device, with the reduction on the device.

A chunk is one `vmap`; a device works through its chunks in a loop, and `shard_map` gives each device its own. On a
CPU a loop body runs on one core, so all cores are used only if JAX was started with as many host devices
(`XLA_FLAGS=--xla_force_host_platform_device_count=N`, which the command line sets).
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from watos_jax.estimate import Estimate, estimate
from watos_jax.hardware import System, Wafer
from watos_jax.model import Transformer
from watos_jax.relax import HARD, Relaxation
from watos_jax.strategy import Layout, Strategy
from watos_jax.units import Scalar
from watos_jax.xla import compiler_options

CHUNK = 2048
"""Points per chunk: enough that the fixed cost of some 150 kernels a chunk is small beside their work."""
CHUNKS_PER_CALL = 4
"""Chunks that one device works through per call; one shape, so one compilation, for any number of points."""


class Summary(NamedTuple):
    """What most searches need of an estimate.

    Attributes:
        step_time: s per optimizer step.
        tokens_per_second: global batch over step time.
        margin: smallest margin; negative where the design does not fit.
        memory: bytes per die at each stage's peak, shape (stages,).
    """

    step_time: Scalar
    tokens_per_second: Scalar
    margin: Scalar
    memory: Float[Array, " stages"]


def summary(result: Estimate) -> Summary:
    """Reduce an estimate to time, smallest margin and memory."""
    margins = jnp.stack(list(result.margins.values()))
    return Summary(result.step_time, result.tokens_per_second, jnp.min(margins), result.memory)


def map_chunks(
    function: Callable, shared: Any, points: Any, *, chunk: int = CHUNK, chunks_per_call: int = CHUNKS_PER_CALL
) -> Any:
    """Apply a function to every row of a pytree, chunk by chunk, on every local device.

    Args:
        function: `function(shared, point)`, a module-level function (compiled once for each).
        shared: pytree of arrays that all points have in common.
        points: pytree of arrays with a common first axis.
        chunk: points per chunk.
        chunks_per_call: chunks that each device works through per call.

    Returns:
        Pytree of numpy arrays with the same first axis.
    """
    devices = len(jax.local_devices())
    count = len(jax.tree.leaves(points)[0])
    block = devices * chunk * chunks_per_call
    shared, results = jax.tree.map(_number, shared), []
    for start in range(0, count, block):
        rows = np.minimum(np.arange(start, start + block), count - 1)
        taken = jax.tree.map(lambda leaf, rows=rows: _number(np.asarray(leaf)[rows]), points)
        results.append(jax.tree.map(np.asarray, _block(function, chunk, devices)(shared, taken)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)


def _number(leaf: Any) -> Array:
    return jnp.asarray(leaf, dtype=jnp.result_type(float) if np.asarray(leaf).dtype.kind == "f" else jnp.int32)


@cache
def _block(function: Callable, chunk: int, devices: int) -> Callable:
    def on_device(shared: Any, points: Any) -> Any:
        chunks = jax.tree.map(lambda leaf: leaf.reshape((-1, chunk) + leaf.shape[1:]), points)
        results = jax.lax.map(lambda rows: jax.vmap(partial(function, shared))(rows), chunks)
        return jax.tree.map(lambda leaf: leaf.reshape((-1,) + leaf.shape[2:]), results)

    return jax.jit(_sharded(on_device, devices, 1), compiler_options=compiler_options())


def _sharded(function: Callable, devices: int, num_split: int) -> Callable:
    # the first argument is the same on every device, the last `num_split` are split along their first axis
    mesh = Mesh(np.array(jax.local_devices()[:devices]), ("device",))
    split = PartitionSpec("device")
    return jax.shard_map(
        function, mesh=mesh, in_specs=(PartitionSpec(),) + (split,) * num_split, out_specs=split, check_vma=False
    )


class Sweep(NamedTuple):
    """The best and the distribution of all points of a sweep; infeasible points count only in `evaluated`.

    Attributes:
        tokens_per_second: of the best points, falling, shape (k,); 0 where fewer were feasible.
        system: index of the system of each, shape (k,); -1 where fewer were feasible.
        strategy: index of the strategy of each, shape (k,); likewise.
        histogram: feasible points per bin of `edges`, shape (bins,).
        edges: bounds of the bins, tokens per second, shape (bins + 1,).
        feasible: feasible points.
        evaluated: all points.
    """

    tokens_per_second: Float[np.ndarray, " k"]
    system: Int[np.ndarray, " k"]
    strategy: Int[np.ndarray, " k"]
    histogram: Int[np.ndarray, " bins"]
    edges: Float[np.ndarray, " edges"]
    feasible: int
    evaluated: int


class _Best(NamedTuple):
    value: Array
    system: Array
    strategy: Array
    histogram: Array
    feasible: Array


def sweep(
    systems: System | Wafer,
    model: Transformer,
    strategies: Strategy,
    layouts: Layout,
    *,
    top_k: int = 10,
    edges: Float[np.ndarray, " edges"] | None = None,
    relax: Relaxation = HARD,
    chunk: int = CHUNK,
    progress: Callable[[int], None] | None = None,
) -> Sweep:
    """Evaluate every strategy on every system in constant memory, keeping the best and a histogram.

    Args:
        systems: systems or wafers of one shape of network, stacked along a first axis.
        model: the transformer.
        strategies: strategies, stacked.
        layouts: the layout of each strategy, stacked.
        top_k: how many of the best to keep.
        edges: bounds of the histogram's bins, tokens per second; 64 bins per factor e from 1 to 1e9 where None.
        relax: hard or smooth.
        chunk: strategies per chunk.
        progress: called with the number of points after each call to the device.

    Returns:
        The best points, the histogram and the counts.
    """
    if edges is None:
        edges = np.geomspace(1.0, 1e9, 257)
    devices = len(jax.local_devices())
    num_systems = len(jax.tree.leaves(systems)[0])
    num_strategies = len(jax.tree.leaves(strategies)[0])
    per_system = -(-num_strategies // chunk)
    rows = np.minimum(np.arange(per_system * chunk), num_strategies - 1)
    table = jax.tree.map(lambda leaf: _number(np.asarray(leaf)[rows]), (strategies, layouts))
    shared = (
        jax.tree.map(_number, systems),
        jax.tree.map(_number, model),
        *table,
        _number(edges),
        jax.tree.map(_number, relax),
    )
    best = _Best(
        value=jnp.zeros((devices, top_k)),
        system=jnp.full((devices, top_k), -1, jnp.int32),
        strategy=jnp.full((devices, top_k), -1, jnp.int32),
        histogram=jnp.zeros((devices, len(edges) - 1), jnp.int32),
        feasible=jnp.zeros((devices,), jnp.int32),
    )
    totals = np.zeros(len(edges) - 1, np.int64)
    feasible = 0
    steps = max(1, min(256, -(-num_systems * per_system // devices)))
    for start in range(0, num_systems * per_system, devices * steps):
        first = start + np.arange(devices, dtype=np.int32) * steps
        best = _sweep_block((chunk, devices, steps, num_systems, num_strategies), shared, best, jnp.asarray(first))
        # counts leave the device each call, so that they cannot overflow 32 bits
        totals += np.asarray(best.histogram).sum(axis=0)
        feasible += int(np.asarray(best.feasible).sum())
        best = best._replace(histogram=jnp.zeros_like(best.histogram), feasible=jnp.zeros_like(best.feasible))
        if progress is not None:
            progress(min(start + devices * steps, num_systems * per_system) * num_strategies // per_system)
    values, system, strategy = (np.asarray(leaf).ravel() for leaf in best[:3])
    order = np.argsort(-values, kind="stable")[:top_k]
    return Sweep(
        values[order],
        system[order],
        strategy[order],
        totals,
        np.asarray(edges),
        feasible,
        num_systems * num_strategies,
    )


@partial(jax.jit, static_argnums=0)
def _sweep_block(sizes: tuple[int, int, int, int, int], shared: Any, best: _Best, first: Array) -> _Best:
    chunk, devices, steps, num_systems, num_strategies = sizes
    per_system = -(-num_strategies // chunk)

    def on_device(shared: Any, best: _Best, first: Array) -> _Best:
        systems, model, strategies, layouts, edges, relax = shared

        def step(carry: _Best, offset: Array) -> tuple[_Best, None]:
            position = first[0] + offset
            number, block = position // per_system, position % per_system
            safe = jnp.minimum(number, num_systems - 1)
            system = jax.tree.map(lambda leaf: leaf[safe], systems)
            rows = jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, block * chunk, chunk), (strategies, layouts)
            )

            def one(strategy: Strategy, layout: Layout) -> tuple[Scalar, Scalar]:
                result = summary(estimate(system, model, strategy, relax=relax, layout=layout))
                return result.tokens_per_second, result.margin

            rate, margin = jax.vmap(one)(*rows)
            index = block * chunk + jnp.arange(chunk, dtype=jnp.int32)
            counts = (margin >= 0.0) & (index < num_strategies) & (number < num_systems)
            value = jnp.where(counts, rate, 0.0)
            merged = jnp.concatenate([carry.value, value])
            top, where = jax.lax.top_k(merged, carry.value.shape[0])
            names = jnp.concatenate([carry.strategy, jnp.where(counts, index, -1)])
            owners = jnp.concatenate([carry.system, jnp.where(counts, number, -1).astype(jnp.int32)])
            bins = jnp.clip(jnp.searchsorted(edges, value, side="right") - 1, 0, edges.shape[0] - 2)
            histogram = carry.histogram.at[bins].add(counts.astype(jnp.int32))
            feasible = carry.feasible + jnp.sum(counts, dtype=jnp.int32)
            return _Best(top, owners[where], names[where], histogram, feasible), None

        mine = _Best(*(leaf[0] for leaf in best))
        done, _ = jax.lax.scan(step, mine, jnp.arange(steps, dtype=jnp.int32))
        return _Best(*(leaf[None] for leaf in done))

    return _sharded(on_device, devices, 2)(shared, best, first)
