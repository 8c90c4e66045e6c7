"""Training runs: predicted against measured, beside a baseline that knows nothing.

`tau` is Kendall's rank correlation between predicted and measured times of runs of one model (of one source, chip and
sequence), `tau_same_batch` that of runs which also share the batch and the number of chips, both averaged over groups
by pairs. `regret` is the measured time of the run that the prediction would pick over the best measured one, minus 1,
averaged over groups of the same batch and chips. Groups have at least three runs.
The naive baseline predicts `model FLOP / (chips peak utilisation)` with one utilisation fitted per chip and source.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import jax
import numpy as np

from watos_jax import measured
from watos_jax.baselines import weight_streaming
from watos_jax.calibrate import START, StepTime, estimated, predict, stack
from watos_jax.hardware import Efficiency
from watos_jax.measured import Run
from watos_jax.presets import efficiencies
from watos_jax.validate.errors import Report, constant_per_group, ranking, report
from watos_jax.validate.memory import of_runs
from watos_jax.workload import model_flop


def training(path: str | Path) -> Report:
    """Compare the step times of a file of training runs with those of the model, with the shipped efficiencies.

    Args:
        path: a CSV file; see `measured`.

    Returns:
        `rows, used, skipped` by reason, the errors of `errors.summary`, `tau, tau_same_batch, regret, naive_mape,
        memory_mape` (None where no row has a memory), `num_parameters, naive_parameters`, `groups` by source and chip,
        and `predictions`, one per row used.

    Raises:
        ValueError: the file cannot be read, or no row can be used.
    """
    read, skipped = measured.read(path)
    num_rows = len(read) + sum(skipped.values())
    timed = [run for run in read if run.step_time]
    skipped["iter_time_s blank"] += len(read) - len(timed)
    runs, efficiency = _with_efficiency(timed, skipped)
    times = _predict(runs, efficiency) if runs else np.zeros(0)
    labels = [f"{run.source} on {run.chip}" for run in runs]
    predictions = [
        {"row_id": run.row_id, "measured": run.step_time, "predicted": float(time)}
        for run, time in zip(runs, times, strict=True)
    ]
    found = report(path, num_rows, +skipped, labels, predictions, naive_times(runs) if runs else None)
    held = of_runs(runs)
    for name, part in [("", found), *found["groups"].items()]:
        mine = [number for number, label in enumerate(labels) if name in ("", label)]
        part |= _ranks([runs[number] for number in mine], times[mine])
        of_memory = [held[number] for number in mine if number in held]
        part["memory_mape"] = float(np.mean(np.abs(of_memory))) if of_memory else None
    sets = {id(record): record for record in efficiency}
    found["num_parameters"] = sum(leaf > 0 for one in sets.values() for leaf in jax.tree.leaves(one))
    found["naive_parameters"] = len(set(labels))
    return found


def execution(chip: str) -> tuple[StepTime, Efficiency]:
    """How runs on a chip are executed, and where a fit of its efficiency starts.

    Args:
        chip: a key of `measured.CHIPS`; weights are streamed to a CS-2.
    """
    if chip == "CS-2":
        return weight_streaming.step_time, weight_streaming.START
    return estimated, START


def naive_times(runs: Sequence[Run]) -> np.ndarray:
    """Times of the baseline: model FLOP at one utilisation per chip and source, the best constant for log errors."""
    ideal = [
        float(model_flop(run.model, run.strategy)) / float(run.strategy.num_dies * run.system.die.flop_rate)
        for run in runs
    ]
    truth = [run.step_time or 0.0 for run in runs]
    return constant_per_group(ideal, truth, [f"{run.source} on {run.chip}" for run in runs])


def _with_efficiency(runs: list[Run], skipped: Counter[str]) -> tuple[list[Run], list[Efficiency]]:
    kept, found = [], []
    for run in runs:
        record = efficiencies.of(run.chip, run.source)
        if record is None:
            skipped[f"no fitted efficiency for {run.chip}"] += 1
        else:
            kept.append(run)
            found.append(record)
    return kept, found


def _predict(runs: list[Run], efficiency: list[Efficiency]) -> np.ndarray:
    times = np.zeros(len(runs))
    for record in {id(one): one for one in efficiency}.values():
        rows = [number for number, one in enumerate(efficiency) if one is record]
        step_time, _ = execution(runs[rows[0]].chip)
        times[rows] = np.asarray(predict(stack([runs[row] for row in rows]), record, step_time))
    return times


def _ranks(runs: Sequence[Run], times: np.ndarray) -> dict[str, float | None]:
    truth = np.array([run.step_time for run in runs], float)
    models: list[tuple[Hashable, ...]] = [
        (run.source, run.chip, run.model_name, float(run.model.sequence_length)) for run in runs
    ]
    problems = [
        (*model, float(run.strategy.global_batch_size), float(run.system.num_dies))
        for model, run in zip(models, runs, strict=True)
    ]
    same = ranking(problems, times, truth)
    return {"tau": ranking(models, times, truth)["tau"], "tau_same_batch": same["tau"], "regret": same["regret"]}
