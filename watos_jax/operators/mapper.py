"""Tile-level time and traffic of a matrix product on one die: the exact minimum over a lattice of mappings.

A die is `core_rows x core_cols` cores on a mesh. A (rows x depth, the activations) enters through the row ends of the
mesh, B (depth x cols, the weights) through the column ends; DRAM lies behind both. A mapping is

* a dataflow: which two dimensions the cores share out, which one streams, and so which operand stays in SRAM:

      output stationary   rows over core rows, cols over core columns, depth streams; C stays
      weight stationary   depth over core rows, cols over core columns, rows stream; B stays, C is reduced by columns
      input stationary    rows over core rows, depth over core columns, cols stream; A stays, C is reduced by rows

* how many tiles each dimension is cut into (`OUTER`, `STREAMED`; the last is one element, so the set is never empty);
* for products that come in numbers, how many of them run side by side on bands of core rows (`BANDS`).

All cores of a dimension's ends are used where there is work for them; the rest idle. Operands of which more than one
tile exists have two buffers, C is summed in 32 bits. If the streamed dimension is one tile, the loop outside it
decides which other operand stays too. Each resource is busy for the sum over all tiles, ragged ones included:

    array = sum of passes (k + m' + n' - 2) cycles       a pass: m' x n' outputs, at most sqrt(num_macs) each way
    port  = operands read by the array, partial sums, operands arriving; over sram_bytes_per_clock
    rows, cols, out = bytes over the busiest link of that kind / noc_bytes_per_clock
    dram  = A visits_A + B visits_B + C (write + (visits_C - 1) 8 bytes) / bandwidth
    work  = max(array, port)
    time  = max(first + work + last, work / steps + max(dram, rows, cols, out))

with `first` the loads that precede the first pass, `last` the stores that follow the last one, `work / steps` the
last tile, during which memory has nothing left to do. The pass is that of an output-stationary systolic array
(Samajdar et al., SCALE-Sim, arXiv 1811.02883) whose results leave while the next operands enter.

The least time is exact on the lattice. Of the mappings within `SLACK` of it, the one that moves the fewest DRAM bytes
is reported. Every term falls with every resource and the lattice does not depend on the die, so the least time is
monotone.

Neglects: waiting of one tile for another where tiles are unequal (the maximum of sums stands for the sum of maxima),
latency of hops (tens of cycles), bank conflicts, contention of loads and stores in DRAM, the vector unit.
"""

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from watos_jax.hardware import Die
from watos_jax.operators.mapping import PARTIAL_BYTES, Cost, Cut, Machine, Mapping, best, cut, machine
from watos_jax.relax import Relaxation
from watos_jax.units import FLOP_PER_MAC, Scalar
from watos_jax.workload import ELEMENT_BYTES

OUTER: Final = np.array(
    [1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 512, 1024, np.inf]
)
"""Numbers of tiles of the two dimensions of the stationary operand; the last means tiles of one element."""
STREAMED: Final = np.array([1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256, 512, 2048, np.inf])
"""Numbers of tiles of the streamed dimension."""
BANDS: Final = (1, 2, 4, 8, 16)
"""Numbers of products side by side, for products that come in numbers."""
DATAFLOWS: Final = ("output", "weight", "input")
"""Names of the stationary operand, in the order of `Mapping.dataflow`."""
SPILL_BYTES: Final = 2.0 * PARTIAL_BYTES
"""Bytes of a partial sum that is written and read again."""


def map_product(
    die: Die,
    rows: Scalar,
    cols: Scalar,
    depth: Scalar,
    count: Scalar = 1.0,
    result_bytes: Scalar = ELEMENT_BYTES,
    *,
    bands: tuple[int, ...] = (1,),
) -> Mapping:
    """Map `count` products of (rows x depth) by (depth x cols) on a die; see the module for the model.

    Args:
        die: where it runs.
        rows: at least 0; all sizes are rounded up to whole numbers.
        cols: likewise.
        depth: likewise.
        count: products of this size; at least 0.
        result_bytes: DRAM bytes per element of the result, an accumulator that is read and written included.
        bands: products side by side to be tried; `BANDS` where count is large.

    Returns:
        Scalars of shape (), of the whole number of products; zero where there is nothing to do.
    """
    present = jnp.where((rows > 0) & (cols > 0) & (depth > 0) & (count > 0), 1.0, 0.0)
    rows, cols, depth, count = (jnp.maximum(jnp.ceil(jnp.asarray(x, float)), 1.0) for x in (rows, cols, depth, count))
    sizes = _Sizes(rows, cols, depth, count, jnp.asarray(result_bytes, float))
    flop = FLOP_PER_MAC * sizes.rows * sizes.cols * sizes.depth * sizes.number
    return best(_costs(machine(die), sizes, bands), die, flop, present)


class _Sizes(NamedTuple):
    rows: Array
    cols: Array
    depth: Array
    number: Array
    result_bytes: Array


class _Visits(NamedTuple):
    # how often each tile of A and B is fetched, and how often the partial sums of C leave the cores
    a: Array
    b: Array
    c: Array


class _Links(NamedTuple):
    # bytes over the busiest link by which A, B and C pass, over all tiles; of the first loads and last store; byte hops
    rows: Array
    cols: Array
    out: Array
    first_rows: Array
    first_cols: Array
    last_out: Array
    hops: Array


def _costs(m: Machine, sizes: _Sizes, bands: tuple[int, ...]) -> Cost:
    # axes: dataflow, tiles of the stream, bands, tiles of one dimension of the stationary operand, of the other; the
    # last fills whole vectors
    side_by_side = jnp.reshape(jnp.array(bands, float), (1, -1, 1, 1))
    ways = jnp.maximum(jnp.floor(m.rows / side_by_side), 1.0)
    first, second = (jnp.reshape(OUTER, shape) for shape in ((1, 1, -1, 1), (1, 1, 1, -1)))
    streamed, whole = jnp.reshape(STREAMED, (-1, 1, 1, 1)), jnp.ones_like(ways)
    rows, cols, depth = sizes.rows, sizes.cols, sizes.depth
    spread = {
        "output": ((rows, first, ways), (cols, second, m.cols), (depth, streamed, whole)),
        "weight": ((rows, streamed, whole), (cols, first, m.cols), (depth, second, ways)),
        "input": ((rows, first, ways), (cols, streamed, whole), (depth, second, m.cols)),
    }
    each = []
    for number, dataflow in enumerate(DATAFLOWS):
        a, b, k = (cut(extent, tiles, along, m.side) for extent, tiles, along in spread[dataflow])
        label = jnp.full_like(whole, float(number)), a.tiles, b.tiles, k.tiles, side_by_side
        each.append(_cost(dataflow, m, a, b, k, sizes, side_by_side)._replace(label=label))
    shape = (len(STREAMED), len(bands), len(OUTER), len(OUTER))
    stacked = jax.tree.map(lambda *parts: jnp.stack([jnp.broadcast_to(x, shape) for x in parts]), *each)
    impossible = jnp.where(side_by_side > jnp.minimum(m.rows, sizes.number), jnp.inf, 0.0)
    return stacked._replace(footprint=stacked.footprint + impossible[None])


def _cost(dataflow: str, m: Machine, a: Cut, b: Cut, k: Cut, sizes: _Sizes, bands: Array) -> Cost:
    # a, b, k: cuts of rows, cols and depth
    left, right, result = sizes.rows * sizes.depth, sizes.depth * sizes.cols, sizes.rows * sizes.cols
    visits = _visits(dataflow, a, b, k, left, right, result)

    # one core, one product: cycles of the array, bytes through the SRAM port
    outputs = a.shares * b.passes + b.shares * a.passes
    array = (k.shares - 2.0 * k.tiles) * a.passes * b.passes + k.tiles * outputs
    arriving = a.shares * k.shares * visits.a + k.shares * b.shares * visits.b
    port = ELEMENT_BYTES * (k.shares * outputs + arriving) + SPILL_BYTES * k.tiles * a.shares * b.shares
    turns = jnp.ceil(sizes.number / bands)
    work = turns * jnp.maximum(array, port / m.port)

    # all bands share the ends of the columns; a band's own rows carry its results where they leave by rows
    links = _links(dataflow, a, b, k, visits, sizes)
    leaving = jnp.ones_like(bands) if dataflow == "input" else bands
    busiest = jnp.maximum(links.rows, jnp.maximum(bands * links.cols, leaving * links.out))
    dram = ELEMENT_BYTES * (left * visits.a + right * visits.b)
    dram += result * (sizes.result_bytes + SPILL_BYTES * (visits.c - 1.0))
    first_dram = bands * ELEMENT_BYTES * (a.size * k.size + k.size * b.size)
    last_dram = bands * sizes.result_bytes * a.last * b.last
    start = jnp.maximum(first_dram / m.dram, jnp.maximum(links.first_rows, bands * links.first_cols) / m.link)
    stop = jnp.maximum(last_dram / m.dram, leaving * links.last_out / m.link)
    moved = jnp.maximum(sizes.number * dram / m.dram, turns * busiest / m.link)
    steps = turns * a.tiles * b.tiles * k.tiles
    footprint = (
        ELEMENT_BYTES * a.share * k.share * _buffers(a, k)
        + ELEMENT_BYTES * k.share * b.share * _buffers(k, b)
        + PARTIAL_BYTES * a.share * b.share * _buffers(a, b)
    )
    return Cost(
        time=jnp.maximum(start + work + stop, work / steps + moved),
        dram=sizes.number * dram,
        sram=sizes.number * a.used * b.used * k.used * port,
        hops=sizes.number * links.hops,
        footprint=footprint,
        label=(),
    )


def _visits(dataflow: str, a: Cut, b: Cut, k: Cut, left: Array, right: Array, result: Array) -> _Visits:
    # the stationary operand is visited once; if the stream is one tile, so is one of the others, whichever saves more
    once = jnp.ones_like(a.tiles * b.tiles * k.tiles)
    if dataflow == "output":
        stay = (k.tiles <= 1.0) & (left * (b.tiles - 1.0) >= right * (a.tiles - 1.0))
        other = (k.tiles <= 1.0) & ~stay
        return _Visits(jnp.where(stay, 1.0, b.tiles), jnp.where(other, 1.0, a.tiles), once)
    spilt = SPILL_BYTES * result * (k.tiles - 1.0)
    if dataflow == "weight":
        stay = (a.tiles <= 1.0) & (ELEMENT_BYTES * left * (b.tiles - 1.0) >= spilt)
        other = (a.tiles <= 1.0) & ~stay
        return _Visits(jnp.where(stay, 1.0, b.tiles), once, jnp.where(other, 1.0, k.tiles))
    stay = (b.tiles <= 1.0) & (ELEMENT_BYTES * right * (a.tiles - 1.0) >= spilt)
    other = (b.tiles <= 1.0) & ~stay
    return _Visits(once, jnp.where(stay, 1.0, a.tiles), jnp.where(other, 1.0, k.tiles))


def _links(dataflow: str, a: Cut, b: Cut, k: Cut, visits: _Visits, sizes: _Sizes) -> _Links:
    rows, cols, depth = sizes.rows, sizes.cols, sizes.depth
    once, again = PARTIAL_BYTES * visits.c, PARTIAL_BYTES * (visits.c - 1.0)
    if dataflow == "output":
        return _Links(
            rows=ELEMENT_BYTES * a.shares * depth * visits.a,
            cols=ELEMENT_BYTES * depth * b.shares * visits.b,
            out=ELEMENT_BYTES * rows * b.shares,
            first_rows=ELEMENT_BYTES * a.share * k.size,
            first_cols=ELEMENT_BYTES * k.size * b.share,
            last_out=ELEMENT_BYTES * a.last * b.last_share,
            hops=ELEMENT_BYTES
            * (rows * depth * visits.a * b.used + depth * cols * visits.b * a.used + rows * cols * _way(a)),
        )
    if dataflow == "weight":
        return _Links(
            rows=ELEMENT_BYTES * rows * k.shares * visits.a,
            cols=ELEMENT_BYTES * depth * b.shares + again * rows * b.shares,
            out=once * rows * b.shares,
            first_rows=ELEMENT_BYTES * a.size * k.share,
            first_cols=ELEMENT_BYTES * k.size * b.share,
            last_out=PARTIAL_BYTES * a.last * b.last_share,
            hops=ELEMENT_BYTES * (rows * depth * visits.a * b.used + depth * cols * _way(k))
            + (once + again) * rows * cols * k.used,
        )
    return _Links(
        rows=ELEMENT_BYTES * a.shares * depth + again * a.shares * cols,
        cols=ELEMENT_BYTES * k.shares * cols * visits.b,
        out=once * a.shares * cols,
        first_rows=ELEMENT_BYTES * a.share * k.size,
        first_cols=ELEMENT_BYTES * k.share * b.size,
        last_out=PARTIAL_BYTES * a.last_share * b.last,
        hops=ELEMENT_BYTES * (rows * depth * _way(k) + depth * cols * visits.b * a.used)
        + (once + again) * rows * cols * k.used,
    )


def _way(shared: Cut) -> Array:
    # mean number of links to cores that each take their own piece
    return 0.5 * (shared.used + 1.0)


def _buffers(x: Cut, y: Cut) -> Array:
    return jnp.where(x.tiles * y.tiles > 1.0, 2.0, 1.0)


def elementwise_slowdown(die: Die, relax: Relaxation) -> Scalar:
    """Time of an element-wise operator over that of its DRAM traffic: links or SRAM ports may be slower than DRAM.

    `max(1, bandwidth / 2 / (core_rows noc rate), bandwidth / (cores SRAM rate))`: as many bytes enter by the row ends
    as leave, each passes a port once, and the operator streams in pieces as small as one likes. Neglects: the vector
    unit.

    Args:
        die: where it runs.
        relax: hard or smooth.
    """
    per_cycle = die.memory.bandwidth / die.core.clock
    links = 0.5 * per_cycle / (die.core_rows * die.core.noc_bytes_per_clock)
    ports = per_cycle / (die.num_cores * die.core.sram_bytes_per_clock)
    return relax.maximum(relax.maximum(jnp.ones_like(links), links), ports)
