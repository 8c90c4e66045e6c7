"""Dead dies, dead links and harvested dies of a wafer, as data: what is left of each, and what that makes of the mesh.

Every die and link has a share that is left, from 1 (whole) to 0 (dead). A die without cores is dead with its router: no
message passes it. A die with fewer cores or memory stacks than designed (harvested) works at its own pace, and whoever
works with it waits. A narrow link takes longer; flows go round dead ones by the shortest way (`network.detours`).

Neglects: faults that come and go, spare rows of cores inside a die, what repair and restart cost, and power that dead
dies do not draw.

Reference: WATOS, arXiv 2512.12279, studies failed links and dies; rules here are our own.
"""

from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from watos_jax.hardware import Wafer
from watos_jax.network.contention import Network
from watos_jax.network.detours import Damage
from watos_jax.network.tiling import usable
from watos_jax.network.topology import Fabric
from watos_jax.units import check_range

Shares = Float[np.ndarray, "_ _"]
"""Shares of dies or links, shape (rows, cols)."""


class Faults(eqx.Module):
    """What is left of the dies and links of a wafer.

    Attributes:
        cores: share of each die's cores, 0 where the die is dead, shape (rows, cols).
        memory: share of each die's memory stacks, so of its DRAM's capacity and bandwidth, above 0, shape (rows, cols).
        east: share of the bandwidth of the link to each die's right, shape (rows, cols); the last column is not read.
        south: share of that of the link below, shape (rows, cols); the last row is not read.
    """

    cores: Shares
    memory: Shares
    east: Shares
    south: Shares

    def __check_init__(self) -> None:
        shapes = {name: np.shape(getattr(self, name)) for name in self.__dataclass_fields__}
        for name, shape in shapes.items():
            if len(shape) != 2 or shape != shapes["cores"]:
                raise ValueError(f"Faults.{name} has shape {shape}: it must be (rows, cols), that of cores")
        check_range("Faults", {name: getattr(self, name) for name in shapes}, high=1.0)
        check_range("Faults", {"memory": self.memory}, open_low=True, high=1.0)

    @property
    def links(self) -> tuple[float, ...]:
        """Share left of every link as `network.detours.Damage` takes it; those of dead dies are dead."""
        lives = self.cores > 0.0
        east = self.east * lives * np.roll(lives, -1, axis=1)
        south = self.south * lives * np.roll(lives, -1, axis=0)
        return tuple(np.concatenate([east.ravel(), south.ravel()]).tolist())

    @property
    def num_dead_dies(self) -> int:
        """Dies without cores."""
        return int((self.cores == 0.0).sum())

    @property
    def num_dead_links(self) -> int:
        """Links between neighbours that are dead, those of dead dies included."""
        links = np.reshape(self.links, (2, *self.cores.shape))
        return int((links[0, :, :-1] == 0.0).sum() + (links[1, :-1] == 0.0).sum())

    def within(self, other: "Faults") -> bool:
        """Whether nothing is left in less than in `other`: these faults are a subset of those."""
        return all(bool((getattr(self, name) >= getattr(other, name)).all()) for name in self.__dataclass_fields__)


def no_faults(wafer: Wafer) -> Faults:
    """The wafer whole."""
    whole = np.ones((int(wafer.die_rows), int(wafer.die_cols)))
    return Faults(whole, whole, whole, whole)


def draw(
    wafer: Wafer,
    *,
    dies: float = 0.0,
    links: float = 0.0,
    harvested: float = 0.0,
    left: float = 0.75,
    seed: int = 0,
) -> Faults:
    """Draw faults at random: so many dies and links, rounded to whole ones, each as likely as any other.

    With one seed, more faults include fewer: dies and links die in an order that the seed draws.

    Args:
        wafer: the wafer.
        dies: share of dies that are dead, 0 to 1.
        links: share of links between neighbours that are dead, before those of dead dies are.
        harvested: share of dies, dead ones aside, that have lost cores and stacks.
        left: share of cores and stacks that a harvested die keeps, above 0.
        seed: of the draw.
    """
    shares = {"dies": dies, "links": links, "harvested": harvested, "left": left}
    check_range("draw", shares, high=1.0)
    check_range("draw", {"left": left}, open_low=True, high=1.0)
    rows, cols = int(wafer.die_rows), int(wafer.die_cols)
    rng = np.random.default_rng(seed)
    order = rng.permutation(rows * cols)
    inside = np.zeros((2, rows, cols), bool)
    inside[0, :, :-1], inside[1, :-1] = True, True
    joints = rng.permutation(np.flatnonzero(inside))
    cores, memory, linked = np.ones(rows * cols), np.ones(rows * cols), np.ones(2 * rows * cols)
    weak = order[::-1][: round(harvested * rows * cols)]  # from the other end, so that more dead dies leave them weak
    cores[weak] = memory[weak] = left
    cores[order[: round(dies * rows * cols)]] = 0.0
    linked[joints[: round(links * len(joints))]] = 0.0
    return Faults(cores.reshape(rows, cols), memory.reshape(rows, cols), *linked.reshape(2, rows, cols))


def damaged(wafer: Wafer, faults: Faults, *, least: float = 0.0, sound: bool = False) -> Network:
    """The network of a wafer with faults, on which `strategies` and layouts lay rectangles on living dies alone.

    Args:
        wafer: the wafer.
        faults: what is left of it.
        least: dies of which a smaller share of cores or stacks is left take no work.
        sound: whether rectangles with a dead link inside are left out.

    Returns:
        The network of the wafer itself where all its links live and all its dies may work.
    """
    network = _of(wafer, faults)
    weak = np.flatnonzero(np.minimum(faults.cores, faults.memory) < least)
    dead = np.flatnonzero(faults.cores == 0.0)
    unused = frozenset(np.concatenate([weak, dead]).tolist())
    # where only dead dies lack links no rectangle has a dead one inside
    alone = replace(faults, east=np.ones_like(faults.east), south=np.ones_like(faults.south)).links
    damage = Damage(faults.links, unused, sound and alone != faults.links)
    if not unused and faults.links == no_faults(wafer).links:
        return network
    return Network((replace(network.fabrics[0], damage=damage),))


def _of(wafer: Wafer, faults: Faults) -> Network:
    network = Network.of(wafer)
    grid = network.fabrics[0].rows, network.fabrics[0].cols
    if faults.cores.shape != grid:
        raise ValueError(f"faults are of {faults.cores.shape} dies: the wafer has {grid}")
    return network


class Pace(NamedTuple):
    """What a die, or the slowest of several, has left for the work of one die.

    Attributes:
        cores: share of its cores.
        memory: share of its memory stacks.
        load: dies whose work it does.
    """

    cores: float = 1.0
    memory: float = 1.0
    load: float = 1.0


def slowed(wafer: Wafer, pace: Pace) -> Wafer:
    """The wafer with all dies as one of this pace.

    Work of several dies is done in turn: a clock and a DRAM `load` times as slow take as long, and each has its part
    of the capacity.

    Args:
        wafer: the wafer.
        pace: of the die; the wafer itself where nothing is lost.
    """
    if pace == Pace():
        return wafer
    die = wafer.die
    memory = replace(
        die.memory,
        num_stacks=die.memory.num_stacks * pace.memory,
        stack_bytes=die.memory.stack_bytes / pace.load,
        stack_bandwidth=die.memory.stack_bandwidth / pace.load,
    )
    core = replace(die.core, clock=die.core.clock / pace.load)
    return replace(wafer, die=replace(die, core_rows=die.core_rows * pace.cores, core=core, memory=memory))


def paces(faults: Faults, held: Int[np.ndarray, "data pipeline context tensor"], load: Shares) -> list[Pace]:
    """Pace of every stage: of each share the least, for members of a group and replicas wait for one another.

    Args:
        faults: what is left of the dies.
        held: die that holds each part, see `network.geometry.devices`.
        load: dies whose work each die does.
    """
    by_stage = held.swapaxes(0, 1).reshape(held.shape[1], -1)
    cores, memory = (part.ravel()[by_stage].min(axis=1) for part in (faults.cores, faults.memory))
    loads = load.ravel()[by_stage].max(axis=1)
    return [Pace(*(float(x) for x in stage)) for stage in zip(cores, memory, loads, strict=True)]


def taken_over(
    wafer: Wafer, faults: Faults, held: Int[np.ndarray, "data pipeline context tensor"]
) -> tuple[Network, Shares]:
    """Who does the work of dead dies where nobody plans anew, and how much each die then does.

    1. A dead die's part goes to the nearest living die that idles, as long as there are such.
    2. Else it is shared evenly by the living dies of its tensor group; its place in the group's collectives is taken by
       the nearest of them.
    3. Where a whole group is dead, each part goes to the nearest of the living dies that have least to do.

    Near is by hops of the whole mesh, of equal ones the first row by row. Dies that no living link joins to the largest
    part of the mesh count as dead.

    Args:
        wafer: the wafer.
        faults: what is left of it.
        held: die of each part on the whole wafer.

    Returns:
        The network with hosts, and the number of dies whose work each die does.
    """
    network = _of(wafer, faults)
    fabric = network.fabrics[0]
    dead = frozenset(np.flatnonzero(faults.cores == 0.0).tolist())
    damage = Damage(faults.links, dead)
    lives = np.zeros(fabric.num_nodes, bool)
    lives[list(usable(replace(fabric, damage=damage)))] = True
    if not lives.any():
        raise ValueError("faults leave no die: at least one must live")
    load, hosts = np.zeros(fabric.num_nodes), np.arange(fabric.num_nodes)
    load[held[lives[held]]] = 1.0
    for die in held[~lives[held]]:
        idle = np.flatnonzero(lives & (load == 0.0))
        if len(idle):
            hosts[die] = _nearest(fabric, die, idle)
            load[hosts[die]] = 1.0
    for group in held.reshape(-1, held.shape[-1]):
        lost, members = group[~lives[hosts[group]]], hosts[group][lives[hosts[group]]]
        for die in lost:
            idlest = np.flatnonzero(lives & (load == load[lives].min()))
            hosts[die] = _nearest(fabric, die, members if len(members) else idlest)
            load[members if len(members) else hosts[die]] += 1.0 / max(len(members), 1)
    damage = replace(damage, hosts=tuple(hosts.tolist()))
    return Network((replace(fabric, damage=damage),)), load.reshape(faults.cores.shape)


def _nearest(fabric: Fabric, die: np.integer, among: np.ndarray) -> int:
    row, col = divmod(int(die), fabric.cols)
    return int(among[np.argmin(np.abs(among // fabric.cols - row) + np.abs(among % fabric.cols - col))])
