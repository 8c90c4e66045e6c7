"""`watos sweep`: a declared space of designs, evaluated to the end or to the questions asked of it."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from watos_jax.cli.options import AsJson
from watos_jax.cli.runtime import prepare
from watos_jax.cli.values import one_line, whole


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
    from watos_jax.sweeps import command

    size = None if chunk is None else whole("--chunk", chunk)
    found = command.plain(command.run(space, out, cluster=cluster, chunk=size, quiet=as_json))
    return json.dumps(found, indent=2) if as_json else _view(one_line(f"best of {space}"), found)


def _view(title: str, found: dict[str, Any]) -> Table:
    caption = f"{found['feasible']:,} of {found['evaluated']:,} designs fit" + (
        f"; in {found['out']}" if found.get("out") else ""
    )
    table = Table(title=title, caption=caption)
    rows = found["top"][:10] if isinstance(found["top"], list) else []
    for name in rows[0] if rows else ():
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    return table
