"""The ladder of operator models: what `estimate` makes of each rung, and the bound that the roofline is."""

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import watos_jax as wj
from watos_jax import Smooth, Strategy
from watos_jax.hardware import Core, Die, Memory
from watos_jax.operators.fidelity import map_operators
from watos_jax.operators.mapper import map_product
from watos_jax.presets import models, wafers
from watos_jax.workload import MATMULS, attention, matmuls

WAFER = wafers.WATOS_CONFIG_3
MODEL = models.LLAMA3_70B
STRATEGY = Strategy(tensor_cols=4, pipeline_parallel=14, global_batch_size=64)


@pytest.fixture(scope="module")
def rungs():
    placed = wj.layout(WAFER, STRATEGY)
    return {name: wj.estimate(WAFER, MODEL, STRATEGY, fidelity=name, layout=placed) for name in ("roofline", "mapper")}


def test_the_roofline_is_a_bound_and_every_estimate_says_its_rung(rungs):
    for name, result in rungs.items():
        assert result.fidelity == name
        assert float(result.outside) == 0
        assert sum(float(part) for part in result.breakdown.values()) == pytest.approx(float(result.step_time))
    bound, found = rungs["roofline"], rungs["mapper"]
    assert float(bound.step_time) < float(found.step_time) < 1.3 * float(bound.step_time)
    for part in ("matmul", "attention", "elementwise"):
        assert float(bound.breakdown[part]) <= (1 + 1e-6) * float(found.breakdown[part])
    for part in ("tensor_parallel", "pipeline_parallel"):
        assert float(bound.breakdown[part]) == pytest.approx(float(found.breakdown[part]), rel=1e-5)
    np.testing.assert_array_equal(bound.memory, found.memory)


def test_the_time_of_products_is_that_of_their_mappings():
    # one stage: forward, input gradient and weight gradient of every product, rotary positions, the loss
    strategy = Strategy(tensor_cols=4, global_batch_size=2)
    die, shapes = jax.tree.map(float, WAFER.die), matmuls(MODEL, strategy)
    one = jax.jit(lambda *sizes: map_product(die, *sizes).time)
    seconds = {}
    for name in ("query_key_value", "attention_output", "mlp_up", "mlp_down", "head"):
        m, n, k = (float(leaf[MATMULS.index(name)]) for leaf in (shapes.rows, shapes.cols, shapes.depth))
        accumulated = 2.0 + 2.0 * float(strategy.gradient_bytes)
        seconds[name] = float(one(m, n, k, 1.0, 2.0) + one(m, k, n, 1.0, 2.0) + one(k, n, m, 1.0, accumulated))
    bandwidth = float(die.memory.bandwidth)
    rotary = 3 * 2 * 2 * 8192 * (16 + 2) * 128 / bandwidth
    loss = 14 * 8192 * 128256 / 4 / bandwidth
    head = seconds.pop("head")
    expected = 2 * (80 * (sum(seconds.values()) + rotary) + head + loss)
    found = wj.estimate(WAFER, MODEL, strategy, fidelity="mapper")
    assert float(found.breakdown["matmul"]) == pytest.approx(expected, rel=1e-4)


def test_the_mapper_is_held_constant_by_derivatives():
    die = jax.tree.map(lambda leaf: jnp.asarray(float(leaf)), WAFER.die)
    shapes, core = matmuls(MODEL, STRATEGY), attention(MODEL, STRATEGY)
    tangents = jax.tree.map(jnp.ones_like, die)
    _, slopes = jax.jit(lambda: jax.jvp(lambda d: map_operators(d, MODEL, shapes, core, 4.0), (die,), (tangents,)))()
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(slopes))


dies = st.builds(
    lambda rows, cols, side, sram, port, link, bandwidth: Die(
        core_rows=float(rows),
        core_cols=float(cols),
        core=Core(side**2, 1e9, sram, port, link),
        memory=Memory(1.0, 1e9, bandwidth, 1.0),
    ),
    st.integers(2, 24),
    st.integers(2, 24),
    st.floats(8, 90),
    st.floats(2.0**16, 2.0**22),
    st.floats(32, 4000),
    st.floats(16, 512),
    st.floats(1e10, 1e13),
)


@settings(max_examples=12)
@given(die=dies, name=st.sampled_from(["llama3-70b", "gpt3-175b", "deepseek-v3"]), tensor=st.sampled_from([1, 4, 16]))
def test_no_ratio_is_below_one_or_infinite(die, name, tensor):
    strategy = Strategy(tensor_cols=tensor, global_batch_size=1)
    model = models.NAMES[name]
    products, core = operators(die, model, matmuls(model, strategy), attention(model, strategy), 4.0)
    for ratio in (*products[:4], *core[:4]):
        assert (np.asarray(ratio) >= 1).all()
        assert np.isfinite(np.asarray(ratio)).all()
    assert not math.isclose(float(jnp.max(products.forward)), 1.0)


operators = jax.jit(map_operators)


def test_the_mapper_runs_smooth_too(rungs):
    smooth = wj.estimate(WAFER, MODEL, STRATEGY, fidelity="mapper", relax=Smooth(1e4))
    assert float(rungs["mapper"].step_time) <= float(smooth.step_time) <= 1.01 * float(rungs["mapper"].step_time)
