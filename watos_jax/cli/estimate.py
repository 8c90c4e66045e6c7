"""`watos estimate`: one model, one machine, one strategy."""

import json
from typing import Annotated, Any

import typer

from watos_jax.cli.options import AsJson, Model, Rung, SequenceLength, takes_strategy, takes_wafers
from watos_jax.cli.runtime import prepare, progress
from watos_jax.cli.values import Joined, choice, hardware_of, model_of, one_line
from watos_jax.estimate import estimate as estimate_step
from watos_jax.operators.fidelity import FIDELITIES
from watos_jax.report.estimate import estimate_view
from watos_jax.report.records import estimate_record
from watos_jax.strategy import Strategy


@takes_wafers
@takes_strategy
def estimate(
    model: Model = None,
    wafer: Annotated[str | None, typer.Option(metavar="NAME", help="A wafer, such as watos-config-3.")] = None,
    system: Annotated[str | None, typer.Option(metavar="NAME", help="A GPU node, such as dgx-h100.")] = None,
    nodes: Annotated[str | None, typer.Option(metavar="N", help="Nodes of the system; 1 if not given.")] = None,
    sequence_length: SequenceLength = None,
    fidelity: Rung = "roofline",
    as_json: AsJson = False,
    *,
    joined: Joined,
    strategy: Strategy,
) -> Any:
    """Estimate one training step.

    Prints time and throughput, where the time goes, the memory of every stage, every limit, and power. The machine
    is --wafer, or --system with --nodes (`watos presets` lists both); the strategy is what the options below say. A
    strategy that cannot be laid out on the machine is refused. One that can, but does not fit for want of memory or
    power, is estimated, and the limit that it breaks is marked.

    \b
      watos estimate llama3-70b --wafer watos-config-3 --tensor-cols 4 --pipeline-parallel 14 \\
          --fidelity predictor
      watos estimate gpt3-175b --system dgx-a100 --nodes 8 --tensor-cols 8 --pipeline-parallel 8 \\
          --global-batch-size 64 --recompute full
      watos estimate gpt3-175b --wafer watos-config-3 --wafers 2 --wafer-bandwidth 400 --tensor-cols 4 \\
          --pipeline-parallel 28
      watos estimate path/to/config.json --sequence-length 4096 --wafer dojo-tile --tensor-cols 4 --json
    """  # noqa: D301
    prepare()
    name, machine = hardware_of(wafer, system, nodes, joined)
    transformer = model_of(model, sequence_length)
    rung: Any = choice("--fidelity", fidelity, FIDELITIES)
    with progress("estimating"):
        answer = estimate_step(machine, transformer, strategy, fidelity=rung)
        record = {"model": model, "machine": name} | estimate_record(machine, strategy, answer)
    return (
        json.dumps(record, indent=2, allow_nan=False)
        if as_json
        else estimate_view(one_line(f"{model} on {name}"), record)
    )
