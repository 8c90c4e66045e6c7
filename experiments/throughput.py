"""Estimates per second of the complete legal strategy list of Llama 3 70B on 56 dies: value, and value with gradient.

A full estimate is `watos_jax.estimate`, hard, in float32, returning step time, memory of every stage and all margins;
the gradient is of the step time with respect to every leaf of the wafer. Compilation is timed apart. Beside the rates:
FLOP and bytes per estimate as XLA counts them, and the rate of a fused elementwise loop that stays in the cache. With
`--fidelity` the operators are those of another rung; the mapper's rate is also given in pairs of an operator and a die.
With `--cpu` seconds are CPU seconds of the process, all threads: for machines that others use.

    python experiments/throughput.py --json
    python experiments/throughput.py --fidelity predictor --cpu
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={CORES}"

import jax  # noqa: E402  (devices are counted when jax starts)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

import watos_jax as wj  # noqa: E402
from watos_jax.workload import families  # noqa: E402
from watos_jax.xla import compiler_options  # noqa: E402

CHUNKS = (512, 2048, 4096)
CHUNKS_PER_CALL = 4
BATCHES = (1_000, 10_000, 100_000, 1_000_000)
MAPPED = ((64, 256), (1,))
"""Batches and chunks of the mapper, whose candidates fill the cache by themselves."""
clock: Callable[[], float] = time.perf_counter
"""What seconds are: of the wall, or of the processors."""


def pairs(model: wj.Transformer) -> int:
    """Operators that an estimate maps on a die: each product with its two gradients, attention both ways."""
    products = sum(len(places) for places, there in families(model) if there)
    return 3 * products + 2


def full(relax: wj.Relaxation, fidelity: str, wafer: wj.Wafer, model: wj.Transformer, row: Any) -> Any:
    """Step time, memory of every stage and all margins of one strategy."""
    result = wj.estimate(wafer, model, row[0], layout=row[1], relax=relax, fidelity=fidelity)
    return result.step_time, (result.memory, result.margins)


def with_gradient(relax: wj.Relaxation, fidelity: str, wafer: wj.Wafer, model: wj.Transformer, row: Any) -> Any:
    """The same with the gradient of the step time in every leaf of the wafer."""
    return jax.value_and_grad(partial(full, relax, fidelity), has_aux=True)(wafer, model, row)


def mesh() -> Mesh:
    """All devices in a row."""
    return Mesh(np.array(jax.devices()), ("device",))


def kernel(function: Callable, chunk: int, wafer: Any, model: Any, rows: Any) -> Any:
    """Compile `function` over all rows: chunks in a loop, one loop per device, results summed so that all are used."""
    split = PartitionSpec("device")

    def on_device(wafer: Any, model: Any, rows: Any) -> Any:
        chunks = jax.tree.map(lambda leaf: leaf.reshape((-1, chunk) + leaf.shape[1:]), rows)

        def one(block: Any) -> Any:
            return jax.tree.map(partial(jnp.sum, axis=0), jax.vmap(partial(function, wafer, model))(block))

        return jax.lax.map(one, chunks)

    specs = (PartitionSpec(), PartitionSpec(), split)
    mapped = jax.shard_map(on_device, mesh=mesh(), in_specs=specs, out_specs=split, check_vma=False)
    return jax.jit(mapped, compiler_options=compiler_options()).lower(wafer, model, rows).compile()


def call(compiled: Any, calls: int, *arguments: Any) -> Any:
    """Run a compiled block several times."""
    for _ in range(calls):
        result = compiled(*arguments)
    return result


def rate(compiled: Any, arguments: tuple, count: int, repeats: int) -> float:
    """Rows per second, best of several runs; on a machine with other tenants few of many runs are undisturbed."""
    jax.block_until_ready(compiled(*arguments))
    best, until = float("inf"), time.perf_counter() + 0.4 * repeats
    while repeats > 0 or time.perf_counter() < until:
        repeats -= 1
        start = clock()
        jax.block_until_ready(compiled(*arguments))
        best = min(best, clock() - start)
    return count / best


def elementwise_peak(repeats: int) -> float:
    """FLOP/s of multiply-adds and maxima on an array that stays in the first cache, on all devices."""
    rounds, size = 20_000, 4096

    def on_device(x: jax.Array) -> jax.Array:
        def body(_: int, y: jax.Array) -> jax.Array:
            for _ in range(4):
                y = jnp.where(y * 1.0001 + 0.5 >= 0.25, y * 1.0001 + 0.5, 0.25)
            return y

        return jax.lax.fori_loop(0, rounds, body, x)

    mapped = jax.shard_map(
        on_device, mesh=mesh(), in_specs=PartitionSpec("device"), out_specs=PartitionSpec("device"), check_vma=False
    )
    x = jnp.ones(size * len(jax.devices()))
    compiled = jax.jit(mapped).lower(x).compile()
    return rate(compiled, (x,), x.size * rounds * 4 * 3, repeats)


def measure(
    batches: Sequence[int], chunks: Sequence[int], repeats: int, smooth: bool = True, fidelity: str = "roofline"
) -> dict[str, Any]:
    """Rates and compile times at every batch; the chunk that is best at the largest batch is used for all."""
    wafer, model = wj.presets.wafers.WATOS_CONFIG_3, wj.presets.models.LLAMA3_70B
    space = wj.strategies(wafer, model)
    to_float32 = partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, jnp.float32))
    wafer, model = jax.device_put(to_float32((wafer, model)), NamedSharding(mesh(), PartitionSpec()))
    kinds = {"value": partial(full, wj.HARD, fidelity), "value_and_grad": partial(with_gradient, wj.HARD, fidelity)}
    if smooth:
        relaxed = to_float32(wj.Smooth())
        kinds |= {
            "smooth_value": partial(full, relaxed, fidelity),
            "smooth_value_and_grad": partial(with_gradient, relaxed, fidelity),
        }
    layouts = space.stacked_layouts
    report: dict[str, Any] = {"devices": len(jax.devices()), "strategies": len(space), "fidelity": fidelity}
    report |= {"compile_time": {}, "chunks": {}}
    best: dict[str, dict[int, float]] = {}
    for name, function in kinds.items():
        for chunk in chunks:
            # one block of rows per call, so that one compilation serves every batch
            block = min(chunk * len(jax.devices()) * CHUNKS_PER_CALL, max(batches))
            block = -(-block // (chunk * len(jax.devices()))) * chunk * len(jax.devices())
            index = np.arange(block) % len(space)
            data = to_float32(jax.tree.map(lambda leaf, index=index: leaf[index], (space.strategies, layouts)))
            data = jax.device_put(data, NamedSharding(mesh(), PartitionSpec("device")))  # else copied in every call
            start = clock()
            compiled = kernel(function, chunk, wafer, model, data)
            took = clock() - start
            rates = {}
            for batch in batches:
                calls = max(1, round(batch / block))
                rates[batch] = rate(partial(call, compiled, calls), (wafer, model, data), calls * block, repeats)
            if max(rates.values()) > max(best.get(name, {0: 0.0}).values()):
                best[name] = rates
                costs = compiled.cost_analysis() or {}
                report["compile_time"][name], report["chunks"][name] = took, chunk
                report[f"{name}_flop"] = float(costs.get("flops", 0.0)) / chunk
                report[f"{name}_bytes"] = float(costs.get("bytes accessed", 0.0)) / chunk
    report["batches"] = [{"batch": batch} | {name: best[name][batch] for name in kinds} for batch in batches]
    for name in kinds:
        report[f"best_{name}_per_second"] = max(entry[name] for entry in report["batches"])
    report["best_estimates_per_second"] = report["best_value_per_second"]
    report["best_value_and_grads_per_second"] = report["best_value_and_grad_per_second"]
    report["gradient_over_value"] = report["best_estimates_per_second"] / report["best_value_and_grads_per_second"]
    if fidelity == "mapper":
        report["pairs_per_second"] = pairs(model) * report["best_estimates_per_second"]
    report["elementwise_peak"] = elementwise_peak(repeats)
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--smoke", action="store_true", help="one small batch and one chunk")
    parser.add_argument("--fidelity", choices=("roofline", "predictor", "mapper"), default="roofline", help="operators")
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds of the process instead of the wall's")
    given = parser.parse_args(arguments)
    global clock
    clock = time.process_time if given.cpu else time.perf_counter
    batches, chunks = MAPPED if given.fidelity == "mapper" else (BATCHES, CHUNKS)
    if given.smoke:
        report = measure(batches[:1], (1,) if given.fidelity == "mapper" else (256,), 2, False, given.fidelity)
    else:
        report = measure(batches, chunks, 5, given.fidelity != "mapper", given.fidelity)
    if given.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{report['strategies']:,} legal strategies, {report['devices']} devices")
    for entry in report["batches"]:
        speeds = ", ".join(f"{name} {entry[name]:,.0f}/s" for name in entry if name != "batch")
        print(f"batch {entry['batch']:>9,}: {speeds}")
    if "pairs_per_second" in report:
        print(f"{report['pairs_per_second']:,.0f} pairs of an operator and a die per second")
    print(f"compilation: {', '.join(f'{name} {took:.1f} s' for name, took in report['compile_time'].items())}")
    used = report["value_flop"] * report["best_estimates_per_second"] / report["elementwise_peak"]
    print(
        f"an estimate counts {report['value_flop']:,.0f} FLOP and {report['value_bytes']:,.0f} bytes; {used:.0%} of the"
    )
    print(f"{report['elementwise_peak'] / 1e9:.1f} GFLOP/s of a fused elementwise loop in the cache")


if __name__ == "__main__":
    main()
