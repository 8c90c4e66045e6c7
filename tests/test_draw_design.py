"""Co-design over draws of faults: an exhaustive search of its own, laws of the bound, what the command prints."""

import json
from dataclasses import replace
from importlib import import_module
from itertools import product

import equinox as eqx
import jax
import numpy as np
import pytest
from test_compromise import BUDGET as WIDE
from test_compromise import FEW, MODEL

import watos_jax as wj
from watos_jax.cli import main
from watos_jax.estimate import ROUNDING, estimate
from watos_jax.faults import draw
from watos_jax.network.geometry import Geometry, misfit
from watos_jax.network.layout import layout_of
from watos_jax.search import lattice
from watos_jax.search.boxes import Grids
from watos_jax.search.candidates import take
from watos_jax.search.draws import strategy_keys
from watos_jax.search.laid import laid_candidates
from watos_jax.search.robust import ways_left
from watos_jax.search.space import strategies

BUDGET = replace(WIDE, high=replace(WIDE.high, sram_bytes_per_core=WIDE.low.sram_bytes_per_core))
LOOSE = replace(FEW, least_use=0.6)
SEEDS = (0, 1)


def dead_dies(wafer):
    return [draw(wafer, dies=0.17, links=0.15, seed=seed) for seed in SEEDS]


@eqx.filter_jit
def _answers(budget, knobs, place, strategy, layout):
    def one(values):
        rows, cols, *sides = place
        wafer = budget.build(lattice.from_array(values), rows, cols, tuple(sides))
        found = estimate(wafer, MODEL, strategy, layout=layout)
        margins = jax.numpy.stack(list(found.margins.values()))
        return found.step_time, margins.min()

    return jax.vmap(one)(knobs)


def every_step_time():
    """Step time of every (grid, edges, strategy, lattice point, draw), least over ways; infinite where it does not fit.

    Strategies are those of the whole mesh, tried in every draw whether they fit or not: what is laid is not shared.
    """
    index = np.array(list(product(*(range(count) for count in lattice.counts(BUDGET)))))
    knobs, found = lattice.values_at(BUDGET, index), {}
    for rows, cols in ((2, 2), (2, 3)):
        wafer = replace(BUDGET.wafer, die_rows=rows, die_cols=cols)
        space = strategies(wafer, MODEL, replace(LOOSE, least_use=0.0))
        for row, sides in product(range(len(space)), BUDGET.memory_sides):
            strategy, times = space.strategy(row), []
            geometry = Geometry.of(strategy)
            for faults in dead_dies(wafer):
                best = np.full(len(knobs), np.inf)
                for network, _ in ways_left(wafer, faults):
                    usable = LOOSE.least_use * len(network.fabrics[0].damage.unused ^ frozenset(range(rows * cols)))
                    if misfit(network, geometry) is None and geometry.tensor * geometry.slots >= usable:
                        layout = layout_of(network, geometry, max_stages=8)
                        place = tuple(map(float, (rows, cols, *sides)))
                        time, margin = map(np.asarray, _answers(BUDGET, knobs, place, strategy, layout))
                        best = np.minimum(best, np.where(margin >= -ROUNDING, time, np.inf))
                times.append(best)
            found[rows, cols, sides, row] = np.array(times)
    return found


@pytest.fixture(scope="module")
def scanned():
    return every_step_time()


@pytest.fixture(scope="module")
def designed():
    return {
        objective: wj.codesign_for_draws(MODEL, BUDGET, dead_dies, options=LOOSE, objective=objective, gap=0.0)
        for objective in ("worst", "mean")
    }


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["worst", "mean"])
def test_the_answer_is_the_best_of_an_exhaustive_search(scanned, designed, objective, eps):
    of = np.max if objective == "worst" else np.mean
    values = {place: of(times, axis=0) for place, times in scanned.items()}
    found = designed[objective]
    best = min(values, key=lambda place: values[place].min())
    assert found.laid.value == pytest.approx(values[best].min(), rel=64 * eps)
    np.testing.assert_allclose(found.laid.step_times, scanned[best][:, values[best].argmin()], rtol=64 * eps)
    assert found.certificate.lower_bound == pytest.approx(found.certificate.value, rel=64 * eps)
    # placing stages, or keeping places, is no slower; and the answer is no worse than the healthy wafer
    assert found.value <= found.plan.value <= found.laid.value * (1 + 64 * eps)
    assert found.value <= found.healthy_plan.value and found.laid.value <= found.healthy_laid.value * (1 + 64 * eps)
    assert found.healthy.value <= found.value


@pytest.mark.slow
@jax.enable_x64(True)
def test_bounds_are_below_every_design_of_their_boxes():
    table, problem = laid_candidates(MODEL, BUDGET, dead_dies, options=LOOSE, objective="worst")
    rng = np.random.default_rng(0)
    places, group = np.unique(np.stack(table.every.candidate[:4], axis=1), axis=0, return_inverse=True)
    boxes = Grids(BUDGET, places).cover()
    for number in range(len(places)):
        own = np.flatnonzero(group == number)
        there = type(boxes)(*(column[boxes.grid == number] for column in boxes))
        index = rng.integers(0, lattice.counts(BUDGET), (len(own), 8))
        touched = problem.touch(take(table.every, own)._replace(knobs=lattice.values_at(BUDGET, index)))
        bound = {
            objective: replace(problem, objective=objective).bound(jax.tree.map(lambda x: x[:, None], touched), there)
            for objective in ("worst", "mean")
        }
        assert (bound["mean"] <= bound["worst"]).all()
        for _ in range(20):
            index = rng.integers(0, lattice.counts(BUDGET), (len(own), 8))
            points = take(table.every, own)._replace(knobs=lattice.values_at(BUDGET, index))
            for objective, least in bound.items():
                times, _ = replace(problem, objective=objective).settle(points)
                inside = least.min(axis=1)
                assert (times >= inside * (1 - 1e-9)).all()


def test_strategies_of_all_draws_are_those_legal_in_each_with_their_own_layouts():
    table, problem = laid_candidates(MODEL, BUDGET, dead_dies, options=LOOSE, objective="worst")
    assert (problem.draws, problem.ways) == (2, 2)
    for rows, cols in ((2, 2), (2, 3)):
        wafer = replace(BUDGET.wafer, die_rows=rows, die_cols=cols)
        own = np.flatnonzero((table.every.candidate.die_rows == rows) & (table.every.candidate.die_cols == cols))
        own = own[table.group[own] == table.group[own].min(initial=99)]
        listed = set(strategy_keys(take(table.every, own).candidate.strategy, len(own)).tolist())
        legal = None
        for faults in dead_dies(wafer):
            spaces = [strategies(wafer, MODEL, LOOSE, max_stages=64, network=n) for n, _ in ways_left(wafer, faults)]
            here = {key for space in spaces for key in strategy_keys(space.strategies, len(space)).tolist()}
            legal = here if legal is None else legal & here
        assert listed == legal
        for row in own[:: max(1, len(own) // 5)]:
            point = jax.tree.map(lambda leaf, row=row: leaf[row], table.every.candidate)
            geometry = Geometry.of(jax.tree.map(float, point.strategy))
            for number, faults in enumerate(dead_dies(wafer)):
                expected = [
                    layout_of(network, geometry, max_stages=int(LOOSE.max_pipeline))
                    for network, _ in ways_left(wafer, faults)
                    if misfit(network, geometry) is None
                ]
                for way in range(problem.ways):
                    at = int(point.geometry) + number * problem.ways + way
                    built = jax.tree.leaves(jax.tree.map(lambda leaf, at=at: leaf[at], table.shared.layouts))
                    assert any(all(map(np.array_equal, built, jax.tree.leaves(one))) for one in expected)


@pytest.mark.parametrize(
    ("faults", "changes", "message"),
    [
        (dead_dies, {"objective": "best"}, "objective is 'best': it must be one of worst, mean"),
        (dead_dies, {"gap": -1.0}, "gap is -1: it must be finite, 0 or more"),
        (lambda wafer: [], {}, "faults gives 0 draws of 2 x 2 dies: it must give 1"),
        (
            lambda wafer: dead_dies(wafer)[int(wafer.die_cols) - 2 :],
            {},
            "faults gives 1 draws of 2 x 3 dies: it must give 2",
        ),
        (lambda wafer: [draw(wafer, harvested=0.5)], {}, "faults has dies with a part of their cores or stacks"),
        (lambda wafer: [draw(wafer, dies=1.0)], {}, "no die grid of the budget can hold the model"),
    ],
)
def test_bad_arguments_are_refused(faults, changes, message):
    with pytest.raises(ValueError, match=message):
        wj.codesign_for_draws(MODEL, BUDGET, faults, options=LOOSE, **changes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--budget small --dead-dies 0.1", "--budget is 'small': it must be one of"),
        ("--budget default --wafer dojo-tile --dead-dies 0.1", "--budget is 'default': it must not be given beside"),
        ("--budget default --harvested 0.1", "--harvested is '0.1': it must be 0 with --budget"),
        ("--budget default --dead-dies 0.1 --time-limit soon", "--time-limit is 'soon': it must be a number from 0 to"),
    ],
)
def test_bad_words_of_the_command_are_one_sentence(words, message, capfd):
    assert main(["faults", "llama2-7b", *words.split()]) == 2
    out, err = capfd.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


@pytest.mark.slow
def test_the_command_prints_both_wafers_with_value_and_bound(designed, monkeypatch, capfd):
    asked = {}

    def found(model, budget, faults, **options):
        asked.update(options, budget=budget, draws=faults(budget.wafer))
        return designed["worst"]

    monkeypatch.setattr(import_module("watos_jax.cli.faults"), "codesign_for_draws", found)
    words = "faults llama3-8b --budget default --dead-dies 0.1 --draws 2 --seed 7 --global-batch-size 32".split()
    assert main([*words, "--time-limit", "5", "--json"]) == 0
    record = json.loads(capfd.readouterr()[0])
    expected = [draw(asked["budget"].wafer, dies=0.1, seed=seed) for seed in (7, 8)]
    assert jax.tree.all(jax.tree.map(np.array_equal, asked["draws"], expected))
    assert (asked["time_limit"], asked["options"].global_batch_size) == (5.0, 32)
    laid, proof = record["laid"], record["certificate"]
    assert laid["value"] == pytest.approx(max(laid["step_times"])) and proof["gap"] == pytest.approx(0.0, abs=1e-9)
    assert record["value"] == designed["worst"].value <= record["healthy"]["plan"]["value"]
    assert [one["dead_dies"] for one in record["draws"]] == [1, 1]
    assert main(words) == 0
    out = capfd.readouterr()[0]
    assert "proven gap" in out and "designed for the draws" in out and "healthy, placed" in out
