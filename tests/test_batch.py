"""Chunked evaluation against single estimates."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import watos_jax as wj
from watos_jax.batch import map_chunks
from watos_jax.search.space import Options, strategies

MODEL = wj.presets.models.LLAMA3_8B
WAFER = replace(wj.presets.wafers.WATOS_CONFIG_3_D2D_HALF, die_rows=2, die_cols=3)
SPACE = strategies(WAFER, MODEL, Options(global_batch_size=12, micro_batch_sizes=(1, 2)), max_stages=8)


def answers(shared, point):
    """Step time, smallest margin and memory of one strategy and layout on the shared wafer."""
    strategy, layout = point
    result = wj.estimate(shared[0], shared[1], strategy, layout=layout)
    return result.step_time, jnp.min(jnp.stack(list(result.margins.values()))), result.memory


@pytest.mark.parametrize(("chunk", "chunks_per_call"), [(64, 1), (50, 3)])
def test_map_chunks_equals_single_estimates_whatever_the_chunk(chunk, chunks_per_call):
    points = (SPACE.strategies, SPACE.stacked_layouts)
    times, margins, memory = map_chunks(answers, (WAFER, MODEL), points, chunk=chunk, chunks_per_call=chunks_per_call)
    assert times.shape == (len(SPACE),)
    for row in (0, len(SPACE) // 2, len(SPACE) - 1):
        single = wj.estimate(WAFER, MODEL, SPACE.strategy(row), layout=SPACE.layout(row))
        assert float(times[row]) == pytest.approx(float(single.step_time), rel=1e-5)
        assert float(margins[row]) == pytest.approx(min(map(float, single.margins.values())), abs=1e-5)
        np.testing.assert_allclose(memory[row], single.memory, rtol=1e-5)


def test_what_is_wanted_of_a_result_is_all_that_comes_back():
    points = np.linspace(0.0, 1.0, 10)
    whole = map_chunks(both, np.asarray(2.0), points, chunk=4)
    part = map_chunks(both, np.asarray(2.0), points, chunk=4, kept=lambda found: found["sum"])
    assert sorted(whole) == ["product", "sum"]
    np.testing.assert_array_equal(part, whole["sum"])
    np.testing.assert_allclose(part, points + 2.0, rtol=1e-6)


def both(shared, point):
    """Two results."""
    return {"sum": shared + point, "product": shared * point}
