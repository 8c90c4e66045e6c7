"""Hugging Face `config.json` to `Transformer`.

One table, `FAMILIES`, says how each architecture spells the fields of a `Transformer`; adding an architecture adds
a row. A dimension is never guessed: a missing one is refused, by name. Optional keys take the value that the
`transformers` library gives them where they are missing or null.

Neglects: biases, normalisation of queries and keys, router corrections, multi-token prediction layers, and the
vision or audio tower of a multimodal model (whose nested `text_config` is read). Refused, because one
`Transformer` cannot describe them: layers of which some have a sliding window and some do not; mixture layers at
irregular places.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from watos_jax.formats._families import FAMILIES as FAMILIES
from watos_jax.formats._families import Family as Family
from watos_jax.formats._fields import Fields, shown
from watos_jax.model import Transformer

DEFAULT_SEQUENCE_LENGTH: Final = 8192
"""Tokens per training sequence where the caller gives none and the model's positions reach that far. Published
pre-training runs use 2,048 to 8,192; the longer contexts that configurations announce are mostly added
afterwards."""
LARGEST_FILE: Final = 16 * 2**20
"""Bytes; no configuration is larger, while weights, mistaken for one, are."""

_BY_ARCHITECTURE: Final = {name: family for family in FAMILIES.values() for name in family.architectures}


def _family(config: Mapping[str, Any]) -> Family | None:
    model_type, names = config.get("model_type"), config.get("architectures")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    known = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return next((_BY_ARCHITECTURE[name] for name in known if name in _BY_ARCHITECTURE), None)


def _text_part(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    # a multimodal wrapper: its language model is nested, and inherits only whether the embeddings are tied
    if _family(config) is not None or "text_config" not in config:
        return config
    nested = config["text_config"]
    if not isinstance(nested, Mapping):
        raise Fields(config, source).refuse("text_config", "an object")
    return {"tie_word_embeddings": config.get("tie_word_embeddings")} | dict(nested)


def _sequence_length(fields: Fields, family: Family, requested: int | float | None) -> int:
    if requested is not None:
        given = Fields({"sequence_length": requested}, "argument").whole("sequence_length")
        if family.constants.get("learned_positions") and given > fields.whole(family.positions):
            raise fields.refuse(family.positions, f"at least the sequence_length asked for, {given}")
        return given
    return min(fields.whole(family.positions), DEFAULT_SEQUENCE_LENGTH)


def _check(fields: Fields, values: Mapping[str, int], keys: Mapping[str, tuple[Any, ...]]) -> None:
    def spelling(name: str, fallback: str) -> str:
        return str(keys.get(name, (fallback,))[0])

    if values["num_attention_heads"] % values["num_kv_heads"]:
        heads_key = spelling("num_attention_heads", "num_attention_heads")
        raise fields.refuse(heads_key, f"a multiple of the key and value heads, {values['num_kv_heads']}")
    if values.get("experts_per_token", 0) > values.get("num_experts", 0):
        top_k_key = spelling("experts_per_token", "num_experts_per_tok")
        raise fields.refuse(top_k_key, f"at most the number of experts, {values['num_experts']}")
    num_sparse = values["num_layers"] - values.get("num_dense_layers", 0)
    if values.get("num_experts", 0) and num_sparse < values.get("moe_layer_interval", 1):
        layers_key = spelling("num_layers", "num_hidden_layers")
        raise fields.refuse(layers_key, "large enough for at least one layer with experts")


def from_config(config: Any, *, sequence_length: int | float | None = None, source: str = "config") -> Transformer:
    """Return the model that a Hugging Face configuration describes.

    A configuration announces the longest context that a model accepts, not the length it is trained at. Without
    `sequence_length` the training length is the smaller of `max_position_embeddings` and 8,192
    (`DEFAULT_SEQUENCE_LENGTH`); give it whenever it is known.

    Args:
        config: the parsed `config.json`, a dictionary; a multimodal one is read at its `text_config`.
        sequence_length: tokens per training sequence.
        source: where the configuration comes from, for messages.

    Raises:
        ValueError: an architecture that is not in `FAMILIES`, or a field that is missing or breaks its rule; one
            sentence naming source, field, value and rule.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{source}: it holds {shown(config)}: it must hold a JSON object")
    text = _text_part(config, source)
    fields, family = Fields(text, source), _family(text)
    if family is None:
        key = "model_type" if "model_type" in text or "architectures" not in text else "architectures"
        raise fields.refuse(key, f"a known architecture, one of {', '.join(sorted(FAMILIES))}")
    values: dict[str, int] = {name: fields.whole(*key) for name, key in family.keys.items()}
    for part in family.parts:
        values |= part(fields)
    values |= family.constants
    values["tied_embeddings"] = int(fields.flag("tie_word_embeddings", family.is_tied))
    dropouts = [fields.probability(key, default) for key, default in family.dropouts.items()]
    values["dropout"] = int(max(dropouts, default=0.0) > 0)
    values["sequence_length"] = _sequence_length(fields, family, sequence_length)
    _check(fields, values, family.keys)
    return Transformer(**values)


def read(path: str | os.PathLike[str], *, sequence_length: int | float | None = None) -> Transformer:
    """Return the model that a `config.json` file describes.

    Nothing in the file is executed. See `from_config` for the training sequence length.

    Args:
        path: the file.
        sequence_length: tokens per training sequence; by default the smaller of `max_position_embeddings` and
            8,192.

    Raises:
        ValueError: the file is missing, a directory, not JSON, too large to be a configuration, or describes a
            model that `from_config` refuses.
    """
    source = os.fsdecode(path)
    if os.path.isdir(source):
        raise ValueError(f"{source}: this is a directory: give the config.json inside it")
    try:
        with open(source, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{source!r}: the file cannot be read: {reason}") from error
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{source}: the file is larger than {LARGEST_FILE:,} bytes: it cannot be a config.json")
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: the file is not valid JSON: {error}") from error
    return from_config(config, sequence_length=sequence_length, source=source)
