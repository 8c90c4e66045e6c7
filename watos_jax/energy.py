"""Joules and watts: switching energy by level, leakage, and the voltage that a clock needs.

Energy of logic and SRAM grows with the square of the supply voltage, `V / V_nominal = max(minimum_voltage,
(clock / nominal_clock)**voltage_exponent)`, leakage in proportion to it; DRAM and links keep their own supplies.

Neglects: power conversion losses, cooling, idle power of memory stacks and links.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from watos_jax.hardware import Die, System, Technology, Wafer
from watos_jax.memory import Stages
from watos_jax.model import Transformer
from watos_jax.network.times import over_tiers
from watos_jax.operators.layer import Pieces, pieces, recomputed
from watos_jax.operators.roofline import OperatorCost
from watos_jax.relax import HARD, Relaxation
from watos_jax.stage import OPTIMIZER_TRAFFIC
from watos_jax.strategy import Collective, Layout, Strategy
from watos_jax.units import PerStage, Scalar
from watos_jax.waits import wrap_boundary
from watos_jax.workload import ELEMENT_BYTES, Elementwise, Messages, layer_counts, parameters_per_pipeline
from watos_jax.xla import total


class OperatorEnergies(eqx.Module):
    """Joules of one micro-batch on one device.

    Attributes:
        forward: of each piece of the forward pass.
        both: of each piece, forward and backward.
    """

    forward: Pieces
    both: Pieces


def voltage(technology: Technology, clock: Scalar, relax: Relaxation = HARD) -> Scalar:
    """Supply voltage over the nominal one that the clock needs."""
    asked = (clock / technology.nominal_clock) ** technology.voltage_exponent
    return relax.maximum(jnp.asarray(asked), technology.minimum_voltage + 0.0 * jnp.asarray(asked))


def flop_energy(system: System, relax: Relaxation = HARD) -> Scalar:
    """J per executed FLOP: datapath, and the operands that a square MAC array reads from SRAM.

    An output-stationary array of n MACs reads `2 sqrt(n)` operands per n multiply-accumulates.
    """
    technology, core = system.technology, system.die.core
    operands = ELEMENT_BYTES / jnp.sqrt(core.num_macs)
    level = voltage(technology, core.clock, relax)
    return (technology.flop_energy + operands * technology.sram_energy) * level**2


def leakage_power(technology: Technology, die: Die, area: Scalar, relax: Relaxation = HARD) -> Scalar:
    """W of leakage of one die of the given area."""
    return technology.leakage_power_density * area * voltage(technology, die.core.clock, relax)


def peak_power_per_die(wafer: Wafer, relax: Relaxation = HARD) -> Scalar:
    """W of one die with every MAC, memory stack and port busy: what its cooling must bear.

    Args:
        wafer: the design.
        relax: hard or smooth.
    """
    die = wafer.die
    return (
        die.flop_rate * flop_energy(wafer.system, relax)
        + die.memory.bandwidth * wafer.technology.dram_energy
        + 4.0 * wafer.d2d.bandwidth * wafer.d2d.energy
        + leakage_power(wafer.technology, die, die.width * die.height, relax)
    )


def operator_energies(
    system: System, products: OperatorCost, core: OperatorCost, traffic: Elementwise, relax: Relaxation = HARD
) -> OperatorEnergies:
    """Energy of the operators of a layer: executed FLOP and DRAM bytes times their prices.

    Args:
        system: prices of the technology, MAC array and clock.
        products: matrix products.
        core: attention core.
        traffic: DRAM bytes of element-wise operators, forward; backward moves twice as many.
        relax: hard or smooth.
    """
    per_flop, per_byte = flop_energy(system, relax), system.technology.dram_energy

    def joules(cost: OperatorCost) -> tuple[Float[Array, "*ops"], Float[Array, "*ops"]]:
        forward = cost.forward_flop * per_flop + cost.forward_bytes * per_byte
        return forward, forward + cost.backward_flop * per_flop + cost.backward_bytes * per_byte

    elementwise = jax.tree.map(lambda size: size * per_byte, traffic)
    (products_forward, products_both), (core_forward, core_both) = joules(products), joules(core)
    return OperatorEnergies(
        forward=pieces(products_forward, core_forward, elementwise),
        both=pieces(products_both, core_both, elementwise, 3.0),
    )


def step_energy(
    hardware: System | Wafer,
    system: System,
    model: Transformer,
    strategy: Strategy,
    layout: Layout,
    held: Stages,
    operators: OperatorEnergies,
    sizes: Messages,
    step: Scalar,
    relax: Relaxation = HARD,
) -> Scalar:
    """Joules of one optimizer step of all dies: operators, recomputation, links, optimizer, leakage of wafers.

    Args:
        hardware: what the caller gave; a wafer leaks over the area of all its dies for the whole step.
        system: the same as the engine sees it.
        model: the transformer.
        strategy: how it is spread.
        layout: bytes times hops of each collective.
        held: layers of each stage.
        operators: joules of the pieces of a layer.
        sizes: bytes of the collectives.
        step: s per step.
        relax: hard or smooth.
    """
    per_byte_and_hop = [tier.link.energy for tier in system.tiers]

    def carried(collective: Collective, size: Scalar) -> Scalar:
        return size * over_tiers(collective.traffic, per_byte_and_hop)

    tensor = carried(layout.tensor, sizes.tensor)
    context = (strategy.context_parallel - 1.0) * carried(layout.context, sizes.context)
    expert = carried(layout.expert, sizes.expert)
    waits = 2.0 * tensor + context
    repeated = recomputed(operators.forward, (waits, waits), expert, strategy)
    shared = waits + (2.0 + strategy.sequence_parallel) * tensor + 2.0 * context
    dense, mixture = layer_counts(model)
    both_dense, both_mixture = operators.both.layer
    layers = (
        dense * (both_dense + shared)
        + mixture * (both_mixture + shared + 4.0 * expert)
        + _over_stages(held.dense, dense, repeated[0])
        + _over_stages(held.mixture, mixture, repeated[1])
    )
    # every chunk passes each boundary, all but one the wrap
    hops = strategy.virtual_stages * jnp.sum(layout.pipeline_steps, axis=-2)
    hops = over_tiers(hops - wrap_boundary(strategy, layout.pipeline_steps), per_byte_and_hop)
    sends = 2.0 * sizes.pipeline * hops
    edges = (2.0 + 0.5 * strategy.sequence_parallel) * tensor
    micro_batches = strategy.num_micro_batches * (layers + operators.both.head + edges + sends)
    common, experts = parameters_per_pipeline(model, strategy)
    sharded = jnp.where(strategy.optimizer_sharding >= 1.0, 1.0, 0.0)
    returned = sharded * ELEMENT_BYTES + (1.0 - sharded) * strategy.gradient_bytes
    halves = 0.5 * (strategy.gradient_bytes + returned)
    reduction = carried(layout.data, common) + carried(layout.expert_data, experts)
    # sharded weights are gathered twice, and their gradients scattered, for every micro-batch
    fully = jnp.where(strategy.optimizer_sharding >= 3.0, strategy.num_micro_batches, 0.0)
    gathered = fully * (ELEMENT_BYTES + 0.5 * strategy.gradient_bytes)
    reduction = reduction * jnp.where(fully > 0.0, gathered, halves)
    replicas = strategy.data_parallel * strategy.context_parallel
    # sharded states are updated once, others by every replica
    updates = sharded * (common + strategy.expert_parallel * experts) + (1.0 - sharded) * replicas * (common + experts)
    optimizer = OPTIMIZER_TRAFFIC * updates * system.technology.dram_energy
    switching = strategy.tensor_parallel * (replicas * (micro_batches + reduction) + optimizer)
    if not isinstance(hardware, Wafer):
        return switching
    area = hardware.die.width * hardware.die.height
    return switching + hardware.num_dies * leakage_power(system.technology, system.die, area, relax) * step


def _over_stages(layers: PerStage, count: Scalar, value: Scalar | PerStage) -> Scalar:
    # a value common to the stages needs no sum over them
    return total(layers * value) if jnp.ndim(value) else count * value
