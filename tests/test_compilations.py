"""Two compilations, hard and smooth: a sweep over any leaf, of hardware, model, strategy or layout, adds none."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from watos_jax import HARD, Efficiency, Smooth, Strategy, estimate, layout
from watos_jax.network.layout import layouts
from watos_jax.presets import models, wafers
from watos_jax.strategy import violation

COMPILED = "/jax/core/compile/backend_compile_duration"
WAFERS = [wafer for wafer in wafers.NAMES.values() if wafer.packing == "strict"]
STRATEGIES = [
    Strategy(global_batch_size=8),
    Strategy(tensor_cols=4, pipeline_parallel=4, global_batch_size=16, recompute=3, sequence_parallel=0),
    Strategy(tensor_rows=2, pipeline_parallel=4, virtual_stages=2, global_batch_size=8, flash_attention=0),
    Strategy(pipeline_parallel=8, data_parallel=2, schedule=1, global_batch_size=32, optimizer_sharding=2),
    Strategy(data_parallel=4, context_parallel=2, expert_parallel=4, global_batch_size=8, gradient_bytes=2),
    Strategy(tensor_rows=2, tensor_cols=2, tensor_collective=1, recompute=7, optimizer_sharding=0),
]


@pytest.fixture
def traces(monkeypatch):
    """Counts how often the physics is traced: one element per time."""
    module, seen = sys.modules["watos_jax.estimate"], []
    original = module.matmul_cost

    def counted(*args):
        seen.append(1)
        return original(*args)

    monkeypatch.setattr(module, "matmul_cost", counted)
    return seen


@pytest.fixture
def compilations():
    """Counts everything that JAX compiles, or fetches from the persistent cache: one element per program."""
    seen = []

    def listen(event, duration, **_):
        if event == COMPILED:
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def sweep(max_stages, relaxations):
    """Estimate every wafer, model and strategy in turn, and change a leaf of each record on the way."""
    count = 0
    for i, model in enumerate(models.NAMES.values()):
        for j, strategy in enumerate(STRATEGIES):
            wafer = WAFERS[(i + j) % len(WAFERS)]
            if violation(model, strategy) is not None:
                continue
            wafer = replace(wafer, power_limit=1e4 + i, efficiency=Efficiency(matmul_rows=float(j)))
            placed = layout(wafer, strategy, max_stages=max_stages)
            result = estimate(wafer, model, strategy, layout=placed, relax=relaxations[count % len(relaxations)])
            assert np.isfinite(float(result.step_time))
            count += 1
    return count


def test_a_sweep_compiles_twice(traces, compilations):
    stages = 40  # a shape that no other test compiles
    assert sweep(stages, [HARD]) > 30
    assert len(traces) == 1
    sweep(stages, [Smooth(sharpness) for sharpness in (2.0, 50.0, 1e5)])
    assert len(traces) == 2
    assert compilations
    compilations.clear()
    sweep(stages, [HARD, Smooth(7.0), Smooth(70.0)])
    assert len(traces) == 2
    assert len(compilations) == 0


def test_the_type_of_a_number_does_not_matter(traces):
    wafer, model, strategy = WAFERS[0], models.LLAMA2_7B, STRATEGIES[1]
    placed = layout(wafer, strategy, max_stages=48)
    results = {
        float(estimate(*(jax.tree.map(kind, record) for record in (wafer, model, strategy)), layout=placed).step_time)
        for kind in (float, np.float64, np.float32, np.asarray, jnp.asarray)
    }
    assert len(traces) == 1
    assert max(results) == pytest.approx(min(results), rel=1e-5)


def test_a_batch_of_strategies_and_its_gradient_compile_once(traces, compilations):
    wafer = jax.tree.map(float, WAFERS[0])

    def step(hardware, model, strategy, placed, relax):
        return estimate(hardware, model, strategy, layout=placed, relax=relax).step_time

    batched = jax.jit(jax.vmap(jax.value_and_grad(step), in_axes=(None, None, 0, 0, None)))
    stacked = jax.tree.map(lambda *leaves: np.array(leaves), *STRATEGIES[:4])
    placed = layouts(wafer, STRATEGIES[:4], max_stages=8)
    for i, name in enumerate(("llama2-7b", "gpt3-175b", "llama3-8b")):
        if i == 1:
            assert len(traces) == 1
            assert compilations
            compilations.clear()
        model = jax.tree.map(float, models.NAMES[name])
        hardware = replace(wafer, power_limit=1e4 + i)
        times, slopes = batched(hardware, model, replace(stacked, recompute=stacked.recompute + i), placed, HARD)
        assert times.shape == slopes.die.core.clock.shape == (4,)
        assert np.isfinite(np.asarray(times)).all()
    assert len(traces) == 1
    assert len(compilations) == 0
