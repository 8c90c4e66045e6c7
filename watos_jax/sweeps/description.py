"""A sweep as plain data, by which a folder of results is told from that of another sweep."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from watos_jax.search.space import Options
from watos_jax.sweeps.axes import leaf_names
from watos_jax.sweeps.keep import Keep
from watos_jax.sweeps.space import Space


def description(space: Space, keep: Keep) -> dict[str, Any]:
    """A space, what is kept and the library's version as plain data: two sweeps are equal where these are."""
    if isinstance(space.strategies, Options):
        chosen: Any = {item.name: getattr(space.strategies, item.name) for item in fields(Options)}
    else:
        chosen = [_plain(strategy) for strategy in space.strategies]
    described = {
        "version": version("watos_jax"),
        "precision": space.precision,
        "fidelity": space.fidelity,
        "samples": space.samples,
        "seed": space.seed,
        "wafers": {name: {**_plain(wafer), "packing": wafer.packing} for name, wafer in space.wafers.items()},
        "technologies": {name: _plain(technology) for name, technology in space.technologies.items()},
        "models": {name: _plain(model) for name, model in space.models.items()},
        "axes": {name: _numbers(values) for name, values in space.axes.items()},
        "strategies": chosen,
        "keep": {item.name: getattr(keep, item.name) for item in fields(Keep)}
        | {"histogram": None if keep.histogram is None else vars(keep.histogram)},
    }
    return dict(json.loads(json.dumps(described, default=float)))


def digest(description: Mapping[str, Any]) -> str:
    """SHA-256 of a description, hexadecimal."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _plain(record: Any) -> dict[str, Any]:
    return {name: _numbers(leaf) for name, leaf in zip(leaf_names(record), jax.tree.leaves(record), strict=True)}


def _numbers(values: Any) -> Any:
    # short arrays as they are, long ones by their digest
    array = np.asarray(values, dtype=np.float64)
    if array.size <= 64:
        return array.tolist()
    return {"count": array.size, "sha256": hashlib.sha256(array.astype("<f8").tobytes()).hexdigest()}
