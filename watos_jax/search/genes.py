"""Designs as rows of integers, for searchers that know nothing of wafers.

Genes are the die grid and its memory edges, the degrees of parallelism, the other choices of a strategy (each as the
rank of its value among those that occur), and the index of every knob on the budget's lattice. Most combinations of
the first three are no candidate, so a design is repaired level by level: the nearest grid, on it the nearest degrees,
with them the nearest other choices, by the sum of |difference of ranks| / (values - 1).
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from watos_jax.batch import map_chunks, placed
from watos_jax.hardware import Knobs, Wafer
from watos_jax.search import lattice
from watos_jax.search.candidates import Candidates, take
from watos_jax.search.descend import Candidate, Point, Score, Shared, score
from watos_jax.strategy import Strategy

GRID: Final = ("die_rows", "die_cols", "horizontal_sides", "vertical_sides")
DEGREES: Final = (
    "tensor_rows",
    "tensor_cols",
    "pipeline_parallel",
    "data_parallel",
    "context_parallel",
    "expert_parallel",
    "tensor_collective",
)
OTHERS: Final = tuple(name for name in Strategy.__dataclass_fields__ if name not in DEGREES)
REPAIRED: Final = (64, 1024)
"""Designs repaired at once: the smallest that takes them."""
BLOCKS: Final = ((64, 1), (512, 1), (2048, 4))
"""Chunk and chunks per call that batches are evaluated in: the smallest that takes a batch in one call."""

Genes = Int[np.ndarray, "_ genes"]


class Level(NamedTuple):
    """One level of the tree of candidates: nodes, and which of them belong to each node of the level above.

    Attributes:
        genes: ranks of each node, shape (nodes, genes).
        first: first node of each parent, shape (parents,).
        number: nodes of each parent, shape (parents,).
        window: 0, 1, ... to the most nodes of a parent.
        scale: weight of one rank of each gene in a distance, shape (genes,).
    """

    genes: Int[Array, "nodes genes"]
    first: Int[Array, " parents"]
    number: Int[Array, " parents"]
    window: Int[Array, " window"]
    scale: Float[Array, " genes"]


def nearest(tree: tuple[Level, ...], wanted: Int[Array, " genes"]) -> Int[Array, ""]:
    """Row of the candidate nearest to a design; of equally near ones the first.

    Args:
        tree: levels of candidates.
        wanted: ranks, of any combination.
    """
    node, start = jnp.zeros((), int), 0
    for level in tree:
        asked = wanted[start : start + level.genes.shape[1]]
        at = level.first[node] + level.window % level.number[node]
        apart = jnp.abs(level.genes[at] - asked[None]) @ level.scale
        node, start = at[jnp.argmin(apart)], start + level.genes.shape[1]
    return node


def _score_of(shared: tuple[Shared, Candidate], point: tuple[Int[Array, ""], Float[Array, " knobs"]]) -> Score:
    (own, every), (row, knobs) = shared, point
    return score(own, Point(jax.tree.map(lambda leaf: leaf[row], every), knobs))


@jax.jit
def _all_nearest(tree: tuple[Level, ...], wanted: Int[Array, "designs genes"]) -> Int[Array, " designs"]:
    return jax.vmap(nearest, in_axes=(None, 0))(tree, wanted)


class GeneSpace:
    """All designs of a search: candidates x lattice points.

    Attributes:
        candidates: the candidates, ordered as the tree is.
        tree: their levels.
        names: gene by gene.
        values: what each rank of a gene stands for; of knobs their values.
        sizes: ranks of each gene, shape (genes,).
    """

    def __init__(self, candidates: Candidates):
        self._budget = candidates.shared.budget
        columns = _columns(candidates.every.candidate)
        kept = [[name for name in level if np.ptp(columns[name])] for level in (GRID, DEGREES, OTHERS)]
        # a level with no choice keeps its first gene
        names = [names or [level[0]] for names, level in zip(kept, (GRID, DEGREES, OTHERS), strict=True)]
        choices = [*names[0], *names[1], *names[2]]
        values, ranks = {}, {}
        for name in choices:
            values[name], ranks[name] = np.unique(columns[name], return_inverse=True)
        keys = [_key([ranks[name] for name in level], [len(values[name]) for name in level]) for level in names]
        spans = [int(np.prod([float(len(values[name])) for name in level])) for level in names]
        key = (keys[0] * spans[1] + keys[1]) * spans[2] + keys[2]
        order = np.argsort(key, kind="stable")
        self._key, self._num_choices = key[order], len(choices)
        self.candidates = Candidates(
            shared=candidates.shared,
            every=take(candidates.every, order),
            group=candidates.group[order],
            guesses=candidates.guesses,
            pruned=candidates.pruned,
        )
        self.tree = _tree(key[order], spans, [np.stack([ranks[n][order] for n in level], axis=1) for level in names])
        for number, name in enumerate(lattice.NAMES):
            values[name] = self._axis(number)
        self.names = (*choices, *lattice.NAMES)
        self.values = tuple(values[name] for name in self.names)
        self.sizes = np.array([len(one) for one in self.values])
        self._placed = placed((candidates.shared, self.candidates.every.candidate))
        self._starts = np.unique(self.candidates.group, return_index=True)[1]
        self._ranks = np.stack([ranks[name][order] for name in choices], axis=1)

    @property
    def num_designs(self) -> float:
        """Candidates x lattice points."""
        return len(self.candidates) * float(np.prod(self.sizes[-len(lattice.NAMES) :].astype(float)))

    def repaired(self, wanted: Genes) -> tuple[Int[np.ndarray, " designs"], Genes]:
        """Row of the nearest candidate of each design, and its genes; ranks out of range are taken as the ends."""
        inside = np.clip(wanted, 0, self.sizes - 1)
        ranks = [inside[:, number] for number in range(self._num_choices)]
        key = _key(ranks, self.sizes[: self._num_choices].tolist())
        rows = np.minimum(np.searchsorted(self._key, key), len(self._key) - 1)
        missing = np.flatnonzero(self._key[rows] != key)
        for start in range(0, len(missing), REPAIRED[-1]):
            some = missing[start : start + REPAIRED[-1]]
            padded = np.resize(some, next(size for size in REPAIRED if len(some) <= size))
            rows[some] = np.asarray(_all_nearest(self.tree, inside[padded]))[: len(some)]
        return rows, self.designs(rows, inside[:, -len(lattice.NAMES) :])

    def knobs(self, genes: Genes) -> Float[np.ndarray, "designs knobs"]:
        """Knobs of designs."""
        return lattice.values_at(self._budget, genes[:, -len(lattice.NAMES) :])

    def points(self, designs: Genes) -> Point:
        """What designs, repaired, stand for."""
        rows, genes = self.repaired(designs)
        return take(self.candidates.every, rows)._replace(knobs=self.knobs(genes))

    def scores(self, rows: Int[np.ndarray, " points"], knobs: Float[np.ndarray, "points knobs"]) -> Score:
        """Scores by the hard model of candidates with any knobs, on the lattice or not."""
        devices = len(jax.local_devices())
        chunk, calls = next((block for block in BLOCKS if len(rows) <= devices * block[0] * block[1]), BLOCKS[-1])
        points = (rows.astype(np.int32), knobs)
        return map_chunks(_score_of, self._placed, points, chunk=chunk, chunks_per_call=calls)

    def build(self, point: Point) -> tuple[Wafer, Strategy]:
        """The wafer and the strategy of one design, a row of points, as `estimate` takes them."""
        candidate, knobs = jax.tree.map(lambda leaf: float(leaf[0]), (point.candidate, lattice.from_array(point.knobs)))
        sides = (candidate.horizontal_sides, candidate.vertical_sides)
        return self._budget.build(knobs, candidate.die_rows, candidate.die_cols, sides), candidate.strategy

    def designs(self, rows: Int[np.ndarray, " designs"], index: lattice.Index) -> Genes:
        """Genes of candidates with indices into the lattice."""
        return np.concatenate([self._ranks[rows], index], axis=1)

    def genes_of(self, wafer: Wafer, strategy: Strategy, knobs: Knobs) -> Int[np.ndarray, " genes"]:
        """Genes of the design nearest to a given one."""
        memory = wafer.die.memory
        sides = float(memory.horizontal_sides), float(memory.vertical_sides)
        given = Candidate(float(wafer.die_rows), float(wafer.die_cols), *sides, strategy, np.array(0))
        columns = {name: float(value) for name, value in _columns(given).items()}
        columns |= {name: float(getattr(knobs, name)) for name in lattice.NAMES}
        pairs = zip(self.names, self.values, strict=True)
        return np.array([int(np.abs(values - columns[name]).argmin()) for name, values in pairs])

    def draw(self, random: np.random.Generator, count: int) -> Genes:
        """Designs drawn uniformly from all."""
        rows = random.integers(0, len(self.candidates), count)
        index = random.integers(0, self.sizes[-len(lattice.NAMES) :], (count, len(lattice.NAMES)))
        return self.designs(rows, index)

    def starts(self, random: np.random.Generator, count: int) -> Genes:
        """Designs of a grid and a strategy drawn uniformly, each with one of the grid's first guesses of the knobs."""
        # candidates of a grid are neighbours in the tree
        ends = np.append(np.sort(self._starts), len(self.candidates))
        taken = random.integers(0, len(self._starts), count)
        rows = random.integers(ends[taken], ends[taken + 1])
        guesses = [self.candidates.guesses[group] for group in self.candidates.group[rows]]
        knobs = np.stack([some[random.integers(0, len(some))] for some in guesses])
        return self.designs(rows, lattice.nearest(self._budget, knobs))

    def _axis(self, number: int) -> np.ndarray:
        index = np.zeros((lattice.counts(self._budget)[number], len(lattice.NAMES)), int)
        index[:, number] = np.arange(len(index))
        return lattice.values_at(self._budget, index)[:, number]


def _columns(candidate: Candidate) -> dict[str, np.ndarray]:
    # every discrete choice by name
    grid = {name: np.asarray(getattr(candidate, name)) for name in GRID}
    return grid | {name: np.asarray(getattr(candidate.strategy, name)) for name in (*DEGREES, *OTHERS)}


def _key(ranks: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    # one number per row, in the order of the ranks
    key = np.zeros(len(ranks[0]), np.int64)
    for column, size in zip(ranks, sizes, strict=True):
        key = key * size + column
    return key


def _tree(key: np.ndarray, spans: Sequence[int], ranks: Sequence[np.ndarray]) -> tuple[Level, ...]:
    # sorted keys of all candidates; the span of keys below each level; ranks of each level's genes
    levels, parents = [], np.zeros(1, int)
    for depth, columns in enumerate(ranks):
        below = int(np.prod([float(span) for span in spans[depth + 1 :]]))
        starts = np.unique(key // below, return_index=True)[1]
        first = np.searchsorted(starts, parents)
        number = np.diff(np.append(first, len(starts)))
        scale = 1.0 / np.maximum(columns.max(axis=0), 1)
        levels.append(Level(*map(jnp.asarray, (columns[starts], first, number, np.arange(number.max()), scale))))
        parents = starts
    return tuple(levels)
