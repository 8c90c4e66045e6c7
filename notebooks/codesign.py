# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A wafer and a strategy for one model
#
# What should a wafer be, for the model that it is to train? Cores, SRAM, memory and links share one die; how large the
# die may be depends on how many share the wafer; and what each is worth depends on the training strategy, which depends
# on the wafer. Co-design chooses all of it together. This notebook asks for the answer and then cross-examines it:
# where the area goes, what one more unit of anything is worth, what whole numbers cost, and what a change would do.

# %%
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import platformdirs

import watos_jax as wj
from watos_jax.fabrication import area_fractions, tile
from watos_jax.network.layout import placement_map
from watos_jax.units import GIGA, KIB, KILO, MM, TERA
from watos_jax.xla import compiler_options

began = perf_counter()
if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(Path(platformdirs.user_cache_dir("watos_jax")) / "notebooks"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "font.size": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
colours = plt.get_cmap("tab10").colors

# %% [markdown]
# ## The question
#
# A budget is a wafer to fill (215 x 215 mm, 23 kW, logic, links and memory as silicon has shown them) and a lattice:
# the values that each knob may take. To be quick, four die grids and plain strategies are searched here;
# `watos codesign llama3-70b` searches them all.

# %%
model, budget = wj.presets.models.LLAMA3_70B, wj.presets.budgets.DEFAULT
budget = replace(budget, die_rows=(5, 6), die_cols=(7, 8), memory_sides=((0, 1),))
options = wj.Options(
    context_parallel=(1,),
    virtual_stages=(1,),
    micro_batch_sizes=(1,),
    recompute=("none", "mlp", "full"),
    sequence_parallel=(1,),
    least_use=0.9,
)
design = wj.codesign(model, budget, options=options, time_limit=600)
wafer, strategy, knobs, answer = design.wafer, design.strategy, design.knobs, design.estimate
proof = design.certificate
print(
    f"{answer.tokens_per_second:,.0f} tokens/s, found in {design.wall_time:.0f} s and {design.evaluations:,} estimates"
)
print(f"of {design.candidates:,} strategies on die grids, times {design.lattice_points:.0e} dies each")

# %% [markdown]
# ## The answer, to scale
#
# The memory stacks lie above each die. Colours and numbers are pipeline stages: neighbours in the pipeline are
# neighbours on the wafer.

# %%
LABELS = {
    "compute": "compute",
    "sram": "SRAM",
    "dram": "DRAM stacks\nand interfaces",
    "d2d": "link interfaces",
    "other": "gaps, unused",
}
die, memory = wafer.die, wafer.die.memory
across, down = (float(side) / MM for side in tile(wafer))
width, height = float(die.width) / MM, float(die.height) / MM
length, depth = float(memory.stack_length) / MM, float(memory.stack_depth) / MM
window = float(wafer.window_width) / MM
stages = np.asarray(placement_map(wafer, strategy))
shades = plt.get_cmap("Blues")(np.linspace(0.15, 0.95, int(strategy.pipeline_parallel)))

figure, (plan, area) = plt.subplots(1, 2, figsize=(9, 4.4), width_ratios=(3, 2))
plan.add_patch(plt.Rectangle((0, 0), window, window, fc="0.96", ec="0.6"))
for (row, col), held in np.ndenumerate(stages):
    x, y = col * across, row * down
    for number in range(int(memory.num_stacks)):
        left = x + width / memory.num_stacks * (number + 0.5) - length / 2
        plan.add_patch(plt.Rectangle((left, y), length, depth, fc=colours[1], ec="white"))
    stage = int(held) % len(shades)
    plan.add_patch(plt.Rectangle((x, y + depth), width, height, fc="white" if held < 0 else shades[stage], ec="white"))
    if held >= 0:
        tone = "white" if stage > len(shades) / 2 else "black"
        plan.text(x + width / 2, y + depth + height / 2, stage, ha="center", va="center", color=tone)
plan.set(xlim=(-1, window + 1), ylim=(window + 1, -1), aspect="equal", xlabel="mm", title="Dies by pipeline stage")
plan.spines[:].set_visible(False)

shares = {name: 100 * float(share) for name, share in area_fractions(wafer).items()}
bars = area.barh([LABELS[name] for name in shares], shares.values(), color=[colours[i] for i in (0, 2, 1, 4, 7)])
area.bar_label(bars, [f" {share:.1f} %" for share in shares.values()])
area.set(xlabel="% of the window", title="What the wafer is spent on", xlim=(0, 1.25 * max(shares.values())))
area.invert_yaxis()
area.tick_params(left=False)

print(f"{wafer.die_rows:.0f} x {wafer.die_cols:.0f} dies of {width:g} x {height:g} mm,", end=" ")
print(f"{die.core_rows:g} x {die.core_cols:g} cores of {knobs.sram_bytes_per_core / KIB:g} KiB", end=" ")
print(f"at {knobs.clock / GIGA:g} GHz")
print(f"{knobs.dram_stacks:g} memory stacks per die,", end=" ")
print(f"{knobs.d2d_bandwidth / TERA:.2f} TB/s in each direction of an edge")
print(f"tensor {strategy.tensor_rows:g} x {strategy.tensor_cols:g}, pipeline {strategy.pipeline_parallel:g}", end=", ")
print(f"data {strategy.data_parallel:g}, recompute code {strategy.recompute:g}")
print(f"at an end of the lattice: {design.at_bound}")

# %% [markdown]
# ## What does each knob buy, and what does it spend?
#
# One table of elasticities says most of it. The first row: the per cent of throughput that one per cent of a knob buys.
# The others: the per cent by which it fills a limit further (red), or makes room (green), for the limits that are
# nearly full. A free lunch would be a column with green on top and no red below; the search has eaten those, up to the
# ends of the lattice (the clock).

# %%
NAMES = tuple(wj.Knobs.__dataclass_fields__)
TITLES = ("core\nrows", "core\ncols", "SRAM", "stacks", "link\nbandwidth", "die\nwidth", "die\nheight", "clock")
layout = wj.layout(wafer, strategy)


def rate_and_use(shared, log_knobs):
    """log(tokens/s), and log(use / allowance) of every limit."""
    strategy, layout = shared
    built = budget.build(wj.Knobs(*jnp.exp(log_knobs)), wafer.die_rows, wafer.die_cols, design.sides)
    result = wj.estimate(built, model, strategy, layout=layout)
    use = {name: jnp.log(jnp.maximum(1.0 - margin, 1e-6)) for name, margin in result.margins.items()}
    return jnp.log(result.tokens_per_second), use


point = np.log([float(getattr(knobs, name)) for name in NAMES])
slopes_of = jax.jit(jax.jacfwd(rate_and_use, argnums=1), compiler_options=compiler_options())
gain, spend = jax.tree.map(np.asarray, slopes_of((strategy, layout), point))
margins = {name: float(margin) for name, margin in answer.margins.items()}
tight = [name for name in sorted(margins, key=margins.get) if margins[name] < 0.06]

table = np.array([gain, *(spend[name] for name in tight)])
rows = ["tokens/s", *(f"{name.replace('_', ' ')} ({1 - margins[name]:.1%} full)" for name in tight)]
figure, axis = plt.subplots(figsize=(8, 0.42 * len(rows) + 1.1))
signed = np.vstack([table[:1], -table[1:]])  # green helps, red fills
axis.imshow(signed, cmap="PiYG", vmin=-1.3, vmax=1.3, aspect="auto")
for (row, col), value in np.ndenumerate(table):
    if abs(value) > 0.005:
        axis.text(col, row, f"{value:+.2f}", ha="center", va="center", color="black")
axis.set_xticks(range(len(NAMES)), TITLES)
axis.set_yticks(range(len(rows)), rows)
axis.axhline(0.5, color="black", lw=1)
axis.tick_params(length=0, labeltop=True, labelbottom=False)
axis.spines[:].set_visible(False)

# %% [markdown]
# ## Prices
#
# At a best design nothing can be shifted to advantage: the first row is a sum of the others, of the limits that bind,
# each with a weight that is not negative (Karush, Kuhn and Tucker). The weights are shadow prices: the per cent by
# which steps get shorter if an allowance grows by one per cent, once all knobs have made use of it. A knob at an end of
# its lattice has a price there. Since the rounded design is off the optimum by a little, the prices are those of the
# relaxed optimum of the same grid, stacks and strategy, which is solved for until no slope is left unexplained. By the
# same token (the envelope theorem) every constant of the budget has its worth: the smaller a MAC, the better.

# %%
prices = wj.shadow_prices(design, model, budget)
print(f"relaxed optimum {prices.value:.3f} s per step; slope that no price explains {prices.residual:.0e}")
limits = {name.replace("_", " "): -price for name, price in (prices.limits | prices.bounds).items()}
strongest = sorted(prices.constants.items(), key=lambda item: -abs(item[1]))[:8]
figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.0), layout="constrained")
reach = 1.5 * max(abs(value) for value in [*limits.values(), *dict(strongest).values()])
for panel, bars, title in (
    (panels[0], limits, "one per cent more of a limit"),
    (panels[1], dict(strongest), "one per cent more of a constant"),
):
    bars = dict(sorted(bars.items(), key=lambda item: -abs(item[1]))[::-1])
    drawn = panel.barh(list(bars), bars.values(), color=[colours[2] if v < 0 else colours[3] for v in bars.values()])
    panel.bar_label(drawn, [f" {value:+.2f} " for value in bars.values()])
    panel.axvline(0, color="black", lw=0.8)
    panel.set(xlabel="% of the step time", title=title, xlim=(-reach, reach))
    panel.tick_params(left=False)

# %% [markdown]
# ## Whole numbers
#
# Descent moves through a continuum; a wafer has whole cores, whole stacks and whole link modules. The answer was
# rounded by a search around the relaxed designs, and every point was checked by the hard model. The gap compares it
# with the relaxed optimum above, of the same grid, stacks and strategy. Below, each knob is moved along its lattice
# with all others held: wherever that would be faster, the design no longer fits.

# %%
print(f"relaxed {design.relaxed_value:.3f} s, whole {answer.step_time:.3f} s: gap {design.rounding_gap:.2%}")
STEPS = np.arange(-6, 7)
low, high, step = (
    np.array([float(getattr(side, n)) for n in NAMES]) for side in (budget.low, budget.high, budget.step)
)
grid = np.tile(np.exp(point), (len(NAMES), len(STEPS), 1))
for knob in range(len(NAMES)):
    grid[knob, :, knob] += STEPS * step[knob]
line = np.array([grid[knob, :, knob] for knob in range(len(NAMES))])  # values of the knob that moves
inside = (line > low[:, None] * (1 - 1e-6)) & (line < high[:, None] * (1 + 1e-6))
around = np.where(grid > 0, grid, np.exp(point)).reshape(-1, len(NAMES))
rate, use = wj.batch.map_chunks(rate_and_use, (strategy, layout), np.log(around), chunk=128, chunks_per_call=1)
rate = np.exp(rate).reshape(inside.shape) / KILO
fits = np.max(list(use.values()), axis=0).reshape(inside.shape) <= 1e-5

UNITS = (1, 1, KIB, 1, TERA, MM, MM, GIGA)
AXES = (
    "core rows",
    "core columns",
    "SRAM per core, KiB",
    "memory stacks",
    "link, TB/s",
    "die width, mm",
    "die height, mm",
    "clock, GHz",
)
figure, panels = plt.subplots(2, 4, figsize=(9.5, 4.2), sharey=True)
for knob, (panel, unit, title) in enumerate(zip(panels.flat, UNITS, AXES, strict=True)):
    values, shown = line[knob] / unit, inside[knob]
    panel.plot(values[shown], rate[knob][shown], color="0.8", lw=1, zorder=1)
    for is_fit, face in ((True, colours[0]), (False, "white")):
        some = shown & (fits[knob] == is_fit)
        panel.scatter(values[some], rate[knob][some], s=16, fc=face, ec=colours[0], zorder=2)
    panel.plot(np.exp(point[knob]) / unit, rate[knob][6], "o", ms=10, mfc="none", mec="black")
    panel.set(xlabel=title)
for panel in panels[:, 0]:
    panel.set_ylabel("thousand tokens/s")
_ = figure.suptitle("One knob at a time. Filled: fits; open: does not; circled: the answer")
better = (rate > rate[0, 6] * (1 + proof.gap + 1e-5)) & fits & inside
print(f"{fits[inside].sum()} of {inside.sum()} designs fit, {better.sum()} are faster by more than the proven gap")

# %% [markdown]
# ## The strategy
#
# The same wafer with every strategy of the space. The wafer was made for the one that is circled. A few would be
# faster, if their memory fitted; another wafer could hold them, and would give up something else for it.

# %%
others = wj.sweep(
    wj.sweeps.Space({"designed": wafer}, {"llama": model}, strategies=options), wj.sweeps.Keep(rows="all")
)
rate, held = others.rows["tokens_per_second"] / KILO, others.rows["memory"] / GIGA
tensor, capacity = others.rows["tensor_rows"] * others.rows["tensor_cols"], float(memory.capacity) / GIGA
figure, axis = plt.subplots(figsize=(7, 3.4))
for number, size in enumerate(np.unique(tensor)):
    axis.scatter(held[tensor == size], rate[tensor == size], s=9, color=colours[number], label=f"{size:.0f}")
axis.axvspan(capacity, 1.1 * held.max(), color="0.93", zorder=0)
axis.text(0.98, 0.94, "more than the DRAM of a die", transform=axis.transAxes, ha="right")
peak = float(answer.memory.max()) / GIGA
axis.plot(peak, answer.tokens_per_second / KILO, "o", ms=11, mfc="none", mec="black")
axis.set(
    xscale="log",
    xlabel="largest stage, GB per die",
    ylabel="thousand tokens/s",
    xlim=(0.9 * held.min(), 1.1 * held.max()),
)
ticks = [number for number in (20, 30, 50, 100, 200, 300, 500, 1000) if held.min() < number < held.max()]
axis.set_xticks(ticks, [str(number) for number in ticks])
axis.minorticks_off()
axis.set_ylim(top=1.04 * rate.max())
axis.legend(title="dies per\ntensor group", loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=2)
_ = axis.set_title(f"{len(rate):,} strategies on the designed wafer, {others.feasible} of which fit")

# %% [markdown]
# ## How far from the best
#
# That no neighbour is better does not prove that nothing is. The certificate does: every strategy is bounded from below
# over boxes of the lattice, and boxes are halved until none can hold a design that is better by more than the gap.

# %%
print(f"{proof.strategies:,} strategies x {proof.lattice_points:.1e} lattice points, {proof.boxes} boxes bounded")
print(f"{proof.strategies_visited:,} strategies were not ruled out by their first bound, the whole lattice in parts")
print(f"no design takes less than {proof.lower_bound:.3f} s per step; this one takes {proof.value:.3f} s")

# %% [markdown]
# It is an answer of the model all the same: of the roofline without calibration here, with limits as the budget states
# them, and of the strategies that were enumerated.

# %%
assert answer.feasible and not better.any() and proof.gap <= 0.001
np.testing.assert_allclose(others.top["tokens_per_second"][0], answer.tokens_per_second, rtol=proof.gap + 1e-4)
print(f"{perf_counter() - began:.0f} s in all")
