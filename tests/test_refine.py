"""Refinement: no schedule is below the pooled bound; what is refined fits, and is no slower than what was certified."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_certificate import AXIS, MIXTURE, Sample
from test_search import MODEL, OPTIONS, small_budget

import watos_jax as wj
from watos_jax.batch import map_chunks
from watos_jax.estimate import estimate
from watos_jax.network.bounds import neighbours
from watos_jax.network.contention import Network
from watos_jax.network.geometry import Geometry, misfit
from watos_jax.network.layout import layout_of
from watos_jax.presets import budgets
from watos_jax.report.design import design_view
from watos_jax.report.records import design_record
from watos_jax.search import lattice
from watos_jax.search.boxes import AXES, Grids
from watos_jax.search.candidates import candidates
from watos_jax.search.certificate import certify
from watos_jax.search.codesign import codesign
from watos_jax.search.descend import Point, Shared
from watos_jax.search.lattice import NAMES, from_array
from watos_jax.search.objective import OBJECTIVES, STEP_TIME
from watos_jax.search.pooled import LEVELS, Pooled, apart, pooled, without_levels
from watos_jax.search.refine import _Local

STACKS = NAMES.index("dram_stacks")


def random_geometry(rng):
    """A mesh, a geometry that it holds, and an order of its rectangles."""
    rows, cols = rng.integers(1, 8, 2)
    tall, wide = rng.integers(1, rows + 1), rng.integers(1, cols + 1)
    tiles, context = (rows // tall) * (cols // wide), int(rng.choice([1, 2, 4]))
    if tiles < context or tall * wide > 8:
        return None
    stages = int(rng.integers(1, tiles // context + 1))
    replicas = int(rng.integers(1, tiles // (stages * context) + 1))
    expert = int(rng.choice([e for e in range(1, replicas * context + 1) if replicas * context % e == 0]))
    wraps = stages > 1 and bool(rng.integers(2))
    geometry = Geometry(int(tall), int(wide), stages, replicas, context, expert, wraps)
    return rows, cols, geometry, tuple(rng.permutation(tiles)[: geometry.slots].tolist())


def test_no_order_of_rectangles_is_below_neighbours():
    rng, compared = np.random.default_rng(0), 0
    for rows, cols, geometry, order in filter(None, (random_geometry(rng) for _ in range(400))):
        wafer = replace(wj.presets.wafers.WATOS_CONFIG_3, die_rows=float(rows), die_cols=float(cols))
        network = Network.of(wafer)
        assert misfit(network, geometry) is None
        strategy = wj.Strategy(
            tensor_rows=geometry.tensor_rows,
            tensor_cols=geometry.tensor_cols,
            pipeline_parallel=geometry.pipeline,
            data_parallel=geometry.data,
            context_parallel=geometry.context,
            expert_parallel=geometry.expert,
        )
        sizes = np.array([float(rows)]), np.array([float(cols)])
        built = layout_of(network, geometry, order=order)
        one, only = (jax.tree.map(lambda leaf: np.asarray(leaf, float)[None], part) for part in (built, strategy))
        least = neighbours(one, *sizes, only)
        for bound, true in zip(jax.tree.leaves(least), jax.tree.leaves(one), strict=True):
            assert (bound <= true * (1 + 1e-12)).all(), (geometry, order)
        compared += geometry.slots > 1
    assert compared > 80


def test_two_neighbours_reach_the_bound():
    wafer = replace(wj.presets.wafers.WATOS_CONFIG_3, die_rows=2.0, die_cols=4.0)
    strategy = wj.Strategy(tensor_rows=2, tensor_cols=2, pipeline_parallel=2)
    one, only = (
        jax.tree.map(lambda leaf: np.asarray(leaf, float)[None], part)
        for part in (wj.layout(wafer, strategy), strategy)
    )
    least = neighbours(one, np.array([2.0]), np.array([4.0]), only)
    assert one.pipeline_volume[0, 0, 0] == least.pipeline_volume[0, 0, 0] == 2.0
    assert one.pipeline_steps[0, 0, 0] == least.pipeline_steps[0, 0, 0] == 2.0


def scheduled(shared: Shared, given: tuple[Point, jax.Array]):
    """Exact step time with a level per stage on the serpentine, shipping free; and bytes of all stages."""
    point, levels = given
    candidate = point.candidate
    sides = candidate.horizontal_sides, candidate.vertical_sides
    wafer = shared.budget.build(from_array(point.knobs), candidate.die_rows, candidate.die_cols, sides)
    strategy = eqx.tree_at(lambda s: s.recompute, candidate.strategy, levels)
    layout = jax.tree.map(lambda leaf: leaf[candidate.geometry], shared.layouts)
    answer = estimate(wafer, shared.model, strategy, layout=layout)
    return answer.exact_step_time(strategy), jnp.sum(answer.memory), answer.stage_backward


@pytest.mark.parametrize(
    ("name", "model", "size"),
    [
        pytest.param("default", MODEL, 1_500, marks=pytest.mark.slow),
        pytest.param("default", wj.presets.models.LLAMA3_70B, 20_000, marks=pytest.mark.slow),
        pytest.param("dense-215", MIXTURE, 20_000, marks=pytest.mark.slow),
    ],
)
def test_no_levels_that_fit_all_memory_together_are_below_the_pooled_bound(name, model, size):
    sample = Sample(budgets.NAMES[name], model, size)
    count, rng = len(sample.which), np.random.default_rng(1)
    here = lattice.values_at(sample.budget, sample.index)
    points = without_levels(Point(sample.candidate, here))
    stacks = np.arange(float(sample.budget.low.dram_stacks), float(sample.budget.high.dram_stacks) + 1.0)
    problem = Pooled(sample.shared._replace(layouts=apart(sample.shared, points)), stacks)
    bound, _ = problem.settle(points)
    # few levels everywhere, or one level, or any level of each stage
    stages = sample.shared.layouts.pipeline_volume.shape[-2]
    levels = rng.integers(0, LEVELS, (count, stages))
    levels = np.where(rng.random((count, 1)) < 0.4, levels[:, :1], levels)
    levels = np.where(rng.random((count, 1)) < 0.5, levels * (rng.random((count, stages)) < 0.2), levels)
    levels = np.where(rng.random((count, 1)) < 0.5, levels, LEVELS - 1)  # large models seldom fit with less
    times, memory, _ = map_chunks(scheduled, sample.shared, (points, levels.astype(float)), chunk=64)
    capacity = np.asarray(points.candidate.strategy.pipeline_parallel) * here[:, STACKS]
    fits = memory <= capacity * float(sample.budget.wafer.die.memory.stack_bytes)
    possible = np.isfinite(bound).sum()  # large models fit few random designs at all
    assert possible > 50 and fits.sum() > 0.1 * possible
    assert np.isfinite(times).all() and np.isfinite(bound[fits]).all()
    assert (bound[fits] <= times[fits] * (1 + 1e-9)).all()
    assert np.isinf(bound).any()  # some fit at no level
    # from elsewhere, over boxes around each point
    elsewhere = here * np.exp(rng.normal(size=here.shape) * 10.0 ** rng.uniform(-2, 0, (count, 1)))
    touched = problem.touch(points._replace(knobs=elsewhere))
    index, last = sample.index[:, AXIS], lattice.counts(sample.budget)[AXIS] - 1
    reach = rng.integers(0, last + 1, (2, count, len(AXES))) * rng.random((2, count, 1)) ** 4
    low, high = np.maximum(index - reach[0].astype(int), 0), np.minimum(index + reach[1].astype(int), last)
    boxes = Grids(sample.budget, sample.grids).boxes(sample.which, low, high)
    assert len(boxes.grid) == count
    for row in np.flatnonzero(fits):
        own = jax.tree.map(lambda leaf, row=row: leaf[row][None, None], touched)
        box = type(boxes)(*(leaf[row : row + 1] for leaf in boxes))
        assert problem.bound(own, box)[0, 0] <= times[row] * (1 + 1e-9)


@pytest.fixture(scope="module")
def designs():
    return {
        seed: codesign(MODEL, small_budget(seed), options=OPTIONS, gap=0.0, time_limit=3600.0, refine=True)
        for seed in (0, 1)
    }


@pytest.mark.slow
def test_what_is_refined_fits_and_lies_between_bound_and_certified_design(designs):
    for design in designs.values():
        refined, proof = design.refined, design.certificate
        assert refined is not None and proof is not None
        assert refined.bound.lower_bound * (1 - 1e-9) <= refined.step_time <= proof.value * (1 + 1e-9)
        assert refined.bound.lower_bound <= proof.lower_bound * (1 + 1e-9)
        schedule, number = refined.placed, int(refined.placed.strategy.pipeline_parallel)
        resident = np.asarray(schedule.estimate.memory[:number]) - schedule.sent + schedule.held
        assert (resident <= float(refined.wafer.die.memory.capacity) * (1 + 1e-6)).all()
        others = [float(margin) for name, margin in schedule.estimate.margins.items() if name != "memory"]
        assert min(others) >= -1e-6
        again = wj.estimate(refined.wafer, MODEL, schedule.strategy, layout=schedule.layout)
        assert float(again.step_time) <= refined.step_time * (1 + 1e-6)


@pytest.mark.slow
def test_the_record_has_both_gaps_and_the_tables_show_them(designs):
    record = design_record(designs[0])
    assert record["certificate"]["shared_gap"] == record["refinement"]["gap"] >= -1e-12
    assert record["certificate"]["shared_lower_bound"] == record["refinement"]["lower_bound"]
    assert len(record["refinement"]["strategy"]["recompute"]) == record["refinement"]["strategy"]["pipeline_parallel"]
    extra = {"model": "m", "budget": "b", "objective_name": "o", "price_list": "p", "compile_time": 0.0}
    design_view("a wafer", record | extra)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_pooled_optimum_equals_a_scan_of_a_small_lattice(seed):
    budget = small_budget(seed)
    space = candidates(MODEL, budget, options=OPTIONS, objective=STEP_TIME)
    with jax.enable_x64(True):
        problem, base = pooled(space.shared, space.every)
        index = np.stack(np.meshgrid(*(np.arange(size) for size in lattice.counts(budget)), indexing="ij"), axis=-1)
        knobs = lattice.values_at(budget, index.reshape(-1, len(NAMES)))
        values = []
        for row in range(len(base.knobs)):
            rows = np.full(len(knobs), row)
            points = jax.tree.map(lambda leaf, rows=rows: leaf[rows], base)._replace(knobs=knobs)
            values.append(problem.settle(points)[0])
        every = np.array(values)
        worst = np.unravel_index(np.argmax(np.where(np.isfinite(every), every, 0.0)), every.shape)
        start = jax.tree.map(lambda leaf: leaf[[worst[0]]], base)._replace(knobs=knobs[[worst[1]]])
        proof, _ = certify(problem, base, start, gap=0.0, time_limit=600.0)
    # bounds from elsewhere may be higher than that at the point itself
    assert every.min() * (1 - 1e-9) <= proof.lower_bound <= proof.value <= every.min() * 1.001


@pytest.mark.slow
def test_random_schedules_that_share_memory_on_the_mesh_are_above_the_bound():
    budget, shipped = small_budget(0), 0
    space = candidates(MODEL, budget, options=replace(OPTIONS, micro_batch_sizes=(1, 2, 4)), objective=STEP_TIME)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        problem, base = pooled(space.shared, space.every)
        solver = _Local(space.shared, base)
        for _ in range(40):
            row = rng.integers(0, len(base.knobs), 1)
            knobs = lattice.values_at(budget, rng.integers(0, lattice.counts(budget)))[None]
            point = jax.tree.map(lambda leaf, row=row: leaf[row], base)._replace(knobs=knobs)
            found = solver._solve(point)
            if found is not None:
                shipped += found.placed.sent.any()
                assert problem.settle(point)[0][0] <= found.step_time * (1 + 1e-9)
    assert len(solver.solved) > 20 and shipped


def test_what_has_no_proof_is_not_refined():
    with pytest.raises(ValueError, match="refine is True: it must be False but for tokens per second"):
        codesign(MODEL, small_budget(0), options=OPTIONS, objective=OBJECTIVES["tokens-per-joule"], refine=True)
