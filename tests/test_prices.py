"""How the optimum moves, and what is left of local prices when the whole search is repeated."""

from dataclasses import replace

import equinox as eqx
import jax
import numpy as np
import pytest
from test_search import MODEL, OPTIONS, exhaustive, small_budget

import watos_jax as wj
from watos_jax.presets import budgets, models
from watos_jax.search import lattice
from watos_jax.search.codesign import _Search, codesign
from watos_jax.search.objective import STEP_TIME
from watos_jax.search.relaxed import Problem, Relaxed
from watos_jax.search.response import respond
from watos_jax.search.shadow import ALLOWANCES, envelope

STRATEGY = wj.Strategy(tensor_rows=2, tensor_cols=2, pipeline_parallel=6, context_parallel=2, global_batch_size=512)
STRONG = ("technology.mac_area", "window_width", "d2d.phy_area", "technology.flop_energy", "power_limit")
CHANGE = 0.05
KNOBS = ("d2d_bandwidth", "die_width", "die_height", "clock")


def field(path):
    """A number of a wafer by its path."""

    def get(wafer):
        for part in path.split("."):
            wafer = getattr(wafer, part)
        return wafer

    return get


def scaled(budget, path, factor):
    get = field(path)
    return replace(budget, wafer=eqx.tree_at(get, budget.wafer, factor * float(get(budget.wafer))))


def problem(budget):
    """A strategy on 6 x 8 dies whose optimum is limited by area, window and mean power."""
    start = replace(lattice.from_array(lattice.first_guesses(budget, 6, 8, (0, 1))[0]), dram_stacks=2.0)
    return Problem(Relaxed(budget, models.LLAMA3_70B, STRATEGY, (6, 8), (0, 1)), start)


@pytest.fixture(scope="module")
def optimum():
    """A budget, the solved problem, prices of constants, and how knobs respond to them."""
    budget = replace(budgets.DEFAULT, wafer=replace(budgets.DEFAULT.wafer, power_limit=14e3))
    with jax.enable_x64(True):
        case = problem(budget)
        best = case.solve()
        return budget, best, envelope(case, best), respond(case, best)


@pytest.mark.float64
@pytest.mark.parametrize("constant", STRONG)
def test_value_and_knobs_move_as_their_slopes_say(optimum, constant):
    """Solved again with a constant a little off."""
    budget, best, prices, response = optimum
    assert {"die_area", "power", "window_area"} <= set(best.prices)
    step = 1e-3
    with jax.enable_x64(True):
        ends = [problem(scaled(budget, constant, factor)).solve() for factor in (1 - step, 1 + step)]
    across = np.log((1 + step) / (1 - step))
    slopes = dict(zip(lattice.NAMES, (ends[1].log_knobs - ends[0].log_knobs) / across, strict=True))
    assert prices[constant] == pytest.approx(np.log(ends[1].value / ends[0].value) / across, rel=1e-3)
    for knob in KNOBS:
        assert response.of(knob, constant) == pytest.approx(slopes[knob], rel=2e-3, abs=1e-5), knob
    # rows against columns of cores is not decided, their product is
    cores = response.of("core_rows", constant) + response.of("core_cols", constant)
    assert cores == pytest.approx(slopes["core_rows"] + slopes["core_cols"], rel=2e-3, abs=1e-5)
    assert response.residual < 1e-6


@pytest.mark.float64
def test_what_an_end_holds_does_not_move(optimum):
    _, best, _, response = optimum
    held = {name.split()[0] for name in best.prices if name.split()[0] in response.knobs}
    assert "sram_bytes_per_core" in held
    for knob in held:
        np.testing.assert_allclose(response.slopes[response.knobs.index(knob)], 0.0, atol=1e-12)
    assert response.slopes.shape == (len(response.knobs), len(response.constants))


@pytest.fixture(scope="module")
def small():
    """A small lattice, its best design, and two prices searched again: one strategy just fits the memory."""
    budget = small_budget(3)
    design = codesign(MODEL, budget, options=OPTIONS, gap=0.0, time_limit=3600.0)
    names = ("dram_capacity", "dram_bandwidth")
    prices = wj.resolved_prices(design, MODEL, budget, allowances=names, change=CHANGE, options=OPTIONS, gap=0.0)
    return budget, design, prices


@pytest.mark.slow
def test_a_price_holds_on_one_side_only_where_another_strategy_wins(small):
    _, design, prices = small
    capacity = prices["dram_capacity"]
    assert float(design.estimate.margins["memory"]) > 0.0
    assert capacity.local == 0.0 and capacity.more.one_percent == pytest.approx(0.0, abs=1e-9)
    assert capacity.more.same_choice and capacity.more.value == pytest.approx(design.certificate.value)
    assert capacity.less.one_percent > 0.1
    assert not capacity.less.same_choice and set(capacity.less.changed) & set(wj.Strategy.__dataclass_fields__)


@pytest.mark.slow
def test_a_local_price_lies_between_the_slopes_on_both_sides(small):
    bandwidth = small[2]["dram_bandwidth"]
    assert bandwidth.less.same_choice and bandwidth.more.same_choice
    # log-log convex: the first of anything is worth most
    assert bandwidth.more.one_percent < bandwidth.local < bandwidth.less.one_percent
    assert bandwidth.more.one_percent == pytest.approx(bandwidth.less.one_percent, rel=0.1)


@pytest.mark.slow
def test_prices_searched_again_are_those_of_exhaustive_scans(small):
    budget, design, prices = small
    for name, price in prices.items():
        (path,) = ALLOWANCES[name].powers
        for side, factor in ((price.less, 1.0 - CHANGE), (price.more, 1.0 + CHANGE)):
            best, _, _ = exhaustive(scaled(budget, path, factor), MODEL, OPTIONS, STEP_TIME)
            assert side.value == pytest.approx(best, rel=1e-4)
            slope = -np.log(best / design.certificate.value) / np.log(factor)
            assert side.one_percent == pytest.approx(slope, abs=5e-3)
            assert side.gap == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_a_search_from_a_design_finds_what_a_search_from_nothing_finds(small, monkeypatch):
    budget, design, _ = small
    again = codesign(MODEL, budget, options=OPTIONS, gap=0.0, time_limit=3600.0, start=design)
    assert "descend" not in again.phases
    assert again.certificate.value == pytest.approx(design.certificate.value, rel=1e-6)
    # a start that the budget does not have is no start, and where nothing near it fits the search begins again
    elsewhere = replace(design, strategy=replace(design.strategy, gradient_bytes=2.0))
    assert "descend" in codesign(MODEL, budget, options=OPTIONS, start=elsewhere).phases
    seen = iter([False])
    monkeypatch.setattr(_Search, "_fits", lambda *_: next(seen, True))
    assert {"start", "descend"} <= set(codesign(MODEL, budget, options=OPTIONS, start=design).phases)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"allowances": ("gold",)}, "allowances has 'gold': it must be one of window"), ({"change": 0.0}, "change is 0")],
)
def test_bad_requests_are_named(change, message):
    unseen = object.__new__(wj.Design)  # refused before a design is looked at
    with pytest.raises(ValueError, match=message):
        wj.resolved_prices(unseen, MODEL, small_budget(3), **change)
