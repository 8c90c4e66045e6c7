"""Levels of recomputation, shares of helpers and places of stages chosen together, by trying them all: an oracle.

The scheduler settles them one after the other (`search.central`): levels and bytes by GCMR as if every helper were the
next stage, then helpers by distance, then places by a local search. Here every order of stages on the mesh, every level
of every stage and every way of cutting a sender's overflow into equal parts is scored by the same step time, except
where the step is too long even if bytes left a stage over all of its links at once. For a few stages only:
`levels**stages` times the orders.

Neglects: parts finer than a unit, so that a schedule which cuts elsewhere can be a little quicker.
"""

from collections.abc import Iterator
from itertools import combinations_with_replacement, permutations, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from watos_jax.hardware import Wafer
from watos_jax.memory import stages
from watos_jax.model import Transformer
from watos_jax.network.contention import Network
from watos_jax.network.geometry import Geometry, devices, rectangles
from watos_jax.network.layout import layout
from watos_jax.search.sharing import levels_of
from watos_jax.shipping import Bytes, shipping_seconds
from watos_jax.strategy import Strategy

UNITS = 4
"""Equal parts that what a stage sends is cut into."""


class Joint(NamedTuple):
    """The best of all.

    Attributes:
        step_time: s; infinite where nothing fits and nothing was known.
        level: of each stage, shape (stages,).
        order: rectangle of each stage, counted along the serpentine, shape (stages,).
        shipped: bytes per die that the stage of the row keeps at that of the column.
        scored: ways whose step time was computed.
    """

    step_time: float
    level: Int[np.ndarray, " stages"]
    order: Int[np.ndarray, " stages"]
    shipped: Bytes
    scored: int


def least_joint_step(
    wafer: Wafer, model: Transformer, strategy: Strategy, *, known: float = np.inf, units: int = UNITS
) -> Joint:
    """Find the least step time over levels, helpers and orders together.

    Args:
        wafer: the wafer, concrete.
        model: the transformer.
        strategy: one pipeline, 1F1B; its own `recompute` is not read.
        known: s; a step that another method found, for only a shorter one is looked for.
        units: equal parts that what a stage sends is cut into.

    Returns:
        The best; with a step time of `known` where none is shorter.
    """
    network, geometry = Network.of(wafer), Geometry.of(strategy)
    count, last = geometry.pipeline, float(strategy.num_micro_batches * strategy.virtual_stages) - 1.0
    in_flight = np.asarray(stages(model, strategy, count).in_flight)
    nothing = np.zeros((count, count))
    # s per byte out of a stage at best: all links of its dies at once, or its DRAM
    links = sum(min(size - 1, 2) for size in (network.fabrics[0].rows, network.fabrics[0].cols))
    quickest = max(1.0 / (max(links, 1) * float(wafer.d2d.bandwidth)), 1.0 / float(wafer.die.memory.bandwidth))

    def step(both: np.ndarray) -> np.ndarray:
        return np.asarray((both.sum(axis=-1) + last * both.max(axis=-1)) / float(strategy.virtual_stages))

    best, scored = Joint(known, np.zeros(count, int), np.arange(count), nothing, 0), 0
    for order in _orders(network, geometry):
        given = levels_of(*_floats((wafer, model, strategy, layout(wafer, strategy, order=order))))
        forward, backward, room, busy = (
            np.asarray(part, float)[:, :count]
            for part in (given.forward, given.backward, given.given.room, given.given.busy)
        )

        after = float(given.base.step_time) - float(step(forward[0] + backward[0]))
        every = np.array(list(product(range(len(forward)), repeat=count)))
        at = np.arange(count)
        possible = np.isfinite(busy[every, at]).all(axis=1) & (room[every, at].sum(axis=1) >= 0.0)
        every = every[possible]
        over = np.maximum(-room[every, at], 0.0) / np.maximum(in_flight - 1.0, 1.0) * quickest
        least = step(forward[every, at] + backward[every, at] + 2.0 * over) + after
        held = devices(network, geometry, order)
        for row in np.argsort(least, kind="stable"):
            if least[row] >= best.step_time:
                break
            level = every[row]
            for shipped in _splits(room[level, at], units):
                away, back = shipping_seconds(wafer.system, network, held, shipped, in_flight)
                time = float(step(forward[level, at] + away + backward[level, at] + back)) + after
                scored += 1
                if time < best.step_time:
                    best = Joint(time, level, order, shipped, 0)
    return best._replace(scored=scored)


def _floats(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), tree)


def _orders(network: Network, geometry: Geometry) -> Iterator[Int[np.ndarray, " stages"]]:
    # all orders but for mirror images of the mesh, which routes respect
    tiles, cols = rectangles(network, geometry), network.fabrics[0].cols
    corner = tiles[:, 0]
    row, col = (np.unique(part, return_inverse=True)[1] for part in (corner // cols, corner % cols))
    place = row * (col.max() + 1) + col
    mirrored = [r * (col.max() + 1) + c for r in (row, row.max() - row) for c in (col, col.max() - col)]
    for order in permutations(range(len(tiles)), geometry.pipeline):
        taken = place[list(order)].tolist()
        if all(taken <= image[list(order)].tolist() for image in mirrored):
            yield np.array(order)


def _splits(room: Float[np.ndarray, " stages"], units: int) -> Iterator[Bytes]:
    # ways of giving each sender's overflow, in equal parts, to stages that have room
    senders, helpers = np.flatnonzero(room < 0.0), np.flatnonzero(room > 0.0)
    each = combinations_with_replacement(range(len(helpers)), units)
    shares = [np.bincount(part, minlength=len(helpers)) / units for part in each]
    for chosen in product(shares, repeat=len(senders)):
        shipped = np.zeros((len(room), len(room)))
        for sender, share in zip(senders, chosen, strict=True):
            shipped[sender, helpers] = -room[sender] * share
        if (shipped.sum(axis=0) <= np.maximum(room, 0.0) * (1.0 + 1e-9)).all():
            yield shipped
