"""Hugging Face configurations: published parameter counts, and refusals in one sentence."""

import copy
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watos_jax.formats import huggingface
from watos_jax.model import Transformer

CONFIGS = Path(__file__).parent / "data" / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))

# (file, parameters in 1e9, tolerance, source of the count); the tolerance is the rounding of the published number
PUBLISHED = [
    ("llama-2-7b", 6.738, 0.001, "model.safetensors of meta-llama/Llama-2-7b-hf"),
    ("llama-2-70b", 68.98, 0.001, "model.safetensors of meta-llama/Llama-2-70b-hf"),
    ("llama-3-8b", 8.030, 0.001, "model.safetensors of meta-llama/Meta-Llama-3-8B"),
    ("llama-3.1-405b", 405.9, 0.001, "model card, 405.9 B"),
    ("llama-3.2-1b", 1.236, 0.001, "model card, 1.23 B; tied embeddings"),
    ("mistral-7b-v0.1", 7.242, 0.001, "model.safetensors of mistralai/Mistral-7B-v0.1"),
    ("mistral-small-3.1-24b", 23.57, 0.005, "model card of Mistral-Small-24B-Base-2501, 23.6 B, text only"),
    ("qwen2-7b", 7.616, 0.001, "model.safetensors of Qwen/Qwen2-7B"),
    ("qwen2-57b-a14b", 57.4, 0.005, "arXiv 2407.10671, table 1: 57 B"),
    ("qwen3-8b", 8.19, 0.005, "model card, 8.2 B"),
    ("qwen3-30b-a3b", 30.5, 0.005, "model card, 30.5 B"),
    ("gpt2", 0.1244, 0.002, "openai/gpt-2, 124 M"),
    ("gpt-neox-20b", 20.55, 0.005, "arXiv 2204.06745, section 2.1: 20,554,567,680"),
    ("mixtral-8x7b", 46.70, 0.001, "model.safetensors of mistralai/Mixtral-8x7B-v0.1"),
    ("deepseek-moe-16b", 16.4, 0.005, "arXiv 2401.06066, section 5.1: 16.4 B"),
    ("deepseek-v2-lite", 15.7, 0.005, "arXiv 2405.04434, appendix B: 15.7 B"),
    ("deepseek-v3", 671.0, 0.001, "arXiv 2412.19437, section 4.2: 671 B"),
    ("kimi-k2", 1040.0, 0.02, "arXiv 2507.20534, table 2: 1.04 T"),
    ("gemma-7b", 8.54, 0.001, "model.safetensors of google/gemma-7b"),
    ("phi-3-mini-4k", 3.82, 0.002, "model.safetensors of microsoft/Phi-3-mini-4k-instruct"),
    ("olmo-2-7b", 7.30, 0.002, "model.safetensors of allenai/OLMo-2-1124-7B"),
]


def _config(name):
    return json.loads((CONFIGS / f"{name}.json").read_text())


def _count(m):
    """Weights layer by layer, written out independently of the library."""
    total = m.vocab_size * m.hidden_size * (2 - m.tied_embeddings)
    total += m.learned_positions * m.sequence_length * m.hidden_size
    matrices = 2 + m.gated_mlp
    value_dim = m.v_head_dim or m.head_dim
    for layer in range(int(m.num_layers)):
        total += m.num_attention_heads * value_dim * m.hidden_size
        if m.kv_lora_rank:
            inner = m.q_lora_rank or m.hidden_size
            total += m.q_lora_rank * m.hidden_size + inner * m.num_attention_heads * m.head_dim
            total += m.hidden_size * (m.kv_lora_rank + m.qk_rope_head_dim)
            total += m.kv_lora_rank * m.num_attention_heads * (m.head_dim - m.qk_rope_head_dim + value_dim)
        else:
            total += m.hidden_size * m.head_dim * (m.num_attention_heads + 2 * m.num_kv_heads)
        after_dense = layer - m.num_dense_layers
        if m.num_experts and after_dense >= 0 and after_dense % m.moe_layer_interval == m.moe_layer_interval - 1:
            experts = m.num_experts + m.num_shared_experts
            total += matrices * m.hidden_size * m.moe_ffn_hidden_size * experts + m.hidden_size * m.num_experts
        else:
            total += matrices * m.hidden_size * m.ffn_hidden_size
    return float(total)


@pytest.mark.parametrize(("name", "billions", "tolerance", "source"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_parameter_counts_are_the_published_ones(name, billions, tolerance, source):
    assert _count(huggingface.read(CONFIGS / f"{name}.json")) / 1e9 == pytest.approx(billions, rel=tolerance)


def test_every_transcribed_config_is_counted():
    assert [row[0] for row in sorted(PUBLISHED)] == NAMES


def test_a_wrong_published_count_fails():
    with pytest.raises(AssertionError):
        test_parameter_counts_are_the_published_ones("llama-3-8b", 7.0, 0.001, "wrong on purpose")


def test_every_family_has_a_transcribed_config_or_shares_one():
    seen = {_config(name).get("model_type") for name in NAMES}
    assert set(huggingface.FAMILIES) <= seen | {"mistral"}


# ---- fields that a count does not show


def test_grouped_heads_and_explicit_head_dims():
    model = huggingface.read(CONFIGS / "qwen3-30b-a3b.json")
    assert (model.num_attention_heads, model.num_kv_heads, model.head_dim) == (32, 4, 128)
    assert (model.num_experts, model.experts_per_token, model.moe_ffn_hidden_size) == (128, 8, 768)


def test_latent_attention_with_and_without_compressed_queries():
    full, lite = (huggingface.read(CONFIGS / f"{name}.json") for name in ("deepseek-v3", "deepseek-v2-lite"))
    assert (full.q_lora_rank, full.kv_lora_rank, full.head_dim, full.qk_rope_head_dim) == (1536, 512, 192, 64)
    assert (lite.q_lora_rank, lite.v_head_dim, lite.num_dense_layers, lite.num_shared_experts) == (0, 128, 1, 2)


def test_old_and_new_training_differ_in_dropout_positions_and_gates():
    gpt2, llama = (huggingface.read(CONFIGS / f"{name}.json") for name in ("gpt2", "llama-3-8b"))
    assert (gpt2.dropout, gpt2.learned_positions, gpt2.gated_mlp, gpt2.tied_embeddings) == (1, 1, 0, 1)
    assert (llama.dropout, llama.learned_positions, llama.gated_mlp, llama.tied_embeddings) == (0, 0, 1, 0)
    assert gpt2.ffn_hidden_size == 4 * 768


def test_training_length_is_bounded_context_or_what_the_caller_says():
    path = CONFIGS / "llama-3.1-405b.json"
    assert huggingface.read(path).sequence_length == huggingface.DEFAULT_SEQUENCE_LENGTH == 8192
    assert huggingface.read(path, sequence_length=131072).sequence_length == 131072
    assert huggingface.read(CONFIGS / "gpt2.json").sequence_length == 1024
    config = _config("llama-2-7b")
    del config["max_position_embeddings"]
    assert huggingface.from_config(config, sequence_length=4096).sequence_length == 4096
    with pytest.raises(ValueError, match="max_position_embeddings is missing"):
        huggingface.from_config(config)
    with pytest.raises(ValueError, match="n_positions is 1024"):
        huggingface.read(CONFIGS / "gpt2.json", sequence_length=2048)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, math.nan, math.inf, 10**30])
def test_wrong_training_lengths_are_refused(wrong):
    with pytest.raises(ValueError, match="sequence_length is"):
        huggingface.read(CONFIGS / "llama-3-8b.json", sequence_length=wrong)


@pytest.mark.parametrize(
    ("name", "change", "window"),
    [
        ("mistral-7b-v0.1", {}, 4096),
        ("mistral-7b-v0.1", {"sliding_window": None}, 0),
        ("mistral-small-3.1-24b", {}, 0),
        ("mixtral-8x7b", {}, 0),
        ("phi-3-mini-4k", {}, 2047),
        ("qwen2-7b", {}, 0),
        ("qwen2-7b", {"use_sliding_window": True}, 0),
        ("qwen2-7b", {"use_sliding_window": True, "max_window_layers": 0}, 131072),
    ],
)
def test_sliding_window_counts_only_where_it_is_used(name, change, window):
    assert huggingface.from_config(_config(name) | change).attention_window == window


def test_model_type_of_its_own_is_read_by_its_architecture():
    assert _config("kimi-k2")["model_type"] not in huggingface.FAMILIES
    assert huggingface.read(CONFIGS / "kimi-k2.json").num_experts == 384


def test_wrapper_hands_down_whether_embeddings_are_tied():
    config = _config("mistral-small-3.1-24b")
    assert huggingface.from_config(config).tied_embeddings == 0
    assert huggingface.from_config(config | {"tie_word_embeddings": True}).tied_embeddings == 1


# ---- refusals

REFUSED = [
    (
        "llama-3-8b",
        {"model_type": "bert", "architectures": ["BertModel"]},
        r'model_type is "bert": .*deepseek_v3.*qwen3',
    ),
    ("llama-3-8b", {"model_type": None, "architectures": None}, "model_type is null"),
    ("llama-3-8b", {"hidden_size": None}, "hidden_size is null: it must be a whole number from 1"),
    ("llama-3-8b", {"hidden_size": "4096"}, 'hidden_size is "4096"'),
    ("llama-3-8b", {"hidden_size": True}, "hidden_size is true"),
    ("llama-3-8b", {"hidden_size": -4096}, "hidden_size is -4096"),
    ("llama-3-8b", {"hidden_size": 0}, "hidden_size is 0"),
    ("llama-3-8b", {"hidden_size": 4096.5}, "hidden_size is 4096.5"),
    ("llama-3-8b", {"hidden_size": math.nan}, "hidden_size is NaN"),
    ("llama-3-8b", {"hidden_size": math.inf}, "hidden_size is Infinity"),
    ("llama-3-8b", {"hidden_size": 10**5000}, "hidden_size is an integer of 16610 bits"),
    ("llama-3-8b", {"hidden_size": 4097}, "hidden_size is 4097: it must be a multiple of num_attention_heads, 32"),
    ("llama-3-8b", {"num_key_value_heads": 5}, "num_attention_heads is 32: it must be a multiple"),
    ("llama-3-8b", {"vocab_size": [128256]}, "vocab_size is a list"),
    ("llama-3-8b", {"tie_word_embeddings": "no"}, 'tie_word_embeddings is "no": it must be true or false'),
    ("llama-3-8b", {"attention_dropout": 2}, "attention_dropout is 2: it must be a number from 0 to 1"),
    ("gpt2", {"n_embd": 770}, "n_embd is 770: it must be a multiple of n_head, 12"),
    ("mixtral-8x7b", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9: it must be at most"),
    ("qwen2-7b", {"use_sliding_window": True, "max_window_layers": 14}, "max_window_layers is 14"),
    ("qwen2-57b-a14b", {"shared_expert_intermediate_size": 1000}, "a multiple of moe_intermediate_size, 2560"),
    ("qwen3-30b-a3b", {"mlp_only_layers": [3]}, "mlp_only_layers is a list"),
    ("qwen3-30b-a3b", {"mlp_only_layers": [False]}, "mlp_only_layers is a list"),
    ("qwen3-30b-a3b", {"decoder_sparse_step": 49}, "num_hidden_layers is 48: it must be large enough"),
    ("deepseek-v3", {"first_k_dense_replace": 61}, "num_hidden_layers is 61: it must be large enough"),
    ("deepseek-v3", {"moe_layer_freq": 2, "first_k_dense_replace": 1}, None),
    ("deepseek-v3", {"moe_layer_freq": 2, "first_k_dense_replace": 2}, "moe_layer_freq is 2"),
    ("mistral-small-3.1-24b", {"text_config": 3}, "text_config is 3: it must be an object"),
    ("mistral-small-3.1-24b", {"text_config": {}}, "model_type is missing"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_broken_fields_are_refused_by_name_value_and_rule(name, change, message):
    config = _config(name) | change
    if message is None:  # the nearest thing that is right
        assert isinstance(huggingface.from_config(config), Transformer)
        return
    with pytest.raises(ValueError, match=message) as caught:
        huggingface.from_config(config, source="broken.json")
    text = str(caught.value)
    assert text.startswith("broken.json: ") and "\n" not in text and len(text) < 400


@pytest.mark.parametrize("name", ["llama-3-8b", "gpt2", "deepseek-v3", "qwen2-57b-a14b", "mixtral-8x7b"])
def test_every_dimension_is_required_by_name(name):
    config = _config(name)
    optional = {"num_key_value_heads", "head_dim", "max_window_layers", "sliding_window", "decoder_sparse_step"}
    dimensions = [
        key for key, value in config.items() if type(value) is int and key not in optional and "token_id" not in key
    ]
    whole = huggingface.from_config(config)
    refused = 0
    for key in dimensions:
        missing = {k: v for k, v in config.items() if k != key}
        try:
            assert str(huggingface.from_config(missing)) == str(whole), f"{key} was guessed"
        except ValueError as error:
            assert f"{key} is missing" in str(error)
            refused += 1
    assert refused >= 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", "it holds a list: it must hold a JSON object"),
        (b"null", "it holds null"),
        (b"{}", "model_type is missing"),
        (b" " * (16 * 2**20 + 1), "larger than 16,777,216 bytes"),
    ],
)
def test_broken_files_are_refused(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        huggingface.read(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_directories_are_refused(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        huggingface.read(tmp_path / "none.json")
    with pytest.raises(ValueError, match="this is a directory"):
        huggingface.read(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        huggingface.read("\0")


# ---- anything anywhere

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.integers(0, 300)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, 0, 1, 2, -1, 1e308, *huggingface.FAMILIES])
)
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def _reads_or_refuses(config):
    try:
        model = huggingface.from_config(config)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(model, Transformer)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_value_in_any_field_gives_a_model_or_a_value_error(data):
    config = copy.deepcopy(_config(data.draw(st.sampled_from(NAMES))))
    target = config
    if "text_config" in config and data.draw(st.booleans()):
        target = config["text_config"]
    for key in data.draw(st.lists(st.sampled_from(sorted(target)), min_size=1, max_size=3)):
        if data.draw(st.integers(0, 4)):
            target[key] = data.draw(_JSON)
        else:
            target.pop(key, None)
    _reads_or_refuses(config)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(_JSON)
def test_any_document_gives_a_model_or_a_value_error(document):
    _reads_or_refuses(document)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_bytes(content)
    with pytest.raises(ValueError):
        huggingface.read(path)
