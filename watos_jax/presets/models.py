"""Models: dimensions as published, and the training sequence length, which is part of the workload."""

from dataclasses import replace
from typing import Final

from watos_jax.model import Transformer
from watos_jax.presets._registry import collect, find

LLAMA2_7B: Final = Transformer(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=11008,
    num_attention_heads=32,
    num_kv_heads=32,
    head_dim=128,
    sequence_length=4096,
    vocab_size=32000,
)
"""Llama 2 7B, 6.74 B parameters (arXiv 2307.09288, table 1; meta-llama/Llama-2-7b-hf config.json)."""

LLAMA2_13B: Final = replace(
    LLAMA2_7B, num_layers=40, hidden_size=5120, ffn_hidden_size=13824, num_attention_heads=40, num_kv_heads=40
)
"""Llama 2 13B, 13.02 B parameters (arXiv 2307.09288, table 1; meta-llama/Llama-2-13b-hf config.json)."""

LLAMA2_30B: Final = replace(
    LLAMA2_7B, num_layers=60, hidden_size=6656, ffn_hidden_size=17920, num_attention_heads=52, num_kv_heads=52
)
"""OURS: the "Llama2-30B" of WATOS (arXiv 2512.12279) was never released; the dimensions are those of LLaMA 30B
(arXiv 2302.13971, table 2), 32.5 B parameters, with the sequence length of Llama 2."""

LLAMA2_70B: Final = replace(
    LLAMA2_7B, num_layers=80, hidden_size=8192, ffn_hidden_size=28672, num_attention_heads=64, num_kv_heads=8
)
"""Llama 2 70B, 68.98 B parameters (arXiv 2307.09288, table 1; meta-llama/Llama-2-70b-hf config.json)."""

LLAMA3_8B: Final = Transformer(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=14336,
    num_attention_heads=32,
    num_kv_heads=8,
    head_dim=128,
    sequence_length=8192,
    vocab_size=128256,
)
"""Llama 3 8B, 8.03 B parameters (arXiv 2407.21783, table 3, pre-training at 8,192 tokens in section 3.4)."""

LLAMA3_70B: Final = replace(
    LLAMA3_8B, num_layers=80, hidden_size=8192, ffn_hidden_size=28672, num_attention_heads=64, num_kv_heads=8
)
"""Llama 3 70B, 70.6 B parameters (arXiv 2407.21783, table 3)."""

LLAMA3_405B: Final = replace(
    LLAMA3_8B, num_layers=126, hidden_size=16384, ffn_hidden_size=53248, num_attention_heads=128, num_kv_heads=8
)
"""Llama 3 405B, 405.9 B parameters (arXiv 2407.21783, table 3)."""

GPT3_175B: Final = Transformer(
    num_layers=96,
    hidden_size=12288,
    ffn_hidden_size=49152,
    num_attention_heads=96,
    num_kv_heads=96,
    head_dim=128,
    sequence_length=2048,
    vocab_size=51200,
    gated_mlp=0,
    tied_embeddings=1,
    learned_positions=1,
    dropout=1,
)
"""GPT-3 175B (arXiv 2005.14165, table 2.1), with the vocabulary of 50,257 padded to 51,200 as Megatron does."""

MEGATRON_22B: Final = replace(
    GPT3_175B,
    num_layers=48,
    hidden_size=6144,
    ffn_hidden_size=24576,
    num_attention_heads=64,
    num_kv_heads=64,
    head_dim=96,
)
"""The 22B model of Korthikanti et al. (arXiv 2205.05198, table 3): 48 layers, 6,144, 64 heads, sequence 2,048,
vocabulary 51,200."""

MEGATRON_530B: Final = replace(
    GPT3_175B,
    num_layers=105,
    hidden_size=20480,
    ffn_hidden_size=81920,
    num_attention_heads=128,
    num_kv_heads=128,
    head_dim=160,
)
"""The 530B model, MT-NLG (arXiv 2205.05198, table 3; arXiv 2201.11990): 105 layers, 20,480, 128 heads."""

MEGATRON_1T: Final = replace(
    GPT3_175B,
    num_layers=128,
    hidden_size=25600,
    ffn_hidden_size=102400,
    num_attention_heads=160,
    num_kv_heads=160,
    head_dim=160,
)
"""The 1T model of Korthikanti et al. (arXiv 2205.05198, table 3): 128 layers, 25,600, 160 heads."""

GSHARD_137B: Final = Transformer(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=15872,
    num_attention_heads=32,
    num_kv_heads=32,
    head_dim=128,
    sequence_length=2048,
    vocab_size=32000,
    gated_mlp=0,
    num_experts=64,
    experts_per_token=2,
    moe_ffn_hidden_size=15872,
    moe_layer_interval=2,
)
"""OURS: WATOS (arXiv 2512.12279) trains a "GShard-137B" without printing its dimensions. As in GShard (arXiv
2006.16668) every other layer has experts, each token visits two, and nothing is gated; the width is chosen so that
the parameters count to 137.6 B."""

MIXTRAL_8X7B: Final = Transformer(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=14336,
    num_attention_heads=32,
    num_kv_heads=8,
    head_dim=128,
    sequence_length=4096,
    vocab_size=32000,
    num_experts=8,
    experts_per_token=2,
    moe_ffn_hidden_size=14336,
)
"""Mixtral 8x7B, 46.7 B parameters (arXiv 2401.04088, table 1; mistralai/Mixtral-8x7B-v0.1 config.json). The
training length is not published: 4,096, as published training benchmarks of it use (ASSUMPTION)."""

DEEPSEEK_V2: Final = Transformer(
    num_layers=60,
    hidden_size=5120,
    ffn_hidden_size=12288,
    num_attention_heads=128,
    num_kv_heads=128,
    head_dim=192,
    sequence_length=4096,
    vocab_size=102400,
    num_experts=160,
    experts_per_token=6,
    moe_ffn_hidden_size=1536,
    num_shared_experts=2,
    num_dense_layers=1,
    kv_lora_rank=512,
    q_lora_rank=1536,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
"""DeepSeek-V2, 236 B parameters (arXiv 2405.04434, section 3.1.2; deepseek-ai/DeepSeek-V2 config.json)."""

DEEPSEEK_V3: Final = Transformer(
    num_layers=61,
    hidden_size=7168,
    ffn_hidden_size=18432,
    num_attention_heads=128,
    num_kv_heads=128,
    head_dim=192,
    sequence_length=4096,
    vocab_size=129280,
    num_experts=256,
    experts_per_token=8,
    moe_ffn_hidden_size=2048,
    num_shared_experts=1,
    num_dense_layers=3,
    kv_lora_rank=512,
    q_lora_rank=1536,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
"""DeepSeek-V3, 671 B parameters (arXiv 2412.19437, section 4.2; deepseek-ai/DeepSeek-V3 config.json), without its
multi-token prediction module."""

QWEN3_32B: Final = Transformer(
    num_layers=64,
    hidden_size=5120,
    ffn_hidden_size=25600,
    num_attention_heads=64,
    num_kv_heads=8,
    head_dim=128,
    sequence_length=4096,
    vocab_size=151936,
)
"""Qwen3 32B, 32.8 B parameters (arXiv 2505.09388, table 1; pre-training at 4,096 tokens in section 3.2)."""

NAMES: Final[dict[str, Transformer]] = collect(globals(), Transformer)
"""Models by name."""


def get(name: str) -> Transformer:
    """Return the model of that name, such as `llama3-70b`.

    Raises:
        ValueError: no model has that name.
    """
    return find("model", NAMES, name)
