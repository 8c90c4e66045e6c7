"""How fast, and how exact, are the ways of settling recomputation with the wafer's memory shared (GCMR)?

Random problems: times of a level from 1 to 1.4 s, memory from 0.3 to 1.6 of a die, both sorted, so that a level that
takes longer needs less. Nothing here is a machine; the figures are of the methods. Only the last table is of a corner
of a wafer, three or four stages on 2 x 2 or 2 x 3 dies: levels, helpers and places chosen one after the other, and at
once.

    python experiments/gcmr.py            # tables
    python experiments/gcmr.py --json     # one JSON object
    python experiments/gcmr.py --smoke    # a coarse run
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import harness  # before JAX starts
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import watos_jax as wj
from watos_jax.baselines.binned_memory import least_slowest_in_bins
from watos_jax.baselines.joint_shipping import least_joint_step
from watos_jax.presets import models, wafers
from watos_jax.recompute import choices, least_slowest, least_step, near_least_sum

LEVELS, STAGES, CHUNK = 8, 64, 64
BINS = (64, 256, 1024)
SEND, HOLD = 0.05, 0.02
"""s per byte; a byte is one die's memory here."""


def problems(count: int, stages: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Times and memory of random problems, shape (count, levels, stages)."""
    rng = np.random.default_rng(seed)
    shape = (count, LEVELS, stages)
    return np.sort(rng.uniform(1.0, 1.4, shape), 1), -np.sort(-rng.uniform(0.3, 1.6, shape), 1)


def _least(function: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def rates(count: int) -> dict[str, float]:
    """Strategies per second of `least_slowest`, on every local device, numbers already there; and of the program."""
    mesh = Mesh(np.array(jax.devices()), ("device",))
    split = PartitionSpec("device")
    given = [jax.device_put(part.astype(np.float32), NamedSharding(mesh, split)) for part in problems(count, STAGES)]

    def run(pooled: bool, send: float, hold: float) -> float:
        def one(seconds: jax.Array, memory: jax.Array) -> jax.Array:
            problem = choices(seconds, memory, 1.0, send_time=send, hold_time=hold, link_bytes=2.0)
            return least_slowest(problem, pooled=pooled).slowest

        def on_device(seconds: jax.Array, memory: jax.Array) -> jax.Array:
            chunks = [part.reshape(-1, CHUNK, LEVELS, STAGES) for part in (seconds, memory)]
            return jax.lax.map(lambda rows: jax.vmap(one)(*rows), tuple(chunks)).reshape(-1)

        spread = jax.shard_map(on_device, mesh=mesh, in_specs=(split, split), out_specs=split, check_vma=False)
        kernel = jax.jit(spread)
        jax.block_until_ready(kernel(*given))
        return count / _least(lambda: kernel(*given), 3)

    seconds, memory = problems(8, STAGES)
    program = _least(lambda: [least_slowest_in_bins(*row, 1.0, 256) for row in zip(seconds, memory, strict=True)], 3)
    return {
        "pooled": run(True, 0.0, 0.0),
        "pooled, shipping takes time": run(True, SEND, HOLD),
        "line": run(False, SEND, HOLD),
        "program over 256 bins (numpy, one core)": 8 / program,
    }


def program_loss(count: int) -> dict[int, dict[str, float]]:
    """How much slower than the optimum the dynamic program over bins of memory is, by bins."""
    solve = jax.jit(lambda t, m: least_slowest(choices(t, m, 1.0)).slowest)
    rows = list(zip(*problems(count, 16, seed=1), strict=True))
    exact = np.array([float(solve(*row)) for row in rows])
    losses = {bins: np.array([least_slowest_in_bins(*row, 1.0, bins) for row in rows]) / exact - 1.0 for bins in BINS}
    return {
        bins: {
            "mean": float(loss[np.isfinite(loss)].mean()),
            "worst": float(loss[np.isfinite(loss)].max()),
            "nothing_found": float(np.isinf(loss).mean()),
        }
        for bins, loss in losses.items()
    }


def step_loss(count: int, stages: int, weight: float) -> dict[str, float]:
    """The step time of quick answers over that of the scan over caps with the exact knapsack; time of the scan."""

    def step(problem: Any, cap: jax.Array) -> jax.Array:
        answer = near_least_sum(problem, cap)[0]
        rows = jax.numpy.take_along_axis(problem.busy, answer.level[None], axis=0)[0]
        return rows.sum() + weight * rows.max()

    def quick(seconds: jax.Array, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        problem = choices(seconds, memory, 1.0, send_time=SEND)
        found = least_slowest(problem)
        rows = jax.numpy.take_along_axis(problem.busy, found.level[None], axis=0)[0]
        return rows.sum() + weight * found.slowest, step(problem, found.slowest)

    quick, plain, near, took = jax.jit(quick), [], [], []
    for seconds, memory in zip(*problems(count, stages, seed=2), strict=True):
        start = time.perf_counter()
        exact = least_step(choices(seconds, memory, 1.0, send_time=SEND), weight)
        took.append(time.perf_counter() - start)
        if exact is not None:
            slowest, answer = quick(seconds, memory)
            plain.append(float(slowest) / exact[1] - 1.0)
            near.append(float(answer) / exact[1] - 1.0)
    return {
        "least_slowest": float(np.mean(plain)),
        "with near_least_sum, mean": float(np.mean(near)),
        "with near_least_sum, worst": float(np.max(near)),
        "seconds_of_exact_median": float(np.median(took)),
        "seconds_of_exact_worst": float(np.max(took)),
    }


def joint_case(rng: np.random.Generator) -> tuple[wj.Wafer, wj.Transformer, wj.Strategy, wj.Options]:
    """A small mesh with too little memory for its first stages, and the options that leave one strategy."""
    rows, cols, stages = ((2, 2, 3), (2, 2, 4), (2, 3, 3))[rng.integers(3)]
    # heads and batch that nothing divides leave no other degrees
    layers = int(rng.integers(2 * stages, 17))
    model = replace(models.LLAMA2_7B, num_layers=layers, num_attention_heads=31, num_kv_heads=31)
    link = replace(wafers.WATOS_CONFIG_3.d2d, bandwidth=float(rng.choice((0.1e12, 0.3e12, 1e12))))
    wafer = replace(wafers.WATOS_CONFIG_3, die_rows=rows, die_cols=cols, d2d=link)
    strategy = wj.Strategy(pipeline_parallel=stages, global_batch_size=17, optimizer_sharding=0)
    most, least = (
        np.asarray(wj.estimate(wafer, model, replace(strategy, recompute=level)).memory)[:stages] for level in (0, 7)
    )
    capacity = rng.uniform(least.max(), most.mean())  # what all stages keep does not fit, what none keeps does
    memory = replace(wafer.die.memory, stack_bytes=capacity / float(wafer.die.memory.num_stacks))
    options = wj.Options(
        global_batch_size=17,
        micro_batch_sizes=1,
        virtual_stages=1,
        context_parallel=1,
        sequence_parallel=1,
        optimizer_sharding=0,
        max_pipeline=stages,
        least_use=stages / (rows * cols),
    )
    return replace(wafer, die=replace(wafer.die, memory=memory)), model, strategy, options


def joint_loss(count: int) -> dict[str, float]:
    """How much slower than levels, helpers and places chosen together those chosen one after the other are."""
    rng, losses, ships = np.random.default_rng(3), [], 0
    for _ in range(count):
        wafer, model, strategy, options = joint_case(rng)
        best = wj.central(wafer, model, options=options).best[0]
        found = least_joint_step(wafer, model, strategy, known=float(best.step_time))
        losses.append(float(best.step_time) / found.step_time - 1.0)
        ships += bool(best.sent.any() or found.shipped.any())
    return {"cases": count, "ship": ships, "mean": float(np.mean(losses)), "worst": float(np.max(losses))}


def answer(options: argparse.Namespace) -> harness.Answer:
    """Every figure, on random problems and small wafers."""
    jax.config.update("jax_enable_x64", True)
    count = CHUNK * len(jax.devices()) * (4 if options.smoke else 256)
    few = 4 if options.smoke else 40
    record: dict[str, Any] = {
        "devices": len(jax.devices()),
        "levels": LEVELS,
        "stages": STAGES,
        "strategies_per_second": rates(count),
        "loss_of_bins": program_loss(few),
        "loss_of_step": {
            f"{stages} stages, weight {weight:g}": step_loss(few, stages, weight)
            for stages, weight in ((8, 8.0), (8, 128.0), (64, 512.0))
        },
    }
    record["loss_of_phases"] = joint_loss(2 if options.smoke else 12)
    return record


def show(record: harness.Answer) -> None:
    """Print the tables."""
    print(f"{LEVELS} levels x {STAGES} stages, {record['devices']} devices, float32: strategies per second")
    for name, rate in record["strategies_per_second"].items():
        print(f"  {name:45s}{rate:12,.0f}")
    print("Program over bins, 16 stages: slower than the optimum by")
    for bins, loss in record["loss_of_bins"].items():
        print(f"  {bins:>5} bins  mean {loss['mean']:.2%}  worst {loss['worst']:.2%}  none {loss['nothing_found']:.0%}")
    print("Step time, sum c + weight max c: above the scan with the exact knapsack by, and s that the scan takes")
    for name, loss in record["loss_of_step"].items():
        print(f"  {name:25s}" + "  ".join(f"{word} {value:.2g}" for word, value in loss.items()))
    loss = record["loss_of_phases"]
    print(f"Levels, helpers and places one after the other, {loss['cases']} cases, {loss['ship']} ship: slower by")
    print(f"  mean {loss['mean']:.2%}  worst {loss['worst']:.2%}")


main = harness.command(__doc__, answer, show)

if __name__ == "__main__":
    sys.exit(main())
