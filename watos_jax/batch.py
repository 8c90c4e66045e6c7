"""Any function of many points: chunks that fit the cache, over every local device; `watos_jax.sweeps` for whole spaces.

A chunk is one `vmap`; a device works through its chunks in a loop, and `shard_map` gives each device its own. On a
CPU a loop body runs on one core, so all cores are used only if JAX was started with as many host devices
(`XLA_FLAGS=--xla_force_host_platform_device_count=N`, which the command line sets).
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from watos_jax import programs
from watos_jax.xla import compiler_options

CHUNK = 2048
"""Points per chunk: enough that the fixed cost of some 150 kernels a chunk is small beside their work."""
CHUNKS_PER_CALL = 4
"""Chunks that one device works through per call; one shape, so one compilation, for any number of points."""


def map_chunks(
    function: Callable,
    shared: Any,
    points: Any,
    *,
    chunk: int = CHUNK,
    chunks_per_call: int = CHUNKS_PER_CALL,
    kept: Callable[[Any], Any] = lambda result: result,
) -> Any:
    """Apply a function to every row of a pytree, chunk by chunk, on every local device.

    Args:
        function: `function(shared, point)`, a module-level function (compiled once for each).
        shared: pytree of arrays that all points have in common; `placed`, if many calls share it.
        points: pytree of arrays with a common first axis.
        chunk: points per chunk.
        chunks_per_call: chunks that each device works through per call.
        kept: what is wanted of a result; the rest is not copied.

    Returns:
        Pytree of numpy arrays with the same first axis.
    """
    devices = len(jax.local_devices())
    points = jax.tree.map(np.asarray, points)
    count = len(jax.tree.leaves(points)[0])
    block = devices * chunk * chunks_per_call
    shared, results = _numbers(shared), []
    split = NamedSharding(_mesh(devices), PartitionSpec("device"))
    run: Callable | None = None
    for start in range(0, count, block):
        # a slice costs nothing; the last one is filled up with the last row
        whole = start + block <= count
        rows = slice(start, start + block) if whole else np.minimum(np.arange(start, start + block), count - 1)
        taken = jax.device_put(jax.tree.map(lambda leaf, rows=rows: _number(leaf[rows]), points), split)
        run = run or _program(function, chunk, devices, shared, taken)
        results.append(jax.tree.map(np.asarray, kept(run(shared, taken))))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)


def placed(shared: Any) -> Any:
    """Copy a pytree of arrays to every local device, once for many calls of `map_chunks`."""
    return jax.device_put(_numbers(shared), NamedSharding(_mesh(len(jax.local_devices())), PartitionSpec()))


def _numbers(tree: Any) -> Any:
    def number(leaf: Any) -> Array:
        if isinstance(leaf, jax.Array) and leaf.dtype in (jnp.result_type(float), np.int32):
            return leaf
        return jnp.asarray(_number(leaf))

    return jax.tree.map(number, tree)


def _number(leaf: Any) -> np.ndarray:
    # cast by numpy: JAX would cast with a program of its own, for each shape and type
    leaf = np.asarray(leaf)
    return leaf.astype(jnp.result_type(float) if leaf.dtype.kind == "f" else np.int32, copy=False)


def _mesh(devices: int) -> Mesh:
    return Mesh(np.array(jax.local_devices()[:devices]), ("device",))


def _program(function: Callable, chunk: int, devices: int, shared: Any, points: Any) -> Callable:
    # compiled: a program that is kept from another process, or traced here
    spread, mesh = _block(function, chunk, devices), _mesh(devices)
    leaves, structure = jax.tree.flatten((shared, points))
    count = len(jax.tree.leaves(shared))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("device",)))
    found = programs.kept(
        lambda *leaves: spread(*jax.tree.unflatten(structure, leaves)),
        f"{function.__module__}.{getattr(function, '__qualname__', '<unnamed>')}:{chunk}",
        (shared, points),
        tuple(whole if number < count else split for number in range(len(leaves))),
        compiler_options(),
    )
    if found is None:
        return _compiled(function, chunk, devices)
    return lambda *args: found(*jax.tree.leaves(args))


@cache
def _compiled(function: Callable, chunk: int, devices: int) -> Callable:
    return jax.jit(_block(function, chunk, devices), compiler_options=compiler_options())


@cache
def _block(function: Callable, chunk: int, devices: int) -> Callable:
    def on_device(shared: Any, points: Any) -> Any:
        chunks = jax.tree.map(lambda leaf: leaf.reshape((-1, chunk) + leaf.shape[1:]), points)
        results = jax.lax.map(lambda rows: jax.vmap(partial(function, shared))(rows), chunks)
        return jax.tree.map(lambda leaf: leaf.reshape((-1,) + leaf.shape[2:]), results)

    split = PartitionSpec("device")
    specs = (PartitionSpec(), split)
    return jax.shard_map(on_device, mesh=_mesh(devices), in_specs=specs, out_specs=split, check_vma=False)
