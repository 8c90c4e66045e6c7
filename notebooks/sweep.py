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
# # A million designs
#
# Which wafers train a model fast, and which do it with little power? A sweep evaluates a quarter of a million random
# wafers, each with the same four training strategies, and keeps what was asked for: the points that no other beats in
# both.

# %%
import os

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}")  # one per core

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import jax
import matplotlib.pyplot as plt
import numpy as np
import platformdirs
import pyarrow.parquet
from matplotlib.colors import LogNorm

import watos_jax as wj
from watos_jax import sweeps

if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(Path(platformdirs.user_cache_dir("watos_jax")) / "notebooks"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "font.size": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## The space
#
# Six quantities of the wafer vary: 31 million wafers, were every combination taken. `samples` draws 250,000 of them, a
# million designs with the strategies.

# %%
WAFERS = int(os.environ.get("WATOS_JAX_NOTEBOOK_WAFERS", "1_000_000"))

common = {"global_batch_size": 256, "recompute": 2}
chosen = [
    wj.Strategy(tensor_cols=2, pipeline_parallel=28, **common),
    wj.Strategy(tensor_cols=2, pipeline_parallel=14, data_parallel=2, **common),
    wj.Strategy(tensor_cols=4, pipeline_parallel=14, **common),
    wj.Strategy(tensor_cols=4, pipeline_parallel=7, data_parallel=2, **common),
]
space = sweeps.Space(
    wafers="watos-config-3-d2d-half",
    models="llama3-70b",
    axes={
        "die_rows": [7],
        "die_cols": [8],
        "die.core_rows": sweeps.Range(10, 20, step=1),
        "die.core_cols": sweeps.Range(10, 20, step=1),
        "die.core.clock": sweeps.Range(1.2e9, 2.2e9, num=41),
        "die.core.sram_bytes": sweeps.Range(0.25e6, 2.5e6, num=37),
        "die.memory.num_stacks": [1, 2, 3],
        "d2d.bandwidth": sweeps.Range(0.1e12, 1.5e12, num=57),
    },
    strategies=chosen,
    samples=WAFERS // len(chosen),
)
keep = sweeps.Keep(
    top=5,
    pareto=("tokens_per_second", "power"),
    rows="feasible",
    columns=("tokens_per_second", "power", "memory", "margin"),
)
plan = sweeps.build(space, keep)
print(f"{len(plan):,} designs in {plan.num_parts} parts")

# %% [markdown]
# ## The sweep
#
# It streams through every local device and writes Parquet parts; killed and started again it would go on where it was.

# %%
folder = TemporaryDirectory()
out = Path(folder.name) / "results"
began = perf_counter()
answers = sweeps.sweep(plan, out=out)
elapsed = perf_counter() - began
print(
    f"{answers.evaluated:,} designs, {answers.feasible:,} of them fit; {len(answers.pareto['index'])} are on the front"
)

# %% [markdown]
# The feasible rows, read back in one line; units are in the schema.

# %%
rows = pyarrow.parquet.read_table(out / "rows")
unit = {field.name: field.metadata[b"unit"].decode() for field in rows.schema if field.metadata}
print({name: unit[name] for name in ("die.core.clock", "d2d.bandwidth", "tokens_per_second", "power")})

# %% [markdown]
# ## Throughput against power

# %%
front = answers.pareto
order = np.argsort(front["power"])
figure, axes = plt.subplots(figsize=(8, 4.5))
cloud = axes.hexbin(
    rows["power"].to_numpy() / 1e3,
    rows["tokens_per_second"].to_numpy() / 1e3,
    norm=LogNorm(1, 200),
    gridsize=70,
    cmap="Greys",
    mincnt=1,
)
axes.step(front["power"][order] / 1e3, front["tokens_per_second"][order] / 1e3, where="post", color="tab:blue", lw=1)
points = axes.scatter(
    front["power"] / 1e3,
    front["tokens_per_second"] / 1e3,
    c=front["die.core.clock"] / 1e9,
    s=24,
    cmap="viridis",
    zorder=3,
)
figure.colorbar(points, label="clock of the front, GHz")
figure.colorbar(cloud, label="designs that fit")
axes.set(
    xlabel="mean power, kW", ylabel="thousand tokens per second", title=f"{answers.evaluated:,} designs for Llama 3 70B"
)
plt.show()

# %% [markdown]
# ## The fastest wafer, opened
#
# Every point has a number; its number is enough to have the design itself back, and its estimate with all its parts.

# %%
best = answers.point(answers.top["index"][0])
estimate = wj.estimate(best.wafer, best.model, best.strategy, layout=best.layout)
print(f"clock {float(best.wafer.die.core.clock) / 1e9:.2f} GHz, {float(best.wafer.die.num_cores):.0f} cores per die")
print(
    f"{float(estimate.tokens_per_second):,.0f} tokens/s at {float(estimate.power) / 1e3:.1f} kW; "
    f"nearest limit: {estimate.binding}"
)
for cause, seconds in sorted(estimate.breakdown.items(), key=lambda item: -float(item[1]))[:5]:
    print(f"{cause:20s} {float(seconds) / float(estimate.step_time):6.1%}")

# %% [markdown]
# ## In words
#
# The front is what the sweep kept exactly: for every other design there is one that is at least as fast with no more
# power. It bends because more clock needs more voltage, and so costs power faster than it buys throughput; below 1.2
# GHz the voltage is at its minimum and power simply follows throughput, so the axis starts there. The sample is random:
# the true front lies a little outside.

# %%
folder.cleanup()
