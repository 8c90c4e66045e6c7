"""Point-to-point, all-to-all and algorithms in explicit steps, as coefficients (see `collectives`).

`bytes` is the full buffer per device for all-to-all (each member keeps 1/n and sends 1/n to every other) and the
message for point-to-point. All groups and all flows of one call run at once and share links.

Neglects: injection overhead per message; losses inside routers under full load (a flit-level simulation of an 8 x
8 mesh needs 1.24 times the time of the all-to-all bound); overlap of tiers, whose times are added.

References: Thakur, Rabenseifner, Gropp (2005), IJHPCA 19(1); Dally, Towles (2004), Principles and Practices of
Interconnection Networks (throughput from channel loads).
"""

import numpy as np
from jaxtyping import Float, Int

from watos_jax.network.collectives import DEFAULT_TRANSPORT, Groups, Transport, collective, nothing
from watos_jax.network.contention import Network, flow_hops, tier_of, worst_loads, worst_loads_of_steps
from watos_jax.strategy import Collective

Steps = tuple[Int[np.ndarray, "steps members"], Float[np.ndarray, " steps"]]
"""Place in the group that each member sends to in each step, and the share of the buffer that it sends."""


def point_to_point(network: Network, source: np.ndarray, target: np.ndarray) -> Collective:
    """One message per flow, all flows at once: `volume` = worst link load, `steps` = longest route.

    Args:
        network: the tiers.
        source: device that sends, any shape.
        target: device that receives, same shape.
    """
    crossed = flow_hops(network, source, target).reshape(network.num_tiers, -1)
    return collective(worst_loads(network, source, target), crossed.max(axis=1), crossed.mean(axis=1))


def all_to_all(network: Network, groups: Groups, *, transport: Transport = DEFAULT_TRANSPORT) -> Collective:
    """Direct all-to-all: every member sends 1/n of its buffer to every other, all messages at once.

    `volume = L / n`, L the worst link load of all ordered pairs of all groups: (n-1)/n on a switch, the bisection
    bound on an even mesh that one group fills. `steps` = the longest route. Store-and-forward of K chunks: the
    last message still has to cross its route whole, `volume = L / n + (max h - 1) / (n K)`.

    Args:
        network: the tiers.
        groups: members, in any order.
        transport: how messages move.
    """
    members = groups.shape[1]
    if members == 1:
        return nothing(network)
    volume, steps, traffic = np.zeros((3, network.num_tiers))
    for number, fabric in enumerate(network.fabrics):
        if fabric.is_switch:  # counting peers is enough, and groups may be large
            peers = _peers(groups, network.units[number + 1]) - _peers(groups, network.units[number])
            volume[number] = peers.max() / members
            traffic[number] = peers.mean() / members
            steps[number] = float(peers.max() > 0)
    grids = np.array([not fabric.is_switch for fabric in network.fabrics])
    if grids.any():
        source = np.repeat(groups, members, axis=1).ravel()
        target = np.tile(groups, (1, members)).ravel()
        if network.num_tiers > 1:
            kept = (source != target) & grids[tier_of(network, source, target)]
            source, target = source[kept], target[kept]
        crossed = flow_hops(network, source, target)
        volume = np.where(grids, worst_loads(network, source, target, 1.0 / members), volume)
        steps = np.where(grids, crossed.max(axis=1, initial=0.0), steps)
        traffic = np.where(grids, crossed.sum(axis=1) / (groups.size * members), traffic)
    if transport.store_and_forward:
        volume = volume + (steps - 1.0).clip(0.0) / (members * transport.chunks)
    return collective(volume, steps, traffic)


def _peers(groups: Groups, unit: int) -> np.ndarray:
    """Members of the same group in the same unit, itself included, shape (groups, members)."""
    if unit == 1:
        return np.ones(groups.shape)
    units = groups // unit
    keys = units + np.arange(len(groups))[:, None] * (units.max() + 1)
    return np.bincount(keys.ravel())[keys]


def in_steps(network: Network, groups: Groups, steps: Steps) -> Collective:
    """An algorithm in synchronous steps: in each, every member sends one message, and the slowest ends the step.

    `volume = sum_s share_s L_s`, `steps = sum_s max h_s`: link loads L_s and hops h_s of the flows of step s.

    Args:
        network: the tiers.
        groups: members in rank order.
        steps: who sends to whom, and how much; see `pairwise`, `rotation`, `recursive_doubling`,
            `halving_doubling`.
    """
    places, shares = steps
    source = np.broadcast_to(groups[None], (len(places), *groups.shape)).reshape(len(places), -1)
    target = groups[:, places].swapaxes(0, 1).reshape(len(places), -1)
    crossed = flow_hops(network, source, target)
    loads = worst_loads_of_steps(network, source, target)
    return collective(
        (shares[:, None] * loads).sum(axis=0), crossed.max(axis=2).sum(axis=1), crossed.mean(axis=2) @ shares
    )


def pairwise(members: int) -> Steps:
    """All-to-all by exchange: in step k member i swaps 1/n of the buffer with i xor k. Members: a power of two."""
    _check_power_of_two(members)
    places = np.arange(members)[None] ^ np.arange(1, members)[:, None]
    return places, np.full(members - 1, 1.0 / members)


def rotation(members: int) -> Steps:
    """All-to-all, or all-gather from the owner: in step k member i sends 1/n of the buffer to i + k."""
    places = (np.arange(members)[None] + np.arange(1, members)[:, None]) % members
    return places, np.full(members - 1, 1.0 / members)


def recursive_doubling(members: int) -> Steps:
    """All-reduce by exchanging whole buffers with i xor 1, 2, 4, ... Members: a power of two."""
    _check_power_of_two(members)
    distances = 2 ** np.arange(members.bit_length() - 1)
    return np.arange(members)[None] ^ distances[:, None], np.ones(len(distances))


def halving_doubling(members: int) -> Steps:
    """All-reduce by recursive halving, then doubling, after Rabenseifner. Members: a power of two.

    Reduce-scatter exchanges 1/2, 1/4, ... of the buffer with i xor 1, 2, 4, ...; all-gather goes back.

    Reference: Thakur et al. (2005).
    """
    places, _ = recursive_doubling(members)
    shares = 0.5 ** np.arange(1, len(places) + 1)
    return np.concatenate((places, places[::-1])), np.concatenate((shares, shares[::-1]))


def _check_power_of_two(members: int) -> None:
    if members & (members - 1):
        raise ValueError(f"members is {members}: it must be a power of two")
