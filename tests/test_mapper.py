"""Mapper of operators: against a loop nest that walks the tiles, and the laws that every mapping obeys."""

import itertools
import math
import random
from dataclasses import replace

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import loop_nest
import numpy as np
import pytest
from hypothesis import example, given, settings

from watos_jax import HARD, Efficiency, Strategy
from watos_jax.hardware import Core, Die, Memory
from watos_jax.operators.attention_mapper import map_attention
from watos_jax.operators.mapper import BANDS, OUTER, STREAMED, elementwise_slowdown, map_product
from watos_jax.operators.mapping import SLACK
from watos_jax.operators.roofline import attention_cost, matmul_cost
from watos_jax.presets import models, technologies, wafers
from watos_jax.workload import Attention, Matmuls, attention

FLOWS = ("output", "weight", "input")
pytestmark = pytest.mark.float64
product = jax.jit(lambda die, *sizes: map_product(die, *sizes))
products = jax.jit(lambda die, *sizes: map_product(die, *sizes, bands=BANDS))
core = jax.jit(map_attention, static_argnames="backward")
roofline = jax.jit(lambda die, shape, width=4.0: matmul_cost(die, Efficiency(), shape, width, HARD))
core_roofline = jax.jit(lambda die, shape: attention_cost(die, Efficiency(), shape, HARD))


def die_of(rows, cols, macs, sram, port, link, bandwidth):
    """A die at 1 GHz, so that a cycle is a nanosecond."""
    return Die(
        core_rows=float(rows),
        core_cols=float(cols),
        core=Core(
            num_macs=float(macs),
            clock=1e9,
            sram_bytes=float(sram),
            sram_bytes_per_clock=float(port),
            noc_bytes_per_clock=float(link),
        ),
        memory=Memory(num_stacks=1.0, stack_bytes=1e9, stack_bandwidth=float(bandwidth), sustained_fraction=1.0),
    )


def small_cases(count):
    rng = random.Random(7)
    for _ in range(count):
        die = die_of(
            rng.randint(1, 3),
            rng.randint(1, 3),
            rng.choice([4, 6, 9]),
            rng.choice([64, 150, 400, 4000]),
            rng.choice([4, 16]),
            rng.choice([1, 8]),
            rng.choice([1e9, 1e10, 1e11]),
        )
        dims = {name: rng.randint(1, most) for name, most in (("rows", 6), ("cols", 6), ("depth", 7))}
        yield die, dims, rng.choice([2.0, 10.0])


def sizes_of(dims, tiles):
    return {name: math.ceil(dims[name] / float(number)) for name, number in zip(dims, tiles, strict=False)}


def tile_sizes(extent, lattice):
    return sorted({max(math.ceil(extent / tiles), 1) for tiles in lattice})


def attention_case(rng):
    """A die, the sizes that the loop nest takes, and the same as a record."""
    die = die_of(
        rng.randint(1, 5),
        rng.randint(1, 5),
        rng.choice([4, 9, 16]),
        rng.choice([300, 1000, 4000]),
        rng.choice([4, 16]),
        rng.choice([1, 8]),
        rng.choice([1e9, 1e10, 1e11]),
    )
    batch, heads, group, sequence = rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 2), rng.choice([6, 12, 16])
    queries, keys = sequence // rng.randint(1, 2), rng.choice([sequence, sequence / 2])
    head, value = rng.randint(2, 6), rng.randint(2, 6)
    sizes = batch * heads, queries * group, group, keys, sequence, head, value
    record = (batch * queries, keys, batch * sequence, heads * group, heads, head, value, sequence, 0)
    return die, sizes, Attention(*(jnp.asarray(float(x)) for x in record))


# ---- the loop nest agrees


@pytest.mark.parametrize("case", range(6))
def test_least_time_is_the_least_of_all_loop_nests(case):
    die, dims, result_bytes = list(small_cases(6))[case]
    least = math.inf
    for dataflow in FLOWS:
        lattices = [STREAMED if name == loop_nest.STREAM[dataflow] else OUTER for name in dims]
        tilings = [tile_sizes(extent, lattice) for extent, lattice in zip(dims.values(), lattices, strict=True)]
        for tiling in itertools.product(*tilings):
            sizes = dict(zip(dims, tiling, strict=True))
            if loop_nest.footprint(die, dims, sizes, dataflow) <= die.core.sram_bytes:
                walked = loop_nest.walk(die, dims, sizes, dataflow, result_bytes)
                least = min(least, loop_nest.cycles(die, walked))
    assert float(product(die, *map(float, dims.values()), 1.0, result_bytes).time) * 1e9 == pytest.approx(least)


@pytest.mark.parametrize("case", range(20))
def test_the_reported_mapping_moves_what_the_loop_nest_counts(case):
    die, dims, result_bytes = list(small_cases(20))[case]
    found = product(die, *map(float, dims.values()), 1.0, result_bytes)
    dataflow, sizes = FLOWS[int(found.dataflow)], sizes_of(dims, found.tiles)
    walked = loop_nest.walk(die, dims, sizes, dataflow, result_bytes)
    assert float(found.dram_bytes) == pytest.approx(walked.dram)
    assert 1 - 1e-9 <= loop_nest.cycles(die, walked) / (float(found.time) * 1e9) <= 1 + SLACK + 1e-9
    assert float(found.sram_bytes) == pytest.approx(len(walked.array) * max(walked.port.values()))
    even = all(extent % size == 0 for extent, size in zip(dims.values(), sizes.values(), strict=True))
    by_row, by_col = loop_nest.AXES[dataflow]
    even &= sizes[by_row] % int(die.core_rows) == 0 and sizes[by_col] % int(die.core_cols) == 0
    if even:
        assert float(found.noc_byte_hops) == pytest.approx(walked.hops)
    assert float(found.noc_byte_hops) >= (1 - 1e-9) * walked.hops  # ragged tiles are counted as whole ones


@pytest.mark.parametrize("case", range(12))
def test_attention_is_what_the_loop_nest_counts(case):
    die, sizes, shape = attention_case(random.Random(case))
    found = core(die, shape)
    down, across, blocks, chunks = (float(x) for x in found.tiles)
    _, rows, group, keys, sequence, *_ = sizes
    block = math.ceil(rows / blocks)
    chunk = math.ceil(min(math.ceil(keys + 0.5 * (block / group - 1)), sequence) / chunks)
    count, cycles = loop_nest.walk_attention(die, sizes, (int(down), int(across)), block, chunk)
    assert float(found.dram_bytes) == pytest.approx(count.dram)
    assert 1 - 1e-9 <= cycles / (float(found.time) * 1e9) <= 1 + SLACK + 1e-9


@pytest.mark.parametrize("case", range(8))
def test_a_strict_double_buffer_is_little_slower(case):
    # the model sums each resource and takes the largest; the replay waits for every tile
    rng = random.Random(case)
    port, link, bandwidth = rng.choice([64, 256]), rng.choice([16, 64]), rng.choice([2e10, 6e10, 2e11])
    die = die_of(rng.randint(2, 4), rng.randint(2, 4), 256, rng.choice([2**17, 2**20]), port, link, bandwidth)
    dims = {name: rng.choice([256, 512, 700, 1024]) for name in ("rows", "cols", "depth")}
    found = product(die, *map(float, dims.values()), 1.0, 2.0)
    walked = loop_nest.walk(die, dims, sizes_of(dims, found.tiles), FLOWS[int(found.dataflow)])
    assert 0.95 <= loop_nest.replayed(die, walked) / (float(found.time) * 1e9) <= 1.3


@pytest.mark.parametrize("case", range(4))
def test_the_lattice_of_tiles_is_close_to_all_sizes(case):
    die, dims, result_bytes = list(small_cases(4))[case]
    least = math.inf
    for dataflow in FLOWS:
        for tiling in itertools.product(*(range(1, extent + 1) for extent in dims.values())):
            sizes = dict(zip(dims, tiling, strict=True))
            if loop_nest.footprint(die, dims, sizes, dataflow) <= die.core.sram_bytes:
                walked = loop_nest.walk(die, dims, sizes, dataflow, result_bytes)
                least = min(least, loop_nest.cycles(die, walked))
    found = float(product(die, *map(float, dims.values()), 1.0, result_bytes).time) * 1e9
    assert least * (1 - 1e-9) <= found <= 1.1 * least


# ---- by hand


def test_a_product_by_hand():
    # 2 x 2 cores of 4 x 4 MACs; one tile: each core makes 8 x 8 outputs in 2 x 2 passes over a depth of 16
    die = die_of(2, 2, 16, 2**20, 2**20, 2**20, 1e18)
    found = product(die, 16.0, 16.0, 16.0, 1.0, 2.0)
    assert float(found.time) * 1e9 == pytest.approx(4 * (16 + 4 + 4 - 2), rel=1e-3)
    assert float(found.dram_bytes) == 3 * 2 * 16**2
    # with DRAM alone in the way: three matrices at a byte per cycle; the last tile waits for nothing
    slow = die_of(2, 2, 16, 2**20, 2**20, 2**20, 1e9)
    assert float(product(slow, 16.0, 16.0, 16.0, 1.0, 2.0).time) * 1e9 == pytest.approx(3 * 2 * 16**2, rel=0.1)


def test_an_operator_that_fits_nowhere_has_a_negative_margin():
    die = die_of(4, 4, 256, 8, 64, 64, 1e11)  # three operands of one element take 2 x 2 + 2 x 2 + 4 bytes x 2
    found = product(die, 64.0, 64.0, 64.0, 1.0, 2.0)
    assert float(found.margin) < 0
    assert np.isfinite(float(found.time))
    assert float(product(replace(die, core=replace(die.core, sram_bytes=2.0**14)), 64.0, 64.0, 64.0).margin) > 0


def test_nothing_takes_no_time():
    found = product(die_of(4, 4, 256, 2**20, 64, 64, 1e11), 0.0, 64.0, 64.0, 1.0, 2.0)
    assert float(found.time) == float(found.dram_bytes) == float(found.flop) == 0


def test_energy_is_a_sum_of_prices():
    found = product(die_of(4, 4, 256, 2**20, 64, 64, 1e11), 512.0, 512.0, 512.0, 1.0, 2.0)
    prices = technologies.DENSE_N7
    parts = (
        (found.flop, prices.flop_energy),
        (found.sram_bytes, prices.sram_energy),
        (found.dram_bytes, prices.dram_energy),
    )
    assert float(found.energy(prices)) == pytest.approx(sum(float(amount) * float(price) for amount, price in parts))
    assert float(found.flop) == 2 * 512**3


def test_many_small_products_run_side_by_side():
    die = die_of(16, 4, 256, 2**20, 256, 256, 1e13)
    alone = products(die, 16.0, 64.0, 64.0, 1.0, 2.0)
    many = products(die, 16.0, 64.0, 64.0, 64.0, 2.0)
    in_turn = product(die, 16.0, 64.0, 64.0, 64.0, 2.0)
    assert float(many.tiles[3]) > 1
    assert float(many.time) < 0.8 * float(in_turn.time)
    assert float(in_turn.time) <= 64 * float(alone.time)


def test_elementwise_operators_wait_for_the_slowest_of_three():
    die = die_of(4, 2, 256, 2**20, 64, 32, 64e9)
    assert float(elementwise_slowdown(die, HARD)) == 1
    narrow = replace(die, core=replace(die.core, noc_bytes_per_clock=1.0))  # half the bytes enter by four rows
    assert float(elementwise_slowdown(narrow, HARD)) == pytest.approx((1 / 2 / 4) / (1 / 64))
    starved = replace(die, core=replace(die.core, sram_bytes_per_clock=1.0))  # all of them pass eight ports
    assert float(elementwise_slowdown(starved, HARD)) == pytest.approx((1 / 8) / (1 / 64))


# ---- laws

sizes = st.integers(1, 5000)
dies = st.builds(
    die_of,
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from([64, 256, 546.3, 1000]),
    st.floats(2**10, 2**23),
    st.floats(8, 1000),
    st.floats(4, 1000),
    st.floats(1e9, 1e13),
)
heads = st.sampled_from([1, 2, 3, 8, 24])


def record(batch, group, kv_heads, sequence, parts, window, dim, materialised):
    keys = sequence if materialised else max(sequence * window, 1)
    numbers = (batch * sequence / parts, keys, batch * sequence, group * kv_heads, kv_heads, dim, dim, sequence)
    return Attention(*(jnp.asarray(float(x)) for x in (*numbers, materialised)))


cores = st.builds(
    record,
    st.integers(1, 4),
    heads,
    heads,
    st.sampled_from([64, 500, 2048, 8192]),
    st.sampled_from([1, 2]),
    st.sampled_from([0.5, 0.1]),
    st.sampled_from([32, 64, 128]),
    st.sampled_from([0, 1]),
)


def shapes(rows, cols, depth, count=1.0):
    return Matmuls(*(jnp.asarray([float(x)]) for x in (rows, cols, depth, count)))


@settings(max_examples=150)
@given(die=dies, rows=sizes, cols=sizes, depth=sizes, count=st.sampled_from([1, 3, 40]))
def test_a_mapping_is_never_better_than_its_bounds(die, rows, cols, depth, count):
    found = products(die, float(rows), float(cols), float(depth), float(count), 2.0)
    macs = rows * cols * depth * count
    # a negative margin means that not even the smallest tile fits: then nothing bounds its traffic
    assert float(found.margin) > 0
    assert float(found.time) >= (1 - 1e-9) * 2 * macs / float(die.flop_rate)
    elements = float(found.dram_bytes) / 2
    assert elements >= (1 - 1e-9) * count * (rows * cols + rows * depth + cols * depth)
    assert elements >= (1 - 1e-9) * 2 * macs / math.sqrt(float(die.sram_bytes) / 2)
    assert float(found.time) >= (1 - SLACK) * float(found.dram_bytes) / float(die.memory.bandwidth) * 0.99


RESOURCES = ("core_rows", "core_cols", "num_macs", "clock", "sram_bytes", "sram_bytes_per_clock", "noc_bytes_per_clock")


def with_more(die, resource, factor):
    if resource == "bandwidth":
        return replace(die, memory=replace(die.memory, stack_bandwidth=factor * die.memory.stack_bandwidth))
    if resource in ("core_rows", "core_cols"):
        return replace(die, **{resource: math.ceil(factor * getattr(die, resource)) + 0.0})
    return replace(die, core=replace(die.core, **{resource: factor * getattr(die.core, resource)}))


@settings(max_examples=150)
@given(
    die=dies,
    rows=sizes,
    cols=sizes,
    depth=sizes,
    count=st.sampled_from([1, 20]),
    resource=st.sampled_from([*RESOURCES, "bandwidth"]),
    factor=st.floats(1.0, 4.0),
)
def test_more_of_anything_is_never_slower(die, rows, cols, depth, count, resource, factor):
    before, after = (
        products(d, float(rows), float(cols), float(depth), float(count), 2.0)
        for d in (die, with_more(die, resource, factor))
    )
    assert float(after.time) <= (1 + 1e-9) * float(before.time)


@settings(max_examples=60)
@given(die=dies, shape=cores, resource=st.sampled_from([*RESOURCES, "bandwidth"]), factor=st.floats(1.0, 4.0))
def test_more_of_anything_never_slows_attention(die, shape, resource, factor):
    before, after = (core(d, shape) for d in (die, with_more(die, resource, factor)))
    assert float(after.time) <= (1 + 1e-9) * float(before.time)


# ---- the roofline is a bound


@settings(max_examples=100)
@given(die=dies, rows=sizes, cols=sizes, depth=sizes, gradient_bytes=st.sampled_from([2.0, 4.0]))
def test_the_roofline_of_a_product_and_its_gradients_is_never_above(die, rows, cols, depth, gradient_bytes):
    bound = roofline(die, shapes(rows, cols, depth), gradient_bytes)
    rows, cols, depth = float(rows), float(cols), float(depth)
    forward = product(die, rows, cols, depth, 1.0, 2.0)
    inputs = product(die, rows, depth, cols, 1.0, 2.0)
    weights = product(die, depth, cols, rows, 1.0, 2.0 + 2.0 * gradient_bytes)
    assert float(bound.forward[0]) <= (1 + 1e-9) * float(forward.time)
    assert float(bound.backward[0]) <= (1 + 1e-9) * float(inputs.time + weights.time)
    assert float(bound.forward_bytes[0]) <= (1 + 1e-9) * float(forward.dram_bytes)
    assert float(bound.backward_bytes[0]) <= (1 + 1e-9) * float(inputs.dram_bytes + weights.dram_bytes)


@settings(max_examples=60)
@given(die=dies, shape=cores)
# a core keeps its queries and streams the keys past them: less traffic than a product's bound would allow
@example(die=die_of(1, 21, 64, 1552.0, 8.0, 4.0, 1e9), shape=record(1, 1, 1, 500, 1, 0.5, 32, 1))
def test_the_roofline_of_attention_is_never_above(die, shape):
    bound, forward, backward = core_roofline(die, shape), core(die, shape), core(die, shape, backward=True)
    assert float(bound.forward) <= (1 + 1e-9) * float(forward.time)
    assert float(bound.backward) <= (1 + 1e-9) * float(backward.time)
    assert float(bound.forward_bytes) <= (1 + 1e-9) * float(forward.dram_bytes)
    assert float(bound.backward_bytes) <= (1 + 1e-9) * float(backward.dram_bytes)


def test_keys_are_read_once_if_the_queries_stay():
    # a square root of the SRAM, as for products, would ask for twice the traffic of this mapping
    die = die_of(8, 8, 256, 2**17, 64, 64, 1e9)
    shape = record(1, 1, 1, 8192, 1, 0.5, 64, 0)
    assert float(core(die, shape).dram_bytes) == pytest.approx(2 * 8192 * 4 * 64)
    assert float(core_roofline(die, shape).forward_bytes) == pytest.approx(2 * 8192 * 4 * 64)


def test_the_roofline_is_an_optimist_by_less_than_a_fifth_on_large_products():
    die = jax.tree.map(float, wafers.WATOS_CONFIG_3.die)
    for rows, cols, depth in ((4096, 8192, 8192), (4096, 28672, 8192), (8192, 1024, 8192)):
        ideal = float(roofline(die, shapes(rows, cols, depth)).forward[0])
        assert 1 < float(product(die, float(rows), float(cols), float(depth), 1.0, 2.0).time) / ideal < 1.2


def test_attention_of_a_model_is_mapped_in_both_directions():
    die = jax.tree.map(float, wafers.WATOS_CONFIG_3.die)
    shape = attention(models.LLAMA3_70B, Strategy(tensor_rows=4))
    forward, backward = core(die, shape), core(die, shape, backward=True)
    assert 1.5 * float(forward.time) < float(backward.time) < 3 * float(forward.time)
    assert float(backward.flop) == pytest.approx(2.5 * float(forward.flop))
