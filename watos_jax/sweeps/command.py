"""What `watos sweep` does: a sweep with a bar on the standard error, and its answers as plain data."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from watos_jax.sweeps.answers import Sweep
from watos_jax.sweeps.build import build
from watos_jax.sweeps.declare import read
from watos_jax.sweeps.drive import Progress, sweep
from watos_jax.sweeps.points import Rows


def run(
    space: str | Path,
    out: str | Path | None = None,
    *,
    cluster: str | None = None,
    chunk: int | None = None,
    quiet: bool = False,
) -> Sweep:
    """Run the sweep of a TOML file, with a bar of progress on the standard error.

    Args:
        space: path of the file.
        out: folder for the results; in memory where None.
        cluster: address of a Dask scheduler.
        chunk: points of a tile.
        quiet: whether there is no bar; notices are lines there.

    Raises:
        ValueError: the file or the folder cannot be used; the message is one sentence.
    """
    plan = build(*read(space))
    if quiet:
        return sweep(plan, out=out, cluster=cluster, chunk=chunk, notice=lambda text: print(text, file=sys.stderr))
    with bar(plan.keep.by) as (progress, notice):
        return sweep(plan, out=out, cluster=cluster, chunk=chunk, progress=progress, notice=notice)


@contextlib.contextmanager
def bar(name: str) -> Iterator[tuple[Callable[[Progress], None], Callable[[str], None]]]:
    """A bar of progress on the standard error: share, points per second, time left, best so far.

    Args:
        name: of the metric whose best value is shown.

    Returns:
        What `sweep` takes as `progress` and `notice`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    shown = (
        TextColumn("sweep"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
    )
    with Bar(*shown, console=console) as bars:
        task = bars.add_task("sweep", total=None, text="enumerating, compiling")

        def progress(now: Progress) -> None:
            bars.update(task, total=now.total, completed=now.done, text=line(now, name) if now.rate else "compiling")

        yield progress, lambda text: console.print(text, style="yellow")


def line(now: Progress, name: str) -> str:
    """Rate, time left, best so far and share of feasible points in one line."""
    minutes, seconds = divmod(round(min(now.time_left, 359_999.0)), 60)
    best = "none feasible" if now.best is None else f"best {name} {now.best:,.4g}"
    share = now.feasible / max(now.done, 1)
    return f"{now.rate:,.0f} points/s, {minutes}:{seconds:02d} left, {best}, {share:.1%} feasible"


def plain(result: Sweep) -> dict[str, Any]:
    """The answers as numbers, names, lists and dictionaries, ready for JSON; SI units by column under `units`."""
    return {
        "evaluated": result.evaluated,
        "feasible": result.feasible,
        "out": None if result.path is None else str(result.path),
        "units": {column.name: column.unit for column in result.plan.columns},
        "top": records(result.top),
        "pareto": records(result.pareto),
        "histogram": records(result.histogram),
    }


def records(rows: Rows) -> list[dict[str, Any]]:
    """One dictionary per row."""
    lists = {name: np.asarray(values).tolist() for name, values in rows.items()}
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
