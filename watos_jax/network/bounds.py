"""What a fabric allows at best, to compare algorithms with.

An all-reduce made of a reduce-scatter and an all-gather cannot beat the node with the fewest links. An all-reduce
by reduction to a root and broadcast from it, in a pipeline of chunks, is not bound by this: every node but the
root sends the buffer once and receives it once.

Neglects: cuts other than the one round a single node, and the shape of routes.

Reference: Won et al., TACOS, arXiv 2304.05301; Patarasuk, Yuan (2009), JPDC 69(2).
"""

import numpy as np

from watos_jax.network.collectives import collective, nothing
from watos_jax.network.contention import Network
from watos_jax.network.topology import Fabric
from watos_jax.strategy import Collective


def least_links(fabric: Fabric) -> int:
    """Links into the least-connected node: 2 at the corner of a mesh, 4 in a torus, 1 in a switch."""
    if fabric.is_switch:
        return 1
    return sum(2 if fabric.wraps(size) else 1 for size in (fabric.rows, fabric.cols) if size > 1)


def diameter(fabric: Fabric) -> int:
    """Longest shortest route, in links."""
    if fabric.is_switch:
        return int(fabric.num_nodes > 1)
    return sum(size // 2 if fabric.wraps(size) else size - 1 for size in (fabric.rows, fabric.cols))


def bound_all_reduce(fabric: Fabric) -> Collective:
    """Least time of a reduce-scatter and an all-gather over a whole fabric.

    `volume = 2 (n-1)/n / d`, d the fewest links into a node: in the all-gather that node receives (n-1)/n of the
    buffer. `steps` = twice the diameter. Synthesised schedules come within 1 to 10 % of it on meshes.

    Args:
        fabric: the graph; one group of all its nodes.
    """
    members = fabric.num_nodes
    if members == 1:
        return nothing(Network((fabric,)))
    volume = 2.0 * (members - 1) / members
    return collective(np.array([volume / least_links(fabric)]), np.array([2.0 * diameter(fabric)]), np.array([volume]))


def bound_of_messages(fabric: Fabric, chunks: int) -> Collective:
    """The same bound where a link is busy for the latency, too, of every message that it carries.

    The least-connected node receives `(n-1) chunks` messages of `1/(n chunks)` over d links, one after the other:
    `q = ceil((n-1) chunks / d)` rounds per phase, `volume = 2 q / (n chunks)`, `steps = 2 q`.

    Args:
        fabric: the graph; one group of all its nodes.
        chunks: messages that the share of each node is cut into.

    Reference: Won et al., TACOS, arXiv 2304.05301 (alpha-beta cost of a link).
    """
    members = fabric.num_nodes
    if members == 1:
        return nothing(Network((fabric,)))
    rounds = -(-(members - 1) * chunks // least_links(fabric))
    return collective(
        np.array([2.0 * rounds / (members * chunks)]),
        np.array([2.0 * rounds]),
        np.array([2.0 * (members - 1) / members]),
    )
