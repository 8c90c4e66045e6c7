"""Fit of a network to a table by gradient, its errors on samples held out, and how often more of a resource hurts."""

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from watos_jax.learn.draw import DIE_COLUMNS, Samples
from watos_jax.learn.label import Table, times
from watos_jax.operators import predictor

STEPS: Final = 60_000
"""Steps of the optimizer."""
BATCH: Final = 512
"""Samples per step."""
RATE: Final = 3e-3
"""Learning rate between its rise and its fall."""
WARM_UP: Final = 500
"""Steps in which the learning rate rises."""
FALLING: Final = 0.3
"""Last share of the steps, in which the learning rate falls to 0."""
BYTES_WEIGHT: Final = 0.25
"""Weight of the error of DRAM bytes beside that of times: where the mapper may choose among mappings of all but equal
times, its bytes jump, and a network that chases them loses times."""
TAIL: Final = 0.05
"""Error of the logarithm of a time at which its square pulls as hard as the error itself: few large errors count for
more than many small ones. Bytes, whose errors are jumps, are left out."""
MONOTONE_BATCH: Final = 32
"""Samples per step whose slopes in the resources are penalised where they are positive."""
MONOTONE_WEIGHT: Final = 1.0
"""Weight of that penalty beside the mean error of the logarithms."""
MORE: Final = (1.05, 2.0)
"""Factors by which `rising` enlarges a resource, log-uniform."""
TOLERANCE: Final = 0.01
"""Share by which a larger resource may lengthen a time before `rising` counts it."""


def fit(table: Table, seed: int, steps: int = STEPS) -> predictor.Trained:
    """Fit a network to a table by Adam; the learning rate rises, stays, and falls to nothing.

    The loss is the mean absolute error of the logarithms, which is the relative error of what they stand for (for
    times also its square over twice `TAIL`), and the mean positive slope of the logarithm of predicted time in the
    logarithm of each resource.

    Args:
        table: samples to train on.
        seed: of start and order.
        steps: of the optimizer, a multiple of 1000.
    """
    start, order = jax.random.split(jax.random.key(seed))
    mean, scale = scales(table)
    parameters, state, thousand = training(table, start, steps)
    for block in range(steps // 1000):
        parameters, state = thousand(parameters, state, jax.random.fold_in(order, block))
    arrays = jax.tree.map(np.asarray, parameters)
    return predictor.Trained(arrays, mean, scale, table.box.min(axis=0), table.box.max(axis=0))


def scales(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every feature.

    Args:
        table: samples to train on.
    """
    return table.features.mean(axis=0), table.features.std(axis=0) + 1e-6


def training(table: Table, start: Array, steps: int) -> tuple[Any, Any, Callable[..., tuple[Any, Any]]]:
    """Parameters and state of the optimizer at the start, and a function that takes both a thousand steps further.

    Args:
        table: samples to train on.
        start: random key of the parameters.
        steps: of the whole training.
    """
    mean, scale = scales(table)
    features, targets = jnp.asarray((table.features - mean) / scale), jnp.asarray(table.targets)
    slopes, roofline_slopes = jnp.asarray(table.slopes / scale), jnp.asarray(table.roofline_slopes)
    weights = jnp.array([[1.0, 1.0, BYTES_WEIGHT, BYTES_WEIGHT]])
    tails = jnp.array([[1.0, 1.0, 0.0, 0.0]]) / (2.0 * TAIL)
    parameters = predictor.Network().init(start, features[:1])["params"]
    falling = round(FALLING * steps)
    phases = (
        optax.linear_schedule(0.0, RATE, WARM_UP),
        optax.constant_schedule(RATE),
        optax.linear_schedule(RATE, 0.0, falling),
    )
    optimizer = optax.adam(optax.join_schedules(phases, [WARM_UP, steps - falling]))

    def loss(parameters: Any, batch: Array) -> Array:
        off = jnp.abs(predictor.apply(parameters, features[batch]) - targets[batch])
        error = jnp.mean(weights * (off + tails * off * off))
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

    return parameters, optimizer.init(parameters), thousand


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


def rising(trained: predictor.Trained, samples: Samples, subject: str, seed: int) -> dict[str, float]:
    """Share of pairs in which more of a resource lengthens the predicted forward time, by more than `TOLERANCE`.

    A pair is an operator on a die, and on the same die with one resource larger by a random factor of `MORE`; cores
    stay whole. Pairs that leave the range of training do not count. The mapper lengthens none.

    Args:
        trained: the network.
        samples: operators on dies.
        subject: what the network learned.
        seed: of the factors.
    """
    rng = np.random.default_rng(seed)
    before, there = times(trained, samples, subject)
    shares = {}
    for column, name in enumerate(DIE_COLUMNS):
        dies = np.array(samples.dies)
        dies[:, column] *= np.exp(rng.uniform(np.log(MORE[0]), np.log(MORE[1]), len(dies)))
        if name.startswith("core"):
            dies[:, column] = np.ceil(dies[:, column])
        after, inside = times(trained, Samples(dies, samples.sizes), subject)
        shares[name] = float(np.mean((after > (1.0 + TOLERANCE) * before)[there & inside]))
    return shares
