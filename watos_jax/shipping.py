"""Checkpoints on their way: which helper keeps how much for which sender, and what that takes over real distances.

GCMR settles how much each stage sends and could keep; here bytes find the nearest DRAM. `shipments` makes bytes x hops
least (a transport problem, by linear programming); `nearest_first` is the greedy of WATOS, for comparison.

`shipping_seconds` counts links: all senders ship at once, every die to the like die of the helper, routed as all
traffic. A sender waits for the worst link that its bytes take, with the load of all others on it, or for its own DRAM;
a helper for its DRAM.

Neglects: hiding behind operators; other traffic at the same time.

Reference: WATOS, arXiv 2512.12279 (greedy, nearest DRAM with room first).
"""

import numpy as np
from jaxtyping import Float, Int

from watos_jax.hardware import System
from watos_jax.network.contention import Network, flow_hops, loads_by_set, tier_of

Bytes = Float[np.ndarray, "stages stages"]


def shipments(
    sent: Float[np.ndarray, " stages"], room: Float[np.ndarray, " stages"], hops: Float[np.ndarray, "stages stages"]
) -> Bytes:
    """Who keeps how much for whom, at the least sum of bytes x hops.

    Args:
        sent: bytes that each stage must send.
        room: bytes that each stage can keep for others.
        hops: between any two stages.

    Returns:
        Bytes from the stage of the row to the stage of the column.

    Raises:
        ValueError: there is less room than bytes.
    """
    _check_room(sent, room)
    senders, helpers = np.flatnonzero(sent > 0), np.flatnonzero(room > 0)
    shipped = np.zeros((len(sent), len(sent)))
    if not len(senders):
        return shipped
    scale = sent.max()
    by_sender = np.repeat(np.eye(len(senders)), len(helpers), axis=1)
    by_helper = np.tile(np.eye(len(helpers)), len(senders))
    import scipy.optimize  # changes the filters of warnings when it is imported

    # a little more room than there is: what is full to the last bit must not fail by rounding
    answer = scipy.optimize.linprog(
        hops[np.ix_(senders, helpers)].ravel() + 1.0,
        A_eq=by_sender,
        b_eq=sent[senders] / scale,
        A_ub=by_helper,
        b_ub=room[helpers] / scale + 1e-9,
    )
    shipped[np.ix_(senders, helpers)] = answer.x.reshape(len(senders), len(helpers)) * scale
    return shipped


def nearest_first(
    sent: Float[np.ndarray, " stages"], room: Float[np.ndarray, " stages"], hops: Float[np.ndarray, "stages stages"]
) -> Bytes:
    """The same by a greedy: senders of most bytes first, each to the nearest stages that have room."""
    _check_room(sent, room)
    shipped, left = np.zeros((len(sent), len(sent))), np.array(room, float)
    for sender in np.argsort(-sent, kind="stable"):
        over = float(sent[sender])
        for helper in np.argsort(hops[sender], kind="stable"):
            part = min(over, left[helper])
            shipped[sender, helper] += part
            left[helper] -= part
            over -= part
    return shipped


def _check_room(sent: np.ndarray, room: np.ndarray) -> None:
    if sent.sum() > room.sum() * (1.0 + 1e-6):
        raise ValueError(
            f"sent is {sent.sum():g} bytes in all: it must be at most the room of helpers ({room.sum():g})"
        )


def shipping_seconds(
    system: System,
    network: Network,
    devices: Int[np.ndarray, "data pipeline context tensor"],
    shipped: Bytes,
    in_flight: Float[np.ndarray, " stages"],
) -> tuple[Float[np.ndarray, " stages"], Float[np.ndarray, " stages"]]:
    """Seconds per micro-batch that each stage ships, in its forward pass and in its backward pass.

    Args:
        system: links and DRAM.
        network: its shape.
        devices: who holds what, see `network.geometry.devices`.
        shipped: bytes kept, per die.
        in_flight: micro-batches in flight at each stage; of k, k - 1 are away in part.
    """
    senders, helpers = np.nonzero(shipped)
    zero = np.zeros(len(shipped))
    if not len(senders):
        return zero, zero
    each = shipped[senders, helpers] / (in_flight[senders] - 1.0)
    dram = (1.0 + float(system.efficiency.memory_overhead)) / float(system.die.memory.bandwidth)
    out = np.bincount(senders, each * dram, len(shipped))
    kept = np.bincount(helpers, each * dram, len(shipped))
    away, back = (
        np.maximum(_link_seconds(system, network, devices, senders, helpers, each, home=home), out) + kept
        for home in (False, True)
    )
    return away, back


def _link_seconds(
    system: System,
    network: Network,
    devices: np.ndarray,
    senders: np.ndarray,
    helpers: np.ndarray,
    each: np.ndarray,
    *,
    home: bool,
) -> np.ndarray:
    # of every sender: the worst link that its bytes take, out or home again
    by_stage = devices.swapaxes(0, 1).reshape(devices.shape[1], -1)
    source, target = by_stage[helpers if home else senders], by_stage[senders if home else helpers]
    which = np.broadcast_to(senders[:, None], source.shape)
    weight = np.broadcast_to(each[:, None], source.shape)
    source, target, weight, which = (np.ravel(part) for part in (source, target, weight, which))
    tier, steps, stages = tier_of(network, source, target), flow_hops(network, source, target), devices.shape[1]
    seconds = np.zeros(stages)
    for number in np.unique(tier):
        here, link = tier == number, system.tiers[number].link
        flows = source[here], target[here], weight[here], which[here]
        loads = loads_by_set(network, int(number), *flows, stages)
        worst = np.where(loads > 0.0, loads.sum(axis=0), 0.0).max(axis=1)
        far = np.zeros(stages)
        np.maximum.at(far, which[here], steps[number][here])
        per_byte = (1.0 + float(system.efficiency.network_overhead)) / float(link.bandwidth)
        seconds += worst * per_byte + far * float(link.latency)
    return seconds
