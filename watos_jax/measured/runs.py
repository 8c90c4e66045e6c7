"""Measured training runs: from the columns of a CSV file to a system, a model, a strategy and what was measured.

Columns: `row_id, source, model, layers, hidden, heads, kv_heads, ffn, vocab, seq, gated_mlp, moe_experts, chip,
n_chips, chips_per_node, tp, pp, vpp, dp, cp, ep, sp, zero, mbs, gbs, recompute, precision, iter_time_s, mem_per_gpu_gb,
mem_kind`; others are ignored. A row that the model cannot represent is skipped with a reason, never guessed, but for
three readings that are stated here: a blank `recompute` is none (unless weights are sharded:
most such rows would not fit without), a blank `zero` is a plain optimizer, and where weights
are streamed to a wafer a blank `mbs` is the whole batch and a blank `vocab` that of the model's family.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from watos_jax.hardware import Overlap, Precision, System
from watos_jax.measured.models import FLASH_SOURCES, is_of, model_of
from watos_jax.measured.rows import Skip, needed, number, rows_of
from watos_jax.model import Transformer
from watos_jax.network.layout import fits
from watos_jax.presets import chips
from watos_jax.strategy import RECOMPUTE_LEVELS, Strategy, violation
from watos_jax.units import GIB, GIGA

CHIPS: Final[dict[str, System]] = {
    "A100": chips.DGX_A100,
    "H100": chips.DGX_H100,
    "B200": chips.DGX_B200,
    "B300": chips.DGX_B300,
    "H200": chips.DGX_H200,
    "GB200": chips.GB200_NVL72,
    "GB300": chips.GB300_NVL72,
    "CS-2": chips.CS2,
}
"""Node of each chip that rows are modelled on, by the first word of the `chip` column (a CS-2: by its name in it)."""
OTHER_BOARDS: Final = {"PCIe", "96GB"}
"""Words of the `chip` column that name another board than that of the node: other memory, links or power limit."""
FAMILY_VOCABULARIES: Final = {"GPT": "50257", "BERT": "30522"}
"""Vocabulary of models whose rows print none, by text in the `model` column: byte pairs of GPT-2 and GPT-3 (Radford et
al., 2019; Brown et al., 2020), word pieces of BERT (Devlin et al., 2019)."""

OVERLAP_SOURCES: Final = (
    "llm-foundry",
    "DGX Cloud",
    "Megatron-Bridge",
    "NeMo",
    "MegaScale",
    "torchtitan",
    "fms-fsdp",
    "Pax",
    "vTrain",
)
"""Sources whose software runs communication of weights, gradients and stages beside computation."""
TENSOR_OVERLAP_SOURCES: Final = ("MegaScale",)
"""Sources that state that tensor collectives run beside the products next to them (arXiv 2402.15627, section 3.2)."""


NARROW_BYTES: Final = {"fp8": 1.0, "fp4": 0.5}
"""Bytes per operand of the layers' products, by text in the `precision` column."""
NARROWEST: Final = {"H100": 1.0, "H200": 1.0} | dict.fromkeys(("B200", "B300", "GB200", "GB300"), 0.5)
"""Least bytes per operand that each chip multiplies; 2 if it is not here."""
SHARDING: Final = {"": 0, "0": 0, "1": 1, "1 (all DP)": 1, "2": 2, "SHARD_GRAD_OP": 2} | dict.fromkeys(
    ("3", "FSDP", "FSDP2"), 3
)
"""`optimizer_sharding` by the `zero` column."""


class Run(NamedTuple):
    """One measured training run.

    Attributes:
        row_id: name of the row, or its line number.
        source: who measured it.
        chip: key of `CHIPS`.
        model_name: as printed.
        system: the cluster.
        model: the transformer.
        strategy: the strategy.
        step_time: s per optimizer step, measured; None where not printed.
        memory: bytes per device at the peak, measured; None where not printed.
        configuration: what makes two rows the same configuration, whatever their software version.
    """

    row_id: str
    source: str
    chip: str
    model_name: str
    system: System
    model: Transformer
    strategy: Strategy
    step_time: float | None
    memory: float | None
    configuration: tuple[str, ...]


def read(path: str | Path) -> tuple[list[Run], Counter[str]]:
    """Read the runs of a CSV file.

    Args:
        path: the file.

    Returns:
        The runs that can be modelled, and the number of skipped rows by reason.

    Raises:
        ValueError: the file cannot be read, or lacks a column.
    """
    runs, skipped = [], Counter[str]()
    for line, row in enumerate(rows_of(path, REQUIRED), start=2):
        try:
            runs.append(run_of(row, str(line)))
        except Skip as reason:
            skipped[str(reason)] += 1
        except ValueError as error:  # a record refuses a field
            skipped[f"illegal: {str(error).split(' is ')[0]}"] += 1
    return runs, skipped


REQUIRED: Final = (
    "source model layers hidden heads ffn vocab seq chip n_chips tp pp dp mbs gbs precision iter_time_s".split()
)
"""Columns that a file of training runs must have."""


def run_of(row: Mapping[str, str], line: str) -> Run:
    """One row as a run.

    Args:
        row: columns as text.
        line: name of the row where it has none.

    Raises:
        Skip: the row cannot be represented; the message says why.
    """
    chip = chip_of(row)
    precision = _precision(row["precision"], chip)
    if chip == "CS-2":
        row = _completed(row)
    model = model_of(row)
    strategy = _strategy(row, model)
    overlap = Overlap(float(is_of(row, OVERLAP_SOURCES)), float(is_of(row, TENSOR_OVERLAP_SOURCES)))
    system = replace(_system(CHIPS[chip], needed(row, "n_chips")), overlap=overlap, precision=precision)
    reason = violation(model, strategy) or fits(system, strategy)
    if reason is not None:
        raise Skip(f"illegal: {reason.split(' is ')[0]}")
    time, memory = number(row, "iter_time_s"), number(row, "mem_per_gpu_gb")
    gibibytes = "GiB" in row.get("mem_kind", "")
    names = "source model layers hidden seq n_chips tp pp vpp dp cp ep sp zero mbs gbs recompute".split()
    return Run(
        row_id=row.get("row_id") or line,
        source=row["source"],
        chip=chip,
        model_name=row["model"],
        system=system,
        model=model,
        strategy=strategy,
        step_time=time,
        memory=None if memory is None else memory * (GIB if gibibytes else GIGA),
        configuration=tuple(row.get(name, "") for name in names),
    )


def _system(node: System, devices: float) -> System:
    if len(node.tiers) == 1:  # a node of one device
        return replace(node, tiers=(replace(node.tiers[0], cols=devices),))
    # as many of every node or rack as share the job evenly: 64 of 72 where the job has a power of 2
    size = max(part for part in range(1, int(node.tiers[0].cols) + 1) if devices % part == 0 or part > devices)
    within, nodes = min(devices, size), -(-devices // size)
    return replace(node, tiers=(replace(node.tiers[0], cols=within), replace(node.tiers[-1], cols=nodes)))


def _completed(row: Mapping[str, str]) -> Mapping[str, str]:
    family = next((size for name, size in FAMILY_VOCABULARIES.items() if name in row["model"]), "")
    return {**row, "vocab": row["vocab"] or family, "mbs": row["mbs"] or str(needed(row, "gbs") / needed(row, "dp"))}


def chip_of(row: Mapping[str, str]) -> str:
    """Key of `CHIPS` for the `chip` of a row.

    Raises:
        Skip: no preset is that chip on that board.
    """
    if "CS-2" in row["chip"]:
        return "CS-2"
    words = row["chip"].replace("-", " ").split()
    if not words or words[0] not in CHIPS or OTHER_BOARDS.intersection(words):
        raise Skip(f"chip without a preset: {row['chip'] or 'blank'}")
    return words[0]


def _precision(text: str, chip: str) -> Precision:
    lowered = text.lower()
    narrow = next((size for name, size in NARROW_BYTES.items() if name in lowered), None)
    if narrow is not None:
        if narrow < NARROWEST.get(chip, 2.0):
            raise Skip(f"precision that {chip} does not multiply in")
        return Precision(narrow)
    if not any(name in lowered for name in ("bf16", "fp16", "16-bit")):
        raise Skip("precision blank")
    return Precision(2.0)


def _strategy(row: Mapping[str, str], model: Transformer) -> Strategy:
    sharding = SHARDING.get(row.get("zero", ""))
    if sharding is None:
        raise Skip(f"sharded within groups or partly: {row['zero']}")
    if sharding == 3 and not row.get("recompute"):
        raise Skip("recompute blank with sharded weights")
    if sharding == 3 and needed(row, "pp") > 1:
        sharding = 2  # weights stay gathered for all micro-batches of a pipeline
    text = row.get("recompute", "")
    recompute = text.split(" (")[0] or "none"
    if recompute not in ("none", "selective", "full") or "per-op" in text:
        raise Skip(f"recompute is not one of none, selective, full: {text}")
    flash = is_of(row, FLASH_SOURCES)
    if flash and recompute == "selective":
        raise Skip("recompute selective beside flash attention, which repeats its core in any case")
    tensor = needed(row, "tp")
    return Strategy(
        tensor_cols=tensor,
        pipeline_parallel=needed(row, "pp"),
        data_parallel=needed(row, "dp"),
        context_parallel=number(row, "cp") or 1,
        expert_parallel=number(row, "ep") or 1,
        sequence_parallel=1 if row.get("sp") == "1" and tensor > 1 else 0,
        micro_batch_size=needed(row, "mbs"),
        global_batch_size=needed(row, "gbs"),
        virtual_stages=number(row, "vpp") or 1,
        recompute=RECOMPUTE_LEVELS.index(recompute),
        optimizer_sharding=sharding,
        flash_attention=1 if flash else 0,
        gradient_bytes=2 if "PURE" in row["precision"] else 4,
    )
