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
# # Quickstart
#
# From the `config.json` of a model and a wafer to an estimate, its reasons, its gradient, a sweep over training
# strategies and a co-designed wafer. A first run compiles for a minute or two; the compilation cache set below makes
# later ones quick.

# %%
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import jax
import matplotlib.pyplot as plt
import numpy as np
import platformdirs

import watos_jax as wj
from watos_jax.fabrication import area_fractions
from watos_jax.units import GIGA, KILO, MIB, MM, TERA

began = perf_counter()
if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(Path(platformdirs.user_cache_dir("watos_jax")) / "notebooks"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "font.size": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
colours = plt.get_cmap("tab10").colors

# %% [markdown]
# ## A model and a wafer
#
# A Hugging Face configuration says everything but the sequence length that the model is *trained* at.

# %%
config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
model = wj.formats.huggingface.from_config(config, sequence_length=8192)
print("the same as the preset:", model == wj.presets.models.LLAMA3_70B)

# %%
wafer = wj.presets.wafers.WATOS_CONFIG_3
die, link = wafer.die, wafer.d2d
print(f"{wafer.num_dies:.0f} dies of {die.width / MM:.1f} x {die.height / MM:.1f} mm, {die.num_cores:.0f} cores each")
print(f"compute of a die: {die.flop_rate / TERA:.0f} TFLOP/s")
print(f"DRAM of a die: {die.memory.capacity / GIGA:.0f} GB, {die.memory.bandwidth / TERA:.1f} TB/s sustained")
print(f"one edge of a die: {link.bandwidth / TERA:.1f} TB/s in each direction")

# %% [markdown]
# ## One strategy
#
# Each layer is split over a row of 4 dies, the layers over 14 pipeline stages: 56 dies. A design that does not fit is
# no error: a margin, 1 - use / allowance, is negative. As published, two memory interfaces and 1 TB/s of links overrun
# one edge of this die by 1.7 %.

# %%
strategy = wj.Strategy(tensor_cols=4, pipeline_parallel=14, global_batch_size=512)
estimate = wj.estimate(wafer, model, strategy)
print(f"{estimate.tokens_per_second:,.0f} tokens/s, {estimate.step_time:.1f} s per step")
print(f"model FLOP utilisation {estimate.model_flop_utilisation:.0%}, {estimate.power / KILO:.1f} kW")
print(f"feasible: {estimate.feasible}; the smallest margin is {estimate.binding}", end=", ")
print(f"{estimate.margins[estimate.binding]:.1%}")

# %% [markdown]
# Where the time goes. The parts add up to the step time. `bubble` is what the slowest stage does not work: the pipeline
# fills and drains, and the other stages' work in it is not the slowest stage's.

# %%
parts = {name: float(part) for name, part in estimate.breakdown.items() if part > 0}
parts = dict(sorted(parts.items(), key=lambda item: item[1]))
np.testing.assert_allclose(sum(parts.values()), estimate.step_time, rtol=1e-4)

figure, axis = plt.subplots(figsize=(7, 2.6))
bars = axis.barh([name.replace("_", " ") for name in parts], parts.values(), color=colours[0])
axis.bar_label(bars, [f" {part:.2f} s, {part / estimate.step_time:.1%}" for part in parts.values()])
axis.set(xlabel="seconds per step", xlim=(0, 1.25 * max(parts.values())), title=f"{estimate.step_time:.1f} s per step")
axis.tick_params(left=False)
# %% [markdown]
# Memory of every stage at its peak. Early stages keep the activations of more micro-batches (1F1B); the first also
# holds the embedding, the last the LM head and the logits. 80 layers on 14 stages: stages 1 to 10 hold six, the others
# five.

# %%
stages = np.arange(int(strategy.pipeline_parallel))
capacity = float(die.memory.capacity) / GIGA
bottom = np.zeros(len(stages))
figure, axis = plt.subplots(figsize=(7, 3))
for number, name in enumerate(("weights", "gradients", "optimizer", "activations", "working")):
    size = np.asarray(getattr(estimate.memory_parts, name))[stages] / GIGA
    axis.bar(stages, size, bottom=bottom, color=colours[number], label=name)
    bottom += size
axis.axhline(capacity, color="black", lw=1)
axis.annotate("DRAM of a die", (stages[-1] + 0.4, capacity), (0, 3), textcoords="offset points", ha="right")
axis.set(xlabel="pipeline stage", ylabel="GB per die", xticks=stages, ylim=(0, 1.12 * capacity))
_ = axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)
# %% [markdown]
# ## What would help: the gradient with respect to every number of the wafer
#
# A record is a pytree, so `jax.grad` gives a record of the same shape. The layout (which links a strategy loads) is
# made of whole numbers; it is computed once, outside. Times value over step time, a slope becomes an elasticity: by how
# many per cent the step gets longer when the number grows by one per cent.

# %%
layout = wj.layout(wafer, strategy)
slopes = jax.grad(lambda w: wj.estimate(w, model, strategy, layout=layout).step_time)(wafer)
elasticities = jax.tree.map(lambda slope, value: float(slope * value / estimate.step_time), slopes, wafer)
named = {jax.tree_util.keystr(path)[1:]: value for path, value in jax.tree_util.tree_leaves_with_path(elasticities)}
shown = {name: value for name, value in sorted(named.items(), key=lambda item: -item[1]) if abs(value) > 1e-4}

figure, axis = plt.subplots(figsize=(7, 2.6))
colour = [colours[2] if value < 0 else colours[3] for value in shown.values()]
bars = axis.barh(list(shown), shown.values(), color=colour)
axis.bar_label(bars, [f" {value:+.3f} " for value in shown.values()])
axis.axvline(0, color="black", lw=0.8)
axis.set(xlabel="% of step time per % of the quantity", title="Elasticities of the step time", xlim=(-1.05, 0.05))
axis.tick_params(left=False)
print(f"{len(named) - len(shown)} of {len(named)} elasticities are below 0.0001 here, that of die.core.sram_bytes too")

# %% [markdown]
# Numbers that enter areas, limits or energies alone have no slope in time. SRAM has one only where a product waits for
# DRAM and reads its operands more than once; here none does, by an operator model that lets a product use the SRAM of
# the whole die. The same gradient of a margin answers the other half of the question: what a number costs.

# %% [markdown]
# ## Every strategy
#
# A sweep evaluates every strategy that tiles the mesh and divides the model, thousands at once; `rows="all"` keeps all
# of them, as columns. The notebook `sweep` does the same with a million designs.

# %%
options = wj.Options(micro_batch_sizes=(1, 2, 4), context_parallel=(1,), virtual_stages=(1,), least_use=0.9)
space = wj.sweeps.Space({"configuration 3": wafer}, {"llama": model}, strategies=options)
started = perf_counter()
found = wj.sweep(space, wj.sweeps.Keep(rows="all"))
rows = found.rows
print(f"{found.evaluated:,} strategies in {perf_counter() - started:.1f} s, compilation (or its cache) included")

# %%
rate, peak = rows["tokens_per_second"] / KILO, rows["memory"] / GIGA
fits = peak <= capacity
best = int(np.argmax(np.where(fits, rate, 0.0)))
chosen = found.point(rows["index"][best]).strategy
print(f"fastest of the {fits.sum():,} whose memory fits: {rate[best]:,.1f} thousand tokens/s")
default = wj.Strategy()
for name in chosen.__dataclass_fields__:
    if getattr(chosen, name) != getattr(default, name):
        print(f"  {name} = {getattr(chosen, name):g}")

# %%
tensor = rows["tensor_rows"] * rows["tensor_cols"]
figure, axis = plt.subplots(figsize=(7, 3.4))
for number, size in enumerate(np.unique(tensor)):
    here = tensor == size
    axis.scatter(peak[here], rate[here], s=7, color=colours[number], label=f"{size:.0f}")
axis.plot(peak[best], rate[best], "o", ms=11, mfc="none", mec="black")
axis.axvspan(capacity, 1.1 * peak.max(), color="0.93", zorder=0)
axis.text(0.98, 0.94, "more than the DRAM of a die", transform=axis.transAxes, ha="right")
axis.set(xscale="log", xlabel="largest stage (GB per die)", ylabel="thousand tokens/s", xlim=(20, 1.1 * peak.max()))
axis.set_xticks([20, 50, 100, 200, 500, 1000], ["20", "50", "100", "200", "500", "1000"])
axis.legend(title="dies per\ntensor group", loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=2)
_ = axis.set_title(f"{len(rate):,} strategies; circled: the fastest whose memory fits")
# %% [markdown]
# ## The wafer and the strategy together
#
# Co-design chooses the die grid, the die with its cores, SRAM, memory stacks, links and clock, and the strategy. The
# whole budget takes longer; here it is cut down to a few die grids and plain strategies. On the command line:
# `watos codesign llama3-70b`.

# %%
budget = replace(wj.presets.budgets.DEFAULT, die_rows=(5, 6), die_cols=(7, 8), memory_sides=((0, 1),))
plain = replace(options, micro_batch_sizes=(1,), recompute=("none", "mlp", "full"), sequence_parallel=(1,))
design = wj.codesign(model, budget, options=plain)
answer, knobs, found = design.estimate, design.knobs, design.strategy
print(f"{answer.tokens_per_second:,.0f} tokens/s, {design.evaluations:,} evaluations in {design.wall_time:.0f} s")
print(f"{design.wafer.die_rows:.0f} x {design.wafer.die_cols:.0f} dies", end=" ")
print(f"of {knobs.die_width / MM:g} x {knobs.die_height / MM:g} mm, {knobs.dram_stacks:g} memory stacks each")
print(f"{knobs.core_rows:g} x {knobs.core_cols:g} cores of {knobs.sram_bytes_per_core / MIB:g} MiB", end=" ")
print(f"at {knobs.clock / GIGA:g} GHz, {knobs.d2d_bandwidth / TERA:.2f} TB/s per edge")
print(f"tensor {found.tensor_parallel:g}, pipeline {found.pipeline_parallel:g}, data {found.data_parallel:g}")

# %%
figure, (area, limits) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(2, 3))
shares = {name: float(share) for name, share in area_fractions(design.wafer).items()}
bars = area.bar(list(shares), [100 * share for share in shares.values()], color=colours[0])
area.bar_label(bars, [f"{share:.1%}" for share in shares.values()])
area.margins(y=0.12)
area.set(ylabel="% of the window", title="What the wafer is spent on")

margins = {name.replace("_", " "): float(margin) for name, margin in answer.margins.items()}
tightest = sorted(margins, key=margins.get, reverse=True)[-8:]
used = [1.0 - margins[name] for name in tightest]
bars = limits.barh(tightest, used, color=colours[0])
limits.bar_label(bars, [f"{use:.1%}" for use in used], padding=-36, color="white")
limits.axvline(1.0, color="black", lw=1)
limits.set(xlabel="use over allowance", title="What limits it", xlim=(0, 1.05))
limits.tick_params(left=False)

# %%
assert answer.feasible
print(f"{perf_counter() - began:.0f} s in all")
