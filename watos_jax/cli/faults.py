"""`watos faults`: what dead dies and links cost, and what planning or designing for them saves."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import typer

from watos_jax.cli.options import AsJson, Model, SequenceLength
from watos_jax.cli.runtime import CompileClock, prepare, progress
from watos_jax.cli.values import choice, model_of, number, one_line, shown, wafer_of, whole
from watos_jax.faults import Faults, draw
from watos_jax.hardware import Wafer
from watos_jax.presets import budgets
from watos_jax.report.faults import design_record, design_view, study_record, study_view
from watos_jax.search import draws as search
from watos_jax.search.candidates import OPTIONS
from watos_jax.search.codesign import TIME_LIMIT
from watos_jax.search.draw_design import codesign_for_draws

MOST_DRAWS = 1_000
"""Draws of faults, each of which is searched."""


def faults(
    model: Model = None,
    wafer: Annotated[str | None, typer.Option(metavar="NAME", help="A wafer, such as watos-config-3.")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="NAME", help="In place of --wafer: design the wafer, too, within a budget.")
    ] = None,
    dead_dies: Annotated[str, typer.Option(metavar="SHARE", help="Dies that are dead.")] = "0",
    dead_links: Annotated[str, typer.Option(metavar="SHARE", help="Links between dies that are dead.")] = "0",
    harvested: Annotated[str, typer.Option(metavar="SHARE", help="Dies that have lost cores and memory stacks.")] = "0",
    left: Annotated[str, typer.Option(metavar="SHARE", help="Cores and stacks that a harvested die keeps.")] = "0.75",
    draws: Annotated[str, typer.Option(metavar="N", help="Draws of dies and links.")] = "4",
    seed: Annotated[str, typer.Option(metavar="N", help="Of the first draw; each further one has the next.")] = "0",
    objective: Annotated[
        str, typer.Option(metavar="NAME", help=f"Step time that one plan minimises: {', '.join(search.OBJECTIVES)}.")
    ] = "worst",
    time_limit: Annotated[
        str, typer.Option(metavar="SECONDS", help="With --budget, when to stop proving, whatever the gap.")
    ] = f"{TIME_LIMIT:g}",
    global_batch_size: Annotated[str, typer.Option(metavar="N", help="Sequences per optimizer step.")] = "512",
    sequence_length: SequenceLength = None,
    as_json: AsJson = False,
) -> Any:
    """Say what faults of a wafer cost.

    Draws dead dies and links at random and prints three step times of each draw: with the plan of the whole wafer
    kept, living dies doing the work of dead ones; with one plan for all draws, the strategy whose worst (or mean) step
    is shortest, laid on the dies that live; and planned anew, knowing the draw. Below stand the median and the worst
    draw. Strategies are those that co-design chooses from: micro-batches of up to 8, 1F1B, flash attention.

    With --budget the wafer is designed as well: the hardware and the one strategy whose worst (or mean) step over all
    draws is shortest, how far from the best that is, and what the wafer designed without faults makes of them. Faults
    are drawn on every grid of dies; none is harvested.

    \b
      watos faults llama3-70b --wafer watos-config-3 --dead-dies 0.1 --dead-links 0.05
      watos faults gpt3-175b --wafer watos-config-3 --harvested 0.25 --draws 8 --seed 3 --objective mean --json
      watos faults llama3-70b --budget default --dead-dies 0.05
    """  # noqa: D301
    prepare()
    if budget is not None and wafer is not None:
        raise ValueError(f"--budget is {shown(budget)}: it must not be given beside --wafer")
    chosen = None if budget is None else budgets.NAMES[choice("--budget", budget, budgets.NAMES)]
    machine = wafer_of(wafer) if chosen is None else chosen.wafer
    shares = {"dies": dead_dies, "links": dead_links, "harvested": harvested}
    options = {"dies": "--dead-dies", "links": "--dead-links", "harvested": "--harvested"}
    lost = {name: number(options[name], word, high=1.0) for name, word in shares.items()}
    if not any(lost.values()):
        raise ValueError("--dead-dies is 0: it, --dead-links or --harvested must be above 0, such as --dead-dies 0.1")
    kept = number("--left", left, high=1.0, above=True)
    count, first = whole("--draws", draws, high=MOST_DRAWS), whole("--seed", seed, low=0)
    goal, batch = choice("--objective", objective, search.OBJECTIVES), whole("--global-batch-size", global_batch_size)
    seconds = number("--time-limit", time_limit, high=1e6)
    record: dict[str, Any] = {"model": model, "global_batch_size": batch, "seed": first, "shares": lost}

    def draws_of(drawn_on: Wafer) -> list[Faults]:
        return [draw(drawn_on, **lost, left=kept, seed=first + number) for number in range(count)]

    if chosen is not None:
        if lost["harvested"]:
            raise ValueError(f"--harvested is {shown(harvested)}: it must be 0 with --budget")
        transformer = model_of(model, sequence_length)
        with progress(f"designing a wafer for {model}") as report, CompileClock() as clock:
            design = codesign_for_draws(
                transformer,
                chosen,
                draws_of,
                options=replace(OPTIONS, global_batch_size=batch),
                objective=goal,
                time_limit=seconds,
                progress=report,
            )
        tokens = batch * float(transformer.sequence_length)
        record |= {"budget": budget} | design_record(design, tokens) | {"compile_time": clock.time}
        return _shown(record, as_json, design_view, f"{model} on a wafer of the {budget} budget")
    transformer = model_of(model, sequence_length)
    drawn = draws_of(machine)
    if not all(one.cores.any() for one in drawn):
        raise ValueError(
            f"--dead-dies is {shown(dead_dies)}: it must leave at least one of {machine.num_dies:.0f} dies"
        )
    with progress(f"planning {model}") as report, CompileClock() as clock:
        found = search.study_draws(
            machine, transformer, drawn, global_batch_size=batch, objective=goal, progress=report
        )
    record |= {"wafer": wafer, "left": kept} | study_record(drawn, found) | {"compile_time": clock.time}
    return _shown(record, as_json, study_view, f"{model} on {wafer}")


def _shown(record: dict[str, Any], as_json: bool, view: Callable[..., Any], title: str) -> Any:
    return json.dumps(record, indent=2, allow_nan=False) if as_json else view(one_line(title), record)
