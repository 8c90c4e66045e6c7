"""How should a wafer be divided? Best DRAM per die, links, SRAM, die, grid and tensor group, each as a curve.

A fixed window of wafer is divided in every way that a lattice allows: grids of dies, sides with memory, stacks,
die-to-die bandwidth, SRAM per core, clock; dies are as large as window and reticle allow, and what is left of a die
is cores. The hard model judges every design with the best of a short list of strategies, chosen anew at each point;
all limits of geometry, memory and power hold. A curve is the best over everything else; dashed, all else but cores
and strategy stays as in the best design. Two budgets and two models, for the optimum moves with both.

The short list of a grid holds the best strategies of sample designs. At other designs, drawn at random, it is compared
with every strategy, and what it loses is reported. Operators are those of the roofline.

    python experiments/insights.py --out experiments/results
    python experiments/insights.py --budget default --model llama3-70b    # each may be repeated
    python experiments/insights.py --json
    python experiments/insights.py --smoke
"""

import argparse
import sys
from collections.abc import Sequence
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
SAMPLES, KEPT, CHECKED = 5, 5, 2
"""Designs of each grid that make its short list, strategies that each adds, further designs at which it is checked."""
GRIDS = tuple((rows, cols) for rows in range(4, 9) for cols in range(rows, 11) if rows * cols <= 72)
"""Rows and columns of dies; the window is square, so a grid and its transpose are alike."""
SIDES = ((1, 0), (0, 1), (2, 0), (0, 2))
LATTICE = {
    "stacks": (1, 2, 3, 4, 6),
    "d2d": tuple(rate * TERA for rate in (0.1, 0.2, 0.4, 0.6, 0.8, 1.2, 1.6)),
    "sram": tuple(size * MIB for size in (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)),
    "clock": tuple(rate * GIGA for rate in (1.2, 1.6, 2.0)),
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


def grid_rates(
    budget: wj.Budget, model: wj.Transformer, lattice: dict[str, Any], rows: int, cols: int
) -> dict[str, Any] | None:
    """Tokens per second of every design of a grid with every strategy of its short list; None without designs."""
    table = designs(budget, lattice, rows, cols)
    count = len(table.horizontal)
    if not count:
        return None
    space = wj.strategies(replace(budget.wafer, die_rows=rows, die_cols=cols), model, OPTIONS, max_stages=MAX_STAGES)
    shared = ((budget, float(rows), float(cols)), model, space.roomy_layouts)

    def rates(which: np.ndarray, strategies: np.ndarray) -> np.ndarray:
        design, strategy = (part.ravel() for part in np.meshgrid(which, strategies, indexing="ij"))
        chosen = jax.tree.map(lambda leaf: leaf[strategy], space.strategies)
        points = Point(table.take(design), chosen, space.geometry[strategy].astype(np.int32))
        return wj.batch.map_chunks(rate, shared, points, chunks_per_call=1).reshape(len(which), -1)

    drawn = np.random.default_rng(0).permutation(count)[: SAMPLES + CHECKED]
    every = rates(drawn, np.arange(len(space)))
    listed = np.unique(np.argsort(-every[:SAMPLES], axis=1)[:, :KEPT])
    checked = every[SAMPLES:]
    found = rates(np.arange(count), listed)
    fits = checked.max(axis=1, initial=0.0) > 0
    tensor = space.strategies.tensor_rows * space.strategies.tensor_cols
    return {
        "table": table,
        "rates": found,
        "tensor": tensor[listed],
        "rows": np.full(count, rows),
        "cols": np.full(count, cols),
        "strategies": len(space),
        "loss": (1.0 - checked[:, listed].max(axis=1, initial=0.0)[fits] / checked.max(axis=1)[fits]).tolist(),
        "estimates": every.size + found.size,
    }


def search(budget: wj.Budget, model: wj.Transformer, lattice: dict[str, Any], grids: Any) -> dict[str, Any]:
    """Curves of one budget and model."""
    parts = [part for part in (grid_rates(budget, model, lattice, *grid) for grid in grids) if part is not None]
    table = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part["table"] for part in parts))
    rows, cols, best = (
        np.concatenate(x) for x in zip(*((p["rows"], p["cols"], p["rates"].max(axis=1)) for p in parts), strict=True)
    )
    knobs = table.knobs
    columns = {
        "stacks": knobs.dram_stacks,
        "d2d": knobs.d2d_bandwidth,
        "sram": knobs.sram_bytes_per_core,
        "clock": knobs.clock,
        "grid": rows * 100 + cols,
        "sides": table.horizontal * 10 + table.vertical,
    }
    winner = int(best.argmax())
    curves = {}
    for name in ("stacks", "d2d", "sram", "clock", "grid"):
        column = columns[name]
        # where the grid changes, so do the sides that memory may take
        others = [other for other in columns if other not in ((name, "sides") if name == "grid" else (name,))]
        alike = np.all([columns[other] == columns[other][winner] for other in others], axis=0)
        values = np.unique(column)
        curves[name] = {
            "value": values,
            "best": [best[column == value].max() for value in values],
            "all_else_fixed": [best[alike & (column == value)].max(initial=0.0) for value in values],
        }
    sizes = np.unique(np.concatenate([part["tensor"] for part in parts]))
    at_winner = next(p for p in parts if (p["rows"][0], p["cols"][0]) == (rows[winner], cols[winner]))
    row = winner - int(np.flatnonzero((rows == rows[winner]) & (cols == cols[winner]))[0])
    curves["tensor"] = {
        "value": sizes,
        "best": [max(p["rates"][:, p["tensor"] == size].max(initial=0.0) for p in parts) for size in sizes],
        "all_else_fixed": [at_winner["rates"][row, at_winner["tensor"] == size].max(initial=0.0) for size in sizes],
    }
    area = knobs.die_width * knobs.die_height
    losses = np.concatenate([part["loss"] for part in parts])
    memory = budget.wafer.die.memory
    return {
        "designs": len(best),
        "designs_that_fit": int((best > 0).sum()),
        "estimates": sum(part["estimates"] for part in parts),
        "strategies_by_grid": {
            "least": min(p["strategies"] for p in parts),
            "most": max(p["strategies"] for p in parts),
        },
        "short_list_loss": {
            "designs": len(losses),
            "mean": losses.mean() if len(losses) else None,
            "worst": losses.max(initial=0.0),
        },
        "stack_bytes": memory.stack_bytes,
        "best": {
            "tokens_per_second": best[winner],
            "die_rows": rows[winner],
            "die_cols": cols[winner],
            "memory_sides": [table.horizontal[winner], table.vertical[winner]],
            "tensor_parallel": at_winner["tensor"][at_winner["rates"][row].argmax()],
            **{name: getattr(knobs, name)[winner] for name in wj.Knobs.__dataclass_fields__},
        },
        "die_area_of_grid": {
            f"{value // 100}x{value % 100}": area[columns["grid"] == value][best[columns["grid"] == value].argmax()]
            for value in np.unique(columns["grid"])
        },
        "curves": curves,
        "nearly_as_good": {
            name: [
                value
                for value, found in zip(curve["value"], curve["best"], strict=True)
                if found >= (1 - NEAR) * best[winner]
            ]
            for name, curve in curves.items()
        },
    }


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
                f"  best {best['tokens_per_second']:,.0f} tokens/s: {best['die_rows']}x{best['die_cols']} dies of "
                f"{best['die_width'] / MM:.1f} x {best['die_height'] / MM:.1f} mm, {best['dram_stacks']:.0f} stacks, "
                f"{best['d2d_bandwidth'] / TERA:.2f} TB/s, {best['core_rows']:.0f}x{best['core_cols']:.0f} cores of "
                f"{best['sram_bytes_per_core'] / MIB:g} MiB at {best['clock'] / GIGA:g} GHz, groups of "
                f"{best['tensor_parallel']:.0f}"
            )
            for name, curve in found["curves"].items():
                label, unit = UNITS[name]
                cells = []
                for value, rate_there in zip(curve["value"], curve["best"], strict=True):
                    word = f"{value // 100}x{value % 100}" if name == "grid" else f"{value / unit:.3g}"
                    cells.append(f"{word} {rate_there / best['tokens_per_second']:.3f}")
                print(f"  {label if name != 'grid' else 'dies'}: " + ", ".join(cells))


def draw(record: dict[str, Any], plt: Any) -> Any:
    """One panel for each knob, one colour for each budget and model."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    for axis, (name, (label, unit)) in zip(axes.ravel(), UNITS.items(), strict=True):
        number = 0
        for budget, by_model in record["budgets"].items():
            for model, found in by_model.items():
                curve, best = found["curves"][name], found["best"]["tokens_per_second"]
                if name == "grid":
                    values = np.array(list(found["die_area_of_grid"].values())) / unit
                else:
                    values = np.array(curve["value"], float) / unit
                order = np.argsort(values)
                colour = harness.COLOURS[number]
                rates = np.array(curve["best"], float) / best
                fixed = np.array(curve["all_else_fixed"], float) / best
                if name == "grid":
                    axis.plot(values, np.where(rates > 0, rates, np.nan), "o", ms=4, color=colour, alpha=0.7)
                    at = int(rates.argmax())
                    dies = f"{found['best']['die_rows']}x{found['best']['die_cols']}"
                    axis.annotate(
                        dies,
                        (values[at], 1.0),
                        (0, 6 + 9 * number),
                        textcoords="offset points",
                        color=colour,
                        ha="center",
                        fontsize=8,
                    )
                else:
                    axis.plot(
                        values[order],
                        np.where(rates > 0, rates, np.nan)[order],
                        "o-",
                        ms=3,
                        color=colour,
                        label=f"{model}, {budget}",
                    )
                    axis.plot(values[order], np.where(fixed > 0, fixed, np.nan)[order], "--", lw=1, color=colour)
                axis.plot(values[int(rates.argmax())], 1.0, "*", ms=13, color=colour, mec="white", mew=0.6, zorder=5)
                number += 1
        axis.set_xlabel(label)
        axis.set_ylim(0.4, 1.08)
        if name in ("d2d", "sram", "tensor"):
            axis.set_xscale("log", base=2)
            ticks = {
                "d2d": (0.1, 0.2, 0.4, 0.8, 1.6),
                "sram": (0.25, 0.5, 1, 2, 3),
                "tensor": (1, 2, 4, 8, 16, 32, 64),
            }[name]
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("tokens/s over the best")
    axes[0, 0].plot([], [], "--", color="0.3", lw=1, label="all else as in the best")
    axes[0, 0].plot([], [], "*", color="0.3", ms=11, ls="", label="optimum")
    axes[0, 0].legend(loc="lower right", fontsize=8)
    figure.suptitle(
        "How to divide 215 x 215 mm of wafer: best throughput at each value of one knob, all else chosen anew"
    )
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = harness.arguments(__doc__ or "")
    parser.add_argument("--model", action="append", choices=sorted(models.NAMES), help="may be repeated")
    parser.add_argument("--budget", action="append", choices=sorted(budgets.NAMES), help="may be repeated")
    return harness.run(parser, arguments, answer, show, draw)


if __name__ == "__main__":
    sys.exit(main())
