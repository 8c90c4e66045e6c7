"""Laws of the whole model, on random legal strategies and hardware: monotone, conserving, scale-free, finite."""

import math
from dataclasses import replace
from functools import reduce
from itertools import pairwise, product

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from watos_jax import HARD, Efficiency, Smooth, Strategy, estimate, layout
from watos_jax.fabrication import fabrication_ratios
from watos_jax.hardware import Link, System, Technology, Wafer
from watos_jax.network.layout import fits
from watos_jax.presets import budgets, chips, models, wafers
from watos_jax.strategy import RECOMPUTE_LEVELS, violation

EXACT = 5e-6  # relative; loose enough for float32
BASE = wafers.WATOS_CONFIG_3
CLUSTERS = {name: chips.cluster(node, 8) for name, node in chips.NAMES.items()}
MACHINES = {name: jax.tree.map(float, machine) for name, machine in {**wafers.NAMES, **CLUSTERS}.items()}
SOME_MODELS = ["llama2-7b", "gpt3-175b", "mixtral-8x7b", "deepseek-v3"]
REAL = Efficiency(
    matmul_overhead=0.2,
    matmul_rows=200,
    matmul_cols=50,
    attention_overhead=0.5,
    attention_rows=300,
    memory_overhead=0.1,
    launch_time=4e-6,
    collective_latency=1e-5,
    network_overhead=0.2,
)


def put(record, path, value):
    """The record with the leaf at a dotted path replaced."""
    head, _, rest = path.partition(".")
    return replace(record, **{head: put(getattr(record, head), rest, value) if rest else value})


def get(record, path):
    return reduce(getattr, path.split("."), record)


def scaled(record, path, factor):
    return put(record, path, factor * get(record, path))


def candidates():
    """Strategies of at most eight stages, neighbours different in several ways at once."""
    degrees = list(product((1, 2, 4), (1, 2, 4, 8), (1, 2, 3, 4, 8), (1, 2, 4), (1, 2), (1, 4)))
    return [
        Strategy(
            tensor_rows=rows,
            tensor_cols=cols,
            pipeline_parallel=p,
            data_parallel=data,
            context_parallel=context,
            expert_parallel=expert,
            global_batch_size=8 * p * data,
            virtual_stages=2 if i % 5 == 0 else 1,
            recompute=i % len(RECOMPUTE_LEVELS),
            schedule=1 if i % 7 == 0 and i % 5 else 0,
            sequence_parallel=i % 3 > 0,
            flash_attention=i % 4 > 0,
            optimizer_sharding=i % 3,
            gradient_bytes=2 + 2 * (i % 2),
            tensor_collective=i % 2,
        )
        for i, (rows, cols, p, data, context, expert) in enumerate(degrees[::5])
    ]


CANDIDATES = candidates()


def legal(machine, name):
    """Candidates that suit a model and find room on a machine."""
    suited = (strategy for strategy in CANDIDATES if violation(models.NAMES[name], strategy) is None)
    return [strategy for strategy in suited if fits(MACHINES[machine], strategy) is None]


LEGAL = {name: legal("watos-config-3", name) for name in SOME_MODELS}
cases = st.sampled_from(
    [(models.NAMES[name], strategy) for name, strategies in LEGAL.items() for strategy in strategies]
)
run = jax.jit(lambda hardware, *rest, placed, relax: estimate(hardware, *rest, layout=placed, relax=relax))


def whole(hardware, model, strategy, relax=HARD):
    return run(hardware, model, strategy, placed=layout(BASE, strategy, max_stages=8), relax=relax)


def step_time(hardware, model, strategy, relax=HARD):
    return float(whole(hardware, model, strategy, relax).step_time)


# ---- communication

NETWORK = ("tensor_parallel", "context_parallel", "expert_parallel", "pipeline_parallel", "data_parallel")


@pytest.mark.parametrize("name", models.NAMES)
def test_one_die_never_communicates(name):
    for recompute, sharding in ((0, 0), (7, 2)):
        strategy = Strategy(global_batch_size=4, recompute=recompute, optimizer_sharding=sharding)
        slow = replace(BASE, d2d=Link(bandwidth=1.0, latency=1.0), efficiency=Efficiency(collective_latency=1.0))
        parts = estimate(slow, models.NAMES[name], strategy).breakdown
        assert [float(parts[cause]) for cause in NETWORK] == [0] * len(NETWORK)
        assert float(parts["bubble"]) == pytest.approx(0, abs=1e-6 * float(parts["matmul"]))


@settings(max_examples=30)
@given(case=cases)
def test_communication_takes_time_only_along_the_axes_that_are_cut(case):
    model, strategy = case
    parts = {cause: float(x) for cause, x in whole(BASE, model, strategy).breakdown.items()}
    cut = {
        "tensor_parallel": strategy.tensor_parallel > 1,
        "context_parallel": strategy.context_parallel > 1,
        "expert_parallel": strategy.expert_parallel > 1,
        "pipeline_parallel": strategy.pipeline_parallel > 1,
        "data_parallel": strategy.data_parallel * strategy.context_parallel > 1,
    }
    for cause, expected in cut.items():
        assert (parts[cause] > 0) == bool(expected), cause


# ---- monotone

MORE = (
    *("die.core.clock", "die.core.num_macs", "die.core.sram_bytes", "die.core.sram_bytes_per_clock"),
    *("die.core.noc_bytes_per_clock", "die.core_rows", "die.core_cols", "die.memory.num_stacks"),
    *("die.memory.stack_bandwidth", "die.memory.sustained_fraction", "d2d.bandwidth"),
)
LESS = ("d2d.latency", *(f"efficiency.{name}" for name in Efficiency.__dataclass_fields__))


@pytest.mark.parametrize("path", [*MORE, *LESS])
@settings(max_examples=8)
@given(case=cases, factor=st.floats(1.001, 16), sharpness=st.floats(5, 1e4))
def test_more_of_a_resource_and_less_of_an_overhead_are_never_slower(path, case, factor, sharpness):
    real = replace(BASE, efficiency=REAL)
    better = scaled(real, path, factor if path in MORE else 1 / factor)
    for relax in (HARD, Smooth(sharpness)):
        before, after = (step_time(hardware, *case, relax) for hardware in (real, better))
        assert after <= before * (1 + EXACT)


@settings(max_examples=30)
@given(case=cases)
def test_each_recomputation_level_takes_no_less_time_and_no_more_activations(case):
    # in a peer selective recomputation is slower than full
    model, strategy = case
    results = [whole(BASE, model, replace(strategy, recompute=level)) for level in range(len(RECOMPUTE_LEVELS))]
    times = [float(result.step_time) for result in results]
    kept = [np.asarray(result.memory_parts.activations) for result in results]
    assert all(a <= b * (1 + EXACT) for a, b in pairwise(times))
    assert all((a >= b * (1 - EXACT)).all() for a, b in pairwise(kept))
    # at most one more forward pass of the layers, collectives included
    extra = np.asarray(results[-1].stage_backward) - np.asarray(results[0].stage_backward)
    assert (extra <= np.asarray(results[0].stage_forward) * (1 + 1e-4)).all()


@pytest.mark.parametrize("name", SOME_MODELS)
def test_bubble_vanishes_with_many_micro_batches(name):
    shares = []
    for batch in (8, 64, 512, 4096):
        result = estimate(BASE, models.NAMES[name], Strategy(pipeline_parallel=8, global_batch_size=batch))
        shares.append(float(result.breakdown["bubble"] / result.step_time))
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.01


# ---- conservation and continuity (a peer's cost falls fourfold one step off the lattice)

SWEPT = (
    *("die.core_rows", "die.core_cols", "die.core.num_macs", "die.core.clock", "die.core.sram_bytes"),
    *("die.memory.num_stacks", "die.memory.stack_bandwidth", "die.width", "die.height", "d2d.bandwidth"),
)


@pytest.mark.float64
@pytest.mark.parametrize("path", SWEPT)
@settings(max_examples=8)
@given(case=cases, count=st.integers(1, 24), relax=st.sampled_from([HARD, Smooth(20.0)]))
def test_nothing_jumps_around_a_lattice_point(path, case, count, relax):
    value = float(count) if path.startswith("die.core_") else float(get(BASE, path))
    results = [whole(put(BASE, path, value * (1 + offset)), *case, relax=relax) for offset in (-1e-6, 0.0, 1e-6)]
    for name in ("step_time", "energy", "power", "tokens_per_second", "memory", "model_flop_utilisation"):
        values = [np.asarray(getattr(result, name)) for result in results]
        for moved in (values[0], values[2]):
            np.testing.assert_allclose(moved, values[1], rtol=1e-5, err_msg=name)
    whole_stacks = ("edge", "stacks") if path == "die.memory.num_stacks" else ("none",)
    for limit in results[0].margins:
        if not limit.startswith(whole_stacks):
            ratios = [1 - float(result.margins[limit]) for result in results]
            assert ratios[::2] == pytest.approx([ratios[1]] * 2, rel=1e-5, abs=1e-12), limit


@settings(max_examples=20)
@given(case=cases, rows=st.floats(1, 24), cols=st.floats(1, 24), link=st.floats(1e9, 1e13))
def test_executed_flop_and_link_bytes_do_not_depend_on_the_hardware(case, rows, cols, link):
    free = {name: 0.0 for name in Technology.__dataclass_fields__ if name.endswith(("energy", "density"))}
    for prices, per_byte in (({"flop_energy": 1e-12}, 0.0), ({}, 1e-12)):
        priced = replace(
            BASE, technology=replace(BASE.technology, **free | prices), d2d=replace(BASE.d2d, energy=per_byte)
        )
        other = put(put(put(priced, "die.core_rows", rows), "die.core_cols", cols), "d2d.bandwidth", link)
        one, two = (float(whole(wafer, *case).energy) for wafer in (priced, other))
        assert one == pytest.approx(two, rel=EXACT)


# ---- scale

RATES = ("die.core.clock", "technology.nominal_clock", "die.memory.stack_bandwidth", "d2d.bandwidth")
TIMES = ("d2d.latency", "efficiency.launch_time", "efficiency.collective_latency")


@settings(max_examples=20)
@given(case=cases, factor=st.floats(1e-3, 1e3), relax=st.sampled_from([HARD, Smooth(20.0)]))
def test_a_clock_for_everything_scales_time_alone(case, factor, relax):
    real = replace(BASE, efficiency=REAL)
    faster = reduce(lambda w, path: scaled(w, path, factor), RATES, real)
    faster = reduce(lambda w, path: scaled(w, path, 1 / factor), TIMES, faster)
    faster = scaled(faster, "technology.leakage_power_density", factor)
    before, after = (whole(hardware, *case, relax=relax) for hardware in (real, faster))
    assert float(after.step_time) * factor == pytest.approx(float(before.step_time), rel=EXACT)
    assert float(after.energy) == pytest.approx(float(before.energy), rel=EXACT)
    np.testing.assert_allclose(np.asarray(after.memory), np.asarray(before.memory), rtol=EXACT)


@settings(max_examples=20)
@given(name=st.sampled_from(sorted(wafers.NAMES)), factor=st.floats(0.1, 10))
def test_the_unit_of_length_does_not_matter(name, factor):
    wafer = wafers.NAMES[name]
    lengths = (
        *("die.width", "die.height", "die.memory.stack_length", "die.memory.stack_depth", "window_width"),
        *("window_height", "die_gap", "reticle_width", "reticle_height", "d2d.max_length"),
        "technology.memory_phy_length",
    )
    areas = ("technology.mac_area", "technology.sram_area", "technology.memory_phy_area", "d2d.phy_area")
    turned = reduce(lambda w, path: scaled(w, path, factor), lengths, wafer)
    turned = reduce(lambda w, path: scaled(w, path, factor**2), areas, turned)
    turned = scaled(turned, "d2d.shoreline_density", 1 / factor)
    before, after = fabrication_ratios(wafer), fabrication_ratios(turned)
    assert {k: float(v) for k, v in after.items()} == pytest.approx({k: float(v) for k, v in before.items()}, rel=EXACT)


# ---- smooth and hard

LEVELS = 3 + 3  # nested maxima of an operator, then over eight stages


@settings(max_examples=40)
@given(case=cases, sharpness=st.floats(2, 1e5))
def test_smooth_brackets_hard(case, sharpness):
    hard, smooth = step_time(BASE, *case), step_time(BASE, *case, Smooth(sharpness))
    assert hard * (1 - EXACT) <= smooth <= hard * (1 + 1 / sharpness) ** LEVELS * (1 + EXACT)


@pytest.mark.float64
@settings(max_examples=10)
@given(case=cases)
def test_smooth_becomes_hard(case):
    assert step_time(BASE, *case, Smooth(1e9)) == pytest.approx(step_time(BASE, *case), rel=1e-8)


@pytest.mark.parametrize("relax", [HARD, Smooth(10.0)], ids=["hard", "smooth"])
@pytest.mark.parametrize("name", SOME_MODELS)
def test_time_and_energy_are_log_log_convex_in_the_knobs(name, relax):
    budget, model = budgets.DEFAULT, models.NAMES[name]
    low, high = (np.array([float(x) for x in jax.tree.leaves(side)]) for side in (budget.low, budget.high))
    structure = jax.tree.structure(budget.low)

    def logs(leaves, strategy, placed):
        wafer = budget.build(jax.tree.unflatten(structure, list(leaves)), 7.0, 8.0, (0.0, 1.0))
        result = estimate(wafer, model, strategy, relax=relax, layout=placed)
        return jnp.log(jnp.stack([result.step_time, result.energy]))

    batched = jax.jit(jax.vmap(logs, in_axes=(0, None, None)))
    rng = np.random.default_rng(1)
    ends = np.log(low) + rng.uniform(size=(2, 32, low.size)) * np.log(high / low)
    points = np.exp(np.concatenate([ends[0], ends[1], ends.mean(0)]))
    for strategy in LEGAL[name][::10]:
        one, two, middle = np.split(np.asarray(batched(points, strategy, _placed(strategy))), 3)
        slack = 1e-9 if jax.config.jax_enable_x64 else 1e-4
        assert (middle <= (one + two) / 2 + slack).all()


def _placed(strategy):
    return layout(BASE, strategy, max_stages=8)


# ---- finite everywhere


def everything(hardware, model, strategy, placed, relax):
    """Sum of all numbers of an estimate, each brought near 1: not finite where one of them is not."""
    leaves = jax.tree.leaves(estimate(hardware, model, strategy, relax=relax, layout=placed))
    return sum(jnp.sum(x / (1 + jax.lax.stop_gradient(jnp.max(jnp.abs(x))))) for x in leaves)


slopes = jax.jit(jax.value_and_grad(everything))


def assert_finite(hardware, model, strategy, relax, label):
    value, slope = slopes(hardware, model, strategy, layout(hardware, strategy, max_stages=8), relax)
    assert math.isfinite(float(value)), label
    for path, leaf in jax.tree_util.tree_leaves_with_path(slope):
        assert np.isfinite(np.asarray(leaf)).all(), (label, jax.tree_util.keystr(path))


@pytest.mark.parametrize("relax", [HARD, Smooth(50.0)], ids=["hard", "smooth"])
@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_every_preset_and_its_gradient_are_finite(machine, relax):
    for i, name in enumerate(models.NAMES):
        strategies = legal(machine, name)
        assert strategies, name
        for strategy in strategies[i % 3 :: max(1, len(strategies) // 6)]:
            assert_finite(MACHINES[machine], models.NAMES[name], strategy, relax, (name, strategy))


CORNERS = {
    "no latency": {"d2d.latency": 0.0},
    "no gap": {"die_gap": 0.0},
    "free energy": {
        **{f"technology.{name}_energy": 0.0 for name in ("flop", "sram", "dram")},
        "technology.leakage_power_density": 0.0,
        "d2d.energy": 0.0,
    },
    "free area": {
        **{f"technology.{name}_area": 0.0 for name in ("mac", "sram", "memory_phy")},
        "technology.memory_phy_length": 0.0,
        "d2d.phy_area": 0.0,
    },
    "no limits on links": {"d2d.shoreline_density": 0.0, "d2d.max_length": 0.0, "d2d.module_bandwidth": 0.0},
    "memory without a place": {
        **{f"die.memory.stack_{name}": 0.0 for name in ("length", "depth")},
        "die.memory.vertical_sides": 0.0,
        "die.memory.horizontal_sides": 0.0,
    },
    "no memory": {"die.memory.stack_bytes": 1e-9},
    "constant voltage": {"technology.voltage_exponent": 0.0},
    "no floor of the voltage": {"technology.minimum_voltage": 0.0},
    "one core": {"die.core_rows": 1.0, "die.core_cols": 1.0, "die.core.num_macs": 1.0},
    "little sram": {"die.core.sram_bytes": 1.0},
    "endless sram": {"die.core.sram_bytes": 1e15},
    "slow": {"die.core.clock": 1e3, "die.memory.stack_bandwidth": 1e3, "d2d.bandwidth": 1.0},
    "fast": {"die.core.clock": 1e12, "die.memory.stack_bandwidth": 1e16, "d2d.bandwidth": 1e16},
    "ports tie with the edge": {"d2d.max_length": 5.07e-3},
    "square die": {"die.width": 26e-3, "die.height": 26e-3},
}


@pytest.mark.parametrize("relax", [HARD, Smooth(50.0), Smooth(1e6)], ids=["hard", "smooth", "sharp"])
@pytest.mark.parametrize("corner", CORNERS)
def test_every_corner_and_its_gradient_are_finite(corner, relax):
    wafer = reduce(lambda w, item: put(w, *item), CORNERS[corner].items(), BASE)
    for efficiency in (Efficiency(), REAL):
        for name in SOME_MODELS:
            for strategy in (LEGAL[name][0], LEGAL[name][-1]):
                assert_finite(replace(wafer, efficiency=efficiency), models.NAMES[name], strategy, relax, name)


def test_a_minimal_model_is_finite():
    one = dict.fromkeys(
        "num_layers hidden_size ffn_hidden_size num_attention_heads num_kv_heads head_dim sequence_length "
        "vocab_size".split(),
        1,
    )
    model = type(models.LLAMA2_7B)(**one)
    for relax in (HARD, Smooth(50.0)):
        assert_finite(BASE, model, Strategy(), relax, "minimal")


def test_presets_are_what_these_laws_are_tried_on():
    assert all(isinstance(machine, Wafer | System) for machine in MACHINES.values())
    assert len(MACHINES) == len(wafers.NAMES) + len(chips.NAMES)
    assert all(len(strategies) > 20 for strategies in LEGAL.values())
