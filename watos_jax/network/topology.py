"""Fabrics (mesh, torus, ring, switch) as directed graphs, dimension-order routing on them, and orders of a grid.

Nodes of a fabric of `rows x cols` are numbered `row * cols + col`. On a grid a flow goes along its row to the
column of its destination and then along that column (XY routing); every link is two directed links, one each way.
A torus takes the shorter way round and, where both are equal, the way of growing positions, as static routing
tables do; a dimension of fewer than three nodes has no wrap-around link. A switch gives every node one link in and
one link out and never blocks inside.

A mesh with damage has the routes of `detours`.

Neglects: adaptive routes, virtual channels, and arbitration losses inside a router.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from watos_jax.network.detours import Damage, routes

Nodes = Int[np.ndarray, "..."]
"""Node numbers of flow ends, any shape."""

EAST: Final = 0
WEST: Final = 1
SOUTH: Final = 2
NORTH: Final = 3
"""Index of a direction in the first axis of `link_loads`."""


@dataclass(frozen=True)
class Fabric:
    """One tier of a network without its numbers: who is joined to whom.

    Attributes:
        kind: "mesh", "torus", "ring" or "switch".
        rows: rows of nodes.
        cols: columns of nodes.
        damage: dead and narrow links of a mesh; None where it is whole.
    """

    kind: str
    rows: int
    cols: int
    damage: Damage | None = None

    @property
    def num_nodes(self) -> int:
        """Nodes of the fabric."""
        return self.rows * self.cols

    @property
    def is_switch(self) -> bool:
        """Whether any two nodes are one hop apart, each with its own link."""
        return self.kind == "switch"

    def wraps(self, size: int) -> bool:
        """Whether a dimension of `size` nodes is closed by a wrap-around link."""
        return self.kind in ("torus", "ring") and size > 2


def _distance(fabric: Fabric, size: int, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Hops between two positions of one dimension."""
    apart = np.abs(stop - start)
    return np.minimum(apart, size - apart) if fabric.wraps(size) else apart


def hops(fabric: Fabric, source: Nodes, target: Nodes) -> Nodes:
    """Links that a flow crosses: `|row - row'| + |col - col'|` on a grid, 1 through a switch, 0 to itself.

    Args:
        fabric: the graph.
        source: node that sends.
        target: node that receives, same shape.

    Returns:
        Number of links, same shape.

    Raises:
        ValueError: damage leaves no way.
    """
    if fabric.is_switch:
        return (source != target).astype(int)
    cols = fabric.cols
    if fabric.damage is not None:
        found = routes(fabric.rows, cols, fabric.damage.links).hops[source, target]
        if (found < 0).any():
            cut = np.argwhere(found < 0)[0]
            ends = int(source[tuple(cut)]), int(target[tuple(cut)])
            raise ValueError(f"dies {ends[0]} and {ends[1]} must talk: no living links join them")
        return found
    across = _distance(fabric, cols, source % cols, target % cols)
    return across + _distance(fabric, fabric.rows, source // cols, target // cols)


def _segment_loads(
    wraps: bool,
    size: int,
    num_lines: int,
    line: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    weight: np.ndarray,
) -> np.ndarray:
    """Load of each link of parallel lines of `size` nodes, from a difference array.

    Each segment adds its weight at its first link and takes it back behind its last; a running sum gives the
    loads.

    Returns:
        Shape (2, num_lines, size): `[0, l, i]` loads the link from node i to i + 1 of line l, `[1, l, i]` the link
        back.
    """
    if wraps:
        ahead = (stop - start) % size
        back = 2 * ahead > size
        extent = 2 * size  # a segment may run past the end; the second half is folded back
        row = (line + num_lines * back) * extent
        first = np.where(back, stop, start)
        last = first + np.where(back, size - ahead, ahead)
    else:
        extent = size + 1
        row = (line + num_lines * (stop < start)) * extent
        first, last = np.minimum(start, stop), np.maximum(start, stop)
    length = 2 * num_lines * extent
    change = np.bincount(row + first, weight, length) - np.bincount(row + last, weight, length)
    loads = change.reshape(2, num_lines, extent).cumsum(-1)
    return loads[..., :size] + loads[..., size:] if wraps else loads[..., :size]


def grid_loads(
    fabric: Fabric, source: Nodes, target: Nodes, weight: np.ndarray, batch: Nodes, num_batches: int
) -> tuple[np.ndarray, np.ndarray]:
    """Loads of the links along rows and along columns of copies of a grid, for flows routed XY, or round damage.

    The load of a narrow link is divided by the share of its bandwidth that is left.

    Args:
        fabric: mesh, torus or ring.
        source: node that sends, shape (flows,).
        target: node that receives, shape (flows,).
        weight: load of each flow, shape (flows,).
        batch: which copy of the grid each flow runs on, shape (flows,).
        num_batches: number of copies.

    Returns:
        Along rows, shape (2, num_batches, rows, cols), and along columns, shape (2, num_batches, cols, rows):
        first axis 0 for links towards larger positions, entry i of the last axis the link between positions i and
        i + 1.
    """
    rows, cols = fabric.rows, fabric.cols
    if fabric.damage is not None:
        table, links = routes(rows, cols, fabric.damage.links), 4 * rows * cols
        taken = batch[:, None] * (links + 1) + table.links[source, target]
        every = np.bincount(taken.ravel(), np.repeat(weight, taken.shape[1]), num_batches * (links + 1))
        loads = every.reshape(num_batches, links + 1)[:, :links] / table.share
        axes = loads.reshape(num_batches, 2, 2, rows * cols).transpose(1, 2, 0, 3)
        return axes[0].reshape(2, num_batches, rows, cols), axes[1].reshape(2, num_batches, cols, rows)
    row, col, end_row, end_col = source // cols, source % cols, target // cols, target % cols
    along_row = _segment_loads(fabric.wraps(cols), cols, num_batches * rows, batch * rows + row, col, end_col, weight)
    along_col = _segment_loads(
        fabric.wraps(rows), rows, num_batches * cols, batch * cols + end_col, row, end_row, weight
    )
    return along_row.reshape(2, num_batches, rows, cols), along_col.reshape(2, num_batches, cols, rows)


def link_loads(
    fabric: Fabric, source: Nodes, target: Nodes, weight: float | np.ndarray = 1.0
) -> Float[np.ndarray, "directions rows cols"]:
    """Sum of the weights of the flows over every directed link.

    Args:
        fabric: the graph.
        source: node that sends, any shape.
        target: node that receives, same shape.
        weight: load of each flow, broadcast against `source`.

    Returns:
        On a grid shape (4, rows, cols): `[direction, row, col]` is the link that leaves the node to the east,
        west, south or north. On a switch shape (2, rows, cols): the link out of and the link into each node.
    """
    source, target, weight = (np.ravel(x) for x in np.broadcast_arrays(source, target, np.asarray(weight, float)))
    if fabric.is_switch:
        return switch_loads(fabric.num_nodes, source, target, weight).reshape(2, fabric.rows, fabric.cols)
    along_row, along_col = grid_loads(fabric, source, target, weight, np.zeros_like(source), 1)
    east, west = along_row[:, 0]
    south, north = along_col[:, 0].swapaxes(-1, -2)
    return np.stack((east, np.roll(west, 1, axis=1), south, np.roll(north, 1, axis=0)))


def switch_loads(num_nodes: int, source: Nodes, target: Nodes, weight: np.ndarray) -> Float[np.ndarray, "2 nodes"]:
    """Load of the link out of every node and of the link into it; a flow to itself takes no link."""
    weight = weight * (source != target)
    return np.stack((np.bincount(source, weight, num_nodes), np.bincount(target, weight, num_nodes)))


def row_major(rows: int, cols: int) -> Int[np.ndarray, " nodes"]:
    """Nodes of a grid row by row, always left to right."""
    return np.arange(rows * cols)


def snake(rows: int, cols: int) -> Int[np.ndarray, " nodes"]:
    """Nodes of a grid row by row, odd rows right to left: consecutive nodes are neighbours (boustrophedon)."""
    grid = np.arange(rows * cols).reshape(rows, cols)
    grid[1::2] = grid[1::2, ::-1]
    return grid.ravel()


def folded(order: Int[np.ndarray, " nodes"]) -> Int[np.ndarray, " nodes"]:
    """Close a path into a ring without a long way back: even positions up, odd positions down."""
    return np.concatenate((order[::2], order[1::2][::-1]))


def has_hamiltonian_cycle(rows: int, cols: int) -> bool:
    """Whether a ring through all nodes of a mesh needs neighbour links only: an even side, both at least 2."""
    return min(rows, cols) >= 2 and rows * cols % 2 == 0


def hamiltonian_cycle(rows: int, cols: int) -> Int[np.ndarray, " nodes"]:
    """Nodes of a mesh along a Hamiltonian cycle: a snake over columns 1.., then back up column 0.

    Args:
        rows: rows of nodes.
        cols: columns of nodes.

    Returns:
        Order of the nodes; each is a neighbour of the next, and the last of the first.

    Raises:
        ValueError: where the grid has no such cycle.
    """
    if not has_hamiltonian_cycle(rows, cols):
        raise ValueError(f"(rows, cols) is {(rows, cols)}: one must be even and both at least 2")
    if rows % 2:  # the snake must end at the column it goes back along: transpose
        turned = hamiltonian_cycle(cols, rows)
        return turned % rows * cols + turned // rows
    grid = np.arange(rows * cols).reshape(rows, cols)
    grid[1::2] = grid[1::2, ::-1]
    there = np.concatenate([row[1:] if i % 2 == 0 else row[:-1] for i, row in enumerate(grid)])
    return np.concatenate((there, np.arange(rows)[::-1] * cols))
