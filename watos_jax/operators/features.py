"""Inputs of the operator predictor, which takes their logarithms: sizes, resources, a few mappings in closed form.

A mapping in closed form is one tile that fills the cores, or what memory and rounding would make of it; the mapper
compares thousands of tilings. The closed forms tell the network where ceilings jump and which resource is short.
"""

from typing import Final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.hardware import Die
from watos_jax.operators.attention_mapper import SCORE_PORT_BYTES
from watos_jax.operators.mapper import OUTER, STREAMED
from watos_jax.operators.mapping import PARTIAL_BYTES, Machine, per_cycle
from watos_jax.operators.roofline import SCORE_BYTES
from watos_jax.relax import Relaxation
from watos_jax.units import Leaf, Scalar
from watos_jax.workload import ELEMENT_BYTES, Attention, Matmuls
from watos_jax.xla import fence, fold

Features = Float[Array, "*ops features"]

_DIE: Final = ("core_rows", "core_cols", "array side", "sram_bytes", "port over operands", "noc_bytes_per_clock")
PRODUCT_BOX: Final = ("rows", "cols", "depth", "count", "gradient_bytes", *_DIE, "dram bytes per clock")
"""What the range of training of products is stated in: the first inputs of their network."""
ATTENTION_BOX: Final = (
    *("units", "rows of a unit", "keys", "sequence", "head_dim", "value_dim", "group", "1 + materialised", *_DIE),
    "dram bytes per clock",
)
"""The same for attention cores."""
TRIED: Final = {
    (1, 1): (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 16),
    (1, 2): (1, 2, 3, 4, 5, 6, 8, 16),
    (1, 4): (1, 2, 10),
    (1, 8): (1, 4, 5, 12),
    (2, 1): (1, 2, 4, 5, 8, 10, 12, 16),
    (2, 4): (2, 4, 8),
    (3, 1): (2, 6, 12),
    (3, 2): (1, 9),
    (3, 4): (3,),
    (4, 1): (2, 3, 16),
    (4, 8): (1,),
    (8, 1): (5,),
}
"""Mappings that the closed form of attention tries: for a number of rectangles along the columns, and of passes of the
MAC array along the query rows of a block, the numbers of rectangles along the rows. They were chosen of 264 one by one,
each the one with which the least times of 3,000 samples of training fall most."""


NEVER: Final = 1e30
"""Cycles of a mapping that a die is too small for: a number, for infinity times a slope of 0 is none."""


def _resources(die: Die) -> Machine:
    # the port is counted in operands that a MAC array takes in a cycle, which says whether it is the bottleneck
    whole = per_cycle(die)
    return whole._replace(port=whole.port / (2.0 * ELEMENT_BYTES * whole.side))


def _stack(values: list[Leaf], like: Array) -> Features:
    return jnp.moveaxis(jnp.stack([jnp.broadcast_to(value, like.shape) for value in values]), 0, -1)


def _sizes(shapes: Matmuls) -> list[Array]:
    # an absent product counts as one of one element; it costs nothing in any case
    return [jnp.where(size > 0, size, 1.0) for size in (shapes.rows, shapes.cols, shapes.depth, shapes.count)]


def product_features(die: Die, shapes: Matmuls, gradient_bytes: Scalar, relax: Relaxation) -> Features:
    """Inputs of the network for products.

    The columns of `PRODUCT_BOX`, and the shares and passes that ceilings make of them: for each dataflow of
    each of the three products of training, over the time of an ideal array, the time of the cores for one tile, and
    the largest of it and what DRAM and links take for it; then the least of these over the dataflows.

    Args:
        die: where they run.
        shapes: the products.
        gradient_bytes: bytes of an accumulated gradient element.
        relax: hard or smooth.
    """
    rows, cols, depth, count = _sizes(shapes)
    r = _resources(die)
    terms: list[Leaf] = [rows, cols, depth, count, gradient_bytes, *r[:-1]]  # all but the clock
    terms += [relax.maximum(jnp.ones_like(r.port), 1.0 / r.port), rows * depth + depth * cols + rows * cols]
    shares = []
    for extent in (rows, cols, depth):
        by_rows, by_cols = (relax.ceil(extent / ways) for ways in (r.rows, r.cols))
        shares.append((by_rows, by_cols))
        terms += [by_rows, relax.ceil(by_rows / r.side), by_cols, relax.ceil(by_cols / r.side)]
        terms.append(relax.ceil(extent / r.side))
    tiled = 4.0 * ELEMENT_BYTES / jnp.sqrt(r.rows * r.cols * r.sram / PARTIAL_BYTES)
    per_mac = 1.0 / (r.rows * r.cols * r.side**2)
    accumulated = ELEMENT_BYTES + 2.0 * gradient_bytes
    m, n, k = zip((rows, cols, depth), shares, strict=True)
    for left, right, inner, written in ((m, n, k, ELEMENT_BYTES), (m, k, n, ELEMENT_BYTES), (k, n, m, accumulated)):
        mapped = _one_tile(r, left, right, inner, written, tiled, relax)
        best = relax.minimum(mapped[1], relax.minimum(mapped[3], mapped[5]))
        ideal = per_mac * rows * cols * depth
        terms += [x / ideal for x in (*mapped, best)]
    return _stack(terms, rows)


_Extent = tuple[Array, tuple[Array, Array]]


def _one_tile(
    r: Machine, left: _Extent, right: _Extent, inner: _Extent, written: Leaf, tiled: Scalar, relax: Relaxation
) -> list[Array]:
    # cycles of the cores, and of the slowest resource, for each dataflow: see `mapper`, of which these are the terms
    (m, (m_by_rows, _)), (n, (_, n_by_cols)), (k, (k_by_rows, k_by_cols)) = left, right, inner
    moved = ELEMENT_BYTES * (m * k + k * n) + written * m * n
    dram = relax.maximum(moved, tiled * m * n * k) / r.dram
    times = []
    for rows, cols, depth, by_rows, by_cols, leaving in (
        (m_by_rows, n_by_cols, k, m_by_rows * k, k * n_by_cols, ELEMENT_BYTES * m * n_by_cols),
        (m, n_by_cols, k_by_rows, m * k_by_rows, k * n_by_cols, PARTIAL_BYTES * m * n_by_cols),
        (m_by_rows, n, k_by_cols, m_by_rows * k, k_by_cols * n, PARTIAL_BYTES * m_by_rows * n),
    ):
        passes, across = relax.ceil(rows / r.side), relax.ceil(cols / r.side)
        outputs = rows * across + cols * passes
        array = relax.maximum(depth - 2.0, 0.0 * depth) * passes * across + outputs
        read = ELEMENT_BYTES * depth * (outputs + rows + cols) + 2.0 * PARTIAL_BYTES * rows * cols
        work = relax.maximum(array, read / (2.0 * ELEMENT_BYTES * r.side * r.port))
        links = relax.maximum(ELEMENT_BYTES * relax.maximum(by_rows, by_cols), leaving) / r.link
        times += [work, relax.maximum(relax.maximum(work, links), dram)]
    return times


def _units(core: Attention) -> list[Scalar]:
    # keys and values of one sequence and head, the query rows that share them, keys met by a row, keys to be read
    sequences = jnp.maximum(core.key_tokens / core.sequence, 1.0)
    rows = core.queries / sequences * core.heads / core.kv_heads
    return [sequences * core.kv_heads, rows, core.keys, core.sequence, core.head_dim, core.value_dim]


def attention_features(die: Die, core: Attention, relax: Relaxation) -> Features:
    """Inputs of the network for attention cores.

    The columns of `ATTENTION_BOX` and paddings, and the least time, forward and backward, of a few blocks of
    queries on each number of rectangles of cores, over the time of an ideal array.

    Args:
        die: where they run.
        core: their sizes.
        relax: hard or smooth.
    """
    units, rows, keys, sequence, head, value = _units(core)
    group, r = core.heads / core.kv_heads, _resources(die)
    cores = r.rows * r.cols
    width = head + value
    ideal = units * rows * keys * width / (cores * r.side**2)
    compute = ideal * relax.maximum(jnp.ones_like(r.port), 1.0 / r.port)
    moved = units * width * (rows + sequence)
    terms = [compute * r.dram / moved, compute * r.link * r.rows / moved, cores / units, rows * units / cores]
    terms += [rows * width / r.sram, sequence * width / r.sram, sequence / keys]
    for extent, ways in ((units, r.rows), (units, r.cols), (units, cores), (rows, cores), (rows, r.rows)):
        terms.append(relax.ceil(extent / ways) * ways / extent)
    for extent in (head, value, rows / cores + 1.0):
        terms.append(relax.ceil(extent / r.side) * r.side / extent)
    terms += [time / ideal for time in _blocks(r, core, relax)]
    sizes = [units, rows, keys, sequence, head, value, group, 1.0 + core.materialised]
    return _stack([*sizes, *r[:-1], *terms], core.queries)


_CANDIDATES: Final = np.array([(down, *way) for way, every in TRIED.items() for down in every], np.float32).T


def _blocks(r: Machine, core: Attention, relax: Relaxation) -> tuple[Array, Array]:
    # one axis of all candidates, so that it vectorises; keys are cut so that SRAM suffices and loads hide
    down, lanes, passes = (jnp.asarray(each) for each in _CANDIDATES)
    units, rows, keys, sequence, head, value = _units(core)
    units, rows = relax.ceil(units), relax.ceil(rows)
    group, width = core.heads / core.kv_heads, head + value
    port = 2.0 * ELEMENT_BYTES * r.side * r.port
    high, wide = (jnp.maximum(jnp.floor(a / b), 1.0) for a, b in ((r.rows, down), (r.cols, lanes)))
    impossible = jnp.where((down > r.rows) | (lanes > r.cols), NEVER, 0.0)
    # what the die alone decides is computed once, not in every candidate of every strategy
    high, both, impossible = fence((high, high * wide, impossible), r.side)
    behind = relax.ceil(units / down)
    turns = relax.ceil(behind / lanes)
    row_bytes = ELEMENT_BYTES * head + (PARTIAL_BYTES + ELEMENT_BYTES) * value
    most = jnp.maximum(0.5 * r.sram / (row_bytes + 2.0 * PARTIAL_BYTES * r.side), 1.0)
    blocks = _tried(relax.ceil(rows / both) / jnp.minimum(most, r.side * passes), OUTER, relax)
    size = relax.ceil(rows / blocks)
    share = relax.ceil(size / both)
    met = jnp.minimum(keys + 0.5 * (size / group - 1.0), sequence)
    key_bytes = 2.0 * ELEMENT_BYTES * width + PARTIAL_BYTES * share
    least = met * key_bytes / jnp.maximum(r.sram - share * row_bytes, key_bytes)
    query_passes, value_passes = blocks * relax.ceil(share / r.side), relax.ceil(value / r.side)
    shares = blocks * share
    again = jnp.maximum(2.0 * PARTIAL_BYTES * shares * value / port, 2.0 * query_passes * value_passes * r.side)
    used, at_once = jnp.minimum(units, down * lanes), jnp.minimum(behind, lanes)
    loads = used * ELEMENT_BYTES * met * width / r.dram
    cuts = _tried(jnp.clip(jnp.sqrt(loads / (turns * again)), jnp.maximum(least, 1.0), met), STREAMED, relax)
    met_passes = relax.ceil(met / r.side)
    outputs = shares * met_passes + met * query_passes
    sums = shares * value_passes + value * query_passes
    array = (head - 2.0) * query_passes * met_passes + outputs
    array += (met - 2.0 * cuts) * query_passes * value_passes + cuts * sums
    fetched = jnp.maximum(jnp.where(cuts <= 1.0, 1.0, blocks) * met, sequence)
    read = head * outputs + met * sums + (fetched + shares) * width
    read = ELEMENT_BYTES * read + SCORE_PORT_BYTES * shares * met + 2.0 * PARTIAL_BYTES * cuts * shares * value
    work = turns * jnp.maximum(array, read / port)
    links = ELEMENT_BYTES * behind * (width * fetched + head * rows / high) / r.link
    scores = SCORE_BYTES * core.materialised * core.queries * core.keys * core.heads
    moved = (ELEMENT_BYTES * units * width * (rows + fetched) + scores) / r.dram
    busy = jnp.maximum(moved, links)
    size, first_keys = rows / blocks, met / cuts * width
    part = size / high
    ends = jnp.maximum(used * (size * head + first_keys) / r.dram, at_once * (part * head + first_keys) / r.link)
    ends += jnp.maximum(used * size * value / r.dram, at_once * part * value / r.link)
    ends *= ELEMENT_BYTES
    last = 1.0 / (turns * blocks * cuts)
    products = 2.5 - 0.5 * core.materialised
    forward = jnp.maximum(ends + work, work * last + busy) + impossible
    backward = jnp.maximum(2.0 * ends + products * work, products * work * last + 2.0 * busy) + impossible
    return fold(jnp.minimum, forward), fold(jnp.minimum, backward)


def _tried(x: Array, numbers: np.ndarray, relax: Relaxation) -> Array:
    # the next of the numbers of tiles that the mapper tries: they lie a step apart that widens at its own multiples
    steps = np.diff(numbers[np.isfinite(numbers)])
    step = jnp.ones_like(x)
    for before, start, wider in zip(steps, numbers[1:], steps[1:], strict=False):
        if wider != before and start % wider == 0:
            step = jnp.where(x > start, wider, step)
    return relax.ceil(x / step) * step
