"""From a system and a strategy to a `Layout`: link loads and hops of every communication of a training step.

All groups of one kind run at once (every tensor group, every data-parallel group of every stage, every stage
boundary) and share links; different kinds of communication do not overlap on a link. Computed in numpy when
strategies are enumerated and cached by whole numbers, so that bandwidths and latencies of the system may be
anything, traced included.
"""

from collections.abc import Sequence
from functools import lru_cache

import jax
import numpy as np
from jaxtyping import Int

from watos_jax.hardware import System, Wafer
from watos_jax.network.collectives import (
    hierarchical_all_reduce,
    nothing,
)
from watos_jax.network.contention import Network, flow_hops, worst_loads_of_sets
from watos_jax.network.exchanges import all_to_all, point_to_point
from watos_jax.network.geometry import Geometry, devices, misfit, num_rectangles
from watos_jax.network.rectangles import best_ring_all_reduce, row_column
from watos_jax.strategy import TENSOR_COLLECTIVES, Collective, Layout, Strategy

STAGE_MULTIPLE = 8
"""Padded stages are a multiple of this, so that few array shapes occur."""


def fits(system: System | Wafer, strategy: Strategy) -> str | None:
    """Say in one sentence why a strategy cannot be placed on a system, or None where it can.

    Args:
        system: the hardware; a wafer is a system of one mesh.
        strategy: one strategy.

    Returns:
        The argument, its value and the rule that it breaks; or None.
    """
    return misfit(Network.of(system), Geometry.of(strategy))


def layout(
    system: System | Wafer,
    strategy: Strategy,
    *,
    max_stages: int | None = None,
    order: Sequence[int] | Int[np.ndarray, " slots"] | None = None,
) -> Layout:
    """What the network of a system makes of a strategy.

    Args:
        system: the hardware; a wafer is a system of one mesh. Only the shape of its tiers is read.
        strategy: one strategy.
        max_stages: padded number of stages; the pipeline rounded up to a multiple of 8 where None.
        order: rectangle, counted along the serpentine, of each slot `(replica * pipeline + stage) * context +
            part`; the slot itself where None. For meshes only.

    Returns:
        Coefficients as numpy arrays, shapes (tiers,) and (max_stages, tiers); read-only, for they are shared.

    Raises:
        ValueError: where the strategy does not fit, or rows, columns or degrees are traced.
    """
    key = None if order is None else tuple(int(slot) for slot in order)
    return layout_of(Network.of(system), Geometry.of(strategy), max_stages=max_stages, order=key)


def layouts(system: System | Wafer, strategies: Sequence[Strategy], *, max_stages: int | None = None) -> Layout:
    """Layouts of many strategies on one system, stacked along a new first axis for `jax.vmap`.

    Args:
        system: the hardware.
        strategies: strategies that fit.
        max_stages: padded number of stages of all; the longest pipeline rounded up to a multiple of 8 where None.
    """
    network = Network.of(system)
    geometries = [Geometry.of(strategy) for strategy in strategies]
    if max_stages is None:
        max_stages = padded(max(geometry.pipeline for geometry in geometries))
    rows = [layout_of(network, geometry, max_stages=max_stages) for geometry in geometries]
    stacked: Layout = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    return stacked


def padded(pipeline: int) -> int:
    """A number of stages rounded up to a multiple of 8."""
    return -(-pipeline // STAGE_MULTIPLE) * STAGE_MULTIPLE


@lru_cache(maxsize=1)
def _structure() -> jax.tree_util.PyTreeDef:
    """A `Layout` with its collectives as leaves: rebuilding skips constructors, which cost more than numbers."""
    none, stages = nothing(Network(())), np.zeros((1, 0))
    empty = Layout(none, none, none, none, none, stages, stages)
    return jax.tree.structure(empty, is_leaf=lambda node: isinstance(node, Collective))


@lru_cache(maxsize=65536)
def layout_of(
    network: Network, geometry: Geometry, *, max_stages: int | None = None, order: tuple[int, ...] | None = None
) -> Layout:
    """The layout of whole numbers, cached; see `layout`."""
    reason = misfit(network, geometry) or _bad_order(network, geometry, order)
    if reason is not None:
        raise ValueError(reason)
    if max_stages is None:
        max_stages = padded(geometry.pipeline)
    if max_stages < geometry.pipeline:
        raise ValueError(f"max_stages is {max_stages}: it must be at least the {geometry.pipeline} pipeline stages")
    # of several wafers experts decide how they are filled
    expert = 1 if network.num_tiers == 1 else geometry.expert
    place = geometry._replace(expert=expert, interleaved=False, tensor_collective=0)
    boundaries = geometry.pipeline - 1 + geometry.interleaved if geometry.pipeline > 1 else 0
    parts = (
        _tensor(network, place, order, geometry.tensor_collective),
        *_replicas(network, place, order),
        *_experts(network, place, order, geometry.expert),
        *_pipeline(network, place, order, boundaries, max_stages),
    )
    built: Layout = jax.tree.unflatten(_structure(), parts)
    return built


def _bad_order(network: Network, geometry: Geometry, order: tuple[int, ...] | None) -> str | None:
    """Say why an order of slots is not one, or None."""
    if order is None:
        return None
    if len(order) != geometry.slots or len(set(order)) != len(order):
        return f"order has {len(set(order))} different rectangles: it must have {geometry.slots}, one per slot"
    tiles = num_rectangles(network, geometry)
    if min(order) < 0 or max(order) >= tiles:
        return f"order reaches from {min(order)} to {max(order)}: it must stay in 0 to {tiles - 1}"
    return None


@lru_cache(maxsize=256)
def _held(network: Network, place: Geometry, order: tuple[int, ...] | None) -> np.ndarray:
    """Device of each part, shape (data, pipeline, context, tensor); see `geometry.devices`."""
    return devices(network, place, None if order is None else np.array(order))


def _tensor(network: Network, place: Geometry, order: tuple[int, ...] | None, code: int) -> Collective:
    """All-reduce within the tensor groups.

    Rectangles of a whole mesh are disjoint and XY routes stay inside them: one stands for all. On a torus, and round
    damage, routes may leave.
    """
    if place.tensor == 1:
        return nothing(network)
    if network.fabrics[0].kind == "mesh" and network.fabrics[0].damage is None:
        place, order = Geometry(place.tensor_rows, place.tensor_cols), None
    return _tensor_groups(network, place, order, code)


@lru_cache(maxsize=65536)
def _tensor_groups(network: Network, place: Geometry, order: tuple[int, ...] | None, code: int) -> Collective:
    groups = _held(network, place, order).reshape(-1, place.tensor)
    if network.fabrics[0].is_switch:
        return hierarchical_all_reduce(network, groups)
    if TENSOR_COLLECTIVES[code] == "row_column":
        return row_column(network, groups, place.tensor_rows, place.tensor_cols)
    return best_ring_all_reduce(network, groups, place.tensor_rows, place.tensor_cols)


def _peers(network: Network, place: Geometry, order: tuple[int, ...] | None) -> np.ndarray:
    """Devices with the same share of a stage, replica by replica, part by part; shape (groups, peers)."""
    return _held(network, place, order).transpose(1, 3, 0, 2).reshape(-1, place.data * place.context)


@lru_cache(maxsize=65536)
def _replicas(network: Network, place: Geometry, order: tuple[int, ...] | None) -> tuple[Collective, Collective]:
    """All-reduce across replicas and context parts, and one step of the ring between context parts."""
    context = nothing(network)
    if place.context > 1:
        held = _held(network, place, order)
        context = point_to_point(network, held, np.roll(held, -1, axis=2))
    return hierarchical_all_reduce(network, _peers(network, place, order)), context


@lru_cache(maxsize=65536)
def _experts(
    network: Network, place: Geometry, order: tuple[int, ...] | None, expert: int
) -> tuple[Collective, Collective]:
    """All-to-all of `expert` consecutive peers, and all-reduce across peers that hold the same experts."""
    if expert == 1:
        return nothing(network), _replicas(network, place, order)[0]
    spread = _peers(network, place, order)
    spread = spread.reshape(len(spread), -1, expert)
    same = spread.swapaxes(1, 2).reshape(-1, spread.shape[1])
    return all_to_all(network, spread.reshape(-1, expert)), hierarchical_all_reduce(network, same)


@lru_cache(maxsize=65536)
def _pipeline(
    network: Network, place: Geometry, order: tuple[int, ...] | None, boundaries: int, max_stages: int
) -> tuple[np.ndarray, np.ndarray]:
    """Worst link load and hops of the boundary after each stage, padded; all boundaries and replicas at once."""
    volume, steps = np.zeros((2, max_stages, network.num_tiers))
    if boundaries:
        stages = _held(network, place, order).swapaxes(0, 1).reshape(place.pipeline, -1)
        source, target = stages[:boundaries], np.concatenate((stages[1:], stages[:1]))[:boundaries]
        volume[:boundaries] = worst_loads_of_sets(network, source, target)
        steps[:boundaries] = flow_hops(network, source, target).max(axis=2).T
    volume.flags.writeable = steps.flags.writeable = False
    return volume, steps


def placement_map(
    system: System | Wafer, strategy: Strategy, *, order: Sequence[int] | None = None
) -> Int[np.ndarray, "rows cols"]:
    """What each die of a mesh holds, for drawing.

    Args:
        system: the hardware, with a mesh, torus or ring innermost.
        strategy: one strategy that fits.
        order: see `layout`.

    Returns:
        `replica * pipeline + stage` on each die, -1 where it idles; shape (rows, cols) of the innermost tier,
        meshes of the outer tiers one below the other.
    """
    network, geometry = Network.of(system), Geometry.of(strategy)
    key = None if order is None else tuple(int(slot) for slot in order)
    reason = misfit(network, geometry) or _bad_order(network, geometry, key)
    if reason is not None:
        raise ValueError(reason)
    held = devices(network, geometry, None if key is None else np.array(key))
    dies = np.full(network.num_devices, -1)
    stage = np.arange(geometry.data * geometry.pipeline).reshape(geometry.data, geometry.pipeline, 1, 1)
    dies[held] = np.broadcast_to(stage, held.shape)
    return dies.reshape(-1, network.fabrics[0].cols)
