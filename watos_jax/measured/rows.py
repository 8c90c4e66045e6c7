"""Rows of a CSV file of measurements: text by column, numbers where there are some, and why a row is left out."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

LARGEST: Final = 1e15
"""No dimension, size, rate or time of a measurement is larger; what is has a wrong unit, and would overflow."""


class Skip(Exception):
    """Why a row is not used; the message is a short reason that rows share."""


def rows_of(path: str | Path, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV file; cells that a short row lacks are empty, those beyond the last column are dropped.

    Args:
        path: the file.
        required: columns that it must have.

    Raises:
        ValueError: the file cannot be read, has no rows, or lacks a column.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            columns = reader.fieldnames or ()
            rows = [{name: cell for name, cell in row.items() if name is not None} for row in reader]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a CSV file: {error}") from None
    for name in required:
        if name not in columns:
            raise ValueError(f"{path} lacks the column {name}: a file of its kind must have it")
    if not rows:
        raise ValueError(f"{path} has no rows: it must have a line of columns and one for each measurement")
    return rows


def number(row: Mapping[str, str], column: str) -> float | None:
    """A positive, finite number of a row, or None where there is none."""
    try:
        value = float(row.get(column) or "")
    except ValueError:
        return None
    return value if 0.0 < value <= LARGEST else None


def needed(row: Mapping[str, str], column: str) -> float:
    """A positive, finite number of a row.

    Raises:
        Skip: there is none.
    """
    value = number(row, column)
    if value is None:
        is_blank = (row.get(column) or "nan").lower() == "nan"
        raise Skip(f"{column} blank" if is_blank else f"{column} is no number above 0, up to {LARGEST:g}")
    return value
