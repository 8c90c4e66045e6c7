"""Simulated collectives beside the coefficients of the model."""

from collections import Counter
from pathlib import Path
from typing import Any

from watos_jax.network import simulated
from watos_jax.units import MIB, MICRO
from watos_jax.validate.errors import Report, report, rows_of


def network(path: str | Path) -> Report:
    """Compare simulated collectives of at least 1 MiB with the model's coefficients, nothing fitted.

    Args:
        path: a CSV file of collectives; see `network.simulated.predict`.

    Raises:
        ValueError: the file cannot be read, lacks a column, or no row can be used.
    """
    rows = rows_of(path)
    skipped, cases = Counter[str](), list[str]()
    predictions = list[dict[str, Any]]()
    for line, row in enumerate(rows, start=2):
        found = simulated.predict(row)
        if found.skipped:
            skipped[found.skipped] += 1
        elif float(row["bytes"]) < MIB:
            skipped["below 1 MiB"] += 1
        else:
            cases.append(found.case)
            name = row.get("row_id") or str(line)
            predictions.append({"row_id": name, "measured": float(row["time_us"]) * MICRO, "predicted": found.time})
    return report(path, len(rows), skipped, cases, predictions)
