"""What runs on a device: the tiles of a part, decoded, estimated and reduced, one compilation for each shape."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from watos_jax.estimate import estimate
from watos_jax.strategy import Layout, Strategy
from watos_jax.sweeps import reduce
from watos_jax.sweeps.digits import decode
from watos_jax.sweeps.keep import Keep
from watos_jax.sweeps.metrics import METRICS, fits
from watos_jax.xla import compiler_options


class Kernel(NamedTuple):
    """What is static: one compilation each.

    Attributes:
        keep: what is answered.
        fidelity: operator model.
        hardware: hardware points of a tile.
        strategies: of a tile.
        tiles: most of a part on one device, where rows are kept.
        devices: how many.
        front: places of the Pareto front.
        structure: of a wafer as a pytree.
        positions: of the axes among its leaves.
        sizes: number of values of each digit.
        seed: of random points; None where all are taken.
    """

    keep: Keep
    fidelity: Any
    hardware: int
    strategies: int
    tiles: int
    devices: int
    front: int
    structure: Any
    positions: tuple[int, ...]
    sizes: tuple[int, ...]
    seed: int | None


class Job(NamedTuple):
    """One part, the same for every device; whole numbers.

    Attributes:
        base: digits of its first hardware point; see `digits.decode`.
        count: hardware points.
        num_strategies: of each.
        first_strategy: place of the first one in the table of strategies.
        first_layout: place of its layout in the table of layouts.
        template: row of the table of wafers.
        model: row of the table of models.
    """

    base: Any
    count: Any
    num_strategies: Any
    first_strategy: Any
    first_layout: Any
    template: Any
    model: Any


@cache
def compiled() -> Any:
    """The compiled function of a `Kernel`, the tables, a `Job`, and first and last tile of each device."""
    # options depend on the device, which must not be asked for when this module is imported
    return jax.jit(_evaluate_part, static_argnums=0, compiler_options=compiler_options())


def _evaluate_part(kernel: Kernel, shared: Any, job: Job, first: Array, stop: Array) -> reduce.State:
    """Work through the tiles `first` to `stop` of each device; every leaf of the result has an axis of devices."""
    across_devices = PartitionSpec("device")
    mesh = Mesh(np.array(jax.local_devices()[: kernel.devices]), ("device",))

    def on_device(shared: Any, job: Job, first: Array, stop: Array) -> reduce.State:
        wafers = shared[0]
        points = kernel.hardware * kernel.strategies
        state = reduce.start(kernel.keep, kernel.front, kernel.tiles, points, wafers.dtype)

        def step(number: Array, state: reduce.State) -> reduce.State:
            return reduce.update(kernel.keep, state, _tile(kernel, shared, job, number), number - first[0])

        done = jax.lax.fori_loop(first[0], stop[0], step, state)
        return jax.tree.map(lambda leaf: leaf[None], done)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), across_devices, across_devices),
        out_specs=across_devices,
        check_vma=False,
    )(shared, job, first, stop)


def _tile(kernel: Kernel, shared: Any, job: Job, number: Array) -> reduce.Tile:
    wafers, models, strategies, layouts, values, geometry = shared
    along = -(-job.num_strategies // kernel.strategies)
    hardware = number // along * kernel.hardware + jnp.arange(kernel.hardware, dtype=jnp.int32)
    block = number % along * kernel.strategies
    strategy = block + jnp.arange(kernel.strategies, dtype=jnp.int32)
    model = jax.tree.map(lambda leaf: leaf[job.model], models)

    def slab(leaf: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(leaf, job.first_strategy + block, kernel.strategies)

    chosen, places = jax.tree.map(slab, strategies), job.first_layout + slab(geometry)
    laid = jax.tree.map(lambda leaf: leaf[places], layouts)

    def design(offset: Array) -> Any:
        digits = decode(jnp, job.base, offset, kernel.sizes, kernel.seed)
        row = wafers[job.template + digits[0]]
        leaves = [row[position] for position in range(row.shape[0])]
        for position, digit, axis in zip(kernel.positions, digits[1:], values, strict=True):
            leaves[position] = axis[digit]
        return jax.tree.unflatten(kernel.structure, leaves)

    def measured(wafer: Any, strategy: Strategy, layout: Layout) -> dict[str, Array]:
        result = estimate(wafer, model, strategy, fidelity=kernel.fidelity, layout=layout)
        return {name: jnp.asarray(METRICS[name].of(wafer, result)) for name in kernel.keep.metrics}

    def one_hardware(offset: Array) -> dict[str, Array]:
        wafer = design(offset)
        if kernel.strategies == 1:
            alone = jax.tree.map(lambda leaf: leaf[0], (chosen, laid))
            return jax.tree.map(lambda leaf: leaf[None], measured(wafer, *alone))
        return jax.vmap(partial(measured, wafer))(chosen, laid)

    if kernel.hardware == 1:
        metrics = one_hardware(hardware[0])
    else:
        metrics = jax.tree.map(jnp.ravel, jax.vmap(one_hardware)(hardware))
    hardware, strategy = jnp.repeat(hardware, kernel.strategies), jnp.tile(strategy, kernel.hardware)
    valid = (hardware < job.count) & (strategy < job.num_strategies)
    return reduce.Tile(metrics, hardware, strategy, valid, valid & fits(metrics["margin"]))
