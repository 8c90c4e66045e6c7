"""Memory per device: predicted against measured, of training runs or of every rank of a run.

Predicted is what tensors take at the peak, without what an allocator holds back: of rows that also have
`max_reserved_mb`, `reserved_over_allocated` says by how much (their median and largest ratio), the margin that a
capacity needs for fragmentation.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from watos_jax import measured
from watos_jax.estimate import estimate
from watos_jax.measured import Run, Skip, needed, number, rows_of
from watos_jax.model import Transformer
from watos_jax.presets import chips
from watos_jax.strategy import Strategy, violation
from watos_jax.units import MIB
from watos_jax.validate.errors import Report, report

BY_RANK: Final = "case rank max_allocated_mb tp pp dp layers model seq".split()
"""Columns of a file of ranks; `ep, cp, max_reserved_mb` may be there too. `case` may hold `mbcN`, the micro-batches of
a pipeline. Ranks are numbered as in Megatron-LM, stage by stage; `max_allocated_mb` counts MiB."""


def memory(path: str | Path) -> Report:
    """Compare memory per device with the model's, nothing fitted.

    Args:
        path: a CSV file of ranks (columns `BY_RANK`) or of training runs (see `measured`), of which those are used
            that have `mem_per_gpu_gb`, beside the largest stage.

    Returns:
        The keys of `errors.report` with the same error also as `memory_mape`; bytes.

    Raises:
        ValueError: the file cannot be read, or no row can be used.
    """
    rows = rows_of(path)
    found = _by_rank(path, rows) if set(BY_RANK) <= set(rows[0]) else _by_run(path)
    return found | {"memory_mape": found["mape"]}


def of_runs(runs: Sequence[Run]) -> dict[int, float]:
    """Predicted over measured memory of the largest stage, minus 1, by number of the run, where it has one."""
    return {
        number: _largest(run) / run.memory - 1.0
        for number, run in enumerate(runs)
        if run.memory is not None and run.chip != "CS-2"
    }


def _largest(run: Run) -> float:
    return float(np.max(estimate(run.system, run.model, run.strategy).memory))


def _by_run(path: str | Path) -> Report:
    runs, skipped = measured.read(path)
    num_rows = len(runs) + sum(skipped.values())
    offs = of_runs(runs)
    skipped["mem_per_gpu_gb blank"] += len(runs) - len(offs)
    held = [(runs[number], off) for number, off in offs.items()]
    predictions = [
        {"row_id": run.row_id, "measured": run.memory, "predicted": (1.0 + off) * (run.memory or 0.0)}
        for run, off in held
    ]
    return report(path, num_rows, +skipped, [f"{run.source} on {run.chip}" for run, _ in held], predictions)


def _by_rank(path: str | Path, rows: Sequence[Mapping[str, str]]) -> Report:
    skipped, groups = Counter[str](), list[str]()
    predictions = list[dict[str, Any]]()
    cases = dict[tuple[str, ...], np.ndarray]()
    for line, row in enumerate(rows, start=2):
        truth, key = (
            number(row, "max_allocated_mb"),
            tuple(row.get(name, "") for name in (*BY_RANK[3:], "case", "ep", "cp")),
        )
        if truth is None:
            skipped["max_allocated_mb blank"] += 1
            continue
        try:
            strategy, model = _case(row)
        except Skip as reason:
            skipped[str(reason)] += 1
            continue
        if key not in cases:
            system = chips.cluster(chips.DGX_B200, -(-float(strategy.num_dies) // chips.GPUS_PER_NODE))
            cases[key] = np.asarray(estimate(system, model, strategy).memory)
        of_stage = float(strategy.num_dies / strategy.pipeline_parallel)
        stage = int(float(row["rank"]) // of_stage)
        groups.append(row["model"])
        predictions.append(
            {"row_id": row.get("row_id") or str(line), "measured": truth * MIB, "predicted": float(cases[key][stage])}
        )
    found = report(path, len(rows), skipped, groups, predictions)
    pairs = [(number(row, "max_reserved_mb"), number(row, "max_allocated_mb")) for row in rows]
    ratios = [reserved / allocated for reserved, allocated in pairs if reserved and allocated]
    if ratios:
        found["reserved_over_allocated"] = {"median": float(np.median(ratios)), "max": float(np.max(ratios))}
    return found


def _case(row: Mapping[str, str]) -> tuple[Strategy, Transformer]:
    tensor, stages, replicas, layers, length = (needed(row, name) for name in ("tp", "pp", "dp", "layers", "seq"))
    if not row["rank"].isdigit():
        raise Skip("rank blank")
    micro = re.search(r"mbc(\d+)", row["case"])
    model = measured.published(row["model"], layers, length)
    strategy = Strategy(
        tensor_cols=tensor,
        pipeline_parallel=stages,
        data_parallel=replicas,
        context_parallel=number(row, "cp") or 1.0,
        expert_parallel=number(row, "ep") or 1.0,
        global_batch_size=replicas * (float(micro[1]) if micro else 2.0 * stages),
    )
    reason = violation(model, strategy)
    if reason is not None:
        raise Skip(f"illegal: {reason.split(' is ')[0]}")
    if float(row["rank"]) >= float(strategy.num_dies):
        raise Skip("rank beyond the devices of the strategy")
    return strategy, model
