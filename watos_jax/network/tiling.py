"""Rectangles laid on what is left of a mesh: as many as possible, none over a die that is dead or cut off.

Rectangles of one shape, not rotated, need not lie on a common grid. The largest number that fits is a packing problem,
solved exactly as an integer program; of equal numbers the one with fewest dead links inside rectangles, then that with
most rectangles on the grid of the whole mesh.
"""

from functools import lru_cache
from typing import Final

import numpy as np

from watos_jax.network.detours import Routes, routes
from watos_jax.network.topology import Fabric

DEAD_INSIDE: Final = 0.1
"""Rectangles that dead links inside rectangles cost, per link and die of the mesh: all together less than one."""
ON_GRID: Final = 1e-3
"""Rectangles that a place on the whole mesh's grid is worth, per die of the mesh: all together less than a link."""


def _ways(fabric: Fabric) -> Routes:
    return routes(fabric.rows, fabric.cols, () if fabric.damage is None else fabric.damage.links)


@lru_cache(maxsize=4096)
def usable(fabric: Fabric) -> tuple[int, ...]:
    """Nodes that can take work: those of the largest part of a damaged mesh that is joined, less its `unused`.

    Args:
        fabric: a mesh with damage. Of equal parts the one with the lowest node.
    """
    joined = _ways(fabric).hops >= 0
    kept = np.ones(fabric.num_nodes, bool)
    kept[list(fabric.damage.unused if fabric.damage else ())] = False
    part = joined[(joined & kept).sum(axis=1).argmax()]
    return tuple(np.flatnonzero(part & kept).tolist())


@lru_cache(maxsize=65536)
def corners(fabric: Fabric, rows: int, cols: int) -> tuple[int, ...]:
    """Upper left dies of as many rectangles as fit, in the order of a serpentine.

    Args:
        fabric: a mesh with damage.
        rows: rows of a rectangle.
        cols: its columns.
    """
    if rows > fabric.rows or cols > fabric.cols:
        return ()
    nodes, across = fabric.num_nodes, fabric.cols
    living = np.zeros(nodes, bool)
    living[list(usable(fabric))] = True
    top, left = (x.ravel() for x in np.indices((fabric.rows - rows + 1, across - cols + 1)))
    corner = top * across + left
    inside = (np.arange(rows)[:, None] * across + np.arange(cols)).ravel()
    dies = corner[:, None] + inside
    dead = _dead_inside(fabric, dies, rows, cols)
    allowed = living[dies].all(axis=1)
    if fabric.damage is not None and fabric.damage.sound:
        allowed &= dead == 0
    if not allowed.any():
        return ()
    corner, dies, dead = corner[allowed], dies[allowed], dead[allowed]
    grid = (corner // across % rows == 0) & (corner % across % cols == 0)
    chosen = corner[_most(dies, 1.0 - (DEAD_INSIDE * dead - ON_GRID * grid) / nodes, nodes)]
    band = chosen // across // rows
    order = np.lexsort((np.where(band % 2, -1, 1) * (chosen % across), band))
    return tuple(chosen[order].tolist())


def _dead_inside(fabric: Fabric, dies: np.ndarray, rows: int, cols: int) -> np.ndarray:
    # dead links between dies of each rectangle
    hops = _ways(fabric).hops
    grid = dies.reshape(-1, rows, cols)
    across, down = hops[grid[:, :, :-1], grid[:, :, 1:]], hops[grid[:, :-1], grid[:, 1:]]
    return (across != 1).sum(axis=(1, 2)) + (down != 1).sum(axis=(1, 2))


def _most(dies: np.ndarray, worth: np.ndarray, nodes: int) -> np.ndarray:
    # rectangles of greatest worth of which no two share a die
    if dies.shape[1] == 1:
        return np.arange(len(dies))
    import scipy.optimize  # changes the filters of warnings when it is imported
    import scipy.sparse

    number = np.repeat(np.arange(len(dies)), dies.shape[1])
    covers = scipy.sparse.csr_array((np.ones(dies.size), (dies.ravel(), number)), shape=(nodes, len(dies)))
    answer = scipy.optimize.milp(
        -worth,
        integrality=np.ones(len(dies)),
        bounds=scipy.optimize.Bounds(0.0, 1.0),
        constraints=scipy.optimize.LinearConstraint(covers, ub=1.0),
        options={"mip_rel_gap": 0.0},
    )
    return np.flatnonzero(answer.x > 0.5)
