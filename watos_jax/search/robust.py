"""A model on a wafer with faults: planned anew for what is left (`robust`), or kept as it was (`naive`).

`naive` keeps strategy and places of the whole wafer, and living dies take over the work of dead ones
(`faults.taken_over`). `robust` plans anew. Tensor rectangles are laid on living dies; dies that are too weak may be
left out, rectangles with a dead link inside likewise; of all strategies that living dies hold the best are placed on
the mesh and scored, and so are the best of the whole wafer as `naive` leaves them.

Both are scored by `estimate`, each stage at the pace of its weakest die, on layouts whose flows go round dead links.
After the last backward pass all stages are taken to be as slow as the slowest.

Neglects: layers spread unevenly to suit weak dies; sharing of memory between stages (`central`).
"""

from dataclasses import dataclass, field, replace
from typing import Final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from watos_jax import pipeline
from watos_jax.estimate import ROUNDING, Estimate, estimate
from watos_jax.faults import Faults, Pace, Shares, damaged, paces, slowed, taken_over
from watos_jax.hardware import Wafer
from watos_jax.model import Transformer
from watos_jax.network.contention import Network
from watos_jax.network.geometry import Geometry, devices, rectangles
from watos_jax.network.layout import layout_of, padded
from watos_jax.network.tiling import usable
from watos_jax.placement import damaged_terrain, pipeline_paths, place_on
from watos_jax.search.plan import every_option, rank
from watos_jax.search.space import NoStrategy, Options, strategies
from watos_jax.strategy import RECOMPUTE_LEVELS, Strategy
from watos_jax.units import Scalar

RANKED: Final = 6
"""Strategies whose places on the mesh are searched, over all ways of laying rectangles."""
TRIED: Final = 3
"""Orders of each whose step time is computed, beside the serpentine."""


class Survivor(eqx.Module):
    """A strategy on a wafer with faults.

    Attributes:
        strategy: the strategy.
        dies: die of each part, shape (data, pipeline, context, tensor).
        estimate: with all stages at the pace of the slowest.
        step_time: s, each stage at its own pace.
        memory_margin: least over stages of 1 - use / capacity.
    """

    strategy: Strategy
    dies: Int[np.ndarray, "data pipeline context tensor"]
    estimate: Estimate
    step_time: Scalar
    memory_margin: Scalar

    @property
    def fits(self) -> bool:
        """Whether every stage's memory fits."""
        return float(self.memory_margin) >= -ROUNDING

    @property
    def tokens_per_second(self) -> float:
        """Global batch over step time; 0 where it does not fit."""
        whole = float(self.estimate.tokens_per_second * self.estimate.step_time)
        return whole / float(self.step_time) if self.fits else 0.0


@dataclass(frozen=True)
class Survival:
    """The answer of `robust`.

    Attributes:
        best: the fastest strategy that fits; None where none does.
        evaluated: strategies estimated, over all ways of laying rectangles.
        feasible: those that fit.
        usable: living dies that are joined.
        reasons: why a way of laying rectangles gave nothing.
    """

    best: Survivor | None
    evaluated: int
    feasible: int
    usable: int
    reasons: tuple[str, ...] = field(default=())

    @property
    def tokens_per_second(self) -> float:
        """Of the best; 0 where none fits."""
        return 0.0 if self.best is None else self.best.tokens_per_second


def robust(
    wafer: Wafer,
    model: Transformer,
    faults: Faults,
    *,
    options: Options | None = None,
    global_batch_size: int = 512,
) -> Survival:
    """Find the best strategy for what is left of a wafer.

    Args:
        wafer: the wafer, concrete.
        model: the transformer, concrete.
        faults: what is left of it.
        options: what strategies may choose from; `every_option` where None.
        global_batch_size: sequences per optimizer step, where `options` is None.

    Returns:
        The best strategy, or the reasons why there is none.
    """
    chosen = options or every_option(model, global_batch_size)
    longest = padded(int(min(float(wafer.num_dies), float(model.num_layers), chosen.max_pipeline)))
    evaluated, feasible = 0, 0
    reasons: list[str] = []
    ranked: list[tuple[float, Network, Strategy]] = []
    if not faults.cores.any():
        reasons.append("no die lives")
    for network, pace in ways_left(wafer, faults):
        try:
            space = strategies(wafer, model, chosen, max_stages=longest, network=network)
        except NoStrategy as error:
            reasons.append(str(error))
            continue
        found = rank(slowed(wafer, pace), model, space, top=RANKED)
        evaluated, feasible = evaluated + found.evaluated, feasible + found.feasible
        if not found.best:
            over = ", ".join(f"{name} ({count})" for name, count in found.exceeded.items())
            reasons.append(f"of {found.evaluated} strategies on {_living(network)} dies none fits: {over}")
        ranked += [(float(one.estimate.step_time), network, one.strategy) for one in found.best]
    ranked.sort(key=lambda one: one[0])
    tried = [
        survivor(wafer, model, strategy, faults, network, order=order, max_stages=longest)
        for _, network, strategy in ranked[:RANKED]
        for order in orders_on(network, Geometry.of(strategy))
    ]
    if faults.cores.any():  # a group that lost one die may do better than groups laid anew
        before = strategies(wafer, model, chosen, max_stages=longest)
        kept = (naive(wafer, model, one.strategy, faults) for one in rank(wafer, model, before, top=RANKED).best)
        tried += [one for one in kept if one.fits]
    best = min(tried, key=lambda one: float(one.step_time), default=None)
    return Survival(best, evaluated, feasible, _living(damaged(wafer, faults)), tuple(reasons))


def _living(network: Network) -> int:
    return network.num_devices if network.fabrics[0].damage is None else len(usable(network.fabrics[0]))


def ways_left(wafer: Wafer, faults: Faults) -> list[tuple[Network, Pace]]:
    """Meshes to lay rectangles on, with the pace of their weakest die.

    Without the dies below each share that occurs, with and without rectangles that have a dead link inside.

    Args:
        wafer: the wafer.
        faults: what is left of it.
    """
    left = np.minimum(faults.cores, faults.memory).ravel()
    meshes = {
        damaged(wafer, faults, least=float(least), sound=sound): None
        for least in np.unique(left[faults.cores.ravel() > 0.0])
        for sound in (False, True)
    }
    found = []
    for network in meshes:
        whole = network.fabrics[0].damage is None
        dies = list(range(network.num_devices) if whole else usable(network.fabrics[0]))
        if dies:
            found.append((network, Pace(*(float(part.ravel()[dies].min()) for part in (faults.cores, faults.memory)))))
    return found


def orders_on(network: Network, geometry: Geometry) -> list[tuple[int, ...] | None]:
    """The serpentine, and the best orders that a local search finds on a damaged mesh.

    Args:
        network: of the mesh.
        geometry: of a strategy that fits it.
    """
    paths = pipeline_paths(geometry)
    if network.fabrics[0].damage is None or not len(paths):
        return [None]
    terrain = damaged_terrain(network, rectangles(network, geometry))
    found = place_on(terrain, geometry.slots, paths)[:TRIED]
    return [None] + [tuple(int(slot) for slot in one.order) for one in found]


def naive(wafer: Wafer, model: Transformer, strategy: Strategy, faults: Faults) -> Survivor:
    """A strategy of the whole wafer, with its places, on what is left.

    Living dies take over the work of dead ones (`faults.taken_over`). Where that needs more memory than they have,
    all stages recompute more: the first level that fits.

    Args:
        wafer: the wafer, concrete.
        model: the transformer.
        strategy: that of the whole wafer, one level of recomputation for all stages.
        faults: what is left of it.

    Returns:
        The first level that fits; the last one where none does.
    """
    geometry = Geometry.of(strategy)
    network, load = taken_over(wafer, faults, devices(Network.of(wafer), geometry))
    for level in range(int(strategy.recompute), len(RECOMPUTE_LEVELS)):
        more = replace(strategy, recompute=level)
        found = survivor(wafer, model, more, faults, network, load=load)
        if found.fits:
            break
    return found


def survivor(
    wafer: Wafer,
    model: Transformer,
    strategy: Strategy,
    faults: Faults,
    network: Network,
    *,
    order: tuple[int, ...] | None = None,
    load: Shares | None = None,
    max_stages: int | None = None,
) -> Survivor:
    """Score one strategy, every stage at the pace of its weakest die.

    Args:
        wafer: the wafer, concrete.
        model: the transformer.
        strategy: one strategy that fits the network.
        faults: what is left of the wafer.
        network: its mesh, see `faults.damaged` and `faults.taken_over`.
        order: rectangle of each slot, see `network.layout`; the serpentine where None.
        load: dies whose work each die does; 1 where None.
        max_stages: padded number of stages.
    """
    geometry = Geometry.of(strategy)
    built = layout_of(network, geometry, max_stages=max_stages, order=order)
    held = devices(network, geometry, None if order is None else np.array(order))
    by_stage = paces(faults, held, np.ones_like(faults.cores) if load is None else load)
    found = {pace: estimate(slowed(wafer, pace), model, strategy, layout=built) for pace in dict.fromkeys(by_stage)}
    plain = {p: pipeline.step_time(one.stage_forward, one.stage_backward, strategy) for p, one in found.items()}
    last = max(found, key=lambda pace: float(found[pace].step_time - plain[pace]))
    # of every stage, from the estimate at its own pace
    names = ("stage_forward", "stage_backward", "memory")
    every = {pace: np.stack([np.asarray(getattr(one, name)) for name in names]) for pace, one in found.items()}
    own = np.zeros_like(every[last])
    for stage, pace in enumerate(by_stage):
        own[:, stage] = every[pace][:, stage]
    forward, backward = (jnp.asarray(part) for part in own[:2])
    step = found[last].step_time + (pipeline.step_time(forward, backward, strategy) - plain[last])
    capacity = [float(slowed(wafer, pace).die.memory.capacity) for pace in by_stage]
    margin = 1.0 - np.max(own[2, : len(by_stage)] / capacity)
    slowest = max(found, key=lambda pace: float(found[pace].step_time))
    return Survivor(strategy, held, found[slowest], step, margin)
