"""Sweeps in memory: every row against a single estimate, every answer against all rows."""

from dataclasses import replace

import equinox as eqx
import jax
import numpy as np
import pytest
from sweep_space import TABLE

import watos_jax as wj
from watos_jax import sweeps
from watos_jax.estimate import ROUNDING
from watos_jax.sweeps import kernel, merge, points, run

SPACE, KEEP = sweeps.declare(TABLE)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(points, "ANSWER_POINTS", 256)
    monkeypatch.setattr(points, "ROW_POINTS", 256)


@pytest.fixture(scope="module")
def whole():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "ROW_POINTS", 256)
        return sweeps.sweep(SPACE, KEEP, chunk=64)


def undominated(goals):
    """Indices that no other row dominates, by the definition."""
    return [
        i
        for i, mine in enumerate(goals)
        if not any((other <= mine).all() and ((other < mine).any() or j < i) for j, other in enumerate(goals) if j != i)
    ]


def test_rows_are_single_estimates(whole):
    rows = whole.rows
    assert whole.evaluated == len(rows["index"]) == len(whole.plan)
    np.testing.assert_array_equal(rows["index"], np.arange(len(whole.plan)))
    for row in np.linspace(0, len(whole.plan) - 1, 12).astype(int):
        point = whole.point(row)
        alone = wj.estimate(point.wafer, point.model, point.strategy, layout=point.layout)
        assert rows["step_time"][row] == pytest.approx(float(alone.step_time), rel=2e-5)
        assert rows["power"][row] == pytest.approx(float(alone.power), rel=2e-5)
        assert rows["margin"][row] == pytest.approx(min(map(float, alone.margins.values())), rel=1e-4, abs=1e-5)
        assert rows["binding"][row] == alone.binding
        assert rows["die.core.clock"][row] == float(point.wafer.die.core.clock)
        assert rows["die_cols"][row] == float(point.wafer.die_cols)
        assert rows["pipeline_parallel"][row] == float(point.strategy.pipeline_parallel)


def test_answers_are_those_of_all_rows(whole):
    rows, top = whole.rows, whole.top
    feasible = rows["margin"] >= -ROUNDING
    assert whole.feasible == feasible.sum() > 0
    for technology in SPACE.technologies:
        mine = np.flatnonzero(feasible & (rows["technology"] == technology))
        order = mine[np.lexsort((mine, -rows["tokens_per_second"][mine].astype(float)))][:4]
        np.testing.assert_array_equal(top["index"][top["technology"] == technology], order)
        goals = np.stack([rows["step_time"][mine], rows["power"][mine]], axis=1)
        front = whole.pareto["index"][whole.pareto["technology"] == technology]
        np.testing.assert_array_equal(np.sort(front), mine[undominated(goals)])
        bins = whole.histogram["technology"] == technology
        edges = np.float32(KEEP.histogram.edges)
        expected = np.histogram(rows["step_time"][mine], edges)[0]
        np.testing.assert_array_equal(whole.histogram["count"][bins], expected)


@pytest.mark.parametrize("size", [300, 10**6])
def test_answers_do_not_depend_on_chunks_or_parts(whole, size, monkeypatch):
    monkeypatch.setattr(points, "ANSWER_POINTS", size)
    keep = replace(KEEP, rows="none")
    other = sweeps.sweep(SPACE, keep, chunk=32)
    assert other.feasible == whole.feasible and not other.rows
    np.testing.assert_allclose(other.top["tokens_per_second"], whole.top["tokens_per_second"], rtol=2e-6)
    np.testing.assert_array_equal(other.histogram["count"], whole.histogram["count"])


def test_single_and_double_precision_agree(whole):
    double = sweeps.sweep(replace(SPACE, precision=64), KEEP, chunk=64)
    assert double.rows["step_time"].dtype == np.float64 and whole.rows["step_time"].dtype == np.float32
    for name, tolerance in (("step_time", 2e-5), ("power", 2e-5), ("memory", 2e-6)):
        np.testing.assert_allclose(whole.rows[name], double.rows[name], rtol=tolerance)
    np.testing.assert_allclose(whole.rows["margin"], double.rows["margin"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_another_operator_model_is_that_of_single_estimates(whole):
    predicted = sweeps.sweep(replace(SPACE, fidelity="predictor"), KEEP, chunk=64)
    assert (predicted.rows["step_time"] >= (1 - 1e-5) * whole.rows["step_time"]).all()
    for row in np.linspace(0, len(whole.plan) - 1, 5).astype(int):
        point = predicted.point(row)
        alone = wj.estimate(*point[:3], layout=point.layout, fidelity="predictor")
        assert predicted.rows["step_time"][row] == pytest.approx(float(alone.step_time), rel=1e-3)


def test_feasible_rows_only(whole):
    kept = sweeps.sweep(SPACE, replace(KEEP, rows="feasible"), chunk=64)
    np.testing.assert_array_equal(kept.rows["index"], np.flatnonzero(whole.rows["margin"] >= -ROUNDING))


def test_a_limit_used_to_the_last_byte_is_kept():
    strategy = wj.Strategy(tensor_rows=2, tensor_cols=2, pipeline_parallel=2, global_batch_size=16)
    wafer, model = wj.presets.wafers.WATOS_CONFIG_3_D2D_HALF, wj.presets.models.LLAMA3_8B
    need = float(wj.estimate(wafer, model, strategy).memory.max())
    stacks = need / float(wafer.die.memory.stack_bytes)
    axes = {"die.memory.num_stacks": [stacks * (1.0 - 1e-4), stacks * (1.0 - 5e-7)]}
    space = sweeps.Space({"w": wafer}, {"m": model}, axes=axes, strategies=[strategy])
    result = sweeps.sweep(space, sweeps.Keep(rows="all"), chunk=16)
    expected = []
    for index in range(2):
        point = result.point(index)
        expected.append(wj.estimate(point.wafer, point.model, point.strategy, layout=point.layout).feasible)
    assert list(result.top["index"]) == list(np.flatnonzero(expected)) == [1]


def test_few_strategies_on_many_wafers():
    strategy = wj.Strategy(tensor_rows=2, tensor_cols=2, pipeline_parallel=2, global_batch_size=16)
    count = 40
    stacked = jax.tree.map(lambda leaf: np.full(count, leaf), wj.presets.wafers.WATOS_CONFIG_3_D2D_HALF)
    clocks = np.linspace(1e9, 2e9, count)
    stacked = eqx.tree_at(lambda w: w.die.core.clock, stacked, clocks)
    axes = {"die.memory.num_stacks": [1, 2, 3], "model.sequence_length": [2048, 4096]}
    space = sweeps.Space(
        {"mine": stacked},
        {"m": wj.presets.models.LLAMA3_8B},
        axes=axes,
        strategies=[strategy, wj.Strategy(pipeline_parallel=99)],
    )
    result = sweeps.sweep(space, sweeps.Keep(rows="all", top=1), chunk=16)
    assert result.evaluated == 2 * count * 3
    assert sum(result.plan.pruned.values()) == 2
    for row in (0, 1, 77, 239):
        point = result.point(row)
        alone = wj.estimate(point.wafer, point.model, point.strategy)
        assert float(point.wafer.die.core.clock) == clocks[result.rows["sample"][row]]
        assert result.rows["model.sequence_length"][row] == float(point.model.sequence_length)
        assert result.rows["step_time"][row] == pytest.approx(float(alone.step_time), rel=2e-5)


def test_random_points_are_points_of_the_space():
    drawn = sweeps.sweep(replace(SPACE, samples=20, seed=3), replace(KEEP, rows="all"), chunk=64)
    again = sweeps.sweep(replace(SPACE, samples=20, seed=3), replace(KEEP, rows="all"), chunk=64)
    assert drawn.evaluated == 2 * 20 * (60 + 72)
    for name, values in drawn.rows.items():
        np.testing.assert_array_equal(values, again.rows[name])
    for row in (5, 4000):
        point = drawn.point(row)
        alone = wj.estimate(point.wafer, point.model, point.strategy, layout=point.layout)
        assert drawn.rows["step_time"][row] == pytest.approx(float(alone.step_time), rel=2e-5)


def test_out_of_memory_halves_the_chunk_and_says_so(whole, monkeypatch):
    compiled = kernel.compiled()

    def limited(kernel, *rest):
        if kernel.hardware * kernel.strategies > 64:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        return compiled(kernel, *rest)

    monkeypatch.setattr(run, "compiled", lambda: limited)
    said = []
    result = sweeps.sweep(SPACE, KEEP, chunk=256, notice=said.append)
    assert [text.split(":")[0] for text in said] == [
        "out of memory with tiles of 256 points",
        "out of memory with tiles of 128 points",
    ]
    np.testing.assert_array_equal(result.top["index"], whole.top["index"])
    monkeypatch.setattr(run, "LEAST_CHUNK", 128)
    with pytest.raises(MemoryError, match="does not fit"):
        sweeps.sweep(SPACE, KEEP, chunk=128)


@pytest.mark.slow
def test_a_front_that_outgrows_its_places_is_repeated(whole, monkeypatch):
    monkeypatch.setattr(run, "FRONT", 2)
    said = []
    result = sweeps.sweep(SPACE, KEEP, chunk=64, notice=said.append)
    assert said and said[0] == "the Pareto front outgrew 2 points: going on with 4"
    np.testing.assert_array_equal(result.pareto["index"], whole.pareto["index"])
    monkeypatch.setattr(run, "MOST_FRONT", 2)
    with pytest.raises(ValueError, match=r"keep\.pareto is step_time, power: its front has more than 2 points"):
        sweeps.sweep(SPACE, KEEP, chunk=64)


def test_front_of_random_points_with_ties():
    random = np.random.default_rng(0)
    goals = random.integers(0, 6, (300, 3)).astype(float)
    assert sorted(merge.undominated(np.arange(300), goals, np.zeros(300, int))) == undominated(goals)


def test_progress_ends_at_the_end(whole):
    seen = []
    sweeps.sweep(SPACE, replace(KEEP, rows="none"), chunk=32, progress=seen.append)
    assert seen[0].done == 0 and seen[-1].done == seen[-1].total == len(whole.plan)
    assert seen[-1].best == pytest.approx(float(whole.top["tokens_per_second"].max()), rel=1e-5)
    assert seen[-1].time_left == 0 and seen[-1].feasible == whole.feasible


@pytest.mark.slow
def test_tuning_returns_a_chunk_that_was_tried(monkeypatch):
    monkeypatch.setitem(run.CHUNKS, "cpu", 32)
    assert run.tune(sweeps.build(SPACE, KEEP), seconds=0.0) in (16, 32, 64, 128)


def test_no_compilation_for_other_values_of_the_axes():
    keep = replace(KEEP, rows="none")
    sweeps.sweep(SPACE, keep, chunk=32)
    before = kernel.compiled()._cache_size()
    for low in (1.0e9, 1.1e9, 1.2e9):
        axes = SPACE.axes | {"die.core.clock": np.linspace(low, 2e9, 7)}
        sweeps.sweep(replace(SPACE, axes=axes), keep, chunk=32)
    assert kernel.compiled()._cache_size() == before
