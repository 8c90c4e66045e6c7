"""Draw `docs/codesign.svg`, the picture of the README: a wafer as `watos codesign llama3-70b` designs it, to scale.

    python docs/draw_codesign.py

Every length, number and stage comes from the design that the search returns; nothing is placed by hand.
"""

from pathlib import Path
from typing import Any, Final

import watos_jax as wj
from watos_jax.fabrication import area_fractions, tile
from watos_jax.network.layout import placement_map
from watos_jax.units import GIGA, KIB, MM, TERA

MODEL, NAME = wj.presets.models.LLAMA3_70B, "Llama 3 70B"
BUDGET: Final = wj.presets.budgets.DEFAULT
SCALE: Final = 1.7
"""Pixels per mm."""
LEFT, TOP, WIDTH = 24.0, 60.0, 880.0
STAGES: Final = ("#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
USES: Final = {
    "compute": ("#4292c6", "compute: MACs with control"),
    "sram": ("#41ab5d", "SRAM"),
    "dram": ("#fd8d3c", "DRAM: stacks and PHYs"),
    "d2d": ("#9e5fb5", "die-to-die PHYs"),
    "other": ("#bdbdbd", "gaps and unused"),
}


def rectangle(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none") -> str:
    """A rectangle, in pixels."""
    size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {size} fill="{fill}" stroke="{stroke}" stroke-width="1"/>'


def text(x: float, y: float, words: str, *, size: int = 13, fill: str = "#222", more: str = "") -> str:
    """A line of text, its baseline at y."""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" {more}>{words}</text>'


def wafer_map(design: wj.Design) -> list[str]:
    """The window with its dies, coloured by pipeline stage, and their memory stacks, to scale."""
    wafer, die, memory = design.wafer, design.wafer.die, design.wafer.die.memory
    width, height = (float(side) / MM * SCALE for side in (die.width, die.height))
    across, down = (float(side) / MM * SCALE for side in tile(wafer))
    stages = placement_map(wafer, design.strategy)
    num_stages = int(design.strategy.pipeline_parallel)
    window = (float(wafer.window_width) / MM * SCALE, float(wafer.window_height) / MM * SCALE)
    drawn = [rectangle(LEFT, TOP, *window, "#f4f4f4", "#888")]
    for (row, col), held in _cells(stages):
        x, y = LEFT + col * across, TOP + row * down
        drawn += [rectangle(*stack, "#fd8d3c", "#fff") for stack in _stacks(memory, x, y, width, height, across, down)]
        top = y + (down - height if float(memory.vertical_sides) else 0.0)
        shade = "#fff" if held < 0 else STAGES[(held % num_stages) * (len(STAGES) - 1) // max(num_stages - 1, 1)]
        drawn.append(rectangle(x, top, width, height, shade, "#fff"))
        if held >= 0:
            dark = "#fff" if STAGES.index(shade) > 2 else "#222"
            centre = 'text-anchor="middle"'
            drawn.append(text(x + width / 2, top + height / 2 + 4, f"{held % num_stages}", fill=dark, more=centre))
    return drawn


def _cells(stages: Any) -> list[tuple[tuple[int, int], int]]:
    return [((row, col), int(held)) for row, line in enumerate(stages) for col, held in enumerate(line)]


def _stacks(
    memory: wj.Memory, x: float, y: float, width: float, height: float, across: float, down: float
) -> list[tuple[float, float, float, float]]:
    # stacks of one tile, on the edge above or on the edge at the right of the die
    length, depth = (float(side) / MM * SCALE for side in (memory.stack_length, memory.stack_depth))
    count = int(memory.num_stacks)
    if float(memory.vertical_sides) == 1:
        step = width / count
        return [(x + step * (number + 0.5) - length / 2, y, length, depth) for number in range(count)]
    if float(memory.horizontal_sides) == 1:
        step = height / count
        return [(x + width, y + step * (number + 0.5) - length / 2, depth, length) for number in range(count)]
    raise ValueError("memory on two opposite edges: this picture draws one")


def area_bars(design: wj.Design, x: float, y: float) -> list[str]:
    """The split of the window's area as bars."""
    drawn = [text(x, y, "Area of the window, 215 x 215 mm", more='font-weight="bold"')]
    for number, (use, fraction) in enumerate(area_fractions(design.wafer).items()):
        colour, label = USES[use]
        line = y + 24 + 26 * number
        drawn += [
            rectangle(x, line - 12, max(float(fraction) * 300, 1.0), 16, colour),
            text(x + float(fraction) * 300 + 8, line, f"{float(fraction):.1%} &#160;{label}"),
        ]
    return drawn


def facts(design: wj.Design, x: float, y: float) -> list[str]:
    """Wafer, strategy and result in words."""
    wafer, s, answer = design.wafer, design.strategy, design.estimate
    die, memory = wafer.die, wafer.die.memory
    numbers = {name: int(getattr(s, name)) for name in s.__dataclass_fields__}
    lines = (
        ("Wafer", True),
        (
            f"{int(wafer.die_rows)} x {int(wafer.die_cols)} dies of {die.width / MM:.1f} x {die.height / MM:.1f} mm",
            False,
        ),
        (
            f"{int(die.core_rows)} x {int(die.core_cols)} cores, {die.core.sram_bytes / KIB:.0f} KiB each, at "
            f"{die.core.clock / GIGA:.1f} GHz",
            False,
        ),
        (
            f"{int(memory.num_stacks)} HBM3e stacks, {memory.capacity / GIGA:.0f} GB, "
            f"{memory.bandwidth / TERA:.1f} TB/s per die",
            False,
        ),
        (f"{wafer.d2d.bandwidth / GIGA:.0f} GB/s per die edge and direction", False),
        ("Strategy", True),
        (
            f"tensor {numbers['tensor_rows']} x {numbers['tensor_cols']}, pipeline {numbers['pipeline_parallel']} (the "
            f"numbers on the dies), context {numbers['context_parallel']}, data {numbers['data_parallel']}",
            False,
        ),
        (f"micro-batch {numbers['micro_batch_size']} of {numbers['global_batch_size']} sequences", False),
        ("Estimate (roofline)", True),
        (
            f"{float(answer.tokens_per_second):,.0f} tokens/s, {float(answer.step_time):.1f} s per step, "
            f"{float(answer.power) / 1e3:.1f} kW",
            False,
        ),
    )
    drawn = []
    for words, bold in lines:
        y += 26 if bold else 19
        drawn.append(text(x, y, words, more='font-weight="bold"' if bold else ""))
    return drawn


def main() -> None:
    """Design the wafer and write the picture."""
    design = wj.codesign(MODEL, BUDGET)
    right = LEFT + float(design.wafer.window_width) / MM * SCALE + 28
    height = TOP + float(design.wafer.window_height) / MM * SCALE + 24
    parts = [
        rectangle(0, 0, WIDTH, height, "#fff"),
        text(LEFT, 36, f"A wafer and a strategy for {NAME}, as `watos codesign` finds them", size=17),
        *wafer_map(design),
        *area_bars(design, right, TOP + 12),
        *facts(design, right, TOP + 156),
    ]
    size = f'viewBox="0 0 {WIDTH:.0f} {height:.0f}" width="{WIDTH:.0f}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" role="img">'
    path = Path(__file__).with_name("codesign.svg")
    path.write_text("\n".join([head, *parts, "</svg>"]) + "\n")
    print(f"{path}: {design.wall_time:.0f} s, {design.evaluations:,} estimates")


if __name__ == "__main__":
    main()
