"""Does an exhaustive plan rank strategies as Calculon does, and where not, what do measurements say?

Megatron-22B on eight A100, 32 sequences per step. Shared options are what both models have: every tensor, pipeline and
data parallelism that uses all GPUs, micro-batches, chunks, recomputation (none, selective, full), sharded optimizers,
sequence parallelism, scores in memory. Calculon is its formulas (`baselines.calculon`, equal to eleven of its runs term
by term), not its program with efficiencies by size of the operator. Both get the same ideal machine, so that they
differ by what they count. Ours is also ranked without embedding, LM head and loss, which Calculon leaves out.

Measured single-node runs of many strategies (vTrain, MICRO 2024) decide between the two, if `WATOS_JAX_DATA` names a
folder with `training/training_runs.csv`: for every two runs of one model, batch and number of GPUs, whether a model
puts first the one that was faster, by what they differ in. Last, the time of
`watos plan megatron-22b --system dgx-a100` over all options of ours, compiled.

    python experiments/plan_ranking.py --out experiments/results
    python experiments/plan_ranking.py --smoke
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from harness import COLOURS, command

import watos_jax as wj
from watos_jax import measured
from watos_jax.baselines import calculon
from watos_jax.search.plan import every_option
from watos_jax.strategy import RECOMPUTE_LEVELS
from watos_jax.validate.errors import ranking

BATCH, PLANNED = 32, 512
"""Sequences per step of the shared options, and of the plan over all of ours."""
TOP = 10
SOURCE = "vTrain"
LEVELS = ("none", "selective", "full")
PARTS = {
    "compute": (("fw_time", "bw_time"), ("matmul", "attention", "elementwise")),
    "recomputation": (("recompute_time", "recomm_exposed_time"), ("recompute",)),
    "bubble": (("bubble_time",), ("bubble",)),
    "tensor parallel": (("tp_comm_exposed_time",), ("tensor_parallel",)),
    "pipeline parallel": (("pp_comm_exposed_time",), ("pipeline_parallel",)),
    "data parallel": (("dp_comm_exposed_time",), ("data_parallel",)),
    "optimizer": (("optim_step_time",), ("optimizer",)),
}
"""Parts of a step as Calculon and we name them."""
DEGREES = {
    "tensor": "tensor_cols",
    "pipeline": "pipeline_parallel",
    "data": "data_parallel",
    "micro-batch": "micro_batch_size",
}
"""What the measured runs of a group differ in."""
MANY = 200
"""Least number of pairs of runs for which the figure has a line."""


def machine() -> wj.System:
    """Eight A100 in one switch at their peak rates, DRAM at what it sustains."""
    node = wj.presets.chips.DGX_A100
    return replace(node, tiers=node.tiers[:1], efficiency=wj.Efficiency(), overlap=None)


def divisors(number: int) -> tuple[int, ...]:
    """Of a whole number, itself included."""
    return tuple(d for d in range(1, number + 1) if number % d == 0)


def shared_options(model: wj.Transformer, smoke: bool) -> wj.Options:
    """What both models can say."""
    return wj.Options(
        global_batch_size=BATCH,
        micro_batch_sizes=(1, 4) if smoke else divisors(BATCH),
        recompute=LEVELS,
        virtual_stages=(1, 2) if smoke else divisors(int(model.num_layers)),
        context_parallel=1,
        gradient_bytes=2,
        flash_attention=0,
        max_pipeline=8,
        least_use=1.0,
    )


def theirs(system: wj.System, model: wj.Transformer, strategies: wj.Strategy) -> calculon.Point:
    """The same runs as Calculon is told them; every leaf of the strategies has shape (n,)."""
    tensor = np.asarray(strategies.tensor_rows) * np.asarray(strategies.tensor_cols)
    data, link = np.asarray(strategies.data_parallel), system.tiers[0].link
    one = np.ones(len(tensor))
    speeds = {f"{kind}_GBps": link.bandwidth / 1e9 * one for kind in ("tensor", "pipeline", "data")}
    latencies = {f"{kind}_latency": link.latency * one for kind in ("tensor", "pipeline", "data")}
    return calculon.Point(
        hidden=model.hidden_size * one,
        sequence=model.sequence_length * one,
        heads=model.num_attention_heads * one,
        blocks=model.num_layers * one,
        matrix_tflops=system.die.flop_rate / 1e12 * one,
        vector_tflops=system.die.flop_rate / 4e12 * one,  # 78 beside 312 TFLOP/s (NVIDIA A100 data sheet)
        memory_GBps=system.die.memory.bandwidth / 1e9 * one,
        efficiency=one,
        added=0.0 * one,
        tensor_slope=2.0 * (tensor - 1.0) / tensor,
        data_slope=2.0 * (data - 1.0) / data,
        tensor=tensor,
        pipeline=np.asarray(strategies.pipeline_parallel),
        data=data,
        chunks=np.asarray(strategies.virtual_stages),
        micro_batch=np.asarray(strategies.micro_batch_size),
        batch=np.asarray(strategies.global_batch_size),
        recompute=np.asarray(strategies.recompute),
        sharded=np.minimum(np.asarray(strategies.optimizer_sharding), 1.0),
        sequence_parallel=np.asarray(strategies.sequence_parallel),
        **speeds,
        **latencies,
    )


def calculon_says(_: None, point: calculon.Point) -> Any:
    """Time, memory and parts of the time of one run."""
    times = calculon.times(point)
    parts = [sum(times[name] for name in names) for names, _ in PARTS.values()]
    return times["total_time"], calculon.memory(point)["proc_mem_tier1_cap_req"], parts


def we_say(shared: Any, point: Any) -> Any:
    """Time, largest memory and parts of the time of one strategy."""
    (system, model, layouts), (strategy, geometry) = shared, point
    answer = wj.estimate(system, model, strategy, layout=jax.tree.map(lambda leaf: leaf[geometry], layouts))
    parts = [sum(answer.breakdown[name] for name in names) for _, names in PARTS.values()]
    return answer.step_time, answer.memory.max(), parts


def tau(first: np.ndarray, second: np.ndarray) -> float | None:
    """Kendall's rank correlation, ties left out."""
    return ranking([0] * len(first), first, second)["tau"]


def shared_space(smoke: bool) -> dict[str, Any]:
    """Both rankings of the shared options."""
    system, model = machine(), wj.presets.models.MEGATRON_22B
    space = wj.strategies(system, model, shared_options(model, smoke))
    points = (space.strategies, space.geometry.astype(np.int32))

    def ours(of: wj.Transformer) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        return wj.batch.map_chunks(we_say, (system, of, space.layouts), points, chunk=256, chunks_per_call=1)

    asked = theirs(system, model, space.strategies)
    their_time, their_memory, their_parts = wj.batch.map_chunks(
        calculon_says, None, asked, chunk=256, chunks_per_call=1
    )
    our_time, our_memory, our_parts = ours(model)
    bare_time, _, bare_parts = ours(replace(model, vocab_size=1.0))
    capacity = float(system.die.memory.capacity)
    we_fit, they_fit = our_memory <= capacity, their_memory <= capacity
    both = we_fit & they_fit
    first = [
        np.argsort(np.where(fits, times, np.inf))[:TOP] for fits, times in ((we_fit, our_time), (they_fit, their_time))
    ]

    def describe(row: int) -> dict[str, Any]:
        strategy = space.strategy(int(row))
        fields = ("tensor_cols", "pipeline_parallel", "data_parallel", "virtual_stages", "micro_batch_size")
        told = {name: int(getattr(strategy, name)) for name in (*fields, "sequence_parallel", "optimizer_sharding")}
        told |= {"recompute": RECOMPUTE_LEVELS[int(strategy.recompute)]}
        return told | {
            "ours": float(our_time[row]),
            "calculon": float(their_time[row]),
            "our_memory": float(our_memory[row]),
            "calculon_memory": float(their_memory[row]),
        }

    ratio = our_time / their_time
    by_option = {}
    for name in ("tensor_cols", "pipeline_parallel", "recompute", "sequence_parallel", "micro_batch_size"):
        column = np.asarray(getattr(space.strategies, name))
        by_option[name] = {
            f"{value:g}": [float(np.median((our / their_time)[column == value])) for our in (our_time, bare_time)]
            for value in np.unique(column)
        }
    return {
        "points": len(space),
        "fit": {"ours": int(we_fit.sum()), "calculon": int(they_fit.sum()), "both": int(both.sum())},
        "tau_all": tau(our_time, their_time),
        "tau_fitting": tau(our_time[both], their_time[both]),
        "tau_fitting_without_ends": tau(bare_time[both], their_time[both]),
        "tau_memory": tau(our_memory, their_memory),
        "ratio_quantiles": np.quantile(ratio, (0.05, 0.5, 0.95)).tolist(),
        "top_overlap": len(set(first[0].tolist()) & set(first[1].tolist())),
        "our_regret_of_their_pick": float(our_time[first[1][0]] / our_time[first[0][0]] - 1.0),
        "their_regret_of_our_pick": float(their_time[first[0][0]] / their_time[first[1][0]] - 1.0),
        "ratio_by_option": by_option,
        "more_by_part": {
            name: [float(np.mean((our - their) / their_time)) for our in (full, bare)]
            for name, full, bare, their in zip(PARTS, our_parts, bare_parts, their_parts, strict=True)
        },
        "ours": [describe(row) for row in first[0]],
        "calculon": [describe(row) for row in first[1]],
        "times": {"ours": our_time[both].tolist(), "calculon": their_time[both].tolist()},
    }


def measured_runs() -> dict[str, Any] | None:
    """Both models against measured single-node runs; None where the rows are not there."""
    path = Path(os.environ.get("WATOS_JAX_DATA", "")) / "training" / "training_runs.csv"
    if "WATOS_JAX_DATA" not in os.environ or not path.exists():
        return None
    read, _ = measured.read(path)
    rows = [
        one
        for one in read
        if SOURCE in one.source and one.step_time and float(one.strategy.num_dies) <= 8 and not one.model.num_experts
    ]
    truth = np.array([one.step_time for one in rows])
    asked = jax.tree.map(
        lambda *leaves: np.concatenate(leaves),
        *(
            theirs(one.system, one.model, jax.tree.map(lambda leaf: np.array([float(leaf)]), one.strategy))
            for one in rows
        ),
    )
    their_time, *_ = wj.batch.map_chunks(calculon_says, None, asked, chunk=256, chunks_per_call=1)
    plain = [replace(one.system, efficiency=wj.Efficiency(), overlap=None) for one in rows]
    layouts = [wj.layout(system, one.strategy, max_stages=32) for system, one in zip(plain, rows, strict=True)]
    stacked = [
        stack(column) for column in (plain, [one.model for one in rows], [one.strategy for one in rows], layouts)
    ]

    def without_ends(models: wj.Transformer) -> wj.Transformer:
        return replace(models, vocab_size=np.ones(len(rows)))

    found: dict[str, np.ndarray] = {"calculon": their_time}
    efficiency = wj.presets.efficiencies.of(rows[0].chip, rows[0].source)
    fitted = stack([replace(one.system, efficiency=efficiency) for one in rows])
    for name, systems, models in (
        ("ours", stacked[0], stacked[1]),
        ("ours without ends", stacked[0], without_ends(stacked[1])),
        ("ours, efficiencies fitted to these runs", fitted, stacked[1]),
    ):
        found[name] = wj.batch.map_chunks(_one_run, None, (systems, models, *stacked[2:]), chunk=256, chunks_per_call=1)
    groups = [
        (
            one.model_name,
            float(one.model.sequence_length),
            float(one.strategy.global_batch_size),
            float(one.system.num_dies),
        )
        for one in rows
    ]
    counted = {group: groups.count(group) for group in set(groups)}
    return {
        "runs": len(rows),
        "groups": sum(count >= 3 for count in counted.values()),
        "models": {name: _against(groups, times, truth) for name, times in found.items()},
        "pairs": pairs(groups, [one.strategy for one in rows], found, truth),
    }


def pairs(
    groups: Sequence[Any], strategies: Sequence[wj.Strategy], found: dict[str, np.ndarray], truth: np.ndarray
) -> dict[str, Any]:
    """Every two runs of one group: how many each model orders as they were measured, by what they differ in."""
    values = np.array([[float(getattr(one, name)) for name in DEGREES.values()] for one in strategies])
    first, second = np.triu_indices(len(truth), 1)
    labels = np.unique([str(group) for group in groups], return_inverse=True)[1]
    same = labels[first] == labels[second]
    first, second = first[same], second[same]
    differ = values[first] != values[second]
    slower = {name: np.sign(times[first] - times[second]) for name, times in (found | {"measured": truth}).items()}
    kinds = np.array([", ".join(np.array(list(DEGREES))[one]) for one in differ])
    right = {name: slower[name] == slower["measured"] for name in found}
    return {
        "all": len(kinds),
        "by_difference": {
            str(kind): {"pairs": int((kinds == kind).sum())}
            | {name: float(np.mean(right[name][kinds == kind])) for name in found}
            for kind in np.unique(kinds)
        },
        "not_as_calculon": {
            name: {"pairs": int(apart.sum()), "right": float(np.mean(right[name][apart]))}
            for name, apart in ((name, slower[name] != slower["calculon"]) for name in found)
            if apart.any()
        },
    }


def stack(records: Sequence[Any]) -> Any:
    """Records as one, every leaf with a first axis."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf, float) for leaf in leaves]), *records)


def _one_run(_: None, point: Any) -> Any:
    system, model, strategy, layout = point
    return wj.estimate(system, model, strategy, layout=layout).step_time


def _against(groups: Sequence[Any], times: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    scale = np.exp(np.median(np.log(truth / times)))
    return ranking(groups, times, truth) | {
        "measured_over_predicted": float(scale),
        "error_after_one_factor": float(np.mean(np.abs(scale * times / truth - 1.0))),
    }


def speed(smoke: bool) -> dict[str, Any]:
    """`plan` over every option of ours, the first time and compiled."""
    system, model = wj.presets.chips.DGX_A100, wj.presets.models.MEGATRON_22B
    options = shared_options(model, smoke) if smoke else None
    every = options or every_option(model, PLANNED)

    def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
        wall, used = time.perf_counter(), time.process_time()
        result = work()
        return result, time.perf_counter() - wall, time.process_time() - used

    answer, first, _ = timed(lambda: wj.plan(system, model, options=every))
    again = [timed(lambda: wj.plan(system, model, options=every))[1:] for _ in range(1 if smoke else 3)]
    listed = [timed(lambda: wj.strategies(system, model, every))[1:] for _ in range(1 if smoke else 3)]
    return {
        "strategies": answer.evaluated,
        "feasible": answer.feasible,
        "first_seconds": first,
        "seconds": min(wall for wall, _ in again),
        "cpu_seconds": min(used for _, used in again),
        "of_it_enumeration": min(wall for wall, _ in listed),
        "of_it_enumeration_cpu": min(used for _, used in listed),
        "load": os.getloadavg()[0],
    }


def answer(options: argparse.Namespace) -> dict[str, Any]:
    """All three parts."""
    found = {"speed": speed(options.smoke)}  # in single precision, as the command line is
    jax.config.update("jax_enable_x64", True)
    return found | {"shared": shared_space(options.smoke), "measured": None if options.smoke else measured_runs()}


def show(record: dict[str, Any]) -> None:
    """The answer in words."""
    s, m, p = record["shared"], record["measured"], record["speed"]
    print(
        f"{s['points']:,} shared strategies; fit: ours {s['fit']['ours']:,}, Calculon {s['fit']['calculon']:,}, both "
        f"{s['fit']['both']:,}\n"
        f"tau {s['tau_all']:.3f}, of those that fit {s['tau_fitting']:.3f}, ours without embedding, LM head and loss "
        f"{s['tau_fitting_without_ends']:.3f}; of memory {s['tau_memory']:.3f}\n"
        f"ours over Calculon: {', '.join(f'{x:.3f}' for x in s['ratio_quantiles'])} (5, 50, 95 %)\n"
        f"of the best {TOP} of each {s['top_overlap']} are the same; their pick is {s['our_regret_of_their_pick']:.1%} "
        f"slower by us, ours {s['their_regret_of_our_pick']:.1%} by them"
    )
    for side in ("ours", "calculon"):
        one = s[side][0]
        print(f"  first of {side}: " + ", ".join(f"{name} {value}" for name, value in list(one.items())[:8]))
    for name, values in s["ratio_by_option"].items():
        cells = ", ".join(f"{value}: {full:.3f} ({bare:.3f})" for value, (full, bare) in values.items())
        print(f"  ours over Calculon (without ends) by {name}: {cells}")
    cells = ", ".join(f"{name} {full:+.1%} ({bare:+.1%})" for name, (full, bare) in s["more_by_part"].items())
    print(f"  ours beyond Calculon (without ends), of its step: {cells}")
    if m is None:
        print("measured runs: not read (--smoke, or no training/training_runs.csv in WATOS_JAX_DATA)")
    else:
        print(f"{m['runs']:,} measured runs of one node in {m['groups']} groups of one model, batch and number of GPUs")
        for name, one in m["models"].items():
            print(
                f"  {name}: tau {one['tau']:.3f}, regret {one['regret']:.1%}, error after one common factor "
                f"{one['error_after_one_factor']:.1%}"
            )
        print(f"  of {m['pairs']['all']:,} pairs of runs, ordered as they were measured, by what they differ in:")
        for kind, one in m["pairs"]["by_difference"].items():
            shares = ", ".join(f"{name} {one[name]:.0%}" for name in m["models"])
            print(f"    {kind} ({one['pairs']}): {shares}")
        for name, one in m["pairs"]["not_as_calculon"].items():
            print(f"    {name}: {one['pairs']:,} otherwise than Calculon, of these {one['right']:.0%} as measured")
    print(
        f"plan of {p['strategies']:,} strategies: {p['seconds']:.2f} s and {p['cpu_seconds']:.2f} CPU s compiled, "
        f"of it enumeration {p['of_it_enumeration']:.2f} s and {p['of_it_enumeration_cpu']:.2f} CPU s; first time "
        f"{p['first_seconds']:.1f} s; load {p['load']:.1f}"
    )


def draw(record: dict[str, Any], plt: Any) -> Any:
    """Both models' times of strategies that fit, the ratio by option, and what measured runs say."""
    s, m = record["shared"], record["measured"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), width_ratios=(1, 1.3, 1), layout="constrained")
    axes[0].scatter(s["times"]["calculon"], s["times"]["ours"], s=5)
    ends = [min(s["times"]["calculon"]), max(s["times"]["calculon"])]
    axes[0].plot(ends, ends, color="black", linewidth=0.6)
    axes[0].set(xlabel="Calculon's formulas, s", ylabel="ours, s")
    axes[0].set_title(f"{s['fit']['both']:,} strategies that fit, tau {s['tau_fitting']:.3f}")
    words = {"tensor_cols": "tensor", "pipeline_parallel": "pipeline", "sequence_parallel": "seq. parallel"}
    rows = []
    for name, values in s["ratio_by_option"].items():
        for value, ratios in values.items():
            shown = RECOMPUTE_LEVELS[int(value)] if name == "recompute" else value
            rows.append((f"{words.get(name, name.replace('_size', '').replace('_', '-'))} {shown}", *ratios))
    _dots(axes[1], rows, ("ours", "without embedding,\nLM head, loss"))
    axes[1].axvline(1.0, color="black", linewidth=0.6)
    axes[1].set(xlabel="time over Calculon's, median", title="One ideal machine")
    if m is None:
        axes[2].set_axis_off()
        return figure
    names = ("ours, efficiencies fitted to these runs", "ours", "calculon")
    kinds = {kind: one for kind, one in m["pairs"]["by_difference"].items() if one["pairs"] >= MANY}
    rows = [(f"{kind} ({one['pairs']})", *(one[name] for name in names)) for kind, one in kinds.items()]
    _dots(axes[2], rows, ("ours, fitted", "ours, ideal machine", "Calculon's formulas"))
    axes[2].axvline(0.5, color="black", linewidth=0.6)
    axes[2].set(xlim=(0.0, 1.05), xlabel="share of pairs ordered as measured", title="Pairs of runs, by what differs")
    return figure


def _dots(axis: Any, rows: Sequence[tuple[Any, ...]], labels: Sequence[str]) -> None:
    # a line for each row: its name, and a mark for each of its values
    at = np.arange(len(rows))
    for number, (label, mark) in enumerate(zip(labels, "os^", strict=False), 1):
        axis.plot([row[number] for row in rows], at, mark, color=COLOURS[number - 1], markersize=5, label=label)
    axis.set_yticks(at, [row[0] for row in rows], fontsize=7)
    axis.invert_yaxis()
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(labels), fontsize=7, columnspacing=0.8)


main = command(__doc__, answer, show, draw)

if __name__ == "__main__":
    sys.exit(main())
