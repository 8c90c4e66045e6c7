"""`watos compromise`: one wafer for several models, or for several technologies."""

import json
from dataclasses import replace
from itertools import product
from typing import Annotated, Any

import typer

from watos_jax.cli.options import AsJson, SequenceLength
from watos_jax.cli.runtime import CompileClock, prepare, progress
from watos_jax.cli.values import choice, model_of, number, one_line, whole
from watos_jax.presets import budgets, technologies
from watos_jax.report.objectives import compromise_record, compromise_view
from watos_jax.search import codesign as search
from watos_jax.search.candidates import OPTIONS
from watos_jax.search.climb import MEANS
from watos_jax.search.compromise import Case
from watos_jax.search.compromise import compromise as find
from watos_jax.search.objective import OBJECTIVES


def compromise(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Presets, or paths of a config.json.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="Weight of each model in the mean; equal if not given.")
    ] = None,
    mean: Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(MEANS)}.")] = "geometric",
    technology: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Technologies that the wafer must do in; that of the budget if not given."
        ),
    ] = None,
    budget: Annotated[str, typer.Option(metavar="NAME", help="The wafer to fill; see `watos presets budgets`.")] = (
        "default"
    ),
    objective: Annotated[str, typer.Option(metavar="NAME", help=f"What to make most of: {', '.join(OBJECTIVES)}.")] = (
        "tokens-per-second"
    ),
    time_limit: Annotated[str, typer.Option(metavar="SECONDS", help="When to stop the proof of each case.")] = (
        f"{search.TIME_LIMIT:g}"
    ),
    global_batch_size: Annotated[str, typer.Option(metavar="N", help="Sequences per optimizer step.")] = "512",
    sequence_length: SequenceLength = None,
    as_json: AsJson = False,
) -> Any:
    """Design one wafer for several models.

    Every model is given its own best strategy on the common wafer, and the mean of their tokens per second is made
    large: arithmetic where weights are shares of time, harmonic where they are shares of tokens, geometric, or the
    worst. With several technologies, every model on every technology is a case; the worst of them says what a wafer
    does that must be ordered before the process is known. Every case is also designed alone: its proof bounds the
    mean, and its own wafer says what sharing costs it.

    \b
      watos compromise llama3-70b gpt3-175b
      watos compromise llama3-70b mixtral-8x7b --weights 3,1 --mean harmonic --json
      watos compromise llama3-70b --technology demonstrated-n7,dense-n7,gpu-n7 --mean worst
    """  # noqa: D301
    prepare()
    if not models:
        raise ValueError("MODEL is missing: there must be at least one, such as llama3-70b")
    kind = choice("--mean", mean, MEANS)
    goal = OBJECTIVES[choice("--objective", objective, OBJECTIVES)]
    batch, most = whole("--global-batch-size", global_batch_size), number("--time-limit", time_limit, high=1e6)
    chosen = budgets.NAMES[choice("--budget", budget, budgets.NAMES)]
    shares = [1.0] * len(models) if weights is None else [number("--weights", w, high=1e6) for w in weights.split(",")]
    if len(shares) != len(models) or not all(shares):
        raise ValueError(f"--weights is {weights!r}: it must hold a number above 0 for each of {len(models)} models")
    named = (
        [None] if technology is None else [choice("--technology", t, technologies.NAMES) for t in technology.split(",")]
    )
    cases = []
    for (name, share), process in product(zip(models, shares, strict=True), named):
        wafer = chosen.wafer if process is None else replace(chosen.wafer, technology=technologies.NAMES[process])
        cases.append(
            Case(
                model_of(name, sequence_length),
                replace(chosen, wafer=wafer),
                weight=share,
                options=replace(OPTIONS, global_batch_size=batch),
                name=name if process is None else f"{name} {process}",
            )
        )
    with progress(f"designing a wafer for {len(cases)} cases") as report, CompileClock() as clock:
        found = find(cases, mean=kind, objective=goal, time_limit=most, progress=report)
    record: dict[str, Any] = {"budget": budget, "objective_name": objective} | compromise_record(cases, found)
    record |= {"compile_time": clock.time}
    if as_json:
        return json.dumps(record, indent=2, allow_nan=False)
    return compromise_view(one_line(f"{', '.join(models)} on one wafer of the {budget} budget"), record)
