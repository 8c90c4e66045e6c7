"""All-reduce, reduce-scatter and all-gather as coefficients.

`time = bytes sum(volume / bandwidth) + sum(steps latency)`, summed over tiers.
`bytes` is the full buffer per device; reduce-scatter and all-gather are half of an all-reduce (`half`). Groups are
integer arrays (groups, members) of device numbers; **all groups of one call run at once and share links**, so that
a volume is the load of the worst link per byte of buffer.

Neglects: software overhead per message, contention between different operations, early release of links, reduction
arithmetic, algorithms that trade volume for latency in small messages (trees), and reduction inside switches.

References: Thakur, Rabenseifner, Gropp (2005), IJHPCA 19(1); Patarasuk, Yuan (2009), JPDC 69(2) (the ring is
bandwidth-optimal); Cho et al. (2019), IBM J. Res. Dev. 63(6) (one tier after the other).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import jax
import numpy as np
from jaxtyping import Int

from watos_jax.network.contention import Network, flow_hops, ring_loads
from watos_jax.strategy import Collective

Groups = Int[np.ndarray, "groups members"]
"""Device numbers of concurrent groups, one group a row, in ring order where the order matters."""

Directions = Literal["one", "two", "best"]
"""Ways round a ring: all data one way, half each way, or whichever loads the worst link less."""


@dataclass(frozen=True)
class Transport:
    """How messages move.

    Attributes:
        chunks: parts that a buffer is cut into; later phases of an operation start on the first part.
        store_and_forward: whether every node on a route receives a message whole before it passes it on; else
            packets follow one another (cut-through) and a long route costs bandwidth once.
        blocking: whether a member starts a step only when its own send of the step before has arrived (MPI
            send-receive), so that every step waits for the longest route.
    """

    chunks: int = 16
    store_and_forward: bool = False
    blocking: bool = False


DEFAULT_TRANSPORT = Transport()


@lru_cache(maxsize=1)
def _structure() -> jax.tree_util.PyTreeDef:
    empty = np.zeros(1)
    return jax.tree_util.tree_structure(Collective(volume=empty, steps=empty, traffic=empty))


def collective(volume: np.ndarray, steps: np.ndarray, traffic: np.ndarray) -> Collective:
    """Build a `Collective` without the checks of its constructor, which cost more than the numbers.

    Args:
        volume: shape (tiers,); like the others it becomes read-only.
        steps: shape (tiers,).
        traffic: shape (tiers,).
    """
    volume.flags.writeable = steps.flags.writeable = traffic.flags.writeable = False
    built: Collective = jax.tree_util.tree_unflatten(_structure(), (volume, steps, traffic))
    return built


@lru_cache(maxsize=64)
def nothing(network: Network) -> Collective:
    """The collective of a group of one: zeros."""
    zeros = np.zeros(network.num_tiers)
    return collective(zeros, zeros, zeros)


def in_turn(parts: Sequence[Collective], shares: Sequence[float]) -> Collective:
    """Operations one after the other, each on a share of the buffer."""
    pairs = list(zip(parts, shares, strict=True))
    return collective(
        np.sum([np.asarray(part.volume) * share for part, share in pairs], axis=0),
        np.sum([np.asarray(part.steps) for part in parts], axis=0),
        np.sum([np.asarray(part.traffic) * share for part, share in pairs], axis=0),
    )


def half(all_reduce: Collective) -> Collective:
    """The reduce-scatter or the all-gather of an all-reduce: half of its volume, steps and traffic."""
    return collective(
        0.5 * np.asarray(all_reduce.volume),
        0.5 * np.asarray(all_reduce.steps),
        0.5 * np.asarray(all_reduce.traffic),
    )


def ring_all_reduce(
    network: Network, groups: Groups, *, directions: Directions = "best", transport: Transport = DEFAULT_TRANSPORT
) -> Collective:
    """All-reduce by one logical ring per group, in the order given: reduce-scatter, then all-gather.

    `volume = 2 (n-1)/n L`, L the worst link load when every member sends one unit to the next (one way), or half a
    unit each way (two ways). The latency is that of the longest chain of dependent messages, 2 (n-1) consecutive
    edges of the ring: `steps = 2 sum h - min(h_i + h_(i+1))`, h hops per edge; blocking sends, `steps = 2 (n-1)
    max h`.

    Store-and-forward of K chunks: the last message still has to cross its route whole, and a single chunk moves
    along the chain alone, `volume = max(2 (n-1)/n L + (max h - 1)/(n K), steps / (n K))`.

    Args:
        network: the tiers; a ring that spans several is paced by its edges on the outermost.
        groups: members in ring order.
        directions: "one", "two" or "best", see `Directions`.
        transport: how messages move.

    Neglects: that the longest chain and the busiest link overlap for medium messages; their times are added.

    Reference: Patarasuk, Yuan (2009); Thakur et al. (2005).
    """
    members = groups.shape[1]
    if members == 1:
        return nothing(network)
    ahead = np.concatenate((groups[:, 1:], groups[:, :1]), axis=1)
    one, two = ring_loads(network, groups, ahead)
    if not one.any():  # one device does the work of all members
        return nothing(network)
    if directions == "best":
        directions = "two" if tuple(two[::-1]) < tuple(one[::-1]) else "one"
    load = one if directions == "one" else two
    crossed = flow_hops(network, groups, ahead)
    pairs = crossed + np.concatenate((crossed[..., 1:], crossed[..., :1]), axis=-1)
    chain = (2.0 * crossed.sum(axis=2) - pairs.min(axis=2)).max(axis=1)
    longest = crossed.max(axis=(1, 2))
    outermost = int(np.flatnonzero(load)[-1])
    volume = np.zeros_like(load)
    volume[outermost] = 2.0 * (members - 1) / members * load[outermost]
    if transport.store_and_forward:
        message = 1.0 / (members * transport.chunks)
        volume = np.maximum(volume + (longest - 1).clip(0) * message, chain * message)
    steps = 2.0 * (members - 1) * longest if transport.blocking else chain
    traffic = 2.0 * (members - 1) / members * crossed.mean(axis=(1, 2))
    return collective(volume, steps, traffic)


def _split(groups: Groups, unit: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Split groups by the unit of `unit` devices that members sit in.

    Returns:
        (members inside one unit, members at the same place in their units), or None where a group has unequal
        numbers of members in its units.
    """
    units = groups // unit
    if (units[:, 1:] < units[:, :-1]).any():
        order = np.argsort(units, axis=1, kind="stable")
        groups = np.take_along_axis(groups, order, axis=1)
        units = np.take_along_axis(units, order, axis=1)
    inside = int((units[0] == units[0, 0]).sum())
    if groups.shape[1] % inside:
        return None
    shaped = units.reshape(len(groups), -1, inside)
    if (shaped != shaped[..., :1]).any() or (shaped[:, 1:, 0] == shaped[:, :-1, 0]).any():
        return None
    members = groups.reshape(len(groups), -1, inside)
    return members.reshape(-1, inside), members.swapaxes(1, 2).reshape(-1, members.shape[1])


def hierarchical_all_reduce(
    network: Network, groups: Groups, *, directions: Directions = "best", transport: Transport = DEFAULT_TRANSPORT
) -> Collective:
    """All-reduce tier by tier: reduce-scatter inside, all-reduce of the shards across, all-gather inside.

    With m_k members of a group per unit of tier k, `volume_k = 2 (m_k - 1)/m_k L_k / prod_(j<k) m_j`: a member
    takes only its shard to the next tier, so that a group spanning nodes uses the NICs of all its members. Each
    part is a ring; L_k is its worst link load with all groups at once (1 on a switch).

    Args:
        network: the tiers.
        groups: members; inside a unit they are taken in the order given.
        directions: see `Directions`.
        transport: how messages move.

    Neglects: overlap of the tiers. A group with unequal numbers of members in its units falls back to one flat
    ring over all of them, paced by its outermost edges.

    Reference: Cho et al. (2019), BlueConnect.
    """
    if network.num_tiers == 1 or groups.shape[1] == 1:
        return ring_all_reduce(network, groups, directions=directions, transport=transport)
    parts, shares, share, rest = [], [], 1.0, groups
    for outer in network.units[1:]:
        split = _split(rest, outer)
        if split is None:
            return ring_all_reduce(network, groups, directions=directions, transport=transport)
        inside, rest = split
        if inside.shape[1] > 1:
            parts.append(ring_all_reduce(network, inside, directions=directions, transport=transport))
            shares.append(share)
            share /= inside.shape[1]
        if rest.shape[1] == 1:
            break
    return in_turn(parts, shares) if parts else nothing(network)
