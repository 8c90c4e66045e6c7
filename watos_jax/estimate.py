"""The model as one function: system, model and strategy in; time, memory, power, energy and margins out.

`estimate` compiles once hard and once smooth for each fidelity and size of layout; every other input is a leaf.
"""

from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from watos_jax import pipeline
from watos_jax.energy import operator_energies, peak_power_per_die, step_energy
from watos_jax.fabrication import fabrication_ratios
from watos_jax.hardware import System, Wafer
from watos_jax.memory import MemoryUse, memory_use, stage_parameters, stages
from watos_jax.model import Transformer
from watos_jax.network.layout import layout as build_layout
from watos_jax.operators.fidelity import FIDELITIES, Fidelity, Operators, map_operators, refine
from watos_jax.operators.layer import pieces
from watos_jax.operators.mapping import Ratios
from watos_jax.operators.roofline import attention_cost, elementwise_times, matmul_cost
from watos_jax.relax import HARD, Relaxation
from watos_jax.stage import breakdown, epilogue, stage_times
from watos_jax.strategy import Layout, Strategy, violation
from watos_jax.units import PerStage, Scalar, concrete
from watos_jax.waits import collective_times, gathers, pipeline_sends
from watos_jax.workload import attention, elementwise, matmuls, messages, model_flop
from watos_jax.xla import fence

ROUNDING: Final = 1e-6
"""Excess over an allowance that is put down to floating point; a limit met exactly counts as met."""


class Estimate(eqx.Module):
    """What one training step takes.

    Attributes:
        step_time: s per optimizer step.
        tokens_per_second: global batch over step time.
        model_flop_utilisation: FLOP that the mathematics needs over what the occupied dies could do meanwhile.
        breakdown: seconds by cause; they add up to `step_time`.
        memory: bytes per die at each stage's peak, zero on padding, shape (stages,).
        memory_parts: the same by use.
        stage_forward: s per micro-batch of each stage, shape (stages,).
        stage_backward: s per micro-batch of each stage, recomputation included, shape (stages,).
        power: W, mean over the step, all dies.
        energy: J per optimizer step.
        margins: 1 - use / allowance of every limit; negative where the design does not fit.
        outside: share of the operators' time that lies outside the range of the predictor, where it falls back to the
            roofline; 0 at other fidelities.
        fidelity: operator model that made the estimate.
    """

    step_time: Scalar
    tokens_per_second: Scalar
    model_flop_utilisation: Scalar
    breakdown: dict[str, Scalar]
    memory: PerStage
    memory_parts: MemoryUse
    stage_forward: PerStage
    stage_backward: PerStage
    power: Scalar
    energy: Scalar
    margins: dict[str, Scalar]
    outside: Scalar
    fidelity: str = eqx.field(static=True, default="roofline")

    @property
    def binding(self) -> str:
        """Name of the smallest margin; for concrete, unbatched estimates."""
        return min(self.margins, key=lambda name: float(self.margins[name]))

    @property
    def feasible(self) -> bool:
        """Whether no limit is exceeded by more than rounding, `ROUNDING`; for concrete, unbatched estimates."""
        return float(self.margins[self.binding]) >= -ROUNDING

    def exact_step_time(self, strategy: Strategy) -> Scalar:
        """The step time with its schedule replayed, where `step_time` has the closed form: see `pipeline.replay`.

        Args:
            strategy: that of this estimate, a hard one; one, not a batch.

        Returns:
            Seconds; above or below `step_time` where stages differ, equal where they are alike.

        **Neglects:** that embedding and LM head belong to the first and last chunk alone; interleaved chunks share the
        time of their stage equally.
        """
        closed = pipeline.step_time(self.stage_forward, self.stage_backward, strategy)
        return self.step_time + (pipeline.replay(self.stage_forward, self.stage_backward, strategy) - closed)


def estimate(
    system: System | Wafer,
    model: Transformer,
    strategy: Strategy,
    *,
    relax: Relaxation = HARD,
    fidelity: Fidelity = "roofline",
    layout: Layout | None = None,
) -> Estimate:
    """Estimate one training step.

    Args:
        system: the hardware; a wafer also gets its fabrication and power margins.
        model: the transformer.
        strategy: how it is spread and trained.
        relax: `HARD`, the truth, or `Smooth(...)`, for descent.
        fidelity: operator model; "roofline", "mapper" or "predictor".
        layout: what the network makes of the strategy; computed if None, which needs concrete hardware and strategy.

    Returns:
        Scalars of shape () and per-stage arrays; differentiable in every leaf of `system`, piecewise constant in the
        degrees of `strategy`.

    Raises:
        ValueError: unknown fidelity, an illegal strategy, or no layout where hardware or strategy is traced.
    """
    if fidelity not in FIDELITIES:
        raise ValueError(f"fidelity is {fidelity!r}: it must be one of {', '.join(FIDELITIES)}")
    if all(concrete(leaf) is not None for leaf in jax.tree.leaves((model, strategy))):
        broken = violation(model, strategy)
        if broken is not None:
            raise ValueError(broken)
    if layout is None:
        layout = build_layout(system, strategy)
    _check_stages(strategy, layout)
    strategy = _padded_recompute(strategy, layout.max_stages)
    system, model, strategy, relax, layout = jax.tree.map(_strong, (system, model, strategy, relax, layout))
    mapped = _mapped(system, model, strategy) if fidelity == "mapper" else None
    return _estimate(system, model, strategy, relax, layout, fidelity, mapped)


def _check_stages(strategy: Strategy, layout: Layout) -> None:
    stages = concrete(strategy.pipeline_parallel)
    if stages is not None and stages.ndim == 0 and stages > layout.max_stages:
        raise ValueError(
            f"pipeline_parallel is {float(stages):g}: the layout must have room for as many stages, it has "
            f"{layout.max_stages}"
        )


def _padded_recompute(strategy: Strategy, max_stages: int) -> Strategy:
    # one level per stage may be given without the padding
    levels = concrete(strategy.recompute)
    if levels is None or levels.ndim == 0 or levels.shape[-1] == max_stages:
        return strategy
    stages = concrete(strategy.pipeline_parallel)
    if stages is None or levels.shape[-1] != stages:
        raise ValueError(f"recompute has {levels.shape[-1]} levels: it must have one, or one per stage")
    padding = [(0, 0)] * (levels.ndim - 1) + [(0, max_stages - levels.shape[-1])]
    return eqx.tree_at(lambda s: s.recompute, strategy, np.pad(levels, padding))


def _strong(leaf: Any) -> Any:
    # one type for floats and arrays alike, so that neither adds a compilation
    return leaf if isinstance(leaf, jax.core.Tracer) else jnp.asarray(leaf, dtype=jnp.result_type(float))


@eqx.filter_jit
def _mapped(system: System | Wafer, model: Transformer, strategy: Strategy) -> tuple[Ratios, Ratios]:
    # apart from the estimate, so that layouts of other sizes do not compile it again
    shapes, core = matmuls(model, strategy), attention(model, strategy)
    return map_operators(system.die, model, shapes, core, strategy.gradient_bytes)


@eqx.filter_jit
def _estimate(
    hardware: System | Wafer,
    model: Transformer,
    strategy: Strategy,
    relax: Relaxation,
    layout: Layout,
    fidelity: Fidelity,
    mapped: tuple[Ratios, Ratios] | None,
) -> Estimate:
    system = hardware.system if isinstance(hardware, Wafer) else hardware
    held = stages(model, strategy, layout.max_stages)
    common, experts = stage_parameters(model, strategy)
    traffic, sizes = elementwise(model, strategy), messages(model, strategy)
    shapes, scores = matmuls(model, strategy), attention(model, strategy)
    products = fence(
        matmul_cost(system.die, system.efficiency, shapes, strategy.gradient_bytes, relax, system.precision),
        system.die.core.clock,
    )
    core = attention_cost(system.die, system.efficiency, scores, relax)
    seconds = elementwise_times(system.die, system.efficiency, traffic, relax)
    bound = Operators(products, core, seconds, jnp.zeros_like(core.forward))
    ran = refine(bound, fidelity, system.die, model, shapes, scores, strategy.gradient_bytes, mapped, relax)
    products, core, seconds = ran.products, ran.core, ran.elementwise
    times = stage_times(
        pieces(products.forward, core.forward, seconds),
        pieces(products.backward, core.backward, seconds, 2.0),
        collective_times(system, strategy, layout, sizes),
        gathers(system, strategy, layout, common, experts),
        pipeline_sends(system, strategy, layout, sizes, held),
        strategy,
        held,
        system.overlap,
        relax,
    )
    # fill and drain wait for the sends that steady state hides
    pipelined = (
        pipeline.closed_form(times.forward, times.both, strategy, relax) + times.hidden / strategy.virtual_stages
    )
    after, after_parts = epilogue(system, strategy, layout, held, common, experts, times.window, relax)
    step = pipelined + after

    memory, memory_parts = memory_use(model, strategy, held, common, experts)
    joules = operator_energies(system, products, core, traffic, relax)
    energy = step_energy(hardware, system, model, strategy, layout, held, joules, sizes, step, relax)
    power = energy / step
    ratios = {"memory": relax.max_over(memory) / system.die.memory.capacity}
    if isinstance(hardware, Wafer):
        density = peak_power_per_die(hardware, relax) / (hardware.die.width * hardware.die.height)
        ratios |= fabrication_ratios(hardware, relax)
        ratios["power"] = power / hardware.power_limit
        ratios["power_density"] = density / hardware.power_density_limit
    tokens = strategy.global_batch_size * model.sequence_length
    return Estimate(
        step_time=step,
        tokens_per_second=tokens / step,
        model_flop_utilisation=model_flop(model, strategy) / step / strategy.num_dies / system.die.flop_rate,
        breakdown=breakdown(times, strategy, pipelined, after_parts),
        memory=memory,
        memory_parts=memory_parts,
        stage_forward=times.forward,
        stage_backward=times.backward,
        power=power,
        energy=energy,
        margins={name: 1.0 - ratio for name, ratio in ratios.items()},
        outside=ran.outside,
        fidelity=fidelity,
    )
