"""The model that a row of a training run says it trained: a transformer of its dimensions, or a mixture by its name."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from watos_jax.measured.rows import Skip, needed, number
from watos_jax.model import Transformer
from watos_jax.presets import models

FLASH_SOURCES: Final = (
    *("llm-foundry", "DGX Cloud", "Megatron-Bridge", "NeMo", "SimuMax", "InternEvo", "torchtitan", "fms-fsdp"),
)
"""Sources whose software never writes attention scores to memory; the others materialise them."""


def is_of(row: Mapping[str, str], sources: tuple[str, ...]) -> bool:
    """Whether the source of a row is one of several, by a text that it contains."""
    return any(name in row["source"] for name in sources)


def published(name: str, num_layers: float, sequence_length: float) -> Transformer:
    """A preset model by a text that contains its name, letters and digits alone, with other layers and length.

    A mixture cut down to fewer layers keeps at most one leading dense layer.

    Args:
        name: such as `deepseekv3 proxy L4`.
        num_layers: as run.
        sequence_length: as run.

    Raises:
        Skip: no preset has that name.
    """
    text = _letters(name)
    fitting = [key for key in models.NAMES if _letters(key) in text]
    if not fitting:
        raise Skip("model without a preset")
    found = models.NAMES[max(fitting, key=len)]
    dense = min(float(found.num_dense_layers), 1.0) if num_layers < found.num_layers else found.num_dense_layers
    return replace(found, num_layers=num_layers, sequence_length=sequence_length, num_dense_layers=dense)


def _letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


def _mixture(row: Mapping[str, str]) -> Transformer:
    # width of experts and latent attention are no columns
    found = published(row["model"], needed(row, "layers"), needed(row, "seq"))
    columns = {"hidden": found.hidden_size, "moe_experts": found.num_experts, "moe_topk": found.experts_per_token}
    for column, value in columns.items():
        if number(row, column) not in (None, float(value)):
            raise Skip(f"mixture of experts: {column} is not that of the preset")
    return found


def model_of(row: Mapping[str, str]) -> Transformer:
    """The model of a row, by its dimensions; a mixture of experts by its name.

    Raises:
        Skip: it cannot be represented, or a dimension is missing.
    """
    if row.get("moe_experts") not in (None, "", "0", "0.0"):
        return _mixture(row)
    if "lora" in (row["model"] + row.get("notes", "")).lower():
        raise Skip("adapters (LoRA): most weights are frozen")
    heads = needed(row, "heads")
    hidden = needed(row, "hidden")
    if hidden % heads:
        raise Skip("heads do not divide hidden")
    gated = row.get("gated_mlp", "")
    materialised = not is_of(row, FLASH_SOURCES)
    return Transformer(
        num_layers=needed(row, "layers"),
        hidden_size=hidden,
        ffn_hidden_size=needed(row, "ffn"),
        num_attention_heads=heads,
        num_kv_heads=number(row, "kv_heads") or heads,
        head_dim=hidden // heads,
        sequence_length=needed(row, "seq"),
        vocab_size=needed(row, "vocab"),
        gated_mlp=1 if gated in ("1", "1.0") else 0,
        tied_embeddings=0 if gated in ("1", "1.0") else 1,
        learned_positions=0 if gated in ("1", "1.0") else 1,
        dropout=1 if materialised else 0,
    )
