"""How should a wafer be divided? Best DRAM per die, links, SRAM, die, grid and tensor group, each as a curve.

A fixed window of wafer is divided in every way that a lattice allows: grids of dies, sides with memory, stacks,
die-to-die bandwidth, SRAM per core, clock; dies are as large as window and reticle allow, and what is left of a die
is cores. The hard model judges every design with the best of a short list of strategies, chosen anew at each point;
all limits of geometry, memory and power hold. A curve is the best over everything else; dashed, all else but cores
and strategy stays as in the best design. Two budgets and two models, for the optimum moves with both.

The short list of a grid holds the best strategies of sample designs with many pairs of stacks and bandwidth. At other
designs, drawn at random, it is compared with every strategy, and what it loses is reported; the designs on the curves
are judged again with every strategy. Operators are those of the roofline, the most favourable view of a small SRAM: the
best design with more and less of it is shown by the mapper too.

    python experiments/insights.py --out experiments/results
    python experiments/insights.py --budget default --model llama3-70b    # each may be repeated
    python experiments/insights.py --json
    python experiments/insights.py --smoke
"""

import argparse
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np

import watos_jax as wj
from watos_jax.fabrication import fabrication_ratios
from watos_jax.presets import budgets, models
from watos_jax.units import GIGA, MIB, MM, MM2, TERA

MODELS = ("llama3-70b", "gpt3-175b")
BUDGETS = ("default", "dense-215")
MAX_STAGES = 48
OPTIONS = wj.Options(
    global_batch_size=512,
    micro_batch_sizes=(1, 2, 4),
    recompute=("none", "activation", "mlp", "full"),
    virtual_stages=(1, 2),
    context_parallel=1,
    sequence_parallel=1,
    optimizer_sharding=1,
    max_pipeline=MAX_STAGES,
    least_use=0.8,
)
SAMPLES, KEPT, CHECKED = 16, 3, 3
"""Designs of each grid that make its short list, strategies that each adds, further designs at which it is checked."""
GRIDS = tuple((rows, cols) for rows in range(4, 9) for cols in range(rows, 11) if rows * cols <= 72)
"""Rows and columns of dies; the window is square, so a grid and its transpose are alike."""
SIDES = ((1, 0), (0, 1), (2, 0), (0, 2))
LATTICE = {
    "stacks": (1, 2, 3, 4, 6),
    "d2d": tuple(rate * TERA for rate in (0.1, 0.2, 0.4, 0.6, 0.8, 1.2, 1.6)),
    "sram": tuple(size * MIB for size in (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)),
    "clock": tuple(rate * GIGA for rate in (1.2, 1.6, 2.0, 2.2)),
}
COARSE = {"stacks": (1, 2), "d2d": (0.4 * TERA, 0.8 * TERA), "sram": (0.5 * MIB, 1.0 * MIB), "clock": (1.6 * GIGA,)}
MOST_CORES, LEAST_CORES, LEAST_DIE = 24, 16, 200.0 * MM2
"""Cores along a side at most, on a die at least; area of a die at least."""
NEAR = 0.02
"""Values of a knob within this much of the best count as nearly as good."""


class Designs(NamedTuple):
    """Wafers of one grid of dies: the knobs, and the (horizontal, vertical) sides of a die with memory."""

    knobs: wj.Knobs
    horizontal: Any
    vertical: Any

    def take(self, rows: Any) -> "Designs":
        """Some of them."""
        return jax.tree.map(lambda leaf: leaf[rows], self)


class Point(NamedTuple):
    """A design with a strategy, and the row of its layout."""

    design: Designs
    strategy: wj.Strategy
    geometry: Any


def can_be_made(shared: Any, one: Designs) -> Any:
    """Whether a design keeps every limit of geometry."""
    budget, *grid = shared
    wafer = budget.build(one.knobs, *grid, (one.horizontal, one.vertical))
    return jnp.max(jnp.stack(list(fabrication_ratios(wafer).values()))) <= 1.0 + 1e-6


def rate(shared: Any, point: Point) -> Any:
    """Tokens per second by the hard model; 0 where a limit is exceeded."""
    (budget, *grid), model, layouts = shared
    wafer = budget.build(point.design.knobs, *grid, (point.design.horizontal, point.design.vertical))
    layout = jax.tree.map(lambda leaf: leaf[point.geometry], layouts)
    result = wj.estimate(wafer, model, point.strategy, layout=layout)
    worst = jnp.min(jnp.stack(list(result.margins.values())))
    return jnp.where(worst >= -1e-6, result.tokens_per_second, 0.0)


def designs(budget: wj.Budget, lattice: dict[str, Any], rows: int, cols: int) -> Designs:
    """Every design of the lattice on one grid that can be made."""
    wafer, technology, core = budget.wafer, budget.wafer.technology, budget.wafer.die.core
    index = np.indices((len(SIDES), *map(len, lattice.values()))).reshape(1 + len(lattice), -1)
    horizontal, vertical = np.array(SIDES, float)[index[0]].T
    stacks, d2d, sram, clock = (
        np.array(values, float)[i] for values, i in zip(lattice.values(), index[1:], strict=True)
    )
    module, depth, gap = (float(x) for x in (wafer.d2d.bandwidth, wafer.die.memory.stack_depth, wafer.die_gap))
    d2d = np.maximum(1.0, np.round(d2d / module)) * module
    step = float(budget.step.die_width)

    def side(window: Any, count: int, sides: np.ndarray) -> np.ndarray:
        return np.floor(((float(window) + gap) / count - gap - sides * depth) / step + 1e-9) * step

    width, height = side(wafer.window_width, cols, horizontal), side(wafer.window_height, rows, vertical)
    short, long = float(wafer.reticle_width), float(wafer.reticle_height)
    wide = width >= height  # the longer side may be as long as the reticle's
    width, height = np.minimum(width, np.where(wide, long, short)), np.minimum(height, np.where(wide, short, long))
    ports = 4.0 * d2d * float(wafer.d2d.phy_area)
    left = width * height - stacks * float(technology.memory_phy_area) - ports
    each = float(core.num_macs) * float(technology.mac_area) + sram * float(technology.sram_area)
    number = np.clip(np.floor(left / each + 1e-9), 0, MOST_CORES**2).astype(int)
    array = np.array([_array(count) for count in range(MOST_CORES**2 + 1)], float)[number]
    table = Designs(wj.Knobs(*array.T, sram, stacks, d2d, width, height, clock), horizontal, vertical)
    table = table.take((width * height >= LEAST_DIE) & (np.minimum(width, height) > 0) & (number >= LEAST_CORES))
    if not len(table.horizontal):
        return table
    return table.take(wj.batch.map_chunks(can_be_made, (budget, rows, cols), table, chunk=512, chunks_per_call=1))


def _array(count: int) -> tuple[int, int]:
    # rows and columns of the most cores, `count` at most, in an array that is nearly square
    pairs = [(r, min(MOST_CORES, 2 * r, count // r)) for r in range(2, MOST_CORES + 1) if count // r >= r]
    return max(pairs, key=lambda pair: (pair[0] * pair[1], pair[0]), default=(1, 1))


class Grid(NamedTuple):
    """Every design of one grid, judged with the strategies of its short list.

    Attributes:
        rows: of dies.
        cols: of dies.
        table: the designs.
        space: every strategy.
        judge: `judge(designs, strategies)` gives tokens per second, shape (designs, strategies), of rows of both.
        listed: rows of the strategies on the short list.
        rates: tokens per second, shape (designs, listed).
        losses: of the short list, at designs drawn at random that fit.
    """

    rows: int
    cols: int
    table: Designs
    space: Any
    judge: Any
    listed: np.ndarray
    rates: np.ndarray
    losses: np.ndarray

    @property
    def tensor(self) -> np.ndarray:
        """Dies of the tensor group of every strategy."""
        return self.space.strategies.tensor_rows * self.space.strategies.tensor_cols


def judged(budget: wj.Budget, model: wj.Transformer, lattice: dict[str, Any], rows: int, cols: int) -> Grid | None:
    """Judge every design of a grid; None where none can be made."""
    table = designs(budget, lattice, rows, cols)
    count = len(table.horizontal)
    if not count:
        return None
    space = wj.strategies(replace(budget.wafer, die_rows=rows, die_cols=cols), model, OPTIONS, max_stages=MAX_STAGES)
    shared = ((budget, float(rows), float(cols)), model, space.roomy_layouts)

    def judge(which: np.ndarray, strategies: np.ndarray) -> np.ndarray:
        design, strategy = (part.ravel() for part in np.meshgrid(which, strategies, indexing="ij"))
        chosen = jax.tree.map(lambda leaf: leaf[strategy], space.strategies)
        points = Point(table.take(design), chosen, space.geometry[strategy].astype(np.int32))
        return wj.batch.map_chunks(rate, shared, points, chunks_per_call=1).reshape(len(which), -1)

    drawn = np.random.default_rng(0).permutation(count)
    pairs = np.stack([table.knobs.dram_stacks[drawn], table.knobs.d2d_bandwidth[drawn]])
    first = np.sort(np.unique(pairs, axis=1, return_index=True)[1])[:SAMPLES]
    samples, others = drawn[first], np.delete(drawn, first)[:CHECKED]
    every = judge(np.concatenate([samples, others]), np.arange(len(space)))
    found, checked = every[: len(samples)], every[len(samples) :]
    best = np.argsort(-found, axis=1)[:, :KEPT]
    listed = np.unique(best[np.take_along_axis(found, best, axis=1) > 0])
    if not len(listed):
        return None
    most = checked.max(axis=1, initial=0.0)
    losses = 1.0 - checked[:, listed].max(axis=1)[most > 0] / most[most > 0]
    return Grid(rows, cols, table, space, judge, listed, judge(np.arange(count), listed), losses)


def search(budget: wj.Budget, model: wj.Transformer, lattice: dict[str, Any], grids: Any) -> dict[str, Any]:
    """Curves of one budget and model."""
    parts = [part for part in (judged(budget, model, lattice, *grid) for grid in grids) if part is not None]
    table = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part.table for part in parts))
    best = np.concatenate([part.rates.max(axis=1) for part in parts])
    owner = np.repeat(np.arange(len(parts)), [len(part.rates) for part in parts])
    row = np.concatenate([np.arange(len(part.rates)) for part in parts])
    knobs = table.knobs
    columns = {
        "stacks": knobs.dram_stacks,
        "d2d": knobs.d2d_bandwidth,
        "sram": knobs.sram_bytes_per_core,
        "clock": knobs.clock,
        "grid": owner.astype(float),
    }

    # the best design at each value of a knob, judged with every strategy
    for at in {
        int(np.where(column == v, best, -1.0).argmax()) for column in columns.values() for v in np.unique(column)
    }:
        part = parts[owner[at]]
        best[at] = part.judge(row[at : at + 1], np.arange(len(part.space))).max()
    winner = int(best.argmax())
    home = parts[owner[winner]]
    at_winner = home.judge(row[winner : winner + 1], np.arange(len(home.space)))[0]
    sides = table.horizontal * 10 + table.vertical
    curves: dict[str, Any] = {}
    for name, column in columns.items():
        # where the grid changes, so do the sides that memory may take
        others = [columns[other] for other in columns if other != name] + ([] if name == "grid" else [sides])
        alike = np.all([other == other[winner] for other in others], axis=0)
        values = np.unique(column)
        curves[name] = {
            "value": values,
            "best": [best[column == value].max() for value in values],
            "all_else_fixed": [best[alike & (column == value)].max(initial=0.0) for value in values],
        }
        if name == "sram":
            curves[name]["mapper"] = [_by_mapper(budget, model, home, row[alike & (column == v)]) for v in values]
    sizes = np.unique(np.concatenate([part.tensor[part.listed] for part in parts]))
    curves["tensor"] = {
        "value": sizes,
        "best": [
            max(at_winner[home.tensor == size].max(initial=0.0), *(_of_size(part, size) for part in parts))
            for size in sizes
        ],
        "all_else_fixed": [at_winner[home.tensor == size].max(initial=0.0) for size in sizes],
    }
    names = [f"{part.rows}x{part.cols}" for part in parts]
    area = knobs.die_width * knobs.die_height
    at_grid = [int(np.where(owner == number, best, -1.0).argmax()) for number in range(len(parts))]
    curves["grid"] |= {"value": names, "die_area": area[at_grid], "num_dies": [p.rows * p.cols for p in parts]}
    losses = np.concatenate([part.losses for part in parts])
    return {
        "designs": len(best),
        "designs_that_fit": int((best > 0).sum()),
        "estimates": sum(part.rates.size + (SAMPLES + CHECKED) * len(part.space) for part in parts),
        "strategies_of_a_grid": [min(len(p.space) for p in parts), max(len(p.space) for p in parts)],
        "short_list_loss": {"designs": len(losses), "mean": losses.mean(), "worst": losses.max(initial=0.0)},
        "stack_bytes": budget.wafer.die.memory.stack_bytes,
        "best": {
            "tokens_per_second": best[winner],
            "grid": names[owner[winner]],
            "memory_sides": [table.horizontal[winner], table.vertical[winner]],
            "tensor_parallel": home.tensor[at_winner.argmax()],
            **{name: getattr(knobs, name)[winner] for name in wj.Knobs.__dataclass_fields__},
        },
        "curves": curves,
        "nearly_as_good": {
            name: [
                v for v, found in zip(curve["value"], curve["best"], strict=True) if found >= (1 - NEAR) * best[winner]
            ]
            for name, curve in curves.items()
        },
    }


def _of_size(part: Grid, size: float) -> float:
    return part.rates[:, part.tensor[part.listed] == size].max(initial=0.0)


def _by_mapper(budget: wj.Budget, model: wj.Transformer, part: Grid, rows: np.ndarray) -> float:
    # tokens per second of a design by the mapper, with the strategy that is its best by the roofline
    if not len(rows):
        return 0.0
    one = part.table.take(rows[0])
    index = int(part.judge(rows[:1], np.arange(len(part.space)))[0].argmax())
    wafer = budget.build(one.knobs, part.rows, part.cols, (one.horizontal, one.vertical))
    layout = part.space.layout(index)
    return float(
        wj.estimate(wafer, model, part.space.strategy(index), fidelity="mapper", layout=layout).tokens_per_second
    )


def answer(given: argparse.Namespace) -> dict[str, Any]:
    """Curves of every budget and model."""
    lattice, grids = (COARSE, ((5, 6), (6, 6))) if given.smoke else (LATTICE, GRIDS)
    names = given.model or (MODELS[:1] if given.smoke else MODELS)
    chosen = given.budget or (BUDGETS[:1] if given.smoke else BUDGETS)
    found: dict[str, Any] = {}
    for budget in chosen:
        found[budget] = {}
        for name in names:
            found[budget][name] = search(budgets.get(budget), models.get(name), lattice, grids)
            print(f"{name} in {budget}: {found[budget][name]['estimates']:,} estimates", file=sys.stderr, flush=True)
    return {"lattice": lattice, "near": NEAR, "budgets": found}


UNITS = {
    "stacks": ("DRAM stacks per die", 1.0),
    "d2d": ("die-to-die bandwidth (TB/s per edge and direction)", TERA),
    "sram": ("SRAM per core (MiB)", MIB),
    "clock": ("clock (GHz)", GIGA),
    "grid": ("die area (mm²)", MM2),
    "tensor": ("dies of a tensor group", 1.0),
}
"""Label of a knob and its unit."""
TICKS = {"d2d": (0.1, 0.2, 0.4, 0.8, 1.6), "sram": (0.25, 0.5, 1, 2, 3), "tensor": (1, 2, 4, 8, 16, 32, 64)}
"""Ticks of logarithmic axes."""


def show(record: dict[str, Any]) -> None:
    """Print the best design and the curves."""
    for budget, by_model in record["budgets"].items():
        for model, found in by_model.items():
            best, loss = found["best"], found["short_list_loss"]
            print(
                f"{model} in {budget}: {found['designs_that_fit']:,} of {found['designs']:,} designs fit; "
                f"{found['estimates']:,} estimates; the short list loses {loss['mean'] or 0:.2%} at {loss['designs']} "
                f"designs, {loss['worst']:.2%} at worst"
            )
            print(
                f"  best {best['tokens_per_second']:,.0f} tokens/s: {best['grid']} dies of "
                f"{best['die_width'] / MM:.1f} x {best['die_height'] / MM:.1f} mm, {best['dram_stacks']:.0f} stacks, "
                f"{best['d2d_bandwidth'] / TERA:.2f} TB/s, {best['core_rows']:.0f}x{best['core_cols']:.0f} cores of "
                f"{best['sram_bytes_per_core'] / MIB:g} MiB at {best['clock'] / GIGA:g} GHz, groups of "
                f"{best['tensor_parallel']:.0f}"
            )
            for name, curve in found["curves"].items():
                label, unit = UNITS[name]
                cells = []
                for value, rate_there in zip(curve["value"], curve["best"], strict=True):
                    word = value if name == "grid" else f"{value / unit:.3g}"
                    cells.append(f"{word} {rate_there / best['tokens_per_second']:.3f}")
                print(f"  {label if name != 'grid' else 'dies'}: " + ", ".join(cells))
            by_mapper = found["curves"]["sram"]["mapper"]
            most = max(by_mapper)
            print("  SRAM per core, best design by the mapper: ", end="")
            cells = [
                f"{v / MIB:g} {x / most:.3f}" for v, x in zip(found["curves"]["sram"]["value"], by_mapper, strict=True)
            ]
            print(", ".join(cells))


def draw(record: dict[str, Any], plt: Any) -> Any:
    """One panel for each knob, one colour for each budget and model."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    cases = [(b, m, found) for b, by_model in record["budgets"].items() for m, found in by_model.items()]
    for axis, (name, (label, unit)) in zip(axes.ravel(), UNITS.items(), strict=True):
        for number, (budget, model, found) in enumerate(cases):
            curve, colour = found["curves"][name], harness.COLOURS[number]
            rates, fixed = (
                np.array(curve[key], float) / found["best"]["tokens_per_second"] for key in ("best", "all_else_fixed")
            )
            values = np.array(curve["die_area" if name == "grid" else "value"], float) / unit
            shown = np.where(rates > 0, rates, np.nan)
            at = int(rates.argmax())
            if name == "grid":
                axis.plot(values, shown, "o", ms=4, color=colour, alpha=0.7)
                offset = {"xytext": (0, 7 + 10 * number), "textcoords": "offset points"}
                axis.annotate(curve["value"][at], (values[at], 1.0), ha="center", fontsize=8, color=colour, **offset)
            else:
                axis.plot(values, shown, "o-", ms=3, color=colour, label=f"{model}, {budget}")
                axis.plot(values, np.where(fixed > 0, fixed, np.nan), "--", lw=1, color=colour)
            if name == "sram":
                mapped = np.array(curve["mapper"], float)
                axis.plot(values, np.where(mapped > 0, mapped, np.nan) / mapped.max(), ":", lw=1.5, color=colour)
                axis.plot(values[int(mapped.argmax())], 1.0, "P", ms=8, color=colour, mec="white", mew=0.6, zorder=4)
            axis.plot(values[at], 1.0, "*", ms=13, color=colour, mec="white", mew=0.6, zorder=5)
        stack = cases[0][2]["stack_bytes"] / GIGA
        axis.set_xlabel(f"{label}, {stack:g} GB each" if name == "stacks" else label)
        axis.set_ylim(0.4, 1.13 if name == "grid" else 1.05)
        if name in TICKS:
            axis.set_xscale("log", base=2)
            axis.set_xticks(TICKS[name], [f"{tick:g}" for tick in TICKS[name]])
            axis.minorticks_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("tokens/s over the best")
    axes[0, 0].plot([], [], "--", color="0.3", lw=1, label="all else as in the best")
    axes[0, 0].plot([], [], "*", color="0.3", ms=11, ls="", label="optimum")
    axes[0, 0].legend(loc="lower left", fontsize=8)
    (mapped_line,) = axes[0, 2].plot([], [], ":", color="0.3", lw=1.5)
    axes[0, 2].legend(
        [mapped_line], ["best design by the mapper,\nover its own best (+)"], loc="lower left", fontsize=8
    )
    figure.suptitle("How to divide 215 x 215 mm of wafer: the best at each value of one knob, all else chosen anew")
    return figure


main = harness.command(__doc__, answer, show, draw, model=models.NAMES, budget=budgets.NAMES)

if __name__ == "__main__":
    sys.exit(main())
