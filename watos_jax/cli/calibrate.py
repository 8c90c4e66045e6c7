"""`watos calibrate`: the efficiency of a machine, fitted to measured training runs."""

import json
from typing import Annotated, Any, Final

import jax
import typer
from rich.table import Table

from watos_jax.cli.options import AsJson
from watos_jax.cli.runtime import prepare, progress
from watos_jax.cli.values import choice, one_line, shown

UNITS: Final = {"matmul_rows": "tokens", "matmul_cols": "columns", "attention_rows": "tokens"} | dict.fromkeys(
    ("launch_time", "collective_latency"), "s"
)
"""Units of the fields that have one; the others are ratios."""


def calibrate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A CSV file of measured training runs.")],
    chip: Annotated[str, typer.Option(metavar="CHIP", help="Rows of this chip, such as A100 or GB200.")],
    source: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="Only rows whose source contains this text, or one of several between commas."
        ),
    ] = "",
    as_json: AsJson = False,
) -> Any:
    """Fit a chip's efficiency to measured step times.

    Descends the gradient of the error. Prints every field with its standard error, and the error on configurations
    that were left out of the fit.

    \b
      watos calibrate runs.csv --chip A100
      watos calibrate runs.csv --chip H100 --source "my cluster" --json
    """  # noqa: D301
    prepare()
    from watos_jax import measured
    from watos_jax.calibrate import fit
    from watos_jax.validate import execution

    name = choice("--chip", chip, measured.CHIPS)
    runs, skipped = measured.read(file)
    texts = [text.strip().lower() for text in source.split(",")]
    chosen = [run for run in runs if run.chip == name and any(text in run.source.lower() for text in texts)]
    if not chosen:
        where = f" whose source contains {shown(source)}" if source else ""
        raise ValueError(f"--chip is {shown(chip)}: {file} must hold runs on it{where} that can be modelled")
    with jax.enable_x64(True), progress(f"fitting {name}"):
        step_time, start = execution(name)
        found = fit(chosen, start=start, step_time=step_time)
    fields = [field for field in start.__dataclass_fields__ if getattr(start, field) > 0]
    record = {
        "chip": name,
        "rows": found.num_rows,
        "configurations": found.num_configurations,
        "skipped": dict(skipped),
        "mape": found.error,
        "cross_validated_mape": found.cross_validated_error,
        "efficiency": {field: float(getattr(found.efficiency, field)) for field in fields},
        "relative_standard_error": {field: float(getattr(found.relative_error, field)) for field in fields},
    }
    return json.dumps(record, indent=2, allow_nan=False) if as_json else _view(one_line(f"{name}: {file}"), record)


def _view(title: str, record: dict[str, Any]) -> Table:
    caption = (
        f"{record['rows']} rows of {record['configurations']} configurations; mean error {record['mape']:.1%}, "
        f"on configurations left out {record['cross_validated_mape']:.1%}"
    )
    table = Table(title=title, caption=caption)
    for heading in ("field", "value", "unit", "standard error"):
        table.add_column(heading, justify="left" if heading in ("field", "unit") else "right")
    for field, value in record["efficiency"].items():
        relative = record["relative_standard_error"][field]
        shown = f"x/÷ {2.718281828**relative:.2f}" if relative < 3 else "not determined"
        table.add_row(field, f"{value:.3g}", UNITS.get(field, ""), shown)
    return table
