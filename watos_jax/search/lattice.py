"""The lattice of hardware designs: knobs as arrays, indices into the lattice, neighbours, first guesses.

Arrays of knobs have their names along the last axis, in the order of `hardware.Knobs`.
"""

from itertools import combinations, product
from typing import Final

import numpy as np
from jaxtyping import Array, Float, Int

from watos_jax.hardware import Budget, Knobs, Wafer

NAMES: Final = tuple(Knobs.__dataclass_fields__)
"""Knobs in the order of the arrays."""
_CORES: Final = (NAMES.index("core_rows"), NAMES.index("core_cols"))
_BOX: Final = np.array(list(product((-1, 0, 1), repeat=len(NAMES))))
KnobArray = Float[np.ndarray, "*batch knobs"]
Index = Int[np.ndarray, "*batch knobs"]
Center = Int[np.ndarray, " knobs"]
Points = Int[np.ndarray, "points knobs"]


def to_array(knobs: Knobs) -> KnobArray:
    """Knobs as an array."""
    return np.stack([np.asarray(getattr(knobs, name), float) for name in NAMES], axis=-1)


def from_array(values: Float[Array, "*batch knobs"] | KnobArray) -> Knobs:
    """An array as knobs."""
    return Knobs(*(values[..., i] for i in range(len(NAMES))))


def counts(budget: Budget) -> Index:
    """Lattice values of each knob: `floor((high - low) / step) + 1`."""
    low, high, step = (to_array(side) for side in (budget.low, budget.high, budget.step))
    return np.floor((high - low) / step + 1e-9).astype(int) + 1


def values_at(budget: Budget, index: Index) -> KnobArray:
    """Values of lattice points, `low + index * step`, to 12 digits: 8 mm + 36 x 0.5 mm is 26 mm, not a hair more."""
    values = to_array(budget.low) + index * to_array(budget.step)
    scale = 10.0 ** (11.0 - np.floor(np.log10(values)))
    return np.rint(values * scale) / scale


def nearest(budget: Budget, values: KnobArray) -> Index:
    """Index of the nearest lattice point."""
    index = np.rint((values - to_array(budget.low)) / to_array(budget.step)).astype(int)
    return np.clip(index, 0, counts(budget) - 1)


def ends(budget: Budget, index: Center) -> dict[str, str]:
    """Knobs of a point that lie at an end of the lattice: "low" or "high" by name."""
    last = counts(budget) - 1
    found = {name: "low" for name, at in zip(NAMES, index == 0, strict=True) if at}
    return found | {name: "high" for name, at, size in zip(NAMES, index == last, last, strict=True) if at and size}


def box(center: Center) -> Points:
    """All points within one step in every knob, shape (3**knobs, knobs)."""
    return center + _BOX


def moves(budget: Budget, center: Center) -> Points:
    """All values of one knob, up to four steps of two knobs at once, and of rows and columns of cores with a third.

    Cores come as a product: to have a few more of them both may have to change, and what makes room for them with them.

    Args:
        budget: the lattice.
        center: one point.

    Returns:
        Points of the lattice, the center among them.
    """
    found = [center[None]]
    for knob, size in enumerate(counts(budget)):
        line = np.repeat(center[None], size, axis=0)
        line[:, knob] = np.arange(size)
        found.append(line)
    rest = [knob for knob in range(len(NAMES)) if knob not in _CORES]
    groups = [*combinations(range(len(NAMES)), 2), *((*_CORES, knob) for knob in rest)]
    steps = {size: np.array([one for one in product(range(-4, 5), repeat=size) if 0 not in one]) for size in (2, 3)}
    for group in groups:
        block = np.repeat(center[None], len(steps[len(group)]), axis=0)
        block[:, group] += steps[len(group)]
        found.append(block)
    return inside(budget, np.concatenate(found))


def inside(budget: Budget, index: Points) -> Int[np.ndarray, "kept knobs"]:
    """The points that lie on the lattice, each once, in order."""
    valid = index[((index >= 0) & (index < counts(budget))).all(axis=-1)]
    # several times as fast as np.unique of rows
    ordered = valid[np.lexsort(valid.T[::-1])]
    return ordered[np.diff(ordered, axis=0, prepend=-1).any(axis=1)]


def first_guesses(budget: Budget, die_rows: int, die_cols: int, sides: tuple[int, int]) -> KnobArray:
    """Starting points on one die grid: dies that fill the window and the reticle, with few to many stacks.

    Half of the edge that memory leaves goes to D2D, three quarters of the area to MACs and the rest to SRAM.

    Args:
        budget: the lattice and its template wafer.
        die_rows: rows of dies.
        die_cols: columns of dies.
        sides: (horizontal, vertical) die edges that carry memory.

    Returns:
        Shape (guesses, knobs); empty where no die of the lattice fits the window.
    """
    wafer, low, high = budget.wafer, budget.low, budget.high
    sizes = largest_die(wafer, die_rows, die_cols, sides)
    width, height = min(sizes[0], float(high.die_width)), min(sizes[1], float(high.die_height))
    if width < float(low.die_width) or height < float(low.die_height):
        return np.zeros((0, len(NAMES)))
    width, height = within_reticle(wafer, width, height)
    memory, technology, core = wafer.die.memory, wafer.technology, wafer.die.core
    occupied = max(float(memory.stack_length), float(technology.memory_phy_length), 1e-6)
    per_side = [int(edge / occupied) for edge, count in ((height, sides[0]), (width, sides[1])) if count]
    most = min(sum(sides) * min(per_side, default=0), int(high.dram_stacks))
    guesses = []
    for stacks, clock in product(sorted({max(1, most // 3), max(1, (2 * most) // 3), max(1, most)}), (0.4, 0.75)):
        edge = min(width, height) - np.ceil(stacks / sum(sides)) * float(technology.memory_phy_length)
        bandwidth = max(0.5 * edge, 0.0) * float(wafer.d2d.shoreline_density)
        area = width * height - stacks * float(technology.memory_phy_area) - 4 * bandwidth * float(wafer.d2d.phy_area)
        cores = max(0.75 * area, 0.0) / float(core.num_macs * technology.mac_area)
        per_core = 0.25 * area / max(cores, 1.0) / float(technology.sram_area)
        rows = np.sqrt(cores * height / width)
        speed = float(low.clock) ** (1 - clock) * float(high.clock) ** clock
        guesses.append([rows, cores / max(rows, 1e-9), per_core, stacks, bandwidth, width, height, speed])
    return np.clip(np.array(guesses), to_array(low), to_array(high))


def largest_die(wafer: Wafer, die_rows: int, die_cols: int, sides: tuple[int, int]) -> tuple[float, float]:
    """Width and height that the window leaves to each die, m."""
    memory, gap = wafer.die.memory, float(wafer.die_gap)
    width = (float(wafer.window_width) + gap) / die_cols - gap - sides[0] * float(memory.stack_depth)
    height = (float(wafer.window_height) + gap) / die_rows - gap - sides[1] * float(memory.stack_depth)
    return width, height


def within_reticle(wafer: Wafer, width: float, height: float) -> tuple[float, float]:
    """Cut a die down to the reticle, in the orientation that keeps more of it."""
    short, long = float(wafer.reticle_width), float(wafer.reticle_height)
    upright = (min(width, short), min(height, long))
    flat = (min(width, long), min(height, short))
    return max(upright, flat, key=lambda size: size[0] * size[1])
