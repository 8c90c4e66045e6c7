"""A small sweep that several tests and their child processes share, cut into many parts.

Run as a program it writes the sweep into the folder given as its argument, with a pause after each part.
"""

import sys
import time
import tomllib

import watos_jax.sweeps as sweeps
from watos_jax.sweeps import points

TEXT = """
wafers = ["watos-config-3-d2d-half"]
technologies = ["dense-n7", "demonstrated-n7"]
models = ["llama3-8b"]

[axes]
die_rows = [2]
die_cols = [2, 3]
"die.core.clock" = { low = 1e9, high = 2e9, num = 7 }
"die.memory.num_stacks" = [0.5, 2]

[strategies]
global_batch_size = 8
micro_batch_sizes = [1]
recompute = ["none", "full"]
virtual_stages = [1]
context_parallel = [1]
max_pipeline = 6

[keep]
top = 4
per = ["technology"]
pareto = ["step_time", "power"]
histogram = { of = "step_time", low = 0.1, high = 100.0, num = 12 }
rows = "all"
"""
TABLE = tomllib.loads(TEXT)


def small_parts(size: int = 256) -> None:
    """Make parts small, in this process."""
    points.ANSWER_POINTS = points.ROW_POINTS = size


if __name__ == "__main__":
    small_parts()
    pause = float(sys.argv[2])
    space, keep = sweeps.declare(TABLE)
    sweeps.sweep(space, keep, out=sys.argv[1], chunk=64, progress=lambda now: time.sleep(pause))
