"""Memory: what a stage holds, against schedules played in plain Python, hand counts and published figures."""

from dataclasses import replace
from itertools import pairwise

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from schedules import all_forward_all_backward, interleaved, one_forward_one_backward, play

from watos_jax import estimate
from watos_jax.memory import OPTIMIZER_BYTES, stages
from watos_jax.presets import chips, models
from watos_jax.strategy import RECOMPUTE_LEVELS, Strategy
from watos_jax.units import GIB
from watos_jax.workload import activations, num_parameters

EXACT = 2e-6  # relative; loose enough for float32
FULL = float(RECOMPUTE_LEVELS.index("full"))
SELECTIVE = float(RECOMPUTE_LEVELS.index("selective"))
NODES = chips.cluster(chips.DGX_A100, 64)
WIDTH = 8
TINY = replace(models.LLAMA2_7B, num_layers=8, hidden_size=512, ffn_hidden_size=1024, num_attention_heads=8)
spread = jax.jit(stages, static_argnums=2)


def memory(model, strategy):
    """Parts of one strategy's memory on A100 nodes, as numpy arrays over stages."""
    return jax.tree.map(np.asarray, estimate(NODES, model, strategy).memory_parts)


# ---- micro-batches in flight


@settings(max_examples=60)
@given(p=st.integers(1, WIDTH), m=st.integers(1, 20))
def test_1f1b_and_gpipe_keep_what_the_played_schedules_keep(p, m):
    for schedule, orders in ((0, one_forward_one_backward(p, m)), (1, all_forward_all_backward(p, m))):
        strategy = Strategy(pipeline_parallel=p, global_batch_size=m, schedule=schedule)
        in_flight = np.asarray(spread(TINY, strategy, WIDTH).in_flight)
        kept = play(orders, [1.0] * p, [2.0] * p).kept
        assert in_flight.tolist() == kept + [0] * (WIDTH - p)
        if schedule == 0:
            assert kept == [min(m, p - s) for s in range(p)]


@settings(max_examples=60)
@given(p=st.integers(2, WIDTH), rounds=st.integers(1, 4), v=st.integers(2, 4))
def test_interleaving_keeps_what_the_played_schedule_keeps(p, rounds, v):
    strategy = Strategy(pipeline_parallel=p, global_batch_size=rounds * p, virtual_stages=v)
    model = replace(TINY, num_layers=p * v)
    in_flight = np.asarray(spread(model, strategy, WIDTH).in_flight)
    kept = play(interleaved(p, rounds * p, v), [1.0] * p, [2.0] * p, v).kept
    np.testing.assert_allclose(v * in_flight[:p], kept, rtol=EXACT)


# ---- layers


@settings(max_examples=60)
@given(p=st.integers(1, WIDTH), layers=st.integers(WIDTH, 40))
def test_layers_are_dealt_out_evenly_with_the_spare_ones_behind_the_first_stage(p, layers):
    held = spread(replace(TINY, num_layers=layers), Strategy(pipeline_parallel=p), WIDTH)
    base, spare = divmod(layers, p)
    assert np.asarray(held.dense).tolist() == [base + (1 <= s <= spare) if s < p else 0 for s in range(WIDTH)]
    assert np.asarray(held.active).tolist() == [float(s < p) for s in range(WIDTH)]
    assert np.asarray(held.first).tolist() == [float(s == 0) for s in range(WIDTH)]
    assert np.asarray(held.last).tolist() == [float(s == p - 1) for s in range(WIDTH)]


@settings(max_examples=60)
@given(p=st.integers(1, WIDTH), layers=st.integers(WIDTH, 40), leading=st.integers(0, 5), interval=st.integers(1, 3))
def test_mixture_layers_are_those_of_the_architecture(p, layers, leading, interval):
    model = replace(
        TINY,
        num_layers=layers,
        num_experts=4,
        experts_per_token=1,
        moe_ffn_hidden_size=64,
        num_dense_layers=leading,
        moe_layer_interval=interval,
    )
    held = spread(model, Strategy(pipeline_parallel=p), WIDTH)
    # after the leading layers, the last of every `interval` layers has experts
    is_mixture = [i >= leading and (i - leading) % interval == interval - 1 for i in range(layers)]
    base, spare = divmod(layers, p)
    start = 0
    for s in range(p):
        end = start + base + (1 <= s <= spare)
        assert float(held.mixture[s]) == sum(is_mixture[start:end])
        assert float(held.dense[s]) == end - start - sum(is_mixture[start:end])
        start = end


# ---- weights, gradients, optimizer states


def test_a_small_model_by_hand():
    model = replace(models.LLAMA3_8B, num_layers=3)
    used = memory(model, Strategy(pipeline_parallel=2, tensor_cols=2, global_batch_size=4, gradient_bytes=4))
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
    table = 128256 * 4096
    weights = np.array([layer + table, 2 * layer + table]) / 2  # the spare layer is on stage 1; two tensor shards
    np.testing.assert_allclose(used.weights[:2], 2 * weights, rtol=EXACT)
    np.testing.assert_allclose(used.gradients[:2], 4 * weights, rtol=EXACT)
    np.testing.assert_allclose(used.optimizer[:2], 12 * weights, rtol=EXACT)
    # flash attention, sequence parallel: residual stream 2 + 2, norms 4, inner 2 x 3, one product of queries, keys and
    # values with rotated copies of the first two, output
    tokens, hidden = 8192, 4096
    projections = 2 * (4096 + 2 * 1024) + 2 * (4096 + 1024)
    kept = tokens / 2 * (8 * hidden + 2 * 3 * 14336 + projections + 2 * 4096 + 4 * 32)
    np.testing.assert_allclose(used.activations[:2], np.array([2 * 1, 1 * 2]) * kept, rtol=EXACT)
    # gradients of the residual stream and of the feed-forward block; logits on the last stage
    gradients = tokens / 2 * (2 * hidden + 2 * 3 * 14336)
    np.testing.assert_allclose(used.working[:2], [gradients, 6 * tokens * 128256 / 2], rtol=EXACT)


@pytest.mark.parametrize("name", models.NAMES)
def test_parts_sum_to_the_total_and_padding_is_zero(name):
    model = models.NAMES[name]
    strategy = Strategy(pipeline_parallel=5, tensor_cols=4, global_batch_size=8, recompute=3)
    result = estimate(NODES, model, strategy)
    used = result.memory_parts
    parts = [np.asarray(x) for x in (used.weights, used.gradients, used.optimizer, used.activations, used.working)]
    np.testing.assert_allclose(np.asarray(result.memory), sum(parts), rtol=EXACT)
    for part in parts:
        assert (part[5:] == 0).all()
        assert (part[:5] >= 0).all()
    assert float(result.margins["memory"]) == pytest.approx(
        1 - max(np.asarray(result.memory)) / float(NODES.die.memory.capacity), rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize("name", ["llama3-70b", "mixtral-8x7b", "qwen3-32b"])
@pytest.mark.parametrize("p", [1, 3, 8])
def test_weights_of_all_stages_and_shards_are_the_parameters(name, p):
    model = models.NAMES[name]
    used = memory(model, Strategy(pipeline_parallel=p, tensor_cols=4, global_batch_size=8))
    # a router is repeated on every device of a tensor group
    mixture = float(model.num_layers) if float(model.num_experts) else 0
    routers = 3 * mixture * float(model.num_experts) * float(model.hidden_size)
    assert 4 * used.weights.sum() / 2 == pytest.approx(float(num_parameters(model)) + routers, rel=EXACT)


@pytest.mark.parametrize("p", [1, 4])
def test_learned_positions_are_held_once(p):
    model = replace(models.GPT3_175B, tied_embeddings=0)
    used = memory(model, Strategy(pipeline_parallel=p, global_batch_size=8))
    assert used.weights.sum() / 2 == pytest.approx(float(num_parameters(model)), rel=EXACT)


def test_tied_embeddings_are_held_twice_only_by_a_pipeline():
    model = replace(models.GPT3_175B, learned_positions=0)
    table = float(model.vocab_size * model.hidden_size)
    for p, copies in ((1, 1), (2, 2), (8, 2)):
        held = memory(model, Strategy(pipeline_parallel=p, global_batch_size=8)).weights.sum() / 2
        assert held - float(num_parameters(model)) == pytest.approx((copies - 1) * table, rel=1e-4, abs=1e-3 * table)
    untied = replace(model, tied_embeddings=0)
    held = memory(untied, Strategy(pipeline_parallel=1, global_batch_size=8)).weights.sum() / 2
    assert held == pytest.approx(float(num_parameters(untied)), rel=EXACT)


@pytest.mark.parametrize(
    ("code", "gradients", "optimizer"), [(0, 1, 1), (1, 1, 1 / 8), (2, 1 / 8, 1 / 8)], ids=["none", "states", "all"]
)
def test_sharding_divides_states_and_at_level_2_gradients(code, gradients, optimizer):
    # a peer shards gradients where Megatron-LM does not, and picks strategies that do not fit
    plain = memory(models.LLAMA2_7B, Strategy(global_batch_size=8, optimizer_sharding=0, gradient_bytes=2))
    shared = {"data_parallel": 4, "context_parallel": 2, "global_batch_size": 8, "gradient_bytes": 2}
    used = memory(models.LLAMA2_7B, Strategy(optimizer_sharding=code, **shared))
    assert used.weights[0] == pytest.approx(plain.weights[0], rel=EXACT)
    assert used.gradients[0] == pytest.approx(gradients * plain.gradients[0], rel=EXACT)
    assert used.optimizer[0] == pytest.approx(optimizer * plain.optimizer[0], rel=EXACT)
    assert plain.optimizer[0] == pytest.approx(OPTIMIZER_BYTES / 2 * plain.weights[0], rel=EXACT)


def test_experts_are_sharded_over_the_peers_that_repeat_them():
    model = replace(models.MIXTRAL_8X7B, num_layers=4)
    expert = 4 * 8 * 3 * 4096 * 14336
    common = float(num_parameters(model)) - expert
    for peers, parts in ((4, 1), (4, 4), (8, 2)):
        strategy = Strategy(data_parallel=peers, expert_parallel=parts, global_batch_size=8, optimizer_sharding=2)
        used = memory(model, strategy)
        assert used.weights[0] == pytest.approx(2 * (common + expert / parts), rel=EXACT)
        # every state exists exactly once over the peers, wherever the experts are
        assert peers * used.optimizer[0] == pytest.approx(12 * (common + expert), rel=EXACT)
        assert peers * used.gradients[0] == pytest.approx(4 * (common + expert), rel=EXACT)


# ---- activations and working set


def test_full_recomputation_works_on_one_layer_at_a_time():
    # a peer's totals accumulate over layers; and with sequence parallelism it stores a whole boundary per device
    model = models.GPT3_175B
    common = {"pipeline_parallel": 8, "tensor_cols": 8, "global_batch_size": 64, "flash_attention": 0}
    none = memory(model, Strategy(recompute=0, **common))
    full = memory(model, Strategy(recompute=FULL, **common))
    boundary = float(activations(model, Strategy(tensor_cols=8)).boundary)
    assert boundary == 2 * 2048 * 12288 / 8
    np.testing.assert_allclose(full.activations, 12 * boundary * np.arange(8, 0, -1), rtol=EXACT)
    # gradients of the attention block: as much as scores with dropout, queries, keys, values and output
    gradients = boundary + 5 * 2048**2 * 12 + 4 * 2 * 2048 * 12288 / 8
    np.testing.assert_allclose(none.working[:7], gradients, rtol=EXACT)
    one_layer = none.activations[0] / (8 * 12)
    np.testing.assert_allclose(full.working[:7], one_layer - boundary + gradients, rtol=EXACT)
    # logits, and only then gradients of a layer
    logits = 6 * 2048 * 51200 / 8
    assert none.working[7] == pytest.approx(max(logits, gradients), rel=EXACT)
    assert full.working[7] == pytest.approx(max(logits, one_layer - boundary + gradients), rel=EXACT)


@pytest.mark.parametrize("name", ["llama3-70b", "gpt3-175b", "deepseek-v3"])
def test_recomputing_more_never_needs_more_for_activations(name):
    model = models.NAMES[name]
    common = {"pipeline_parallel": 4, "tensor_cols": 8, "global_batch_size": 8}
    used = [memory(model, Strategy(recompute=code, **common)).activations for code in range(len(RECOMPUTE_LEVELS))]
    assert all((a >= b).all() for a, b in pairwise(used))


@pytest.mark.parametrize("name", ["llama3-70b", "deepseek-v3"])
def test_one_recomputation_level_per_stage_mixes_the_scalars(name):
    model = models.NAMES[name]
    common = {"pipeline_parallel": 4, "tensor_cols": 8, "global_batch_size": 8}
    levels = [7, 5, 3, 0, 0, 0, 0, 0]
    mixed = memory(model, Strategy(recompute=levels, **common))
    for stage, level in enumerate(levels[:4]):
        alone = memory(model, Strategy(recompute=level, **common))
        assert mixed.activations[stage] == pytest.approx(alone.activations[stage], rel=EXACT)
        assert mixed.working[stage] == pytest.approx(alone.working[stage], rel=EXACT)


# GiB on the first stage, tensor parallel without and with sequence parallelism and selective recomputation: arXiv
# 2205.05198, Figure 1, digitised by the authors of Calculon (validation.py); configurations of its Table 3
FIGURE_1 = [
    ("megatron-22b", 1, 1, 4, 4, 59.25, 9.5625),
    ("gpt3-175b", 8, 3, 1, 64, 66.8438, 12.3516),
    ("megatron-530b", 35, 3, 1, 280, 114.023, 23.0762),
    ("megatron-1t", 64, 1, 1, 512, 131.25, 26.5625),
]


@pytest.mark.parametrize(("name", "p", "v", "micro", "batch", "plain", "present"), FIGURE_1)
def test_activations_are_those_that_korthikanti_publish(name, p, v, micro, batch, plain, present):
    common = {
        "tensor_cols": 8,
        "pipeline_parallel": p,
        "virtual_stages": v,
        "micro_batch_size": micro,
        "global_batch_size": batch,
        "flash_attention": 0,
    }
    for sequence_parallel, recompute, expected in ((0, 0, plain), (1, SELECTIVE, present)):
        strategy = Strategy(sequence_parallel=sequence_parallel, recompute=recompute, **common)
        used = memory(models.NAMES[name], strategy)
        assert used.activations[0] / GIB == pytest.approx(expected, rel=1e-3)


def test_a_wrong_published_figure_fails():
    with pytest.raises(AssertionError):
        test_activations_are_those_that_korthikanti_publish("megatron-22b", 1, 1, 4, 4, 50.0, 9.5625)
