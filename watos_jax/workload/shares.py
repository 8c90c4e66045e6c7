"""Counts that the whole workload is written in: tokens, heads and shares of one device, layers of each kind."""

from typing import Final

import jax.numpy as jnp

from watos_jax.model import Transformer
from watos_jax.strategy import Strategy
from watos_jax.units import Scalar

ELEMENT_BYTES: Final = 2.0
"""Bytes of a weight or activation in 16-bit training."""


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


def stream_share(strategy: Strategy) -> Scalar:
    """Share of a micro-batch's residual stream on one device: 1 / tensor_parallel under sequence parallelism."""
    sharded = strategy.sequence_parallel
    return sharded / strategy.tensor_parallel + (1.0 - sharded)


def expert_rows(model: Transformer) -> Scalar:
    """Rows that one token makes the experts of a mixture layer work through, padding included."""
    return model.experts_per_token * model.capacity_factor


def layer_counts(model: Transformer) -> tuple[Scalar, Scalar]:
    """Numbers of dense and of mixture layers."""
    has_experts = jnp.where(model.num_experts > 0, 1.0, 0.0)
    mixture = has_experts * jnp.floor((model.num_layers - model.num_dense_layers) / model.moe_layer_interval)
    return model.num_layers - mixture, mixture


def mean_keys(model: Transformer) -> Scalar:
    """Keys that a causal query sees on average: `w (1 - w / 2 s)` for window w (or the whole sequence: s / 2)."""
    window = jnp.where(model.attention_window > 0, model.attention_window, model.sequence_length)
    window = jnp.where(window < model.sequence_length, window, model.sequence_length)
    return window * (1.0 - window / (2.0 * model.sequence_length))
