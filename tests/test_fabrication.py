"""Fabrication: every limit by hand in millimetres, packing, edges and conservation of area."""

from dataclasses import replace

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from watos_jax.fabrication import area_fractions, die_area, fabrication_ratios, link_lengths, tile
from watos_jax.hardware import Core, Die, Link, Memory, Technology, Wafer
from watos_jax.presets import budgets, wafers
from watos_jax.relax import HARD, Smooth
from watos_jax.units import GIGA, MIB, MM, MM2, TERA, UM2

EXACT = 2e-6  # relative; loose enough for float32
ratios_of = jax.jit(fabrication_ratios)

# 8 x 10 cores of 1,000 MACs of 2,000 um2 and 1 MB at 0.5 mm2: 160 + 40 mm2; three stacks on two edges of 16 mm2 and
# 5 mm each; 1 TB/s per edge at 200 GB/s/mm and 0.01 mm2 per GB/s: 5 mm of each edge, 40 mm2 on four
WAFER = Wafer(
    die_rows=4,
    die_cols=5,
    die=Die(
        core_rows=8,
        core_cols=10,
        core=Core(num_macs=1000, clock=1e9, sram_bytes=1 * MIB, sram_bytes_per_clock=100, noc_bytes_per_clock=64),
        memory=Memory(
            num_stacks=3,
            stack_bytes=16e9,
            stack_bandwidth=1e12,
            stack_length=9 * MM,
            stack_depth=6 * MM,
            vertical_sides=2,
        ),
        width=22 * MM,
        height=20 * MM,
    ),
    d2d=Link(
        bandwidth=1 * TERA,
        shoreline_density=200 * GIGA / MM,
        phy_area=0.01 * MM2 / GIGA,
        max_length=25 * MM,
        module_bandwidth=50 * GIGA,
    ),
    technology=Technology(
        mac_area=2000 * UM2,
        sram_area=0.5 * MM2 / MIB,
        memory_phy_area=16 * MM2,
        memory_phy_length=5 * MM,
        flop_energy=0,
        sram_energy=0,
        dram_energy=0,
        leakage_power_density=0,
        nominal_clock=1e9,
    ),
    window_width=120 * MM,
    window_height=130 * MM,
    die_gap=0.2 * MM,
)


def ratios(wafer, relax=HARD):
    return {name: float(ratio) for name, ratio in ratios_of(wafer, relax).items()}


def with_memory(wafer, **changes):
    return replace(wafer, die=replace(wafer.die, memory=replace(wafer.die.memory, **changes)))


def with_die(wafer, **changes):
    return replace(wafer, die=replace(wafer.die, **changes))


# ---- by hand


def test_areas_by_hand():
    area = die_area(WAFER)
    assert [float(x) / MM2 for x in area] == pytest.approx([160, 40, 48, 40], rel=EXACT)
    assert float(area.total) / MM2 == pytest.approx(288, rel=EXACT)
    width, height = tile(WAFER)
    assert (float(width) / MM, float(height) / MM) == pytest.approx((22.2, 32.2), rel=EXACT)
    horizontal, vertical = link_lengths(WAFER)
    assert (float(horizontal) / MM, float(vertical) / MM) == pytest.approx((0.2, 12.2), rel=EXACT)


def test_ratios_by_hand():
    expected = {
        "die_area": 288 / (22 * 20),
        "edge_horizontal": 5 / 20,  # left and right: links alone
        "edge_vertical": (5 + 2 * 5) / 22,  # top and bottom: links and two of three stacks
        "stacks_horizontal": 0,
        "stacks_vertical": 2 * 9 / 22,
        "window_area": (5 * 22.2 - 0.2) * (4 * 32.2 - 0.2) / (120 * 130),
        "window_width": (5 * 22.2 - 0.2) / 120,
        "window_height": (4 * 32.2 - 0.2) / 130,
        "reticle": max(20 / 26, 22 / 33),
        "link_length": 12.2 / 25,
        "d2d_port": 50 / 1000,
    }
    assert ratios(WAFER) == pytest.approx(expected, rel=EXACT)


def test_area_packing_knows_no_grid():
    strict, by_area = ratios(WAFER), ratios(replace(WAFER, packing="area"))
    assert strict.keys() - by_area.keys() == {"window_width", "window_height"}
    # without a grid there is no last row or column, so every tile counts its gap
    assert by_area.pop("window_area") == pytest.approx(20 * 22.2 * 32.2 / (120 * 130), rel=EXACT)
    assert {name: strict[name] for name in by_area} == by_area
    # 21 x 31 mm tiles in 100 x 100 mm: by area 15, in a grid 4 x 3
    tight = replace(WAFER, window_width=100 * MM, window_height=100 * MM, die_cols=5, die_rows=3)
    assert ratios(replace(tight, packing="area"))["window_area"] > 1
    shape = with_memory(with_die(tight, width=20.8 * MM, height=18.8 * MM), stack_depth=6 * MM)
    assert ratios(replace(shape, packing="area"))["window_area"] < 1
    assert ratios(shape)["window_width"] > 1


def test_the_published_wafer_fits_215_mm_and_not_198():
    # 56 dies of 25.5 x 25.2 mm with memory: 8 x 7 in 215 mm, neither as a grid nor by area in 198 mm
    fits = ratios(wafers.WATOS_CONFIG_3)
    assert max(fits["window_width"], fits["window_height"], fits["window_area"]) <= 1
    smaller = replace(wafers.WATOS_CONFIG_3, window_width=198 * MM, window_height=198 * MM)
    assert min(ratios(smaller)[name] for name in ("window_width", "window_height", "window_area")) > 1


@pytest.mark.parametrize(("width", "height", "fits"), [(26, 33, True), (33, 26, True), (27, 27, False)])
def test_reticle_takes_either_orientation(width, height, fits):
    ratio = ratios(with_die(WAFER, width=width * MM, height=height * MM))["reticle"]
    assert (ratio <= 1 + EXACT) is fits
    turned = ratios(with_die(WAFER, width=height * MM, height=width * MM))["reticle"]
    assert ratio == pytest.approx(turned, rel=EXACT)


@pytest.mark.parametrize(("horizontal", "vertical"), [(1, 0), (2, 0), (0, 1), (0, 2)])
def test_links_and_memory_share_the_edges_that_carry_memory(horizontal, vertical):
    wafer = with_memory(WAFER, horizontal_sides=horizontal, vertical_sides=vertical, num_stacks=4)
    per_side = 4 / (horizontal + vertical)
    found = ratios(wafer)
    assert found["edge_horizontal"] == pytest.approx((5 + 5 * per_side * (horizontal > 0)) / 20, rel=EXACT)
    assert found["edge_vertical"] == pytest.approx((5 + 5 * per_side * (vertical > 0)) / 22, rel=EXACT)
    assert found["stacks_horizontal"] == pytest.approx(9 * per_side * (horizontal > 0) / 20, rel=EXACT)
    assert found["link_length"] == pytest.approx((6 * max(horizontal, vertical) + 0.2) / 25, rel=EXACT)


def test_stacks_are_whole_on_every_side():
    for stacks, per_side in ((1, 1), (2, 1), (3, 2), (4, 2)):
        wafer = with_memory(WAFER, num_stacks=stacks)
        assert ratios(wafer)["stacks_vertical"] == pytest.approx(per_side * 9 / 22, rel=EXACT)


def test_limits_that_do_not_exist_never_bind():
    free = replace(WAFER, d2d=Link(bandwidth=1 * TERA))
    found = ratios(free)
    assert found["link_length"] == found["d2d_port"] == 0
    assert found["edge_horizontal"] == 0
    assert float(die_area(free).d2d_phy) == 0


def test_memory_elsewhere_takes_no_edge():
    found = ratios(with_memory(WAFER, vertical_sides=0))
    assert found["stacks_vertical"] == found["stacks_horizontal"] == 0
    assert found["edge_vertical"] == pytest.approx(5 / 22, rel=EXACT)


@pytest.mark.parametrize("name", sorted(budgets.NAMES))
def test_the_smallest_link_of_a_budget_is_one_port(name):
    assert float(budgets.NAMES[name].low.d2d_bandwidth) >= float(budgets.NAMES[name].wafer.d2d.module_bandwidth)


@pytest.mark.parametrize("name", sorted(budgets.NAMES))
def test_less_than_one_port_per_edge_is_refused(name):
    budget = budgets.NAMES[name]
    half = replace(budget.low, d2d_bandwidth=0.5 * budget.low.d2d_bandwidth)
    assert ratios(budget.build(half, 2.0, 2.0, (0.0, 1.0)))["d2d_port"] > 1


# ---- laws

PRESETS = list(wafers.NAMES)


@pytest.mark.parametrize("name", PRESETS)
def test_fractions_of_the_window_sum_to_1(name):
    fractions = {use: float(share) for use, share in area_fractions(wafers.NAMES[name]).items()}
    assert sum(fractions.values()) == pytest.approx(1, abs=1e-6)
    assert all(share >= 0 for use, share in fractions.items() if use != "other")


def test_fractions_by_hand():
    window = 120 * 130
    expected = {
        "compute": 20 * 160 / window,
        "sram": 20 * 40 / window,
        "dram": 20 * (48 + 3 * 9 * 6) / window,
        "d2d": 20 * 40 / window,
    }
    fractions = {use: float(share) for use, share in area_fractions(WAFER).items()}
    assert fractions == pytest.approx(expected | {"other": 1 - sum(expected.values())}, rel=1e-5)


@settings(max_examples=40)
@given(rows=st.floats(4, 24), cols=st.floats(4, 24), sram=st.floats(2**18, 2**22), link=st.floats(0.1 * TERA, 4 * TERA))
def test_area_is_linear_and_continuous_in_every_part(rows, cols, sram, link):
    wafer = replace(
        with_die(WAFER, core_rows=rows, core_cols=cols, core=replace(WAFER.die.core, sram_bytes=sram)),
        d2d=replace(WAFER.d2d, bandwidth=link),
    )
    area = die_area(wafer)
    assert float(area.compute) == pytest.approx(rows * cols * 2 * MM2, rel=EXACT)
    assert float(area.sram) == pytest.approx(rows * cols * sram / MIB * 0.5 * MM2, rel=EXACT)
    assert float(area.d2d_phy) == pytest.approx(4 * link * 0.01 * MM2 / GIGA, rel=EXACT)
    assert float(area.total) == pytest.approx(sum(float(x) for x in area), rel=EXACT)


@settings(max_examples=40)
@given(
    horizontal=st.integers(0, 2),
    vertical=st.integers(0, 2),
    stacks=st.integers(1, 8),
    width=st.floats(8 * MM, 40 * MM),
    height=st.floats(8 * MM, 40 * MM),
    sharpness=st.floats(2, 1e5),
)
def test_smooth_brackets_hard_but_for_whole_stacks(horizontal, vertical, stacks, width, height, sharpness):
    wafer = with_memory(
        with_die(WAFER, width=width, height=height),
        num_stacks=stacks,
        horizontal_sides=horizontal,
        vertical_sides=vertical,
    )
    hard, smooth = ratios(wafer), ratios(wafer, Smooth(sharpness))
    up, slack = 1 + 1 / sharpness, 1 + EXACT
    levels = {"reticle": (1, 2), "link_length": (0, 1)}  # of a minimum and of maxima
    for name, ratio in hard.items():
        if name.startswith(("edge", "stacks")):
            length = 9 if name.startswith("stacks") else 5
            side = width if name.endswith("vertical") else height
            assert abs(smooth[name] - ratio) <= length * MM / side * slack
        else:
            down, above = levels.get(name, (0, 0))
            assert ratio / up**down / slack <= smooth[name] <= ratio * up**above * slack


@pytest.mark.parametrize("name", PRESETS)
def test_a_larger_wafer_never_fits_worse(name):
    wafer = wafers.NAMES[name]
    larger = replace(wafer, window_width=1.1 * wafer.window_width, window_height=1.1 * wafer.window_height)
    before, after = ratios(wafer), ratios(larger)
    assert all(after[limit] <= ratio for limit, ratio in before.items())


def test_ratios_are_posynomials_log_log_convex_in_the_knobs():
    budget, rng = budgets.DEFAULT, np.random.default_rng(0)
    low, high = (np.array(jax.tree.leaves(side)) for side in (budget.low, budget.high))
    build = jax.jit(
        lambda leaves: fabrication_ratios(
            budget.build(jax.tree.unflatten(jax.tree.structure(budget.low), list(leaves)), 6.0, 6.0, (0.0, 1.0))
        )
    )
    for _ in range(40):
        a, b = (low * (high / low) ** rng.uniform(size=low.size) for _ in range(2))
        a[3] = b[3] = rng.integers(1, 5)  # whole stacks, named as an exception
        ends, middle = (build(a), build(b)), build(np.sqrt(a * b))
        for name, ratio in middle.items():
            if name in ("reticle",):  # its orientation is the other exception
                continue
            bound = np.sqrt(float(ends[0][name]) * float(ends[1][name]))
            assert float(ratio) <= bound * (1 + 1e-5) + 1e-12, name
