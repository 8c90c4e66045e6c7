"""Tiers of fabrics, and the worst link that concurrent flows meet on each tier.

Devices are numbered with the innermost tier fastest. A flow between two devices runs on the outermost tier on
which they differ and takes no link of the tiers inside: every device has its own port to every switch tier (its
NIC), and a link of an outer mesh joins two children and is shared by all the devices inside them.

Concurrent flows share links: the time of a set of flows is the load of the worst link over its bandwidth. This is
exact for long messages that all start together and are cut into packets; it neglects that flows which finish early
free their links for others, and every loss inside routers.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from watos_jax.hardware import System, Wafer
from watos_jax.network.topology import Fabric, Nodes, grid_loads, hops, switch_loads
from watos_jax.units import concrete


@dataclass(frozen=True)
class Network:
    """The tiers of a system without bandwidths and latencies.

    Attributes:
        fabrics: fabric of each tier, innermost first.
    """

    fabrics: tuple[Fabric, ...]

    @property
    def num_tiers(self) -> int:
        """Number of tiers."""
        return len(self.fabrics)

    @cached_property
    def units(self) -> tuple[int, ...]:
        """Devices in one child of tier 0, 1, ..., and in the whole network: `(1, n0, n0 n1, ...)`."""
        sizes = [1]
        for fabric in self.fabrics:
            sizes.append(sizes[-1] * fabric.num_nodes)
        return tuple(sizes)

    @property
    def num_devices(self) -> int:
        """Devices of the whole network."""
        return self.units[-1]

    @staticmethod
    def of(system: System | Wafer) -> "Network":
        """Read the shape of a system.

        Raises:
            ValueError: where rows or columns of a tier are traced.
        """
        tiers = system.system.tiers if isinstance(system, Wafer) else system.tiers
        fabrics = []
        for number, tier in enumerate(tiers):
            rows, cols = concrete(tier.rows), concrete(tier.cols)
            if rows is None or cols is None or rows.size != 1 or cols.size != 1:
                raise ValueError(
                    f"system.tiers[{number}] has traced or stacked rows and cols: pass layout=... explicitly, "
                    "computed outside the transformation"
                )
            fabrics.append(Fabric(tier.fabric, int(rows), int(cols)))
        return Network(tuple(fabrics))


def tier_of(network: Network, source: Nodes, target: Nodes) -> Nodes:
    """Outermost tier on which two devices differ; -1 where they are the same device."""
    tier = (source != target).astype(int) - 1
    for inner in network.units[1:-1]:
        tier = tier + (source // inner != target // inner)
    return tier


def flow_hops(network: Network, source: Nodes, target: Nodes) -> Float[np.ndarray, "tiers ..."]:
    """Links that each flow crosses on each tier, shape (tiers, *flows)."""
    if network.num_tiers == 1:
        return hops(network.fabrics[0], source, target)[None].astype(float)
    tier = tier_of(network, source, target)
    return np.stack(
        [
            hops(fabric, source // inner % fabric.num_nodes, target // inner % fabric.num_nodes) * (tier == number)
            for number, (fabric, inner) in enumerate(zip(network.fabrics, network.units, strict=False))
        ]
    ).astype(float)


def loads_by_set(
    network: Network, number: int, source: Nodes, target: Nodes, weight: np.ndarray, which: Nodes, num_sets: int
) -> Float[np.ndarray, "sets links"]:
    """Load that each of several sets of flows puts on every directed link of one tier.

    Args:
        network: the tiers.
        number: the tier; every flow must run on it.
        source: device that sends, shape (flows,).
        target: device that receives, shape (flows,).
        weight: load of each flow, shape (flows,).
        which: set that each flow belongs to, shape (flows,).
        num_sets: number of sets.

    Returns:
        Shape (sets, links); links in the same order for every set.
    """
    fabric = network.fabrics[number]
    if fabric.is_switch:
        ends = switch_loads(
            num_sets * network.num_devices,
            which * network.num_devices + source,
            which * network.num_devices + target,
            weight,
        )
        return ends.reshape(2, num_sets, -1).swapaxes(0, 1).reshape(num_sets, -1)
    inner, outer, size = network.units[number], network.units[number + 1], fabric.num_nodes
    if network.num_tiers > 1:
        copies = network.num_devices // outer
        which = which * copies + source // outer
        source, target = source // inner % size, target // inner % size
    else:
        copies = 1
    along_row, along_col = grid_loads(fabric, source, target, weight, which, num_sets * copies)
    by_set = [loads.reshape(2, num_sets, -1) for loads in (along_row, along_col)]
    return np.concatenate((by_set[0][0], by_set[0][1], by_set[1][0], by_set[1][1]), axis=1)


def _by_tier(network: Network, source: Nodes, target: Nodes) -> list[tuple[int, slice | np.ndarray]]:
    """Tiers in use, each with the flows that run on it."""
    if network.num_tiers == 1:
        return [(0, slice(None))]
    tier = tier_of(network, source, target)
    return [(number, np.flatnonzero(tier == number)) for number in range(network.num_tiers) if (tier == number).any()]


def worst_loads(network: Network, source: Nodes, target: Nodes, weight: float = 1.0) -> Float[np.ndarray, " tiers"]:
    """Load of the busiest directed link of each tier when all flows run at once.

    Args:
        network: the tiers.
        source: device that sends, any shape.
        target: device that receives, same shape.
        weight: load of each flow.

    Returns:
        Shape (tiers,), in the unit of `weight`.
    """
    source, target = source.ravel(), target.ravel()
    ones, zeros = np.full(source.shape, weight), np.zeros(source.shape, int)
    worst = np.zeros(network.num_tiers)
    for number, here in _by_tier(network, source, target):
        loads = loads_by_set(network, number, source[here], target[here], ones[here], zeros[here], 1)
        worst[number] = loads.max()
    return worst


def ring_loads(
    network: Network, source: Nodes, target: Nodes
) -> tuple[Float[np.ndarray, " tiers"], Float[np.ndarray, " tiers"]]:
    """Busiest link of each tier when every flow carries one unit, and when half of it goes the other way.

    Returns:
        (one way, two ways), each of shape (tiers,).
    """
    ahead, back = np.concatenate((source, target)).ravel(), np.concatenate((target, source)).ravel()
    which = np.repeat((0, 1), source.size)
    ones = np.ones(ahead.shape)
    one, two = np.zeros(network.num_tiers), np.zeros(network.num_tiers)
    for number, here in _by_tier(network, ahead, back):
        loads = loads_by_set(network, number, ahead[here], back[here], ones[here], which[here], 2)
        one[number], two[number] = loads[0].max(), 0.5 * (loads[0] + loads[1]).max()
    return one, two


def worst_loads_of_steps(network: Network, source: Nodes, target: Nodes) -> Float[np.ndarray, "steps tiers"]:
    """Load of the busiest link in each step, when the flows of a step run at once and steps one after the other.

    Args:
        network: the tiers.
        source: device that sends, shape (steps, flows).
        target: device that receives, same shape.

    Returns:
        Shape (steps, tiers).
    """
    steps, flows = source.shape
    which = np.repeat(np.arange(steps), flows)
    source, target, ones = source.ravel(), target.ravel(), np.ones(source.size)
    worst = np.zeros((steps, network.num_tiers))
    for number, here in _by_tier(network, source, target):
        loads = loads_by_set(network, number, source[here], target[here], ones[here], which[here], steps)
        worst[:, number] = loads.max(axis=1)
    return worst


def worst_loads_of_sets(network: Network, source: Nodes, target: Nodes) -> Float[np.ndarray, "sets tiers"]:
    """Load of the busiest link that each set of flows takes, when the flows of all sets run at once.

    Args:
        network: the tiers.
        source: device that sends, shape (sets, flows).
        target: device that receives, same shape.

    Returns:
        Shape (sets, tiers); 0 on a tier that a set does not use.
    """
    sets, flows = source.shape
    which = np.repeat(np.arange(sets), flows)
    source, target, ones = source.ravel(), target.ravel(), np.ones(source.size)
    worst = np.zeros((sets, network.num_tiers))
    for number, here in _by_tier(network, source, target):
        loads = loads_by_set(network, number, source[here], target[here], ones[here], which[here], sets)
        worst[:, number] = np.where(loads > 0, loads.sum(axis=0), 0.0).max(axis=1)
    return worst
