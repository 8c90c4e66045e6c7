"""Where the stages of a pipeline lie on the mesh: a local search over orders of rectangles, many swaps at once.

Each tensor group is a rectangle of dies; rectangles tile the mesh as a grid. Paths join slots that talk: stages that
follow one another, senders of checkpoints and their helpers. The objective is that of WATOS (Eq. 2),

    cost = sum over paths of weight x hops + gamma x conflicts

where hops are die to die between like dies of two rectangles, routes go along the row of rectangles and then along the
column, and conflicts count, on every directed link between rectangles, the paths beyond the first.

From several starts (serpentine, folded, blocks, random) the best swap of two rectangles, idle ones among them, is
made until none helps.

Neglects: rings of context parts and of replicas, which the step time of the layout counts (`search.placed`); routes
that avoid conflicts.

Reference: WATOS, arXiv 2512.12279, Eq. 2; its gamma is not published and is 1 here.
"""

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from watos_jax.network.contention import Network
from watos_jax.network.detours import routes
from watos_jax.network.geometry import Geometry
from watos_jax.network.topology import folded, snake

GAMMA: Final = 1.0
"""Hops that a conflict is worth."""
RANDOM_STARTS: Final = 32
"""Random orders to start from, beside the regular ones."""
ALL: Final = 120
"""Swaps whose conflicts are counted in every round where there are no more, that is on up to 16 rectangles."""
LIKELY: Final = 24
"""Swaps whose conflicts are counted where there are more: those of least sum of hops."""
MULTIPLE: Final = 16
"""Rectangles and paths are padded to a multiple of this, so that few array shapes occur."""


class Grid(NamedTuple):
    """Rectangles that tile a mesh.

    Attributes:
        rows: rows of rectangles.
        cols: columns of rectangles.
        height: rows of dies in a rectangle.
        width: columns of dies in a rectangle.
    """

    rows: int
    cols: int
    height: int = 1
    width: int = 1


class Terrain(NamedTuple):
    """Places to choose from, as the search sees them.

    Attributes:
        hops: between any two places, shape (tiles, tiles).
        routes: 1 on every directed link that the way from one to another takes, shape (tiles, tiles, links).
        starts: orders of all places to start from, shape (starts, tiles).
        position: number of each place in the order that `network.layout` counts, shape (tiles,).
    """

    hops: Float[np.ndarray, "tiles tiles"]
    routes: Float[np.ndarray, "tiles tiles links"]
    starts: Int[np.ndarray, "starts tiles"]
    position: Int[np.ndarray, " tiles"]


class Placement(NamedTuple):
    """An order of rectangles.

    Attributes:
        order: position along the serpentine of each slot, as `network.layout` takes it, shape (slots,).
        cost: the objective, in hops.
        hops: weighted sum of hops over all paths.
        conflicts: paths beyond the first on every link.
    """

    order: Int[np.ndarray, " slots"]
    cost: float
    hops: float
    conflicts: float


def grid_hops(grid: Grid) -> Int[np.ndarray, "tiles tiles"]:
    """Hops between like dies of any two rectangles, numbered row by row."""
    row, col = np.divmod(np.arange(grid.rows * grid.cols), grid.cols)
    return np.abs(row[:, None] - row) * grid.height + np.abs(col[:, None] - col) * grid.width


def grid_routes(grid: Grid) -> Float[np.ndarray, "tiles tiles links"]:
    """1 on every directed link between rectangles that the route from one to another takes, else 0.

    Links leave a rectangle to the east, west, south and north: `direction * tiles + rectangle`; some lead nowhere.
    """
    tiles = grid.rows * grid.cols
    taken = np.zeros((tiles, tiles, 4 * tiles))
    for source in range(tiles):
        for target in range(tiles):
            row, col = divmod(source, grid.cols)
            end_row, end_col = divmod(target, grid.cols)
            while (row, col) != (end_row, end_col):
                across, down = np.sign(end_col - col), np.sign(end_row - row) if col == end_col else 0
                kind = {(1, 0): 0, (-1, 0): 1, (0, 1): 2, (0, -1): 3}[(int(across), int(down))]
                taken[source, target, kind * tiles + row * grid.cols + col] = 1.0
                row, col = row + int(down), col + int(across)
    return taken


def pipeline_paths(geometry: Geometry) -> Int[np.ndarray, "paths 2"]:
    """Slots of stages that follow one another, in every replica and context part."""
    slot = np.arange(geometry.slots).reshape(geometry.data, geometry.pipeline, geometry.context)
    return np.stack([slot[:, :-1].ravel(), slot[:, 1:].ravel()], axis=1)


def starts(grid: Grid, seed: int = 0) -> Int[np.ndarray, "starts tiles"]:
    """Orders to start from: the rectangle of each slot, idle rectangles last.

    Serpentines along rows and along columns; both folded, so that the two ends lie side by side; blocks of columns, a
    serpentine over the short rows of each; and random ones.
    """
    tiles, along_rows, along_cols = grid.rows * grid.cols, snake(grid.rows, grid.cols), snake(grid.cols, grid.rows)
    down = along_cols % grid.rows * grid.cols + along_cols // grid.rows
    orders = [along_rows, down, folded(along_rows), folded(down)]
    for width in range(2, grid.cols):
        cells = np.arange(tiles).reshape(grid.rows, grid.cols)
        blocks = [cells[:, left : left + width].copy() for left in range(0, grid.cols, width)]
        for block in blocks:
            block[1::2] = block[1::2, ::-1].copy()
        orders.append(np.concatenate([block.ravel() for block in blocks]))
    random = np.random.default_rng(seed)
    return np.stack(orders + [random.permutation(tiles) for _ in range(RANDOM_STARTS)])


def place(
    grid: Grid,
    slots: int,
    paths: Int[np.ndarray, "paths 2"],
    weights: Float[np.ndarray, " paths"] | None = None,
    *,
    gamma: float = GAMMA,
    seed: int = 0,
) -> list[Placement]:
    """Find orders of least cost.

    Args:
        grid: the rectangles.
        slots: how many of them are used.
        paths: slots that each path joins.
        weights: of each path's hops; 1 where None.
        gamma: hops that a conflict is worth.
        seed: of the random starts.

    Returns:
        The optimum that each start led to, without repetition, least cost first.

    Raises:
        ValueError: more slots than rectangles.
    """
    hops = grid_hops(grid).astype(float)
    position = np.argsort(snake(grid.rows, grid.cols))
    terrain = Terrain(hops, grid_routes(grid), starts(grid, seed), position)
    return place_on(terrain, slots, paths, weights, gamma=gamma)


def damaged_terrain(network: Network, tiles: Int[np.ndarray, "tiles dies"], seed: int = 0) -> Terrain:
    """Rectangles on a mesh with damage: hops and links of the longest and of all ways between their like dies.

    Args:
        network: one damaged mesh.
        tiles: dies of every rectangle, see `network.geometry.rectangles`.
        seed: of the random starts.
    """
    fabric, count = network.fabrics[0], len(tiles)
    ways = routes(fabric.rows, fabric.cols, fabric.damage.links if fabric.damage else ())
    source, target = np.broadcast_arrays(tiles[:, None], tiles[None])
    taken = np.zeros((count, count, len(ways.share) + 1))
    first, second = np.indices((count, count))
    taken[first[..., None, None], second[..., None, None], ways.links[source, target]] = 1.0
    along, random = np.arange(count), np.random.default_rng(seed)
    orders = [along, folded(along)] + [random.permutation(count) for _ in range(RANDOM_STARTS)]
    return Terrain(ways.hops[source, target].max(axis=-1).astype(float), taken[..., :-1], np.stack(orders), along)


def place_on(
    terrain: Terrain,
    slots: int,
    paths: Int[np.ndarray, "paths 2"],
    weights: Float[np.ndarray, " paths"] | None = None,
    *,
    gamma: float = GAMMA,
) -> list[Placement]:
    """Find orders of least cost on any terrain; arguments and answer as of `place`."""
    tiles = len(terrain.hops)
    if slots > tiles:
        raise ValueError(f"slots is {slots}: it must be at most the {tiles} rectangles of the grid")
    heavy = np.ones(len(paths)) if weights is None else np.asarray(weights, float)
    more, spare = -tiles % MULTIPLE, -len(paths) % MULTIPLE
    begun = terrain.starts
    begun = np.concatenate([begun, np.tile(np.arange(tiles, tiles + more), (len(begun), 1))], axis=1)
    arrays = (
        np.pad(terrain.hops, (0, more)),
        np.pad(terrain.routes, ((0, more), (0, more), (0, -terrain.routes.shape[2] % (4 * MULTIPLE)))),
        np.pad(heavy, (0, spare)),
        np.pad(np.ones(len(paths)), (0, spare)),
        np.array([gamma, tiles, slots], float),
    )
    numbers = np.pad(np.asarray(paths), ((0, spare), (0, 0)))
    ends = _descend_all(
        *(jnp.asarray(a, jnp.result_type(float)) for a in arrays), jnp.asarray(numbers), jnp.asarray(begun)
    )
    orders, hops, conflicts = (np.asarray(part) for part in ends)
    cost = hops + gamma * conflicts
    found: dict[tuple[int, ...], Placement] = {}
    for row in np.argsort(cost, kind="stable"):
        order = terrain.position[orders[row, :slots]]
        one = Placement(order, float(cost[row]), float(hops[row]), float(conflicts[row]))
        found.setdefault(tuple(order.tolist()), one)
    return list(found.values())


@jax.jit
def _descend_all(
    hops: Float[Array, "tiles tiles"],
    routes: Float[Array, "tiles tiles links"],
    weights: Float[Array, " paths"],
    real: Float[Array, " paths"],
    sizes: Float[Array, "3"],
    paths: Int[Array, "paths 2"],
    begun: Int[Array, "starts tiles"],
) -> tuple[Int[Array, "starts tiles"], Float[Array, " starts"], Float[Array, " starts"]]:
    # the optimum that each start leads to, its hops and its conflicts; padding has no weight and stays where it is
    gamma, tiles, slots = sizes
    first, second = jnp.asarray(np.stack(np.triu_indices(len(hops), 1)))
    allowed = (first < slots) & (second < tiles)  # two idle rectangles need not change places
    counted = len(first) if len(first) <= ALL else LIKELY
    joined = jnp.zeros_like(hops).at[paths[:, 0], paths[:, 1]].add(weights).at[paths[:, 1], paths[:, 0]].add(weights)

    def length(order: Int[Array, " tiles"]) -> Float[Array, ""]:
        return jnp.sum(weights * hops[order[paths[:, 0]], order[paths[:, 1]]])

    def conflicts(order: Int[Array, " tiles"]) -> Float[Array, ""]:
        load = real @ routes[order[paths[:, 0]], order[paths[:, 1]]]
        return jnp.sum(jnp.maximum(load - 1.0, 0.0))

    def cost(order: Int[Array, " tiles"]) -> Float[Array, ""]:
        return length(order) + gamma * conflicts(order)

    def swapped(order: Int[Array, " tiles"], swap: Int[Array, ""]) -> Int[Array, " tiles"]:
        i, j = first[swap], second[swap]
        return order.at[i].set(order[j]).at[j].set(order[i])

    def improve(state: tuple) -> tuple:
        order, value, _ = state
        # all swaps at once: what each slot's paths would be in every other's place, less what they are
        near = hops[order][:, order]
        moved = joined @ near
        stay = jnp.diagonal(moved)
        change = (moved + moved.T + 2.0 * joined * near)[first, second] - stay[first] - stay[second]
        _, likely = jax.lax.top_k(jnp.where(allowed, -change, -jnp.inf), counted)
        values = jax.vmap(lambda swap: cost(swapped(order, swap)))(likely)
        values = jnp.where(allowed[likely], values, jnp.inf)
        best = jnp.argmin(values)
        better = values[best] < value - 1e-4
        return jnp.where(better, swapped(order, likely[best]), order), jnp.where(better, values[best], value), better

    def descend(order: Int[Array, " tiles"]) -> tuple:
        order, _, _ = jax.lax.while_loop(lambda s: s[2], improve, (order, cost(order), jnp.asarray(True)))
        return order, length(order), conflicts(order)

    return jax.lax.map(descend, begun, batch_size=8)
