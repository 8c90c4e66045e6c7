"""Train the operator predictor: samples of the preset space, labels of the mapper, a fit by gradient, a manifest.

    python -m watos_jax.learn --out FOLDER

writes `products.npz`, `attention.npz` and `manifest.json`, the files that `watos_jax.operators` ships. A run is
deterministic: one seed decides samples, start and order. Half of the operators are those of preset models under random
strategies, half are log-uniform in size; dies are those of budgets and wafers, with random cores, memories and ports.
A tenth of the samples, drawn last, is held out: the errors of the manifest are of them alone.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from watos_jax.batch import map_chunks
from watos_jax.hardware import Core, Die, Efficiency, Memory
from watos_jax.operators import predictor
from watos_jax.operators.features import (
    ATTENTION_BOX,
    PRODUCT_BOX,
    attention_box,
    attention_features,
    product_box,
    product_features,
)
from watos_jax.operators.fidelity import attention_ratios, product_ratios
from watos_jax.operators.mapper import BANDS
from watos_jax.operators.mapping import Ratios
from watos_jax.operators.roofline import attention_cost, matmul_cost
from watos_jax.presets import models
from watos_jax.relax import HARD
from watos_jax.strategy import Strategy
from watos_jax.units import GIGA, KIB, Scalar
from watos_jax.workload import Attention, Matmuls, attention, matmuls

Rows = Float[np.ndarray, "samples columns"]
Generator = np.random.Generator

PRODUCTS: Final = 90_000
"""Samples of single products, with their two gradients."""
MANY: Final = 9_000
"""Samples of products that come in numbers."""
CORES: Final = 30_000
"""Samples of attention cores."""
HELD_OUT: Final = 0.1
"""Share of the samples that no training sees."""
STEPS: Final = 30_000
"""Steps of the optimizer."""
BATCH: Final = 1024
"""Samples per step."""
MONOTONE_BATCH: Final = 64
"""Samples per step whose slopes in the resources are penalised where they are positive."""
MONOTONE_WEIGHT: Final = 1.0
"""Weight of that penalty beside the mean error of the logarithms."""
DIE_COLUMNS: Final = "core_rows core_cols num_macs sram_bytes sram_bytes_per_clock noc_bytes_per_clock dram".split()
"""A sampled die: `dram` is bytes per cycle, at a clock of 1 GHz; only ratios to the clock matter."""


class Samples(NamedTuple):
    """Operators on dies.

    Attributes:
        dies: columns of `DIE_COLUMNS`.
        sizes: sizes of the operators: of `Matmuls` and bytes of a gradient element, or of `Attention`.
    """

    dies: Any
    sizes: Any


def sample_dies(rng: Generator, count: int) -> Rows:
    """Dies of the presets' kind: 4 to 24 cores along a side, 8 x 8 to 90 x 90 MACs, 256 KiB to 4 MiB, HBM or less."""
    sides = rng.integers(4, 25, (2, count)).astype(float)
    known = rng.choice([256.0, 512.0, 546.3, 1024.0, 7031.25], count)
    macs = np.where(rng.random(count) < 0.5, known, np.round(_spread(rng, 8, 90, count)) ** 2)
    port = np.where(
        rng.random(count) < 0.5,
        335.0 * np.maximum(macs / 512.0, 1.0) ** rng.choice([0.0, 0.5, 1.0], count),
        4.0 * np.sqrt(macs) * _spread(rng, 0.7, 30, count),
    )
    sram = np.where(rng.random(count) < 0.4, 1280.0 * KIB, rng.integers(4, 65, count) * 64.0 * KIB)
    link = np.where(rng.random(count) < 0.5, 64.0, _spread(rng, 32, 256, count))
    return np.stack([*sides, macs, sram, port, link, _spread(rng, 48, 10_000, count)], axis=1)


def sample_products(rng: Generator, count: int, *, many: bool) -> Samples:
    """Products of preset models and of random sizes, one of each or many."""
    taken: list[np.ndarray] = []
    while sum(map(len, taken)) < count // 2:
        shapes = jax.jit(matmuls)(*_model_and_strategy(rng))
        rows = np.stack([np.asarray(leaf, float) for leaf in (shapes.rows, shapes.cols, shapes.depth, shapes.count)], 1)
        taken.append(np.ceil(rows[(rows > 0).all(axis=1) & ((rows[:, 3] > 1) == many)]))
    known = np.concatenate(taken)[: count // 2]
    rest = count - len(known)
    sides = [_round(rng, _spread(rng, low, high, rest)) for low, high in ((64, 2**17), (8, 2**18), (64, 2**17))]
    numbers = np.round(_spread(rng, 1.5, 256, rest)) if many else np.ones(rest)
    sizes = np.concatenate([known, np.stack([*sides, numbers], 1)])
    sizes = np.concatenate([sizes, rng.choice([2.0, 4.0], (count, 1))], axis=1)
    return Samples(sample_dies(rng, count), rng.permutation(sizes))


def sample_attention(rng: Generator, count: int) -> Samples:
    """Attention cores of preset models and of random sizes."""
    known = []
    for _ in range(count // 2):
        shape = jax.jit(attention)(*_model_and_strategy(rng))
        known.append([float(leaf) for leaf in jax.tree.leaves(shape)])
    rest = count - len(known)
    sequence = _round(rng, _spread(rng, 256, 2**17, rest))
    parts = np.minimum(rng.choice([1, 1, 2, 4, 8], rest), sequence // 64)
    batch, dim = rng.choice([1, 1, 2, 4, 8], rest), rng.choice([64, 80, 96, 128, 192, 256], rest)
    kv_heads, group = np.round(_spread(rng, 0.6, 64, rest)), rng.choice([1, 1, 2, 4, 8], rest)
    materialised = (rng.random(rest) < 0.2).astype(float)
    keys = np.where(materialised > 0, sequence, sequence * rng.choice([0.5, 0.5, 0.25, 0.05], rest))
    queries = np.ceil(batch * sequence / parts)
    value = np.where(rng.random(rest) < 0.2, 128, dim)
    columns = (queries, keys, batch * sequence, group * kv_heads, kv_heads, dim, value, sequence, materialised)
    sizes = np.concatenate([np.array(known), np.stack(columns, 1)])
    return Samples(sample_dies(rng, count), rng.permutation(sizes))


def _model_and_strategy(rng: Generator) -> tuple[Any, Strategy]:
    model = models.NAMES[rng.choice(list(models.NAMES))]
    experts = rng.choice([1, 2, 4, 8]) if float(model.num_experts) else 1
    strategy = Strategy(
        tensor_cols=float(rng.choice([1, 2, 4, 8, 16, 32])),
        context_parallel=float(rng.choice([1, 1, 1, 2, 4])),
        expert_parallel=float(experts),
        micro_batch_size=float(rng.choice([1, 1, 2, 4, 8])),
        global_batch_size=1024.0,
        flash_attention=float(rng.random() < 0.9),
    )
    return jax.tree.map(float, (model, strategy))


def _spread(rng: Generator, low: float | int, high: float | int, count: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high), count))


def _round(rng: Generator, sizes: np.ndarray) -> np.ndarray:
    step = rng.choice([1, 16, 64, 128], len(sizes))
    return np.maximum(np.round(sizes / step) * step, step)


def die_of(columns: Any) -> Die:
    """The die of one row of `DIE_COLUMNS`."""
    rows, cols, macs, sram, port, link, dram = columns
    core = Core(macs, jnp.asarray(GIGA), sram, port, link)
    one = jnp.ones_like(dram)
    return Die(rows, cols, core, Memory(one, GIGA * one, GIGA * dram, one))


def shapes_of(columns: Any) -> tuple[Matmuls, Scalar]:
    """One product as a record of arrays of shape (1,), and its bytes per gradient element."""
    return Matmuls(*(column[None] for column in columns[:4])), columns[4]


def label_products(_: None, row: Samples) -> Ratios:
    """Ratios of the mapper for one product that comes alone."""
    shapes, gradient_bytes = shapes_of(row.sizes)
    return jax.tree.map(lambda leaf: leaf[0], product_ratios(die_of(row.dies), shapes, gradient_bytes, (1,)))


def label_many(_: None, row: Samples) -> Ratios:
    """Ratios of the mapper for one product that comes in numbers."""
    shapes, gradient_bytes = shapes_of(row.sizes)
    return jax.tree.map(lambda leaf: leaf[0], product_ratios(die_of(row.dies), shapes, gradient_bytes, BANDS))


def label_attention(_: None, row: Samples) -> Ratios:
    """Ratios of the mapper for one attention core."""
    return attention_ratios(die_of(row.dies), Attention(*row.sizes))


class Table(NamedTuple):
    """What a network is fitted to, one row per sample.

    Attributes:
        features: inputs.
        box: logarithms that state the range.
        targets: logarithms of the ratios, forward and backward time, forward and backward bytes.
        slopes: of the features in the logarithm of each column of `DIE_COLUMNS`, shape (samples, columns, features).
        roofline_slopes: of the roofline's forward and backward time, shape (samples, columns, 2).
    """

    features: Any
    box: Any
    targets: Any
    slopes: Any
    roofline_slopes: Any


def product_inputs(_: None, row: Samples) -> tuple[Array, ...]:
    """Features, box and slopes of one product."""

    def inputs(log_die: Array) -> tuple[tuple[Array, Array], Array]:
        die = die_of(jnp.exp(log_die))
        shapes, gradient_bytes = shapes_of(row.sizes)
        bound = matmul_cost(die, Efficiency(), shapes, gradient_bytes, HARD)
        times = jnp.log(jnp.stack([bound.forward[0], bound.backward[0]]))
        features = product_features(die, shapes, gradient_bytes, HARD)[0]
        return (features, times), product_box(die, shapes, gradient_bytes)[0]

    return _inputs(inputs, row)


def attention_inputs(_: None, row: Samples) -> tuple[Array, ...]:
    """Features, box and slopes of one attention core."""

    def inputs(log_die: Array) -> tuple[tuple[Array, Array], Array]:
        die, shape = die_of(jnp.exp(log_die)), Attention(*row.sizes)
        bound = attention_cost(die, Efficiency(), shape, HARD)
        times = jnp.log(jnp.stack([bound.forward, bound.backward]))
        return (attention_features(die, shape, HARD), times), attention_box(die, shape)

    return _inputs(inputs, row)


def _inputs(inputs: Callable, row: Samples) -> tuple[Array, ...]:
    at = jnp.log(row.dies)
    (features, _), box = inputs(at)
    (slopes, roofline_slopes), _ = jax.jacfwd(inputs, has_aux=True)(at)
    return features, box, slopes.T, roofline_slopes.T


def tabulate(samples: Samples, labels: Ratios, inputs: Callable) -> Table:
    """Inputs and targets of all samples."""
    features, box, slopes, roofline_slopes = map_chunks(inputs, None, samples, chunk=512, chunks_per_call=8)
    targets = np.log(np.stack(labels[:4], axis=1))
    return Table(*(np.asarray(a, np.float32) for a in (features, box, targets, slopes, roofline_slopes)))


def fit(table: Table, seed: int, steps: int = STEPS) -> predictor.Trained:
    """Fit a network to a table by Adam with one cycle of the learning rate (Smith & Topin, arXiv 1708.07120).

    The loss is the mean absolute error of the logarithms, which is the relative error of what they stand for, and
    the mean positive slope of the logarithm of predicted time in the logarithm of each resource.

    Args:
        table: samples to train on.
        seed: of start and order.
        steps: of the optimizer.
    """
    mean, scale = table.features.mean(axis=0), table.features.std(axis=0) + 1e-6
    features, targets = jnp.asarray((table.features - mean) / scale), jnp.asarray(table.targets)
    slopes, roofline_slopes = jnp.asarray(table.slopes / scale), jnp.asarray(table.roofline_slopes)
    start, order = jax.random.split(jax.random.key(seed))
    parameters = predictor.Network().init(start, features[:1])["params"]
    optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, 6e-3, 0.1, 25.0, 1e3))

    def loss(parameters: Any, batch: Array) -> Array:
        error = jnp.mean(jnp.abs(predictor.apply(parameters, features[batch]) - targets[batch]))
        some = batch[:MONOTONE_BATCH]

        def time(x: Array) -> Array:
            return predictor.apply(parameters, x)[..., :2]

        def slope(x: Array, along: Array) -> Array:
            return jax.vmap(lambda tangent: jax.jvp(time, (x,), (tangent,))[1])(along)

        total = jax.vmap(slope)(features[some], slopes[some]) + roofline_slopes[some]
        return error + MONOTONE_WEIGHT * jnp.mean(jax.nn.relu(total))

    @jax.jit
    def thousand(parameters: Any, state: Any, key: Array) -> tuple[Any, Any]:
        def step(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], None]:
            parameters, state = carry
            batch = jax.random.randint(key, (BATCH,), 0, len(targets))
            updates, state = optimizer.update(jax.grad(loss)(parameters, batch), state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        return jax.lax.scan(step, (parameters, state), jax.random.split(key, 1000))[0]

    state = optimizer.init(parameters)
    for key in jax.random.split(order, steps // 1000):
        parameters, state = thousand(parameters, state, key)
    arrays = jax.tree.map(np.asarray, parameters)
    return predictor.Trained(arrays, mean, scale, table.box.min(axis=0), table.box.max(axis=0))


def errors(trained: predictor.Trained, table: Table) -> dict[str, dict[str, float]]:
    """Relative errors on a table: median, 95th percentile and mean sign, of time and DRAM bytes, both directions."""
    found = jax.jit(predictor.apply)(trained.parameters, (table.features - trained.mean) / trained.scale)
    off = np.expm1(np.asarray(found) - table.targets)
    names = ("time forward", "time backward", "bytes forward", "bytes backward")
    return {
        name: {
            "median": float(np.median(np.abs(column))),
            "p95": float(np.quantile(np.abs(column), 0.95)),
            "bias": float(np.mean(column)),
            "roofline_median": float(np.median(-np.expm1(-target))),
            "roofline_p95": float(np.quantile(-np.expm1(-target), 0.95)),
        }
        for name, column, target in zip(names, off.T, table.targets.T, strict=True)
    }


class Subject(NamedTuple):
    """What one network learns: sets of samples with the function that labels each, and the function of its inputs."""

    sets: tuple[tuple[Callable, Callable, int], ...]
    inputs: Callable
    box: tuple[str, ...]


def _one(rng: Generator) -> Samples:
    return sample_products(rng, PRODUCTS, many=False)


def _many(rng: Generator) -> Samples:
    return sample_products(rng, MANY, many=True)


def _cores(rng: Generator) -> Samples:
    return sample_attention(rng, CORES)


SUBJECTS: Final = {
    "products": Subject(((_one, label_products, 8), (_many, label_many, 2)), product_inputs, PRODUCT_BOX),
    "attention": Subject(((_cores, label_attention, 4),), attention_inputs, ATTENTION_BOX),
}
"""The networks that `watos_jax.operators.predictor` loads, by name."""


def labelled(subject: str, seed: int, keep: Path | None) -> list[tuple[Samples, Ratios]]:
    """Samples and labels of a network, one pair per set.

    Args:
        subject: a key of `SUBJECTS`.
        seed: of the samples.
        keep: folder where labels are looked up, and left for the next run; None to make them anew.
    """
    pairs = []
    for draw, label, chunk in SUBJECTS[subject].sets:
        rng = np.random.default_rng([seed, ("_one", "_many", "_cores").index(draw.__name__)])
        path = keep / f"{draw.__name__.strip('_')}-{seed}.npz" if keep else None
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as file:
                samples, columns = Samples(file["dies"], file["sizes"]), file["ratios"]
        else:
            samples = Samples(*(np.asarray(rows, np.float32) for rows in draw(rng)))
            columns = np.stack(map_chunks(label, None, samples, chunk=chunk, chunks_per_call=64)[:4], axis=1)
            if path is not None:
                np.savez(path, dies=samples.dies, sizes=samples.sizes, ratios=columns)
        forward, backward, once, twice = columns.T
        pairs.append((samples, Ratios(forward, backward, once, twice, outside=np.zeros_like(forward))))
    return pairs


def train(subject: str, seed: int, steps: int, keep: Path | None = None) -> tuple[predictor.Trained, dict[str, Any]]:
    """Train one network, and measure it on the samples held out.

    Args:
        subject: a key of `SUBJECTS`.
        seed: of samples, start and order.
        steps: of the optimizer.
        keep: see `labelled`.

    Returns:
        The network, and what the manifest says of it.
    """
    seen, unseen = [], []
    for samples, labels in labelled(subject, seed, keep):
        table = tabulate(samples, labels, SUBJECTS[subject].inputs)
        most = round((1.0 - HELD_OUT) * len(table.targets))
        seen.append(Table(*(column[:most] for column in table)))
        unseen.append(Table(*(column[most:] for column in table)))
    seen_table, unseen_table = (Table(*(np.concatenate(c) for c in zip(*t, strict=True))) for t in (seen, unseen))
    trained = fit(seen_table, seed, steps)
    low, high = np.exp(trained.low), np.exp(trained.high)
    about = {
        "samples": len(seen_table.targets),
        "held_out": len(unseen_table.targets),
        "steps": steps,
        "errors": errors(trained, unseen_table),
        "rising": rising(trained, unseen_table),
        "range": {
            name: [float(f"{x:.4g}") for x in pair]
            for name, pair in zip(SUBJECTS[subject].box, zip(low.tolist(), high.tolist(), strict=True), strict=True)
        },
    }
    return trained, about


def rising(trained: predictor.Trained, table: Table) -> dict[str, float]:
    """Share of samples whose predicted forward time rises with a resource, by more than 1 % per factor e."""

    def slope(x: Array, along: Array) -> Array:
        return jax.vmap(
            lambda tangent: jax.jvp(lambda y: predictor.apply(trained.parameters, y)[0], (x,), (tangent,))[1]
        )(along)

    slopes = jax.jit(jax.vmap(slope))((table.features - trained.mean) / trained.scale, table.slopes / trained.scale)
    share = np.mean(np.asarray(slopes) + table.roofline_slopes[..., 0] > 0.01, axis=0)
    return {name: float(x) for name, x in zip(DIE_COLUMNS, share, strict=True)}


def main() -> None:
    """Train both networks and write them with their manifest."""
    parser = argparse.ArgumentParser(prog="python -m watos_jax.learn", description=__doc__)
    parser.add_argument("--out", type=Path, default=predictor.FOLDER, help="folder for the weights and the manifest")
    parser.add_argument("--seed", type=int, default=0, help="of samples, start and order")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the optimizer, a multiple of 1000")
    parser.add_argument("--labels", type=Path, help="folder that keeps the labels of the mapper between runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {
        "command": f"python -m watos_jax.learn --seed {arguments.seed} --steps {arguments.steps}",
        "source": "samples of watos_jax.operators.mapper and attention_mapper; nothing measured",
    }
    for subject in SUBJECTS:
        start = time.perf_counter()
        trained, manifest[subject] = train(subject, arguments.seed, arguments.steps, arguments.labels)
        predictor.save(trained, subject, arguments.out)
        print(f"{subject}: {time.perf_counter() - start:.0f} s")
        print(json.dumps(manifest[subject]["errors"], indent=1))
    (arguments.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
