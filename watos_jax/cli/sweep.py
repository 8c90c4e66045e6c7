"""`watos sweep`: a declared space of designs, evaluated to the end or to the questions asked of it."""

import json
import sys
from typing import Annotated, Any, Final

import numpy as np
import typer

from watos_jax.cli.options import AsJson
from watos_jax.cli.runtime import prepare, progress
from watos_jax.cli.values import one_line, whole
from watos_jax.report.text import stacked, table
from watos_jax.sweeps import Progress, Sweep, build, read
from watos_jax.sweeps import sweep as run
from watos_jax.sweeps.columns import Rows

SHOWN: Final = 5
"""Designs of a table."""


def sweep(
    space: Annotated[str, typer.Argument(metavar="SPACE.toml", help="The space; see docs/sweeps.md.")],
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Folder for Parquet parts and answers.")] = None,
    cluster: Annotated[str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, host:port.")] = None,
    chunk: Annotated[str | None, typer.Option(metavar="N", help="Designs per tile, if not chosen here.")] = None,
    as_json: AsJson = False,
) -> Any:
    """Evaluate every design of a space.

    Keeps the best, a Pareto front, histograms or all rows, as the file asks. With --out a run that was stopped goes on
    where it was when it is started again.

    \b
      watos sweep space.toml
      watos sweep space.toml --out results --json
    """  # noqa: D301
    prepare()
    size = None if chunk is None else whole("--chunk", chunk)
    if cluster is not None and out is None:
        raise ValueError("--out is missing: with --cluster it must be a folder that all workers see")
    with progress(f"sweeping {space}") as report:
        plan = build(*read(space))
        found = run(
            plan,
            out=out,
            cluster=cluster,
            chunk=size,
            progress=lambda now: report(_line(now, plan.keep.by), now.done / now.total),
            notice=lambda text: print(text, file=sys.stderr),
        )
    return json.dumps(_record(found), indent=2, allow_nan=False) if as_json else _view(space, found)


def _line(now: Progress, name: str) -> str:
    # rate, time left, best so far and share of feasible points
    minutes, seconds = divmod(round(min(now.time_left, 359_999.0)), 60)
    best = "none feasible" if now.best is None else f"best {name} {now.best:,.4g}"
    share = now.feasible / max(now.done, 1)
    return f"{now.rate:,.0f} points/s, {minutes}:{seconds:02d} left, {best}, {share:.1%} feasible"


def _record(found: Sweep) -> dict[str, Any]:
    return {
        "evaluated": found.evaluated,
        "feasible": found.feasible,
        "out": None if found.path is None else str(found.path),
        "units": {column.name: column.unit for column in found.plan.columns},
        "top": _records(found.top),
        "pareto": _records(found.pareto),
        "histogram": _records(found.histogram),
    }


def _records(rows: Rows) -> list[dict[str, Any]]:
    lists = {name: np.asarray(values).tolist() for name, values in rows.items()}
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _view(space: str, found: Sweep) -> Any:
    place = "" if found.path is None else f"; in {found.path}"
    count = f"{found.feasible:,} of {found.evaluated:,} designs of {space} fit{place}"
    tables = [
        _table(title, found, rows)
        for title, rows in ((f"Best by {found.plan.keep.by}", found.top), ("Pareto front", found.pareto))
        if rows and rows["index"].size
    ]
    return stacked(one_line(count), *tables)


def _table(title: str, found: Sweep, rows: Rows) -> Any:
    # designs side by side: they have more quantities than a terminal has columns
    count = rows["index"].size
    more = f", the first {SHOWN} of {count:,}" if count > SHOWN else ""
    cells = [
        (column.name, "" if column.unit == "1" else column.unit, *map(_cell, rows[column.name][:SHOWN]))
        for column in found.plan.columns
        if column.values is None or len(column.values) > 1
    ]
    return table(title + more, ("", "", *(f"{place + 1}" for place in range(min(count, SHOWN)))), cells, words=2)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, np.floating) else str(value)
