"""Yield and money: by hand, against published yields, and as laws."""

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from watos_jax.cost import die_yield, dies_per_wafer, known_good_die, step_cost, wafer_cost
from watos_jax.estimate import estimate
from watos_jax.presets import models, prices, wafers
from watos_jax.prices import Prices
from watos_jax.search.objective import OBJECTIVES, Objective
from watos_jax.strategy import Strategy
from watos_jax.units import MM, MM2

EXACT = 1e-6
WAFER = wafers.WATOS_CONFIG_3


@pytest.mark.parametrize(
    ("named", "published"),
    [(prices.TTM_N7, 0.455), (prices.TTM_N5, 0.364), (prices.ACTUARY_N7, 0.591), (prices.ACTUARY_N5, 0.528)],
    ids=["ttm-n7", "ttm-n5", "actuary-n7", "actuary-n5"],
)
def test_yield_of_600_mm2_is_that_of_the_sources(named, published):
    # negative binomial with the defects of ttm-cas (ISCA 2023) and of Chiplet Actuary (DAC 2022)
    assert float(die_yield(600 * MM2, named)) == pytest.approx(published, abs=1e-3)


def test_murphy_and_the_limit_of_no_clustering():
    murphy = replace(prices.ACTUARY_N7, clustering=0.0)
    x = 6.0 * 0.09
    assert float(die_yield(600 * MM2, murphy)) == pytest.approx(((1 - math.exp(-x)) / x) ** 2, rel=EXACT)
    poisson = replace(prices.ACTUARY_N7, clustering=1e4)
    assert float(die_yield(600 * MM2, poisson)) == pytest.approx(math.exp(-x), rel=1e-3)


@pytest.mark.parametrize("clustering", [0.0, 3.0, 10.0])
def test_yield_is_a_falling_share(clustering):
    named = replace(prices.ACTUARY_N7, clustering=clustering)
    areas = jnp.geomspace(1e-9, 1e-1, 50)
    yields = np.asarray(jax.vmap(lambda area: die_yield(area, named))(areas))
    slopes = np.asarray(jax.vmap(jax.grad(lambda area: die_yield(area, named)))(areas))
    assert (np.diff(yields) < 0).all() and yields[0] == pytest.approx(1.0, abs=1e-5) and (yields > 0).all()
    assert np.isfinite(slopes).all() and (slopes < 0).all()


def test_dies_per_wafer_against_a_count():
    """The formula against whole dies counted on a grid, the best of many offsets."""
    for width, height in ((8.0, 8.0), (20.0, 15.0), (26.0, 33.0)):
        pitch = np.array([width + 0.2, height + 0.2]) * MM
        best = 0
        for offset in np.stack(np.meshgrid(*[np.linspace(0, 1, 11)] * 2), -1).reshape(-1, 2):
            corners = np.stack(np.meshgrid(*[np.arange(-40, 41)] * 2), -1).reshape(-1, 2)
            far = np.maximum(np.abs(corners + offset), np.abs(corners + offset + 1)) * pitch
            best = max(best, int((np.hypot(*far.T) <= 145 * MM).sum()))
        assert float(dies_per_wafer(width * MM, height * MM, prices.ACTUARY_N7)) == pytest.approx(best, rel=0.08)


def test_wafer_cost_by_hand():
    named = Prices(
        wafer_price=1000.0,
        defect_density=0.0,
        clustering=3.0,
        memory_price=1e-9,
        interconnect_price=90.0,
        interconnect_yield=0.9,
        bond_yield=0.999,
        energy_price=1e-8,
        lifetime=1e8,
    )
    die, memory = WAFER.die, WAFER.die.memory
    count = float(dies_per_wafer(die.width, die.height, named))
    assert float(known_good_die(WAFER, named)) == pytest.approx(1000 / count, rel=EXACT)
    assembled = 0.999 ** (56 * (1 + float(memory.num_stacks)))
    expected = (56 * 1000 / count, 56 * float(memory.capacity) * 1e-9, 100.0)
    cost = wafer_cost(WAFER, named)
    assert [float(part) for part in cost] == pytest.approx([part / assembled for part in expected], rel=EXACT)
    total = float(cost.total)
    assert float(step_cost(WAFER, named, 10.0, 2e5)) == pytest.approx(total * 1e-7 + 2e-3, rel=EXACT)


def test_every_price_that_rises_makes_a_token_dearer():
    def dollars(named):
        return step_cost(WAFER, named, jnp.asarray(60.0), jnp.asarray(1e6))

    slopes = jax.grad(dollars)(jax.tree.map(jnp.asarray, prices.ACTUARY_N7))
    for name in ("wafer_price", "defect_density", "memory_price", "interconnect_price", "energy_price"):
        assert getattr(slopes, name) > 0, name
    for name in ("interconnect_yield", "bond_yield", "lifetime", "wafer_diameter"):
        assert getattr(slopes, name) < 0, name


@pytest.mark.parametrize("name", ["interconnect_yield", "bond_yield"])
def test_yields_are_shares(name):
    with pytest.raises(ValueError, match=rf"Prices\.{name}"):
        replace(prices.ACTUARY_N7, **{name: 1.1})


def test_objectives_are_seconds_joules_and_dollars_per_step():
    answer = estimate(WAFER, models.LLAMA3_70B, Strategy(tensor_cols=4, pipeline_parallel=14, global_batch_size=512))
    dollars = step_cost(WAFER, prices.ACTUARY_N7, answer.step_time, answer.energy)
    parts = (answer.step_time, answer.energy, dollars)
    for objective, part in zip(OBJECTIVES.values(), parts, strict=True):
        assert float(objective.value(WAFER, answer)) == pytest.approx(float(part), rel=1e-5)
    mean = Objective(time=0.5, energy=0.5).value(WAFER, answer)
    assert float(mean) == pytest.approx(float(jnp.sqrt(answer.step_time * answer.energy)), rel=1e-5)


def test_an_objective_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"Objective.time \+ energy \+ cost is 0: it must be above 0"):
        Objective(time=0.0)


def test_money_is_differentiable_in_the_die():
    def total(width):
        wafer = eqx.tree_at(lambda w: w.die.width, WAFER, width)
        return wafer_cost(wafer, prices.TTM_N7).total

    width = jnp.asarray(float(WAFER.die.width))
    step = 1e-3 * width
    slope = (total(width + step) - total(width - step)) / (2 * step)
    assert float(jax.grad(total)(width)) == pytest.approx(float(slope), rel=1e-3)
