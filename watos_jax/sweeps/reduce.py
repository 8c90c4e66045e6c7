"""What a device keeps of the points that it works through: the best, the Pareto front, a count per bin, rows.

Every reduction is exact, and the same whatever the chunks and devices: equal points are told apart by their numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from watos_jax.sweeps.keep import Keep
from watos_jax.sweeps.metrics import METRICS


class Tile(NamedTuple):
    """Points evaluated together, arrays of shape (points,).

    Attributes:
        metrics: by name.
        hardware: hardware point of each, counted from the part's first.
        strategy: number of the strategy of each.
        valid: whether it is a point of the part.
        feasible: whether it also exceeds no limit.
    """

    metrics: dict[str, Array]
    hardware: Int[Array, " points"]
    strategy: Int[Array, " points"]
    valid: Bool[Array, " points"]
    feasible: Bool[Array, " points"]


class Kept(NamedTuple):
    """Some points with their metrics; empty places have a strategy of -1.

    Attributes:
        goals: what they are compared by, smaller is better, shape (places, goals); infinite in empty places.
        hardware: shape (places,).
        strategy: shape (places,).
        metrics: by name, shape (places,).
    """

    goals: Float[Array, "places goals"]
    hardware: Int[Array, " places"]
    strategy: Int[Array, " places"]
    metrics: dict[str, Array]


class State(NamedTuple):
    """What one device has kept of a part so far.

    Attributes:
        feasible: number of feasible points.
        best: the best points, best first.
        front: points that none dominates, in no order.
        overflow: whether a point of the front found no place.
        histogram: feasible points per bin.
        rows: metrics of every tile, shape (tiles, points).
    """

    feasible: Int[Array, ""]
    best: Kept
    front: Kept
    overflow: Bool[Array, ""]
    histogram: Int[Array, " bins"]
    rows: dict[str, Array]


def start(keep: Keep, places: int, tiles: int, points: int, dtype: np.dtype) -> State:
    """The state before the first tile.

    Args:
        keep: what is answered.
        places: of the Pareto front.
        tiles: most tiles of a part on one device.
        points: points of a tile.
        dtype: floating type.
    """

    def nothing(number: int, goals: int) -> Kept:
        empty = jnp.full(number, -1, jnp.int32)
        return Kept(
            jnp.full((number, goals), jnp.inf, dtype), empty, empty, {m: jnp.zeros(number, dtype) for m in keep.metrics}
        )

    bins = 0 if keep.histogram is None else keep.histogram.num
    rows = keep.metrics if keep.rows != "none" else ()
    return State(
        jnp.zeros((), jnp.int32),
        nothing(keep.top, 1),
        nothing(places if keep.pareto else 0, len(keep.pareto)),
        jnp.zeros((), bool),
        jnp.zeros(bins, jnp.int32),
        {name: jnp.zeros((tiles, points), dtype) for name in rows},
    )


def update(keep: Keep, state: State, tile: Tile, number: Int[Array, ""]) -> State:
    """The state after one more tile; tiles come in the order of their points.

    Args:
        keep: what is answered.
        state: before.
        tile: the points.
        number: of the tile among those of this device.
    """
    front, overflow = state.front, state.overflow
    if keep.pareto:
        front, overflow = _front(front, overflow, tile, _goals(keep.pareto, tile))
    histogram = state.histogram
    if keep.histogram is not None:
        values = tile.metrics[keep.histogram.of]
        inner = jnp.asarray(keep.histogram.edges[1:-1], values.dtype)
        bins = jnp.searchsorted(inner, values, side="right")
        histogram = histogram.at[bins].add(tile.feasible.astype(jnp.int32))
    best = _best(state.best, tile, _goals((keep.by,), tile)) if keep.top else state.best
    rows = {
        name: jax.lax.dynamic_update_slice(held, tile.metrics[name][None], (number, jnp.zeros_like(number)))
        for name, held in state.rows.items()
    }
    feasible = state.feasible + jnp.sum(tile.feasible, dtype=jnp.int32)
    return State(feasible, best, front, overflow, histogram, rows)


def _goals(names: Sequence[str], tile: Tile) -> Float[Array, "points goals"]:
    goals = [METRICS[name].sign * tile.metrics[name] for name in names]
    return jnp.where(tile.feasible[:, None], jnp.stack(goals, axis=-1), jnp.inf)


def _best(best: Kept, tile: Tile, goals: Float[Array, "points 1"]) -> Kept:
    # top_k keeps the first of equals, and held points come first
    def joined(held: Array, new: Array) -> Array:
        return jnp.concatenate([held, new])

    strategy = jnp.where(tile.feasible, tile.strategy, -1)
    merged = jax.tree.map(joined, best, Kept(goals, tile.hardware, strategy, tile.metrics))
    _, where = jax.lax.top_k(-merged.goals[:, 0], len(best.strategy))
    return Kept(*jax.tree.map(lambda leaf: leaf[where], tuple(merged)))


def _front(front: Kept, overflow: Array, tile: Tile, goals: Float[Array, "points goals"]) -> tuple[Kept, Array]:
    # few points of a tile survive the front that is held: they enter one by one, and drop what they dominate
    def dominated(by: Float[Array, "places goals"]) -> Bool[Array, " points"]:
        worse = jnp.ones((goals.shape[0], by.shape[0]), bool)
        for goal in range(goals.shape[1]):
            worse &= by[None, :, goal] <= goals[:, None, goal]
        return jnp.any(worse, axis=1)

    def unfinished(carry: tuple[Kept, Array, Array]) -> Array:
        return jnp.any(carry[2])

    def enter(carry: tuple[Kept, Array, Array]) -> tuple[Kept, Array, Array]:
        front, overflow, alive = carry
        point = jnp.argmin(jnp.where(alive, goals[:, 0], jnp.inf))
        new = goals[point]
        dropped = jnp.all(new[None, :] <= front.goals, axis=1)
        held = jnp.where(dropped[:, None], jnp.inf, front.goals)
        place = jnp.argmax(held[:, 0])  # an empty place has infinite goals
        overflow = overflow | ~jnp.isinf(held[place, 0])
        entry = Kept(new, tile.hardware[point], tile.strategy[point], {m: v[point] for m, v in tile.metrics.items()})
        strategy = jnp.where(dropped, -1, front.strategy)
        front = jax.tree.map(
            lambda leaf, value: leaf.at[place].set(value), front._replace(goals=held, strategy=strategy), entry
        )
        return front, overflow, alive & ~jnp.all(new[None, :] <= goals, axis=1)

    alive = tile.feasible & ~dominated(front.goals)
    front, overflow, _ = jax.lax.while_loop(unfinished, enter, (front, overflow, alive))
    return front, overflow
