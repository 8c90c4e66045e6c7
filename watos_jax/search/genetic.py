"""A genetic algorithm over designs: a baseline for other searches, and a refiner of designs that are given.

WATOS (arXiv 2512.12279) refines its schedules with a genetic algorithm of five operators and a factor omega between
diversity (0) and fitness (1). What is known of it is used, the rest is ours:

* theirs: the recomputation configuration of a parent is drawn anew; omega weighs fitness in the choice of parents.
* after theirs: pairs of stages exchange places, and pairs of stages share memory. Stages keep to the serpentine here
  and each has its own memory, so instead tensor rows and columns are exchanged, and pairs of knobs trade: one goes up,
  the other down.
* ours: uniform crossover; steps of a few genes, short ones more likely than long; another grid with the dies scaled so
  that the wafer stays as full; the parents compete with the children (elitism), each design once; a population that
  stalls is drawn anew. Fitness is the objective by the hard model, not the slowest stage x a global cost.

The operators are JAX, vectorised over the population; fitness is the hard model, vectorised likewise. The same seed
gives the same designs in the same order.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from watos_jax.search.genes import Genes, GeneSpace, Level, nearest
from watos_jax.search.lattice import NAMES, to_array
from watos_jax.search.run import Run
from watos_jax.units import Scalar

Row = Int[Array, " genes"]


@dataclass(frozen=True)
class Settings:
    """How the population is bred.

    Attributes:
        population: designs kept, and children per generation.
        omega: how often the better of two parents is taken rather than either: 0 never, 1 always.
        crossover: share of children with two parents.
        patience: generations without a better design after which the population is drawn anew.
    """

    population: int = 512
    omega: float = 0.5
    crossover: float = 0.5
    patience: int = 60

    def __post_init__(self) -> None:
        for name in ("omega", "crossover"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name):g}: it must be from 0 to 1")
        for name, least in (("population", 2), ("patience", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")


class _Space(NamedTuple):
    # what operators know of the genes: sizes, the tree for repairs, lattice of the knobs, dies of each rank of a grid
    sizes: Int[Array, " genes"]
    tree: tuple[Level, ...]
    low: Float[Array, " knobs"]
    step: Float[Array, " knobs"]
    dies: dict[str, Float[Array, " ranks"]]


def genetic(run: Run, seed: int, *, start: Genes | None = None, settings: Settings = Settings()) -> None:
    """Search until the run is over; `run.trace` has what was found.

    Args:
        run: the space and the limits.
        seed: of all that is drawn.
        start: designs that the first population holds, shape (n, genes); the rest of it are their children. Without
            them it is drawn from `GeneSpace.starts`.
        settings: how the population is bred.
    """
    random, key = np.random.default_rng(seed), jax.random.key(seed)
    space, size = _described(run.space), settings.population
    breed = partial(_children, run.space.names, space, count=size)
    while not run.is_over():
        if start is None:
            genes = run.space.starts(random, size)
            merits = run.merits(genes)
        else:
            genes = run.space.repaired(start)[1][:size]
            merits, start = run.merits(genes), None
        best, stalled = merits.min(), 0
        while stalled < settings.patience and not run.is_over():
            key, once = jax.random.split(key)
            drawn = np.resize(np.arange(len(genes)), size)
            rates = settings.omega, settings.crossover
            children = np.asarray(breed(once, jnp.asarray(genes[drawn]), jnp.asarray(merits[drawn]), *rates))
            genes, merits = _survivors(
                np.concatenate([genes, children]), np.concatenate([merits, run.merits(children)]), size
            )
            stalled = 0 if merits[0] < best else stalled + 1
            best = merits[0]


def _survivors(genes: Genes, merits: np.ndarray, size: int) -> tuple[Genes, np.ndarray]:
    # the best designs, each once, best first
    _, first = np.unique(genes, axis=0, return_index=True)
    kept = np.sort(first)
    kept = kept[np.argsort(merits[kept], kind="stable")[:size]]
    return genes[kept], merits[kept]


def _described(space: GeneSpace) -> _Space:
    budget = space.candidates.shared.budget
    pairs = zip(space.names, space.values, strict=True)
    dies = {name: jnp.asarray(values, float) for name, values in pairs if name in ("die_rows", "die_cols")}
    low, step = (jnp.asarray(to_array(side), float) for side in (budget.low, budget.step))
    return _Space(jnp.asarray(space.sizes), space.tree, low, step, dies)


@partial(jax.jit, static_argnames=("names", "count"))
def _children(
    names: tuple[str, ...],
    space: _Space,
    key: PRNGKeyArray,
    genes: Int[Array, "population genes"],
    merits: Float[Array, " population"],
    omega: Scalar,
    crossover: Scalar,
    *,
    count: int,
) -> Int[Array, "children genes"]:
    return jax.vmap(lambda one: _child(names, space, one, genes, merits, omega, crossover))(
        jax.random.split(key, count)
    )


def _child(names, space, key, genes, merits, omega, crossover):  # type: ignore[no-untyped-def]
    mother, father, mix, which, act = jax.random.split(key, 5)
    first, second = (_parent(k, genes, merits, omega) for k in (mother, father))
    crossed, mask = jax.random.split(mix)
    taken = jax.random.bernoulli(crossed, crossover) & jax.random.bernoulli(mask, 0.5, first.shape)
    base = jnp.where(taken, second, first)
    made = jnp.stack([operator(names, space, act, base) for operator in _SHARES])
    shares = jnp.array(list(_SHARES.values()))
    child = jnp.clip(made[jax.random.choice(which, len(shares), p=shares)], 0, space.sizes - 1)
    row = nearest(space.tree, child)
    # the tree's own ranks: what the repair made of the choice
    return jnp.concatenate([_ranks(space.tree, row), child[-len(NAMES) :]])


def _ranks(tree: tuple[Level, ...], row: Int[Array, ""]) -> Row:
    # genes of a candidate, from the last level up
    found: list[Array] = []
    node = row
    for level in reversed(tree):
        found.insert(0, level.genes[node])
        node = jnp.searchsorted(level.first, node, side="right") - 1
    return jnp.concatenate(found)


def _parent(key, genes, merits, omega):  # type: ignore[no-untyped-def]
    # the better of two with the probability omega, else the first
    pick, greedy = jax.random.split(key)
    one, other = jax.random.randint(pick, (2,), 0, len(genes))
    better = jnp.where(merits[one] <= merits[other], one, other)
    return genes[jnp.where(jax.random.bernoulli(greedy, omega), better, one)]


def _recompute(names, space, key, base):  # type: ignore[no-untyped-def]
    # WATOS: another recomputation configuration
    if "recompute" not in names:
        return _step(names, space, key, base)
    at = names.index("recompute")
    return base.at[at].set(jax.random.randint(key, (), 0, space.sizes[at]))


def _exchange(names, space, key, base):  # type: ignore[no-untyped-def]
    # rows and columns of the tensor group change places
    if "tensor_rows" not in names or "tensor_cols" not in names:
        return _step(names, space, key, base)
    rows, cols = names.index("tensor_rows"), names.index("tensor_cols")
    return base.at[rows].set(base[cols]).at[cols].set(base[rows])


def _trade(names, space, key, base):  # type: ignore[no-untyped-def]
    # one knob up, another down
    pick, length = jax.random.split(key)
    up, down = len(names) - len(NAMES) + jax.random.choice(pick, len(NAMES), (2,), replace=False)
    steps = _lengths(length, space.sizes)
    return base.at[up].add(steps[up]).at[down].add(-steps[down])


def _step(names, space, key, base):  # type: ignore[no-untyped-def]
    # a few genes, one at least, up or down
    pick, some, sign, length = jax.random.split(key, 4)
    least = jnp.arange(len(base)) == jax.random.randint(pick, (), 0, len(base))
    moved = least | jax.random.bernoulli(some, 1.0 / len(base), base.shape)
    steps = _lengths(length, space.sizes) * jax.random.rademacher(sign, base.shape, dtype=base.dtype)
    return jnp.where(moved, base + steps, base)


def _regrid(names, space, key, base):  # type: ignore[no-untyped-def]
    # one row or column of dies more or less, and dies as much lower or narrower
    pick, sign = jax.random.split(key)
    of_rows = jax.random.bernoulli(pick)
    move = jax.random.rademacher(sign, (), dtype=base.dtype)
    for chosen, die, side in ((of_rows, "die_rows", "die_height"), (~of_rows, "die_cols", "die_width")):
        if die not in names:
            continue
        at, knob, values = names.index(die), NAMES.index(side), space.dies[die]
        after = jnp.clip(base[at] + jnp.where(chosen, move, 0), 0, len(values) - 1)
        size = space.low[knob] + base[len(names) - len(NAMES) + knob] * space.step[knob]
        index = jnp.floor((size * values[base[at]] / values[after] - space.low[knob]) / space.step[knob] + 1e-3)
        number = len(names) - len(NAMES) + knob
        base = base.at[number].set(jnp.where(after == base[at], base[number], index.astype(base.dtype)))
        base = base.at[at].set(after)
    return base


def _lengths(key, sizes):  # type: ignore[no-untyped-def]
    # of steps: any power of the number of ranks is as likely as any other
    return jnp.floor(sizes ** jax.random.uniform(key, sizes.shape)).astype(sizes.dtype)


_SHARES = {_recompute: 0.15, _exchange: 0.1, _trade: 0.15, _step: 0.45, _regrid: 0.15}
# of children that each operator makes
