"""Simulated collectives beside the coefficients of the model."""

from collections import Counter
from pathlib import Path
from typing import Any

from watos_jax.measured import number, rows_of
from watos_jax.network import simulated
from watos_jax.units import MIB, MICRO
from watos_jax.validate.errors import Report, report


def network(path: str | Path, *, least_bytes: float = MIB) -> Report:
    """Compare simulated collectives with the model's coefficients, nothing fitted.

    Args:
        path: a CSV file of collectives; see `network.simulated.predict`.
        least_bytes: smaller buffers are left out: latency rules them.

    Raises:
        ValueError: the file cannot be read, lacks a column, or no row can be used.
    """
    rows = rows_of(path)
    skipped, cases = Counter[str](), list[str]()
    predictions = list[dict[str, Any]]()
    for line, row in enumerate(rows, start=2):
        try:
            found = simulated.predict(row)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
        measured = number(row, "time_us")
        if found.skipped:
            skipped[found.skipped] += 1
        elif measured is None:
            skipped["time_us blank"] += 1
        elif float(row["bytes"]) < least_bytes:
            skipped[f"below {least_bytes / MIB:g} MiB"] += 1
        else:
            cases.append(found.case)
            name = row.get("row_id") or str(line)
            predictions.append({"row_id": name, "measured": measured * MICRO, "predicted": found.time})
    return report(path, len(rows), skipped, cases, predictions)
