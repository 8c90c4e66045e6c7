"""The baselines and the comparison: machines of equal peak, rules that hold, weights streamed through a wafer."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from watos_jax.baselines import comparison
from watos_jax.baselines.comparison import BASELINES, VARIANTS, Comparison, Side, compare
from watos_jax.baselines.gpu_cluster import equal_gpus, nearest_b300
from watos_jax.baselines.megatron import LEVELS, allowed
from watos_jax.baselines.streamed_wafer import stream_through, streaming_system
from watos_jax.cli import main
from watos_jax.cli.entry import PLAIN_WIDTH
from watos_jax.presets import models, wafers
from watos_jax.report.comparison import comparison_record, comparison_view
from watos_jax.report.megatron import megatron_arguments
from watos_jax.search.plan import plan
from watos_jax.search.space import Options, strategies
from watos_jax.strategy import RECOMPUTE_LEVELS, Strategy
from watos_jax.workload import num_parameters

WHOLE = wafers.WATOS_CONFIG_3
MODEL = replace(models.LLAMA2_7B, num_layers=12)
FEW = Options(
    global_batch_size=24,
    micro_batch_sizes=(1, 2),
    virtual_stages=(1, 2),
    context_parallel=(1,),
    sequence_parallel=(0, 1),
    optimizer_sharding=(0, 1),
    recompute=tuple(RECOMPUTE_LEVELS),
)


def wafer(gigabytes=7.5):
    """Eight dies with little memory."""
    memory = replace(WHOLE.die.memory, stack_bytes=gigabytes * 1e9 / 2)
    return replace(WHOLE, die_rows=2, die_cols=4, die=replace(WHOLE.die, memory=memory))


@pytest.fixture(scope="module")
def compared():
    return compare(wafer(), MODEL, options=FEW)


@pytest.mark.parametrize("machine", [WHOLE, wafers.DOJO_TILE, wafer()])
def test_gpus_of_equal_peak_have_the_wafers_memory_and_bandwidth(machine, eps):
    gpus = equal_gpus(machine)
    assert float(gpus.num_dies) == 8.0
    for value in ("flop_rate", "memory.capacity", "memory.bandwidth"):
        theirs, ours = gpus.die, machine.die
        for name in value.split("."):
            theirs, ours = getattr(theirs, name), getattr(ours, name)
        assert float(theirs * 8) == pytest.approx(float(ours * machine.num_dies), rel=8 * eps)
    assert float(gpus.tiers[0].link.bandwidth) == 900e9
    assert gpus.efficiency == machine.efficiency


def test_the_nearest_number_of_b300():
    gpus = nearest_b300(WHOLE)
    assert float(gpus.num_dies) == 18.0  # 39,648 TFLOP/s over 2,250
    assert float(gpus.die.flop_rate) == pytest.approx(2250e12)
    assert float(nearest_b300(replace(WHOLE, die_rows=1, die_cols=1)).num_dies) == 1.0


def test_rules_of_megatron_leave_what_its_arguments_can_state():
    space = strategies(wafer(), MODEL, replace(FEW, recompute=LEVELS, schedule=("1f1b",)))
    old = allowed(wafer(), MODEL, space.strategies, equal_stages=True)
    new = allowed(wafer(), MODEL, space.strategies)
    assert 0 < old.sum() < new.sum() < len(space)
    for row in range(0, len(space), 7):
        arguments, missing = megatron_arguments(MODEL, space.strategy(row))
        ring = float(space.strategy(row).tensor_collective) == 0
        uneven = any("decoder-first" in word or "layout" in word for word in arguments)
        assert bool(new[row]) == (ring and not missing)
        assert bool(old[row]) == (ring and not missing and not uneven)


def test_a_rule_that_nothing_follows_is_one_sentence():
    with pytest.raises(ValueError, match=r"no strategy is left of .*against the rule"):
        plan(wafer(), MODEL, options=FEW, rule=lambda found: found.tensor_rows < 0)


def test_streaming_system_is_the_wafer_as_one_die(eps):
    for place in ("sram", "dram"):
        system = streaming_system(WHOLE, place)
        assert float(system.die.flop_rate) == pytest.approx(float(WHOLE.num_dies * WHOLE.die.flop_rate), rel=8 * eps)
        # weights: 8 columns of links of 1 TB/s, each carrying 6/7 of its share at most
        assert float(system.tiers[0].link.bandwidth) == pytest.approx(8e12 * 7 / 6)
        # inputs and outputs: 8 links of 1 TB/s, less than 18 rows of cores with 64 bytes a clock
        core = system.die.core
        assert float(system.die.core_rows * core.noc_bytes_per_clock * core.clock) == pytest.approx(8e12)
    assert float(streaming_system(WHOLE, "dram").die.memory.capacity) == pytest.approx(3920e9)
    assert float(streaming_system(WHOLE, "sram").die.memory.capacity) == pytest.approx(56 * 324 * 1.25 * 2**20)
    narrow = streaming_system(replace(WHOLE, die_rows=1, die_cols=1), "dram")
    assert float(narrow.tiers[0].link.bandwidth) == pytest.approx(float(WHOLE.die.memory.bandwidth))


def test_streaming_pays_the_update_and_keeps_the_states():
    answer = stream_through(WHOLE, models.LLAMA3_70B, global_batch_size=8)
    weights = float(num_parameters(models.LLAMA3_70B))
    update = 30.0 * weights / (56 * 1.8e12)
    assert answer.step_time - float(answer.streamed.step_time) == pytest.approx(update, rel=1e-3)
    assert answer.memory_margin == pytest.approx(1 - (18 * weights + float(answer.streamed.memory)) / 3920e9, rel=1e-3)
    assert answer.evaluated == 4 * 2 * 2
    tiny = replace(WHOLE, die=replace(WHOLE.die, memory=replace(WHOLE.die.memory, stack_bytes=1e9)))
    assert stream_through(tiny, models.LLAMA3_70B, global_batch_size=8).memory_margin < 0.0


def test_ours_is_never_slower_than_megatron_on_the_same_wafer(compared):
    # all that Megatron may choose is among what we choose from
    assert compared.speedup(compared.baselines["megatron_on_wafer"]) >= 1.0 - 1e-6
    old = compared.variants["megatron_on_wafer_equal_stages"].tokens_per_second
    assert old <= compared.baselines["megatron_on_wafer"].tokens_per_second
    best = compared.baselines["megatron_on_wafer"].answer.best[0]
    every = plan(wafer(), MODEL, options=replace(FEW, recompute=LEVELS, schedule=("1f1b",)), top=20)
    ring = [one for one in every.best if float(one.strategy.tensor_collective) == 0]
    assert float(best.estimate.step_time) == pytest.approx(float(ring[0].estimate.step_time))


def test_record_has_the_same_names_on_every_side(compared):
    record = comparison_record(wafer(), compared)
    assert set(record["baselines"]) == set(record["speedup"]) == set(BASELINES)
    assert set(record["variants"]) == set(VARIANTS)
    for name, side in record["baselines"].items():
        ratio = record["ours"]["tokens_per_second"] / side["tokens_per_second"]
        assert record["speedup"][name] == pytest.approx(ratio)
        tokens = 24 * float(MODEL.sequence_length)
        assert side["tokens_per_second"] * side["step_time"] == pytest.approx(tokens)
    ours = record["ours"]
    assert ours["tokens_per_second"] * ours["step_time"] == pytest.approx(24 * float(MODEL.sequence_length))
    assert max(ours["resident"]) <= 7.5e9 * (1 + 1e-5)
    assert sum(ours["sent"]) == pytest.approx(sum(ours["held"]))


def test_what_does_not_fit_is_none():
    record = comparison_record(wafer(1.0), compare(wafer(1.0), MODEL, options=replace(FEW, recompute=("none", "full"))))
    assert not record["ours"]["fits"] and record["ours"]["tokens_per_second"] is None
    assert set(record["speedup"].values()) == {None}
    json.dumps(record, allow_nan=False)
    ours, theirs = record["ours"], record["baselines"]["megatron_on_wafer"]
    assert ours["exceeded"] == {"memory": ours["evaluated"]}
    assert ours["reason"] == f"none of {ours['evaluated']:,} strategies fits: memory ({ours['evaluated']:,})"
    excess = -theirs["margins"]["memory"]
    assert theirs["reason"].endswith(f"the nearest exceeds memory by {100 * excess:.3g} %")


def test_a_side_without_a_legal_strategy_says_why_and_stops_no_other(capfd):
    # eight dies can share neither nine heads nor nine sequences: 12 layers make eight uneven stages
    odd = replace(MODEL, num_attention_heads=9, num_kv_heads=9)
    found = compare(wafer(), odd, options=replace(FEW, global_batch_size=9, micro_batch_sizes=1, least_use=1.0))
    assert found.ours.fits and found.ours.reason is None and found.tokens_per_second > 0.0
    record = comparison_record(wafer(), found)
    equal = record["variants"]["megatron_on_wafer_equal_stages"]
    assert (equal["fits"], equal["tokens_per_second"], equal["speedup"], equal["evaluated"]) == (False, None, None, 0)
    assert "against the rule" in equal["reason"]
    assert record["speedup"]["megatron_on_wafer"] >= 1.0 - 1e-6
    json.dumps(record, allow_nan=False)
    Console(width=PLAIN_WIDTH).print(comparison_view("title", record))
    out = capfd.readouterr()[0]
    assert re.search(r"equal stages +NO STRATEGY +- +- +0", out)
    assert f"megatron on wafer equal stages: {equal['reason']}" in out


@pytest.fixture
def quick(monkeypatch, compared):
    monkeypatch.setattr(comparison, "compare", lambda *_, **__: compared)


def test_command_prints_one_object(quick, capfd):
    assert main(["compare", "llama3-70b", "--wafer", "watos-config-3", "--json"]) == 0
    out, err = capfd.readouterr()
    record = json.loads(out)
    assert err == "" and {"model", "wafer", "ours", "baselines", "speedup"} <= set(record)


def test_command_prints_tables_and_its_examples_are_accepted(quick, capfd):
    assert main(["compare", "--help"]) == 0
    examples = re.findall(r"^    watos (compare\b.*)$", capfd.readouterr()[0], re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        assert main(example.split()) == 0
    assert main(["compare", "llama3-70b", "--wafer", "watos-config-3"]) == 0
    out = capfd.readouterr()[0]
    for name in (*BASELINES, *VARIANTS):
        assert name.replace("_", " ") in out


def test_command_fails_where_no_side_has_an_answer(monkeypatch, compared, capfd):
    nothing = Side(wafer(), None, "no strategy is legal on 8 dies: too few dies used (3)")
    empty = Comparison(nothing, dict.fromkeys(BASELINES, nothing), dict.fromkeys(VARIANTS, nothing))
    monkeypatch.setattr(comparison, "compare", lambda *_, **__: empty)
    assert main(["compare", "llama3-70b", "--wafer", "watos-config-3", "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "no side can train 'llama3-70b' on watos-config-3 with 512 sequences per step: ours: no strategy" in err
    one = Comparison(nothing, compared.baselines | {"weight_streaming": nothing}, compared.variants)
    monkeypatch.setattr(comparison, "compare", lambda *_, **__: one)
    assert main(["compare", "llama3-70b", "--wafer", "watos-config-3", "--json"]) == 0
    record = json.loads(capfd.readouterr()[0])
    assert set(record["speedup"].values()) == {None}
    for side in (record["ours"], record["baselines"]["weight_streaming"]):
        assert not side["fits"] and side["tokens_per_second"] is None and side["reason"] == nothing.refusal
    assert main(["compare", "llama3-70b", "--wafer", "watos-config-3"]) == 0
    assert "ours: no strategy is legal" in capfd.readouterr()[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "llama3-70b"], "--wafer is missing: it must be a wafer such as watos-config-3"),
        (["compare", "llama3-70b", "--wafer", "dojo"], "--wafer is 'dojo': it must be one of"),
        (["compare", "--wafer", "watos-config-3"], "MODEL is missing"),
        (
            ["compare", "llama3-70b", "--wafer", "watos-config-3", "--wafers", "0"],
            "--wafers is '0': it must be a whole number from 1 to 1,000",
        ),
        (
            ["plan", "llama3-70b", "--wafer", "watos-config-3", "--wafers", "4"],
            "--wafer-bandwidth is missing: with --wafers it must be the GB/s between them, such as 1800",
        ),
        (
            ["plan", "llama3-70b", "--wafer", "watos-config-3", "--wafers", "4", "--wafer-bandwidth", "0"],
            "--wafer-bandwidth is '0': it must be a number above 0, at most 1,000,000",
        ),
        (
            ["estimate", "llama3-70b", "--wafer", "watos-config-3", "--wafer-fabric", "ring"],
            "--wafer-fabric is 'ring': it may only be given with --wafers",
        ),
        (
            ["estimate", "llama3-70b", "--system", "dgx-h100", "--wafers", "2"],
            "--wafers is '2': it may only be given with --wafer",
        ),
        (
            "compare llama3-70b --wafer dojo-tile --wafers 2 --wafer-bandwidth 9 --wafer-fabric torus".split(),
            "--wafer-fabric is 'torus': it must be one of mesh, ring, switch",
        ),
    ],
)
def test_bad_input_is_one_sentence(words, message, capfd):
    assert main(words) == 2
    assert message in capfd.readouterr()[1]


def test_strategies_of_streaming_have_no_degrees():
    strategy = stream_through(WHOLE, MODEL, global_batch_size=4).strategy
    plain = Strategy(
        micro_batch_size=strategy.micro_batch_size, global_batch_size=4, flash_attention=strategy.flash_attention
    )
    assert np.all([a == b for a, b in zip(vars(strategy).values(), vars(plain).values(), strict=True)])
