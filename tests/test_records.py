"""Laws of the records: float leaves, frozen, checked when a caller builds one and only then, open to JAX."""

import dataclasses
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from watos_jax import hardware, model, strategy
from watos_jax.hardware import (
    Budget,
    Core,
    Die,
    Efficiency,
    Knobs,
    Link,
    Memory,
    Overlap,
    Precision,
    System,
    Technology,
    Tier,
    Wafer,
)
from watos_jax.model import Transformer
from watos_jax.strategy import Collective, Layout, Strategy

TECHNOLOGY = Technology(
    mac_area=1,
    sram_area=1,
    memory_phy_area=1,
    memory_phy_length=1,
    flop_energy=1,
    sram_energy=1,
    dram_energy=1,
    leakage_power_density=1,
    nominal_clock=1,
)
CORE = Core(num_macs=1024, clock=2, sram_bytes=4096, sram_bytes_per_clock=64, noc_bytes_per_clock=32)
MEMORY = Memory(num_stacks=4, stack_bytes=16, stack_bandwidth=10, sustained_fraction=0.5)
DIE = Die(core_rows=16, core_cols=8, core=CORE, memory=MEMORY, width=2, height=3)
LINK = Link(bandwidth=5)
TIER = Tier(rows=2, cols=4, link=LINK)
WAFER = Wafer(die_rows=3, die_cols=4, die=DIE, d2d=LINK, technology=TECHNOLOGY)
KNOBS = Knobs(
    core_rows=16,
    core_cols=8,
    sram_bytes_per_core=4096,
    dram_stacks=4,
    d2d_bandwidth=5,
    die_width=2,
    die_height=3,
    clock=2,
)
BUDGET = Budget(wafer=WAFER, low=KNOBS, high=KNOBS, step=KNOBS, die_rows=(1, 3), die_cols=(1, 4))
TRANSFORMER = Transformer(
    num_layers=4,
    hidden_size=64,
    ffn_hidden_size=256,
    num_attention_heads=8,
    num_kv_heads=2,
    head_dim=8,
    sequence_length=128,
    vocab_size=1000,
)
STRATEGY = Strategy(tensor_rows=4, pipeline_parallel=3, global_batch_size=12, recompute=[0, 1, 2])
COLLECTIVE = Collective(volume=jnp.ones(1), steps=jnp.ones(1), traffic=jnp.ones(1))
LAYOUT = Layout(*(COLLECTIVE for _ in range(5)), pipeline_volume=jnp.ones((3, 1)), pipeline_steps=jnp.ones((3, 1)))
SYSTEM = System(die=DIE, tiers=(TIER, TIER), technology=TECHNOLOGY)
RECORDS = {
    type(record).__name__: record
    for record in (
        TECHNOLOGY,
        CORE,
        MEMORY,
        DIE,
        LINK,
        Efficiency(),
        Overlap(),
        Precision(),
        TIER,
        SYSTEM,
        WAFER,
        KNOBS,
        BUDGET,
        TRANSFORMER,
        STRATEGY,
        COLLECTIVE,
        LAYOUT,
    )
}

every_record = pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)


def _with(record, **fields):
    """The record built anew by its constructor, so that its checks run."""
    kept = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return type(record)(**{**kept, **fields})


def test_every_record_is_tested():
    public = {
        name
        for module in (hardware, model, strategy)
        for name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, eqx.Module) and value.__module__.startswith(module.__name__)
    }
    assert public == set(RECORDS)


# leaves


@every_record
def test_every_leaf_is_floating(record):
    leaves = jax.tree.leaves(record)
    assert leaves
    for leaf in leaves:
        assert isinstance(leaf, float) or jnp.issubdtype(leaf.dtype, jnp.floating)


@pytest.mark.parametrize(
    "number",
    [3, True, np.int32(3), np.float32(3), np.array(3), jnp.array(3), [3, 4], (3, 4), np.array([3, 4])],
    ids=repr,
)
def test_whole_numbers_become_floats(number):
    leaf = Link(bandwidth=number).bandwidth
    assert isinstance(leaf, float) or jnp.issubdtype(leaf.dtype, jnp.floating)
    np.testing.assert_array_equal(leaf, np.asarray(number, dtype=float))


def test_large_whole_numbers_keep_their_value():
    assert Link(bandwidth=175_000_000_000).bandwidth == 175e9


@every_record
def test_every_field_is_described(record):
    """The `Attributes:` list names each field, in order."""
    text = inspect.getdoc(type(record)).split("Attributes:\n")[1].split("\n\n")[0]
    named = [line.split(":")[0].strip() for line in text.splitlines() if line.startswith("    ") and line[4] != " "]
    assert named == [field.name for field in dataclasses.fields(record)]


@every_record
def test_records_are_frozen(record):
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, 1.0)


# checks


@pytest.mark.parametrize(
    ("record", "fields", "message"),
    [
        (TECHNOLOGY, {"mac_area": -1}, r"Technology\.mac_area is -1: it must be at least 0"),
        (CORE, {"clock": 0}, r"Core\.clock is 0: it must be above 0"),
        (MEMORY, {"num_stacks": float("nan")}, r"Memory\.num_stacks is nan: it must be at least 0"),
        (LINK, {"bandwidth": 0}, r"Link\.bandwidth is 0: it must be above 0"),
        (LINK, {"bandwidth": [1, -2]}, r"Link\.bandwidth is -2: it must be at least 0"),
        (LINK, {"latency": float("inf")}, r"Link\.latency is inf: it must be at least 0"),
        (DIE, {"core_rows": 0}, r"Die\.core_rows is 0: it must be above 0"),
        (DIE, {"width": -1}, r"Die\.width is -1: it must be at least 0"),
        (Efficiency(), {"launch_time": -1}, r"Efficiency\.launch_time is -1: it must be at least 0"),
        (TIER, {"rows": 1.5}, r"Tier\.rows is 1\.5: it must be a whole number, at least 1"),
        (TIER, {"fabric": "star"}, r"Tier\.fabric is 'star': it must be one of mesh, torus, ring, switch"),
        (WAFER, {"die_rows": 0}, r"Wafer\.die_rows is 0: it must be a whole number, at least 1"),
        (WAFER, {"power_limit": 0}, r"Wafer\.power_limit is 0: it must be above 0"),
        (WAFER, {"die_gap": -1}, r"Wafer\.die_gap is -1: it must be at least 0"),
        (WAFER, {"packing": "tight"}, r"Wafer\.packing is 'tight': it must be one of strict, area"),
        (WAFER, {"die": _with(DIE, width=0)}, r"Die\.width is 0: it must be above 0"),
        (BUDGET, {"step": _with(KNOBS, clock=0)}, r"Budget\.step\.clock is 0: it must be above 0"),
        (BUDGET, {"low": _with(KNOBS, clock=0)}, r"Budget\.low\.clock is 0: it must be above 0"),
        (BUDGET, {"high": _with(KNOBS, clock=1)}, r"Budget\.high\.clock is 1: it must be at least 2"),
        (BUDGET, {"die_rows": (3, 1)}, r"Budget\.die_rows is \(3, 1\): it must be \(least, most\)"),
        (TRANSFORMER, {"num_layers": 0}, r"Transformer\.num_layers is 0: it must be a whole number, at least 1"),
        (TRANSFORMER, {"head_dim": 8.5}, r"Transformer\.head_dim is 8\.5: it must be a whole number, at least 1"),
        (TRANSFORMER, {"num_experts": -1}, r"Transformer\.num_experts is -1: it must be a whole number"),
        (
            TRANSFORMER,
            {"num_dense_layers": 999},
            r"Transformer\.num_dense_layers is 999: it must be at most num_layers",
        ),
        (
            TRANSFORMER,
            {"experts_per_token": 99},
            r"Transformer\.experts_per_token is 99: it must be at most num_experts",
        ),
        (STRATEGY, {"tensor_rows": 2.5}, r"Strategy\.tensor_rows is 2\.5: it must be a whole number, at least 1"),
        (STRATEGY, {"micro_batch_size": 0}, r"Strategy\.micro_batch_size is 0: it must be a whole number"),
        (STRATEGY, {"recompute": [0, -1]}, r"Strategy\.recompute is -1: it must be a whole number, at least 0"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_checks_name_field_value_and_rule(record, fields, message):
    with pytest.raises(ValueError, match="^" + message):
        _with(record, **fields)


@every_record
def test_rebuilding_runs_no_check(record):
    """JAX rebuilds records with negative numbers, tangents, placeholders: none of them is a caller's mistake."""
    negative = jax.tree.map(lambda leaf: -leaf, record)
    assert jax.tree.structure(negative) == jax.tree.structure(record)
    jax.tree.map(lambda _: object(), record)
    jax.tree.map(lambda _: None, record)


def test_replacing_a_leaf_runs_no_check():
    assert eqx.tree_at(lambda link: link.bandwidth, LINK, -1.0).bandwidth == -1.0


def test_traced_values_are_not_checked():
    assert float(jax.jit(lambda x: Link(bandwidth=x).bandwidth)(-1.0)) == -1.0
    assert float(jax.grad(lambda x: Strategy(tensor_rows=x).tensor_parallel)(2.5)) == 1.0
    np.testing.assert_array_equal(jax.vmap(lambda x: Link(bandwidth=x).bandwidth)(-jnp.ones(2)), -np.ones(2))


# transformations


@every_record
def test_jit_returns_the_same_record(record):
    returned = jax.jit(lambda x: x)(record)
    assert type(returned) is type(record)
    assert jax.tree.structure(returned) == jax.tree.structure(record)
    for leaf, original in zip(jax.tree.leaves(returned), jax.tree.leaves(record), strict=True):
        np.testing.assert_allclose(leaf, original, rtol=1e-6)


@every_record
def test_gradient_is_a_record(record):
    def total(x):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x))

    gradient = jax.jit(jax.grad(total))(record)
    assert type(gradient) is type(record)
    for slope, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(record), strict=True):
        np.testing.assert_allclose(slope, 2 * np.asarray(leaf), rtol=1e-6)


@every_record
def test_records_stack_and_map(record):
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), record, jax.tree.map(lambda leaf: 2 * leaf, record))
    sums = jax.jit(jax.vmap(lambda x: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(x))))(stacked)
    np.testing.assert_allclose(sums[1], 2 * sums[0], rtol=1e-6)


def test_arrays_build_stacked_records():
    """A sweep may build one record from arrays instead of stacking many."""
    links = Link(bandwidth=np.array([1.0, 2.0, 4.0]), latency=np.zeros(3), energy=np.zeros(3))
    with pytest.raises(ValueError, match=r"Link\.bandwidth is -2"):
        Link(bandwidth=np.array([1.0, -2.0]))
    doubled = jax.vmap(lambda bandwidth: eqx.tree_at(lambda x: x.bandwidth, LINK, 2 * bandwidth))(links.bandwidth)
    np.testing.assert_array_equal(doubled.bandwidth, np.array([2.0, 4.0, 8.0]))


def test_one_compilation_serves_every_value():
    traces = []

    @jax.jit
    def cost(wafer, strategy):
        traces.append(1)
        return wafer.die.flop_rate * strategy.tensor_parallel

    for rows in (1, 2, 3.0):
        cost(WAFER, Strategy(tensor_rows=rows, pipeline_parallel=rows))
        cost(eqx.tree_at(lambda w: w.die.core_rows, WAFER, rows + 0.5), Strategy(tensor_rows=rows))
    assert len(traces) == 1


# derived values


def test_derived_values_of_the_hardware():
    assert CORE.flop_rate == 2 * 1024 * 2
    assert (DIE.num_cores, DIE.flop_rate, DIE.sram_bytes) == (128, 128 * 4096, 128 * 4096)
    assert (MEMORY.capacity, MEMORY.bandwidth) == (64, 20)
    assert WAFER.num_dies == 12
    assert WAFER.system.num_dies == 12
    assert SYSTEM.num_dies == 64


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 4), (2, 2), (3, 4)])
def test_d2d_bandwidth_counts_existing_edges(rows, cols):
    edges = 2 * (rows * (cols - 1) + cols * (rows - 1))  # each link is an edge of two dies
    wafer = _with(WAFER, die_rows=rows, die_cols=cols)
    assert wafer.d2d_bandwidth_per_die == pytest.approx(5 * edges / (rows * cols))


def test_a_budget_builds_its_template_from_its_knobs():
    rebuilt = BUDGET.build(KNOBS, WAFER.die_rows, WAFER.die_cols, (0.0, 0.0))
    assert eqx.tree_equal(rebuilt, WAFER)
    wider = BUDGET.build(_with(KNOBS, die_width=7, dram_stacks=2), 2.0, 2.0, (1.0, 0.0))
    assert (wider.die.width, wider.die.memory.num_stacks, wider.die.memory.horizontal_sides) == (7, 2, 1)
    assert (wider.die_rows, wider.d2d.bandwidth) == (2, 5)


def test_derived_values_of_a_strategy():
    strategy = Strategy(
        tensor_rows=4,
        tensor_cols=2,
        pipeline_parallel=3,
        data_parallel=2,
        context_parallel=2,
        micro_batch_size=2,
        global_batch_size=64,
    )
    assert strategy.tensor_parallel == 8
    assert strategy.num_micro_batches == 16
    assert strategy.num_dies == 96
