"""From one TOML file to a space and what to keep of it."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from watos_jax.search.space import Options
from watos_jax.strategy import RECOMPUTE_LEVELS, SCHEDULES, TENSOR_COLLECTIVES, Strategy
from watos_jax.sweeps.checks import as_table, check_keys, is_number
from watos_jax.sweeps.keep import Histogram, Keep
from watos_jax.sweeps.space import Space


def read(path: str | Path) -> tuple[Space, Keep]:
    """Read a space and what to keep of it from a TOML file.

    Args:
        path: the file. Keys as the fields of `Space`; the table `keep` as the fields of `Keep`; the table
            `strategies` as those of `Options`, or an array of tables `strategy` as those of `Strategy`, codes by name.

    Raises:
        ValueError: the file cannot be read, or a value breaks a rule; the message names file, field, value and rule.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return declare(tomllib.loads(content.decode()))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read: byte {error.start} is not UTF-8, as TOML must be") from None
    except ValueError as error:  # TOMLDecodeError is one
        raise ValueError(f"{path}: {error}") from None


def declare(table: Mapping[str, Any]) -> tuple[Space, Keep]:
    """A space and what to keep of it from plain data, as a TOML file has it; see `read`."""
    known = [item.name for item in fields(Space)] + ["keep", "strategy"]
    check_keys("", table, known)
    values = {name: value for name, value in table.items() if name not in ("keep", "strategy", "strategies")}
    for name in ("wafers", "models"):
        if name not in values:
            raise ValueError(f"{name} is missing: it must name at least one")
    if "strategies" in table and "strategy" in table:
        raise ValueError("strategies and strategy are both given: one of the two must be left out")
    if "strategies" in table:
        chosen = as_table("strategies", table["strategies"])
        check_keys("strategies.", chosen, [item.name for item in fields(Options)])
        try:
            values["strategies"] = Options(**chosen)
        except ValueError as error:
            raise ValueError(f"strategies.{error}") from None
    if "strategy" in table:
        if not isinstance(table["strategy"], list):
            raise ValueError(f"strategy is {table['strategy']!r}: it must be an array of tables, [[strategy]]")
        values["strategies"] = tuple(_strategy(as_table("strategy", entry)) for entry in table["strategy"])
    kept = as_table("keep", table.get("keep", {}))
    check_keys("keep.", kept, [item.name for item in fields(Keep)])
    if "histogram" in kept:
        bins = as_table("keep.histogram", kept["histogram"])
        check_keys("keep.histogram.", bins, [item.name for item in fields(Histogram)])
        for name in ("of", "low", "high"):
            if name not in bins:
                raise ValueError(f"keep.histogram.{name} is missing: it must be given")
        kept["histogram"] = Histogram(**bins)
    return Space(**values), Keep(**kept)


def _strategy(table: Mapping[str, Any]) -> Strategy:
    check_keys("strategy.", table, list(Strategy.__dataclass_fields__))
    values = dict(table)
    codes = {"recompute": RECOMPUTE_LEVELS, "schedule": SCHEDULES, "tensor_collective": TENSOR_COLLECTIVES}
    for name, known in codes.items():
        if isinstance(values.get(name), str):
            if values[name] not in known:
                raise ValueError(f"strategy.{name} is {values[name]!r}: it must be one of {', '.join(known)}")
            values[name] = known.index(values[name])
    for name, value in values.items():
        if not is_number(value):
            raise ValueError(f"strategy.{name} is {value!r}: it must be a number")
    return Strategy(**values)
