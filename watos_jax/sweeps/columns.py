"""Columns of the rows of a sweep: their units, and what codes stand for."""

from typing import NamedTuple

import numpy as np


class Column(NamedTuple):
    """One column of rows.

    Attributes:
        name: of the column.
        unit: SI unit; "1" for a count or ratio; empty for a name.
        values: what codes stand for, where the column is stored as codes.
    """

    name: str
    unit: str
    values: np.ndarray | None = None


Rows = dict[str, np.ndarray]
"""Columns of equal length; a column with `Column.values` holds codes until it is expanded."""


def expanded(columns: tuple[Column, ...], rows: Rows) -> Rows:
    """Rows with codes replaced by what they stand for."""
    known = {column.name: column.values for column in columns}
    found: Rows = {}
    for name, values in rows.items():
        stands = known.get(name)
        found[name] = values if stands is None else stands[values]
    return found


def unit_of(name: str) -> str:
    """SI unit of a quantity of a record, from the words that its name ends in."""
    leaf = name.rsplit(".", 1)[-1]
    if name.startswith("model."):
        return "1"
    units = {
        "clock": "Hz", "bandwidth": "B/s", "latency": "s", "_time": "s", "_bytes": "B", "per_clock": "B",
        "_length": "m", "_depth": "m", "width": "m", "height": "m", "gap": "m", "_area": "m2",
        "shoreline_density": "B/s/m", "power_density": "W/m2", "power_density_limit": "W/m2", "power_limit": "W",
    }  # fmt: skip
    if name in ("d2d.energy", "technology.sram_energy", "technology.dram_energy"):
        return "J/B"
    if leaf == "flop_energy":
        return "J"
    if name == "d2d.phy_area":
        return "m2 s/B"
    if leaf == "sram_area":
        return "m2/B"
    return next((unit for end, unit in units.items() if leaf.endswith(end)), "1")
