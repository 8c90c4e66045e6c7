"""The relaxed hardware problem of one strategy as a geometric program, written from docs/model.md for cvxpy.

It shares no formula with the library: times, areas, energies and limits are written again as posynomials, and solved by
another method (an interior point of the exponential cone). What it takes from the library are numbers that do not
depend on the knobs: coefficients of the network (`wj.layout`) and, for the limit of mean power, the joules of links.

Covered: dense models with grouped heads and flash attention; 1F1B without interleaving; no sharded weights; ideal
machines (`Efficiency()`) without overlap; a fixed number of stacks. How the parts become a geometric program:

* the voltage, a maximum of a constant and a power of the clock, is log-log convex as it is;
* mean power is energy over time, which is not; with the step time as a variable T that is not below the time of the
  schedule, energy <= power x T is. Where T ends above that time, the program is a relaxation only (`slack`);
* a die in the reticle stands upright or lies flat: two programs.

Maxima and long sums are variables that are not below their parts: the same program, and a quicker one.
"""

from dataclasses import dataclass, replace

import cvxpy as cp
import numpy as np

import watos_jax as wj
from watos_jax.search.relaxed import Relaxed
from watos_jax.strategy import RECOMPUTE_LEVELS

NAMES = ("core_rows", "core_cols", "sram_bytes_per_core", "d2d_bandwidth", "die_width", "die_height", "clock")


@dataclass
class Answer:
    """Least step time, knobs there, and how much longer it is than the time of the schedule, relatively."""

    value: float
    knobs: dict[str, float]
    slack: float


@dataclass
class Operator:
    """Seconds, FLOP and DRAM bytes of one operator, forward and backward."""

    forward: cp.Expression
    backward: cp.Expression
    flop: tuple[float, float]
    moved: tuple[cp.Expression, cp.Expression]


class Program:
    """The program of one strategy on wafers of `stacks` stacks per die."""

    def __init__(self, relaxed: Relaxed, stacks: float):
        self.budget, self.model, self.strategy = relaxed.budget, relaxed.model, relaxed.strategy
        self.rows, self.cols = relaxed.grid
        self.sides = relaxed.sides
        self.stacks = stacks
        self.wafer = relaxed.build(replace(relaxed.budget.low, dram_stacks=stacks))
        assert self.strategy.flash_attention == 1 and self.strategy.virtual_stages == 1 and self.strategy.schedule == 0
        assert self.strategy.optimizer_sharding < 3 and self.model.num_experts == 0 and self.model.kv_lora_rank == 0
        assert self.model.attention_window == 0 and self.model.learned_positions == 0
        assert self.wafer.overlap is None and self.wafer.precision is None and self.wafer.packing == "strict"
        assert all(value == 0 for value in vars(self.wafer.efficiency).values())
        self.layout = wj.layout(self.wafer, self.strategy)
        # in the middle of its ends a knob is 1, which the solver likes
        self.middle = {
            name: float(getattr(self.budget.low, name) * getattr(self.budget.high, name)) ** 0.5 for name in NAMES
        }
        self.scaled = {name: cp.Variable(pos=True, name=name) for name in NAMES}
        self.knobs = {name: self.middle[name] * variable for name, variable in self.scaled.items()}
        self.step = cp.Variable(pos=True, name="step_time")
        self.rules: list[cp.Constraint] = []

    def _above(self, *parts):
        # a variable not below any of the parts
        variable = cp.Variable(pos=True)
        self.rules += [part <= variable for part in parts]
        return variable

    def _machine(self):
        k, wafer, core = self.knobs, self.wafer, self.wafer.die.core
        self.cores = k["core_rows"] * k["core_cols"]
        starvation = max(1.0, 4.0 * core.num_macs**0.5 / core.sram_bytes_per_clock)
        self.per_mac = starvation / core.num_macs / self.cores / k["clock"]
        memory = wafer.die.memory
        self.dram_rate = self.stacks * memory.stack_bandwidth * memory.sustained_fraction
        self.per_byte = 1.0 / self.dram_rate
        self.elements = self.cores * k["sram_bytes_per_core"] / 2.0  # that the SRAM of a die holds
        technology = wafer.technology
        ratio = k["clock"] / technology.nominal_clock
        self.voltage = self._above(cp.Constant(technology.minimum_voltage), ratio**technology.voltage_exponent)
        operands = 2.0 / core.num_macs**0.5 * technology.sram_energy
        self.per_flop = (technology.flop_energy + operands) * self.voltage**2
        self.leakage = technology.leakage_power_density * k["die_width"] * k["die_height"] * self.voltage

    def _product(self, rows, cols, depth):
        # three products: forward, input gradient, weight gradient
        macs, core = rows * cols * depth, self.wafer.die.core
        compute = macs * self.per_mac
        port = 2.0 / core.noc_bytes_per_clock / self.knobs["clock"]
        by_row, by_col = port / self.knobs["core_rows"], port / self.knobs["core_cols"]
        inputs, weights, results = rows * depth, depth * cols, rows * cols
        moved = 2.0 * self._above(cp.Constant(inputs + weights + results), 2.0 * macs * self.elements**-0.5)
        accumulated = moved + 2.0 * float(self.strategy.gradient_bytes) * weights
        forward = self._above(compute, inputs * by_row, weights * by_col, moved * self.per_byte)
        backward = self._above(compute, results * by_row, weights * by_col, moved * self.per_byte)
        backward += self._above(compute, inputs * by_row, results * by_col, accumulated * self.per_byte)
        return Operator(forward, backward, (2.0 * macs, 4.0 * macs), (moved, moved + accumulated))

    def _core(self, tokens, heads, kv_heads, width):
        # flash attention: five products backward for two forward; `width` of a head's key and value together
        macs = tokens * self.model.sequence_length / 2.0 * heads * width
        keys = float(self.strategy.micro_batch_size * self.model.sequence_length)
        moved = 2.0 * self._above(cp.Constant((tokens * heads + keys * kv_heads) * width), macs * width / self.elements)
        return Operator(
            self._above(macs * self.per_mac, moved * self.per_byte),
            self._above(2.5 * macs * self.per_mac, 2.0 * moved * self.per_byte),
            (2.0 * macs, 5.0 * macs),
            (moved, 2.0 * moved),
        )

    def _streamed(self, size, backward=2.0):
        # an element-wise operator: its DRAM bytes
        time = size * self.per_byte
        return Operator(time, backward * time, (0.0, 0.0), (cp.Constant(size), cp.Constant(backward * size)))

    def _workload(self):
        model, strategy = self.model, self.strategy
        h, f, gate = float(model.hidden_size), float(model.ffn_hidden_size), float(model.gated_mlp)
        t, d = float(strategy.tensor_parallel), float(model.head_dim)
        width = d + float(model.v_head_dim or model.head_dim)
        tokens = float(strategy.micro_batch_size * model.sequence_length / strategy.context_parallel)
        heads, kv_heads = float(model.num_attention_heads) / t, max(float(model.num_kv_heads) / t, 1.0)
        share = 1.0 / t if strategy.sequence_parallel else 1.0
        vocabulary = float(model.vocab_size) / t
        stream = tokens * h * share
        self.operators = {
            "query_key_value": self._product(tokens, heads * d + kv_heads * width, h),
            "attention_output": self._product(tokens, h, heads * (width - d)),
            "up": self._product(tokens, (1.0 + gate) * f / t, h),
            "down": self._product(tokens, h, f / t),
            "core": self._core(tokens, heads, kv_heads, width),
            "norms": self._streamed(8.0 * stream),
            "residuals": self._streamed(12.0 * stream),
            "rotary": self._streamed(4.0 * tokens * (heads + kv_heads) * d),
            "activation": self._streamed(2.0 * tokens * (2.0 + gate) * f / t),
        }
        self.head = (self._product(tokens, vocabulary, h), self._streamed(7.0 * tokens * vocabulary, 1.0))
        level = RECOMPUTE_LEVELS[int(strategy.recompute)]
        repeats = {
            "none": [],
            "selective": [],
            "norms": ["norms"],
            "activation": ["activation"],
            "mlp": ["up"],
            "projections": ["query_key_value", "rotary"],
            "attention": ["core"],
            "full": ["attention_output", "residuals", "down"],
        }
        reached = RECOMPUTE_LEVELS[: RECOMPUTE_LEVELS.index(level) + 1]
        self.repeated = [self.operators[name] for one in reached for name in repeats[one]]
        attention = h * (heads * d + kv_heads * width) + heads * (width - d) * h
        self.layer_parameters = attention + (2.0 + gate) * h * f / t
        self.table_parameters = vocabulary * h
        self.messages = {
            "tensor": 2.0 * tokens * h,
            "context": 2.0 * tokens * kv_heads * width,
            "pipeline": 2.0 * stream,
        }

    def _wait(self, volume, steps, size):
        link = self.wafer.d2d
        time = float(volume) * size / self.knobs["d2d_bandwidth"]
        latency = float(steps * link.latency)
        return ([time] if volume > 0 else []) + ([cp.Constant(latency)] if latency > 0 else [])

    def _stages(self):
        # layers, then seconds of one micro-batch, of every stage
        strategy, layout = self.strategy, self.layout
        p = int(strategy.pipeline_parallel)
        layers = np.full(p, int(self.model.num_layers) // p)
        layers[1 : 1 + int(self.model.num_layers) % p] += 1
        tensor = self._wait(layout.tensor.volume[0], layout.tensor.steps[0], self.messages["tensor"])
        ring = self._wait(layout.context.volume[0], layout.context.steps[0], self.messages["context"])
        parts = float(strategy.context_parallel) - 1.0
        ring = [parts * wait for wait in ring] if parts else []
        level_full = int(strategy.recompute) == RECOMPUTE_LEVELS.index("full")
        # forward two collectives, backward two and what sequence parallelism gathers again, `full` the forward ones
        count = 4.0 + float(strategy.sequence_parallel) + 2.0 * level_full
        layer = [one.forward + one.backward for one in self.operators.values()]
        layer += [one.forward for one in self.repeated]
        layer += [count * wait for wait in tensor] + [(3.0 + level_full) * wait for wait in ring]
        layer = self._above(_sum(layer))
        head = self._above(_sum(one.forward + one.backward for one in self.head))
        sends = [
            self._wait(layout.pipeline_volume[s, 0], layout.pipeline_steps[s, 0], self.messages["pipeline"])
            for s in range(p - 1)
        ]
        seconds = []
        for s in range(p):
            waits = (sends[s] if s < p - 1 else []) + (sends[s - 1] if s else [])
            # tables are spread over the vocabulary: one collective of each, and the head gathers its input once more
            edges = float(s == 0) + float(s == p - 1) * (1.0 + 0.5 * float(strategy.sequence_parallel))
            waits += [edges * wait for wait in tensor] if edges else []
            seconds.append(self._above(_sum([float(layers[s]) * layer, *([head] if s == p - 1 else []), *waits])))
        return layers, seconds

    def _epilogue(self, layers):
        strategy, layout = self.strategy, self.layout
        sharded = strategy.optimizer_sharding >= 1
        owners = float(strategy.data_parallel * strategy.context_parallel) if sharded else 1.0
        halves = 0.5 * float(strategy.gradient_bytes + (2.0 if sharded else strategy.gradient_bytes))
        ends = []
        for s, count in enumerate(layers):
            held = count * self.layer_parameters + ((s == 0) + (s == len(layers) - 1)) * self.table_parameters
            reduction = self._wait(layout.data.volume[0], 0.0, held * halves)
            ends.append(_sum([cp.Constant(30.0 * held / owners * self.per_byte), *reduction]))
        latency = self._wait(0.0, layout.data.steps[0], 0.0)
        return _sum([self._above(*ends), *latency])

    def time(self):
        """Seconds per step: 1F1B in closed form, and what follows."""
        layers, seconds = self._stages()
        batches = float(self.strategy.num_micro_batches)
        return _sum([*seconds, (batches - 1.0) * self._above(*seconds), self._epilogue(layers)])

    def energy(self):
        """Joules per step, which lasts `self.step`."""
        strategy, technology = self.strategy, self.wafer.technology
        t, layers = float(strategy.tensor_parallel), float(self.model.num_layers)
        replicas = float(strategy.data_parallel * strategy.context_parallel)

        def joules(operator, passes):
            flop, moved = (sum(parts[:passes]) for parts in (operator.flop, operator.moved))
            return ([flop * self.per_flop] if flop else []) + [moved * technology.dram_energy]

        layer = [self._above(_sum(joules(one, 2))) for one in self.operators.values()]
        layer += [self._above(_sum(joules(one, 1))) for one in self.repeated]
        head = [self._above(_sum(joules(one, 2))) for one in self.head]
        work = t * replicas * float(strategy.num_micro_batches)
        owned = layers * self.layer_parameters + 2.0 * self.table_parameters
        updates = 30.0 * technology.dram_energy * t * owned * (1.0 if strategy.optimizer_sharding >= 1 else replicas)
        leaked = self.rows * self.cols * self.leakage * self.step
        parts = [work * layers * part for part in layer] + [work * part for part in head]
        return _sum([*parts, cp.Constant(updates + self._link_joules()), leaked])

    def _link_joules(self):
        # no knob changes them: bytes x hops x joules per byte
        nothing = dict.fromkeys(("flop_energy", "sram_energy", "dram_energy", "leakage_power_density"), 0.0)
        wafer = replace(self.wafer, technology=replace(self.wafer.technology, **nothing))
        return float(wj.estimate(wafer, self.model, self.strategy, layout=self.layout).energy)

    def limits(self, upright):
        """Every limit of the wafer, and the ends of the knobs."""
        k, wafer, technology = self.knobs, self.wafer, self.wafer.technology
        width, height, links = k["die_width"], k["die_height"], k["d2d_bandwidth"]
        memory, d2d, core = wafer.die.memory, wafer.d2d, wafer.die.core
        area = self.cores * (core.num_macs * technology.mac_area)
        area += self.cores * k["sram_bytes_per_core"] * technology.sram_area
        area += self.stacks * technology.memory_phy_area + 4.0 * d2d.phy_area * links
        per_side = np.ceil(self.stacks / sum(self.sides))
        beside = [per_side if side else 0.0 for side in self.sides]
        rules = [area <= width * height, links >= d2d.module_bandwidth]
        for count, edge in zip(beside, (height, width), strict=True):
            phys = [count * technology.memory_phy_length] if count else []
            rules.append(_sum([links / d2d.shoreline_density, *phys]) <= edge)
            rules += [count * memory.stack_length <= edge] if count else []
        taken = []
        grid = ((self.cols, width, wafer.window_width), (self.rows, height, wafer.window_height))
        for side, (count, edge, window) in zip(self.sides, grid, strict=True):
            rest = count * (side * memory.stack_depth + wafer.die_gap) - wafer.die_gap
            taken.append((count * edge + rest) / window)
        rules += [taken[0] <= 1.0, taken[1] <= 1.0, taken[0] * taken[1] <= 1.0]
        reticle = (wafer.reticle_width, wafer.reticle_height)
        rules += [
            edge <= side for edge, side in zip((width, height), reticle if upright else reticle[::-1], strict=True)
        ]
        peak = 2.0 * core.num_macs * self.cores * k["clock"] * self.per_flop
        peak += self.dram_rate * technology.dram_energy + 4.0 * d2d.energy * links + self.leakage
        rules.append(peak <= wafer.power_density_limit * width * height)
        for name, knob in k.items():
            rules += [knob >= float(getattr(self.budget.low, name)), knob <= float(getattr(self.budget.high, name))]
        return rules

    def problem(self, upright):
        """The program: least T, not below the time of the schedule, with every limit."""
        self.rules.clear()
        self._machine()
        self._workload()
        self.seconds, self.joules = self.time(), self.energy()
        power = self.joules <= self.wafer.power_limit * self.step
        rules = [self.seconds <= self.step, power, *self.limits(upright)]
        return cp.Problem(cp.Minimize(self.step), self.rules + rules)

    def solve(self, upright):
        """The optimum with dies in one orientation; None where nothing fits."""
        problem = self.problem(upright)
        assert problem.is_dgp()
        # its own tolerances, a tenth of these, are not reached by every program; both are far below what tests compare
        problem.solve(gp=True, solver=cp.CLARABEL, tol_gap_abs=1e-7, tol_gap_rel=1e-7, tol_feas=1e-7)
        if problem.status == cp.INFEASIBLE:
            return None
        assert problem.status == cp.OPTIMAL
        knobs = {name: float(knob.value) for name, knob in self.knobs.items()}
        return Answer(float(self.step.value), knobs, float(self.step.value) / float(self.seconds.value) - 1.0)


def _sum(parts):
    return cp.sum(cp.hstack(list(parts)))
