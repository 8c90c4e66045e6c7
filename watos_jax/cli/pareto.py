"""`watos pareto`: the front of two objectives."""

import json
from dataclasses import replace
from typing import Annotated, Any

import typer

from watos_jax.cli.options import AsJson, Model, SequenceLength
from watos_jax.cli.runtime import CompileClock, prepare, progress
from watos_jax.cli.values import choice, model_of, one_line, whole
from watos_jax.presets import budgets
from watos_jax.presets import prices as price_lists
from watos_jax.report.objectives import front_record, front_view
from watos_jax.search.candidates import OPTIONS
from watos_jax.search.objective import OBJECTIVES
from watos_jax.search.pareto import WEIGHTS
from watos_jax.search.pareto import pareto as find


def pareto(
    model: Model = None,
    budget: Annotated[str, typer.Option(metavar="NAME", help="The wafer to fill; see `watos presets budgets`.")] = (
        "default"
    ),
    objectives: Annotated[
        str, typer.Option(metavar="NAME,NAME", help=f"The two objectives, of {', '.join(OBJECTIVES)}.")
    ] = "tokens-per-second,tokens-per-joule",
    prices: Annotated[str, typer.Option(metavar="NAME", help="What dollars are counted with.")] = "actuary-n7",
    weights: Annotated[str, typer.Option(metavar="N", help="Weighted products to search, both ends among them.")] = (
        f"{WEIGHTS}"
    ),
    global_batch_size: Annotated[str, typer.Option(metavar="N", help="Sequences per optimizer step.")] = "512",
    sequence_length: SequenceLength = None,
    as_json: AsJson = False,
) -> Any:
    """Trade one objective against another.

    Designs of which none is better than another in both objectives: the best of each alone, the best of weighted
    products of the two, and what is good among the lattice points around them. The hypervolume is the share of the
    rectangle up to the best of both that some design reaches. Designs beyond the front are not ruled out.

    \b
      watos pareto llama3-70b
      watos pareto llama3-70b --objectives tokens-per-second,tokens-per-dollar --prices ttm-n7 --json
    """  # noqa: D301
    prepare()
    names = [choice("--objectives", name, OBJECTIVES) for name in objectives.split(",")]
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"--objectives is {objectives!r}: it must be two different names with a comma between them")
    batch, count = whole("--global-batch-size", global_batch_size), whole("--weights", weights, low=2, high=1000)
    chosen = budgets.NAMES[choice("--budget", budget, budgets.NAMES)]
    priced = price_lists.NAMES[choice("--prices", prices, price_lists.NAMES)]
    transformer = model_of(model, sequence_length)
    with progress(f"looking for the front of {model}") as report, CompileClock() as clock:
        front = find(
            transformer,
            chosen,
            objectives=(names[0], names[1]),
            prices=priced,
            options=replace(OPTIONS, global_batch_size=batch),
            weights=count,
            progress=report,
        )
    record: dict[str, Any] = {"model": model, "budget": budget, "price_list": prices} | front_record(front)
    record |= {"compile_time": clock.time}
    if as_json:
        return json.dumps(record, indent=2, allow_nan=False)
    return front_view(one_line(f"{model} on wafers of the {budget} budget"), record)
