"""Peak memory and rate of sweeps of any size: `python experiments/sweep_scale.py --points 1e8 --out /tmp/sweep`.

Prints one line of JSON: points, feasible points, seconds and CPU seconds of the sweep after compilation, points per
second of both, peak resident bytes of the process.
"""

import argparse
import json
import os
import resource
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=float, default=1e6, help="about how many points")
    parser.add_argument(
        "--rows", choices=("none", "feasible", "all"), default="none", help="rows kept besides the best"
    )
    parser.add_argument("--out", help="folder for the results; in memory where absent")
    parser.add_argument("--devices", type=int, default=os.cpu_count(), help="host devices")
    parser.add_argument("--cluster", help="address of a Dask scheduler")
    parser.add_argument("--smoke", action="store_true", help="a few thousand points")
    given = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={given.devices}"

    import watos_jax as wj
    from watos_jax import sweeps

    options = wj.Options(global_batch_size=16, micro_batch_sizes=(1, 2))
    points = 4e3 if given.smoke else given.points

    def plan(points: float) -> sweeps.Plan:
        # equal shapes whatever the number of points, so that one compilation serves all
        hardware = max(1, round(points / 1036))
        space = sweeps.Space(
            wafers="watos-config-3-d2d-half",
            models="llama3-8b",
            axes={
                "die_rows": [2],
                "die_cols": [3],
                "die.core.clock": sweeps.Range(1e9, 2e9, num=1000),
                "die.memory.num_stacks": [0.5, 1, 1.5, 2],
                "d2d.bandwidth": sweeps.Range(1e11, 2e12, num=1000),
            },
            strategies=options,
            samples=hardware,
        )
        return sweeps.build(space, sweeps.Keep(top=10, rows=given.rows))

    if given.cluster is None:
        sweeps.sweep(plan(min(points, 3e5)))  # compiles the shapes that are timed
    wall, cpu = time.perf_counter(), time.process_time()
    result = sweeps.sweep(plan(points), out=given.out, cluster=given.cluster)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    scale = 1 if sys.platform == "darwin" else 1024
    print(
        json.dumps(
            {
                "points": result.evaluated,
                "feasible": result.feasible,
                "seconds": round(wall, 2),
                "cpu_seconds": round(cpu, 2),
                "points_per_second": round(result.evaluated / wall),
                "points_per_cpu_second": round(result.evaluated / cpu) if given.cluster is None else None,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
            }
        )
    )


if __name__ == "__main__":
    main()
