"""Roofline of single operators, and how operators add up to a layer at every recomputation level."""

from dataclasses import fields, replace
from itertools import pairwise

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from watos_jax.hardware import Core, Die, Efficiency, Memory, Precision
from watos_jax.operators.layer import Pieces, pieces, recomputed
from watos_jax.operators.roofline import attention_cost, elementwise_times, matmul_cost
from watos_jax.presets import models, wafers
from watos_jax.relax import HARD, Smooth
from watos_jax.strategy import RECOMPUTE_LEVELS, Strategy
from watos_jax.workload import MATMULS, Attention, Elementwise, Matmuls, attention, elementwise, matmuls

EXACT = 2e-6  # relative; loose enough for float32
IDEAL = Efficiency()
products = jax.jit(matmul_cost)
core_cost = jax.jit(attention_cost)
groups = jax.jit(elementwise_times)

# 4 x 2 cores of 256 MACs at 1 GHz: 4.096 TFLOP/s; 100 GB/s of DRAM; SRAM of 8 x 32 KB holds 2^17 elements
DIE = Die(
    core_rows=4,
    core_cols=2,
    core=Core(num_macs=256, clock=1e9, sram_bytes=2**15, sram_bytes_per_clock=64, noc_bytes_per_clock=128),
    memory=Memory(num_stacks=2, stack_bytes=1e9, stack_bandwidth=100e9, sustained_fraction=0.5),
)


def shapes(rows, cols, depth, count=1.0):
    return Matmuls(*(jnp.asarray([float(x)]) for x in (rows, cols, depth, count)))


def one(cost):
    return jax.tree.map(lambda x: float(jnp.ravel(x)[0]), cost)


sizes = st.integers(0, 14).map(lambda x: 2.0**x)
die_of = st.builds(
    lambda rows, cols, macs, sram, read, noc, bandwidth: Die(
        core_rows=rows,
        core_cols=cols,
        core=Core(num_macs=macs, clock=1e9, sram_bytes=sram, sram_bytes_per_clock=read, noc_bytes_per_clock=noc),
        memory=Memory(num_stacks=1, stack_bytes=1e9, stack_bandwidth=bandwidth, sustained_fraction=1.0),
    ),
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from([64.0, 256.0, 1000.0]),
    st.floats(2.0**10, 2.0**24),
    st.floats(8, 1000),
    st.floats(4, 1000),
    st.floats(1e9, 1e13),
)


# ---- matrix products


def test_a_compute_bound_product_by_hand():
    cost = one(products(DIE, IDEAL, shapes(4096, 4096, 4096), 4.0, HARD))
    flop = 2 * 4096**3
    # 256 MACs read 2 x 16 operands of 2 bytes per clock: 64 bytes, just what the SRAM gives
    assert cost.forward_flop == pytest.approx(flop)
    assert cost.backward_flop == pytest.approx(2 * flop)
    assert cost.forward == pytest.approx(flop / (8 * 256 * 2 * 1e9), rel=EXACT)
    assert cost.backward == pytest.approx(2 * cost.forward, rel=EXACT)
    # traffic: 2 M N K / sqrt(2^17) elements = 379,625,062, above the three matrices
    assert cost.forward_bytes == pytest.approx(2 * 379_625_062.5, rel=EXACT)
    assert cost.backward_bytes == pytest.approx(2 * cost.forward_bytes + 8 * 4096**2, rel=EXACT)


def test_a_memory_bound_product_by_hand():
    cost = one(products(DIE, IDEAL, shapes(16, 4096, 1024), 4.0, HARD))
    elements = 16 * 4096 + 16 * 1024 + 4096 * 1024
    assert cost.forward_bytes == pytest.approx(2 * elements, rel=EXACT)
    assert cost.forward == pytest.approx(2 * elements / 100e9, rel=EXACT)
    accumulated = 2 * 4 * 4096 * 1024  # 32-bit gradient read and written
    assert cost.backward == pytest.approx((2 * 2 * elements + accumulated) / 100e9, rel=EXACT)
    halved = one(products(DIE, IDEAL, shapes(16, 4096, 1024), 2.0, HARD))
    assert cost.backward_bytes - halved.backward_bytes == pytest.approx(accumulated / 2, rel=EXACT)


def test_starved_cores_and_narrow_links_by_hand():
    starved = replace(DIE, core=replace(DIE.core, sram_bytes_per_clock=16))
    whole = one(products(DIE, IDEAL, shapes(4096, 4096, 4096), 4.0, HARD))
    assert one(products(starved, IDEAL, shapes(4096, 4096, 4096), 4.0, HARD)).forward == pytest.approx(
        4 * whole.forward, rel=EXACT
    )
    narrow = replace(DIE, core=replace(DIE.core, noc_bytes_per_clock=1e-3))
    streamed = 2 * max(4096 * 4096 / 4, 4096 * 4096 / 2) / (1e-3 * 1e9)
    assert one(products(narrow, IDEAL, shapes(4096, 4096, 4096), 4.0, HARD)).forward == pytest.approx(
        streamed, rel=EXACT
    )


def test_inefficiency_by_hand():
    real = Efficiency(matmul_overhead=0.25, matmul_rows=512, matmul_cols=256, launch_time=1e-3)
    ideal = one(products(DIE, IDEAL, shapes(4096, 2048, 4096), 4.0, HARD)).forward
    slower = 1 + 0.25 + 512 / 4096 + 256 / 2048 + 256 / 4096
    busy = one(products(DIE, real, shapes(4096, 2048, 4096), 4.0, HARD)).forward
    assert busy == pytest.approx(slower * ideal, rel=EXACT)
    ideal = one(products(DIE, IDEAL, shapes(16, 4096, 1024), 4.0, HARD)).forward
    slow = Efficiency(memory_overhead=0.5, launch_time=ideal)
    busy = one(products(DIE, slow, shapes(16, 4096, 1024), 4.0, HARD)).forward
    assert busy == pytest.approx(1.5 * ideal, rel=EXACT)


def test_a_kernel_takes_at_least_its_launch():
    launch = Efficiency(launch_time=2.0)
    cost = one(products(DIE, launch, shapes(16, 4096, 1024), 4.0, HARD))
    assert (cost.forward, cost.backward) == (2.0, 4.0)
    for flash, kernels in ((1, 1), (0, 4)):
        core = one(core_cost(DIE, launch, attention(models.LLAMA3_8B, Strategy(flash_attention=flash)), HARD))
        assert (core.forward, core.backward) == (2.0 * kernels, 4.0 * kernels)


def test_an_absent_product_costs_nothing():
    cost = one(products(DIE, Efficiency(launch_time=1.0, matmul_rows=9), shapes(0, 0, 64), 4.0, HARD))
    assert (cost.forward, cost.forward_flop, cost.backward_flop) == (0, 0, 0)


@settings(max_examples=60)
@given(die=die_of, rows=sizes, cols=sizes, depth=sizes, count=st.integers(1, 4))
def test_a_product_is_never_below_its_compute_and_compulsory_traffic(die, rows, cols, depth, count):
    cost = one(products(die, IDEAL, shapes(rows, cols, depth, count), 4.0, HARD))
    flop = 2 * count * rows * cols * depth
    compulsory = 2 * count * (rows * cols + rows * depth + depth * cols)
    bandwidth, slack = float(die.memory.bandwidth), 1 - EXACT
    assert cost.forward >= slack * flop / float(die.flop_rate)
    assert cost.forward_bytes >= slack * compulsory
    assert cost.forward >= slack * cost.forward_bytes / bandwidth
    assert cost.backward >= slack * max(2 * flop / float(die.flop_rate), cost.backward_bytes / bandwidth)
    assert cost.backward >= 2 * slack * max(flop / float(die.flop_rate), cost.forward_bytes / bandwidth)


@settings(max_examples=40)
@given(die=die_of, rows=sizes, cols=sizes, depth=sizes)
def test_traffic_falls_with_the_root_of_the_sram_down_to_compulsory(die, rows, cols, depth):
    compulsory = 2 * (rows * cols + rows * depth + depth * cols)
    traffic = []
    for scale in (1, 4, 16, 64, 2**40):
        bigger = replace(die, core=replace(die.core, sram_bytes=scale * die.core.sram_bytes))
        traffic.append(one(products(bigger, IDEAL, shapes(rows, cols, depth), 4.0, HARD)).forward_bytes)
    for small, large in pairwise(traffic):
        assert large <= small * (1 + EXACT)
    for small, large in pairwise(traffic[:4]):
        if large > compulsory * (1 + 1e-4):
            assert large == pytest.approx(small / 2, rel=EXACT)
    assert traffic[-1] == pytest.approx(compulsory, rel=EXACT)


@settings(max_examples=60)
@given(data=st.data(), die=die_of, rows=sizes, cols=sizes, depth=sizes, factor=st.floats(1.01, 8))
def test_more_of_anything_is_never_slower(data, die, rows, cols, depth, factor):
    where = data.draw(st.sampled_from(["core_rows", "core_cols", *(f.name for f in fields(Core)), "bandwidth"]))
    if where == "bandwidth":
        memory = replace(die.memory, stack_bandwidth=factor * die.memory.stack_bandwidth)
        more = replace(die, memory=memory)
    elif where in ("core_rows", "core_cols"):
        more = replace(die, **{where: factor * getattr(die, where)})
    else:
        more = replace(die, core=replace(die.core, **{where: factor * getattr(die.core, where)}))
    core = Attention(*(jnp.asarray(x) for x in (rows, depth / 2, rows, 8.0, 2.0, 64.0, 64.0, depth, 0.0)))
    before, after = (one(products(d, IDEAL, shapes(rows, cols, depth), 4.0, HARD)) for d in (die, more))
    core_before, core_after = (one(core_cost(d, IDEAL, core, HARD)) for d in (die, more))
    for slow, fast in ((before, after), (core_before, core_after)):
        assert fast.forward <= slow.forward * (1 + EXACT)
        assert fast.backward <= slow.backward * (1 + EXACT)


@settings(max_examples=60)
@given(die=die_of, rows=sizes, cols=sizes, depth=sizes, sharpness=st.floats(2, 1e5), flash=st.sampled_from([0.0, 1.0]))
def test_smooth_brackets_hard(die, rows, cols, depth, sharpness, flash):
    core = Attention(*(jnp.asarray(x) for x in (rows, depth / 2, rows, 8.0, 2.0, 64.0, 64.0, depth, 1 - flash)))
    for cost in (
        lambda relax: one(products(die, IDEAL, shapes(rows, cols, depth), 4.0, relax)),
        lambda relax: one(core_cost(die, IDEAL, core, relax)),
    ):
        hard, smooth = cost(HARD), cost(Smooth(sharpness))
        for name, levels in (("forward", 3), ("backward", 3), ("forward_bytes", 1), ("backward_bytes", 1)):
            low, value = getattr(hard, name), getattr(smooth, name)
            assert low * (1 - EXACT) <= value <= low * (1 + 1 / sharpness) ** levels * (1 + EXACT), name
        assert smooth.forward_flop == hard.forward_flop


# ---- attention core


@pytest.mark.parametrize("flash", [0, 1])
def test_attention_by_hand(flash):
    model, strategy = models.LLAMA3_8B, Strategy(tensor_rows=4, flash_attention=flash)
    cost = one(core_cost(DIE, IDEAL, attention(model, strategy), HARD))
    keys = 8192 / 2 if flash else 8192
    macs = 8192 * keys * 8 * (128 + 128)  # eight heads; scores, then the product with the values
    assert cost.forward_flop == pytest.approx(2 * macs)
    assert cost.backward_flop == pytest.approx((5 if flash else 4) * macs)  # flash computes the scores again
    moved = 2 * macs * (128 + 128) / 2**17 + (0 if flash else 12 * 8192**2 * 8)
    assert cost.forward_bytes == pytest.approx(moved, rel=EXACT)
    seconds = max(2 * macs / float(DIE.flop_rate), moved / 100e9)  # compute with flash, scores in DRAM without
    assert cost.forward == pytest.approx(seconds, rel=EXACT)
    assert cost.backward == pytest.approx((2.5 if flash else 2) * seconds, rel=EXACT)


def test_scores_in_dram_only_slow_attention_down():
    for die in (DIE, wafers.WATOS_CONFIG_3.die):
        for name in models.NAMES:
            flash, materialised = (
                one(core_cost(die, IDEAL, attention(models.NAMES[name], Strategy(flash_attention=code)), HARD))
                for code in (1, 0)
            )
            assert flash.forward <= materialised.forward
            assert flash.forward_bytes < materialised.forward_bytes


def test_attention_curve_by_hand():
    shape = attention(models.LLAMA3_8B, Strategy())
    ideal = one(core_cost(DIE, IDEAL, shape, HARD)).forward
    real = Efficiency(attention_overhead=0.5, attention_rows=8192, launch_time=ideal)
    assert one(core_cost(DIE, real, shape, HARD)).forward == pytest.approx(2.5 * ideal, rel=EXACT)


# ---- narrow numbers


def test_narrow_products_by_hand():
    shapes = matmuls(models.NAMES["mixtral-8x7b"], Strategy())
    wide, same, narrow = (
        products(DIE, IDEAL, shapes, 4.0, HARD, precision) for precision in (None, Precision(2.0), Precision(1.0))
    )
    for field in fields(wide):
        np.testing.assert_allclose(getattr(same, field.name), getattr(wide, field.name), rtol=EXACT)
    kept = np.array([name in ("router", "head") for name in MATMULS])
    np.testing.assert_allclose(narrow.forward[kept], wide.forward[kept], rtol=EXACT)
    # products that compute binds: half of it, and four bytes per element of the input, then of the gradient
    rows, cols, depth, count = (np.asarray(x) for x in (shapes.rows, shapes.cols, shapes.depth, shapes.count))
    compute = 2 * rows * cols * depth * count / float(DIE.flop_rate)
    chosen = ~kept & (rows > 0) & np.isclose(np.asarray(wide.forward), compute, rtol=1e-4)
    chosen &= np.asarray(wide.backward_bytes) / 100e9 < compute / 2
    assert chosen.sum() >= 3
    cast = 4 * rows * count / 100e9
    np.testing.assert_allclose(np.asarray(narrow.forward)[chosen], (compute / 2 + cast * depth)[chosen], rtol=EXACT)
    np.testing.assert_allclose(
        np.asarray(narrow.backward - narrow.forward)[chosen], (compute / 2 + cast * (cols - depth))[chosen], rtol=1e-5
    )


# ---- element-wise operators


def test_elementwise_times_by_hand():
    traffic = Elementwise(*(jnp.asarray(1e9 * (i + 1)) for i in range(6)))
    busy = groups(DIE, Efficiency(memory_overhead=0.25, launch_time=1e-3), traffic, HARD)
    idle = groups(DIE, Efficiency(launch_time=10.0), traffic, HARD)
    launches = {"norms": 2, "rotary": 1, "residuals": 2, "activation": 1, "expert_activation": 3, "loss": 1}
    for i, (name, count) in enumerate(launches.items()):
        assert float(getattr(busy, name)) == pytest.approx(1.25 * (i + 1) * 1e9 / 100e9, rel=EXACT)
        assert float(getattr(idle, name)) == 10.0 * count
    absent = replace(traffic, rotary=jnp.asarray(0.0))
    assert float(groups(DIE, Efficiency(launch_time=1.0), absent, HARD).rotary) == 0


# ---- from operators to a layer


def forward_pieces(name, strategy, die=DIE):
    model = models.NAMES[name]
    cost = products(die, IDEAL, matmuls(model, strategy), strategy.gradient_bytes, HARD)
    core = core_cost(die, IDEAL, attention(model, strategy), HARD)
    return pieces(cost.forward, core.forward, groups(die, IDEAL, elementwise(model, strategy), HARD))


@pytest.mark.parametrize("name", ["llama3-70b", "mixtral-8x7b", "deepseek-v3", "gpt3-175b"])
def test_pieces_of_a_layer_add_up(name):
    parts = forward_pieces(name, Strategy(tensor_rows=4))
    names = {field.name for field in fields(Pieces)} - {"head"}
    dense_only, mixture_only = {"up", "activation", "down"}, {"expert_up", "expert_activation", "expert_down"}
    dense, mixture = (
        sum(float(getattr(parts, piece)) for piece in names - other) for other in (mixture_only, dense_only)
    )
    assert [float(x) for x in parts.layer] == pytest.approx([dense, mixture], rel=EXACT)
    for total, products_, others in zip(parts.layer, parts.matmul, parts.elementwise, strict=True):
        assert float(total) == pytest.approx(float(products_ + parts.core + others), rel=EXACT)


@pytest.mark.parametrize("flash", [0, 1])
@pytest.mark.parametrize("name", models.NAMES)
def test_recomputation_repeats_more_at_each_level_and_at_most_one_forward_pass(name, flash):
    # a peer's recomputation accumulates over layers (7.6 times the FLOP); in another selective is slower than full
    levels = np.arange(len(RECOMPUTE_LEVELS))
    strategy = Strategy(tensor_rows=4, flash_attention=flash, recompute=levels)
    parts = forward_pieces(name, strategy)
    dispatch, waits = 0.002, (0.01, 0.03)
    layers = recomputed(parts, (jnp.asarray(waits[0]), jnp.asarray(waits[1])), jnp.asarray(dispatch), strategy)
    for repeated, whole, sent in zip(layers, parts.layer, (waits[0], waits[1] + 2 * dispatch), strict=True):
        repeated = np.asarray(repeated)
        assert repeated[0] == 0
        assert (np.diff(repeated) >= 0).all()
        assert repeated[-1] == pytest.approx(float(whole) + sent, rel=EXACT)
    selective = float(layers[0][RECOMPUTE_LEVELS.index("selective")])
    assert selective == pytest.approx(0 if flash else float(parts.core), rel=EXACT)


@pytest.mark.parametrize("level", range(len(RECOMPUTE_LEVELS)))
def test_a_level_for_each_stage_is_the_level_for_all(level):
    parts = forward_pieces("deepseek-v3", Strategy())
    waits = (jnp.asarray(0.01), jnp.asarray(0.03)), jnp.asarray(0.002)
    alone = recomputed(parts, *waits, Strategy(recompute=level))
    each = recomputed(parts, *waits, Strategy(recompute=[level] * 3))
    for scalar, array in zip(alone, each, strict=True):
        assert np.asarray(array).tolist() == [float(scalar)] * 3
