"""How sweeps scale: memory with their size, rate with what is kept, workers of a cluster, share of the machine's peak.

    python experiments/sweep_scale.py                       # all parts, about 6 minutes on two quiet cores
    python experiments/sweep_scale.py --part memory --json  # one part (or several), one JSON object
    python experiments/sweep_scale.py --points 1e7 --rows all --out /tmp/results    # one sweep alone, one line of JSON

The space: 1,036 strategies of Llama 3 8B on random wafers of 2 x 3 dies, 8 padded stages, single precision. Every sweep
runs in a process of its own, and is timed after its shapes are compiled. Rates are per second and per CPU second of the
process; only the second means something beside other programs. Results go to a temporary folder (`TMPDIR`).
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTS = {"memory": "1.5 min", "rates": "2 min", "cluster": "2 min", "peak": "0.5 min"}
"""With the time that each takes on two quiet cores."""
METRICS = ("step_time", "tokens_per_second", "power", "memory")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(points: float, rows: str = "none", top: int = 10) -> Any:
    """About so many points; equal shapes whatever the number, so that one compilation serves all."""
    import watos_jax as wj

    space = wj.sweeps.Space(
        wafers="watos-config-3-d2d-half",
        models="llama3-8b",
        axes={
            "die_rows": [2],
            "die_cols": [3],
            "die.core.clock": wj.sweeps.Range(1e9, 2e9, num=1000),
            "die.memory.num_stacks": [0.5, 1, 1.5, 2],
            "d2d.bandwidth": wj.sweeps.Range(1e11, 2e12, num=1000),
        },
        strategies=wj.Options(global_batch_size=16, micro_batch_sizes=(1, 2)),
        samples=max(4, round(points / 1036)),
    )
    return wj.sweeps.build(space, wj.sweeps.Keep(top=top, rows=rows))


# ---- one sweep, in this process


def alone(points: float, rows: str, top: int, out: str | None) -> dict[str, Any]:
    """Points, seconds and peak memory of one sweep."""
    import watos_jax as wj

    wj.sweep(plan(min(points, 3e5), rows, top))  # compiles the shapes that are timed
    wall, cpu = time.perf_counter(), time.process_time()
    result = wj.sweep(plan(points, rows, top), out=out)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "points": result.evaluated,
        "feasible": result.feasible,
        "seconds": wall,
        "cpu_seconds": cpu,
        "points_per_second": result.evaluated / wall,
        "points_per_cpu_second": result.evaluated / cpu,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def child(points: float, rows: str = "none", top: int = 10, *, folder: bool = True) -> dict[str, Any]:
    """The same in a process of its own, on every core."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--points", str(points), "--rows", rows, "--top", str(top)]
        command += ["--out", str(Path(out) / "results")] if folder else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


# ---- the parts


def memory(scale: float) -> dict[str, Any]:
    """Peak memory of 10^8 points against that of 10^6, the ten best in a folder."""
    small, large = child(1e6 * scale), child(1e8 * scale)
    return {"small": small, "large": large, "large_over_small": large["peak_bytes"] / small["peak_bytes"]}


def rates(scale: float) -> dict[str, Any]:
    """Rates by what is kept, best of two each, over that of the ten best in memory."""
    cases: dict[str, dict[str, Any]] = {
        "memory_nothing_kept": {"points": 4e7, "top": 0, "folder": False},
        "memory_ten_best": {"points": 4e7, "folder": False},
        "folder_ten_best": {"points": 4e7},
        "folder_all_rows": {"points": 1e7, "rows": "all"},
    }
    found: dict[str, Any] = {}
    for name in list(cases) * (2 if scale == 1.0 else 1):
        run = child(**cases[name] | {"points": cases[name]["points"] * scale})
        if name not in found or run["points_per_second"] > found[name]["points_per_second"]:
            found[name] = run
    for unit in ("points_per_second", "points_per_cpu_second"):
        base = found["memory_ten_best"][unit]
        found[f"over_memory_ten_best_{unit}"] = {name: found[name][unit] / base for name in cases}
    return found


def cluster(scale: float) -> dict[str, Any]:
    """Rate of two Dask workers over that of one; each has one device, on one core of its own."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    import watos_jax as wj

    found: dict[str, Any] = {}
    for count in (1, 2):
        with _workers(count) as address, tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            result = wj.sweep(plan(1e8 * scale), out=Path(out) / "results", cluster=address)
            seconds = time.perf_counter() - began
        rate = result.evaluated / seconds
        found[f"workers_{count}"] = {"points": result.evaluated, "seconds": seconds, "points_per_second": rate}
    one, two = (found[f"workers_{count}"]["points_per_second"] for count in (1, 2))
    return found | {"two_over_one": two / one}


@contextlib.contextmanager
def _workers(count: int) -> Iterator[str]:
    from distributed import Client, LocalCluster

    options: dict[str, Any] = {"n_workers": count, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(processes=True, **options) as local, Client(local) as client:
        for number, worker in enumerate(client.scheduler_info(n_workers=-1)["workers"]):
            client.run(prepare, number, workers=[worker])
        yield local.scheduler_address


def prepare(number: int) -> None:
    """Keep this worker on one core, and compile what it will need."""
    if hasattr(os, "sched_setaffinity"):
        core = sorted(os.sched_getaffinity(0))[number % CORES]
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {core})
    import watos_jax as wj

    wj.sweep(plan(3e5))


def peak(scale: float) -> dict[str, Any]:
    """FLOP per second of a sweep in memory, as XLA counts one point's, over those of a fused elementwise loop."""
    run = child(4e7 * scale, folder=False)
    from throughput import elementwise_peak  # isort: skip  (sets the number of devices before it imports jax)
    import jax

    import watos_jax as wj

    points = plan(1e5)
    wafer, model = points.point(0).wafer, points.point(0).model
    table = points.tables[0]

    def metrics(wafer: wj.Wafer, strategy: wj.Strategy, layout: wj.Layout) -> Any:
        result = wj.estimate(wafer, model, strategy, layout=layout)
        return [getattr(result, name) for name in METRICS], result.margins

    many = jax.jit(jax.vmap(metrics, in_axes=(None, 0, 0)))
    arguments = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, "float32"), (table.strategies, table.stacked_layouts))
    costs = many.lower(jax.tree.map(jax.numpy.float32, wafer), *arguments).compile().cost_analysis() or {}
    flop = float(costs["flops"]) / len(table)
    limit = elementwise_peak(2 if scale < 1 else 10)
    share = flop * run["points_per_second"] / limit
    return {"sweep": run, "flop_per_point": flop, "elementwise_flop_per_second": limit, "share_of_peak": share}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        name = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "")
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    return {
        "processor": name or platform.processor(),
        "cores": CORES,
        "load": load,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    times = ", ".join(f"{name} {minutes}" for name, minutes in PARTS.items())
    parser.add_argument("--part", action="append", choices=PARTS, help=f"repeatable; all where absent ({times})")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--smoke", action="store_true", help="every part with a few thousand points")
    parser.add_argument("--points", type=float, help="one sweep of about so many points, in this process")
    parser.add_argument(
        "--rows", choices=("none", "feasible", "all"), default="none", help="rows kept besides the best"
    )
    parser.add_argument("--top", type=int, default=10, help="how many of the best to keep")
    parser.add_argument("--out", help="folder for its results; in memory where absent")
    parser.add_argument("--devices", type=int, default=CORES, help="host devices")
    given = parser.parse_args()
    if given.points is not None:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={given.devices}"
        print(json.dumps(alone(given.points, given.rows, given.top, given.out)))
        return
    measures = {"memory": memory, "rates": rates, "peak": peak, "cluster": cluster}
    scale = 1e-4 if given.smoke else 1.0
    report: dict[str, Any] = {"machine": machine()}
    for name in given.part or measures:
        report[name] = measures[name](scale)
        if not given.json:
            print(name, json.dumps(report[name], indent=2), flush=True)
    if given.json:
        print(json.dumps(report | {"load_after": machine()["load"]}, indent=2))


if __name__ == "__main__":
    main()
