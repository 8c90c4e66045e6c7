"""`watos faults`: what dead dies and links cost, and what planning for them saves."""

import json
from typing import Annotated, Any

import typer

from watos_jax.cli.options import AsJson, Model, SequenceLength
from watos_jax.cli.runtime import CompileClock, prepare, progress
from watos_jax.cli.values import choice, model_of, number, one_line, shown, wafer_of, whole
from watos_jax.faults import draw
from watos_jax.report.faults import study_record, study_view
from watos_jax.search import draws as search

MOST_DRAWS = 1_000
"""Draws of faults, each of which is searched."""


def faults(
    model: Model = None,
    wafer: Annotated[str | None, typer.Option(metavar="NAME", help="A wafer, such as watos-config-3.")] = None,
    dead_dies: Annotated[str, typer.Option(metavar="SHARE", help="Dies that are dead.")] = "0",
    dead_links: Annotated[str, typer.Option(metavar="SHARE", help="Links between dies that are dead.")] = "0",
    harvested: Annotated[str, typer.Option(metavar="SHARE", help="Dies that have lost cores and memory stacks.")] = "0",
    left: Annotated[str, typer.Option(metavar="SHARE", help="Cores and stacks that a harvested die keeps.")] = "0.75",
    draws: Annotated[str, typer.Option(metavar="N", help="Draws of dies and links.")] = "4",
    seed: Annotated[str, typer.Option(metavar="N", help="Of the first draw; each further one has the next.")] = "0",
    objective: Annotated[
        str, typer.Option(metavar="NAME", help=f"Step time that one plan minimises: {', '.join(search.OBJECTIVES)}.")
    ] = "worst",
    global_batch_size: Annotated[str, typer.Option(metavar="N", help="Sequences per optimizer step.")] = "512",
    sequence_length: SequenceLength = None,
    as_json: AsJson = False,
) -> Any:
    """Say what faults of a wafer cost.

    Draws dead dies and links at random and prints three step times of each draw: with the plan of the whole wafer
    kept, living dies doing the work of dead ones; with one plan for all draws, the strategy whose worst (or mean) step
    is shortest, laid on the dies that live; and planned anew, knowing the draw. Below stand the median and the worst
    draw. Strategies are those that co-design chooses from: micro-batches of up to 8, 1F1B, flash attention.

    \b
      watos faults llama3-70b --wafer watos-config-3 --dead-dies 0.1 --dead-links 0.05
      watos faults gpt3-175b --wafer watos-config-3 --harvested 0.25 --draws 8 --seed 3 --objective mean --json
    """  # noqa: D301
    prepare()
    machine = wafer_of(wafer)
    shares = {"dies": dead_dies, "links": dead_links, "harvested": harvested}
    options = {"dies": "--dead-dies", "links": "--dead-links", "harvested": "--harvested"}
    lost = {name: number(options[name], word, high=1.0) for name, word in shares.items()}
    if not any(lost.values()):
        raise ValueError("--dead-dies is 0: it, --dead-links or --harvested must be above 0, such as --dead-dies 0.1")
    kept = number("--left", left, high=1.0, above=True)
    count, first = whole("--draws", draws, high=MOST_DRAWS), whole("--seed", seed, low=0)
    goal, batch = choice("--objective", objective, search.OBJECTIVES), whole("--global-batch-size", global_batch_size)
    transformer = model_of(model, sequence_length)
    drawn = [draw(machine, **lost, left=kept, seed=first + number) for number in range(count)]
    if not all(one.cores.any() for one in drawn):
        raise ValueError(
            f"--dead-dies is {shown(dead_dies)}: it must leave at least one of {machine.num_dies:.0f} dies"
        )
    with progress(f"planning {model}") as report, CompileClock() as clock:
        found = search.study_draws(
            machine, transformer, drawn, global_batch_size=batch, objective=goal, progress=report
        )
    head: dict[str, Any] = {"model": model, "wafer": wafer, "global_batch_size": batch, "seed": first}
    record = head | {"shares": lost, "left": kept} | study_record(drawn, found) | {"compile_time": clock.time}
    if as_json:
        return json.dumps(record, indent=2, allow_nan=False)
    return study_view(one_line(f"{model} on {wafer}"), record)
