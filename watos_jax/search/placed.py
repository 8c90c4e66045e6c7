"""A schedule on the mesh: stages placed and checkpoints shipped over real distances, re-scored by the step time.

GCMR prices shipping as if every helper were the next stage. Here bytes are given to helpers by distance, stages placed
so that those who talk are near (`placement`, Eq. 2), bytes given out again on the new mesh; and of the serpentine and
the best orders found, the one of least step time is taken, with the loads of all collectives on that order. This is a
heuristic: levels of recomputation stay those of GCMR.
"""

from typing import Final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from watos_jax import pipeline
from watos_jax.estimate import Estimate, estimate
from watos_jax.hardware import System, Wafer
from watos_jax.memory import stages
from watos_jax.model import Transformer
from watos_jax.network.contention import Network, flow_hops
from watos_jax.network.geometry import Geometry, devices
from watos_jax.network.layout import layout
from watos_jax.placement import Grid, pipeline_paths, place
from watos_jax.shipping import shipments, shipping_seconds
from watos_jax.strategy import Layout, Strategy
from watos_jax.units import Scalar

TRIED: Final = 6
"""Orders of least objective whose step time is computed, after each giving out of bytes."""


class Placed(eqx.Module):
    """A strategy on the mesh.

    Attributes:
        strategy: with one level of recomputation per stage.
        layout: of the order.
        order: rectangle of each slot, counted along the serpentine, shape (slots,); None where there is none to choose.
        estimate: at this layout, without shipping; its memory is what each stage needs, more than its own DRAM at
            senders.
        step_time: s, with shipping.
        shipped: bytes per die that the stage of the row keeps at the stage of the column.
        stage_forward: s per micro-batch of each stage, with shipping, zero on padding.
        stage_backward: likewise.
    """

    strategy: Strategy
    layout: Layout
    order: Int[np.ndarray, " slots"] | None
    estimate: Estimate
    step_time: Scalar
    shipped: Float[np.ndarray, "stages stages"]
    stage_forward: Float[Array, " padded"]
    stage_backward: Float[Array, " padded"]

    @property
    def sent(self) -> Float[np.ndarray, " stages"]:
        """Bytes per die that each stage keeps elsewhere."""
        return self.shipped.sum(axis=1)

    @property
    def held(self) -> Float[np.ndarray, " stages"]:
        """Bytes per die that each stage keeps for others."""
        return self.shipped.sum(axis=0)

    @property
    def tokens_per_second(self) -> Scalar:
        """Global batch over step time."""
        return self.estimate.tokens_per_second * self.estimate.step_time / self.step_time

    def exact_step_time(self) -> Scalar:
        """The step time with its schedule replayed, where `step_time` has the closed form: see `pipeline.replay`."""
        stages = self.stage_forward, self.stage_backward, self.strategy
        return self.step_time + (pipeline.replay(*stages) - pipeline.step_time(*stages))


def can_place(system: System | Wafer, strategy: Strategy) -> bool:
    """Whether there are orders to choose from: one mesh, and more than one rectangle."""
    network = Network.of(system)
    return network.num_tiers == 1 and not network.fabrics[0].is_switch and Geometry.of(strategy).slots > 1


def score(
    system: System | Wafer,
    model: Transformer,
    strategy: Strategy,
    order: Int[np.ndarray, " slots"] | None,
    sent: Float[np.ndarray, " stages"],
    room: Float[np.ndarray, " stages"],
) -> Placed:
    """Estimate a strategy on one order, bytes given to helpers at the least sum of bytes x hops.

    Args:
        system: the hardware, concrete.
        model: the transformer.
        strategy: with a level of recomputation for every stage.
        order: see `network.layout`; None on switches.
        sent: bytes per die that each stage must keep elsewhere.
        room: bytes per die that each stage can keep for others.
    """
    network, geometry = Network.of(system), Geometry.of(strategy)
    machine = system.system if isinstance(system, Wafer) else system
    held = devices(network, geometry, order)
    shipped = shipments(sent, room, _stage_hops(network, held))
    built = layout(system, strategy, order=order)
    answer = estimate(system, model, strategy, layout=built)
    in_flight = np.asarray(stages(model, strategy, geometry.pipeline).in_flight)
    pad = (0, built.max_stages - geometry.pipeline)
    away, back = (
        jnp.asarray(np.pad(part, pad), answer.stage_forward.dtype)
        for part in shipping_seconds(machine, network, held, shipped, in_flight)
    )
    plain = pipeline.step_time(answer.stage_forward, answer.stage_backward, strategy)
    stage_forward, stage_backward = answer.stage_forward + away, answer.stage_backward + back
    step = answer.step_time + (pipeline.step_time(stage_forward, stage_backward, strategy) - plain)
    return Placed(strategy, built, order, answer, step, shipped, stage_forward, stage_backward)


def placed(
    system: System | Wafer,
    model: Transformer,
    strategy: Strategy,
    sent: Float[np.ndarray, " stages"],
    room: Float[np.ndarray, " stages"],
) -> Placed:
    """Place a strategy on the mesh; arguments as in `score`. Never slower than the serpentine."""
    if not can_place(system, strategy):
        return score(system, model, strategy, None, sent, room)
    network, geometry = Network.of(system), Geometry.of(strategy)
    fabric = network.fabrics[0]
    grid = Grid(
        fabric.rows // geometry.tensor_rows,
        fabric.cols // geometry.tensor_cols,
        geometry.tensor_rows,
        geometry.tensor_cols,
    )
    best = score(system, model, strategy, np.arange(geometry.slots), sent, room)
    for _ in range(2 if sent.any() else 1):
        paths = np.concatenate([pipeline_paths(geometry), _helper_paths(geometry, best.shipped)])
        orders = [found.order for found in place(grid, geometry.slots, paths)[:TRIED]]
        tried = [score(system, model, strategy, order, sent, room) for order in orders]
        best = min([best, *tried], key=lambda one: float(one.step_time))
    return best


def _stage_hops(network: Network, held: Int[np.ndarray, "data pipeline context tensor"]) -> np.ndarray:
    # mean over replicas and context parts of the hops between like dies of two stages
    first = held[..., 0].swapaxes(0, 1).reshape(held.shape[1], -1)
    pairs = np.broadcast_arrays(first[:, None], first[None])
    return flow_hops(network, *pairs).sum(axis=0).mean(axis=-1)


def _helper_paths(geometry: Geometry, shipped: np.ndarray) -> np.ndarray:
    slot = np.arange(geometry.slots).reshape(geometry.data, geometry.pipeline, geometry.context)
    senders, helpers = np.nonzero(shipped)
    return np.stack([slot[:, senders].ravel(), slot[:, helpers].ravel()], axis=1)
