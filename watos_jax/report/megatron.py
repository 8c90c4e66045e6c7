"""A strategy as arguments of Megatron-LM's `pretrain_gpt.py` (Megatron Core 0.13 and later, for every layer split)."""

from itertools import groupby
from typing import Final

import numpy as np

from watos_jax.baselines.megatron import can_train_experts
from watos_jax.memory import stages
from watos_jax.model import Transformer
from watos_jax.strategy import RECOMPUTE_LEVELS, SCHEDULES, Strategy
from watos_jax.workload import layer_counts

SELECTIVE: Final = {"selective": ("core_attn",), "norms": ("core_attn", "layernorm"), "mlp": ("core_attn", "layernorm")}
"""Modules that Megatron recomputes at our levels; at the last also `mlp` in dense layers and `moe` in mixture layers,
whose tokens are dispatched again."""


def megatron_arguments(model: Transformer, strategy: Strategy) -> tuple[list[str], list[str]]:
    """Write a strategy, and the model's dimensions, as arguments.

    Args:
        model: the transformer, concrete.
        strategy: one strategy, concrete, with one level of recomputation.

    Returns:
        The arguments, and a sentence for each choice that Megatron-LM has no argument for.
    """
    arguments = _model_arguments(model)
    missing: list[str] = []
    arguments += _numbers(
        {
            "tensor-model-parallel-size": strategy.tensor_parallel,
            "pipeline-model-parallel-size": strategy.pipeline_parallel,
            "micro-batch-size": strategy.micro_batch_size,
            "global-batch-size": strategy.global_batch_size,
        }
    )
    if strategy.context_parallel > 1:
        arguments += _numbers({"context-parallel-size": strategy.context_parallel})
    if strategy.expert_parallel > 1:
        arguments += _numbers({"expert-model-parallel-size": strategy.expert_parallel})
    if strategy.virtual_stages > 1:
        arguments += _chunks(model, strategy)
    elif model.num_layers % strategy.pipeline_parallel:
        arguments += _uneven_stages(model, strategy)
    if strategy.sequence_parallel and strategy.tensor_parallel > 1:
        arguments.append("--sequence-parallel")
    if strategy.gradient_bytes == 4:
        arguments.append("--accumulate-allreduce-grads-in-fp32")
    if strategy.flash_attention:
        arguments.append("--use-flash-attn")
    arguments += _sharding(strategy, missing)
    arguments += _recomputation(model, strategy, missing)
    if strategy.schedule and strategy.pipeline_parallel > 1:
        missing.append(f"schedule is {SCHEDULES[int(strategy.schedule)]}: Megatron-LM runs 1F1B")
    if not can_train_experts(model, strategy):
        missing.append("sequence_parallel is 0: Megatron-LM refuses it where experts are trained in tensor groups")
    return arguments, missing


def _model_arguments(model: Transformer) -> list[str]:
    values = {
        "num-layers": model.num_layers,
        "hidden-size": model.hidden_size,
        "ffn-hidden-size": model.ffn_hidden_size,
        "num-attention-heads": model.num_attention_heads,
        "seq-length": model.sequence_length,
        "max-position-embeddings": model.sequence_length,
    }
    grouped = model.num_kv_heads < model.num_attention_heads
    arguments = _numbers(values)
    if grouped:
        arguments += ["--group-query-attention", *_numbers({"num-query-groups": model.num_kv_heads})]
    if model.is_latent_attention:
        arguments += _latent_attention(model)
    elif model.head_dim * model.num_attention_heads != model.hidden_size:
        arguments += _numbers({"kv-channels": model.head_dim})
    arguments += ["--position-embedding-type", "learned_absolute" if model.learned_positions else "rope"]
    if model.num_experts:
        arguments += _experts(model)
    if model.gated_mlp:
        arguments.append("--swiglu")
    if not model.tied_embeddings:
        arguments.append("--untie-embeddings-and-output-weights")
    return arguments


def _latent_attention(model: Transformer) -> list[str]:
    # Megatron counts the rotary part of a head beside the rest, we count it in
    dims = {
        "kv-lora-rank": model.kv_lora_rank,
        "qk-head-dim": model.head_dim - model.qk_rope_head_dim,
        "qk-pos-emb-head-dim": model.qk_rope_head_dim,
        "v-head-dim": model.v_head_dim or model.head_dim,
    }
    ranks = {"q-lora-rank": model.q_lora_rank} if model.q_lora_rank else {}
    return ["--multi-latent-attention", *_numbers(ranks | dims)]


def _experts(model: Transformer) -> list[str]:
    experts = {
        "num-experts": model.num_experts,
        "moe-router-topk": model.experts_per_token,
        "moe-ffn-hidden-size": model.moe_ffn_hidden_size,
    }
    if model.num_shared_experts:
        experts["moe-shared-expert-intermediate-size"] = model.num_shared_experts * model.moe_ffn_hidden_size
    arguments = _numbers(experts)
    if model.num_dense_layers or model.moe_layer_interval > 1:
        arguments += ["--moe-layer-freq", _layer_pattern(model)]
    if model.capacity_factor > 1:
        factor = f"{float(model.capacity_factor):g}"
        arguments += ["--moe-expert-capacity-factor", factor, "--moe-pad-expert-input-to-capacity"]
    return arguments


def _layer_pattern(model: Transformer) -> str:
    # a Python list, 1 for every layer with experts: Megatron's whole number N means layers 0, N, 2 N, ..., and ours are
    # the last of every N
    leading, interval = int(model.num_dense_layers), int(model.moe_layer_interval)
    rounds, rest = divmod(int(model.num_layers) - leading, interval)
    period = f"([0]*{interval - 1}+[1])" if interval > 1 else "[1]"
    parts = ((f"[0]*{leading}", leading), (f"{period}*{rounds}", rounds), (f"[0]*{rest}", rest))
    return "+".join(part for part, number in parts if number)


def _chunks(model: Transformer, strategy: Strategy) -> list[str]:
    chunks = strategy.pipeline_parallel * strategy.virtual_stages
    if model.num_layers % chunks == 0:
        return _numbers({"num-layers-per-virtual-pipeline-stage": model.num_layers / chunks})
    size = _numbers({"num-layers-per-virtual-pipeline-stage": (model.num_layers + 2) / chunks})
    return [*size, "--account-for-embedding-in-pipeline-split", "--account-for-loss-in-pipeline-split"]


def _uneven_stages(model: Transformer, strategy: Strategy) -> list[str]:
    # our split of the layers, by the oldest arguments that can state it: the first and last stage apart from equal
    # others (Megatron Core 0.9), or the layers of every stage (0.13)
    held = stages(model, strategy, int(model.num_layers))
    layers = [int(number) for number in np.asarray(held.dense + held.mixture)[: int(strategy.pipeline_parallel)]]
    first, others = layers[0], layers[1:]
    if len(set(others)) == 1:
        return _numbers({"decoder-first-pipeline-num-layers": first})
    if len(set(others[:-1])) == 1:
        return _numbers({"decoder-first-pipeline-num-layers": first, "decoder-last-pipeline-num-layers": others[-1]})
    return ["--pipeline-model-parallel-layout", _layer_layout(layers)]


def _layer_layout(layers: list[int]) -> str:
    # E embedding, t a layer, L loss, | between stages; runs of equal stages in brackets, which Megatron does not nest
    runs = (f"(t*{number}|)*{len(list(same))}" for number, same in groupby(layers[1:-1]))
    return f"Et*{layers[0]}|{''.join(runs)}t*{layers[-1]}L"


def _sharding(strategy: Strategy, missing: list[str]) -> list[str]:
    level = int(strategy.optimizer_sharding)
    if strategy.data_parallel * strategy.context_parallel == 1 or level == 0:
        return []
    if level == 1:
        return ["--use-distributed-optimizer"]
    strategies = {2: "optim_grads", 3: "optim_grads_params"}
    return ["--use-custom-fsdp", "--data-parallel-sharding-strategy", strategies[level]]


def _recomputation(model: Transformer, strategy: Strategy, missing: list[str]) -> list[str]:
    name = RECOMPUTE_LEVELS[int(strategy.recompute)]
    if name == "none":
        return []
    if name == "full":
        return ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"]
    if name not in SELECTIVE:
        missing.append(f"recompute is {name}: Megatron-LM has no argument that stops there")
        return []
    dense, mixture = layer_counts(model)
    blocks = [block for block, number in (("mlp", dense), ("moe", mixture)) if name == "mlp" and number > 0]
    return ["--recompute-granularity", "selective", "--recompute-modules", *SELECTIVE[name], *blocks]


def _numbers(values: dict) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", f"{float(value):.0f}")]
