"""All-reduce on rectangles of dies: one ring through all of them, or one dimension after the other.

Coefficients as in `collectives`. The two compete: on a mesh a ring on a Hamiltonian cycle uses both directions of
its links and moves `(n-1)/n` of the buffer over each, in `2 (n-1)` steps; rows and columns take fewer steps, and
about `2 (c-1)/c` of the buffer.

Neglects: what `collectives` neglects; starting half of the buffer with the columns, which would use both
dimensions evenly; trees.

Reference: Jain, Sabharwal (2010), Optimal bucket algorithms for large MPI collectives on torus interconnects, ICS.
"""

from functools import lru_cache
from heapq import heapify, heappop, heappush

import numpy as np

from watos_jax.network.collectives import (
    DEFAULT_TRANSPORT,
    Directions,
    Groups,
    Transport,
    collective,
    in_turn,
    ring_all_reduce,
)
from watos_jax.network.contention import Network
from watos_jax.network.topology import folded, hamiltonian_cycle, has_hamiltonian_cycle, row_major, snake
from watos_jax.strategy import Collective


@lru_cache(maxsize=4096)
def pipelined(volumes: tuple[float, ...], rounds: tuple[int, ...], chunks: int) -> float:
    """Volume of phases on different links that K chunks pass through in order, first come, first served.

    A chunk takes r messages of v / (r K) in a phase of volume v and r rounds, one after the other, and queues for
    the links of the phase before each. Two phases take `max(entry + v_2, v_1 + v_2 / K)`, where the first chunk
    leaves the first phase after `entry = v_1 ((r_1 - 1) K + 1) / (r_1 K)`, for all chunks take turns in it.

    Args:
        volumes: of each phase.
        rounds: messages that a chunk takes in each phase; 0 skips it.
        chunks: K; with 1 the phases run one after the other.

    Returns:
        When the last chunk leaves the last phase.
    """
    ready = [0.0] * chunks
    for volume, turns in zip(volumes, rounds, strict=True):
        free = 0.0
        queue = [(time, chunk, turns) for chunk, time in enumerate(ready) if turns]
        heapify(queue)
        while queue:
            time, chunk, left = heappop(queue)
            free = max(free, time) + volume / (turns * chunks)
            if left > 1:
                heappush(queue, (free, chunk, left - 1))
            else:
                ready[chunk] = free
    return max(ready)


def row_column(
    network: Network,
    groups: Groups,
    rows: int,
    cols: int,
    *,
    operation: str = "all_reduce",
    directions: Directions = "best",
    transport: Transport = DEFAULT_TRANSPORT,
) -> Collective:
    """Collective of rectangles dimension by dimension: reduce-scatter rows, all-reduce columns, all-gather rows.

    Phases of volume `(c-1)/c L_row`, `2 (r-1)/(r c) L_col`, `(c-1)/c L_row` use different links and overlap chunk
    by chunk (`pipelined`). One way round, the all-gather goes against the reduce-scatter; where both need the same
    links (a mesh, or rings of two ways) the row takes at least the sum of its two phases. On a mesh a row is a
    line: the ring on it returns the way it came and loads every link once each way, L = 1.

    Args:
        network: the tiers.
        groups: members of each rectangle, row by row.
        rows: rows of the rectangle.
        cols: columns of the rectangle.
        operation: "all_reduce", "reduce_scatter" (rows, then columns) or "all_gather" (columns, then rows).
        directions: see `Directions`.
        transport: how messages move.

    Reference: Jain, Sabharwal (2010), ICS.
    """
    grid = groups.reshape(-1, rows, cols)
    lines = (grid.reshape(-1, cols), grid.swapaxes(1, 2).reshape(-1, rows))
    row, col = (ring_all_reduce(network, line, directions=directions, transport=transport) for line in lines)
    whole = in_turn((row, col), (1.0, 1.0 / cols))
    along_row, along_col = 0.5 * np.asarray(row.volume), 0.5 * np.asarray(col.volume) / cols
    phases = [(along_row, cols - 1), (along_col, rows - 1)]
    if operation == "all_gather":
        phases.reverse()
    elif operation == "all_reduce":
        phases = [(along_row, cols - 1), (2.0 * along_col, 2 * rows - 2), (along_row, cols - 1)]
    rounds = tuple(turns for _, turns in phases)
    by_tier = zip(*(volume.tolist() for volume, _ in phases), strict=True)
    volume = np.array([pipelined(volumes, rounds, transport.chunks) for volumes in by_tier])
    if operation != "all_reduce":
        return collective(volume, 0.5 * np.asarray(whole.steps), 0.5 * np.asarray(whole.traffic))
    both = ring_all_reduce(network, lines[0], directions="two", transport=transport)
    volume = np.maximum(volume, np.asarray(both.volume) + 2.0 * along_col / transport.chunks)
    return collective(volume, np.asarray(whole.steps), np.asarray(whole.traffic))


def rectangle_orders(rows: int, cols: int) -> list[np.ndarray]:
    """Ring orders worth trying on a rectangle: a Hamiltonian cycle, or else snake, folded snake and row-major."""
    if has_hamiltonian_cycle(rows, cols):
        return [hamiltonian_cycle(rows, cols)]
    path = snake(rows, cols)
    return [path, folded(path), row_major(rows, cols)]


def best_ring_all_reduce(network: Network, groups: Groups, rows: int, cols: int) -> Collective:
    """The ring of least volume, then of least steps, over the orders of `rectangle_orders`.

    Args:
        network: the tiers.
        groups: members of each rectangle, row by row.
        rows: rows of the rectangle.
        cols: columns of the rectangle.
    """
    rings = [ring_all_reduce(network, groups[:, order]) for order in rectangle_orders(rows, cols)]
    return min(rings, key=lambda ring: (round(ring.volume[0], 9), ring.steps[0]))
