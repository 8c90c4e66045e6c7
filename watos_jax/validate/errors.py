"""Errors of predictions and their ranks, which all kinds of validation share.

Errors are fractions: `mape` and `median_ape` of |predicted / measured - 1|, `bias` the mean of
predicted / measured - 1.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Report = dict[str, Any]
"""What a validation returns: the keys of `summary`, with `rows, used, skipped, groups, predictions`."""


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


def report(
    path: str | Path,
    num_rows: int,
    skipped: Counter[str],
    groups: Sequence[str],
    predictions: Sequence[dict[str, Any]],
    naive: Sequence[float] | np.ndarray | None = None,
) -> Report:
    """Assemble a report: counts, errors of all predictions and of each group, and the predictions.

    Args:
        path: the file, for the message.
        num_rows: rows of the file.
        skipped: rows left out, by reason.
        groups: label of each prediction.
        predictions: dictionaries of `row_id, measured, predicted`; the label is added as `group`.
        naive: what a baseline predicts for each; None leaves `naive_mape` out.

    Raises:
        ValueError: no row can be used.
    """
    if not predictions:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in skipped.most_common())
        raise ValueError(f"{path} has no row that can be used: {reasons}")
    truth, ours = (np.array([one[key] for one in predictions], float) for key in ("measured", "predicted"))

    def of(mine: np.ndarray) -> dict[str, Any]:
        errors: dict[str, Any] = {"used": int(mine.sum())} | summary(ours[mine], truth[mine])
        if naive is not None:
            errors["naive_mape"] = summary(np.asarray(naive)[mine], truth[mine])["mape"]
        return errors

    labels = np.array(groups)
    named = [one | {"group": label} for one, label in zip(predictions, groups, strict=True)]
    whole = {"rows": num_rows, "skipped": dict(skipped)} | of(np.ones(len(predictions), bool))
    each = {str(name): of(labels == name) for name in np.unique(labels)}
    return whole | {"groups": each, "predictions": named}


def constant_per_group(ideal: Sequence[float], truth: Sequence[float], groups: Sequence[str]) -> np.ndarray:
    """Times of a baseline with one constant per group over an ideal time: the best constant for log errors."""
    base, right, labels = np.asarray(ideal, float), np.asarray(truth, float), np.array(groups)
    times = np.zeros(len(base))
    for label in np.unique(labels):
        mine = labels == label
        times[mine] = base[mine] * np.exp(np.median(np.log(right[mine] / base[mine])))
    return times
