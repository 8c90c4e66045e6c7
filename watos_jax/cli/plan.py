"""`watos plan`: the best strategies of a model on fixed hardware."""

import json
from typing import Annotated, Any

import typer

from watos_jax.cli.options import AsJson, FewOptions, Model, Rung, SequenceLength, takes_wafers
from watos_jax.cli.runtime import CompileClock, prepare, progress
from watos_jax.cli.values import Joined, choice, hardware_of, model_of, one_line, whole
from watos_jax.operators.fidelity import FIDELITIES
from watos_jax.report.plan import plan_view
from watos_jax.report.records import plan_record
from watos_jax.search import plan as search
from watos_jax.search.space import Options


@takes_wafers
def plan(
    model: Model = None,
    wafer: Annotated[str | None, typer.Option(metavar="NAME", help="A wafer, such as watos-config-3.")] = None,
    system: Annotated[str | None, typer.Option(metavar="NAME", help="A GPU node, such as dgx-h100.")] = None,
    nodes: Annotated[str | None, typer.Option(metavar="N", help="Nodes of the system; 1 if not given.")] = None,
    global_batch_size: Annotated[str, typer.Option(metavar="N", help="Sequences per optimizer step.")] = "512",
    sequence_length: SequenceLength = None,
    top: Annotated[str, typer.Option(metavar="N", help="How many of the best strategies to print.")] = "10",
    fidelity: Rung = "roofline",
    few_options: FewOptions = False,
    as_json: AsJson = False,
    *,
    joined: Joined,
) -> Any:
    """Find the best strategies on fixed hardware.

    Estimates every legal strategy: all degrees of parallelism that the machine can hold, all micro-batches,
    schedules, levels of recomputation and of sharding. Prints the fastest that fit, how many fit and what the
    others exceed, and the winner as arguments of Megatron-LM. Where none fits, it prints the one that exceeds its
    limit least, and by how much. Hundreds of dies have millions of strategies, of which --few-options keeps the likely
    ones. With --fidelity the best are ranked by that operator model; the counts are the
    roofline's.

    \b
      watos plan megatron-22b --system dgx-a100 --global-batch-size 32
      watos plan llama3-70b --system dgx-h100 --nodes 8 --top 3 --json
      watos plan llama3-70b --wafer watos-config-3-d2d-half
      watos plan llama3-70b --wafer watos-config-3 --fidelity predictor
    """  # noqa: D301
    prepare()
    name, machine = hardware_of(wafer, system, nodes, joined)
    count, batch = whole("--top", top), whole("--global-batch-size", global_batch_size)
    rung: Any = choice("--fidelity", fidelity, FIDELITIES)
    transformer = model_of(model, sequence_length)
    among = Options(global_batch_size=batch) if few_options else None
    with progress(f"planning {model}"), CompileClock() as clock:
        answer = search.plan(machine, transformer, options=among, global_batch_size=batch, top=count, fidelity=rung)
        record: dict[str, Any] = {"model": model, "machine": name} | plan_record(machine, transformer, answer)
    record |= {"compile_time": clock.time}
    return (
        json.dumps(record, indent=2, allow_nan=False) if as_json else plan_view(one_line(f"{model} on {name}"), record)
    )
