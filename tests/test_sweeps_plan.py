"""Declared spaces: what is refused and how, how points are counted, and that both sides decode them alike."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest
from sweep_space import TABLE

import watos_jax as wj
from watos_jax import sweeps
from watos_jax.sweeps.columns import unit_of
from watos_jax.sweeps.digits import decode

SPACE, KEEP = sweeps.declare(TABLE)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"wafer": ["x"]}, "wafer is not known: did you mean wafers"),
        ({"wafers": []}, "wafers is empty: it must name at least one"),
        ({"wafers": ["watos-config-9"]}, "wafer is 'watos-config-9': it must be one of"),
        ({"models": [3]}, "models holds 3: it must hold names of presets or Transformer records"),
        ({"wafers": ["watos-config-3", "watos-config-3"]}, "wafers holds 'watos-config-3' twice"),
        (
            {"axes": {"die.core.clok": [1e9]}},
            "axes.die.core.clok is no quantity of a wafer: did you mean die.core.clock",
        ),
        ({"axes": {"die.core.clock": [-1e9]}}, "axes.die.core.clock: Core.clock is -1000000000: it must be above 0"),
        ({"axes": {"die.core.clock": ["fast"]}}, "axes.die.core.clock holds 'fast': it must hold finite numbers"),
        ({"axes": {"die.core.clock": "1 GHz"}}, "axes.die.core.clock is '1 GHz': it must be a number, a list of"),
        ({"axes": {"die.core.clock": [1e9, 1e9]}}, "axes.die.core.clock has 2 values, 1 different"),
        ({"axes": {"die.core.clock": {"low": 1e9, "high": 2e9}}}, "axes.die.core.clock has num None and step None"),
        ({"axes": {"die.core.clock": {"low": 1e9, "high": 2e9, "num": 0}}}, "axes.die.core.clock.num is 0"),
        ({"axes": {"die.core.clock": {"low": 2e9, "high": 1e9, "num": 2}}}, "axes.die.core.clock.high is 1e+09"),
        ({"axes": {"die.core.clock": {"low": 0, "high": 1e9, "num": 2, "log": True}}}, "axes.die.core.clock.low is 0"),
        ({"axes": {"die_rows": [2.5]}}, "axes.die_rows: Wafer.die_rows is 2.5: it must be a whole number, at least 1"),
        ({"axes": {"model.layers": [2]}}, "axes.model.layers is no quantity of a model: did you mean model.num_layers"),
        ({"precision": 16}, "precision is 16: it must be 32 or 64"),
        ({"fidelity": "mapper"}, "fidelity is 'mapper': it must be one of roofline, predictor"),
        ({"samples": 0}, "samples is 0: it must be a whole number, at least 1"),
        ({"strategies": {"micro": 1}}, "strategies.micro is not known"),
        (
            {"strategies": {"global_batch_size": "eight"}},
            "strategies.global_batch_size is 'eight': it must be a number",
        ),
        ({"strategies": None, "strategy": 3}, "strategy is 3: it must be an array of tables"),
        ({"strategies": None, "strategy": [{"tensor_rows": {}}]}, "strategy.tensor_rows is {}: it must be a number"),
        ({"keep": {"by": "speed"}}, "keep.by is 'speed': "),
        ({"keep": {"by": "binding"}}, "keep.by is 'binding': it must be a quantity"),
        ({"keep": {"pareto": ["power"]}}, "keep.pareto is 'power': it must name at least two metrics"),
        ({"keep": {"rows": "some"}}, "keep.rows is 'some': it must be one of none, feasible, all"),
        ({"keep": {"histogram": {"of": "power"}}}, "keep.histogram.low is missing"),
        ({"strategies": None, "strategy": [{"recompute": "some"}]}, "strategy.recompute is 'some'"),
    ],
)
def test_a_wrong_declaration_is_one_sentence(change, sentence):
    table = {name: value for name, value in (TABLE | change).items() if value is not None}
    with pytest.raises(ValueError) as caught:
        sweeps.declare(table)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


WRONG = ("x", "", -1, 0, 1.5, True, [], {}, ["x"], [True], [[1]], [-1], float("nan"), float("inf"), 10**30, {"low": 1})


def _places(table, path=()):
    for name, value in table.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from _places(value, (*path, name))


@pytest.mark.parametrize("place", list(_places(TABLE)), ids=".".join)
def test_no_value_of_another_kind_gets_past_the_checks(place):
    for value in WRONG:
        table = copy.deepcopy(TABLE)
        inner = table
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
        try:
            sweeps.build(*sweeps.declare(table))
        except ValueError as error:
            assert "\n" not in str(error)


def test_a_group_must_be_one_of_the_columns():
    with pytest.raises(ValueError, match=r"keep\.per is 'clock': it must be one of wafer"):
        sweeps.build(SPACE, sweeps.Keep(per=("clock",)))


def test_a_file_is_read_and_its_mistakes_name_it(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(
        'wafers = ["watos-config-3"]\nmodels = ["llama3-8b"]\n[axes]\n'
        '"die.core.clock" = {low = 1e9, high = 2e9, step = 2.5e8}\n[keep]\ntop = 3\n'
    )
    space, keep = sweeps.read(path)
    np.testing.assert_allclose(space.axes["die.core.clock"], [1e9, 1.25e9, 1.5e9, 1.75e9, 2e9])
    assert keep.top == 3
    path.write_text("wafers = [")
    with pytest.raises(ValueError, match=r"space\.toml: "):
        sweeps.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"space\.toml cannot be read: byte 0 is not UTF-8"):
        sweeps.read(path)
    with pytest.raises(ValueError, match=r"nowhere\.toml cannot be read: No such file"):
        sweeps.read(tmp_path / "nowhere.toml")


def test_points_are_counted_and_decoded():
    plan = sweeps.build(SPACE, KEEP)
    assert len(plan) == sum(cell.hardware * cell.strategies for cell in plan.cells)
    assert [cell.die_cols for cell in plan.cells] == [2, 3, 2, 3]
    last = plan.point(len(plan) - 1)
    assert float(last.wafer.die.core.clock) == 2e9 and float(last.wafer.die.memory.num_stacks) == 2
    assert float(last.wafer.die_rows) == 2 and float(last.wafer.die_cols) == 3
    assert float(last.wafer.technology.mac_area) == wj.presets.technologies.get("demonstrated-n7").mac_area
    first = plan.point(0)
    assert float(first.wafer.die.core.clock) == 1e9 and float(first.wafer.die.memory.num_stacks) == 0.5
    with pytest.raises(ValueError, match="index is -1: it must be from 0 to"):
        plan.point(-1)
    covered = [(part.cell, part.first + i) for part in map(plan.part, range(plan.num_parts)) for i in range(part.size)]
    assert covered == [(i, j) for i, cell in enumerate(plan.cells) for j in range(cell.hardware)]


def test_a_huge_space_is_declared_without_memory():
    axes = {name: sweeps.Range(1e9, 2e9, num=100_000) for name in ("die.core.clock", "d2d.bandwidth")}
    axes["die.memory.stack_bandwidth"] = sweeps.Range(1e11, 1e12, num=100_000)
    plan = sweeps.build(sweeps.Space("watos-config-3", "llama3-8b", axes=axes, strategies=[wj.Strategy()]))
    assert len(plan) == 10**15
    point = plan.point(10**15 - 1)
    assert float(point.wafer.d2d.bandwidth) == 2e9
    part = plan.part(plan.num_parts - 1)
    assert part.first + part.size == 10**15


@pytest.mark.parametrize("samples", [None, 10**10])
def test_device_and_host_decode_alike(samples):
    space = sweeps.Space("watos-config-3", "llama3-8b", strategies=[wj.Strategy()], samples=samples, seed=7)
    plan = sweeps.build(space)
    sizes, offsets = (3, 50, 7), np.arange(900, dtype=np.int32)
    base = plan.base(plan.cells[0]._replace(sizes=sizes), 123)
    host = decode(np, base, offsets, sizes, plan.seed)
    device = decode(jnp, jnp.asarray(base), jnp.asarray(offsets), sizes, plan.seed)
    np.testing.assert_array_equal(np.stack(host), np.stack(device))
    if samples is None:
        numbers = 123 + offsets
        np.testing.assert_array_equal(np.stack(host), np.stack(np.unravel_index(numbers % 1050, sizes)))
    else:
        later = decode(np, plan.base(plan.cells[0]._replace(sizes=sizes), 123 + 800), offsets[:100], sizes, plan.seed)
        np.testing.assert_array_equal(np.stack(later), np.stack(host)[:, 800:])
        for digit, size in zip(host, sizes, strict=True):
            assert np.bincount(digit, minlength=size).min() > 900 / size / 3


def test_equal_spaces_have_one_digest_and_others_another():
    plan = sweeps.build(SPACE, KEEP)
    assert plan.digest == sweeps.build(*sweeps.declare(TABLE)).digest
    other = TABLE | {"axes": TABLE["axes"] | {"die.memory.num_stacks": [0.5, 2.5]}}
    assert plan.digest != sweeps.build(*sweeps.declare(other)).digest
    assert plan.digest != sweeps.build(SPACE, sweeps.Keep(top=5)).digest


def test_units_of_axes():
    assert unit_of("die.core.clock") == "Hz"
    assert unit_of("die.memory.stack_bytes") == "B"
    assert unit_of("d2d.bandwidth") == "B/s"
    assert unit_of("die.width") == "m"
    assert unit_of("model.sequence_length") == "1"
    assert unit_of("die.memory.num_stacks") == "1"
