"""Calculon's training time and memory, put together from our public functions: each term agrees to 0.1 %.

`data/calculon.csv` is eleven runs of Calculon (Isaev, McDonald, Dennison, Vuduc, "Calculon: a methodology and tool for
high-level co-design of systems and large language models", SC 2023; calculon-ai/calculon at caa4b11): a layer on one
GPU, tensor, sequence, pipeline and data parallelism one by one (A1 to A7), and trillion-parameter runs on
wafer-like nodes (E1 to E4). Both models count the same products, collectives, schedules and tensors. Where Calculon
defines a term otherwise it is written here out of our parts, and the comment says how:

* operators: query, key and value are three products, attention is two products, softmax and dropout; each takes the
  longer of its FLOP and bytes (A2: their sum). A mask is a byte, and both gradients of an attention product share one
  pass over its operands. Adding the gradients of branches is an operator of its own; weight gradients accumulate for
  nothing. Embedding, LM head and loss are left out.
* network: one latency for a collective of any size, one link speed for each kind of parallelism, and a pass over the
  buffer in memory before or after every collective of a tensor group.
* memory: 2 bytes of a gradient but for the layer at work, which has 4; 12 bytes per parameter and step of the
  optimizer; inputs gathered by sequence parallelism are kept; one layer's activations and activation gradients.
"""

import csv
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from watos_jax import HARD, Efficiency, Strategy, layout, pipeline
from watos_jax.hardware import Core, Die, Link, Memory, System, Tier
from watos_jax.memory import OPTIMIZER_BYTES, kept_bytes, stages
from watos_jax.model import Transformer
from watos_jax.network.times import slope_and_latency
from watos_jax.operators.roofline import SCORE_BYTES, matmul_cost
from watos_jax.presets.technologies import GPU_N7
from watos_jax.strategy import RECOMPUTE_LEVELS
from watos_jax.units import GIGA, TERA
from watos_jax.workload import ELEMENT_BYTES, MATMULS, Matmuls, activations, attention, elementwise, matmuls, messages
from watos_jax.workload import parameters as count_parameters

AGREEMENT = 1e-3
TEXT = ("point", "recompute")
with open(Path(__file__).parent / "data" / "calculon.csv", newline="") as file:
    POINTS = [{name: x if name in TEXT else float(x) for name, x in row.items()} for row in csv.DictReader(file)]
each_point = pytest.mark.parametrize("point", POINTS, ids=[point["point"] for point in POINTS])

# FLOP per element (an optimizer's parameter) that Calculon counts for operators that are no products; ours have none
LAYER_NORM, ACTIVATION, SOFTMAX, OPTIMIZER_FLOP = (9.0, 14.0, 7.0), (8.0, 13.0), (5.0, 8.0), 11.0


def model_of(point):
    return Transformer(
        num_layers=point["blocks"],
        hidden_size=point["hidden"],
        ffn_hidden_size=4 * point["hidden"],
        num_attention_heads=point["heads"],
        num_kv_heads=point["heads"],
        head_dim=point["hidden"] / point["heads"],
        sequence_length=point["sequence"],
        vocab_size=1,
        gated_mlp=0,
        learned_positions=1,
        dropout=1,
    )


def strategy_of(point):
    return Strategy(
        tensor_cols=point["tensor"],
        pipeline_parallel=point["pipeline"],
        data_parallel=point["data"],
        sequence_parallel=point["sequence_parallel"],
        micro_batch_size=point["micro_batch"],
        global_batch_size=point["batch"],
        virtual_stages=point["chunks"],
        flash_attention=0,
    )


def die_of(point):
    """A die of Calculon's two rates alone: nothing else holds it up."""
    core = Core(
        num_macs=1024,
        clock=point["matrix_tflops"] * TERA * point["efficiency"] / 2048,
        sram_bytes=1e30,
        sram_bytes_per_clock=1e30,
        noc_bytes_per_clock=1e30,
    )
    memory = Memory(
        num_stacks=1,
        stack_bytes=80 * GIGA,
        stack_bandwidth=point["memory_GBps"] * GIGA,
        sustained_fraction=point["efficiency"],
    )
    return Die(core_rows=1, core_cols=1, core=core, memory=memory)


def system_of(point, name, members):
    """As many dies behind a switch as a group of one kind of parallelism has members, alone with its link."""
    link = Link(bandwidth=point[f"{name}_GBps"] * GIGA)
    return System(die=die_of(point), tiers=(Tier(rows=1, cols=members, link=link, fabric="switch"),), technology=GPU_N7)


def all_reduce_slope(point, name, strategy, of_layout):
    """Seconds per byte of an all-reduce over one kind of group; a reduce-scatter or an all-gather takes half."""
    system = system_of(point, name, point[name])
    collective = jax.tree.map(jnp.asarray, of_layout(layout(system, strategy)))
    return float(slope_and_latency(system, Efficiency(), collective)[0])


class Operators:
    """Seconds of one block's operators, forward, backward and repeated."""

    def __init__(self, point, model, strategy):
        self.point, self.die = point, die_of(point)
        shapes = matmuls(model, strategy)
        core = attention(model, strategy)
        traffic = elementwise(model, strategy)
        self.scores = core.queries * core.keys * core.heads
        self.stream = traffic.residuals / 12.0  # elements of the residual stream on a device
        self.inner = traffic.activation / (2.0 * ELEMENT_BYTES)
        products = [self.weight_product(shapes, "query_key_value", 3.0)] + [
            self.weight_product(shapes, name, 1.0) for name in ("attention_output", "mlp_up", "mlp_down")
        ]
        asked, answered = (
            self.attention_product(core, *sizes) for sizes in ((core.head_dim, core.keys), (core.keys, core.value_dim))
        )
        norms, softmax, mask = traffic.norms, SCORE_BYTES - 2.0 * 4.0, 1.0
        dropouts = 2.0 * (2.0 * ELEMENT_BYTES + mask) * self.stream
        probabilities = self.vector(softmax * self.scores, SOFTMAX[0] * self.scores)
        masks = self.vector((4.0 + mask) * self.scores, self.scores)
        forward_norms = self.vector(norms, 2.0 * LAYER_NORM[0] * self.stream)
        others = self.vector(dropouts, 2.0 * self.stream)
        self.attention_again = asked[0] + probabilities + masks
        self.forward = (
            sum(product[0] for product in products)
            + self.attention_again
            + answered[0]
            + forward_norms
            + others
            + self.vector(traffic.residuals, 2.0 * self.stream)
            + self.vector(traffic.activation, ACTIVATION[0] * self.inner)
        )
        # adding gradients where a tensor went to two places (three: queries, keys and values; not split by sequence)
        tokens_by_width = messages(model, strategy).tensor / ELEMENT_BYTES
        branches = self.vector(2.0 * 3.0 * ELEMENT_BYTES * self.stream, 2.0 * 2.0 * self.stream)
        branches += self.vector(4.0 * ELEMENT_BYTES * tokens_by_width, 3.0 * tokens_by_width)
        self.backward = (
            sum(product[1] for product in products)
            + asked[1]
            + self.vector(softmax * self.scores, SOFTMAX[1] * self.scores)
            + masks
            + answered[1]
            + self.vector(norms, 2.0 * LAYER_NORM[1] * self.stream)
            + self.vector(norms, 2.0 * LAYER_NORM[2] * self.stream)
            + others
            + self.vector(traffic.residuals, 2.0 * 2.0 * self.stream)
            + self.vector(traffic.activation, ACTIVATION[1] * self.inner)
            + branches
        )

    def longer(self, compute, moved):
        return compute + moved if self.point["added"] else np.maximum(compute, moved)

    def vector(self, moved, flop):
        """An operator that is no product, from our bytes and Calculon's FLOP."""
        rate = self.point["vector_tflops"] * TERA * self.point["efficiency"]
        return self.longer(flop / rate, moved / self.die.memory.bandwidth)

    def products(self, shapes):
        cost = matmul_cost(self.die, Efficiency(), shapes, 0.0, HARD)
        rate, bandwidth = self.die.flop_rate, self.die.memory.bandwidth
        if self.point["added"]:
            forward = cost.forward_flop / rate + cost.forward_bytes / bandwidth
            return cost, forward, 2.0 * forward
        return cost, cost.forward, cost.backward

    def weight_product(self, shapes, name, parts):
        """One of our products, as so many of an equal part of its columns."""
        rows, cols, depth, count = (
            x[MATMULS.index(name)] for x in (shapes.rows, shapes.cols, shapes.depth, shapes.count)
        )
        _, forward, backward = self.products(one(rows, cols / parts, depth, count * parts))
        return float(forward[0]), float(backward[0])

    def attention_product(self, core, depth, cols):
        """Scores or their product with the values, one for each head and sequence."""
        sequences = core.queries / core.sequence
        cost, forward, _ = self.products(one(core.sequence, cols, depth, core.heads * sequences))
        backward = self.longer(
            2.0 * cost.forward_flop / self.die.flop_rate, cost.forward_bytes / self.die.memory.bandwidth
        )
        return float(forward[0]), float(backward[0])


def one(rows, cols, depth, count):
    return Matmuls(*(jnp.asarray([x], dtype=float) for x in (rows, cols, depth, count)))


def times(point):
    """Calculon's terms of the step time, s."""
    model, strategy = model_of(point), strategy_of(point)
    operators = Operators(point, model, strategy)
    blocks, micro_batches = point["blocks"] / point["pipeline"], float(strategy.num_micro_batches)
    sizes, bandwidth = messages(model, strategy), die_of(point).memory.bandwidth

    # four collectives of a tensor group each way, an all-reduce counting for one of two
    slope = all_reduce_slope(point, "tensor", Strategy(tensor_cols=point["tensor"]), lambda placed: placed.tensor)
    gathers = point["sequence_parallel"]
    linked = sizes.tensor * slope * (0.5 if gathers else 1.0) + point["tensor_latency"]
    passed = 2.0 * sizes.tensor / bandwidth
    tensor = (4.0 if gathers else 2.0) * (linked + passed) if point["tensor"] > 1 else 0.0
    again = {"none": 0.0, "selective": operators.attention_again, "full": operators.forward}[point["recompute"]]
    # recomputed attention gathers its input again, a recomputed block all four; without a pass over memory
    again_linked = {"none": 0.0, "selective": 1.0, "full": 4.0}[point["recompute"]] * linked
    parameters = count_parameters(model, strategy)
    per_block = parameters.attention + parameters.mlp
    slope = all_reduce_slope(
        point,
        "data",
        Strategy(data_parallel=point["data"], global_batch_size=point["data"]),
        lambda placed: placed.data,
    )
    latencies = (2.0 if point["sharded"] else 1.0) * point["data_latency"]
    data = ELEMENT_BYTES * per_block * slope + latencies if point["data"] > 1 else 0.0
    update = OPTIMIZER_BYTES * per_block / bandwidth
    if point["added"]:
        update += OPTIMIZER_FLOP * per_block / (point["vector_tflops"] * TERA * point["efficiency"])
    send = sizes.pipeline / (point["pipeline_GBps"] * GIGA) + point["pipeline_latency"]
    sends = point["chunks"] * send if point["pipeline"] > 1 else 0.0
    stage = np.zeros(2) + [
        blocks * (operators.forward + tensor) + sends,
        blocks * (operators.backward + tensor + again + again_linked) + sends,
    ]
    every = np.ones((int(point["pipeline"]), 1)) * stage
    pipelined = float(pipeline.step_time(every[:, 0], every[:, 1], strategy))
    terms = {
        "fw_time": micro_batches * blocks * operators.forward,
        "bw_time": micro_batches * blocks * operators.backward,
        "optim_step_time": blocks * update / (point["data"] if point["sharded"] else 1.0),
        "recompute_time": micro_batches * blocks * again,
        "recomm_exposed_time": micro_batches * blocks * again_linked,
        "bubble_time": pipelined - micro_batches * stage.sum(),
        "tp_comm_exposed_time": micro_batches * blocks * 2.0 * tensor,
        "pp_comm_exposed_time": micro_batches * 2.0 * sends,
        "dp_comm_exposed_time": blocks * data,
    }
    return terms | {"total_time": sum(terms.values())}


def memory(point):
    """Calculon's terms of the memory of the first stage, bytes."""
    model, strategy = model_of(point), strategy_of(point)
    blocks, owners = point["blocks"] / point["pipeline"], point["data"] if point["sharded"] else 1.0
    parameters = count_parameters(model, strategy)
    per_block = parameters.attention + parameters.mlp
    inventory, sizes = activations(model, strategy), messages(model, strategy)
    in_flight = float(stages(model, strategy, int(point["pipeline"])).in_flight[0])
    everything = float(kept_bytes(inventory, replace(strategy, recompute=0))[0])
    level = RECOMPUTE_LEVELS.index(point["recompute"])  # Calculon's "attn_only" is "selective"
    kept = float(kept_bytes(inventory, replace(strategy, recompute=level))[0])
    split, gathers = point["tensor"] > 1, point["sequence_parallel"]
    gathered = gathers * sizes.tensor
    # what a block at work has beyond what it keeps: outputs of row-split products, and both gathered inputs
    working = everything + (2.0 * inventory.boundary if split else 0.0) + 2.0 * gathered
    gradients = (
        # of every operator's output: two masks of a byte, two residuals, two outputs not split by sequence, and
        # those of the collectives (of an all-reduce the backward one alone)
        everything
        - inventory.always
        - inventory.boundary
        + 3.0 * inventory.boundary
        + 2.0 * sizes.tensor
        + (2.0 * (1.0 + gathers) * inventory.boundary if split else 0.0)
    )
    checkpoints = blocks * in_flight * sizes.tensor  # not split by sequence
    full = point["recompute"] == "full"
    stored = kept + {"none": 2.0, "selective": 1.0, "full": 0.0}[point["recompute"]] * gathered
    terms = {
        "weight_space": ELEMENT_BYTES * blocks * per_block,
        "act_space": working + (0.0 if full else (blocks * in_flight - 1.0) * stored),
        "act_checkpoint_size": checkpoints if full else 0.0,
        "act_grad_space": gradients,
        "weight_grad_space": (4.0 + ELEMENT_BYTES / owners * (blocks - 1.0)) * per_block,
        "optimizer_space": OPTIMIZER_BYTES * blocks * per_block / owners,
    }
    return terms | {"proc_mem_tier1_cap_req": sum(terms.values())}


def disagreements(terms, point):
    return {
        name: (float(value), point[name])
        for name, value in terms.items()
        if float(value) != pytest.approx(point[name], rel=AGREEMENT, abs=1e-12)
    }


@pytest.mark.float64  # the bubble is a difference of two long times
@each_point
def test_every_term_of_the_step_time_agrees(point):
    assert not disagreements(times(point), point)


@each_point
def test_every_term_of_the_memory_agrees(point):
    assert not disagreements(memory(point), point)


def test_a_wrong_figure_is_noticed():
    point = next(point for point in POINTS if point["point"] == "E2")
    for name in ("bubble_time", "act_space"):
        wrong = point | {name: 1.002 * point[name]}
        assert name in disagreements(times(point) | memory(point), wrong)
