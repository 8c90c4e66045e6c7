"""Is a tensor group of 4 dies with 8 stages better than one of 8 with 4 stages, on 32 dies?

WATOS (arXiv 2512.12279) reports that Megatron-LM takes TP8 x PP4 on a mesh of 32 dies and that TP4 x PP8 is better,
for a ring over 8 dies leaves links of the mesh idle. Here are all splits of 4 x 8 dies of configuration 3 into tensor
groups and stages, one replica, each the best of its rectangles, micro-batches, interleavings and levels of
recomputation, by the bandwidth of the links; once with rings alone, as Megatron-LM has them, once also with reduction
by rows and columns.

    python experiments/tensor_groups.py --out experiments/results
    python experiments/tensor_groups.py --json
    python experiments/tensor_groups.py --smoke
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

import watos_jax as wj
from watos_jax.presets import models, wafers
from watos_jax.units import TERA

DIES = (4, 8)
MODELS = ("llama3-70b", "qwen3-32b")
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""TB/s per edge and direction; 0.5, 1 and 4 are the readings of the paper's 4 TB/s per die."""
SHOWN = 1.0
WHY = (
    "A ring over 8 dies does take longer than one over 4, but twice as many stages keep twice the activations per die, "
    "which costs recomputation where DRAM is short, and the LM head weighs more on a shorter last stage. Where links "
    "are slow and memory suffices, TP4 x PP8 wins."
)
OPTIONS = wj.Options(
    global_batch_size=512, micro_batch_sizes=(1, 2, 4), virtual_stages=(1, 2, 4, 5, 8), context_parallel=1
)
PARTS = (
    "matmul",
    "attention",
    "elementwise",
    "recompute",
    "tensor_parallel",
    "bubble",
    "pipeline_parallel",
    "optimizer",
)
"""Parts of a step that are drawn."""


def rate(shared: Any, point: Any) -> Any:
    """Tokens per second of one strategy by the hard model; 0 where it does not fit."""
    (wafer, model, layouts), (strategy, geometry) = shared, point
    result = wj.estimate(wafer, model, strategy, layout=jax.tree.map(lambda leaf: leaf[geometry], layouts))
    fits = jnp.minimum(result.margins["memory"], result.margins["power"]) >= -1e-6
    return jnp.where(fits, result.tokens_per_second, 0.0)


def splits(wafer: wj.Wafer, model: wj.Transformer, options: wj.Options, sizes: Sequence[int]) -> dict[str, Any]:
    """The best strategy of every size of the tensor group, all other dies being stages; None where nothing fits."""
    space = wj.strategies(wafer, model, options)
    points = (space.strategies, space.geometry.astype(np.int32))
    rates = wj.batch.map_chunks(rate, (wafer, model, space.roomy_layouts), points, chunks_per_call=1)
    every = space.strategies
    tensor = every.tensor_parallel
    whole = tensor * every.pipeline_parallel == float(wafer.num_dies)
    found: dict[str, Any] = {}
    for way, allowed in (("ring", whole & (every.tensor_collective == 0)), ("any", whole)):
        found[way] = {}
        for size in sizes:
            among = np.where(allowed & (tensor == size), rates, 0.0)
            row = int(among.argmax())
            found[way][size] = None if among[row] <= 0 else _opened(wafer, model, space, row)
    return found


def _opened(wafer: wj.Wafer, model: wj.Transformer, space: Any, row: int) -> dict[str, Any]:
    strategy = space.strategy(row)
    estimate = wj.estimate(wafer, model, strategy, layout=space.layout(row))
    ring = not float(strategy.tensor_collective)
    return {
        "tokens_per_second": estimate.tokens_per_second,
        "breakdown": estimate.breakdown,
        "step_time": estimate.step_time,
        "rectangle": [strategy.tensor_rows, strategy.tensor_cols],
        "row_column": not ring,
        "micro_batch_size": strategy.micro_batch_size,
        "virtual_stages": strategy.virtual_stages,
        "recompute": strategy.recompute,
        "links_used": _links_used(strategy) if ring else None,
    }


def _links_used(strategy: wj.Strategy) -> float | None:
    # share of a rectangle's links that lie on its ring: a Hamiltonian cycle where a side is even, a line else
    rows, cols = int(strategy.tensor_rows), int(strategy.tensor_cols)
    links = rows * (cols - 1) + cols * (rows - 1)
    if links == 0 or (min(rows, cols) > 1 and rows % 2 and cols % 2):
        return None
    return 1.0 if min(rows, cols) == 1 else rows * cols / links


def answer(given: argparse.Namespace) -> dict[str, Any]:
    """Every split at every bandwidth."""
    chosen = {name: models.get(name) for name in given.model or MODELS}
    dies, bandwidths, options, sizes = DIES, BANDWIDTHS, OPTIONS, (1, 2, 4, 8, 16, 32)
    if given.smoke:
        chosen = {"llama2-7b": models.LLAMA2_7B}
        options = wj.Options(global_batch_size=8, micro_batch_sizes=1, virtual_stages=1, context_parallel=1)
        dies, bandwidths, sizes = (2, 4), (SHOWN,), (1, 2, 4, 8)
    rows: dict[str, Any] = {}
    for name, model in chosen.items():
        rows[name] = {}
        for bandwidth in bandwidths:
            base = wafers.WATOS_CONFIG_3
            wafer = replace(base, die_rows=dies[0], die_cols=dies[1], d2d=replace(base.d2d, bandwidth=bandwidth * TERA))
            rows[name][bandwidth] = splits(wafer, model, options, sizes)
            print(f"{name} at {bandwidth:g} TB/s", file=sys.stderr, flush=True)
    return {"dies": dies, "rows": rows}


def _rates(by_size: dict[str, Any]) -> np.ndarray:
    return np.array([found["tokens_per_second"] if found else np.nan for found in by_size.values()], float)


def show(record: dict[str, Any]) -> None:
    """Print tokens per second of every split, and TP4 over TP8."""
    dies = record["dies"][0] * record["dies"][1]
    for name, by_rate in record["rows"].items():
        print(f"{name} on {dies} dies: thousand tokens/s of TPt x PP{dies}/t")
        for rate, by_way in by_rate.items():
            for way, by_size in by_way.items():
                cells = "".join(
                    f"  TP{size} " + (f"{found['tokens_per_second'] / 1e3:7.1f}" if found else "      -")
                    for size, found in by_size.items()
                )
                four, eight = by_size.get("4"), by_size.get("8")
                ratio = ""
                if four and eight:
                    ratio = f"   TP4 over TP8 {four['tokens_per_second'] / eight['tokens_per_second']:.3f}"
                print(f"  {float(rate):5.2f} TB/s {'rings     ' if way == 'ring' else 'also rows '}{cells}{ratio}")
        shown = (by_rate.get(str(SHOWN)) or next(iter(by_rate.values())))["ring"]
        for size, found in shown.items():
            if size in ("4", "8") and found:
                parts = found["breakdown"]
                used = "" if found["links_used"] is None else f", {found['links_used']:.0%} of the links on the ring"
                group = " x ".join(f"{side:.0f}" for side in found["rectangle"])
                print(
                    f"  TP{size} at {SHOWN:g} TB/s: {group} dies{used}; of {found['step_time']:.1f} s "
                    f"{parts['tensor_parallel']:.1f} s are tensor collectives, "
                    f"{parts['recompute']:.1f} s recomputation, {parts['matmul']:.1f} s products on the slowest stage"
                )
    print(f"The paper: TP4 x PP8 is better than TP8 x PP4, without a figure that we have. {WHY}")


def draw(record: dict[str, Any], plt: Any) -> Any:
    """Above, throughput by size of the group, a line for each bandwidth; below, where the time of a step goes."""
    rows = record["rows"]
    figure, axes = plt.subplots(2, len(rows), figsize=(5.8 * len(rows), 7.5), layout="constrained", squeeze=False)
    dies = record["dies"][0] * record["dies"][1]
    for (above, below), (name, by_rate) in zip(axes.T, rows.items(), strict=True):
        for number, (rate, by_way) in enumerate(by_rate.items()):
            sizes = np.array([int(size) for size in by_way["ring"]])
            colour = plt.get_cmap("viridis")(0.9 * (1 - number / max(1, len(by_rate) - 1)))
            ring, either = (_rates(by_way[way]) / 1e3 for way in ("ring", "any"))
            above.plot(sizes, either, "--", lw=1, color=colour)
            above.plot(sizes, ring, "o-", ms=4, color=colour, label=f"{float(rate):g} TB/s")
            best = int(np.nanargmax(ring))
            above.plot(sizes[best], ring[best], "*", ms=13, color=colour, mec="black", mew=0.5, zorder=5)
        above.set_xscale("log", base=2)
        above.set_xticks(sizes, [f"TP{size}\nPP{dies // size}" for size in sizes])
        above.minorticks_off()
        above.set(title=f"{name} on {record['dies'][0]} x {record['dies'][1]} dies")
        above.set_ylim(bottom=0)

        found = list((by_rate.get(str(SHOWN)) or next(iter(by_rate.values())))["ring"].values())
        bottom = np.zeros(len(sizes))
        for number, part in enumerate(PARTS):
            seconds = np.array([one["breakdown"].get(part, 0.0) if one else 0.0 for one in found])
            label = part.replace("_", " ")
            below.bar(np.arange(len(sizes)), seconds, bottom=bottom, color=harness.COLOURS[number], label=label)
            bottom += seconds
        for x, one in enumerate(found):
            words = f"{one['rectangle'][0]:.0f}x{one['rectangle'][1]:.0f}" if one else "does\nnot fit"
            below.text(x, bottom[x], words, ha="center", va="bottom", fontsize=8)
        below.set_xticks(range(len(sizes)), [f"TP{size}\nPP{dies // size}" for size in sizes])
        below.set_ylim(0, 1.3 * bottom.max())
        below.set_title(f"Where a step goes, rings at {SHOWN:g} TB/s (on the bar: dies of the group)")
        below.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("thousand tokens/s")
    axes[1, 0].set_ylabel("step time (s)")
    axes[0, 0].plot([], [], "--", lw=1, color="0.3", label="also by rows and columns")
    axes[0, 0].plot([], [], "*", ms=11, ls="", color="0.3", label="optimum, rings")
    axes[0, 0].legend(fontsize=8, title="link, per edge and direction")
    axes[1, 0].legend(fontsize=8, ncols=4, loc="upper center")
    return figure


main = harness.command(__doc__, answer, show, draw, model=models.NAMES)

if __name__ == "__main__":
    sys.exit(main())
