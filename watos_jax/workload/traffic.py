"""Everything of a micro-batch on one device that is no matrix product: attention cores, traffic, activations, messages.

Neglects: dropout's random numbers, the imbalance of causal attention between context parts.
"""

from typing import Final

import equinox as eqx
import jax.numpy as jnp

from watos_jax.model import Transformer
from watos_jax.strategy import Strategy
from watos_jax.units import Scalar
from watos_jax.workload.shares import (
    ELEMENT_BYTES,
    expert_rows,
    kv_heads_per_device,
    mean_keys,
    micro_batch_tokens,
    stream_share,
    value_dim,
)

LOSS_BYTES: Final = 14.0
"""Bytes of DRAM per logit: 2 written and 2 read, 4 written and 4 read in 32 bits, 2 written as gradient."""


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
        projections: queries, keys and values; values are part of one product with what rotary positions make copies
            of, which is kept with them: queries and keys, or the keys of latent attention without their rotary part.
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
    routed = expert_rows(model) * model.moe_ffn_hidden_size
    shared = model.num_shared_experts * model.moe_ffn_hidden_size
    permuted = 4.0 * ELEMENT_BYTES * tokens * expert_rows(model) * model.hidden_size * stream_share(strategy)
    return Elementwise(
        norms=2.0 * 2.0 * stream,
        rotary=(1.0 - model.learned_positions) * 2.0 * ELEMENT_BYTES * tokens * heads,
        residuals=2.0 * 3.0 * stream,
        activation=inner * model.ffn_hidden_size,
        expert_activation=inner * (routed + shared) + permuted,
        loss=LOSS_BYTES * tokens * model.vocab_size / t,
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
    # values are a view of one product with what rotary positions copy
    latent_copy = heads * (model.head_dim - model.qk_rope_head_dim)
    copied = (heads + core.kv_heads) * model.head_dim * (1.0 - model.learned_positions)
    copied = latent * latent_copy + (1.0 - latent) * copied
    flash = strategy.flash_attention
    probabilities = ELEMENT_BYTES + model.dropout * (1.0 + ELEMENT_BYTES)
    matrices = 1.0 + model.gated_mlp
    inner = ELEMENT_BYTES * tokens / t
    routed = expert_rows(model) * model.moe_ffn_hidden_size
    shared = model.num_shared_experts * model.moe_ffn_hidden_size
    dispatched = ELEMENT_BYTES * tokens * expert_rows(model) * model.hidden_size * stream_share(strategy)
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
        * (tokens * (heads * core.head_dim + core.kv_heads * (core.head_dim + core.value_dim) + copied) + compressed),
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
        expert=stream * stream_share(strategy) * expert_rows(model),
    )
