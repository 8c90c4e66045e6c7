"""Enumeration, descent, rounding: against brute force on small spaces."""

from dataclasses import replace
from itertools import pairwise, product

import equinox as eqx
import jax
import numpy as np
import pytest

import watos_jax as wj
from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING
from watos_jax.network.layout import fits
from watos_jax.search import lattice
from watos_jax.search.codesign import codesign
from watos_jax.search.descend import Candidate, Point, Shared, score
from watos_jax.search.objective import OBJECTIVES, Objective
from watos_jax.search.space import Options, strategies
from watos_jax.strategy import violation

MODEL = wj.presets.models.LLAMA3_8B
OPTIONS = Options(
    global_batch_size=32,
    micro_batch_sizes=(1, 2),
    recompute=("none", "full"),
    virtual_stages=(1,),
    context_parallel=(1,),
    sequence_parallel=(1,),
    optimizer_sharding=(1,),
    max_pipeline=8,
    least_use=0.9,
)


def small_budget(seed: int) -> wj.Budget:
    """A lattice of a few thousand points somewhere inside the default one, on 2 x 3 dies of a small window."""
    rng = np.random.default_rng(seed)
    base = wj.presets.budgets.DEFAULT
    low, step = lattice.to_array(base.low), lattice.to_array(base.step)
    size = np.array([3, 3, 2, 3, 3, 3, 3, 2])
    # cores, SRAM, stacks, links, width, height, clock: windows of the lattice where some points fit and some do not
    start = low + step * np.array([8, 8, rng.integers(0, 8), 1, rng.integers(2, 12), 28, 28, rng.integers(6, 12)])
    window = 3 * 26e-3 + 3 * 1e-3
    wafer = replace(base.wafer, window_width=window, window_height=window)
    return replace(
        base,
        wafer=wafer,
        low=lattice.from_array(start),
        high=lattice.from_array(start + step * (size - 1)),
        die_rows=(2, 2),
        die_cols=(2, 3),
        memory_sides=((0, 1), (0, 2)),
    )


def exhaustive(
    budget: wj.Budget, model: wj.Transformer, options: Options, objective: Objective
) -> tuple[float, float, int]:
    """Least objective of every lattice point x every strategy x every grid, by the hard model one block at a time."""
    counts = lattice.counts(budget)
    index = np.array(list(product(*(range(count) for count in counts))))
    knobs = lattice.values_at(budget, index)
    best, slack, evaluated = np.inf, np.inf, 0
    ranges = [range(low, high + 1) for low, high in (budget.die_rows, budget.die_cols)]
    for rows, cols in product(*ranges):
        system = eqx.tree_at(lambda w: (w.die_rows, w.die_cols), budget.wafer, (float(rows), float(cols)))
        space = strategies(system, model, options, max_stages=options.max_pipeline)
        table = np.minimum(np.arange(1024), len(space.layouts.pipeline_volume) - 1)
        shared = Shared(budget, model, objective, jax.tree.map(lambda leaf, table=table: leaf[table], space.layouts))
        for sides, number in product(budget.memory_sides, range(len(space))):
            ones = np.ones(len(knobs))
            strategy = jax.tree.map(lambda leaf, row=number: np.full(len(knobs), leaf[row]), space.strategies)
            candidate = Candidate(
                ones * rows,
                ones * cols,
                ones * sides[0],
                ones * sides[1],
                strategy,
                np.full(len(knobs), space.geometry[number], np.int32),
            )
            result = map_chunks(score, shared, Point(candidate, knobs))
            evaluated += len(knobs)
            fitting = result.value[result.excess <= ROUNDING]
            best = min(best, fitting.min(initial=np.inf))
            slack = min(slack, result.excess.min())
    return float(best), float(slack), evaluated


@pytest.mark.parametrize(
    ("seed", "name", "watts"),
    [
        (0, "tokens-per-second", 23e3),
        (1, "tokens-per-second", 23e3),
        (1, "tokens-per-second", 550.0),  # 60 % of what the best design would take
        (1, "tokens-per-joule", 23e3),
        (0, "tokens-per-dollar", 23e3),
    ],
)
def test_codesign_equals_an_exhaustive_scan_of_a_small_lattice(seed, name, watts):
    budget, objective = small_budget(seed), OBJECTIVES[name]
    budget = replace(budget, wafer=replace(budget.wafer, power_limit=watts))
    best, _, evaluated = exhaustive(budget, MODEL, OPTIONS, objective)
    design = codesign(MODEL, budget, options=OPTIONS, objective=objective, gap=0.0, time_limit=3600.0)
    if design.certificate is not None:
        assert design.certificate.lower_bound <= best * (1 + 1e-6)
        assert design.certificate.gap <= 1e-6
    assert (design.certificate is not None) == (name == "tokens-per-second")
    assert evaluated > 10_000
    assert np.isfinite(best)
    assert design.value == pytest.approx(best, rel=1e-3)
    assert design.value == pytest.approx(float(objective.value(design.wafer, design.estimate)), rel=1e-5)
    assert design.relaxed_value <= design.value
    assert design.estimate.feasible


def test_the_answer_is_a_lattice_point_that_fits():
    values, counts = [], []

    def improved(point, value, evaluations):
        values.append(value)
        counts.append(evaluations)

    design = codesign(MODEL, small_budget(0), options=OPTIONS, time_limit=3600.0, improved=improved)
    assert all(after < before for before, after in pairwise(values))
    assert values[-1] == pytest.approx(design.value, rel=1e-5)
    assert counts == sorted(counts) and counts[-1] <= design.evaluations
    budget = small_budget(0)
    index = (lattice.to_array(design.knobs) - lattice.to_array(budget.low)) / lattice.to_array(budget.step)
    np.testing.assert_allclose(index, np.rint(index), atol=1e-6)
    again = wj.estimate(design.wafer, MODEL, design.strategy)
    assert float(again.step_time) == pytest.approx(float(design.estimate.step_time), rel=1e-5)
    assert again.feasible
    assert min(float(margin) for margin in again.margins.values()) >= -1e-6


def test_what_cannot_fit_names_the_limit_the_excess_and_the_change():
    budget = small_budget(0)
    starved = replace(budget, wafer=replace(budget.wafer, power_limit=10.0))
    with pytest.raises(wj.Infeasible, match=r"exceeds power by .*power_limit would have to grow by .* to .* W"):
        codesign(MODEL, starved, options=OPTIONS)


def test_a_model_too_large_for_the_budget_names_memory():
    with pytest.raises(wj.Infeasible, match="exceeds memory"):
        codesign(wj.presets.models.GPT3_175B, small_budget(0), options=OPTIONS)


@pytest.mark.parametrize("model", ["llama3-70b", "mixtral-8x7b", "gpt3-175b"])
def test_every_enumerated_strategy_is_legal_and_fits(model):
    model = wj.presets.models.get(model)
    wafer = wj.presets.wafers.WATOS_CONFIG_3
    space = strategies(wafer, model, Options(least_use=0.5))
    rows = np.random.default_rng(0).choice(len(space), size=100, replace=False)
    for row in rows:
        strategy = space.strategy(int(row))
        assert violation(model, strategy) is None
        assert fits(wafer, strategy) is None
        expected = wj.layout(wafer, strategy, max_stages=space.layouts.pipeline_volume.shape[1])
        for ours, theirs in zip(jax.tree.leaves(space.layout(int(row))), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_enumeration_equals_brute_force_over_all_degrees():
    wafer = eqx.tree_at(lambda w: (w.die_rows, w.die_cols), wj.presets.wafers.WATOS_CONFIG_3, (2.0, 3.0))
    options = Options(global_batch_size=12, micro_batch_sizes=(1, 2), recompute=("none",), optimizer_sharding=(1,))
    space = strategies(wafer, MODEL, options)
    found = {tuple(float(leaf[row]) for leaf in jax.tree.leaves(space.strategies)) for row in range(len(space))}
    assert len(found) == len(space)
    brute = set()
    degrees = product((1, 2), (1, 2, 3), range(1, 7), range(1, 7), (1, 2, 4), (0, 1), (1, 2, 4), (1, 2), (0, 1))
    for tr, tc, p, d, c, sp, v, micro, collective in degrees:
        if (sp and tr * tc == 1) or (collective and not (tr > 1 and tc > 1)):
            continue
        try:
            strategy = wj.Strategy(
                tensor_rows=tr,
                tensor_cols=tc,
                pipeline_parallel=p,
                data_parallel=d,
                context_parallel=c,
                sequence_parallel=sp,
                virtual_stages=v,
                micro_batch_size=micro,
                global_batch_size=12,
                tensor_collective=collective,
            )
        except ValueError:
            continue
        if violation(MODEL, strategy) is None and fits(wafer, strategy) is None:
            brute.add(tuple(float(leaf) for leaf in jax.tree.leaves(strategy)))
    assert found == brute


def test_small_tensor_groups_come_first():
    space = strategies(wj.presets.wafers.WATOS_CONFIG_3, MODEL, OPTIONS)
    sizes = space.strategies.tensor_rows * space.strategies.tensor_cols
    assert (np.diff(sizes) >= 0).all()


def test_no_legal_strategy_counts_the_reasons():
    lonely = replace(MODEL, num_attention_heads=31, num_kv_heads=31)
    options = Options(global_batch_size=7, micro_batch_sizes=(4,))
    with pytest.raises(ValueError, match=r"no strategy is legal on 56 dies: .*\(\d+\)"):
        strategies(wj.presets.wafers.WATOS_CONFIG_3, lonely, options)
    with pytest.raises(ValueError, match=r"no strategy is legal on 56 dies: .*more than all dies \(\d+\)"):
        strategies(wj.presets.wafers.WATOS_CONFIG_3, MODEL, Options(context_parallel=(64,)))


def test_lattice_neighbours_stay_inside_and_contain_the_center():
    budget = wj.presets.budgets.DEFAULT
    center = np.zeros(8, int)
    for points in (lattice.inside(budget, lattice.box(center)), lattice.moves(budget, center)):
        assert (points >= 0).all() and (points < lattice.counts(budget)).all()
        assert (points == center).all(axis=1).any()
    assert len(lattice.inside(budget, lattice.box(center))) == 2**8


def test_more_cores_may_take_another_shape_and_room_from_links():
    middle = lattice.counts(wj.presets.budgets.DEFAULT) // 2
    step = np.zeros(8, int)
    step[[lattice.NAMES.index(name) for name in ("core_rows", "core_cols", "d2d_bandwidth")]] = -1, 2, -4
    found = lattice.moves(wj.presets.budgets.DEFAULT, middle)
    assert (found == middle + step).all(axis=1).any()


def test_the_default_budget_is_not_tiny():
    budget = wj.presets.budgets.DEFAULT
    assert np.prod(lattice.counts(budget).astype(float)) >= 1e7
    assert float(budget.step.core_rows) <= 1 and float(budget.step.core_cols) <= 1
    assert float(budget.step.sram_bytes_per_core) <= 64 * 1024
    assert float(budget.step.dram_stacks) <= 1


# shadow prices


@pytest.fixture(scope="module")
def priced():
    """A small budget, its design, and the prices of the design's limits and constants."""
    budget = small_budget(0)
    # room around the lattice, so that limits and not its ends decide
    low = lattice.to_array(budget.low) * np.array([0.5, 0.5, 1.0, 1.0, 0.3, 0.8, 0.8, 0.9])
    high = lattice.to_array(budget.high) * np.array([2.0, 2.0, 2.0, 1.0, 3.0, 1.2, 1.2, 1.1])
    budget = replace(budget, low=lattice.from_array(low), high=lattice.from_array(high))
    options = replace(OPTIONS, micro_batch_sizes=(1,), recompute=("none",))
    design = codesign(MODEL, budget, options=options, time_limit=3600.0)
    return budget, design, wj.shadow_prices(design, MODEL, budget)


def test_the_relaxed_optimum_is_stationary_and_below_the_design(priced):
    _, design, prices = priced
    assert prices.residual < 1e-5
    assert prices.value <= design.value * (1 + 1e-6)
    assert prices.limits and all(price > 0 for price in prices.limits.values())


def test_prices_are_the_slopes_of_the_optimum(priced):
    """Solved again with a constant a little off, the best value moves as its price says."""
    budget, design, prices = priced
    step = 2e-3
    strongest = sorted(prices.constants, key=lambda name: -abs(prices.constants[name]))[:4]
    assert "technology.mac_area" in strongest
    for name in strongest:

        def field(wafer, name=name):
            for part in name.split("."):
                wafer = getattr(wafer, part)
            return wafer

        def solved(factor, field=field):
            wafer = eqx.tree_at(field, budget.wafer, factor * float(field(budget.wafer)))
            return wj.shadow_prices(design, MODEL, replace(budget, wafer=wafer)).value

        slope = np.log(solved(1 + step) / solved(1 - step)) / np.log((1 + step) / (1 - step))
        assert prices.constants[name] == pytest.approx(slope, rel=0.02, abs=1e-3), name


def test_prices_of_areas_agree(priced):
    """Cores and SRAM share a die: a smaller MAC and a denser SRAM together are worth the die's area at most."""
    _, _, prices = priced
    constants = prices.constants
    share = constants["technology.mac_area"] + constants.get("technology.sram_area", 0.0)
    assert 0 < share <= prices.limits["die_area"] + 1e-6
