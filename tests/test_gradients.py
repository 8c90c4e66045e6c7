"""Gradients of every public function of the physics against finite differences, in the logarithm of its inputs.

A derivative in log space is an elasticity: a number near 1 whatever the unit, so that one tolerance serves all.
Inputs that are zero, and outputs that are, have no logarithm and are left out.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from watos_jax import HARD, Efficiency, Smooth, Strategy, estimate, layout
from watos_jax.energy import flop_energy, leakage_power, peak_power_per_die, voltage
from watos_jax.fabrication import area_fractions, die_area, fabrication_ratios, link_lengths, tile
from watos_jax.operators.roofline import attention_cost, elementwise_times, matmul_cost
from watos_jax.pipeline import step_time, step_time_bounds
from watos_jax.presets import chips, models, wafers
from watos_jax.workload import (
    activations,
    attention,
    elementwise,
    matmuls,
    messages,
    model_flop,
    num_parameters,
    parameters,
)

pytestmark = pytest.mark.float64

REAL = Efficiency(
    matmul_overhead=0.21,
    matmul_rows=230,
    matmul_cols=50,
    attention_overhead=0.5,
    attention_rows=310,
    memory_overhead=0.1,
    launch_time=4e-6,
    collective_latency=1e-5,
    network_overhead=0.2,
)
# all quantities generic, so that no two branches tie; whole stacks and the reticle's orientation stay off their jumps
BASE = wafers.WATOS_CONFIG_3
WAFER = replace(
    BASE,
    efficiency=REAL,
    die=replace(
        BASE.die,
        memory=replace(BASE.die.memory, num_stacks=1.7, horizontal_sides=1, vertical_sides=2),
        core=replace(BASE.die.core, clock=2.1e9),
    ),
    d2d=replace(BASE.d2d, module_bandwidth=5e10),
)
CLUSTER = replace(chips.cluster(chips.DGX_H100, 4), efficiency=REAL)
STRATEGIES = {
    "llama3-70b": Strategy(tensor_cols=4, pipeline_parallel=7, data_parallel=2, global_batch_size=64, recompute=3),
    "gpt3-175b": Strategy(
        tensor_cols=2,
        pipeline_parallel=4,
        virtual_stages=2,
        context_parallel=2,
        flash_attention=0,
        sequence_parallel=0,
        global_batch_size=16,
        optimizer_sharding=0,
    ),
    "deepseek-v3": Strategy(pipeline_parallel=4, data_parallel=8, expert_parallel=4, global_batch_size=64, recompute=7),
}
RELAXATIONS = {"hard": HARD, "smooth": Smooth(13.0)}
both = pytest.mark.parametrize("relax", RELAXATIONS)
STEP = 1e-5  # of a central difference


@cache
def transforms(function):
    """`log f(exp x)` of a function of a record: many at once, its Jacobian, a pullback, and names of its outputs."""
    names = {}

    def logarithms(logs, record, *context):
        values, structure = jax.tree.flatten(record)
        values = [jnp.where(value > 0, jnp.exp(log), value) for log, value in zip(logs, values, strict=True)]
        outputs = function(jax.tree.unflatten(structure, values), *context)
        flat = jnp.concatenate([jnp.ravel(output) for output in jax.tree.leaves(outputs)])
        paths = jax.tree_util.tree_leaves_with_path(outputs)
        names[flat.size] = [jax.tree_util.keystr(path) for path, output in paths for _ in range(output.size)]
        return jnp.log(jnp.where(flat > 0, flat, 1.0))

    def pulled(logs, cotangent, *rest):
        return jax.vjp(lambda x: logarithms(x, *rest), logs)[1](cotangent)[0]

    def many(logs, *rest):
        return jax.vmap(lambda x: logarithms(x, *rest))(logs)

    return jax.jit(many), jax.jit(jax.jacfwd(logarithms)), jax.jit(pulled), names


def elasticities(function, record, *context):
    """Jacobian of `log f(exp x)`, forward, and after checks against differences and the reverse mode.

    Returns:
        Shape (outputs, inputs), with the names of both.
    """
    record = jax.tree.map(float, record)
    leaves = np.array(jax.tree.leaves(record))
    logs = np.log(np.where(leaves > 0, leaves, 1.0))
    many, forward, pulled, names = transforms(function)
    jacobian = np.asarray(forward(logs, record, *context))
    offsets = STEP * np.eye(leaves.size)
    above, below = np.split(np.asarray(many(np.concatenate([logs + offsets, logs - offsets]), record, *context)), 2)
    outputs = names[len(jacobian)]
    inputs = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(record)]
    differences = (above - below).T / (2 * STEP)
    wrong = np.argwhere(np.abs(jacobian - differences) > 1e-7 + 1e-6 * np.abs(differences))
    assert not wrong.size, [(outputs[i], inputs[j], jacobian[i, j], differences[i, j]) for i, j in wrong[:10]]
    weights = np.random.default_rng(0).normal(size=len(outputs))
    np.testing.assert_allclose(
        np.asarray(pulled(logs, weights, record, *context)), weights @ jacobian, rtol=1e-8, atol=1e-9
    )
    return jacobian, outputs, inputs


# ---- functions of the wafer, of the model, and of the stage times


def physics(wafer, relax):
    """Every public function of the wafer alone."""
    strategy, core = STRATEGIES["deepseek-v3"], wafer.die.core
    shapes = matmuls(models.DEEPSEEK_V3, strategy)
    cores = {
        name: attention_cost(
            wafer.die, wafer.efficiency, attention(models.LLAMA3_8B, Strategy(flash_attention=flash)), relax
        )
        for flash, name in enumerate(("materialised", "flash"))
    }
    return {
        "matmul_cost": matmul_cost(wafer.die, wafer.efficiency, shapes, strategy.gradient_bytes, relax),
        "attention_cost": cores,
        "elementwise_times": elementwise_times(
            wafer.die, wafer.efficiency, elementwise(models.LLAMA3_8B, Strategy()), relax
        ),
        "voltage": voltage(wafer.technology, core.clock, relax),
        "flop_energy": flop_energy(wafer.system, relax),
        "leakage_power": leakage_power(wafer.technology, wafer.die, wafer.die.width * wafer.die.height, relax),
        "peak_power_per_die": peak_power_per_die(wafer, relax),
        "die_area": die_area(wafer),
        "tile": tile(wafer),
        "link_lengths": link_lengths(wafer),
        "fabrication_ratios": fabrication_ratios(wafer, relax),
        "area_fractions": area_fractions(wafer),
    }


@cache
def of_physics(relax):
    return elasticities(physics, WAFER, RELAXATIONS[relax])


@both
def test_functions_of_the_wafer(relax):
    of_physics(relax)


def counts(model, rounded, strategy):
    """Every public count of the workload; layers are counted whole, and codes are no quantities."""
    model = replace(model, **rounded)
    shared = parameters(model, strategy), activations(model, strategy), messages(model, strategy)
    return num_parameters(model), model_flop(model, strategy), shared, elementwise(model, strategy)


@pytest.mark.parametrize("name", STRATEGIES)
def test_counts_of_the_model(name):
    model = jax.tree.map(float, models.NAMES[name])
    codes = ("gated_mlp", "tied_embeddings", "learned_positions", "dropout")
    rounded = {name: getattr(model, name) for name in ("num_layers", "num_dense_layers", "moe_layer_interval", *codes)}
    elasticities(counts, model, rounded, jax.tree.map(float, Strategy(tensor_rows=2)))


@both
def test_functions_of_the_stage_times(relax):
    rng = np.random.default_rng(0)
    strategy = Strategy(global_batch_size=24, virtual_stages=2, pipeline_parallel=8)

    def logarithms(logs):
        forward, backward = jnp.exp(logs)
        closed = step_time(forward, backward, strategy, RELAXATIONS[relax])
        return jnp.log(jnp.stack([closed, *step_time_bounds(forward, backward, strategy)]))

    logs = np.log(rng.uniform(1, 2, (2, 8)))
    check_grads(jax.jit(logarithms), (logs,), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-5)


# ---- the whole


def numbers(hardware, model, strategy, placed, relax):
    """Every number of an estimate but for margins and the bubble, which are differences and may be negative."""
    result = estimate(hardware, model, strategy, relax=relax, layout=placed)
    return {
        **{f"{cause}_time": x for cause, x in result.breakdown.items() if cause != "bubble"},
        "step_time": result.step_time,
        "tokens_per_second": result.tokens_per_second,
        "model_flop_utilisation": result.model_flop_utilisation,
        "power": result.power,
        "energy": result.energy,
        "memory": result.memory,
        "stage_forward": result.stage_forward,
        "stage_backward": result.stage_backward,
    }


@cache
def of_the_estimate(name, relax):
    strategy = STRATEGIES[name]
    model, plain = (jax.tree.map(float, record) for record in (models.NAMES[name], strategy))
    return elasticities(numbers, WAFER, model, plain, layout(WAFER, strategy), RELAXATIONS[relax])


def slopes_of(output, name, relax):
    """Elasticity of one scalar output in every input, by name."""
    jacobian, outputs, inputs = of_the_estimate(name, relax)
    return dict(zip(inputs, jacobian[outputs.index(f"['{output}']")], strict=True))


@both
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_estimate_of_a_wafer(name, relax):
    of_the_estimate(name, relax)


@pytest.mark.slow
def test_the_estimate_of_a_cluster():
    strategy = Strategy(tensor_cols=8, pipeline_parallel=2, data_parallel=2, global_batch_size=16)
    elasticities(numbers, CLUSTER, models.LLAMA3_70B, strategy, layout(CLUSTER, strategy), HARD)


@both
@pytest.mark.parametrize("name", STRATEGIES)
def test_signs_of_the_slopes_of_the_step(name, relax):
    slopes = slopes_of("step_time", name, relax)
    core = (
        f".die.core.{part}" for part in "num_macs clock sram_bytes sram_bytes_per_clock noc_bytes_per_clock".split()
    )
    memory = (f".die.memory.{part}" for part in "num_stacks stack_bandwidth sustained_fraction".split())
    for resource in (*core, *memory, ".die.core_rows", ".die.core_cols", ".d2d.bandwidth"):
        assert slopes[resource] <= 0, resource
    for overhead in (".d2d.latency", *(f".efficiency.{part}" for part in Efficiency.__dataclass_fields__)):
        assert slopes[overhead] >= 0, overhead
    assert slopes[".die.core.clock"] < -0.1
    assert slopes[".d2d.bandwidth"] < 0 < slopes[".d2d.latency"]
    # the step is homogeneous: all rates up and all times down by a factor divide it by that factor
    rates = (".die.core.clock", ".die.memory.stack_bandwidth", ".d2d.bandwidth")
    times = (".d2d.latency", ".efficiency.launch_time", ".efficiency.collective_latency")
    assert sum(slopes[x] for x in times) - sum(slopes[x] for x in rates) == pytest.approx(1)


def test_smooth_slopes_become_hard_ones():
    sharp = Smooth(1e9)
    strategy = STRATEGIES["llama3-70b"]
    model, plain = (jax.tree.map(float, record) for record in (models.LLAMA3_70B, strategy))
    record = jax.tree.map(float, WAFER)
    leaves = np.array(jax.tree.leaves(record))
    logs = np.log(np.where(leaves > 0, leaves, 1.0))
    found = np.asarray(transforms(numbers)[1](logs, record, model, plain, layout(WAFER, strategy), sharp))
    hard, outputs, _ = of_the_estimate("llama3-70b", "hard")
    for output in ("step_time", "energy", "power"):
        row = outputs.index(f"['{output}']")
        np.testing.assert_allclose(found[row], hard[row], atol=1e-6)


def test_every_quantity_of_the_hardware_has_a_gradient_somewhere():
    heard = set()
    for jacobian, _, inputs in (
        *(of_the_estimate(name, "smooth") for name in STRATEGIES),
        of_physics("smooth"),
    ):
        heard |= {name for name, column in zip(inputs, jacobian.T, strict=True) if column.any()}
    quantities = {name for name, leaf in zip(inputs, jax.tree.leaves(WAFER), strict=True) if float(leaf) > 0}
    limits = {".power_limit", ".power_density_limit", ".die.memory.stack_bytes"}  # they enter margins alone
    assert quantities - heard <= limits
