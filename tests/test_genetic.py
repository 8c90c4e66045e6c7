"""Searches that know nothing of wafers: one space for all, and the exhaustive best where it is small."""

from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest
from test_search import MODEL, OPTIONS, small_budget

import watos_jax as wj
from watos_jax.baselines.searchers import SEARCHERS, exhaustive
from watos_jax.search import lattice
from watos_jax.search.candidates import candidates
from watos_jax.search.genes import GeneSpace
from watos_jax.search.genetic import Settings, genetic
from watos_jax.search.run import INFEASIBLE, Run

SMALL = Settings(population=64)
ALL = {**SEARCHERS, "genetic": partial(genetic, settings=SMALL)}


@pytest.fixture(scope="module")
def space() -> GeneSpace:
    """Strategies of two die grids, and a lattice of 144 points."""
    budget = small_budget(1)
    low, high = lattice.to_array(budget.low), lattice.to_array(budget.high)
    one = [lattice.NAMES.index(name) for name in ("core_cols", "d2d_bandwidth", "die_height")]
    high[one] = low[one]
    budget = replace(budget, high=lattice.from_array(high))
    return GeneSpace(candidates(MODEL, budget, options=replace(OPTIONS, recompute=("none", "full"))))


@pytest.fixture(scope="module")
def best(space) -> Run:
    """All designs evaluated."""
    run = Run(space)
    exhaustive(run)
    return run


def test_exhaustive_search_evaluates_every_design_once(space, best):
    assert best.evaluations == space.num_designs
    assert np.isfinite(best.trace.value)


def test_a_candidate_is_its_own_repair_and_any_genes_have_one(space):
    rows = np.arange(len(space.candidates))
    index = np.zeros((len(rows), len(lattice.NAMES)), int)
    designs = space.designs(rows, index)
    np.testing.assert_array_equal(space.repaired(designs)[0], rows)
    wild = np.random.default_rng(0).integers(-3, space.sizes + 3, (200, len(space.sizes)))
    again, repaired = space.repaired(wild)
    assert (repaired >= 0).all() and (repaired < space.sizes).all()
    np.testing.assert_array_equal(space.repaired(repaired)[0], again)
    assert len(set(again)) > 20


def test_repair_is_the_nearest_level_by_level(space):
    """The same by loops: the nearest grid, on it the nearest degrees, with them the nearest other choices."""
    number = len(space.names) - len(lattice.NAMES)
    table = space.designs(np.arange(len(space.candidates)), np.zeros((len(space.candidates), len(lattice.NAMES)), int))
    scale = 1.0 / np.maximum(space.sizes[:number] - 1, 1)
    ends = np.cumsum([level.genes.shape[1] for level in space.tree])
    for wanted in np.random.default_rng(1).integers(0, space.sizes, (50, len(space.sizes))):
        rows = np.arange(len(table))
        for start, stop in zip([0, *ends[:-1]], ends, strict=True):
            apart = (np.abs(table[rows, start:stop] - wanted[start:stop]) * scale[start:stop]).sum(axis=1)
            rows = rows[np.isclose(apart, apart.min())]
            rows = rows[(table[rows, start:stop] == table[rows[0], start:stop]).all(axis=1)]
        assert len(rows) == 1
        assert space.repaired(wanted[None])[0][0] == rows[0]


def test_the_same_seed_gives_the_same_search(space):
    runs = [Run(space, max_evaluations=500) for _ in range(3)]
    for run, seed in zip(runs, (3, 3, 4), strict=True):
        genetic(run, seed, settings=SMALL)
    found = [[(one.evaluations, one.value) for one in run.trace.improvements] for run in runs]
    assert found[0] == found[1] != found[2]
    assert [run.evaluations for run in runs] == [500] * 3


def test_the_genetic_search_finds_the_exhaustive_best(space, best):
    run = Run(space, max_evaluations=6_000)
    genetic(run, 0, settings=SMALL)
    assert run.trace.value == pytest.approx(best.trace.value, rel=1e-6)


def test_a_refined_design_is_never_worse_than_its_start(space, best):
    second = best.trace.improvements[-2]
    wafer, strategy = space.build(second.point)
    start = space.genes_of(wafer, strategy, lattice.from_array(second.point.knobs[0]))
    run = Run(space, max_evaluations=2 * SMALL.population)
    genetic(run, 0, start=start[None], settings=SMALL)
    first = run.trace.improvements[0]
    assert first.evaluations == 1
    assert first.value == pytest.approx(second.value, rel=1e-6)
    assert run.trace.value <= second.value * (1 + 1e-6)


@pytest.mark.parametrize("name", ALL)
def test_what_a_search_reports_is_estimated_again_and_fits(space, best, name):
    run = Run(space, max_evaluations=3_000)
    ALL[name](run, 0)
    values = [one.value for one in run.trace.improvements]
    assert values == sorted(values, reverse=True)
    assert run.trace.value >= best.trace.value * (1 - 1e-6)
    for one in run.trace.improvements[-2:]:
        wafer, strategy = space.build(one.point)
        again = wj.estimate(wafer, MODEL, strategy)
        assert again.feasible
        assert one.value == pytest.approx(float(again.step_time), rel=1e-5)


def test_merits_put_what_fits_first_and_stop_at_the_limit(space):
    designs = space.draw(np.random.default_rng(0), 300)
    run = Run(space, max_evaluations=200)
    merits = run.merits(designs)
    assert np.isinf(merits[200:]).all() and np.isfinite(merits[:200]).all()
    assert run.evaluations == 200 and run.is_over()
    found = space.scores(*_points(space, designs[:200]))
    fits = found.excess <= 1e-6
    assert fits.any() and not fits.all()
    assert merits[:200][fits].max() < INFEASIBLE < merits[:200][~fits].min()
    np.testing.assert_allclose(merits[:200][~fits] - INFEASIBLE, found.excess[~fits], rtol=1e-4, atol=1e-3)


def _points(space, designs):
    rows, genes = space.repaired(designs)
    return rows, space.knobs(genes)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"omega": 1.5}, "omega is 1.5: it must be from 0 to 1"), ({"population": 1}, "population is 1: it must be at")],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("package", "name"), [("optuna", "optuna_tpe"), ("pymoo", "pymoo_ga"), ("evosax", "evosax_cma_es")]
)
def test_searches_of_others_see_the_same_space(space, best, package, name, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "experiments"))
    search = getattr(import_module("harness.optimisers"), name)
    run = Run(space, max_evaluations=400)
    with jax.numpy_rank_promotion("allow"):  # theirs is not ours to check
        search(run, 0)
    assert best.trace.value * (1 - 1e-6) <= run.trace.value < np.inf
    wafer, strategy = space.build(run.trace.improvements[-1].point)
    assert wj.estimate(wafer, MODEL, strategy).feasible
