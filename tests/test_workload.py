"""Workload: FLOP, parameters, saved activations and messages against closed forms of the literature."""

from dataclasses import replace

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from watos_jax.memory import kept_bytes
from watos_jax.model import Transformer
from watos_jax.presets import models
from watos_jax.strategy import RECOMPUTE_LEVELS, Strategy
from watos_jax.workload import (
    MATMULS,
    activations,
    attention,
    elementwise,
    layer_counts,
    matmuls,
    messages,
    model_flop,
    num_parameters,
    parameters,
)

EXACT = 1e-6  # relative; loose enough for float32
PRESETS = list(models.NAMES)
FULL = float(RECOMPUTE_LEVELS.index("full"))
SELECTIVE = float(RECOMPUTE_LEVELS.index("selective"))


def gpt(layers=4, heads=8, head_dim=16, sequence=64, vocab=256, **changes):
    """A GPT-3 style model: four times wider inside, dropout masks kept, no grouping."""
    hidden = heads * head_dim
    return Transformer(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=4 * hidden,
        num_attention_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        sequence_length=sequence,
        vocab_size=vocab,
        **{"gated_mlp": 0, "dropout": 1, "learned_positions": 1} | changes,
    )


def per_layer_counts(model):
    """How often each name of `MATMULS` occurs in the whole model."""
    dense, mixture = (float(x) for x in layer_counts(model))
    return np.array([dense + mixture] * 5 + [dense] * 2 + [mixture] * 5 + [1.0])


def product_flop(model, strategy):
    """FLOP of each product of one micro-batch, all layers, forward, on one device; shape (len(MATMULS),)."""
    shapes = matmuls(model, strategy)
    return per_layer_counts(model) * np.asarray(2 * shapes.rows * shapes.cols * shapes.depth * shapes.count)


def core_flop(model, strategy):
    """FLOP of all attention cores of one micro-batch, forward, on one device."""
    core = attention(model, strategy)
    width = core.heads * (core.head_dim + core.value_dim)
    return float(2 * model.num_layers * core.queries * core.keys * width)


def active_parameters(m):
    """Weights that multiply a token, written from the architecture: no embedding, k of the experts, LM head."""
    m = jax.tree.map(float, m)
    value = m.v_head_dim or m.head_dim
    if m.kv_lora_rank:
        query = m.num_attention_heads * m.head_dim
        down = m.hidden_size * (m.kv_lora_rank + m.qk_rope_head_dim)
        up = m.kv_lora_rank * m.num_attention_heads * (m.head_dim - m.qk_rope_head_dim + value)
        queries = (m.hidden_size + query) * m.q_lora_rank if m.q_lora_rank else m.hidden_size * query
        projections = queries + down + up
    else:
        projections = m.hidden_size * (m.num_attention_heads * m.head_dim + m.num_kv_heads * (m.head_dim + value))
    attention_weights = projections + m.num_attention_heads * value * m.hidden_size
    matrices = 2 + m.gated_mlp
    mixture = (m.num_layers - m.num_dense_layers) // m.moe_layer_interval if m.num_experts else 0
    visited = m.experts_per_token + m.num_shared_experts
    return (
        m.num_layers * attention_weights
        + (m.num_layers - mixture) * matrices * m.hidden_size * m.ffn_hidden_size
        + mixture * m.hidden_size * (m.num_experts + matrices * visited * m.moe_ffn_hidden_size)
        + m.vocab_size * m.hidden_size
    )


# ---- FLOP


def test_layers_with_experts_are_counted():
    mixture = gpt(layers=27, num_experts=64, experts_per_token=6, moe_ffn_hidden_size=32)
    assert layer_counts(gpt(layers=27)) == (27, 0)
    assert layer_counts(mixture) == (0, 27)
    assert layer_counts(replace(mixture, num_dense_layers=1)) == (1, 26)
    assert layer_counts(replace(mixture, moe_layer_interval=2)) == (14, 13)


@pytest.mark.parametrize("name", PRESETS)
def test_training_flop_are_6_per_active_weight_and_token_plus_attention(name):
    model = models.NAMES[name]
    value = float(model.v_head_dim) or float(model.head_dim)
    width = float(model.num_attention_heads) * (float(model.head_dim) + value)
    sequence = float(model.sequence_length)
    # scores and values: 2 FLOP x width per visible key, s / 2 of them, three passes
    core = 3 * 2 * float(model.num_layers) * width * sequence / 2
    per_token = float(model_flop(model, Strategy(global_batch_size=2))) / (2 * sequence)
    assert per_token == pytest.approx(6 * active_parameters(model) + core, rel=EXACT)


@pytest.mark.parametrize("name", PRESETS)
def test_flop_per_token_tend_to_6_per_active_weight_for_short_sequences(name):
    model = replace(models.NAMES[name], sequence_length=1, learned_positions=0)
    ratio = float(model_flop(model, Strategy())) / active_parameters(model)
    assert 6 <= ratio == pytest.approx(6, rel=1e-3)


@pytest.mark.parametrize("name", ["gpt3-175b", "megatron-22b", "megatron-530b", "megatron-1t"])
def test_model_flop_agree_with_korthikanti_with_the_causal_half_of_attention(name):
    # arXiv 2205.05198, appendix A: 72 B L s h^2 (1 + s / 6h + v / 12hL), where the masked half is computed too
    m = models.NAMES[name]
    layers, hidden, sequence = (float(x) for x in (m.num_layers, m.hidden_size, m.sequence_length))
    bracket = 1 + sequence / (2 * 6 * hidden) + float(m.vocab_size) / (12 * hidden * layers)
    expected = 72 * 512 * layers * sequence * hidden**2 * bracket
    assert float(model_flop(m, Strategy(global_batch_size=512))) == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("name", PRESETS)
def test_products_of_a_micro_batch_are_a_third_of_the_training_flop(name):
    model, strategy = models.NAMES[name], Strategy()
    forward = product_flop(model, strategy).sum() + core_flop(model, strategy)
    assert float(model_flop(model, strategy)) == pytest.approx(3 * forward, rel=EXACT)


def test_sliding_window_counts_the_keys_that_a_query_sees():
    for window, sequence in ((1, 8), (3, 8), (8, 8), (20, 8)):
        model = gpt(sequence=sequence, attention_window=window)
        seen = [min(window, query + 0.5) for query in range(sequence)]  # a query sees half of itself
        assert float(attention(model, Strategy()).keys) == pytest.approx(float(np.mean(seen)), rel=EXACT)


def test_materialised_scores_are_computed_on_both_sides_of_the_diagonal():
    model = models.LLAMA3_8B
    flash, whole = (attention(model, Strategy(flash_attention=code)) for code in (1, 0))
    assert float(whole.keys) == float(model.sequence_length) == pytest.approx(2 * float(flash.keys))


# ---- shards sum to the whole

SHARDED = [name for name in MATMULS if name not in ("router", "query_key_value", "key_value_down")]


@pytest.mark.parametrize("name", ["llama3-70b", "gpt3-175b", "mixtral-8x7b", "deepseek-v3", "gshard-137b"])
@settings(max_examples=15)
@given(data=st.data())
def test_flop_of_tensor_context_and_expert_shards_sum_to_the_whole(name, data):
    model = models.NAMES[name]
    tensor = data.draw(st.sampled_from([1, 2, 4, 8]), label="tensor")
    context = data.draw(st.sampled_from([1, 2, 4]), label="context")
    replicas = data.draw(st.sampled_from([1, 2, 4]), label="data")
    expert = data.draw(st.sampled_from([e for e in (1, 2, 4, 8) if (context * replicas) % e == 0]), label="expert")
    sequence_parallel = data.draw(st.sampled_from([0, 1]), label="sequence_parallel")
    if float(model.num_experts) == 0:
        expert = 1
    strategy = Strategy(
        tensor_rows=tensor,
        context_parallel=context,
        data_parallel=replicas,
        expert_parallel=expert,
        sequence_parallel=sequence_parallel,
        micro_batch_size=2,
        global_batch_size=2 * replicas,
    )
    whole = product_flop(model, Strategy(micro_batch_size=2 * replicas))
    shards = tensor * context * replicas * product_flop(model, strategy)
    split = np.array([name in SHARDED for name in MATMULS])
    if float(model.kv_lora_rank) == 0:
        split[0] = True  # plain heads are split; a latent's down-projections see the residual stream
    split |= sequence_parallel == 1
    np.testing.assert_allclose(shards[split], whole[split], rtol=EXACT)
    np.testing.assert_allclose(shards[~split], tensor * whole[~split], rtol=EXACT)
    cores = tensor * context * replicas * core_flop(model, strategy)
    assert cores == pytest.approx(core_flop(model, Strategy(micro_batch_size=2 * replicas)), rel=EXACT)


@pytest.mark.parametrize("name", ["llama3-70b", "gpt3-175b", "mixtral-8x7b", "deepseek-v3"])
def test_parameters_of_tensor_and_expert_shards_sum_to_the_whole(name):
    model = models.NAMES[name]
    whole, shard = (parameters(model, s) for s in (Strategy(), Strategy(tensor_rows=8)))
    assert 8 * float(shard.mlp) == pytest.approx(float(whole.mlp), rel=EXACT)
    assert 8 * float(shard.experts) == pytest.approx(float(whole.experts), rel=EXACT)
    if float(model.kv_lora_rank) == 0:
        assert 8 * float(shard.attention) == pytest.approx(float(whole.attention), rel=EXACT)
    if float(model.num_experts):
        spread = parameters(model, Strategy(expert_parallel=4, data_parallel=4, global_batch_size=4))
        assert 4 * float(spread.experts) == pytest.approx(float(whole.experts), rel=EXACT)
        assert float(spread.attention) == pytest.approx(float(whole.attention), rel=EXACT)


def test_key_value_heads_are_repeated_where_the_group_has_more_members():
    model = replace(gpt(heads=8), num_kv_heads=2)
    query, head = float(model.hidden_size), float(model.head_dim)
    for tensor, kv_heads in ((1, 2), (2, 1), (4, 1), (8, 1)):
        cols = float(matmuls(model, Strategy(tensor_rows=tensor)).cols[0])
        assert cols == pytest.approx(query / tensor + 2 * kv_heads * head)


# ---- parameters

# Weights with norms, as counted from the safetensors of each repository on Hugging Face
PUBLISHED = [
    ("llama2-7b", 6_738_415_616, "meta-llama/Llama-2-7b-hf"),
    ("llama2-13b", 13_015_864_320, "meta-llama/Llama-2-13b-hf"),
    ("llama2-70b", 68_976_648_192, "meta-llama/Llama-2-70b-hf"),
    ("llama3-8b", 8_030_261_248, "meta-llama/Meta-Llama-3-8B"),
    ("llama3-70b", 70_553_706_496, "meta-llama/Meta-Llama-3-70B"),
    ("llama3-405b", 405_853_388_800, "meta-llama/Llama-3.1-405B"),
    ("mixtral-8x7b", 46_702_792_704, "mistralai/Mixtral-8x7B-v0.1"),
]


@pytest.mark.parametrize(("name", "count", "repository"), PUBLISHED)
def test_parameters_are_the_published_ones_to_the_last_but_for_the_norms(name, count, repository):
    model = models.NAMES[name]
    norms = (2 * float(model.num_layers) + 1) * float(model.hidden_size)
    assert float(num_parameters(model)) + norms == pytest.approx(count, rel=1e-12 if _double() else EXACT)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("gpt3-175b", 175), ("megatron-22b", 22), ("megatron-530b", 530), ("megatron-1t", 1008)]  # 2205.05198, Table 3
    + [("deepseek-v2", 236), ("deepseek-v3", 671), ("qwen3-32b", 32.8), ("gshard-137b", 137), ("llama2-30b", 32.5)],
)
def test_parameters_are_the_published_ones_rounded(name, billions):
    assert float(num_parameters(models.NAMES[name])) / 1e9 == pytest.approx(billions, rel=0.005)


def test_every_preset_is_compared_with_a_published_count():
    rounded = test_parameters_are_the_published_ones_rounded.pytestmark[0].args[1]
    assert {row[0] for row in [*PUBLISHED, *rounded]} == set(PRESETS)


@pytest.mark.parametrize(("name", "billions"), [("mixtral-8x7b", 12.9), ("deepseek-v3", 37)])
def test_active_parameters_are_the_published_ones(name, billions):
    # arXiv 2401.04088, section 1: 12.9 B; arXiv 2412.19437, abstract: 37 B; both count the embedding once
    model = models.NAMES[name]
    once = replace(model, num_experts=model.experts_per_token)
    router = float(layer_counts(model)[1] * model.hidden_size * (model.num_experts - model.experts_per_token))
    assert (float(num_parameters(once)) + router) / 1e9 == pytest.approx(billions, rel=0.02)


# ---- saved activations (Korthikanti et al., arXiv 2205.05198, Table 2)

SIZES = {
    "heads": st.sampled_from([8, 16, 64]),
    "head_dim": st.sampled_from([8, 80, 128]),
    "sequence": st.sampled_from([64, 1024, 4096]),
    "batch": st.integers(1, 8),
    "tensor": st.sampled_from([1, 2, 8]),
}


def kept(model, **changes):
    strategy = Strategy(global_batch_size=64, flash_attention=0, **changes)
    return float(kept_bytes(activations(model, strategy), strategy)[0])


@settings(max_examples=25)
@given(**SIZES)
def test_saved_activations_are_those_of_korthikanti(heads, head_dim, sequence, batch, tensor):
    model = gpt(heads=heads, head_dim=head_dim, sequence=sequence)
    hidden = heads * head_dim
    sbh, scores = sequence * batch * hidden, 5 * heads * sequence / hidden
    common = {"micro_batch_size": batch, "tensor_rows": tensor}
    for sequence_parallel, recompute, expected in (
        (0, 0, sbh * (10 + 24 / tensor + scores / tensor)),
        (1, 0, sbh / tensor * (34 + scores)),
        (0, SELECTIVE, sbh * (10 + 24 / tensor)),
        (1, SELECTIVE, sbh * 34 / tensor),
        (0, FULL, sbh * 2),
        (1, FULL, sbh * 2 / tensor),
    ):
        bytes_kept = kept(model, sequence_parallel=sequence_parallel, recompute=recompute, **common)
        assert bytes_kept == pytest.approx(expected, rel=EXACT)


def test_a_gpt_layer_keeps_34_sbh_and_5_as2b():
    model = gpt(heads=16, head_dim=64, sequence=512)
    assert kept(model) == pytest.approx(34 * 512 * 1024 + 5 * 16 * 512**2, rel=EXACT)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("flash", [0, 1])
@pytest.mark.parametrize("sequence_parallel", [0, 1])
def test_each_recomputation_level_keeps_no_more_than_the_one_before(name, flash, sequence_parallel):
    model = models.NAMES[name]
    strategy = Strategy(
        tensor_rows=4,
        flash_attention=flash,
        sequence_parallel=sequence_parallel,
        recompute=list(range(len(RECOMPUTE_LEVELS))),
    )
    inventory = activations(model, strategy)
    for layer in kept_bytes(inventory, strategy):
        layer = np.asarray(layer)
        assert (np.diff(layer) <= 0).all()
        assert layer[-1] == float(inventory.boundary) > 0
    assert all(float(size) >= 0 for size in jax.tree.leaves(inventory))


def test_context_parallelism_divides_saved_activations():
    for name in ("llama3-70b", "deepseek-v3"):
        model = models.NAMES[name]
        whole, half = (activations(model, Strategy(context_parallel=parts)) for parts in (1, 2))
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(half), strict=True):
            assert float(a) == pytest.approx(2 * float(b), rel=EXACT)


# ---- element-wise traffic and messages, by hand

LLAMA = models.LLAMA3_8B  # 8,192 tokens, hidden 4,096, inner 14,336, 32 heads and 8 key-value heads of 128


def test_elementwise_traffic_by_hand():
    traffic = elementwise(LLAMA, Strategy())
    stream = 2 * 8192 * 4096
    assert float(traffic.norms) == pytest.approx(2 * 2 * stream)  # twice: read, write
    assert float(traffic.residuals) == pytest.approx(2 * 3 * stream)  # twice: read two, write one
    assert float(traffic.rotary) == pytest.approx(2 * 2 * 8192 * (32 + 8) * 128)
    assert float(traffic.activation) == pytest.approx(3 * 2 * 8192 * 14336)  # gate and up read, one written
    assert float(traffic.loss) == pytest.approx(14 * 8192 * 128256)
    assert float(traffic.expert_activation) == 0


def test_messages_by_hand():
    for sequence_parallel, share in ((0, 1), (1, 4)):
        strategy = Strategy(tensor_rows=4, context_parallel=2, sequence_parallel=sequence_parallel)
        sizes = messages(LLAMA, strategy)
        stream = 2 * 4096 * 4096
        assert float(sizes.tensor) == pytest.approx(stream)
        assert float(sizes.pipeline) == pytest.approx(stream / share)
        assert float(sizes.context) == pytest.approx(2 * 4096 * 2 * 2 * 128)  # 2 of 8 heads, keys and values
        assert float(sizes.expert) == 0
    sizes = messages(models.DEEPSEEK_V3, Strategy(tensor_rows=2, sequence_parallel=1))
    assert float(sizes.expert) == pytest.approx(2 * 4096 * 7168 / 2 * 8)
    assert float(sizes.context) == pytest.approx(2 * 4096 * (512 + 64))  # the latent travels, not the heads


def test_capacity_factor_pads_what_experts_work_through_and_nothing_else():
    model, strategy = (
        models.DEEPSEEK_V3,
        Strategy(tensor_rows=2, expert_parallel=4, data_parallel=4, global_batch_size=4),
    )
    padded = replace(model, capacity_factor=1.5)
    rows = np.asarray(matmuls(padded, strategy).rows / matmuls(model, strategy).rows)
    expected = [1.5 if name in ("expert_up", "expert_down") else 1 for name in MATMULS]
    np.testing.assert_allclose(rows, expected, rtol=EXACT)
    for count, padded_names in ((messages, {"expert"}), (parameters, set()), (attention, set())):
        for name, one in vars(count(model, strategy)).items():
            factor = 1.5 if name in padded_names else 1
            assert float(getattr(count(padded, strategy), name)) == pytest.approx(factor * float(one), rel=EXACT)
    assert float(model_flop(padded, strategy)) == pytest.approx(float(model_flop(model, strategy)), rel=EXACT)
    # one shared expert beside the eight routed ones; gate, up and output of their activation, and of moved tokens two
    # copies each way
    grown = elementwise(padded, strategy).expert_activation - elementwise(model, strategy).expert_activation
    tokens = 4096 * 8 * 0.5
    assert float(grown) == pytest.approx(tokens * (2 * 3 * 2048 / 2 + 4 * 2 * 7168 / 2), rel=EXACT)
    for name, factor in (("expert_up", 0.5), ("expert_activation", 0.5)):
        more = float(getattr(activations(padded, strategy), name) / getattr(activations(model, strategy), name))
        assert 1 < more <= 1 + factor
    with pytest.raises(ValueError, match=r"Transformer.capacity_factor is 0.5: it must be at least 1"):
        replace(model, capacity_factor=0.5)


def test_every_leaf_is_linear_in_the_micro_batch():
    for model in (LLAMA, models.DEEPSEEK_V3):
        for count in (messages, elementwise, activations):
            one, three = (count(model, Strategy(micro_batch_size=b, global_batch_size=3)) for b in (1, 3))
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(three), strict=True):
                assert 3 * float(a) == pytest.approx(float(b), rel=EXACT)


def test_gradients_of_the_counts_are_finite_at_every_preset():
    def sizes(leaf, model):
        strategy = Strategy(tensor_rows=leaf, micro_batch_size=leaf, context_parallel=leaf)
        counts = activations(model, strategy), parameters(model, strategy), messages(model, strategy)
        return sum(jnp.sum(x) for x in jax.tree.leaves(counts))

    slope = jax.jit(jax.grad(sizes))
    for name in PRESETS:
        assert np.isfinite(float(slope(1.0, models.NAMES[name])))


def _double():
    return jax.config.jax_enable_x64
