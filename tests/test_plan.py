"""Every legal strategy on fixed hardware: the ranking, the counts, the nearest fit, the arguments of Megatron-LM."""

import re
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest

from watos_jax.baselines.megatron import allowed
from watos_jax.batch import map_chunks
from watos_jax.estimate import ROUNDING, estimate
from watos_jax.memory import stages
from watos_jax.presets import chips, models, wafers
from watos_jax.report.megatron import megatron_arguments
from watos_jax.search.plan import BLOCKS, LIMITS, every_option, outcome_at, plan
from watos_jax.search.space import ROOM, Options, strategies
from watos_jax.strategy import RECOMPUTE_LEVELS, Strategy, violation

NODE, MODEL = chips.DGX_A100, models.LLAMA2_7B
FEW = Options(global_batch_size=8, micro_batch_sizes=(1, 8), recompute=("none", "full"), virtual_stages=(1, 2))


@pytest.fixture(scope="module")
def one_by_one():
    """Step time and margins of every strategy of `FEW`, each by its own call."""
    space = strategies(NODE, MODEL, FEW)
    rows = [estimate(NODE, MODEL, space.strategy(i), layout=space.layout(i)) for i in range(len(space))]
    return space, np.array([row.step_time for row in rows]), [row.margins for row in rows]


@pytest.fixture(scope="module")
def planned():
    return plan(NODE, MODEL, options=FEW, top=5)


def test_the_first_is_the_fastest_of_all_that_fit(planned, one_by_one):
    space, times, margins = one_by_one
    fits = np.array([float(row["memory"]) >= -ROUNDING for row in margins])
    assert 0 < fits.sum() < len(fits)
    fastest = np.argsort(np.where(fits, times, np.inf), kind="stable")[:5]
    assert [float(choice.estimate.step_time) for choice in planned.best] == pytest.approx(times[fastest].tolist())
    assert planned.best[0].strategy == space.strategy(int(fastest[0]))
    assert planned.nearest is None


def test_every_strategy_is_counted_once(planned, one_by_one):
    space, _, margins = one_by_one
    exceeded = Counter("memory" for row in margins if float(row["memory"]) < -ROUNDING)
    assert planned.evaluated == len(space) == planned.feasible + sum(planned.exceeded.values())
    assert planned.exceeded == exceeded


def test_where_nothing_fits_the_nearest_is_named():
    answer = plan(NODE, models.GPT3_175B, options=replace(FEW, micro_batch_sizes=(1,)))
    space = strategies(NODE, models.GPT3_175B, replace(FEW, micro_batch_sizes=(1,)))
    margins = [
        float(estimate(NODE, models.GPT3_175B, space.strategy(i), layout=space.layout(i)).margins["memory"])
        for i in range(len(space))
    ]
    assert answer.best == () and answer.feasible == 0
    assert float(answer.nearest.estimate.margins["memory"]) == pytest.approx(max(margins)) and max(margins) < 0


def test_limits_of_the_hardware_do_not_rule_out_strategies():
    wafer = wafers.WATOS_CONFIG_3  # its die edge is 1.7 % too short for its links and memory, whatever runs on it
    answer = plan(wafer, MODEL, options=FEW, top=1)
    assert answer.feasible > 0 and set(answer.exceeded) <= set(LIMITS)
    assert answer.hardware == {"edge_vertical": pytest.approx(-float(answer.best[0].estimate.margins["edge_vertical"]))}


@pytest.mark.slow
def test_another_rung_ranks_by_its_own_times():
    wafer = wafers.WATOS_CONFIG_3
    options = replace(FEW, global_batch_size=56, micro_batch_sizes=(1,), virtual_stages=(1,))
    answer = plan(wafer, MODEL, options=options, top=3, fidelity="predictor")
    bound = plan(wafer, MODEL, options=options, top=3)
    space = strategies(wafer, MODEL, options)
    points = (space.strategies, space.geometry.astype(np.int32))
    shared, (chunk, calls) = (wafer, MODEL, space.roomy_layouts), BLOCKS["predictor"]
    times, margins = map_chunks(outcome_at("predictor"), shared, points, chunk=chunk, chunks_per_call=calls)
    roofline, _ = map_chunks(outcome_at("roofline"), shared, points)
    assert (times >= (1 - 1e-6) * roofline).all() and (times > 1.01 * roofline).any()
    fits = np.min(list(margins.values()), axis=0) >= -ROUNDING
    least = np.sort(times[fits])[:3]
    assert [float(choice.estimate.step_time) for choice in answer.best] == pytest.approx(least.tolist(), rel=1e-5)
    assert {choice.estimate.fidelity for choice in answer.best} == {"predictor"}
    assert answer.evaluated == bound.evaluated and answer.feasible == bound.feasible


def test_every_option_is_legal_and_none_is_listed_twice():
    model = replace(MODEL, num_layers=4)
    space = strategies(replace(NODE, tiers=NODE.tiers[:1]), model, every_option(model, 4))
    seen = [tuple(strategy.__dict__.values()) for strategy in map(space.strategy, range(len(space)))]
    assert len(set(seen)) == len(seen) > 1000
    for row in range(0, len(space), 37):
        assert violation(model, space.strategy(row)) is None
    assert {name for name, level in zip(RECOMPUTE_LEVELS, range(8), strict=True) if level in space.strategies.recompute}


def test_top_below_one_is_refused():
    with pytest.raises(ValueError, match="top is 0: it must be at least 1"):
        plan(NODE, MODEL, options=FEW, top=0)


def test_spaces_of_different_models_have_layouts_of_one_shape():
    wafer = wafers.WATOS_CONFIG_3
    spaces = [strategies(wafer, model, FEW, max_stages=64) for model in (models.LLAMA2_7B, models.LLAMA3_70B)]
    assert len({len(space.layouts.pipeline_volume) for space in spaces}) == 2
    for space in spaces:
        rows, roomy = space.layouts.pipeline_volume, space.roomy_layouts.pipeline_volume
        assert len(roomy) == ROOM
        assert np.array_equal(roomy[: len(rows)], rows)
        assert int(space.geometry.max()) < len(rows)


def _value(arguments, name):
    return arguments[arguments.index(f"--{name}") + 1]


def test_arguments_of_megatron():
    strategy = Strategy(
        tensor_cols=8,
        pipeline_parallel=4,
        data_parallel=2,
        virtual_stages=2,
        micro_batch_size=2,
        global_batch_size=64,
        recompute=RECOMPUTE_LEVELS.index("full"),
    )
    arguments, missing = megatron_arguments(models.LLAMA3_70B, strategy)
    expected = {
        "tensor-model-parallel-size": "8",
        "pipeline-model-parallel-size": "4",
        "num-layers-per-virtual-pipeline-stage": "10",
        "micro-batch-size": "2",
        "global-batch-size": "64",
        "num-layers": "80",
        "num-query-groups": "8",
        "recompute-granularity": "full",
    }
    assert {name: _value(arguments, name) for name in expected} == expected
    assert {"--sequence-parallel", "--swiglu", "--use-distributed-optimizer", "--use-flash-attn"} <= set(arguments)
    assert missing == []


def test_embedding_and_head_may_stand_for_a_layer_of_the_first_and_last_chunk():
    model = models.LLAMA3_405B
    strategy = Strategy(tensor_cols=8, pipeline_parallel=16, virtual_stages=4, global_batch_size=32)
    assert violation(model, strategy) is None
    held = stages(model, strategy, 16)
    assert (held.dense + held.mixture).tolist() == [7.0, *[8.0] * 14, 7.0]
    arguments, missing = megatron_arguments(model, strategy)
    assert _value(arguments, "num-layers-per-virtual-pipeline-stage") == "2" and missing == []
    assert {"--account-for-embedding-in-pipeline-split", "--account-for-loss-in-pipeline-split"} <= set(arguments)
    assert 8 in every_option(model, 32).virtual_stages
    for stages_, chunks in ((2, 32), (16, 3), (5, 2)):  # equal stages hold the ends beside them
        other = replace(strategy, pipeline_parallel=stages_, virtual_stages=chunks)
        assert "must divide num_layers (126)" in violation(model, other)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schedule": 1}, "schedule is gpipe: Megatron-LM runs 1F1B"),
        ({"recompute": 5}, "recompute is projections: Megatron-LM has no argument that stops there"),
    ],
)
def test_what_megatron_cannot_do_is_said(changes, sentence):
    strategy = replace(Strategy(tensor_cols=2, pipeline_parallel=4, global_batch_size=12), **changes)
    assert megatron_arguments(models.LLAMA3_70B, strategy)[1] == [sentence]


MIXTURES = {
    "first three dense": models.DEEPSEEK_V3,
    "every second": models.GSHARD_137B,
    "all": models.MIXTRAL_8X7B,
    "one dense, then every third, two over": replace(
        models.GSHARD_137B, num_dense_layers=1, moe_layer_interval=3, num_layers=30
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_layers_with_experts_are_stated_as_a_pattern_that_megatron_reads(name):
    model = MIXTURES[name]
    layers = int(model.num_layers)
    arguments, missing = megatron_arguments(model, Strategy(recompute=RECOMPUTE_LEVELS.index("mlp")))
    ours = np.asarray(stages(model, Strategy(pipeline_parallel=layers), layers).mixture).tolist()  # a layer each
    if "--moe-layer-freq" in arguments:
        pattern = _value(arguments, "moe-layer-freq")
        assert re.fullmatch(r"[\d\[\]()+*,]+", pattern), "Megatron evaluates nothing else"
        stated = eval(pattern)  # as Megatron does
    else:
        stated = [1] * layers  # its default
    assert stated == ours and missing == []
    modules = arguments[arguments.index("--recompute-modules") + 1 :]
    assert modules == ["core_attn", "layernorm", *["mlp"] * (0 in stated), "moe"]


def test_dimensions_of_experts_and_latent_attention_are_stated():
    arguments, missing = megatron_arguments(replace(models.DEEPSEEK_V2, capacity_factor=1.25), Strategy(tensor_cols=2))
    expected = {
        "moe-shared-expert-intermediate-size": "3072",  # two of 1,536 (arXiv 2405.04434, section 3.1.2)
        "moe-layer-freq": "[0]*1+[1]*59",
        "moe-expert-capacity-factor": "1.25",
        "kv-lora-rank": "512",
        "q-lora-rank": "1536",
        "qk-head-dim": "128",
        "qk-pos-emb-head-dim": "64",
        "v-head-dim": "128",
        "position-embedding-type": "rope",
    }
    assert {name: _value(arguments, name) for name in expected} == expected
    assert "--multi-latent-attention" in arguments and "--kv-channels" not in arguments and missing == []
    assert _value(megatron_arguments(models.QWEN3_32B, Strategy())[0], "kv-channels") == "128"  # 64 heads, not 80 wide
    assert _value(megatron_arguments(models.GPT3_175B, Strategy())[0], "position-embedding-type") == "learned_absolute"
    assert "--kv-channels" not in megatron_arguments(models.GPT3_175B, Strategy())[0]


def test_experts_in_tensor_groups_need_sequence_parallelism():
    split = Strategy(tensor_cols=2, sequence_parallel=0)
    sentence = "sequence_parallel is 0: Megatron-LM refuses it where experts are trained in tensor groups"
    assert megatron_arguments(models.MIXTRAL_8X7B, split)[1] == [sentence]
    many = jax.tree.map(lambda *leaves: np.array(leaves), split, replace(split, sequence_parallel=1), Strategy())
    assert allowed(wafers.WATOS_CONFIG_3, models.MIXTRAL_8X7B, many).tolist() == [False, True, True]
    assert allowed(wafers.WATOS_CONFIG_3, models.LLAMA3_70B, many).all()


def _layers_of(layout):
    """Layers of every stage of a layout: brackets are written out first, then repeated letters."""
    while "(" in layout:
        head, rest = layout.split("(", 1)
        inner, rest = rest.split(")*", 1)
        count = re.match(r"\d+", rest).group()
        layout = head + inner * int(count) + rest[len(count) :]
    assert layout.startswith("E") and layout.endswith("L")
    return [sum(int(count) for count in re.findall(r"t\*(\d+)", stage)) for stage in layout.split("|")]


@pytest.mark.parametrize("model", [models.LLAMA3_70B, models.GSHARD_137B], ids=["dense", "mixture"])
def test_uneven_stages_are_stated_as_arguments(model):
    layers = int(model.num_layers)
    for number in [number for number in range(2, 33) if layers % number]:
        strategy = Strategy(pipeline_parallel=number, global_batch_size=64)
        held = stages(model, strategy, layers)
        ours = np.asarray(held.dense + held.mixture)[:number].astype(int).tolist()
        arguments, missing = megatron_arguments(model, strategy)
        assert missing == []
        if "--pipeline-model-parallel-layout" in arguments:
            stated = _layers_of(_value(arguments, "pipeline-model-parallel-layout"))
        else:  # what the first and last stage leave is divided equally
            first = int(_value(arguments, "decoder-first-pipeline-num-layers"))
            has_last = "--decoder-last-pipeline-num-layers" in arguments
            last = [int(_value(arguments, "decoder-last-pipeline-num-layers"))] if has_last else []
            left, others = layers - first - sum(last), number - 1 - len(last)
            assert left % others == 0
            stated = [first, *[left // others] * others, *last]
        assert stated == ours


def test_uneven_stages_take_the_oldest_arguments_that_can_state_them():
    def added(number):
        strategy = Strategy(pipeline_parallel=number, global_batch_size=64)
        words = megatron_arguments(models.LLAMA3_70B, strategy)[0]
        return [word for word in words if "pipeline-num-layers" in word or "layout" in word]

    assert added(3) == ["--decoder-first-pipeline-num-layers"]  # 26, 27, 27
    assert added(6) == ["--pipeline-model-parallel-layout"]  # 13, 14, 14, 13, 13, 13
    assert added(41) == ["--decoder-first-pipeline-num-layers", "--decoder-last-pipeline-num-layers"]  # 1, 39 x 2, 1
