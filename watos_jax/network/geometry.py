"""Which device of a network holds which part of a strategy.

On a mesh, torus or ring innermost, tensor groups are `tensor_rows x tensor_cols` rectangles that tile it (dies
left over idle, rectangles are not rotated), ordered as a serpentine: along the first row of rectangles, back along
the second. Rectangle `(replica * pipeline + stage) * context + part` of that order holds a part of a stage, so
that consecutive stages are neighbours. Where such a mesh is one of several (wafers under a switch), a wafer is
filled with whole replicas if at least one fits, as evenly as their number divides; else stages run on from wafer
to wafer. Where experts would then be spread over wafers, and all replicas of a few stages fit one, each wafer holds as
many stages of all replicas.

On a mesh with damage rectangles are laid on living dies (`tiling`), in the order of a serpentine over their corners.

On switches innermost (GPU clusters) ranks are numbered as in Megatron-LM: tensor fastest, then context, then data
(with experts inside), then pipeline.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from watos_jax.network.contention import Network
from watos_jax.network.tiling import corners, usable
from watos_jax.network.topology import snake
from watos_jax.strategy import Strategy
from watos_jax.units import concrete


class Geometry(NamedTuple):
    """The whole numbers of a strategy that decide its layout.

    Attributes:
        tensor_rows: rows of the rectangle of a tensor group.
        tensor_cols: its columns.
        pipeline: pipeline stages.
        data: replicas.
        context: parts of a sequence.
        expert: parts of the experts.
        interleaved: whether a device holds several stages of the model.
        tensor_collective: index into `TENSOR_COLLECTIVES`.
    """

    tensor_rows: int = 1
    tensor_cols: int = 1
    pipeline: int = 1
    data: int = 1
    context: int = 1
    expert: int = 1
    interleaved: bool = False
    tensor_collective: int = 0

    @property
    def tensor(self) -> int:
        """Devices of a tensor group."""
        return self.tensor_rows * self.tensor_cols

    @property
    def slots(self) -> int:
        """Tensor groups."""
        return self.pipeline * self.data * self.context

    @staticmethod
    def of(strategy: Strategy) -> "Geometry":
        """Read the geometry of one strategy.

        Raises:
            ValueError: where a degree is traced or stacked.
        """
        fields = {
            "tensor_rows": strategy.tensor_rows,
            "tensor_cols": strategy.tensor_cols,
            "pipeline_parallel": strategy.pipeline_parallel,
            "data_parallel": strategy.data_parallel,
            "context_parallel": strategy.context_parallel,
            "expert_parallel": strategy.expert_parallel,
            "virtual_stages": strategy.virtual_stages,
            "tensor_collective": strategy.tensor_collective,
        }
        numbers = []
        for name, value in fields.items():
            number = concrete(value)
            if number is None or number.size != 1:
                raise ValueError(f"strategy.{name} is traced or stacked: pass layout=... explicitly")
            numbers.append(int(number))
        rows, cols, pipeline, data, context, expert, virtual, collective = numbers
        return Geometry(rows, cols, pipeline, data, context, expert, virtual > 1, collective)


def misfit(network: Network, geometry: Geometry) -> str | None:
    """Say in one sentence why a geometry cannot be placed on a network, or None where it can."""
    fabric = network.fabrics[0]
    needed = geometry.tensor * geometry.slots
    if not fabric.is_switch:
        if geometry.tensor_rows > fabric.rows:
            return f"tensor_rows is {geometry.tensor_rows}: it must be at most the {fabric.rows} rows of dies"
        if geometry.tensor_cols > fabric.cols:
            return f"tensor_cols is {geometry.tensor_cols}: it must be at most the {fabric.cols} columns of dies"
    if needed > num_usable(network):
        of = "of the system" if fabric.damage is None else "that live and are joined"
        return f"the strategy needs {needed} dies: it must need at most the {num_usable(network)} {of}"
    if not fabric.is_switch and geometry.slots > num_rectangles(network, geometry):
        rows, cols = geometry.tensor_rows, geometry.tensor_cols
        turned = num_rectangles(network, geometry._replace(tensor_rows=cols, tensor_cols=rows))
        where = "the system" if fabric.damage is None else "the living dies"
        hint = f" ({cols} x {rows} would do)" if turned >= geometry.slots else ""
        return (
            f"the strategy needs {geometry.slots} rectangles of {rows} x {cols} dies: it must need at most the "
            f"{num_rectangles(network, geometry)} that tile {where}{hint}"
        )
    peers = geometry.data * geometry.context
    if peers % geometry.expert:
        return f"expert_parallel is {geometry.expert}: it must divide data_parallel * context_parallel = {peers}"
    if geometry.tensor_collective not in (0, 1):
        return f"tensor_collective is {geometry.tensor_collective}: it must be 0 (ring) or 1 (row_column)"
    return None


def num_usable(network: Network) -> int:
    """Devices that can take work: all but those that damage cuts off."""
    fabric = network.fabrics[0]
    if fabric.damage is None or fabric.damage.hosts:
        return network.num_devices
    return len(usable(fabric)) * (network.num_devices // fabric.num_nodes)


def num_rectangles(network: Network, geometry: Geometry) -> int:
    """Tensor rectangles that the whole system holds."""
    fabric = network.fabrics[0]
    if fabric.damage is not None and not fabric.damage.hosts:
        return len(corners(fabric, geometry.tensor_rows, geometry.tensor_cols))
    tiles = (fabric.rows // geometry.tensor_rows) * (fabric.cols // geometry.tensor_cols)
    return tiles * (network.num_devices // fabric.num_nodes)


def rectangles(network: Network, geometry: Geometry) -> Int[np.ndarray, "rectangles dies"]:
    """Dies of each tensor rectangle of one innermost mesh, rectangles in serpentine order, dies row by row."""
    fabric = network.fabrics[0]
    rows, cols, damage = geometry.tensor_rows, geometry.tensor_cols, fabric.damage
    inside = (np.arange(rows)[:, None] * fabric.cols + np.arange(cols)).ravel()
    if damage is not None and not damage.hosts:
        return np.array(corners(fabric, rows, cols), int)[:, None] + inside
    across = fabric.cols // cols
    order = snake(fabric.rows // rows, across)
    corner = order // across * rows * fabric.cols + order % across * cols
    dies = corner[:, None] + inside
    return dies if damage is None else np.array(damage.hosts)[dies]


def _slots(network: Network, geometry: Geometry, per_mesh: int) -> np.ndarray:
    """Rectangle of the whole system that each (replica, stage, part) takes, counted through the meshes."""
    slots = np.arange(geometry.slots)
    meshes = network.num_devices // network.fabrics[0].num_nodes
    if meshes == 1:
        return slots
    replica = geometry.pipeline * geometry.context
    together = min(per_mesh // replica, geometry.data)
    even = [q for q in range(1, together + 1) if geometry.data % q == 0 and geometry.data // q <= meshes]
    together = even[-1] if even else together
    whole = together * meshes >= geometry.data
    apart = geometry.expert > 1 and not (whole and together * geometry.context % geometry.expert == 0)
    each = -(-geometry.pipeline // meshes)
    if apart and each * geometry.data * geometry.context <= per_mesh:
        copy, stage, part = np.unravel_index(slots, (geometry.data, geometry.pipeline, geometry.context))
        return stage // each * per_mesh + (copy * each + stage % each) * geometry.context + part
    if not whole:
        return slots
    mesh, place = np.divmod(slots, together * replica)
    return mesh * per_mesh + place


def devices(
    network: Network, geometry: Geometry, order: np.ndarray | None = None
) -> Int[np.ndarray, "data pipeline context tensor"]:
    """Device that holds each part of a strategy.

    Args:
        network: the tiers.
        geometry: a geometry that fits, see `misfit`.
        order: position in the serpentine of each slot `(replica * pipeline + stage) * context + part`, shape
            (slots,); the slot itself where None. Ignored on switches.
    """
    shape = (geometry.data, geometry.pipeline, geometry.context, geometry.tensor)
    if network.fabrics[0].is_switch:
        ranks = np.arange(geometry.slots * geometry.tensor)
        pipeline_first = (geometry.pipeline, geometry.data, geometry.context, geometry.tensor)
        return ranks.reshape(pipeline_first).swapaxes(0, 1)
    tiles = rectangles(network, geometry)
    slots = _slots(network, geometry, len(tiles)) if order is None else np.asarray(order)
    mesh, place = np.divmod(slots, len(tiles))
    return (mesh[:, None] * network.fabrics[0].num_nodes + tiles[place]).reshape(shape)
