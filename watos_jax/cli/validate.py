"""`watos validate`: predictions beside measurements of a file."""

import json
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from watos_jax.cli.options import AsJson
from watos_jax.cli.runtime import prepare, progress
from watos_jax.cli.values import choice, one_line

KINDS: Final = ("training", "network", "kernels", "memory")
"""What can be validated."""


def validate(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="training, network, kernels or memory.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="A CSV file of measurements.")],
    as_json: AsJson = False,
) -> Any:
    """Compare predictions with the measurements of a CSV file.

    `training` reads runs (model, chip, parallelism, measured step time) and prints errors by source and chip, the
    rank correlation within each model, the regret of our pick, and the error of a baseline with one fitted
    utilisation per chip and source. `network` reads simulated collectives of 1 MiB and more; `kernels` single matrix
    products, attention cores, element-wise operators or collectives; `memory` the peak of each rank or run. Rows that
    cannot be used are counted by reason.

    \b
      watos validate training runs.csv
      watos validate network collectives.csv --json
    """  # noqa: D301
    prepare()
    import jax

    from watos_jax import validate as validation

    kind = choice("KIND", kind, KINDS)
    with progress(f"validating {kind}"), jax.enable_x64(kind == "kernels"):  # curves are fitted
        report = getattr(validation, kind)(file)
    return json.dumps(report, indent=2, allow_nan=False) if as_json else _view(one_line(f"{kind} of {file}"), report)


def _view(title: str, report: dict[str, Any]) -> Table:
    columns = (
        "used",
        "mape",
        "median_ape",
        "max_ape",
        "bias",
        "tau",
        "tau_same_batch",
        "regret",
        "naive_mape",
        "memory_mape",
    )
    shown = [name for name in columns if name in report]
    left_out = "; ".join(f"{reason} ({count})" for reason, count in sorted(report["skipped"].items()))
    table = Table(title=title, caption=f"{report['used']} of {report['rows']} rows used. Skipped: {left_out or 'none'}")
    table.add_column("group")
    for name in shown:
        table.add_column(name, justify="right")
    for group, errors in [*report["groups"].items(), ("all", report)]:
        table.add_row(group, *(_cell(errors.get(name)) for name in shown))
    return table


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
