"""What the operator predictor is trained on: random operators of transformers, and of any size, on random dies.

Nothing here comes from a preset, so that presets may change and training still draws the same: half of the operators
are those of transformers drawn from `MODELS` and `MIXTURES`, trained under `STRATEGIES`; half are log-uniform in size.
Dies are drawn from `DIES`, `KNOWN` values half of the time.
"""

from typing import Any, Final, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from watos_jax.model import Transformer
from watos_jax.strategy import Strategy
from watos_jax.units import KIB
from watos_jax.workload import attention, matmuls

Rows = Float[np.ndarray, "samples columns"]
Generator = np.random.Generator
Ranges = dict[str, tuple[float | int, float | int]]
Choices = dict[str, tuple[float | int, ...]]

DIE_COLUMNS: Final = "core_rows core_cols num_macs sram_bytes sram_bytes_per_clock noc_bytes_per_clock dram".split()
"""A sampled die: `dram` is bytes per cycle, at a clock of 1 GHz; only ratios to the clock matter."""
DIES: Final[Ranges] = {
    "cores along a side": (4, 24),
    "rows of the MAC array": (8, 90),
    "sram_bytes in 64 KiB": (4, 64),
    "port over operands": (0.7, 30),
    "noc_bytes_per_clock": (32, 256),
    "dram bytes per clock": (48, 10_000),
}
"""Ranges of dies: those of the lattices of co-design and of published wafers, log-uniform but for whole numbers."""
KNOWN: Final[Choices] = {
    "num_macs": (256.0, 512.0, 546.3, 1024.0, 7031.25),
    "sram_bytes": (1280.0 * KIB,),
    "noc_bytes_per_clock": (64.0,),
}
"""Values that published cores have, drawn half of the time."""
MODELS: Final[Choices] = {
    "num_attention_heads": (16, 24, 32, 40, 48, 52, 56, 64, 64, 80, 96, 112, 128, 160),
    "head_dim": (64, 80, 96, 128, 128, 128, 128, 160, 192, 256),
    "queries per key and value head": (1, 1, 4, 8, 8, 16),
    "hidden_size over heads times head_dim": (1.0, 1.0, 1.0, 0.8),
    "ffn_hidden_size over hidden_size": (2.67, 3.25, 3.5, 4.0, 5.0),
    "sequence_length": (1024, 2048, 2048, 4096, 4096, 8192, 8192, 16384, 32768),
    "vocab_size": (32_000, 51_200, 64_000, 102_400, 128_256, 129_280, 151_936, 256_000),
    "gated_mlp": (0, 1, 1),
    "latent attention": (0, 0, 0, 1),
    "mixture": (0, 0, 1),
}
"""Choices of a transformer, each as likely as it is often listed; widths are rounded to 128. Latent attention has 128
heads of 192 (64 of them rotary) with values of 128, keys and values compressed to 512, queries to 1536 or not."""
MIXTURES: Final[Choices] = {
    "num_experts": (8, 16, 64, 64, 128, 160, 256),
    "experts_per_token": (1, 2, 2, 4, 6, 8),
    "moe_ffn_hidden_size": (768, 1408, 1536, 2048, 4096, 8192, 14_336, 16_384),
    "num_shared_experts": (0, 0, 1, 2),
    "expert_parallel": (1, 2, 4, 8),
}
"""Choices of a mixture of experts."""
STRATEGIES: Final[Choices] = {
    "tensor_cols": (1, 2, 4, 4, 8, 8, 12, 16, 32),
    "context_parallel": (1, 1, 1, 2, 4),
    "micro_batch_size": (1, 1, 2, 4, 8),
    "flash_attention": (1, 1, 1, 1, 1, 1, 1, 1, 1, 0),
}
"""Choices of a strategy, as far as operators depend on it; a tensor group is cut down to a divisor of the heads."""
SIZES: Final[Ranges] = {
    "rows": (16, 2**17),
    "cols": (8, 2**18),
    "depth": (64, 2**17),
    "count": (1.5, 256),
    "sequence": (256, 2**17),
    "kv_heads": (0.6, 64),
}
"""Ranges of operators of any size, log-uniform, then rounded to 1, 16, 64 or 128."""
RANGES: Final = {
    "dies": DIES,
    "known": KNOWN,
    "models": MODELS,
    "mixtures": MIXTURES,
    "strategies": STRATEGIES,
    "sizes": SIZES,
}
"""All of it, as the manifest of the weights states it."""


class Samples(NamedTuple):
    """Operators on dies.

    Attributes:
        dies: columns of `DIE_COLUMNS`.
        sizes: sizes of the operators: of `Matmuls` and bytes of a gradient element, or of `Attention`.
    """

    dies: Any
    sizes: Any


def sample_dies(rng: Generator, count: int) -> Rows:
    """Dies of `DIES`; half of the SRAM ports grow with the array from that of a published core, 335 bytes per clock."""
    low, high = DIES["cores along a side"]
    sides = rng.integers(int(low), int(high) + 1, (2, count)).astype(float)
    macs = _or_known(rng, "num_macs", np.round(_spread(rng, *DIES["rows of the MAC array"], count)) ** 2)
    port = np.where(
        rng.random(count) < 0.5,
        335.0 * np.maximum(macs / 512.0, 1.0) ** rng.choice([0.0, 0.5, 1.0], count),
        4.0 * np.sqrt(macs) * _spread(rng, *DIES["port over operands"], count),
    )
    low, high = DIES["sram_bytes in 64 KiB"]
    sram = _or_known(rng, "sram_bytes", rng.integers(int(low), int(high) + 1, count) * 64.0 * KIB)
    link = _or_known(rng, "noc_bytes_per_clock", _spread(rng, *DIES["noc_bytes_per_clock"], count))
    dram = _spread(rng, *DIES["dram bytes per clock"], count)
    return np.stack([*sides, macs, sram, port, link, dram], axis=1)


def sample_products(rng: Generator, count: int, *, many: bool) -> Samples:
    """Products of transformers and of random sizes, one of each or many."""
    taken, sides = list[np.ndarray](), [SIZES[name] for name in ("rows", "cols", "depth")]
    while sum(map(len, taken)) < count // 2:
        shapes = _matmuls(*_trained(rng, 4096))
        rows = np.stack([np.ravel(leaf) for leaf in (shapes.rows, shapes.cols, shapes.depth, shapes.count)], 1)
        inside = np.all([(low <= x) & (x <= high) for x, (low, high) in zip(rows.T, sides, strict=False)], axis=0)
        taken.append(np.ceil(rows[inside & (rows[:, 3] >= 1) & ((rows[:, 3] > 1) == many)]))
    known = np.concatenate(taken)[: count // 2]
    rest = count - len(known)
    drawn = [_round(rng, _spread(rng, low, high, rest)) for low, high in sides]
    numbers = np.round(_spread(rng, *SIZES["count"], rest)) if many else np.ones(rest)
    sizes = np.concatenate([known, np.stack([*drawn, numbers], 1)])
    sizes = np.concatenate([sizes, rng.choice([2.0, 4.0], (count, 1))], axis=1)
    return Samples(sample_dies(rng, count), rng.permutation(sizes))


def sample_attention(rng: Generator, count: int) -> Samples:
    """Attention cores of transformers and of random sizes."""
    shapes = _attention(*_trained(rng, 4096 * (1 + count // 8192)))
    known = np.stack([np.asarray(leaf, float) for leaf in jax.tree.leaves(shapes)], axis=1)[: count // 2]
    rest = count - len(known)
    sequence = _round(rng, _spread(rng, *SIZES["sequence"], rest))
    parts = np.minimum(rng.choice([1, 1, 2, 4, 8], rest), sequence // 64)
    batch, dim = rng.choice([1, 1, 2, 4, 8], rest), rng.choice(MODELS["head_dim"], rest)
    kv_heads, group = np.round(_spread(rng, *SIZES["kv_heads"], rest)), rng.choice([1, 1, 2, 4, 8], rest)
    materialised = (rng.random(rest) < 0.2).astype(float)
    keys = np.where(materialised > 0, sequence, sequence * rng.choice([0.5, 0.5, 0.25, 0.05], rest))
    queries = np.ceil(batch * sequence / parts)
    value = np.where(rng.random(rest) < 0.2, 128, dim)
    columns = (queries, keys, batch * sequence, group * kv_heads, kv_heads, dim, value, sequence, materialised)
    return Samples(sample_dies(rng, count), rng.permutation(np.concatenate([known, np.stack(columns, 1)])))


_matmuls = jax.jit(jax.vmap(matmuls))
_attention = jax.jit(jax.vmap(attention))


def _trained(rng: Generator, count: int) -> tuple[Transformer, Strategy]:
    # transformers with how each is trained, as arrays
    def pick(choices: Choices, name: str) -> np.ndarray:
        return rng.choice(np.array(choices[name], float), count)

    latent, mixture = pick(MODELS, "latent attention"), pick(MODELS, "mixture")
    heads = np.where(latent > 0, 128.0, pick(MODELS, "num_attention_heads"))
    dim = np.where(latent > 0, 192.0, pick(MODELS, "head_dim"))
    group = np.where(latent > 0, 1.0, pick(MODELS, "queries per key and value head"))
    tensor = np.gcd(pick(STRATEGIES, "tensor_cols").astype(int), heads.astype(int)).astype(float)
    shared = np.where(heads % group == 0, heads / group, heads)
    kv_heads = np.where((shared < tensor) | (shared % tensor == 0), shared, heads)
    width = heads * np.where(latent > 0, rng.choice([32.0, 40.0, 56.0], count), dim)
    hidden = _whole(width * pick(MODELS, "hidden_size over heads times head_dim"))
    model = Transformer(
        num_layers=np.full(count, 64.0),
        hidden_size=hidden,
        ffn_hidden_size=_whole(hidden * pick(MODELS, "ffn_hidden_size over hidden_size")),
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        sequence_length=pick(MODELS, "sequence_length"),
        vocab_size=pick(MODELS, "vocab_size"),
        gated_mlp=pick(MODELS, "gated_mlp"),
        num_experts=mixture * pick(MIXTURES, "num_experts"),
        experts_per_token=mixture * pick(MIXTURES, "experts_per_token"),
        moe_ffn_hidden_size=mixture * pick(MIXTURES, "moe_ffn_hidden_size"),
        num_shared_experts=mixture * pick(MIXTURES, "num_shared_experts"),
        kv_lora_rank=latent * 512.0,
        q_lora_rank=latent * rng.choice([0.0, 1536.0, 1536.0], count),
        qk_rope_head_dim=latent * 64.0,
        v_head_dim=latent * 128.0,
    )
    strategy = Strategy(
        tensor_cols=tensor,
        context_parallel=pick(STRATEGIES, "context_parallel"),
        expert_parallel=np.where(mixture > 0, pick(MIXTURES, "expert_parallel"), 1.0),
        micro_batch_size=pick(STRATEGIES, "micro_batch_size"),
        global_batch_size=np.full(count, 1024.0),
        flash_attention=pick(STRATEGIES, "flash_attention"),
    )
    return jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf, float), (count,)), (model, strategy))


def _or_known(rng: Generator, name: str, values: np.ndarray) -> np.ndarray:
    return np.where(rng.random(len(values)) < 0.5, rng.choice(KNOWN[name], len(values)), values)


def _spread(rng: Generator, low: float | int, high: float | int, count: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high), count))


def _round(rng: Generator, sizes: np.ndarray) -> np.ndarray:
    step = rng.choice([1, 16, 64, 128], len(sizes))
    return np.maximum(np.round(sizes / step) * step, step)


def _whole(widths: np.ndarray) -> np.ndarray:
    return 128.0 * np.maximum(np.round(widths / 128.0), 1.0)
