"""Is a wafer faster if scheduled as in WATOS? Ours beside Megatron-LM and weight streaming, by model and link.

`watos compare` for several models on WATOS configuration 3 with the three readings of its die-to-die bandwidth: 4 TB/s
of a die are 0.5, 1 or 4 TB/s per edge and direction. All sides run at the same efficiency, the ideal one of the preset,
and each is the best that its own rules allow. The paper reports 2.74 times the throughput of Megatron and 1.53 times
that of weight streaming, on average over its models (arXiv 2512.12279, abstract).

    python experiments/baselines.py                          # tables
    python experiments/baselines.py --model llama3-70b       # one model; may be repeated
    python experiments/baselines.py --json                   # one JSON object
    python experiments/baselines.py --smoke                  # a small model, few options
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

if "jax" not in sys.modules and "XLA_FLAGS" not in os.environ:  # every core; before JAX starts
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={os.cpu_count()}"

import watos_jax as wj
from watos_jax.presets import models, wafers

MODELS = ("llama2-30b", "llama3-70b", "gshard-137b", "gpt3-175b")
WAFERS = ("watos-config-3-d2d-half", "watos-config-3", "watos-config-3-d2d-4tb")
BATCH = 512
PAPER = {"megatron": 2.74, "weight_streaming": 1.53}
"""Mean ratios of the paper's abstract; whether Megatron ran on the wafer or on GPUs is read both ways."""


def row(model: wj.Transformer, wafer: wj.Wafer, options: wj.Options | None) -> dict[str, Any]:
    """Tokens per second of every side, ours over each, and what the ways of settling recomputation give."""
    start = time.perf_counter()
    answer = wj.compare(wafer, model, options=options, global_batch_size=BATCH)
    sides = answer.baselines | answer.variants
    best = answer.ours.best[0] if answer.ours.best else None
    return {
        "tokens_per_second": {"ours": answer.tokens_per_second}
        | {name: side.tokens_per_second for name, side in sides.items()},
        "speedup": {name: answer.speedup(side) for name, side in sides.items()},
        "least_step_time": {way: t if t < float("inf") else None for way, t in answer.ours.least_step_time.items()},
        "shared_bytes_per_die": None if best is None else float(best.sent.sum()),
        "order": None if best is None or best.order is None else best.order.tolist(),
        "seconds": time.perf_counter() - start,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=sorted(models.NAMES), help="may be repeated")
    parser.add_argument("--wafer", action="append", choices=sorted(wafers.NAMES), help="may be repeated")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--smoke", action="store_true", help="a small model, few options")
    given = parser.parse_args(arguments)
    names, machines = given.model or MODELS, given.wafer or WAFERS
    options = None
    chosen = {name: models.get(name) for name in names}
    if given.smoke:
        options = wj.Options(global_batch_size=8, micro_batch_sizes=1, virtual_stages=1, context_parallel=1)
        chosen = {"llama2-7b, 4 layers": replace(models.LLAMA2_7B, num_layers=4)}
        machines = ("watos-config-3",)
    record: dict[str, Any] = {"global_batch_size": BATCH, "paper": PAPER, "rows": {}}
    for name, model in chosen.items():
        record["rows"][name] = {}
        for machine in machines:
            found = record["rows"][name][machine] = row(model, wafers.get(machine), options)
            if not given.json:
                _show(f"{name} on {machine}", found)
    if given.json:
        print(json.dumps(record, indent=2))
    return 0


def _show(title: str, found: dict[str, Any]) -> None:
    print(f"{title} ({found['seconds']:.0f} s)")
    for name, rate in found["tokens_per_second"].items():
        ratio = found["speedup"].get(name)
        shown = "does not fit" if rate is None else f"{rate:12,.0f} tokens/s"
        print(f"  {name:34s}{shown}" + (f"   ours is {ratio:.3f} times as fast" if ratio else ""))
    ways = found["least_step_time"]
    steps = ", ".join(f"{way} {'-' if seconds is None else f'{seconds:.2f} s'}" for way, seconds in ways.items())
    print(f"  step by way of settling recomputation: {steps}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
