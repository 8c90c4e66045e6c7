"""How Hugging Face architectures spell the fields of a `Transformer`: one table, and the fields that need more.

Adding an architecture adds a row to `FAMILIES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from watos_jax.formats._fields import Fields

# ---- defaults and parts that are more than a key


def _same_as(key: str) -> Callable[[Fields], int]:
    return lambda fields: fields.whole(key)


def _four_times(key: str) -> Callable[[Fields], int]:
    return lambda fields: 4 * fields.whole(key)


def _split(width_key: str, heads_key: str) -> Callable[[Fields], int]:
    def head_dim(fields: Fields) -> int:
        width, heads = fields.whole(width_key), fields.whole(heads_key)
        if width % heads:
            raise fields.refuse(width_key, f"a multiple of {heads_key}, {heads}, where no head_dim is given")
        return width // heads

    return head_dim


def _window(default: int) -> Callable[[Fields], dict[str, int]]:
    # null switches the window off, and only a missing key takes the library's default
    def part(fields: Fields) -> dict[str, int]:
        is_missing = "sliding_window" not in fields.config
        return {"attention_window": fields.whole("sliding_window", default if is_missing else 0, least=0)}

    return part


def _qwen_window(fields: Fields) -> dict[str, int]:
    if not fields.flag("use_sliding_window", False):
        return {}
    window = fields.whole("sliding_window", 4096)
    num_full = fields.whole("max_window_layers", 28, least=0)  # the first layers see everything
    num_layers = fields.whole("num_hidden_layers")
    if 0 < num_full < num_layers:
        rule = f"0 or at least num_hidden_layers, {num_layers}, so that all layers see the same window"
        raise fields.refuse("max_window_layers", rule)
    return {"attention_window": 0 if num_full else window}


def _qwen_dense_layers(fields: Fields) -> dict[str, int]:
    layers = fields.config.get("mlp_only_layers")
    layers = [] if layers is None else layers
    interval = fields.whole("decoder_sparse_step", 1)
    is_list = isinstance(layers, list) and all(type(layer) is int for layer in layers)
    if not is_list or sorted(layers) != list(range(len(layers))) or (layers and interval > 1):
        rule = "a list of the first layers, empty where decoder_sparse_step is above 1"
        raise fields.refuse("mlp_only_layers", rule)
    return {"num_dense_layers": len(layers)}


def _qwen_shared_expert(fields: Fields) -> dict[str, int]:
    width = fields.whole("moe_intermediate_size")
    shared = fields.whole("shared_expert_intermediate_size", least=0)
    if shared % width:
        raise fields.refuse("shared_expert_intermediate_size", f"a multiple of moe_intermediate_size, {width}")
    return {"num_shared_experts": shared // width}


def _deepseek_experts(fields: Fields) -> dict[str, int]:
    num_experts = fields.whole_or_null("n_routed_experts")
    if not num_experts:
        return {}
    num_layers = fields.whole("num_hidden_layers")
    num_dense = fields.whole("first_k_dense_replace", least=0)
    interval = fields.whole("moe_layer_freq", 1)
    # the library counts multiples of the interval from layer 0, a `Transformer` from the first mixture layer
    num_multiples = -(-num_layers // interval) + (-num_dense // interval)
    if num_multiples != (num_layers - num_dense) // interval:
        raise fields.refuse("moe_layer_freq", "1, or divide the layers after first_k_dense_replace evenly")
    return {
        "num_experts": num_experts,
        "experts_per_token": fields.whole("num_experts_per_tok"),
        "moe_ffn_hidden_size": fields.whole("moe_intermediate_size"),
        "num_shared_experts": fields.whole_or_null("n_shared_experts"),
        "num_dense_layers": num_dense,
        "moe_layer_interval": interval,
    }


def _latent_attention(fields: Fields) -> dict[str, int]:
    rope = fields.whole("qk_rope_head_dim")
    return {
        "num_kv_heads": fields.whole("num_attention_heads"),
        "head_dim": fields.whole("qk_nope_head_dim") + rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": fields.whole("v_head_dim"),
        "kv_lora_rank": fields.whole("kv_lora_rank"),
        "q_lora_rank": fields.whole_or_null("q_lora_rank"),
    }


# ---- the table


@dataclass(frozen=True)
class Family:
    """How one architecture spells the fields of a `Transformer`.

    Attributes:
        architectures: class names, for configurations whose `model_type` is their own.
        keys: configuration key of each field, with a default for a missing or null key where there is one.
        positions: key of the longest context.
        parts: functions of the configuration that give the remaining fields.
        constants: fields that the architecture fixes.
        is_tied: whether embedding and LM head share a table where `tie_word_embeddings` is missing.
        dropouts: keys of dropout probabilities, with their defaults.
    """

    architectures: tuple[str, ...]
    keys: Mapping[str, tuple[Any, ...]]
    positions: str = "max_position_embeddings"
    parts: tuple[Callable[[Fields], dict[str, int]], ...] = ()
    constants: Mapping[str, int] = field(default_factory=dict)
    is_tied: bool = False
    dropouts: Mapping[str, float] = field(default_factory=lambda: {"attention_dropout": 0.0})


_BASE: Final = {
    "num_layers": ("num_hidden_layers",),
    "hidden_size": ("hidden_size",),
    "ffn_hidden_size": ("intermediate_size",),
    "num_attention_heads": ("num_attention_heads",),
    "vocab_size": ("vocab_size",),
}
_GROUPED: Final = _BASE | {
    "num_kv_heads": ("num_key_value_heads", _same_as("num_attention_heads")),
    "head_dim": ("head_dim", _split("hidden_size", "num_attention_heads")),
}
_EXPERTS: Final = {
    "num_experts": ("num_experts",),
    "experts_per_token": ("num_experts_per_tok",),
    "moe_ffn_hidden_size": ("moe_intermediate_size",),
    "moe_layer_interval": ("decoder_sparse_step", 1),
}
_GPT2: Final = {
    "num_layers": ("n_layer",),
    "hidden_size": ("n_embd",),
    "ffn_hidden_size": ("n_inner", _four_times("n_embd")),
    "num_attention_heads": ("n_head",),
    "num_kv_heads": ("n_head",),
    "head_dim": ("head_dim", _split("n_embd", "n_head")),
    "vocab_size": ("vocab_size",),
}
_NEOX: Final = _BASE | {
    "num_kv_heads": ("num_attention_heads",),
    "head_dim": ("head_dim", _split("hidden_size", "num_attention_heads")),
}
_MIXTRAL: Final = _GROUPED | {
    "num_experts": ("num_local_experts",),
    "experts_per_token": ("num_experts_per_tok",),
    "moe_ffn_hidden_size": ("intermediate_size",),
}

FAMILIES: Final[dict[str, Family]] = {
    "llama": Family(("LlamaForCausalLM",), _GROUPED),
    "mistral": Family(("MistralForCausalLM",), _GROUPED, parts=(_window(4096),)),
    "mixtral": Family(("MixtralForCausalLM",), _MIXTRAL, parts=(_window(0),)),
    "qwen2": Family(("Qwen2ForCausalLM",), _GROUPED, parts=(_qwen_window,)),
    "qwen2_moe": Family(
        ("Qwen2MoeForCausalLM",),
        _GROUPED | _EXPERTS,
        parts=(_qwen_window, _qwen_dense_layers, _qwen_shared_expert),
    ),
    "qwen3": Family(("Qwen3ForCausalLM",), _GROUPED | {"head_dim": ("head_dim", 128)}, parts=(_qwen_window,)),
    "qwen3_moe": Family(("Qwen3MoeForCausalLM",), _GROUPED | _EXPERTS, parts=(_qwen_window, _qwen_dense_layers)),
    "gpt2": Family(
        ("GPT2LMHeadModel",),
        _GPT2,
        positions="n_positions",
        constants={"gated_mlp": 0, "learned_positions": 1},
        is_tied=True,
        dropouts={"resid_pdrop": 0.1, "attn_pdrop": 0.1},
    ),
    "gpt_neox": Family(
        ("GPTNeoXForCausalLM",),
        _NEOX,
        constants={"gated_mlp": 0},
        dropouts={"hidden_dropout": 0.0, "attention_dropout": 0.0},
    ),
    "deepseek": Family(("DeepseekForCausalLM",), _GROUPED, parts=(_deepseek_experts,)),
    "deepseek_v2": Family(("DeepseekV2ForCausalLM",), _BASE, parts=(_latent_attention, _deepseek_experts)),
    "deepseek_v3": Family(("DeepseekV3ForCausalLM",), _BASE, parts=(_latent_attention, _deepseek_experts)),
    "gemma": Family(("GemmaForCausalLM",), _GROUPED | {"head_dim": ("head_dim", 256)}, is_tied=True),
    "phi3": Family(
        ("Phi3ForCausalLM",),
        _GROUPED,
        parts=(_window(0),),
        dropouts={"resid_pdrop": 0.0, "attention_dropout": 0.0},
    ),
    "olmo2": Family(("Olmo2ForCausalLM",), _GROUPED),
}
"""Known architectures by `model_type`, with the spelling and defaults of `configuration_*.py` in
`transformers`."""
