"""A network on measured kernels: the time over that at the peak of the chip, on shapes that it has not seen.

    log(time / (FLOP / peak)) = mean over members of softplus(network(features))

A few networks of one form that start differently learn the rows of one chip in a file of products or attention cores,
as `watos_jax.validate.kernels` reads them. Features: logarithms of sizes and of the roofline's terms; how far tiles of
a few usual sizes overfill the shape and the last wave of multiprocessors; layout, accumulation, precisions, kernel and
pass as they stand in the file. Rows that agree in all of these are repeats: they are averaged, and how far they lie
from their mean is the floor of any error.

All passes of attention are compared by their rate in the convention of their source: what a convention counts is a
constant factor of the measured time and of the ideal one.

Neglects: clocks under a power limit and what ran before, which the files do not tell.
"""

from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from watos_jax.hardware import System
from watos_jax.measured import CHIPS, Skip, rows_of
from watos_jax.operators import predictor
from watos_jax.validate.errors import constant_per_group, summary
from watos_jax.validate.kernels import KINDS, Kernel
from watos_jax.workload import Attention

TEXTS: Final = ("kind", "dtype", "layout", "accumulate", "out_dtype", "kernel", "causal", "pass_")
"""Columns that enter as they stand, one feature for each text."""
TILES: Final = ((128, 128), (128, 256), (256, 128), (256, 256))
"""Rows and columns of the tiles that libraries of products compute a multiprocessor's share in (NVIDIA, Matrix
Multiplication Background User's Guide, section 3); the rows also of attention's blocks of queries."""
FOLDS: Final = 5
"""Parts that shapes are dealt into."""
MEMBERS: Final = 8
"""Networks whose logarithms are averaged."""
HIDDEN: Final = 32
"""Width of both hidden layers."""
STEPS: Final = 1000
"""Steps of the optimizer, each on all rows."""
DECAY: Final = 1.0
"""Decay of the weights (Loshchilov & Hutter, arXiv 1711.05101), for there are more weights than rows."""


class Rows(NamedTuple):
    """Kernels of one chip, repeats averaged.

    Attributes:
        features: inputs, shape (kernels, features).
        ideal: s at the peak of the chip, shape (kernels,).
        measured: s, shape (kernels,).
        shapes: label of each; kernels of one label are left out together: equal sizes in any order.
        groups: label of each for the report.
        repeats: |time / mean of the repeats - 1| of every row that has repeats.
        skipped: rows not used, by reason.
    """

    features: Float[np.ndarray, "kernels features"]
    ideal: Float[np.ndarray, " kernels"]
    measured: Float[np.ndarray, " kernels"]
    shapes: list[tuple[float, ...]]
    groups: list[str]
    repeats: Float[np.ndarray, " rows"]
    skipped: dict[str, int]


def cross_validate(path: str | Path, chip: str, *, seed: int = 0) -> dict[str, Any]:
    """Errors of the network on shapes left out of its training.

    Args:
        path: a CSV file of products or of attention cores.
        chip: what stands in the column `chip`, in any case; its first word must be a chip of `measured.CHIPS`.
        seed: deals shapes into folds and starts the networks.

    Returns:
        `kernels` used and their `shapes`; `median_ape, p95_ape, mape, max_ape, bias` of all and in `groups`, where
        `naive_median_ape` is that of one utilisation per group fitted to the very rows; `repeats` with their number and
        median distance from their mean; `skipped` rows by reason.

    Raises:
        ValueError: the file cannot be read or is of no such kind, no row is of that chip, or there are too few.
    """
    rows = read(path, chip)
    names = sorted(set(rows.shapes))
    if len(names) < FOLDS:
        raise ValueError(f"{path} has {len(names)} shapes of {chip!r}: cross-validation needs at least {FOLDS}")
    dealt = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % FOLDS, strict=True))
    fold = np.array([dealt[shape] for shape in rows.shapes])
    target = np.log(rows.measured / rows.ideal)
    used = (np.arange(FOLDS)[:, None] != fold[None]).astype(np.float32)
    every = np.asarray(_trained(rows.features.astype(np.float32), target.astype(np.float32), used, seed), float)
    found = rows.ideal * np.exp(every[fold, np.arange(len(fold))])
    naive = constant_per_group(rows.ideal.tolist(), rows.measured.tolist(), rows.groups)

    def of(mine: np.ndarray) -> dict[str, Any]:
        off = np.abs(found[mine] / rows.measured[mine] - 1.0)
        return {
            "kernels": int(mine.sum()),
            "p95_ape": float(np.quantile(off, 0.95)),
            "naive_median_ape": summary(naive[mine], rows.measured[mine])["median_ape"],
        } | summary(found[mine], rows.measured[mine])

    labels = np.array(rows.groups)
    return {
        "chip": chip,
        "shapes": len(names),
        "repeats": {"rows": len(rows.repeats), "median": float(np.median(rows.repeats)) if len(rows.repeats) else None},
        **of(np.ones(len(fold), bool)),
        "groups": {name: of(labels == name) for name in sorted(set(rows.groups))},
        "skipped": rows.skipped,
    }


def read(path: str | Path, chip: str) -> Rows:
    """Rows of one chip.

    Args:
        path: see `cross_validate`.
        chip: see `cross_validate`.
    """
    table = rows_of(path)
    kind = next((one for one in KINDS[:2] if table and one.columns <= set(table[0])), None)
    if kind is None:
        raise ValueError(f"{path} has no columns of products or attention cores: see `watos validate kernels --help`")
    mine = [row for row in table if chip.lower() == row["chip"].lower()]
    if not mine or _family(mine[0]["chip"]) not in CHIPS:
        known = ", ".join(sorted({row["chip"] for row in table if _family(row["chip"]) in CHIPS}))
        raise ValueError(f"--chip is {chip!r}: it must be one of {known}")
    system = CHIPS[_family(mine[0]["chip"])]
    skipped, kernels = Counter[str](), defaultdict[tuple, list[Kernel]](list)
    for row in mine:
        try:
            one = kind.read({**row, "pass_": "fwd"}, system)
        except Skip as reason:
            skipped[str(reason)] += 1
        else:
            sizes = tuple(float(leaf) for leaf in jax.tree.leaves(one.arguments))
            kernels[sizes, tuple(row.get(name) or "" for name in TEXTS)].append(one)
    if not kernels:
        raise ValueError(f"{path} has no row of {chip!r} that can be used: {dict(skipped)}")
    first = [group[0] for group in kernels.values()]
    times = [np.array([one.measured for one in group]) for group in kernels.values()]
    means = np.array([np.exp(np.mean(np.log(group))) for group in times])
    arguments = jax.tree.map(lambda *leaves: np.array(leaves, float), *(one.arguments for one in first))
    texts = [key for _, key in kernels]
    logs = _products(system, arguments[1]) if kind is KINDS[0] else _attention(system, arguments[1])
    far = [np.abs(group / mean - 1.0) for group, mean in zip(times, means, strict=True) if len(group) > 1]
    return Rows(
        features=np.concatenate([logs, _indicators(np.array(texts))], axis=1),
        ideal=np.array([one.ideal for one in first]),
        measured=means,
        shapes=[tuple(sorted(one.shape)) for one in first],
        groups=[" ".join(filter(None, (one.group, key[-1]))) for one, key in zip(first, texts, strict=True)],
        repeats=np.concatenate([np.zeros(0), *far]),
        skipped=dict(skipped),
    )


def _family(chip: str) -> str:
    return (chip.replace("-", " ").split() or [""])[0]


def _products(system: System, sizes: tuple[np.ndarray, ...]) -> Float[np.ndarray, "kernels features"]:
    m, n, k, count = sizes
    flop_time = 2.0 * m * n * k * count / float(system.die.flop_rate)
    moved = count * (m * k + k * n + m * n) / float(system.die.memory.bandwidth)
    terms = [m, n, k, count, flop_time, moved / flop_time]
    for rows, cols in TILES:
        high, wide = np.ceil(m / rows), np.ceil(n / cols)
        terms += [high * rows / m * wide * cols / n, _last_wave(system, high * wide * count)]
    return np.log(np.stack(terms, axis=1))


def _attention(system: System, core: Attention) -> Float[np.ndarray, "kernels features"]:
    units = core.key_tokens / core.sequence * core.heads
    macs = core.queries * core.keys * core.heads * (core.head_dim + core.value_dim)
    terms = [units, core.sequence, core.heads / core.kv_heads, core.head_dim, core.value_dim]
    terms += [macs / float(system.die.flop_rate), _last_wave(system, units)]
    terms.append(_last_wave(system, units * np.ceil(core.sequence / TILES[0][0])))
    return np.log(np.stack(terms, axis=1))


def _last_wave(system: System, tiles: np.ndarray) -> np.ndarray:
    # multiprocessors that are waited for, over those that work
    cores = round(float(system.die.num_cores))
    return np.ceil(tiles / cores) * cores / tiles


def _indicators(texts: np.ndarray) -> Float[np.ndarray, "kernels features"]:
    return np.concatenate([column[:, None] == np.unique(column)[None] for column in texts.T], axis=1).astype(float)


@partial(jax.jit, static_argnames="seed")
def _trained(features: Array, target: Array, used: Array, seed: int) -> Float[Array, "folds kernels"]:
    # logarithms that networks trained on the rows used by each fold give to all rows, averaged over members
    spread = jnp.std(features, axis=0, keepdims=True)
    inputs = (features - jnp.mean(features, axis=0, keepdims=True)) / jnp.where(spread > 0, spread, 1.0)
    network = predictor.Network(hidden=HIDDEN, outputs=1)
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(STEPS, 1e-2, 0.2, 25.0, 1e3), weight_decay=DECAY)

    def logs(parameters: Any) -> Array:
        return jnp.asarray(network.apply(parameters, inputs))[:, 0]

    def member(key: Array, weights: Array) -> Array:
        def loss(parameters: Any) -> Array:
            return jnp.sum(weights * jnp.abs(logs(parameters) - target)) / jnp.sum(weights)

        def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            parameters, state = carry
            updates, state = optimizer.update(jax.grad(loss)(parameters), state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        parameters = network.init(key, inputs[:1])
        (parameters, _), _ = jax.lax.scan(step, (parameters, optimizer.init(parameters)), None, STEPS)
        return logs(parameters)

    keys = jax.random.split(jax.random.key(seed), MEMBERS)
    return jax.vmap(lambda weights: jnp.mean(jax.vmap(lambda key: member(key, weights))(keys), axis=0))(used)
