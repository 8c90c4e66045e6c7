"""The proof: bounds below the hard model everywhere, and the proven best equal to an exhaustive scan."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from test_search import MODEL, OPTIONS, exhaustive, small_budget

import watos_jax as wj
from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING
from watos_jax.presets import budgets
from watos_jax.search import bounds, boxes, certificate, lattice
from watos_jax.search.bounds import EXPONENTS, exact_times, reciprocals, tangent
from watos_jax.search.boxes import AXES, Grids
from watos_jax.search.candidates import candidates
from watos_jax.search.certificate import certify
from watos_jax.search.climb import Climber
from watos_jax.search.codesign import Options, codesign
from watos_jax.search.descend import Candidate, Point, Shared
from watos_jax.search.lattice import NAMES
from watos_jax.search.local import Local
from watos_jax.search.objective import OBJECTIVES, STEP_TIME
from watos_jax.search.space import strategies

MIXTURE = wj.presets.models.MIXTRAL_8X7B
SAMPLED = Options(
    global_batch_size=32,
    micro_batch_sizes=(1, 2, 4),
    recompute=("none", "attention", "full"),
    optimizer_sharding=(0, 1, 3),
    max_pipeline=16,
)
AXIS = np.array([NAMES.index(name) for name in AXES])
CORES = [NAMES.index(name) for name in ("core_rows", "core_cols")]
DIE = [NAMES.index(name) for name in ("die_width", "die_height")]


class Sample:
    """Random lattice points of a budget that can be made, each with a random strategy of its grid."""

    def __init__(self, budget: wj.Budget, model: wj.Transformer, size: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        grids = np.array([[4, 5, 0, 1], [6, 6, 1, 0], [5, 8, 0, 2], [6, 9, 0, 1], [7, 7, 2, 0]], float)
        self.budget, self.grids, self.which = budget, grids, rng.integers(0, len(grids), size)
        self.index = rng.integers(0, lattice.counts(budget), (size, len(NAMES)))
        # mostly small SRAM and few stacks and links, or nothing else fits
        small = [NAMES.index(name) for name in ("sram_bytes_per_core", "dram_stacks", "d2d_bandwidth")]
        self.index[:, small] = self.index[:, small] * rng.random((size, 3)) ** 2
        places = grids[self.which], lattice.values_at(budget, self.index)
        room = map_chunks(boxes.room, budget, places)
        rows = lattice.values_at(budget, self.index)[:, CORES[0]]
        most = np.minimum(np.floor(room / rows), float(budget.high.core_cols))
        first, step = (lattice.to_array(side)[CORES[1]] for side in (budget.low, budget.step))
        cols = np.floor((most - first) / step)
        fits = cols >= 0
        self.index[fits, CORES[1]] = rng.integers(0, cols[fits].astype(int) + 1)
        self.index, self.which = self.index[fits], self.which[fits]
        self.shared, self.candidate = self._candidates(model, rng)

    def _candidates(self, model, rng):
        blocks, tables, offset = [], [], 0
        for grid in self.grids:
            wafer = replace(self.budget.wafer, die_rows=grid[0], die_cols=grid[1])
            space = strategies(wafer, model, SAMPLED, max_stages=SAMPLED.max_pipeline)
            rows = rng.integers(0, len(space), len(self.which))
            ones = np.ones(len(rows))
            strategy = jax.tree.map(lambda leaf, rows=rows: leaf[rows], space.strategies)
            blocks.append(Candidate(*(ones * part for part in grid), strategy, space.geometry[rows] + offset))
            tables.append(space.layouts)
            offset += len(space.layouts.pipeline_volume)
        layouts = jax.tree.map(lambda *leaves: np.concatenate(leaves), *tables)
        padded = np.minimum(np.arange(1 << (offset - 1).bit_length()), offset - 1)
        layouts = jax.tree.map(lambda leaf: leaf[padded], layouts)
        every = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
        own = jax.tree.map(lambda leaf: leaf[self.which, np.arange(len(self.which))], every)
        return Shared(self.budget, model, STEP_TIME, layouts), own

    def at(self, knobs: np.ndarray) -> bounds.Tangent:
        return map_chunks(tangent, self.shared, Point(self.candidate, knobs), chunk=512)


BUDGETS = sorted(set(budgets.NAMES) - {"abutted-215"})


def test_where_no_die_fits_there_is_no_box():
    budget = budgets.NAMES["abutted-215"]
    assert len(Grids(budget, np.array([[6.0, 6.0, 0.0, 1.0], [4.0, 5.0, 1.0, 0.0]])).cover().grid) == 0


def test_a_cover_holds_every_point_of_the_lattice_once():
    budget = budgets.DEFAULT
    grids = Grids(budget, np.array([[6.0, 8.0, 0.0, 1.0]]))
    rng = np.random.default_rng(0)
    index = rng.integers(0, grids.sizes[AXIS], (1_000, len(AXES)))
    # cores that fit nowhere are in no box: the cheapest designs of all
    index[:, [0, 1]] = 0
    index[:, [2, 3]] = index[:, [2, 3]] // 8
    cover = grids.cover()
    holds = ((cover.low <= index[:, None]) & (index[:, None] <= cover.high)).all(axis=2)
    assert (holds.sum(axis=1) == 1).all()
    # what a box of all would be bounded by is below each of them
    low = np.zeros((1, len(AXES)), int)
    whole = grids.boxes(np.zeros(1, int), low, low + grids.sizes[AXIS] - 1)
    assert (whole.least <= cover.least * (1 + 1e-12)).all()


@pytest.mark.parametrize(
    ("name", "model", "least"),
    [
        ("default", MODEL, 2_000),
        pytest.param("dense-215", MIXTURE, 2_000, marks=pytest.mark.slow),
        *(pytest.param(name, model, 10_000, marks=pytest.mark.slow) for name in BUDGETS for model in (MODEL, MIXTURE)),
    ],
)
def test_no_lattice_point_is_below_a_bound_of_its_boxes(name, model, least):
    sample = Sample(budgets.NAMES[name], model, 7 * least)
    count, rng = len(sample.which), np.random.default_rng(1)
    here = lattice.values_at(sample.budget, sample.index)
    touched = sample.at(here)
    times = exact_times(sample.candidate.strategy, touched)
    # tangents that touch somewhere else, not on the lattice
    elsewhere = here * np.exp(rng.normal(size=here.shape) * 10.0 ** rng.uniform(-2, 0, (count, 1)))
    weights = sample.at(elsewhere).weights
    assert count > least
    assert np.isfinite(times).all()
    tight = (touched.weights * reciprocals(here)).sum(axis=1)
    for one in (weights, touched.weights):
        assert ((one * reciprocals(here)).sum(axis=1) <= times * (1 + 1e-9)).all()
    # boxes of all sizes around the points, a point of a box among them
    grids, index = Grids(sample.budget, sample.grids), sample.index[:, AXIS]
    last = lattice.counts(sample.budget)[AXIS] - 1
    reach = rng.integers(0, last + 1, (2, count, len(AXES))) * rng.random((2, count, 1)) ** 4
    low, high = np.maximum(index - reach[0].astype(int), 0), np.minimum(index + reach[1].astype(int), last)
    around = grids.boxes(sample.which, low, high)
    assert len(around.grid) == count
    bound = (weights * around.least).sum(axis=1)
    assert (bound <= times * (1 + 1e-9)).all()
    assert (touched.stacks <= around.stacks * (1 + bounds.SLACK)).sum() >= (touched.stacks <= here[:, 3]).sum()
    assert np.median(tight / times) > 0.99


def test_a_tangent_touches_and_names_what_the_time_is_spent_on():
    sample = Sample(budgets.DEFAULT, MODEL, 4_000)
    here = lattice.values_at(sample.budget, sample.index)
    at = sample.at(here)
    parts = at.weights * reciprocals(here)
    assert (parts >= -1e-9 * parts.sum(axis=1, keepdims=True)).all()
    # a strategy of one die has no links to wait for; one that has waits less when they are faster
    faster = here.copy()
    faster[:, NAMES.index("d2d_bandwidth")] *= 2.0
    quicker = (sample.at(faster).weights * reciprocals(faster)).sum(axis=1)
    links = parts[:, EXPONENTS[:, 4] < 0.0].sum(axis=1)
    np.testing.assert_allclose(parts.sum(axis=1) - quicker, 0.5 * links, rtol=1e-6, atol=1e-9 * parts.sum(axis=1).max())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 52))
def test_the_proven_best_equals_an_exhaustive_scan_of_a_small_lattice(seed):
    budget = small_budget(seed)
    best, _, _ = exhaustive(budget, MODEL, OPTIONS, STEP_TIME)
    if not np.isfinite(best):
        with pytest.raises(wj.Infeasible):
            codesign(MODEL, budget, options=OPTIONS)
        return
    design = codesign(MODEL, budget, options=OPTIONS, gap=0.0, time_limit=3600.0)
    proof = design.certificate
    assert proof is not None
    assert design.value == pytest.approx(best, rel=1e-5)
    assert proof.lower_bound <= best * (1 + 1e-6)
    assert proof.gap <= 1e-6
    assert proof.strategies_visited <= proof.strategies


@pytest.fixture(scope="module")
def begun():
    """A problem, its candidates, the stacks that each needs, and a local optimum to begin at."""
    budget = small_budget(0)
    table = candidates(wj.presets.models.LLAMA3_8B, budget, options=replace(OPTIONS, recompute=("none", "full")))
    climber = Climber([table])
    stacks = climber.scores(0, table.every).stacks
    places = np.unique(np.stack(table.every.candidate[:4], axis=1), axis=0)
    middle = lattice.counts(budget) // 2
    best = climber.climb(min((climber.choose(tuple(place), middle) for place in places), key=lambda one: one.rank))
    assert best.excess <= ROUNDING
    return Local(table.shared), table.every, stacks, climber.points(best, 0, best.knobs[None])


def test_a_proof_cut_short_says_what_it_has(begun, monkeypatch):
    problem, every, _, start = begun
    monkeypatch.setattr(boxes, "COVER", (1,) * len(AXES))
    monkeypatch.setattr(certificate, "HALVED", 0)
    proof, best = certify(problem, every, start, gap=0.0, time_limit=0.0)
    assert best is start
    assert 0.0 < proof.lower_bound < proof.value
    assert proof.gap > 0.0


def test_strategies_whose_memory_no_box_has_change_no_proof(begun):
    problem, every, stacks, start = begun
    known, unknown = (
        certify(problem, every, start, gap=0.0, time_limit=600.0, stacks=needed)[0] for needed in (stacks, None)
    )
    assert (stacks > 1.1 * float(problem.shared.budget.high.dram_stacks)).any()
    assert known.value == unknown.value and known.lower_bound == pytest.approx(unknown.lower_bound, rel=1e-12)
    assert known.evaluations < unknown.evaluations


@pytest.mark.slow
def test_other_objectives_and_hidden_communication_have_no_proof():
    budget = small_budget(0)
    joules = OBJECTIVES["tokens-per-joule"]
    assert codesign(MODEL, budget, options=OPTIONS, objective=joules).certificate is None
    hiding = replace(budget, wafer=replace(budget.wafer, overlap=wj.Overlap()))
    assert codesign(MODEL, hiding, options=OPTIONS).certificate is None


@pytest.mark.parametrize("change", [{"gap": -0.1}, {"time_limit": -1.0}, {"gap": float("nan")}])
def test_a_gap_or_limit_below_zero_is_refused(change):
    with pytest.raises(ValueError, match=rf"{next(iter(change))} is .*: it must be finite, 0 or more"):
        codesign(MODEL, small_budget(0), options=OPTIONS, **change)
