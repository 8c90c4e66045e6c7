"""What a fabric allows at best, to compare algorithms with.

An all-reduce made of a reduce-scatter and an all-gather cannot beat the node with the fewest links. An all-reduce
by reduction to a root and broadcast from it, in a pipeline of chunks, is not bound by this: every node but the
root sends the buffer once and receives it once.

`neighbours` is what no order of the stages of a strategy on a mesh can beat.

Neglects: cuts other than the one round a single node or rectangle, and the shape of routes.

Reference: Won et al., TACOS, arXiv 2304.05301; Patarasuk, Yuan (2009), JPDC 69(2).
"""

from dataclasses import replace

import numpy as np
from jaxtyping import ArrayLike, Float

from watos_jax.network.collectives import collective, nothing
from watos_jax.network.contention import Network
from watos_jax.network.topology import Fabric
from watos_jax.strategy import Collective, Layout, Strategy


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


def neighbours(
    layouts: Layout, rows: Float[np.ndarray, " n"], cols: Float[np.ndarray, " n"], strategies: Strategy
) -> Layout:
    """Layouts in which all who talk are neighbours and meet no one: no order of the rectangles on a mesh is below.

    A route leaves its tensor rectangle (r rows, c columns of dies) by a column of c flows or a row of r: from die to
    like die it is at least `d = min(c, r)` hops, and loads a link with d flows; where rectangles lie in one row or
    one column only, with those of that direction. So sends and context ring have `volume = steps = d`; a ring of n
    members, half each way, `volume = (n-1)/n d` (2 members send both halves to each other: twice that), `steps =
    2 (n-1) d`; an all-to-all of n, whose messages leave by the rim of the rectangle with E links,
    `volume = max(d, (n-1) r c / E) / n`, `steps = d`. Tensor groups are rectangles wherever they lie.

    Args:
        layouts: stacked, of these strategies in any order of rectangles; of one mesh.
        rows: rows of dies of each mesh.
        cols: columns of dies.
        strategies: stacked.

    Returns:
        The same but for what the order decides; `traffic`, which energy is counted with, is left as it is.
    """
    tall, wide, data, context, expert = (
        np.asarray(part, float)
        for part in (
            strategies.tensor_rows,
            strategies.tensor_cols,
            strategies.data_parallel,
            strategies.context_parallel,
            strategies.expert_parallel,
        )
    )
    across, down = cols // wide, rows // tall
    apart = np.minimum(np.where(across > 1, wide, np.inf), np.where(down > 1, tall, np.inf))
    apart = np.where(np.isfinite(apart), apart, 0.0)  # a single rectangle talks to no other
    rim = tall * np.minimum(across - 1, 2) + wide * np.minimum(down - 1, 2)

    def as_tiers(value: np.ndarray, like: ArrayLike) -> np.ndarray:
        return np.where(np.asarray(like) > 0.0, value.reshape(value.shape + (1,) * (np.ndim(like) - 1)), 0.0)

    def least(of: Collective, volume: np.ndarray, steps: np.ndarray) -> Collective:
        return replace(of, volume=as_tiers(volume, of.volume), steps=as_tiers(steps, of.steps))

    def ring(of: Collective, members: np.ndarray) -> Collective:
        volume = (members - 1) / members * apart * np.where(members == 2, 2.0, 1.0)
        return least(of, volume, 2.0 * (members - 1) * apart)

    leaving = np.maximum(apart, (expert - 1.0) * tall * wide / np.maximum(rim, 1.0))
    return replace(
        layouts,
        data=ring(layouts.data, data * context),
        context=least(layouts.context, apart, apart),
        expert=least(layouts.expert, leaving / expert, apart),
        expert_data=ring(layouts.expert_data, data * context / expert),
        pipeline_volume=as_tiers(apart, layouts.pipeline_volume),
        pipeline_steps=as_tiers(apart, layouts.pipeline_steps),
    )
