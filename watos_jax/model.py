"""The transformer that is trained: its dimensions as one record, and the counts that follow from them."""

import equinox as eqx

from watos_jax.units import Leaf, as_leaf, check_range, concrete


class Transformer(eqx.Module):
    """A decoder-only transformer: dense or mixture of experts, multi-head, grouped-query or latent attention.

    Attributes:
        num_layers: transformer layers.
        hidden_size: width of the residual stream.
        ffn_hidden_size: inner width of the dense feed-forward block.
        num_attention_heads: query heads.
        num_kv_heads: key and value heads (equal to `num_attention_heads` without grouping).
        head_dim: width of one head's query and key, the rotary part included.
        sequence_length: tokens per training sequence.
        vocab_size: rows of the embedding table.
        gated_mlp: 1 if the feed-forward block has a gate (three matrices), 0 for two matrices.
        tied_embeddings: 1 if embedding and LM head share one table.
        learned_positions: 1 if positions are a learned table of `sequence_length` rows.
        dropout: 1 if dropout masks are kept for backward (GPT-3 era training), 0 if not.
        attention_window: keys that a query sees at most; 0 means all earlier ones.
        num_experts: routed experts per mixture layer; 0 for a dense model.
        experts_per_token: routed experts that each token visits.
        moe_ffn_hidden_size: inner width of one expert.
        num_shared_experts: experts that every token visits.
        num_dense_layers: leading layers without experts, in a mixture model.
        moe_layer_interval: after the leading ones, every how many layers one has experts (1: each).
        kv_lora_rank: width of the compressed keys and values of multi-head latent attention; 0 without it.
        q_lora_rank: width of the compressed queries; 0 if queries are not compressed.
        qk_rope_head_dim: rotary part of a head's query and key in latent attention; 0 without it.
        v_head_dim: width of a head's value where it differs from `head_dim`; 0 where it does not.
        capacity_factor: rows that every expert is given, over the mean number of tokens that visit one; what is beyond
            the tokens is padding that is sent, multiplied and kept like them. 1 is a perfect balance without padding.
    """

    num_layers: Leaf = eqx.field(converter=as_leaf)
    hidden_size: Leaf = eqx.field(converter=as_leaf)
    ffn_hidden_size: Leaf = eqx.field(converter=as_leaf)
    num_attention_heads: Leaf = eqx.field(converter=as_leaf)
    num_kv_heads: Leaf = eqx.field(converter=as_leaf)
    head_dim: Leaf = eqx.field(converter=as_leaf)
    sequence_length: Leaf = eqx.field(converter=as_leaf)
    vocab_size: Leaf = eqx.field(converter=as_leaf)
    gated_mlp: Leaf = eqx.field(converter=as_leaf, default=1.0)
    tied_embeddings: Leaf = eqx.field(converter=as_leaf, default=0.0)
    learned_positions: Leaf = eqx.field(converter=as_leaf, default=0.0)
    dropout: Leaf = eqx.field(converter=as_leaf, default=0.0)
    attention_window: Leaf = eqx.field(converter=as_leaf, default=0.0)
    num_experts: Leaf = eqx.field(converter=as_leaf, default=0.0)
    experts_per_token: Leaf = eqx.field(converter=as_leaf, default=0.0)
    moe_ffn_hidden_size: Leaf = eqx.field(converter=as_leaf, default=0.0)
    num_shared_experts: Leaf = eqx.field(converter=as_leaf, default=0.0)
    num_dense_layers: Leaf = eqx.field(converter=as_leaf, default=0.0)
    moe_layer_interval: Leaf = eqx.field(converter=as_leaf, default=1.0)
    kv_lora_rank: Leaf = eqx.field(converter=as_leaf, default=0.0)
    q_lora_rank: Leaf = eqx.field(converter=as_leaf, default=0.0)
    qk_rope_head_dim: Leaf = eqx.field(converter=as_leaf, default=0.0)
    v_head_dim: Leaf = eqx.field(converter=as_leaf, default=0.0)
    capacity_factor: Leaf = eqx.field(converter=as_leaf, default=1.0)

    def __check_init__(self) -> None:
        positive = (
            "num_layers hidden_size ffn_hidden_size num_attention_heads num_kv_heads head_dim "
            "sequence_length vocab_size moe_layer_interval"
        ).split()
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        check_range("Transformer", {name: values[name] for name in positive}, low=1.0, integral=True)
        check_range("Transformer", {"capacity_factor": values.pop("capacity_factor")}, low=1.0)
        check_range("Transformer", values, integral=True)
        for name, limit in (("num_dense_layers", "num_layers"), ("experts_per_token", "num_experts")):
            value, most = concrete(values[name]), concrete(values[limit])
            if value is not None and most is not None and (value > most).any():
                raise ValueError(
                    f"Transformer.{name} is {float(value.max()):g}: it must be at most {limit} ({float(most.min()):g})"
                )

    @property
    def is_latent_attention(self) -> bool:
        """Whether keys and values are compressed (multi-head latent attention); for concrete records."""
        return bool(self.kv_lora_rank > 0)
