"""Train the networks that `watos_jax.operators.predictor` loads, and write them with their manifest."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from watos_jax.batch import map_chunks
from watos_jax.learn.draw import RANGES, Generator, Samples, sample_attention, sample_products
from watos_jax.learn.fit import STEPS, errors, fit, rising
from watos_jax.learn.label import BOXES, Table, label_attention, label_many, label_products, tabulate
from watos_jax.operators import predictor
from watos_jax.operators.mapping import Ratios

HELD_OUT: Final = 0.1
"""Share of the samples that no training sees."""


class Part(NamedTuple):
    """Samples of one kind.

    Attributes:
        name: of the file that keeps their labels.
        size: samples.
        draw: samples from a generator and a count.
        label: ratios of the mapper for one sample.
        chunk: samples labelled at once.
    """

    name: str
    size: int
    draw: Callable[[Generator, int], Samples]
    label: Callable
    chunk: int


def _one(rng: Generator, count: int) -> Samples:
    return sample_products(rng, count, many=False)


def _many(rng: Generator, count: int) -> Samples:
    return sample_products(rng, count, many=True)


PARTS: Final = {
    "products": (
        Part("one", 90_000, _one, label_products, 8),
        Part("many", 9_000, _many, label_many, 2),
    ),
    "attention": (Part("cores", 100_000, sample_attention, label_attention, 4),),
}
"""What each network learns: products, with their two gradients, that come alone or in numbers; attention cores."""


def command(seed: int, steps: int) -> str:
    """The command that makes the weights, as the manifest states it."""
    return f"python -m watos_jax.learn --seed {seed} --steps {steps}"


def train_all(folder: Path, seed: int = 0, steps: int = STEPS, keep: Path | None = None) -> None:
    """Train both networks and write `products.npz`, `attention.npz` and `manifest.json`.

    Args:
        folder: where they go.
        seed: of samples, start and order.
        steps: of the optimizer, a multiple of 1000.
        keep: see `labelled`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {
        "command": command(seed, steps),
        "source": "samples of watos_jax.operators.mapper and attention_mapper; nothing measured",
        "drawn": RANGES,
    }
    for subject in PARTS:
        start = time.perf_counter()
        trained, manifest[subject] = train(subject, seed, steps, keep)
        predictor.save(trained, subject, folder)
        print(f"{subject}: {time.perf_counter() - start:.0f} s")
        print(json.dumps(manifest[subject]["errors"], indent=1))
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def train(subject: str, seed: int, steps: int, keep: Path | None = None) -> tuple[predictor.Trained, dict[str, Any]]:
    """Train one network, and measure it on the samples held out.

    Args:
        subject: a key of `PARTS`.
        seed: of samples, start and order.
        steps: of the optimizer.
        keep: see `labelled`.

    Returns:
        The network, and what the manifest says of it.
    """
    seen, unseen, drawn, apart = list[Table](), list[Table](), list[Samples](), list[Samples]()
    for samples, labels in labelled(subject, seed, keep):
        drawn.append(samples)
        table = tabulate(samples, labels, subject)
        most = round((1.0 - HELD_OUT) * len(table.targets))
        seen.append(Table(*(column[:most] for column in table)))
        unseen.append(Table(*(column[most:] for column in table)))
        apart.append(Samples(*(column[most:] for column in samples)))
    seen_table, unseen_table = (Table(*(np.concatenate(c) for c in zip(*t, strict=True))) for t in (seen, unseen))
    trained = fit(seen_table, seed, steps)
    low, high = np.exp(trained.low), np.exp(trained.high)
    about = {
        "samples": len(seen_table.targets),
        "held_out": len(unseen_table.targets),
        "steps": steps,
        "means": {part.name: means(samples) for part, samples in zip(PARTS[subject], drawn, strict=True)},
        "errors": errors(trained, unseen_table),
        "rising": rising(trained, Samples(*(np.concatenate(c) for c in zip(*apart, strict=True))), subject, seed),
        "range": {
            name: [float(f"{x:.4g}") for x in pair]
            for name, pair in zip(BOXES[subject], zip(low.tolist(), high.tolist(), strict=True), strict=True)
        },
    }
    return trained, about


def means(samples: Samples) -> list[float]:
    """Geometric means of all columns, each plus 1: they tell one draw from another.

    Args:
        samples: of a part.
    """
    columns = np.concatenate([samples.dies, samples.sizes], axis=1).astype(float)
    return [float(f"{x:.7g}") for x in np.exp(np.mean(np.log1p(columns), axis=0))]


def labelled(subject: str, seed: int, keep: Path | None) -> list[tuple[Samples, Ratios]]:
    """Samples and labels of a network, one pair per part.

    Args:
        subject: a key of `PARTS`.
        seed: of the samples; each part has its own stream.
        keep: folder where labels are looked up, and left for the next run; None to make them anew. Whoever changes the
            mapper or what is drawn empties it.
    """
    pairs = []
    for part in PARTS[subject]:
        path = keep / f"{part.name}-{seed}.npz" if keep else None
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as file:
                samples, columns = Samples(file["dies"], file["sizes"]), file["ratios"]
        else:
            samples = draw(part, seed)
            columns = np.stack(map_chunks(part.label, None, samples, chunk=part.chunk, chunks_per_call=64)[:4], axis=1)
            if path is not None:
                np.savez(path, dies=samples.dies, sizes=samples.sizes, ratios=columns)
        forward, backward, once, twice = columns.T
        pairs.append((samples, Ratios(forward, backward, once, twice, outside=np.zeros_like(forward))))
    return pairs


def draw(part: Part, seed: int) -> Samples:
    """The samples of a part, in single precision."""
    stream = ("one", "many", "cores").index(part.name)
    drawn = part.draw(np.random.default_rng([seed, stream]), part.size)
    return Samples(*(np.asarray(rows, np.float32) for rows in drawn))
