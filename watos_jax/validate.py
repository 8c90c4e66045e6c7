"""Predicted against measured: training runs and simulated collectives, beside a baseline that knows nothing.

Errors are fractions: `mape` and `median_ape` of |predicted / measured - 1|, `bias` the mean of
predicted / measured - 1.
`tau` is Kendall's rank correlation between predicted and measured times of runs of one group (the same source, model,
sequence, batch and number of chips), averaged over groups by pairs; `regret` is the measured time of the run that the
prediction would pick over the best measured one, minus 1, averaged over groups.
The naive baseline predicts `model FLOP / (chips peak utilisation)` with one utilisation fitted per chip and source.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from watos_jax import measured
from watos_jax.baselines import weight_streaming
from watos_jax.calibrate import START, StepTime, estimated, predict, stack
from watos_jax.hardware import Efficiency
from watos_jax.measured import Run
from watos_jax.network import simulated
from watos_jax.presets import efficiencies
from watos_jax.units import MIB, MICRO
from watos_jax.workload import model_flop

Report = dict[str, Any]
"""What a validation returns: the keys of `summary`, with `rows, used, skipped, groups, predictions`."""


def training(path: str | Path) -> Report:
    """Compare the step times of a file of training runs with those of the model, with the shipped efficiencies.

    Args:
        path: a CSV file; see `measured`.

    Returns:
        `rows, used, skipped` by reason, the errors of `summary`, `tau, regret, naive_mape, num_parameters,
        naive_parameters`, `groups` by source and chip, and `predictions`, one per row used.

    Raises:
        ValueError: the file cannot be read, or no row can be used.
    """
    runs, skipped = measured.read(path)
    runs, efficiency, skipped = _with_efficiency([run for run in runs if run.step_time], skipped)
    if not runs:
        raise ValueError(f"{path} has no row that can be used: {dict(skipped)}")
    times = _predict(runs, efficiency)
    truth = np.array([run.step_time for run in runs], float)
    naive = naive_times(runs)
    sources = [f"{run.source} on {run.chip}" for run in runs]
    sets = {id(record): record for record in efficiency}
    report: Report = {"rows": len(runs) + sum(skipped.values()), "used": len(runs), "skipped": dict(skipped)}
    report |= summary(times, truth) | ranking(_peers(runs), times, truth)
    report["naive_mape"] = summary(naive, truth)["mape"]
    report["num_parameters"] = sum(leaf > 0 for one in sets.values() for leaf in jax.tree.leaves(one))
    report["naive_parameters"] = len(set(sources))
    report["groups"] = {
        name: _group(np.array([source == name for source in sources]), runs, times, truth, naive)
        for name in sorted(set(sources))
    }
    report["predictions"] = [
        {"row_id": run.row_id, "measured": float(right), "predicted": float(time)}
        for run, right, time in zip(runs, truth, times, strict=True)
    ]
    return report


def execution(chip: str) -> tuple[StepTime, Efficiency]:
    """How runs on a chip are executed, and where a fit of its efficiency starts.

    Args:
        chip: a key of `measured.CHIPS`; weights are streamed to a CS-2.
    """
    if chip == "CS-2":
        return weight_streaming.step_time, weight_streaming.START
    return estimated, START


def network(path: str | Path) -> Report:
    """Compare simulated collectives of at least 1 MiB with the model's coefficients, nothing fitted.

    Args:
        path: a CSV file of collectives; see `network.simulated.predict`.

    Raises:
        ValueError: the file cannot be read, lacks a column, or no row can be used.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a CSV file: {error}") from None
    skipped, cases = Counter[str](), defaultdict[str, list[dict[str, Any]]](list)
    for number, row in enumerate(rows, start=2):
        found = simulated.predict(row)
        if found.skipped:
            skipped[found.skipped] += 1
        elif float(row["bytes"]) < MIB:
            skipped["below 1 MiB"] += 1
        else:
            name = row.get("row_id") or str(number)
            cases[found.case].append(
                {"row_id": name, "measured": float(row["time_us"]) * MICRO, "predicted": found.time}
            )
    predictions = [prediction for case in cases.values() for prediction in case]
    if not predictions:
        raise ValueError(f"{path} has no row that can be used: {dict(skipped)}")
    groups = {name: {"used": len(case)} | _errors(case) for name, case in sorted(cases.items())}
    used = len(predictions)
    counts = {"rows": len(rows), "used": used, "skipped": dict(skipped)}
    return counts | _errors(predictions) | {"groups": groups, "predictions": predictions}


def summary(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Errors of predictions: `mape, median_ape, max_ape, bias`, as fractions."""
    off = np.asarray(predicted) / np.asarray(truth) - 1.0
    return {
        "mape": float(np.mean(np.abs(off))),
        "median_ape": float(np.median(np.abs(off))),
        "max_ape": float(np.max(np.abs(off))),
        "bias": float(np.mean(off)),
    }


def ranking(groups: Sequence[Hashable], predicted: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """Kendall's tau and the regret of the pick within groups of at least three runs; None where there is none.

    Args:
        groups: label of each run; only runs of one group are compared.
        predicted: s.
        truth: s.
    """
    members = defaultdict[Hashable, list[int]](list)
    for number, label in enumerate(groups):
        members[label].append(number)
    agreed = pairs = 0.0
    regrets = []
    for rows in members.values():
        if len(rows) < 3:
            continue
        ours, theirs = predicted[rows], truth[rows]
        upper = np.triu_indices(len(rows), 1)
        signs = np.sign(ours[:, None] - ours)[upper] * np.sign(theirs[:, None] - theirs)[upper]
        agreed, pairs = agreed + float(signs.sum()), pairs + float(np.count_nonzero(signs))
        regrets.append(float(theirs[np.argmin(ours)] / theirs.min() - 1.0))
    return {"tau": agreed / pairs if pairs else None, "regret": float(np.mean(regrets)) if regrets else None}


def naive_times(runs: Sequence[Run]) -> np.ndarray:
    """Times of the baseline: model FLOP at one utilisation per chip and source, the best constant for log errors."""
    ideal = np.array(
        [
            float(model_flop(run.model, run.strategy)) / float(run.strategy.num_dies * run.system.die.flop_rate)
            for run in runs
        ]
    )
    truth = np.array([run.step_time for run in runs], float)
    labels = np.array([f"{run.source} on {run.chip}" for run in runs])
    times = np.zeros(len(runs))
    for label in np.unique(labels):
        mine = labels == label
        times[mine] = ideal[mine] * np.exp(np.median(np.log(truth[mine] / ideal[mine])))
    return times


def _with_efficiency(runs: list[Run], skipped: Counter[str]) -> tuple[list[Run], list[Efficiency], Counter[str]]:
    kept, found = [], []
    for run in runs:
        record = efficiencies.of(run.chip, run.source)
        if record is None:
            skipped[f"no fitted efficiency for {run.chip}"] += 1
        else:
            kept.append(run)
            found.append(record)
    return kept, found, skipped


def _predict(runs: list[Run], efficiency: list[Efficiency]) -> np.ndarray:
    times = np.zeros(len(runs))
    for record in {id(one): one for one in efficiency}.values():
        rows = [number for number, one in enumerate(efficiency) if one is record]
        step_time, _ = execution(runs[rows[0]].chip)
        times[rows] = np.asarray(predict(stack([runs[row] for row in rows]), record, step_time))
    return times


def _peers(runs: Sequence[Run]) -> list[tuple[Hashable, ...]]:
    return [
        (
            run.source,
            run.model_name,
            float(run.model.sequence_length),
            float(run.strategy.global_batch_size),
            float(run.system.num_dies),
        )
        for run in runs
    ]


def _group(
    mine: np.ndarray, runs: Sequence[Run], times: np.ndarray, truth: np.ndarray, naive: np.ndarray
) -> dict[str, Any]:
    members = [run for run, belongs in zip(runs, mine, strict=True) if belongs]
    errors = summary(times[mine], truth[mine]) | ranking(_peers(members), times[mine], truth[mine])
    return {"used": len(members)} | errors | {"naive_mape": summary(naive[mine], truth[mine])["mape"]}


def _errors(predictions: Sequence[dict[str, Any]]) -> dict[str, float]:
    return summary(np.array([p["predicted"] for p in predictions]), np.array([p["measured"] for p in predictions]))
