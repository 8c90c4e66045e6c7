"""One wafer for several cases, fronts of two objectives, uncertain constants: laws, and exhaustive scans."""

from dataclasses import replace
from itertools import product

import jax
import numpy as np
import pytest
from test_search import MODEL, OPTIONS, small_budget

import watos_jax as wj
from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING
from watos_jax.presets import technologies
from watos_jax.presets.uncertainties import PUBLISHED_N7, spread
from watos_jax.search import lattice
from watos_jax.search.candidates import candidates, take
from watos_jax.search.climb import MEANS, power_mean
from watos_jax.search.descend import score
from watos_jax.search.objective import OBJECTIVES
from watos_jax.search.pareto import hypervolume, is_dominant, pareto
from watos_jax.search.uncertainty import drawn_wafers, uncertainty

THIN = replace(MODEL, num_layers=8.0)  # whose best die grid is another
FEW = replace(OPTIONS, micro_batch_sizes=(1,), recompute=("none", "full"))
BUDGET = replace(small_budget(0), memory_sides=((0, 1),))
SPARSE = replace(technologies.DEMONSTRATED_N7, mac_area=1.15 * float(technologies.DEMONSTRATED_N7.mac_area))


def case(model=MODEL, budget=BUDGET, **changes):
    return wj.Case(model, budget, options=FEW, **changes)


def with_technology(technology):
    return replace(BUDGET, wafer=replace(BUDGET.wafer, technology=technology))


def built(point):
    return BUDGET.build(point.knobs, float(point.die_rows), float(point.die_cols), tuple(map(float, point.sides)))


def every_rate(one, objective=OBJECTIVES["tokens-per-second"]):
    """Best rate of every (grid, lattice point) by exhaustion, 0 where nothing fits; shape (grids, points)."""
    table = candidates(one.model, one.budget, options=one.options, objective=objective)
    index = np.array(list(product(*(range(count) for count in lattice.counts(one.budget)))))
    knobs = lattice.values_at(one.budget, index)
    rates = np.zeros((int(table.group.max()) + 1, len(knobs)))
    for row, group in enumerate(table.group):
        points = take(table.every, np.full(len(knobs), row))._replace(knobs=knobs)
        found = map_chunks(score, table.shared, points)
        rates[group] = np.maximum(rates[group], np.where(found.excess <= ROUNDING, one.tokens / found.value, 0.0))
    return rates


@pytest.fixture(scope="module")
def scanned():
    cases = [case(), case(THIN), case(budget=with_technology(SPARSE))]
    return cases, [every_rate(one) for one in cases]


# one wafer for several cases


def test_one_case_of_weight_one_is_codesign():
    both = wj.compromise([case()], mean="arithmetic", gap=0.0)
    (alone,) = both.own
    assert both.value == pytest.approx(float(alone.estimate.tokens_per_second), rel=1e-5)
    assert both.knobs == alone.knobs and both.strategies == (alone.strategy,)
    assert both.shares == pytest.approx((1.0,), rel=1e-5)
    # what is left of the gap is the proof's, whose schedule is replayed
    assert both.gap == pytest.approx(alone.value / alone.certificate.lower_bound - 1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("mean", "chosen", "weights"),
    [
        ("geometric", (0, 1), (1.0, 1.0)),
        *(pytest.param(mean, (0, 1), (1.0, 9.0), marks=pytest.mark.slow) for mean in MEANS),
        *(pytest.param(mean, (0, 2), (1.0, 1.0), marks=pytest.mark.slow) for mean in MEANS),
    ],
)
def test_a_compromise_is_the_best_of_an_exhaustive_scan(scanned, mean, chosen, weights):
    cases, rates = ([part[i] for i in chosen] for part in scanned)
    cases = [replace(one, weight=weight) for one, weight in zip(cases, weights, strict=True)]
    fits = np.all([one > 0.0 for one in rates], axis=0)
    means = power_mean(np.array([one[fits] for one in rates]), np.array(weights), MEANS[mean])
    found = wj.compromise(cases, mean=mean)
    assert found.value == pytest.approx(means.max(), rel=1e-4)
    assert chosen == (0, 2) or min(found.shares) < 0.99  # nobody has it all
    assert found.upper_bound * (1 + 1e-9) >= found.value and all(share <= 1.0 + 1e-5 for share in found.shares)
    assert all(answer.feasible for answer in found.estimates)
    for wafer, one in zip(found.wafers, cases, strict=True):
        assert wafer.technology == one.budget.wafer.technology
        assert float(wafer.die.core_rows) == float(found.knobs.core_rows)
    if mean == "worst":
        assert found.value == pytest.approx(min(found.rates), rel=1e-6)
        assert all(found.value <= own * (1 + 1e-5) for own in found.own_rates)


def test_power_means_are_those_of_the_books():
    rates, weights = np.array([[1.0, 2.0], [4.0, 8.0]]), np.array([1.0, 3.0])
    assert power_mean(rates, weights, 1.0) == pytest.approx([3.25, 6.5])
    assert power_mean(rates, weights, 0.0) == pytest.approx([4.0**0.75, 2.0 * 4.0**0.75])
    assert power_mean(rates, weights, -1.0) == pytest.approx([4.0 / 1.75, 8.0 / 1.75])
    assert power_mean(rates, weights, -np.inf) == pytest.approx([1.0, 2.0])
    # between -inf and 1 means grow with their power
    assert (np.diff([power_mean(rates, weights, power)[0] for power in (-np.inf, -500.0, -1.0, 0.0, 1.0)]) > 0).all()


@pytest.mark.parametrize(
    ("cases", "arguments", "message"),
    [
        ([], {}, "cases is empty"),
        ([case()], {"mean": "middle"}, "mean is 'middle': it must be one of arithmetic, geometric, harmonic, worst"),
        ([case(weight=0.0)], {}, r"cases\[0\].weight is 0: it must be finite, above 0"),
        ([case(), case(budget=wj.presets.budgets.DEFAULT)], {}, r"cases\[1\].budget has another lattice"),
    ],
)
def test_cases_that_do_not_go_together_are_refused(cases, arguments, message):
    with pytest.raises(ValueError, match=message):
        wj.compromise(cases, **arguments)


def test_the_case_that_cannot_fit_is_named():
    starved = replace(BUDGET, wafer=replace(BUDGET.wafer, power_limit=10.0))
    with pytest.raises(wj.Infeasible, match="dark: no design of this budget fits"):
        wj.compromise([case(budget=starved, name="dark")])


# fronts


def test_hypervolume_against_a_count_of_cells():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.integers(1, 30, (12, 2)).astype(float)
        corner = rng.integers(0, 5, 2).astype(float)
        x, y = np.meshgrid(np.arange(30) + 0.5, np.arange(30) + 0.5)
        covered = np.any([(x < a) & (y < b) for a, b in points], axis=0) & (x > corner[0]) & (y > corner[1])
        assert hypervolume(points, tuple(corner.tolist())) == pytest.approx(covered.sum())


def test_dominance_against_all_pairs():
    points = np.random.default_rng(1).integers(0, 10, (200, 2)).astype(float)
    kept = is_dominant(points)
    for i, one in enumerate(points):
        beaten = any(
            (other >= one).all() and ((other > one).any() or (j < i and (other == one).all()))
            for j, other in enumerate(points)
        )
        assert kept[i] != beaten


@pytest.mark.slow
def test_a_front_reaches_that_of_an_exhaustive_scan():
    names = ("tokens-per-second", "tokens-per-joule")
    front = pareto(MODEL, BUDGET, objectives=names, options=FEW, weights=5)
    rates = np.array([point.rates for point in front.points])
    assert is_dominant(rates).all() and (np.diff(rates[:, 0]) < 0).all()
    every = np.stack([_rates_of_all(OBJECTIVES[name]) for name in names], axis=-1).reshape(-1, 2)
    every = every[(every > 0.0).all(axis=1)]
    exact = hypervolume(every) / float(every.max(axis=0).prod())
    assert rates.max(axis=0) == pytest.approx(every.max(axis=0), rel=1e-4)
    assert front.hypervolume == pytest.approx(exact, rel=1e-3) and front.hypervolume <= exact * (1 + 1e-5)
    for point in front.points[:: max(1, len(front.points) // 3)]:
        wafer = built(point)
        answer = wj.estimate(wafer, MODEL, point.strategy)
        assert answer.feasible
        assert float(answer.tokens_per_second) == pytest.approx(point.rates[0], rel=1e-5)


def _rates_of_all(objective):
    # one rate of every (strategy, lattice point), 0 where it does not fit
    table = candidates(MODEL, BUDGET, options=FEW, objective=objective)
    index = np.array(list(product(*(range(count) for count in lattice.counts(BUDGET)))))
    knobs = lattice.values_at(BUDGET, index)
    rows = np.repeat(np.arange(len(table)), len(knobs))
    points = take(table.every, rows)._replace(knobs=np.tile(knobs, (len(table), 1)))
    found = map_chunks(score, table.shared, points)
    return np.where(found.excess <= ROUNDING, case().tokens / found.value, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objectives": ("tokens-per-second", "tokens-per-second")}, "it must be two different names"),
        ({"objectives": ("tokens-per-second", "speed")}, "objectives has 'speed': it must be one of"),
        ({"weights": 1}, "weights is 1: it must be at least 2"),
    ],
)
def test_fronts_of_other_things_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pareto(MODEL, BUDGET, **arguments)


# uncertain constants


def test_without_deviation_the_nominal_design_wins_all_draws(scanned, monkeypatch):
    monkeypatch.setattr("watos_jax.search.uncertainty.BATCH", 2)
    still = dict.fromkeys(PUBLISHED_N7, 0.0)
    found = uncertainty(MODEL, BUDGET, deviations=still, draws=64, designs=5, checked=1, options=FEW)
    nominal = found.nominal  # the searches for draws find it again
    assert (nominal.wins, nominal.fits, found.none_fits) == (1.0, 1.0, 0.0)
    assert nominal.regret == (0.0,) * 5 and found.shortfalls == pytest.approx((0.0,), abs=1e-6)
    assert found.gains == (pytest.approx((0.0, 0.0), abs=1e-6),) and found.searched == 2
    assert nominal.mean_rate == pytest.approx(scanned[1][0].max(), rel=1e-4)


def under(wafer, drawn, number):
    """A wafer with the two constants that are drawn here."""
    technology = replace(wafer.technology, mac_area=float(drawn.technology.mac_area[number]))
    memory = replace(wafer.die.memory, stack_bandwidth=float(drawn.die.memory.stack_bandwidth[number]))
    return replace(wafer, technology=technology, die=replace(wafer.die, memory=memory))


@pytest.fixture(scope="module")
def grown():
    deviations = {"technology.mac_area": 0.15, "die.memory.stack_bandwidth": 0.1}
    limits = {"draws": 24, "designs": 256, "checked": 8, "tolerance": 0.005}
    found = uncertainty(MODEL, BUDGET, deviations=deviations, options=FEW, **limits)
    return found, drawn_wafers(BUDGET.wafer, deviations, 24 + 256 + 8)


@pytest.mark.slow
def test_shares_of_a_pool_add_up(grown):
    found, drawn = grown
    assert len(found.pool) > 1
    assert sum(one.wins for one in found.pool) + found.none_fits == pytest.approx(1.0)
    assert found.safest.mean_rate >= found.nominal.mean_rate
    for one in found.pool:
        assert one.wins <= one.fits and (one.regret is None or min(one.regret) >= 0.0)
    for one in (found.nominal, found.safest):
        answers = [wj.estimate(under(built(one), drawn, i), MODEL, one.strategy) for i in range(24)]
        rates = [float(answer.tokens_per_second) if answer.feasible else 0.0 for answer in answers]
        assert one.fits == pytest.approx(np.mean(np.array(rates) > 0.0))
        assert one.mean_rate == pytest.approx(np.mean(rates), rel=1e-5)


@pytest.mark.slow
def test_a_grown_pool_falls_short_of_exhaustive_scans_by_no_more_than_it_says(grown):
    found, drawn = grown
    assert found.gains[0][0] > found.tolerance >= sum(found.gains[-1])  # there was something to grow
    short = []
    for number in range(24 + 256, 24 + 256 + 8):  # the draws that were checked
        scanned = every_rate(case(budget=replace(BUDGET, wafer=under(BUDGET.wafer, drawn, number)))).max()
        answers = [wj.estimate(under(built(one), drawn, number), MODEL, one.strategy) for one in found.pool]
        best = max(float(answer.tokens_per_second) if answer.feasible else 0.0 for answer in answers)
        short.append(1.0 - best / scanned if scanned else None)
    assert found.shortfalls == pytest.approx(short, abs=1e-5)


def test_draws_have_the_stated_spread():
    drawn = drawn_wafers(BUDGET.wafer, PUBLISHED_N7, 4000, seed=3)
    assert all(leaf.shape == (4000,) for leaf in jax.tree.leaves(drawn))
    logs = np.log(drawn.technology.mac_area / float(BUDGET.wafer.technology.mac_area))
    assert logs.std() == pytest.approx(spread(551.0, 310.0), rel=0.05) and abs(logs.mean()) < 0.02
    assert np.ptp(drawn.power_limit) == 0.0
    again = drawn_wafers(BUDGET.wafer, PUBLISHED_N7, 10, seed=3)
    np.testing.assert_array_equal(again.technology.mac_area, drawn.technology.mac_area[:10])


@pytest.mark.parametrize(
    ("deviations", "message"),
    [
        ({"technology.price": 0.1}, "deviations has 'technology.price': it must be a constant of the wafer"),
        ({"die.core.clock": 0.1}, "that no design chooses"),
        ({"technology.mac_area": -0.1}, "is -0.1: it must be finite, 0 or more"),
        ({"efficiency.matmul_overhead": 0.1}, "the wafer's value must be above 0"),
    ],
)
def test_constants_that_cannot_be_drawn_are_named(deviations, message):
    with pytest.raises(ValueError, match=message):
        drawn_wafers(BUDGET.wafer, deviations, 4)


def test_searches_without_draws_or_tolerance_are_refused():
    with pytest.raises(ValueError, match="draws is 0: it must be at least 1"):
        uncertainty(MODEL, BUDGET, draws=0)
    with pytest.raises(ValueError, match="tolerance is 0: it must be above 0, below 1"):
        uncertainty(MODEL, BUDGET, tolerance=0.0)
