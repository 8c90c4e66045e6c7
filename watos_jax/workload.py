"""What one device computes and keeps for one micro-batch: operator shapes, parameters, saved activations.

A layer is attention (grouped-query or latent) and a feed-forward block (dense, or router and experts). Tensor
parallelism splits heads and inner widths, sequence parallelism the norms and residuals, context parallelism the
tokens, expert parallelism the experts. Weights and activations take 2 bytes per element.

Neglects: biases and norm parameters (below 0.1 % of the weights), dropout's random numbers, imbalance between
experts (each receives the mean number of tokens), the imbalance of causal attention between context parts.
"""

from typing import Final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from watos_jax.model import Transformer
from watos_jax.strategy import Strategy
from watos_jax.units import Scalar
from watos_jax.xla import fence

ELEMENT_BYTES: Final = 2.0
"""Bytes of a weight or activation in 16-bit training."""
MATMULS: Final = (
    "query_key_value",
    "query_up",
    "key_value_down",
    "key_value_up",
    "attention_output",
    "mlp_up",
    "mlp_down",
    "router",
    "expert_up",
    "expert_down",
    "shared_up",
    "shared_down",
    "head",
)
"""The matrix products of a model, in the order of the arrays of `Matmuls`; absent ones have size zero."""


class Matmuls(eqx.Module):
    """Products of a (rows x depth) activation with a (depth x cols) weight, one entry per name in `MATMULS`.

    Attributes:
        rows: tokens, shape (ops,).
        cols: output width, shape (ops,).
        depth: input width, shape (ops,).
        count: how many such products, shape (ops,).
    """

    rows: Float[Array, " ops"]
    cols: Float[Array, " ops"]
    depth: Float[Array, " ops"]
    count: Float[Array, " ops"]


class Attention(eqx.Module):
    """The attention core of one layer on one device.

    Attributes:
        queries: tokens that ask.
        keys: mean number of keys that one query's products touch (halved by causality where scores stay on chip).
        key_tokens: tokens whose keys and values are read; all parts of the sequence under context parallelism.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of query and key.
        value_dim: width of value.
        sequence: length of one sequence, for the utilisation curve.
        materialised: 1 if scores are written to DRAM.
    """

    queries: Scalar
    keys: Scalar
    key_tokens: Scalar
    heads: Scalar
    kv_heads: Scalar
    head_dim: Scalar
    value_dim: Scalar
    sequence: Scalar
    materialised: Scalar


class Elementwise(eqx.Module):
    """DRAM bytes of the forward pass of everything that is no product.

    Attributes:
        norms: both norms of a layer.
        rotary: rotary positions on queries and keys.
        residuals: both residual additions of a layer.
        activation: activation function of the dense feed-forward block.
        expert_activation: activation function of the experts, with dispatch and combine of tokens.
        loss: cross entropy over the vocabulary, forward and backward.
    """

    norms: Scalar
    rotary: Scalar
    residuals: Scalar
    activation: Scalar
    expert_activation: Scalar
    loss: Scalar


class Parameters(eqx.Module):
    """Weights that one device holds.

    Attributes:
        attention: of one layer's attention.
        mlp: of one dense feed-forward block.
        router_and_shared: of one mixture layer, outside the routed experts.
        experts: of one mixture layer's routed experts.
        embedding: of the embedding table (or LM head).
        positions: of the learned table of positions.
    """

    attention: Scalar
    mlp: Scalar
    router_and_shared: Scalar
    experts: Scalar
    embedding: Scalar
    positions: Scalar


class Activations(eqx.Module):
    """Bytes kept from forward to backward for one micro-batch and layer, in the order that recomputation frees them.

    Attributes:
        boundary: the layer's input; always kept.
        always: what every level but "full" keeps: residual stream and masks.
        scores: attention probabilities (materialised) or their row sums (flash).
        norms: outputs of the norms.
        activation: output of the activation function, dense layer.
        up: output of the first feed-forward product, dense layer.
        expert_activation: output of the activation function, mixture layer.
        expert_up: first product's output and dispatched tokens, mixture layer.
        projections: queries, keys and values.
        attention_output: input of the output projection.
    """

    boundary: Scalar
    always: Scalar
    scores: Scalar
    norms: Scalar
    activation: Scalar
    up: Scalar
    expert_activation: Scalar
    expert_up: Scalar
    projections: Scalar
    attention_output: Scalar


class Messages(eqx.Module):
    """Bytes that one device hands to the network for one micro-batch.

    Attributes:
        tensor: buffer of one tensor-parallel all-reduce; a layer makes two forward and two backward.
        pipeline: activations sent to the next stage.
        context: keys and values passed on in one step of the context ring.
        expert: buffer of one all-to-all; a mixture layer makes two forward and two backward.
    """

    tensor: Scalar
    pipeline: Scalar
    context: Scalar
    expert: Scalar


def micro_batch_tokens(model: Transformer, strategy: Strategy) -> Scalar:
    """Tokens of one micro-batch that one device sees: `micro_batch_size sequence_length / context_parallel`."""
    return strategy.micro_batch_size * model.sequence_length / strategy.context_parallel


def value_dim(model: Transformer) -> Scalar:
    """Width of one head's value."""
    return jnp.where(model.v_head_dim > 0, model.v_head_dim, model.head_dim)


def kv_heads_per_device(model: Transformer, strategy: Strategy) -> Scalar:
    """Key and value heads on one device; a head is repeated where the tensor group has more members than heads."""
    share = model.num_kv_heads / strategy.tensor_parallel
    return jnp.where(share >= 1.0, share, 1.0)


def matmuls(model: Transformer, strategy: Strategy) -> Matmuls:
    """Shapes of all products of one micro-batch on one device.

    Args:
        model: the transformer.
        strategy: how it is spread.

    Returns:
        Arrays of shape (len(MATMULS),).
    """
    tokens = micro_batch_tokens(model, strategy)
    t = strategy.tensor_parallel
    latent = jnp.where(model.kv_lora_rank > 0, 1.0, 0.0)
    compressed_query = jnp.where(model.q_lora_rank > 0, 1.0, 0.0)
    query = model.num_attention_heads * model.head_dim / t
    values = model.num_attention_heads * value_dim(model) / t
    key_value = kv_heads_per_device(model, strategy) * (model.head_dim + value_dim(model))
    nope = model.num_attention_heads * (model.head_dim - model.qk_rope_head_dim) / t
    latent_first = jnp.where(model.q_lora_rank > 0, model.q_lora_rank, query)
    first = (1.0 - latent) * (query + key_value) + latent * latent_first
    matrices = 1.0 + model.gated_mlp
    has_experts = jnp.where(model.num_experts > 0, 1.0, 0.0)
    local_experts = model.num_experts / strategy.expert_parallel
    routed = has_experts * tokens * model.experts_per_token / jnp.where(local_experts > 0, local_experts, 1.0)
    inner = model.ffn_hidden_size / t
    expert_inner = model.moe_ffn_hidden_size / t
    shared_inner = model.num_shared_experts * expert_inner
    hidden, one = model.hidden_size + 0.0 * tokens, 1.0 + 0.0 * tokens
    computed = (tokens, query, values, nope, first, has_experts * tokens, latent * tokens, routed, local_experts)
    tokens, query, values, nope, first, mixed, compressed, routed, local_experts = fence(computed, t)
    inner, expert_inner, shared_inner = fence((inner, expert_inner, shared_inner), t)
    rows_cols_depth_count = (
        (tokens, first, hidden, one),
        (compressed_query * compressed, query, model.q_lora_rank, one),
        (compressed, model.kv_lora_rank + model.qk_rope_head_dim, hidden, one),
        (compressed, nope + values, model.kv_lora_rank, one),
        (tokens, hidden, values, one),
        (tokens, matrices * inner, hidden, one),
        (tokens, hidden, inner, one),
        (mixed, model.num_experts, hidden, one),
        (routed, matrices * expert_inner, hidden, local_experts),
        (routed, hidden, expert_inner, local_experts),
        (mixed, matrices * shared_inner, hidden, one),
        (mixed, hidden, shared_inner, one),
        (tokens, model.vocab_size / t, hidden, one),
    )
    columns = zip(*rows_cols_depth_count, strict=True)
    return Matmuls(*(jnp.stack(jnp.broadcast_arrays(*column)) for column in columns))


def mean_keys(model: Transformer) -> Scalar:
    """Keys that a causal query sees on average: `w (1 - w / 2 s)` for window w (or the whole sequence: s / 2)."""
    window = jnp.where(model.attention_window > 0, model.attention_window, model.sequence_length)
    window = jnp.where(window < model.sequence_length, window, model.sequence_length)
    return window * (1.0 - window / (2.0 * model.sequence_length))


def attention(model: Transformer, strategy: Strategy) -> Attention:
    """The attention core of one layer; materialised kernels compute the masked half too."""
    flash = strategy.flash_attention
    return Attention(
        queries=micro_batch_tokens(model, strategy),
        key_tokens=strategy.micro_batch_size * model.sequence_length,
        keys=flash * mean_keys(model) + (1.0 - flash) * model.sequence_length,
        heads=model.num_attention_heads / strategy.tensor_parallel,
        kv_heads=jnp.where(
            model.kv_lora_rank > 0,
            model.num_attention_heads / strategy.tensor_parallel,
            kv_heads_per_device(model, strategy),
        ),
        head_dim=model.head_dim,
        value_dim=value_dim(model),
        sequence=model.sequence_length,
        materialised=1.0 - flash,
    )


def elementwise(model: Transformer, strategy: Strategy) -> Elementwise:
    """DRAM bytes of norms, residuals, rotary positions, activation functions and loss, each operator unfused."""
    tokens = micro_batch_tokens(model, strategy)
    t = strategy.tensor_parallel
    stream = ELEMENT_BYTES * tokens * model.hidden_size * stream_share(strategy)
    heads = (model.num_attention_heads / t + kv_heads_per_device(model, strategy)) * model.head_dim
    touched = 2.0 + model.gated_mlp
    inner = ELEMENT_BYTES * tokens * touched / t
    routed = model.experts_per_token * model.moe_ffn_hidden_size
    shared = model.num_shared_experts * model.moe_ffn_hidden_size
    permuted = 4.0 * ELEMENT_BYTES * tokens * model.experts_per_token * model.hidden_size * stream_share(strategy)
    return Elementwise(
        norms=2.0 * 2.0 * stream,
        rotary=(1.0 - model.learned_positions) * 2.0 * ELEMENT_BYTES * tokens * heads,
        residuals=2.0 * 3.0 * stream,
        activation=inner * model.ffn_hidden_size,
        expert_activation=inner * (routed + shared) + permuted,
        loss=LOSS_BYTES * tokens * model.vocab_size / t,
    )


LOSS_BYTES: Final = 14.0
"""Bytes of DRAM per logit: 2 written and 2 read, 4 written and 4 read in 32 bits, 2 written as gradient."""


def stream_share(strategy: Strategy) -> Scalar:
    """Share of a micro-batch's residual stream on one device: 1 / tensor_parallel under sequence parallelism."""
    sharded = strategy.sequence_parallel
    return sharded / strategy.tensor_parallel + (1.0 - sharded)


def parameters(model: Transformer, strategy: Strategy) -> Parameters:
    """Weights per device, by kind.

    Args:
        model: the transformer.
        strategy: how it is spread (before any sharding over data-parallel replicas).

    Returns:
        Counts of elements.
    """
    t = strategy.tensor_parallel
    hidden = model.hidden_size
    shapes = matmuls(model, strategy)
    weights = shapes.cols * shapes.depth * jnp.where(shapes.rows > 0, 1.0, 0.0) * shapes.count
    matrices = 2.0 + model.gated_mlp
    return Parameters(
        attention=jnp.sum(weights[:5]),
        mlp=matrices * hidden * model.ffn_hidden_size / t,
        router_and_shared=weights[7] + weights[10] + weights[11],
        experts=weights[8] + weights[9],
        embedding=model.vocab_size * hidden / t,
        positions=model.learned_positions * model.sequence_length * hidden,
    )


def activations(model: Transformer, strategy: Strategy) -> Activations:
    """Bytes kept per layer and micro-batch, the inventory from which every recomputation level follows.

    A GPT layer without tensor parallelism keeps `34 s b h + 5 a s^2 b` bytes, as in Korthikanti et al.,
    arXiv 2205.05198, Table 2 (s sequence, b micro-batch, h hidden, a heads).
    """
    tokens = micro_batch_tokens(model, strategy)
    t = strategy.tensor_parallel
    stream = tokens * model.hidden_size * stream_share(strategy)
    heads = model.num_attention_heads / t
    core = attention(model, strategy)
    latent = jnp.where(model.kv_lora_rank > 0, 1.0, 0.0)
    compressed = latent * tokens * (model.q_lora_rank + model.kv_lora_rank + model.qk_rope_head_dim)
    flash = strategy.flash_attention
    probabilities = ELEMENT_BYTES + model.dropout * (1.0 + ELEMENT_BYTES)
    matrices = 1.0 + model.gated_mlp
    inner = ELEMENT_BYTES * tokens / t
    routed = model.experts_per_token * model.moe_ffn_hidden_size
    shared = model.num_shared_experts * model.moe_ffn_hidden_size
    dispatched = ELEMENT_BYTES * tokens * model.experts_per_token * model.hidden_size * stream_share(strategy)
    return Activations(
        boundary=ELEMENT_BYTES * stream,
        always=(ELEMENT_BYTES + 2.0 * model.dropout) * stream,
        scores=(1.0 - flash) * probabilities * heads * tokens * model.sequence_length + flash * 4.0 * heads * tokens,
        norms=2.0 * ELEMENT_BYTES * stream,
        activation=inner * model.ffn_hidden_size,
        up=inner * matrices * model.ffn_hidden_size,
        expert_activation=inner * (routed + shared),
        expert_up=inner * matrices * (routed + shared) + dispatched,
        projections=ELEMENT_BYTES
        * (tokens * (heads * core.head_dim + core.kv_heads * (core.head_dim + core.value_dim)) + compressed),
        attention_output=ELEMENT_BYTES * tokens * heads * core.value_dim,
    )


def messages(model: Transformer, strategy: Strategy) -> Messages:
    """Bytes of each collective of one micro-batch.

    Args:
        model: the transformer.
        strategy: how it is spread.
    """
    tokens = micro_batch_tokens(model, strategy)
    width = kv_heads_per_device(model, strategy) * (model.head_dim + value_dim(model))
    width = jnp.where(model.kv_lora_rank > 0, model.kv_lora_rank + model.qk_rope_head_dim, width)
    stream = ELEMENT_BYTES * tokens * model.hidden_size
    return Messages(
        tensor=stream,
        pipeline=stream * stream_share(strategy),
        context=ELEMENT_BYTES * tokens * width,
        expert=stream * stream_share(strategy) * model.experts_per_token,
    )


def num_parameters(model: Transformer) -> Scalar:
    """Weights of the whole model, without biases and norm parameters."""
    per_device = parameters(model, Strategy())
    dense, mixture = layer_counts(model)
    tables = 2.0 - model.tied_embeddings
    return (
        model.num_layers * per_device.attention
        + dense * per_device.mlp
        + mixture * (per_device.router_and_shared + per_device.experts)
        + tables * model.vocab_size * model.hidden_size
        + model.learned_positions * model.sequence_length * model.hidden_size
    )


def layer_counts(model: Transformer) -> tuple[Scalar, Scalar]:
    """Numbers of dense and of mixture layers."""
    has_experts = jnp.where(model.num_experts > 0, 1.0, 0.0)
    mixture = has_experts * jnp.floor((model.num_layers - model.num_dense_layers) / model.moe_layer_interval)
    return model.num_layers - mixture, mixture


def parameters_per_pipeline(model: Transformer, strategy: Strategy) -> tuple[Scalar, Scalar]:
    """Weights on all stages of one pipeline, per device of a tensor group: replicated ones, and routed experts."""
    per_device = parameters(model, strategy)
    dense, mixture = layer_counts(model)
    tables = 2.0 - model.tied_embeddings * jnp.where(strategy.pipeline_parallel > 1.0, 0.0, 1.0)
    layers = model.num_layers * per_device.attention + dense * per_device.mlp + mixture * per_device.router_and_shared
    return layers + tables * per_device.embedding + per_device.positions, mixture * per_device.experts


def model_flop(model: Transformer, strategy: Strategy) -> Scalar:
    """FLOP per optimizer step that the mathematics needs, for the model FLOP utilisation.

    `3 * 2 * (weights touched per token) * tokens + 3 * 2 * layers * tokens * keys * heads * (head_dim + value_dim)`:
    forward, input gradient and weight gradient of every product, LM head included, embedding lookup excluded;
    attention with causal halving; no recomputation.
    """
    shapes = matmuls(model, Strategy())
    per_token = 2.0 * shapes.rows * shapes.cols * shapes.depth * shapes.count / model.sequence_length
    dense, mixture = layer_counts(model)
    weights = (
        model.num_layers * jnp.sum(per_token[:5])
        + dense * jnp.sum(per_token[5:7])
        + mixture * jnp.sum(per_token[7:12])
        + per_token[12]
    )
    width = model.num_attention_heads * (model.head_dim + value_dim(model))
    core = 2.0 * model.num_layers * mean_keys(model) * width
    return 3.0 * (weights + core) * strategy.global_batch_size * model.sequence_length
