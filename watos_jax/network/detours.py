"""Routes on a mesh with dead or narrow links: shortest of the surviving ways, along the row first.

At every node a flow takes the first link, in the order east, west, south, north, that brings it nearer to its
destination on the surviving mesh. Where the links of the XY route live this is the XY route; else it is a shortest
detour, the same for the same damage.

Neglects: detours that avoid busy links rather than dead ones, so that a dead link may now and then relieve another one;
deadlock, which such routes need virtual channels against.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Damage:
    """What is left of a mesh, and how rectangles are laid on it.

    Attributes:
        links: share of the bandwidth left, 0 to 1, of the link to the east of every node, row by row, then of the link
            to the south of every node; 0 is dead. What would lead off the mesh is not read. Both directions alike.
        unused: nodes that take no work, though they pass messages on if their links live.
        sound: whether rectangles with a dead link inside are left out.
        hosts: node that does the work of each node, rectangles being those of the whole mesh; where empty, rectangles
            are laid on living nodes.
    """

    links: tuple[float, ...]
    unused: frozenset[int] = frozenset()
    sound: bool = False
    hosts: tuple[int, ...] = ()


class Routes(NamedTuple):
    """Ways between all nodes of a mesh.

    Attributes:
        hops: links from node to node, -1 where there is no way, shape (nodes, nodes).
        links: numbers of the directed links on the way, filled up with `4 nodes`, shape (nodes, nodes, longest).
            Links are numbered `((axis * 2 + back) * lines + line) * positions + position`, axis 0 along rows and 1
            along columns, `back` 1 towards smaller positions, between `position` and the next.
        share: of the bandwidth that is left of every directed link, 1 where it is dead, for nothing goes there.
    """

    hops: Int[np.ndarray, "nodes nodes"]
    links: Int[np.ndarray, "nodes nodes longest"]
    share: Float[np.ndarray, " links"]


@lru_cache(maxsize=256)
def routes(rows: int, cols: int, links: tuple[float, ...]) -> Routes:
    """Find the way between any two nodes.

    Args:
        rows: rows of nodes.
        cols: columns of nodes.
        links: see `Damage`.
    """
    nodes = rows * cols
    beside, number, share = _neighbours(rows, cols, links)
    lives = share > 0.0
    hops = _hops(beside, lives)
    here, there = np.indices((nodes, nodes))
    way, longest = hops >= 0, int(hops.max())
    taken = np.full((nodes, nodes, longest), 4 * nodes)
    for step in range(longest):
        nearer = lives[:, here] & (hops[beside[:, here], there] == hops[here, there] - 1)
        moves = way & (here != there)
        direction = nearer.argmax(axis=0)
        taken[moves, step] = number[direction, here][moves]
        here = np.where(moves, beside[direction, here], here)
    left = np.ones(4 * nodes)
    left[number[lives]] = share[lives]
    return Routes(hops, taken, left)


def _neighbours(rows: int, cols: int, links: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # node to the east, west, south and north of every node (itself off the rim), number of that link, its share
    nodes = rows * cols
    row, col = np.divmod(np.arange(nodes), cols)
    along_row, along_col = row * cols + col, col * rows + row
    left = np.asarray(links, float).reshape(2, nodes)
    inside = np.stack([col < cols - 1, col > 0, row < rows - 1, row > 0])
    step = np.array([1, -1, cols, -cols])[:, None]
    beside = np.where(inside, np.arange(nodes) + step, np.arange(nodes))
    number = np.stack([along_row, nodes + along_row - 1, 2 * nodes + along_col, 3 * nodes + along_col - 1])
    share = np.stack([left[0], left[0][beside[1]], left[1], left[1][beside[3]]])
    return beside, number, np.where(inside, share, 0.0)


def _hops(beside: np.ndarray, lives: Bool[np.ndarray, "4 nodes"]) -> np.ndarray:
    # links of the shortest way between any two nodes, -1 where there is none: one ring of neighbours after the other
    nodes = beside.shape[1]
    reached = np.eye(nodes, dtype=bool)
    hops, far = np.where(reached, 0, -1), 0
    while True:
        far += 1
        ahead = (reached[beside] & lives[..., None]).any(axis=0) & ~reached
        if not ahead.any():
            return hops
        hops[ahead] = far
        reached |= ahead
