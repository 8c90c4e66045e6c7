"""The dynamic program that WATOS describes for GCMR, over stages and bins of memory; pooled, and shipping for nothing.

`T[s, b]` is the least time of the slowest of stages s, s + 1, ... with b bins of memory among them:

    T[s, b] = min over levels of max(time[level, s], T[s + 1, b - ceil(memory[level, s] / bin)])

Rounding memory up to bins keeps the answer feasible and makes it too slow; `recompute.least_slowest` has no bins.

Reference: WATOS, arXiv 2512.12279.
"""

import numpy as np
from jaxtyping import Float


def least_slowest_in_bins(
    time: Float[np.ndarray, "levels stages"],
    memory: Float[np.ndarray, "levels stages"],
    capacity: float,
    bins: int,
) -> float:
    """The least time of the slowest stage with memory counted in bins, s per micro-batch; infinite where nothing fits.

    Args:
        time: s per micro-batch.
        memory: bytes per die.
        capacity: bytes of DRAM per die.
        bins: bins that the memory of all stages together is divided into.
    """
    size = time.shape[1] * capacity / bins
    needed = np.ceil(memory / size - 1e-9).astype(int)
    least = np.zeros(bins + 1)
    for stage in reversed(range(time.shape[1])):
        with_stage = np.full(bins + 1, np.inf)
        for use, seconds in zip(needed[:, stage], time[:, stage], strict=True):
            if use <= bins:
                slowest = np.maximum(seconds, least[: bins + 1 - use])
                with_stage[use:] = np.minimum(with_stage[use:], slowest)
        least = with_stage
    return float(least[bins])
