"""`watos compare`: our schedule of a model on a wafer beside Megatron-LM's and weight streaming."""

import json
from typing import Annotated, Any

import typer

from watos_jax.baselines import comparison
from watos_jax.cli.options import AsJson, FewOptions, Model, SequenceLength, takes_wafers
from watos_jax.cli.runtime import CompileClock, prepare, progress
from watos_jax.cli.values import Joined, model_of, one_line, shown, wafers_of, whole
from watos_jax.report.comparison import comparison_record, comparison_view
from watos_jax.search.space import Options


@takes_wafers
def compare(
    model: Model = None,
    wafer: Annotated[str | None, typer.Option(metavar="NAME", help="A wafer, such as watos-config-3.")] = None,
    global_batch_size: Annotated[str, typer.Option(metavar="N", help="Sequences per optimizer step.")] = "512",
    sequence_length: SequenceLength = None,
    few_options: FewOptions = False,
    as_json: AsJson = False,
    *,
    joined: Joined,
) -> Any:
    """Compare with Megatron-LM and weight streaming.

    Ours is the best of every legal strategy, each with the levels of recomputation and the sharing of the wafer's
    memory that suit it best (GCMR). Beside it stand the best that Megatron-LM's rules allow on the same wafer and on
    eight GPUs of the wafer's peak, memory and bandwidth, and weights streamed through the same wafer. Every side is
    searched exhaustively by its own rules, at the wafer's efficiency. A side whose rules allow nothing, or nothing
    that fits, has no throughput and no speedup, and says why; the command fails where that is so of every side.
    Several wafers have millions of strategies, of which --few-options keeps the likely ones.

    \b
      watos compare llama3-70b --wafer watos-config-3
      watos compare gpt3-175b --wafer watos-config-3-d2d-half --global-batch-size 128 --json
      watos compare deepseek-v3 --wafer watos-config-3 --wafers 4 --wafer-bandwidth 1800 --few-options
    """  # noqa: D301
    prepare()
    name, machine = wafers_of(wafer, joined)
    batch = whole("--global-batch-size", global_batch_size)
    transformer = model_of(model, sequence_length)
    among = Options(global_batch_size=batch) if few_options else None
    with progress(f"comparing {model}") as report, CompileClock() as clock:
        answer = comparison.compare(machine, transformer, options=among, global_batch_size=batch, progress=report)
    if not any(side.fits for side in answer.sides.values()):
        reasons = "; ".join(f"{side.replace('_', ' ')}: {one.reason}" for side, one in answer.sides.items())
        raise ValueError(f"no side can train {shown(str(model))} on {name} with {batch} sequences per step: {reasons}")
    head: dict[str, Any] = {"model": model, "wafer": name, "global_batch_size": batch}
    head["few_options"] = few_options
    record = head | comparison_record(machine, answer) | {"compile_time": clock.time}
    if as_json:
        return json.dumps(record, indent=2, allow_nan=False)
    return comparison_view(one_line(f"{model} on {name}, {batch} sequences per step"), record)
