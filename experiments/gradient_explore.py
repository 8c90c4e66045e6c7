"""Three questions that a gradient answers about one wafer and one model, asked with public names only.

a. What is one more MiB of SRAM per core worth, and what does its area cost?
b. How should the edge of a die be shared between memory stacks and die-to-die links?
c. What is the least die area that reaches a given throughput?

The wafer is WATOS configuration 3 (56 dies), the model Llama 3 70B; (c) chooses from the budget `dense-215`. Every
answer has checks that can fail, and the exit status is 1 where one does. All numbers are those of the roofline, which
lets every product use the whole die's SRAM: it is the most favourable view of a small SRAM.

    python experiments/gradient_explore.py                    # tables
    python experiments/gradient_explore.py --json             # one JSON object
    python experiments/gradient_explore.py --smoke --out .    # a coarse run, with a figure
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import watos_jax as wj
from watos_jax.fabrication import fabrication_ratios
from watos_jax.strategy import RECOMPUTE_LEVELS
from watos_jax.units import GIGA, MIB, MM, MM2, TERA

WAFER = wj.presets.wafers.WATOS_CONFIG_3
MODEL = wj.presets.models.LLAMA3_70B
BUDGET = wj.presets.budgets.DENSE_215
GRID, SIDES, MAX_STAGES = (7, 8), (0, 1), 16
SHAPES = ((2, 14, 2, 1), (4, 14, 1, 1), (8, 7, 1, 1), (2, 14, 2, 4))
"""Tensor, pipeline and data parallelism and micro-batch size of the strategies; each occupies all 56 dies."""
SMALL, MIDDLE, LARGE, LONG = range(4)


class Point(NamedTuple):
    """What differs from `WAFER`, and the row of the strategy."""

    num_macs: Any = float(WAFER.die.core.num_macs)
    sram_bytes: Any = float(WAFER.die.core.sram_bytes)
    stacks: Any = float(WAFER.die.memory.num_stacks)
    stack_bandwidth: Any = float(WAFER.die.memory.stack_bandwidth)
    d2d: Any = float(WAFER.d2d.bandwidth)
    strategy: Any = MIDDLE


def stacked_strategies() -> tuple[wj.Strategy, wj.Layout]:
    """The strategies with their layouts, stacked along a first axis."""
    strategies = [
        wj.Strategy(
            tensor_cols=tensor,
            pipeline_parallel=pipeline,
            data_parallel=data,
            micro_batch_size=micro,
            global_batch_size=512,
            recompute=RECOMPUTE_LEVELS.index("mlp" if micro == 1 else "full"),
        )
        for tensor, pipeline, data, micro in SHAPES
    ]
    layouts = [wj.layout(WAFER, strategy, max_stages=MAX_STAGES) for strategy in strategies]
    return tuple(jax.tree.map(lambda *leaves: np.stack(leaves), *records) for records in (strategies, layouts))


def with_slopes(shared: Any, point: Point) -> tuple[Any, Any, Any]:
    """log(tokens/s) by the hard model, its slope in every number of a point, and the margins."""
    strategy, layout = jax.tree.map(lambda leaf: leaf[point.strategy], shared)

    def log_rate(numbers: Point) -> tuple[Any, Any]:
        core = replace(WAFER.die.core, num_macs=numbers.num_macs, sram_bytes=numbers.sram_bytes)
        memory = replace(WAFER.die.memory, num_stacks=numbers.stacks, stack_bandwidth=numbers.stack_bandwidth)
        die, d2d = replace(WAFER.die, core=core, memory=memory), replace(WAFER.d2d, bandwidth=numbers.d2d)
        result = wj.estimate(replace(WAFER, die=die, d2d=d2d), MODEL, strategy, layout=layout)
        return jnp.log(result.tokens_per_second), result.margins

    (rate, margins), slopes = jax.value_and_grad(log_rate, has_aux=True)(point._replace(strategy=0.0))
    return rate, slopes, margins


def evaluate(shared: Any, points: Point) -> tuple[np.ndarray, Point, dict[str, np.ndarray]]:
    """Evaluate points; their fields broadcast, and one chunk size means one compilation."""
    fields = Point(*(np.asarray(field, float) for field in points[:-1]), np.asarray(points.strategy, np.int32))
    rows = Point(*(array.ravel() for array in np.broadcast_arrays(*fields)))
    return wj.batch.map_chunks(with_slopes, shared, rows, chunk=128, chunks_per_call=1)


# ---- (a) the price of SRAM

DRAM_RATES = np.array([2.0, 0.2, 0.1]) * TERA
"""Peak DRAM bytes/s of one die."""


def price_of_sram(shared: Any, samples: int) -> dict[str, Any]:
    """Worth of one MiB more per core along 0.25 to 4 MiB, and what MACs in its place would be worth."""
    sram = np.geomspace(0.25, 4.0, samples) * MIB
    path = Point(sram_bytes=sram, stack_bandwidth=DRAM_RATES[:, None] / WAFER.die.memory.num_stacks, strategy=LONG)
    step = 1e-5 * sram
    shape = (len(DRAM_RATES), samples)
    value, slope, _ = evaluate(shared, path)
    below, above = (
        evaluate(shared, path._replace(sram_bytes=end))[0].reshape(shape) for end in (sram - step, sram + step)
    )
    value, gross = value.reshape(shape), slope.sram_bytes.reshape(shape) + 0.0
    cores, technology = float(WAFER.die.num_cores), WAFER.technology
    area_per_byte = cores * float(technology.sram_area)
    worth_of_area = slope.num_macs.reshape(shape) / (cores * float(technology.mac_area))

    # a kink between the two ends is no error of the gradient: there the sides differ
    left, right = (value - below) / step, (above - value) / step
    is_smooth = np.abs(left - right) < 1e-3 * gross.max()
    error = np.abs((above - below) / (2.0 * step) - gross)[is_smooth].max() / gross.max()
    least, most = (np.sum(gross[:, part] * np.diff(sram), axis=1) for part in (slice(1, None), slice(None, -1)))
    gained = value[:, -1] - value[:, 0]
    net = gross - area_per_byte * worth_of_area
    return {
        "sram_per_core_mib": sram / MIB,
        "dram_rate": DRAM_RATES,
        "log_rate_per_mib": gross * MIB,
        "finite_difference_per_mib": (above - below) / (2.0 * step) * MIB,
        "area_cost_per_mib": area_per_byte * worth_of_area * MIB,
        "die_area_per_mib_mm2": area_per_byte * MIB / MM2,
        "gained_over_the_path": gained,
        "pays_up_to_mib": [sram[row > 0].max(initial=0.0) / MIB for row in net],
        "checks": {
            "the gradient is the finite difference": error < 1e-6 and is_smooth.mean() > 0.9,
            "more SRAM is never slower": gross.min() >= 0.0,
            "the price only falls": np.diff(gross, axis=1).max() <= 1e-9 * gross.max(),
            "prices add up to the gain": (least <= gained + 1e-9).all() and (gained <= most + 1e-9).all(),
            "SRAM matters somewhere": gained.max() > 0.01,
        },
    }


# ---- (b) the edge of a die, shared by memory and links


def on_the_edge(stacks: np.ndarray, strategy: Any) -> Point:
    """Spend the whole edge: what the memory interfaces leave of it goes to die-to-die links."""
    left = float(WAFER.die.width) - stacks * float(WAFER.technology.memory_phy_length)
    return Point(stacks=stacks, d2d=left * float(WAFER.d2d.shoreline_density), strategy=strategy)


def worth_of_edge(slope: Point) -> tuple[np.ndarray, np.ndarray]:
    """Slope of log(tokens/s) per m of edge, as memory and as links."""
    as_memory = slope.stacks / float(WAFER.technology.memory_phy_length)
    return as_memory, slope.d2d * float(WAFER.d2d.shoreline_density)


def share_of_edge(shared: Any, samples: int) -> dict[str, Any]:
    """Best stacks and link bandwidth along the fixed edge, for small to large tensor groups."""
    rows = np.array([SMALL, MIDDLE, LARGE])
    most = float(WAFER.die.width) / float(WAFER.technology.memory_phy_length)
    stacks = np.linspace(0.4, most - 0.2, samples)
    shape = (len(rows), samples)
    value, slope, margins = evaluate(shared, on_the_edge(stacks, rows[:, None]))
    value, fits = value.reshape(shape), (margins["memory"] >= 0).reshape(shape)
    as_memory, as_links = (worth.reshape(shape) for worth in worth_of_edge(slope))

    low, high = np.full(len(rows), stacks[0]), np.full(len(rows), stacks[-1])
    for _ in range(40):  # bisect: edge moves to whatever it is worth more to
        best = 0.5 * (low + high)
        best_value, slope, best_margins = evaluate(shared, on_the_edge(best, rows))
        memory, links = worth_of_edge(slope)
        low, high = np.where(memory > links, best, low), np.where(memory > links, high, best)

    whole, module = np.arange(1.0, most), float(BUDGET.step.d2d_bandwidth)
    built = on_the_edge(whole, rows[:, None])
    built = built._replace(d2d=np.floor(built.d2d / module + 1e-9) * module)
    built_value, _, built_margins = evaluate(shared, built)
    can_be_built = np.all([built_margins[name] >= 0 for name in ("edge_vertical", "die_area", "memory")], axis=0)
    built_value = np.where(can_be_built, built_value, -np.inf).reshape(len(rows), len(whole))
    choice = built_value.argmax(axis=1)
    return {
        "tensor_parallel": [SHAPES[row][0] for row in rows],
        "stacks": stacks,
        "d2d_bandwidth": on_the_edge(stacks, 0).d2d,
        "tokens_per_second": np.exp(value),
        "memory_fits": fits,
        "worth_as_memory_per_mm": as_memory * MM,
        "worth_as_links_per_mm": as_links * MM,
        "best_stacks": best,
        "best_d2d_bandwidth": on_the_edge(best, 0).d2d,
        "best_tokens_per_second": np.exp(best_value),
        "best_worth_per_mm": memory * MM,
        "built_stacks": whole[choice],
        "built_d2d_bandwidth": built.d2d[choice],
        "built_tokens_per_second": np.exp(built_value.max(axis=1)),
        "checks": {
            "marginal values are equal": np.allclose(memory, links, rtol=1e-3),
            "no point of the sweep is better": (best_value >= value.max(axis=1) - 1e-9).all(),
            "the sweep finds the same place": (
                np.abs(stacks[value.argmax(axis=1)] - best) <= 1.01 * (stacks[1] - stacks[0])
            ).all(),
            "the rest of the die has room": min(margins["die_area"].min(), best_margins["die_area"].min()) >= 0,
            "whole stacks are no better": (built_value.max(axis=1) <= best_value + 1e-9).all(),
            "large tensor groups want links": (np.diff(best) < 0).all(),
        },
    }


# ---- (c) the least die that reaches a throughput

ROUNDS, STEPS, PENALTY = 60, 20, 40.0
SHARPNESS, RATES = (10.0, 20_000.0), (0.05, 0.0002)
NAMES = tuple(wj.Knobs.__dataclass_fields__)
LOW, HIGH = (np.log(np.array(jax.tree.leaves(side), float)) for side in (BUDGET.low, BUDGET.high))
STACKS, WIDTH, HEIGHT = (NAMES.index(name) for name in ("dram_stacks", "die_width", "die_height"))


class Goal(NamedTuple):
    """A throughput to reach with a whole number of stacks, and the log knobs to start from."""

    log_rate: Any
    log_stacks: Any
    start: Any


def rate_and_excess(shared: Any, log_knobs: Any, relax: wj.Relaxation = wj.HARD) -> tuple[Any, Any]:
    """log(tokens/s) of the wafer of some log knobs, and log(use / allowance) of each of its limits.

    Stacks are whole here, and a smooth ceiling lies a little above a whole number: geometry stays hard.
    """
    strategy, layout = jax.tree.map(lambda leaf: leaf[MIDDLE], shared)
    wafer = BUDGET.build(wj.Knobs(*jnp.exp(log_knobs)), *GRID, SIDES)
    result = wj.estimate(wafer, MODEL, strategy, relax=relax, layout=layout)
    use = jnp.stack(list(({name: 1.0 - m for name, m in result.margins.items()} | fabrication_ratios(wafer)).values()))
    return jnp.log(result.tokens_per_second), jnp.log(jnp.where(use > 1e-6, use, 1e-6))


def checked(shared: Any, log_knobs: Any) -> tuple[Any, Any]:
    """log(tokens/s) and the worst excess by the hard model."""
    rate, excess = rate_and_excess(shared, log_knobs)
    return rate, jnp.max(excess)


def least_area(shared: Any, goal: Goal) -> tuple[Any, Any]:
    """Descend the log knobs to the least die; returns them and the multiplier of the throughput.

    Adam on the augmented Lagrangian `log(area) + sum (max(0, m + r g)^2 - m^2) / (2 r)`, where g is what is missing of
    log(tokens/s) and the log excess of every limit; sharpness rises and the rate falls from round to round.
    """
    low, high = (jnp.asarray(side).at[STACKS].set(goal.log_stacks) for side in (LOW, HIGH))

    def objective(log_knobs: Any, multipliers: Any, sharpness: Any) -> tuple[Any, Any]:
        rate, excess = rate_and_excess(shared, log_knobs, wj.Smooth(sharpness))
        missing = jnp.concatenate([(goal.log_rate - rate)[None], excess])
        pushed = jnp.maximum(0.0, multipliers + PENALTY * missing)
        area = log_knobs[WIDTH] + log_knobs[HEIGHT]
        return area + jnp.sum(pushed**2 - multipliers**2) / (2.0 * PENALTY), pushed

    optimizer = optax.scale_by_adam(b1=0.8, b2=0.95)

    def step(carry: tuple, number: Any) -> tuple[tuple, None]:
        log_knobs, state, multipliers = carry
        progress = jnp.floor(number / STEPS) / (ROUNDS - 1)
        sharpness, rate = (ends[0] ** (1.0 - progress) * ends[1] ** progress for ends in (SHARPNESS, RATES))
        gradient, pushed = jax.grad(objective, has_aux=True)(log_knobs, multipliers, sharpness)
        update, state = optimizer.update(gradient, state)
        multipliers = jnp.where((number + 1) % STEPS == 0, pushed, multipliers)
        return (jnp.clip(log_knobs - rate * update, low, high), state, multipliers), None

    start = jnp.clip(goal.start, low, high)
    num_limits = jax.eval_shape(lambda x: rate_and_excess(shared, x)[1], start).shape[0]
    carry = (start, optimizer.init(start), jnp.zeros(num_limits + 1))
    (log_knobs, _, multipliers), _ = jax.lax.scan(step, carry, jnp.arange(float(ROUNDS * STEPS)))
    return log_knobs, multipliers[0]


def inverse_design(shared: Any, reference: float, fractions: np.ndarray, rivals: int) -> dict[str, Any]:
    """Least die area for shares of a reference throughput; every whole number of stacks is tried, from two starts."""
    whole, starts = np.array([1.0, 2.0, 3.0]), np.array([0.25, 0.75])
    shape = (len(fractions), len(whole), len(starts))
    fraction, stacks, part = (a.ravel() for a in np.meshgrid(fractions, whole, starts, indexing="ij"))
    wanted = np.log(reference * fraction)
    goals = Goal(wanted, np.log(stacks), LOW + part[:, None] * (HIGH - LOW))
    knobs, price = wj.batch.map_chunks(least_area, shared, goals, chunk=len(part), chunks_per_call=1)
    area = knobs[:, WIDTH] + knobs[:, HEIGHT]
    rate, excess = wj.batch.map_chunks(checked, shared, knobs, chunks_per_call=1)
    is_reached = (np.abs(rate - wanted) <= 1e-3) & (excess <= 1e-3)
    table = np.where(is_reached, area, np.inf).reshape(shape)
    from_starts = table.min(axis=1)
    by_stacks = table.min(axis=2)
    best = table.reshape(len(fractions), -1).argmin(axis=1) + np.arange(len(fractions)) * shape[1] * shape[2]

    # random designs around each answer: one that fits and is no slower, on a smaller die, refutes it
    generator = np.random.default_rng(0)
    owner = np.repeat(best, rivals)
    spread = generator.choice([0.001, 0.003, 0.01, 0.03], (len(owner), 1))
    around = np.clip(knobs[owner] + spread * generator.standard_normal(knobs[owner].shape), LOW, HIGH)
    around[:, STACKS] = knobs[owner, STACKS]
    rival_rate, rival_excess = wj.batch.map_chunks(checked, shared, around, chunks_per_call=1)
    fits = (rival_rate >= rate[owner]) & (rival_excess <= np.maximum(excess[owner], 0.0))
    smaller = (around[:, WIDTH] + around[:, HEIGHT] - area[owner])[fits]

    # the multiplier of the throughput is d log(area) / d log(tokens/s): slopes between goals lie between them
    slopes = np.diff(area[best]) / np.diff(wanted[best])
    ends = np.sort([price[best][1:], price[best][:-1]], axis=0)
    agree = (slopes > ends[0] - 0.05) & (slopes < ends[1] + 0.05) | (np.diff(stacks[best]) != 0)
    return {
        "reference_tokens_per_second": reference,
        "fraction": fractions,
        "die_area_mm2": np.exp(area[best]) / MM2,
        "preset_die_area_mm2": float(WAFER.die.width * WAFER.die.height) / MM2,
        "area_by_stacks_mm2": np.exp(by_stacks) / MM2,
        "stacks": stacks[best],
        "price": price[best],
        "knobs": {name: np.exp(knobs[best, i]) for i, name in enumerate(NAMES)},
        "rivals_that_fit": int(fits.sum()),
        "checks": {
            "the hard model reaches every goal": np.isfinite(table.min(axis=(1, 2))).all(),
            "more throughput takes more area": (np.diff(area[best]) > 0).all(),
            "two starts end within 1 %": np.ptp(from_starts, axis=1).max() < 0.01,
            "no rival is smaller by 1 %": len(smaller) > 0 and smaller.min() > -0.01,
            "the multiplier is the slope": agree.all(),
        },
    }


# ---- output


def run(smoke: bool) -> dict[str, Any]:
    """All three answers."""
    began = time.perf_counter()
    shared = stacked_strategies()
    sram = price_of_sram(shared, 17 if smoke else 81)
    edge = share_of_edge(shared, 13 if smoke else 61)
    fractions = np.array([0.6, 1.0]) if smoke else np.linspace(0.4, 1.3, 10)
    area = inverse_design(shared, edge["built_tokens_per_second"][MIDDLE], fractions, 256 if smoke else 2048)
    return {"sram": sram, "edge": edge, "area": area, "seconds": time.perf_counter() - began}


def plain(value: Any) -> Any:
    """Numbers, lists and dictionaries only; what is not finite becomes None."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def show(answers: dict[str, Any]) -> None:
    """Print tables."""
    sram, edge, area = answers["sram"], answers["edge"], answers["area"]
    print(f"a. One MiB of SRAM per core takes {sram['die_area_per_mib_mm2']:.0f} mm2 of the die.")
    print("   DRAM of a die   worth at 0.25 MiB   area as MACs   pays up to")
    for row, rate in enumerate(DRAM_RATES):
        worth, cost = sram["log_rate_per_mib"][row, 0], sram["area_cost_per_mib"][row, 0]
        last = sram["pays_up_to_mib"][row]
        pays = f"{last:.2f} MiB" if last else "nowhere"
        print(f"   {rate / TERA:8.2f} TB/s   {worth:10.1%} per MiB   {cost:12.1%}   {pays:>10}")
    print("b. One edge of 25.5 mm, shared by memory interfaces and links.")
    print("   tensor   relaxed: stacks   link    tokens/s   1 mm is worth   built: stacks   link    tokens/s")
    for row, tensor in enumerate(edge["tensor_parallel"]):
        print(
            f"   {tensor:6d}   {edge['best_stacks'][row]:15.2f}   {edge['best_d2d_bandwidth'][row] / GIGA:4.0f}"
            f"   {edge['best_tokens_per_second'][row]:9,.0f}   {edge['best_worth_per_mm'][row]:13.2%}"
            f"   {edge['built_stacks'][row]:13.0f}   {edge['built_d2d_bandwidth'][row] / GIGA:4.0f}"
            f"   {edge['built_tokens_per_second'][row]:9,.0f}"
        )
    print("   (link: GB/s in one direction of one edge)")
    print(f"c. The die of configuration 3 has {area['preset_die_area_mm2']:.0f} mm2. The least that reaches")
    print("   tokens/s    area mm2   stacks   cores   SRAM MiB   link GB/s   clock GHz   +1 % throughput takes")
    knobs = area["knobs"]
    for row, fraction in enumerate(area["fraction"]):
        cores = knobs["core_rows"][row] * knobs["core_cols"][row]
        print(
            f"   {fraction * area['reference_tokens_per_second']:8,.0f}    {area['die_area_mm2'][row]:8.0f}"
            f"   {area['stacks'][row]:6.0f}   {cores:5.0f}   {knobs['sram_bytes_per_core'][row] / MIB:8.2f}"
            f"   {knobs['d2d_bandwidth'][row] / GIGA:9.0f}   {knobs['clock'][row] / GIGA:9.2f}"
            f"   {area['price'][row] / 100:15.2%} area"
        )
    for answer in (sram, edge, area):
        for name, holds in answer["checks"].items():
            print(f"{'ok    ' if holds else 'FAILED'} {name}")
    print(f"{answers['seconds']:.0f} s")


def draw(answers: dict[str, Any], folder: Path) -> Path:
    """Write the figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    plt.rcParams.update({"grid.alpha": 0.3, "axes.titlesize": 10, "axes.titleweight": "bold", "legend.frameon": False})
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    sram, edge, area = answers["sram"], answers["edge"], answers["area"]
    figure, ((price, share), (least, worth)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")

    size = sram["sram_per_core_mib"]
    every = max(1, len(size) // 20)
    for row, rate in enumerate(DRAM_RATES):
        label = f"{rate / TERA:g} TB/s"
        price.plot(size, 100 * sram["log_rate_per_mib"][row], color=colours[row], label=label)
        difference = sram["finite_difference_per_mib"][row]
        price.plot(size[::every], 100 * difference[::every], "o", mfc="none", ms=4, color=colours[row])
    price.plot(size, 100 * sram["area_cost_per_mib"][0], "--", color=colours[0], lw=1)
    cost = 100 * sram["area_cost_per_mib"][0, -1]
    price.annotate("its area as MACs, at 2 TB/s", (size[-1], cost), (0, 4), textcoords="offset points", ha="right")
    price.set_xscale("log", base=2)
    price.set_xticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    price.set(xlabel="SRAM per core (MiB)", ylabel="tokens/s gained (% per MiB)", title="a. Price of SRAM")
    price.legend(title="DRAM of one die\n(line: gradient, circle: difference)", loc="upper right")

    stacks = edge["stacks"]
    for row, tensor in enumerate(edge["tensor_parallel"]):
        below = 100 * (edge["tokens_per_second"][row] / edge["best_tokens_per_second"][row] - 1)
        fits = edge["memory_fits"][row]
        share.plot(stacks, below, ":", color=colours[row])
        share.plot(stacks, np.where(fits, below, np.nan), color=colours[row], label=f"{tensor} dies")
        share.plot(edge["best_stacks"][row], 0, "o", color=colours[row], ms=6)
        worth.plot(stacks, 100 * edge["worth_as_memory_per_mm"][row], color=colours[row])
        worth.plot(stacks, 100 * edge["worth_as_links_per_mm"][row], "--", color=colours[row])
        worth.plot(edge["best_stacks"][row], 100 * edge["best_worth_per_mm"][row], "o", color=colours[row], ms=6)
    share.set_ylim(-25, 1.5)
    share.set(ylabel="tokens/s against the best (%)", title="b. One edge of 25.5 mm for memory and links")
    share.legend(title="tensor group (dotted: the model\ndoes not fit in the memory)", loc="lower center")
    worth.set_yscale("log")
    worth.set(title="b. Worth of 1 mm of that edge", ylabel="tokens/s gained (% per mm)")
    worth.plot([], [], color="0.3", label="as memory")
    worth.plot([], [], "--", color="0.3", label="as links")
    worth.plot([], [], "o", color="0.3", label="equal: the optimum")
    worth.legend(loc="upper center")
    ticks = np.array([0.5, 1.0, 1.5, 2.0, 2.5])
    rates = np.interp(ticks, stacks, edge["d2d_bandwidth"]) / TERA
    for axis in (share, worth):
        axis.set_xticks(ticks, [f"{tick:g}\n{rate:.2f}" for tick, rate in zip(ticks, rates, strict=True)])
        axis.set_xlabel("memory stacks (upper line), TB/s per link with the rest of the edge (lower line)")

    wanted = area["fraction"] * area["reference_tokens_per_second"] / 1e3
    for column in np.flatnonzero(np.isfinite(area["area_by_stacks_mm2"]).any(axis=0)):
        label = f"{column + 1} memory stack{'s' if column else ''} per die"
        least.plot(wanted, area["area_by_stacks_mm2"][:, column], ".-", color=colours[column], lw=1, label=label)
    least.plot(wanted, area["die_area_mm2"], "o", color="black", ms=5, label="least")
    reference = area["reference_tokens_per_second"] / 1e3
    least.plot(reference, area["preset_die_area_mm2"], "*", color=colours[3], ms=12)
    note = ("the die of configuration 3", (reference, area["preset_die_area_mm2"]), (-9, -3))
    least.annotate(*note, textcoords="offset points", ha="right")
    least.margins(y=0.1)
    least.set(
        xlabel="throughput to reach (thousand tokens/s)",
        ylabel="die area (mm²)",
        title="c. Least die that reaches a throughput",
    )
    least.legend(loc="lower right")
    figure.suptitle("Llama 3 70B on WATOS configuration 3, 56 dies, roofline")
    path = folder / "gradient_explore.png"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def main() -> int:
    """Answer, print, draw; 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--smoke", action="store_true", help="a coarse run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write gradient_explore.png into this folder")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    answers = run(arguments.smoke)
    if arguments.json:
        print(json.dumps(plain(answers)))
    else:
        show(answers)
    if arguments.out is not None:
        path = draw(answers, arguments.out)
        print(f"figure: {path}", file=sys.stderr)
    return 0 if all(all(answers[name]["checks"].values()) for name in ("sram", "edge", "area")) else 1


if __name__ == "__main__":
    sys.exit(main())
