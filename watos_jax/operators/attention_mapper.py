"""Tile-level time and traffic of the attention core on one die, as `mapper` does for products.

A unit is a key and value head of a sequence with all query heads that share it, their rows packed one under another.
The die is cut into equal rectangles of cores, and each works on one unit after another: a core keeps a block of query
rows, its sums and scores, and streams the unit's keys and values past them. A mapping is the number of rectangles along
each axis (`RECTANGLES`), the number of blocks that the rows of a unit are cut into, and that of the keys:

    scores = q k'   passes (d + q' + k' - 2), then   p v   passes (k + q' + v' - 2) cycles
    keys met by a block = min(keys + (positions of the block - 1) / 2, sequence)      causal blocks are computed whole
    dram = (queries + results + keys and values, once per block unless they stay) 2 bytes + scores, if materialised
    port = operands read by the array, scores (written, scaled, read: 10 bytes), sums, operands arriving

All operands enter by the row ends, keys and values are multicast to a rectangle; keys of a single block stay.
The backward pass is mapped as the forward one with `products` times its work and twice its traffic.

Neglects: what `mapper` neglects, the second edge of a sliding window, rows and columns of the softmax on a vector
unit, keys split over cores.
"""

from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from watos_jax.hardware import Die
from watos_jax.operators.mapper import OUTER, STREAMED
from watos_jax.operators.mapping import PARTIAL_BYTES, Cost, Machine, Mapping, best, cut, machine
from watos_jax.operators.roofline import SCORE_BYTES
from watos_jax.units import FLOP_PER_MAC, Scalar
from watos_jax.workload import ELEMENT_BYTES, Attention

RECTANGLES: Final = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 9.0, 10.0, 12.0, 16.0])
"""Numbers of rectangles along an axis of cores; those above the number of cores are left out."""
SCORE_PORT_BYTES: Final = 2.0 * PARTIAL_BYTES + ELEMENT_BYTES
"""SRAM bytes per score: written and read in 32 bits, written again in 16; the second product's read is an operand's."""


def map_attention(die: Die, shape: Attention, *, backward: bool = False) -> Mapping:
    """Map the attention core of one layer on a die; see the module for the model.

    Args:
        die: where it runs.
        shape: sizes of the core.
        backward: its gradient, five products (four where scores are materialised) and twice the traffic.

    Returns:
        Scalars of shape (); `dataflow` is 0, `tiles` are rectangles along rows and along columns, blocks of query rows
        and blocks of keys.
    """
    products = jnp.where(jnp.asarray(backward), 2.5 - 0.5 * shape.materialised, 1.0)
    streams = 2.0 if backward else 1.0
    sequences = jnp.maximum(shape.key_tokens / shape.sequence, 1.0)
    group = shape.heads / shape.kv_heads
    scores = SCORE_BYTES * shape.materialised * shape.queries * shape.keys * shape.heads
    costs = _costs(
        machine(die),
        shape,
        units=jnp.ceil(sequences * shape.kv_heads),
        rows=jnp.ceil(shape.queries / sequences * group),
        group=group,
        work_factor=products,
        streams=streams,
        scores=scores,
    )
    macs = shape.queries * shape.keys * shape.heads * (shape.head_dim + shape.value_dim)
    return best(costs, die, FLOP_PER_MAC * products * macs, jnp.where(macs > 0, 1.0, 0.0))


def _costs(
    m: Machine,
    shape: Attention,
    *,
    units: Array,
    rows: Array,
    group: Scalar,
    work_factor: Scalar,
    streams: float,
    scores: Scalar,
) -> Cost:
    # candidates on axes (rectangles by rows, by columns, blocks of keys, blocks of rows: a whole number of vectors)
    down, lanes = jnp.reshape(RECTANGLES, (-1, 1, 1, 1)), jnp.reshape(RECTANGLES, (1, -1, 1, 1))
    high, wide = jnp.maximum(jnp.floor(m.rows / down), 1.0), jnp.maximum(jnp.floor(m.cols / lanes), 1.0)
    blocks = jnp.reshape(OUTER, (1, 1, 1, -1))
    query = cut(rows, blocks, high * wide, m.side)
    by_port = cut(rows, blocks, high, m.side)
    met = jnp.minimum(jnp.ceil(shape.keys + 0.5 * (query.size / group - 1.0)), jnp.ceil(shape.sequence))
    key = cut(met, jnp.reshape(STREAMED, (1, 1, -1, 1)), jnp.ones_like(high), m.side)
    behind = jnp.ceil(units / down)  # units that pass one port
    turns = jnp.ceil(behind / lanes)  # units that a rectangle works on, one after another
    head, value = (jnp.ceil(jnp.asarray(x, float)) for x in (shape.head_dim, shape.value_dim))
    width = head + value

    # one core, one unit: cycles and SRAM bytes of both products
    value_passes = jnp.ceil(value / m.side)
    outputs = query.shares * key.passes + key.shares * query.passes
    sums = query.shares * value_passes + value * query.passes
    array = (head - 2.0) * query.passes * key.passes + outputs
    array += (key.shares - 2.0 * key.tiles) * query.passes * value_passes + key.tiles * sums
    visits = jnp.where(key.tiles <= 1.0, 1.0, query.tiles)
    fetched = jnp.maximum(visits * met, jnp.ceil(shape.sequence))
    port = (
        ELEMENT_BYTES * (head * outputs + key.shares * sums + fetched * width + query.shares * width)
        + SCORE_PORT_BYTES * query.shares * key.shares
        + 2.0 * PARTIAL_BYTES * key.tiles * query.shares * value
    )
    work = work_factor * turns * jnp.maximum(array, port / m.port)

    # DRAM and the busiest port: keys and values go to all cores of a rectangle, queries to one
    used = jnp.minimum(units, down * lanes)
    links = streams * ELEMENT_BYTES * behind * (width * fetched + head * by_port.shares)
    dram = streams * (ELEMENT_BYTES * units * width * (rows + fetched) + scores)
    first = ELEMENT_BYTES * (query.size * head + key.size * width)
    last = ELEMENT_BYTES * query.last * value
    first_link = ELEMENT_BYTES * (by_port.share * head + key.size * width)
    last_link = ELEMENT_BYTES * by_port.last_share * value
    at_once = jnp.minimum(behind, lanes)
    start = jnp.maximum(used * first / m.dram, at_once * first_link / m.link)
    stop = jnp.maximum(used * last / m.dram, at_once * last_link / m.link)
    steps = turns * query.tiles * key.tiles
    time = jnp.maximum(start + work + stop, work / steps + jnp.maximum(dram / m.dram, links / m.link))
    footprint = (
        ELEMENT_BYTES * query.share * head * jnp.where(turns * query.tiles > 1.0, 2.0, 1.0)
        + ELEMENT_BYTES * key.size * width * jnp.where(turns * query.tiles * key.tiles > 1.0, 2.0, 1.0)
        + PARTIAL_BYTES * query.share * (key.size + value)
        + ELEMENT_BYTES * query.share * value
    )
    impossible = jnp.where((down > m.rows) | (lanes > m.cols), jnp.inf, 0.0)
    # a rectangle begins on average half-way across the die
    way = 0.5 * (m.cols - wide)
    hops = fetched * (way * jnp.ceil(query.used / wide) + query.used) + rows * (way + 0.5 * (wide + 1.0))
    hops = streams * ELEMENT_BYTES * units * width * hops
    sram = work_factor * units * query.used * port
    label = jnp.zeros_like(high), down, lanes, query.tiles, key.tiles
    cost = Cost(time, dram, sram, hops, footprint + impossible, label)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, time.shape), cost)
