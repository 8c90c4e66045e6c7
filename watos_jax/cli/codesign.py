"""`watos codesign`: the wafer's area split and the training strategy, together."""

import json
from dataclasses import replace
from typing import Annotated, Any

import typer

from watos_jax.cli.options import AsJson, Model, Rung, SequenceLength
from watos_jax.cli.runtime import CompileClock, prepare, progress
from watos_jax.cli.values import choice, model_of, number, one_line, whole
from watos_jax.operators.fidelity import FIDELITIES
from watos_jax.presets import budgets
from watos_jax.presets import prices as price_lists
from watos_jax.report.design import design_view
from watos_jax.report.records import design_record, resolved_record
from watos_jax.search import codesign as search
from watos_jax.search import resolved, shadow
from watos_jax.search.candidates import OPTIONS
from watos_jax.search.objective import OBJECTIVES
from watos_jax.search.plan import plan


def codesign(
    model: Model = None,
    budget: Annotated[str, typer.Option(metavar="NAME", help="The wafer to fill; see `watos presets budgets`.")] = (
        "default"
    ),
    objective: Annotated[str, typer.Option(metavar="NAME", help=f"What to make most of: {', '.join(OBJECTIVES)}.")] = (
        "tokens-per-second"
    ),
    prices: Annotated[str, typer.Option(metavar="NAME", help="What dollars are counted with.")] = "actuary-n7",
    shadow_prices: Annotated[
        bool, typer.Option("--shadow-prices", help="Also show what more of each limit and constant is worth.")
    ] = False,
    resolve_prices: Annotated[
        str,
        typer.Option(metavar="SHARE", help="Search again with so much less and more of each allowance; 0 does not."),
    ] = "0",
    gap: Annotated[str, typer.Option(metavar="SHARE", help="Proven gap at which to stop; 0 finds the best design.")] = (
        f"{search.GAP:g}"
    ),
    time_limit: Annotated[str, typer.Option(metavar="SECONDS", help="When to stop proving, whatever the gap.")] = (
        f"{search.TIME_LIMIT:g}"
    ),
    refine: Annotated[
        bool, typer.Option("--refine", help="Also share memory between stages, place them, and bound that.")
    ] = False,
    global_batch_size: Annotated[str, typer.Option(metavar="N", help="Sequences per optimizer step.")] = "512",
    sequence_length: SequenceLength = None,
    fidelity: Rung = "roofline",
    as_json: AsJson = False,
) -> Any:
    """Design a wafer and its training strategy.

    Looks for the pair that trains the model fastest (with --objective, with the least energy or money): die grid,
    die size, cores, SRAM, memory stacks, die-to-die bandwidth and clock within the budget, with every strategy that
    tiles the dies. For tokens per second it then proves how far the design is from the best there is: the proof ends
    at --gap or --time-limit, and may find a better design. No accelerator is needed. The first run compiles, for
    about a minute, which is kept for later runs.

    The search and its proof are the roofline's, which no other operator model undercuts: nothing that meets the limits
    there is faster than the proof says by any of them. With another --fidelity the strategies of the designed wafer are
    ranked again by that model, and the best is printed last.

    \b
      watos codesign llama3-70b
      watos codesign llama3-70b --objective tokens-per-dollar --prices ttm-n7
      watos codesign llama3-70b --shadow-prices
      watos codesign llama3-70b --resolve-prices 0.02
      watos codesign llama3-70b --gap 0
      watos codesign llama3-70b --refine
      watos codesign llama3-70b --fidelity predictor
      watos codesign mixtral-8x7b --budget dense-198 --global-batch-size 1024
      watos codesign path/to/config.json --sequence-length 4096 --json > design.json

    Where no design fits, the exit status is 2, and the message says which limit is exceeded, by how much, and the
    least change that would do.
    """  # noqa: D301
    prepare()
    batch = whole("--global-batch-size", global_batch_size)
    goal = OBJECTIVES[choice("--objective", objective, OBJECTIVES)]
    goal = replace(goal, prices=price_lists.NAMES[choice("--prices", prices, price_lists.NAMES)])
    most, seconds = number("--gap", gap, high=1e6), number("--time-limit", time_limit, high=1e6)
    share = number("--resolve-prices", resolve_prices, high=0.5)
    chosen = budgets.NAMES[choice("--budget", budget, budgets.NAMES)]
    rung: Any = choice("--fidelity", fidelity, FIDELITIES)
    transformer = model_of(model, sequence_length)
    options = replace(OPTIONS, global_batch_size=batch)
    with progress(f"designing a wafer for {model}") as report, CompileClock() as clock:
        design = search.codesign(
            transformer,
            chosen,
            options=options,
            objective=goal,
            gap=most,
            time_limit=seconds,
            refine=refine,
            progress=report,
        )
        report("shadow prices", 0.0)
        worth = shadow.shadow_prices(design, transformer, chosen)
        again = (
            resolved.resolved_prices(design, transformer, chosen, change=share, options=options, progress=report)
            if share
            else None
        )
        rescored = None
        if rung != "roofline":
            report(rung, 0.0)
            rescored = plan(design.wafer, transformer, options=options, top=1, fidelity=rung).best
    record = (
        {"model": model, "budget": budget, "objective_name": objective, "price_list": prices}
        | design_record(design, worth, rescored[0] if rescored else None)
        | {"resolved_prices": resolved_record(again, share), "compile_time": clock.time}
    )
    if as_json:
        return json.dumps(record, indent=2, allow_nan=False)
    return design_view(one_line(f"{model} on a wafer of the {budget} budget"), record, every_price=shadow_prices)
