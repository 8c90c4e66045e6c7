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
# # What a gradient means here, and where it means nothing
#
# The model differentiates the time of a training step with respect to every number of a wafer. This notebook takes the
# slopes seriously: it checks them against differences, follows them along paths, shows the kinks between regimes and
# what the smooth form makes of them, and ends with the places where a slope is exact and yet misleading. The wafer is
# configuration 3 of the WATOS paper, the model Llama 3 70B.

# %%
from functools import partial
from pathlib import Path
from time import perf_counter

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import platformdirs

import watos_jax as wj
from watos_jax.units import MIB, MM, MM2, TERA
from watos_jax.xla import compiler_options

began = perf_counter()
if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(Path(platformdirs.user_cache_dir("watos_jax")) / "notebooks"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_enable_x64", True)  # differences need the digits
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "font.size": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
colours = plt.get_cmap("tab10").colors

# %% [markdown]
# ## Elasticities
#
# Quantities of a wafer span twenty orders of magnitude, so slopes are taken between logarithms: an elasticity is the
# per cent by which the step gets longer when a quantity grows by one per cent. Eight quantities are enough here. The
# layout (which links a strategy loads) is made of whole numbers and stays outside.

# %%
wafer, model = wj.presets.wafers.WATOS_CONFIG_3, wj.presets.models.LLAMA3_70B
strategy = wj.Strategy(tensor_cols=4, pipeline_parallel=14, global_batch_size=512, recompute=4)
layout = wj.layout(wafer, strategy, max_stages=32)

QUANTITIES = {
    "clock": lambda w: w.die.core.clock,
    "DRAM bandwidth": lambda w: w.die.memory.stack_bandwidth,
    "link bandwidth": lambda w: w.d2d.bandwidth,
    "link latency": lambda w: w.d2d.latency,
    "MACs": lambda w: w.die.core.num_macs,
    "SRAM": lambda w: w.die.core.sram_bytes,
    "stacks": lambda w: w.die.memory.num_stacks,
    "rows of dies": lambda w: w.die_rows,
}
CLOCK, DRAM, LINK, LATENCY, MACS, SRAM, STACKS, ROWS = range(8)
names = list(QUANTITIES)


def chosen(wafer):
    return [get(wafer) for get in QUANTITIES.values()]


here = np.array(chosen(wafer), float)


def log_time(logs, strategy, layout, relax):
    changed = eqx.tree_at(chosen, wafer, list(jnp.exp(logs)))
    result = wj.estimate(changed, model, strategy, layout=layout, relax=relax)
    return jnp.log(result.step_time), result.margins


@partial(jax.jit, compiler_options=compiler_options())  # they compile in half the time
def many(logs, strategies, layouts, relax):
    """Value, margins and slopes (in the quantities and in the strategy) of a stack of points."""
    slopes = jax.value_and_grad(log_time, argnums=(0, 1), has_aux=True)
    return jax.vmap(slopes, in_axes=(0, 0, 0, None))(logs, strategies, layouts, relax)


POINTS = 256  # one shape, one compilation for each form


def evaluate(points, strategies=strategy, layouts=layout, relax=wj.HARD):
    """The same for any number of points up to 256; a single strategy serves all of them."""
    count = len(points)

    def stacked(leaf):
        leaf = np.asarray(leaf, float)
        return np.repeat(leaf[None], POINTS, axis=0) if single else leaf[np.minimum(np.arange(POINTS), count - 1)]

    single = strategies is strategy
    rows = np.minimum(np.arange(POINTS), count - 1)
    (value, margins), (slopes, degrees) = many(
        np.log(points)[rows], jax.tree.map(stacked, strategies), jax.tree.map(stacked, layouts), relax
    )
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], (value, slopes, margins, degrees))


def stack(records):
    """Records of one kind, along a first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *records)


def along(quantity, values):
    """Points that differ in one quantity."""
    points = np.repeat(here[None], len(values), axis=0)
    points[:, quantity] = values
    return points


(value,), (elasticity,), _, _ = evaluate(here[None])
print(f"{np.exp(value):.2f} s per step")
for name, slope in zip(names, elasticity, strict=True):
    print(f"{name:15} {slope:+.5f}")

# %% [markdown]
# Believe no gradient that was not compared with a difference. The error of a central difference falls with the square
# of its step, down to the point where rounding takes over; in single precision that happens so early that three to
# five digits are the best it can do. The gradient has no step: in single precision it still has six digits.

# %%
steps = np.geomspace(1e-9, 0.3, 40)
double, single = {}, {}
tested = (CLOCK, DRAM, LINK)
for errors, is_double in ((double, True), (single, False)):
    with jax.enable_x64(is_double):
        for quantity in tested:
            ends = [evaluate(along(quantity, here[quantity] * np.exp(sign * steps)))[0] for sign in (-1, 1)]
            wide = np.log(1.0 + np.finfo(np.float64 if is_double else np.float32).eps) < 2 * steps
            errors[quantity] = np.where(wide, abs((ends[1] - ends[0]) / (2 * steps) / elasticity[quantity] - 1), np.nan)
with jax.enable_x64(False):
    error = abs(evaluate(here[None])[1][0, tested] / elasticity[list(tested)] - 1).max()
print(f"largest relative error of the gradient in 32 bits: {error:.0e}")

figure, axis = plt.subplots(figsize=(7, 3.4))
for number, quantity in enumerate(tested):
    axis.plot(steps, np.maximum(double[quantity], 1e-13), color=colours[number], label=names[quantity])
    axis.plot(steps, np.maximum(single[quantity], 1e-13), ":", color=colours[number])
axis.plot([], [], color="0.3", label="in 64 bits")
axis.plot([], [], ":", color="0.3", label="in 32 bits")
axis.set(xscale="log", yscale="log", xlabel="relative step of the central difference", ylim=(1e-12, 1e3))
axis.set(ylabel="relative error", title="A central difference against the gradient")
_ = axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

# %% [markdown]
# ## They add up to one
#
# If every rate of the machine doubles and every latency halves, the step takes half as long. So (Euler's theorem for
# homogeneous functions) the elasticities of clock, DRAM bandwidth, link bandwidth and, with the other sign, latency
# are shares: they sum to one at every point. That makes a picture of *who owns the step*, along any path.

# %%
sweeps = {DRAM: np.geomspace(0.02, 4, 241) * TERA, LINK: np.geomspace(0.02, 4, 241) * TERA}
labels = {DRAM: "bandwidth of one DRAM stack, TB/s", LINK: "bandwidth of one die edge, TB/s"}
owners = {CLOCK: "cores (clock)", DRAM: "DRAM", LINK: "links"}

figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
for panel, (quantity, values) in zip(panels, sweeps.items(), strict=True):
    times, slopes, _, _ = evaluate(along(quantity, values))
    shares = [-slopes[:, owner] for owner in owners]
    np.testing.assert_allclose(sum(shares) + slopes[:, LATENCY], 1.0, atol=1e-9)
    panel.stackplot(values / TERA, shares, colors=colours, labels=owners.values(), alpha=0.85)
    panel.axvline(here[quantity] / TERA, color="black", lw=1, ls="--")
    panel.set(xscale="log", xlabel=labels[quantity], ylim=(0, 1), xlim=(0.02, 4))
    panel.set_xticks([0.02, 0.1, 0.5, 1, 4], ["0.02", "0.1", "0.5", "1", "4"])
    panel.minorticks_off()
    logs = np.log(values)
    area = np.sum((slopes[1:, quantity] + slopes[:-1, quantity]) / 2 * np.diff(logs))
    print(f"{names[quantity]}: the slopes of the path add up to a factor of {np.exp(area):.4f}", end=", ")
    print(f"the step times differ by {np.exp(times[-1] - times[0]):.4f}")
panels[0].set(ylabel="share of the step time")
panels[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)
_ = figure.suptitle("Who owns the step? Dashed: the wafer as published")

# %% [markdown]
# On the right everything is smooth: time on the links is their load over their bandwidth, whatever the bandwidth. On
# the left there are stairs, because an operator takes the *longer* of its time in the cores and its time at the DRAM.
#
# ## Kinks
#
# Each stair is one operator that changes its mind. At its edge the hard model has two slopes, and `jax.grad` returns
# one of them. The smooth form, `wj.Smooth(sharpness)`, walks from one to the other: it is what descent climbs. It is
# never below the hard model, and lies above it by up to `1 + 1 / sharpness` for each maximum inside another, most where
# the two sides tie, as equal stages do. But that factor is nearly the same all along: it hardly moves the best design.

# %%
values = np.geomspace(0.07, 0.7, 256) * TERA
times, slopes, _, _ = evaluate(along(DRAM, values))
figure, (top, low) = plt.subplots(2, 1, figsize=(7, 4.8), sharex=True, height_ratios=(3, 2))
top.plot(values / TERA, -slopes[:, DRAM], color="black", lw=1.2, label="hard")
for number, sharpness in enumerate((5.0, 20.0, 200.0)):
    smooth, rounded, _, _ = evaluate(along(DRAM, values), relax=wj.Smooth(sharpness))
    top.plot(values / TERA, -rounded[:, DRAM], color=colours[number], lw=1.2, label=f"sharpness {sharpness:g}")
    above = 100 * np.expm1(smooth - times)
    assert (above > -1e-9).all()
    low.plot(values / TERA, np.maximum(above, 1e-6), color=colours[number], lw=1.2)
top.set(
    ylabel="share of DRAM\nin the step", ylim=(0, 1.02), title="Each stair is an operator that leaves the DRAM's hand"
)
top.legend()
low.set(yscale="log", xscale="log", xlabel=labels[DRAM], ylabel="smooth above hard, %", xlim=(0.07, 0.7))
low.set_xticks([0.07, 0.1, 0.2, 0.3, 0.5, 0.7], ["0.07", "0.1", "0.2", "0.3", "0.5", "0.7"])
low.minorticks_off()

# %% [markdown]
# ## Zero, and rightly so
#
# Some slopes above are zero. Two of them for a reason worth knowing:
#
# * **SRAM.** A product gains from more SRAM only while it waits for DRAM *and* reads operands more than once. On this
#   die nothing does. With a twentieth of the DRAM bandwidth and micro-batches of four sequences products do, until the
#   SRAM is large enough. A zero says "not here".
# * **Rows of dies.** They reach the time only through the layout, which was computed outside. A zero says "not asked".

# %%
long = wj.Strategy(
    tensor_cols=2, pipeline_parallel=14, data_parallel=2, micro_batch_size=4, global_batch_size=512, recompute=7
)
slow = along(SRAM, np.array([0.25, 0.5, 1.0, 2.0, 4.0]) * MIB)
slow[:, DRAM] = 0.05 * TERA
_, slopes, _, _ = evaluate(slow, stack([long] * 5), stack([wj.layout(wafer, long, max_stages=32)] * 5))
print("0.05 TB/s per stack, four sequences per micro-batch:")
for point, slope in zip(slow, slopes, strict=True):
    print(f"{point[SRAM] / MIB:5.2f} MiB per core: elasticity {slope[SRAM] + 0.0:+.4f}")

# %% [markdown]
# ## Zero, and misleading
#
# **Whole things.** Stacks stand side by side on one edge of the die: half a stack needs as much of it as a whole one.
# The hard margin is a flight of stairs with slope 0 on every step. The smooth one has a slope just beside whole
# numbers, where it lies above the stairs; at them the two are close. So descent feels the next step, and whole stacks
# are checked with the hard model afterwards.

# %%
stacks = np.linspace(0.6, 7.4, 256)
figure, axis = plt.subplots(figsize=(7, 3.2))
axis.axhspan(-2.5, 0, color="0.95", zorder=0)
for number, sharpness in enumerate((3.0, 10.0, 100.0)):
    _, _, margins, _ = evaluate(along(STACKS, stacks), relax=wj.Smooth(sharpness))
    axis.plot(stacks, margins["edge_vertical"], color=colours[number], lw=1, label=f"sharpness {sharpness:g}")
_, slopes, margins, _ = evaluate(along(STACKS, stacks))
axis.plot(stacks, margins["edge_vertical"], ".", ms=3, color="black", label="hard")
whole = np.arange(1.0, 8.0)
axis.plot(whole, evaluate(along(STACKS, whole))[2]["edge_vertical"], "o", ms=7, mfc="none", mec="black", label="whole")
axis.set(xlabel="DRAM stacks per die", ylabel="margin of the die's edge", xlim=(0.6, 7.4), ylim=(-2.0, 0.5))
axis.text(0.99, 0.72, "does not fit", transform=axis.transAxes, ha="right", color="0.4")
_ = axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

# %% [markdown]
# **Degrees of parallelism.** They are floating-point numbers so that one compilation serves all strategies, not so
# that their slopes mean something. With the layout held fixed, the slope in `pipeline_parallel` is zero: layers per
# stage are a `floor`, and hops belong to the layout. The true step time falls to a seventh along the same axis, in
# stairs as wide as whole layers make them (the LM head counts like one more layer on the last stage). Enumerate degrees
# (`wj.strategies`), never descend them.

# %%
degrees = list(range(4, 29))
strategies = [wj.Strategy(tensor_cols=2, pipeline_parallel=p, global_batch_size=512, recompute=4) for p in degrees]
layouts = [wj.layout(wafer, s, max_stages=32) for s in strategies]
times, _, _, slopes = evaluate(np.repeat(here[None], len(degrees), axis=0), stack(strategies), stack(layouts))
times, tangents = np.exp(times), np.exp(times) * slopes.pipeline_parallel

figure, axis = plt.subplots(figsize=(7, 3.2))
axis.plot(degrees, times, "o", color=colours[0], label="step time of each strategy with its own layout")
for p, time, tangent in zip(degrees, times, tangents, strict=True):
    ends = np.array([-0.8, 0.8])
    label = "what the slope in pipeline_parallel says" if p == degrees[0] else None
    axis.plot(p + ends, time + tangent * ends, color=colours[3], lw=1.5, label=label)
axis.set(xlabel="pipeline stages of two dies each", ylabel="seconds per step", ylim=(0, None))
_ = axis.legend()

# %% [markdown]
# ## What a slope does not say: the price
#
# More of everything is faster, so a list of elasticities is no shopping list. Quantities share something scarce: the
# area of the die, the length of its edge. What counts is the slope *per unit of what is spent*. Below, per mm² of each
# die for what fills its area, and per mm of edge for the memory interfaces and links that share it.

# %%
technology, die = wafer.technology, wafer.die
cores = float(die.num_cores)
edge = float(die.width)
area_of = {  # m2 of a die per unit of the quantity
    "MACs": (MACS, cores * float(technology.mac_area)),
    "SRAM": (SRAM, cores * float(technology.sram_area)),
}
print("faster by, per mm2 of every die:")
for name, (quantity, area) in area_of.items():
    print(f"  {name:5} {-100 * elasticity[quantity] / here[quantity] / area * MM2 + 0.0:.3f} %")

interface, density = float(technology.memory_phy_length), float(wafer.d2d.shoreline_density)
shared = along(STACKS, np.linspace(0.3, 0.97 * edge / interface, 256))
shared[:, LINK] = (edge - shared[:, STACKS] * interface) * density  # what memory leaves of the edge goes to links
times, slopes, _, _ = evaluate(shared)
tokens = 512 * float(model.sequence_length) / np.exp(times)
as_memory = -slopes[:, STACKS] / shared[:, STACKS] / interface
as_links = -slopes[:, LINK] / shared[:, LINK] * density
best = int(np.argmin(abs(np.log(as_memory / as_links))))

figure, (worth, rate) = plt.subplots(2, 1, figsize=(7, 4.8), sharex=True)
worth.plot(shared[:, STACKS], 100 * as_memory * MM, color=colours[1], label="spent on memory")
worth.plot(shared[:, STACKS], 100 * as_links * MM, color=colours[2], label="spent on links")
worth.set(yscale="log", ylabel="% faster per mm of edge", title="One edge of the die, shared by memory and links")
worth.legend()
rate.plot(shared[:, STACKS], tokens / 1e3, color=colours[0])
rate.set(xlabel="DRAM stacks (the rest of the edge carries links)", ylabel="thousand tokens/s", ylim=(0, None))
for axis in (worth, rate):
    axis.axvline(shared[best, STACKS], color="black", lw=1, ls="--")
print(f"best at {shared[best, STACKS]:.2f} stacks and {shared[best, LINK] / TERA:.2f} TB/s:", end=" ")
print(f"{tokens[best]:,.0f} tokens/s, no point of the path has more than {tokens.max():,.0f}")

# %% [markdown]
# Where the two curves cross, a mm of edge is worth the same to both: nothing is gained by moving any, and the
# throughput is largest. That common worth is the *price* of the edge, the Lagrange multiplier of its limit. A co-design
# makes all such worths equal at once, for every limit that binds; `notebooks/codesign` reads them off an answer, and
# `experiments/gradient_explore.py` asks three such questions with checks.
#
# In short: a slope in a continuous quantity of the hardware is exact, between kinks. It is local, it knows no price,
# and for anything whole it says nothing.

# %%
assert tokens[best] > 0.999 * tokens.max()
print(f"{perf_counter() - began:.0f} s in all")
