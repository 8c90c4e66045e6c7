"""SI prefixes and units used by the presets, and the type aliases of the records.

Every quantity inside the library is in SI (seconds, bytes, joules, watts, metres, square metres, hertz);
a unit never appears in a name. Presets multiply by these constants so that a number reads as its source prints it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

KILO: Final = 1e3
MEGA: Final = 1e6
GIGA: Final = 1e9
TERA: Final = 1e12
PETA: Final = 1e15

MILLI: Final = 1e-3
MICRO: Final = 1e-6
NANO: Final = 1e-9
PICO: Final = 1e-12

KIB: Final = 2.0**10
MIB: Final = 2.0**20
GIB: Final = 2.0**30

MM: Final = 1e-3
MM2: Final = 1e-6
UM2: Final = 1e-12
BITS_PER_BYTE: Final = 8.0
FLOP_PER_MAC: Final = 2.0

if TYPE_CHECKING:  # a union of array types overwhelms static checkers; the tests check these types as they run
    Leaf: TypeAlias = Any
    Scalar: TypeAlias = Any
    PerStage: TypeAlias = Any
    PerChunk: TypeAlias = Any
    PerTier: TypeAlias = Any
else:
    Leaf = Float[ArrayLike, "..."]
    """A quantity of a record: a float, or an array of any shape when records are stacked for `jax.vmap`."""
    Scalar = Float[ArrayLike, ""]
    """One number: a float or an array of shape ()."""
    PerStage = Float[Array | np.ndarray, " stages"]
    """One number per pipeline stage, padded to the layout's number of stages."""
    PerChunk = Float[Array | np.ndarray, " stages"] | Float[Array | np.ndarray, "chunks stages"]
    """One number per pipeline stage, or one per model chunk of every stage."""
    PerTier = Float[Array | np.ndarray, " tiers"]
    """One number per network tier, innermost first."""


def as_leaf(value: Any) -> Any:
    """Convert integers and booleans to floats, so that `jax.grad` accepts every leaf of a record.

    Args:
        value: a number or an array of numbers; tracers and placeholders pass.

    Returns:
        The same value with a floating type.

    Raises:
        ValueError: the value is text or None.
    """
    if isinstance(value, bool | int | np.integer | np.bool_):
        return float(value)
    if isinstance(value, np.ndarray | list | tuple):
        return np.asarray(value, dtype=float)
    if isinstance(value, str | bytes) or value is None:
        raise ValueError(f"a quantity is {value!r}: it must be a number")
    if hasattr(value, "dtype") and (value.dtype == bool or jnp.issubdtype(value.dtype, jnp.integer)):
        return jnp.asarray(value, dtype=float)
    return value


def concrete(value: Any) -> np.ndarray | None:
    """Return the value as a numpy array, or None when it is traced (or a placeholder) and cannot be checked."""
    if isinstance(value, float | int | np.ndarray | np.generic):
        return np.asarray(value)
    if isinstance(value, jnp.ndarray):
        try:
            return np.asarray(value)
        except Exception:  # a tracer refuses conversion with one of several error types
            return None
    return None


def check_range(
    owner: str,
    fields: Mapping[str, Any],
    *,
    low: float = 0.0,
    high: float = np.inf,
    open_low: bool = False,
    integral: bool = False,
) -> None:
    """Raise a `ValueError` naming field, value and rule for the first field out of range; traced values pass.

    Args:
        owner: name of the record, for the message.
        fields: the values by field name.
        low: least allowed value.
        high: largest allowed value.
        open_low: whether `low` itself is refused.
        integral: whether the values must be whole numbers.
    """
    for name, value in fields.items():
        numbers = concrete(value)
        if numbers is None or numbers.dtype == object:
            continue
        rule = f"{'above' if open_low else 'at least'} {low:g}"
        rule += f", at most {high:g}" if high < np.inf else ""
        wrong = ~np.isfinite(numbers) | ((numbers <= low) if open_low else (numbers < low)) | (numbers > high)
        if integral:
            rule = f"a whole number, {rule}"
            wrong |= numbers != np.round(numbers)
        if wrong.any():
            raise ValueError(f"{owner}.{name} is {numbers[wrong].flat[0]:.12g}: it must be {rule}")
