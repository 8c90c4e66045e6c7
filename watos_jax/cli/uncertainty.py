"""`watos uncertainty`: designs under draws of the technology's constants."""

import json
from dataclasses import replace
from typing import Annotated, Any

import typer

from watos_jax.cli.options import AsJson, Model, SequenceLength
from watos_jax.cli.runtime import CompileClock, prepare, progress
from watos_jax.cli.values import choice, model_of, number, one_line, whole
from watos_jax.presets import budgets, uncertainties
from watos_jax.report.objectives import uncertainty_record, uncertainty_view
from watos_jax.search import uncertainty as search
from watos_jax.search.candidates import OPTIONS
from watos_jax.search.objective import OBJECTIVES


def uncertainty(
    model: Model = None,
    budget: Annotated[str, typer.Option(metavar="NAME", help="The wafer to fill; see `watos presets budgets`.")] = (
        "default"
    ),
    objective: Annotated[str, typer.Option(metavar="NAME", help=f"What to make most of: {', '.join(OBJECTIVES)}.")] = (
        "tokens-per-second"
    ),
    spread: Annotated[
        str, typer.Option(metavar="NAME", help=f"Deviations of the constants, of {', '.join(uncertainties.NAMES)}.")
    ] = "published-n7",
    scale: Annotated[str, typer.Option(metavar="SHARE", help="Share of those deviations.")] = "1",
    draws: Annotated[str, typer.Option(metavar="N", help="Draws of the constants.")] = f"{search.DRAWS}",
    tolerance: Annotated[
        str, typer.Option(metavar="SHARE", help="Mean gain of designs made for single draws at which the pool stands.")
    ] = f"{search.TOLERANCE:g}",
    designs: Annotated[str, typer.Option(metavar="N", help="Most draws for which a design is looked for.")] = (
        f"{search.DESIGNS}"
    ),
    checked: Annotated[
        str, typer.Option(metavar="N", help="Further draws, searched to see how far the pool falls short.")
    ] = f"{search.CHECKED}",
    seed: Annotated[str, typer.Option(metavar="N", help="Of the draws.")] = "0",
    global_batch_size: Annotated[str, typer.Option(metavar="N", help="Sequences per optimizer step.")] = "512",
    sequence_length: SequenceLength = None,
    as_json: AsJson = False,
) -> Any:
    """Say what a design is worth if the constants are off.

    Published constants of one process disagree. They are drawn from their spread, and a pool of designs is grown: draw
    after draw is searched, and what is better than all of the pool enters it, until the mean gain is within --tolerance
    or --designs draws are searched. All designs are then estimated under --draws others: how often each
    fits, how often it is the best of the pool, and what it loses where it is not. Further draws are searched to see how
    far the pool falls short.

    \b
      watos uncertainty llama3-70b
      watos uncertainty llama3-70b --scale 0.1 --draws 10000 --json
    """  # noqa: D301
    prepare()
    goal = OBJECTIVES[choice("--objective", objective, OBJECTIVES)]
    sizes = uncertainties.NAMES[choice("--spread", spread, uncertainties.NAMES)]
    share = number("--scale", scale, high=100.0)
    count, made = whole("--draws", draws), whole("--designs", designs, low=0)
    most, further = number("--tolerance", tolerance, high=0.5, above=True), whole("--checked", checked, low=0)
    chosen = budgets.NAMES[choice("--budget", budget, budgets.NAMES)]
    batch, first = whole("--global-batch-size", global_batch_size), whole("--seed", seed, low=0)
    transformer = model_of(model, sequence_length)
    with progress(f"drawing constants for {model}") as report, CompileClock() as clock:
        found = search.uncertainty(
            transformer,
            chosen,
            deviations={name: share * size for name, size in sizes.items()},
            draws=count,
            tolerance=most,
            designs=made,
            checked=further,
            objective=goal,
            options=replace(OPTIONS, global_batch_size=batch),
            seed=first,
            progress=report,
        )
    record = {"model": model, "budget": budget, "objective_name": objective, "spread": spread, "scale": share}
    record |= uncertainty_record(found) | {"compile_time": clock.time}
    if as_json:
        return json.dumps(record, indent=2, allow_nan=False)
    return uncertainty_view(one_line(f"{model} on wafers of the {budget} budget"), record)
