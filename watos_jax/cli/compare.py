"""`watos compare`: our schedule of a model on a wafer beside Megatron-LM's and weight streaming."""

import json
from typing import Annotated, Any

import typer

from watos_jax.baselines import comparison
from watos_jax.cli.options import AsJson, Model, SequenceLength
from watos_jax.cli.runtime import CompileClock, prepare, progress
from watos_jax.cli.values import choice, model_of, one_line, whole
from watos_jax.presets import wafers
from watos_jax.report.comparison import comparison_record, comparison_view


def compare(
    model: Model = None,
    wafer: Annotated[str | None, typer.Option(metavar="NAME", help="A wafer, such as watos-config-3.")] = None,
    global_batch_size: Annotated[str, typer.Option(metavar="N", help="Sequences per optimizer step.")] = "512",
    sequence_length: SequenceLength = None,
    as_json: AsJson = False,
) -> Any:
    """Compare with Megatron-LM and weight streaming.

    Ours is the best of every legal strategy, each with the levels of recomputation and the sharing of the wafer's
    memory that suit it best (GCMR). Beside it stand the best that Megatron-LM's rules allow on the same wafer and on
    eight GPUs of the wafer's peak, memory and bandwidth, and weights streamed through the same wafer. Every side is
    searched exhaustively by its own rules, at the wafer's efficiency.

    \b
      watos compare llama3-70b --wafer watos-config-3
      watos compare gpt3-175b --wafer watos-config-3-d2d-half --global-batch-size 128 --json
    """  # noqa: D301
    prepare()
    if wafer is None:
        raise ValueError("--wafer is missing: it must be a wafer such as watos-config-3")
    machine = wafers.NAMES[choice("--wafer", wafer, wafers.NAMES)]
    batch = whole("--global-batch-size", global_batch_size)
    transformer = model_of(model, sequence_length)
    with progress(f"comparing {model}") as report, CompileClock() as clock:
        answer = comparison.compare(machine, transformer, global_batch_size=batch, progress=report)
    head: dict[str, Any] = {"model": model, "wafer": wafer, "global_batch_size": batch}
    record = head | comparison_record(machine, answer) | {"compile_time": clock.time}
    if as_json:
        return json.dumps(record, indent=2, allow_nan=False)
    return comparison_view(one_line(f"{model} on {wafer}, {batch} sequences per step"), record)
