"""Chunked evaluation and the in-memory sweep against single estimates."""

from dataclasses import replace

import equinox as eqx
import jax
import numpy as np
import pytest

import watos_jax as wj
from watos_jax.batch import map_chunks, summary, sweep
from watos_jax.search.space import Options, strategies

MODEL = wj.presets.models.LLAMA3_8B
WAFER = replace(wj.presets.wafers.WATOS_CONFIG_3_D2D_HALF, die_rows=2, die_cols=3)
SPACE = strategies(WAFER, MODEL, Options(global_batch_size=12, micro_batch_sizes=(1, 2)), max_stages=8)


def wafers(count: int) -> wj.Wafer:
    """Wafers that differ in clock and memory; the last cannot hold the model."""
    stacked = jax.tree.map(lambda leaf: np.full(count, leaf), WAFER)
    stacks = np.full(count, 2.0)
    stacks[-1] = 0.01
    return eqx.tree_at(
        lambda w: (w.die.core.clock, w.die.memory.num_stacks), stacked, (np.linspace(1e9, 2e9, count), stacks)
    )


def time_and_margin(shared, point):
    """Summary of one strategy and layout on the shared wafer."""
    strategy, layout = point
    return summary(wj.estimate(shared[0], shared[1], strategy, layout=layout))


def test_map_chunks_equals_single_estimates_whatever_the_chunk():
    points = (SPACE.strategies, SPACE.stacked_layouts)
    whole = map_chunks(time_and_margin, (WAFER, MODEL), points, chunk=64, chunks_per_call=1)
    assert whole.step_time.shape == (len(SPACE),)
    for row in (0, len(SPACE) // 2, len(SPACE) - 1):
        single = wj.estimate(WAFER, MODEL, SPACE.strategy(row), layout=SPACE.layout(row))
        assert float(whole.step_time[row]) == pytest.approx(float(single.step_time), rel=1e-5)
        assert float(whole.margin[row]) == pytest.approx(min(map(float, single.margins.values())), abs=1e-5)
        np.testing.assert_allclose(whole.memory[row], single.memory, rtol=1e-5)


def test_sweep_finds_the_best_and_counts_every_point():
    many = wafers(5)
    edges = np.geomspace(1e2, 1e6, 41)
    result = sweep(many, MODEL, SPACE.strategies, SPACE.stacked_layouts, top_k=7, edges=edges, chunk=64)
    points = (SPACE.strategies, SPACE.stacked_layouts)
    rates, owners = [], []
    for number in range(5):
        wafer = jax.tree.map(lambda leaf, n=number: leaf[n], many)
        rows = map_chunks(time_and_margin, (wafer, MODEL), points, chunk=64, chunks_per_call=1)
        rates.append(np.where(rows.margin >= 0, rows.tokens_per_second, 0.0))
        owners.append(np.full(len(SPACE), number))
    rates, owners = np.concatenate(rates), np.concatenate(owners)
    best = np.sort(rates)[::-1][:7]
    assert result.evaluated == 5 * len(SPACE)
    assert result.feasible == (rates > 0).sum() > 0
    assert 4 not in owners[rates > 0]
    np.testing.assert_allclose(result.tokens_per_second, best, rtol=1e-5)
    np.testing.assert_array_equal(result.histogram, np.histogram(rates[rates > 0], edges)[0])
    for value, system, row in zip(result.tokens_per_second, result.system, result.strategy, strict=True):
        assert rates[system * len(SPACE) + row] == pytest.approx(float(value), rel=1e-5)


def test_sweep_with_nothing_feasible_says_so():
    starved = eqx.tree_at(lambda w: w.die.memory.num_stacks, wafers(2), np.full(2, 0.01))
    result = sweep(starved, MODEL, SPACE.strategies, SPACE.stacked_layouts, top_k=3, chunk=64)
    assert result.feasible == 0 and result.histogram.sum() == 0
    assert (result.system == -1).all() and (result.strategy == -1).all()
