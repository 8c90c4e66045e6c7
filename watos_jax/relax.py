"""Every non-smooth operation of the model, in a hard and a smooth form.

Physics is written once, against the interface `Relaxation`. `Hard` is the truth that is reported; `Smooth` is what
gradient descent climbs. They are two static types, so a function compiles once for each; the sharpness of `Smooth`
is a leaf and can be annealed without compiling again. No other file softens anything.

Brackets, with `tau = 1 / sharpness`, for non-negative arguments:

* maximum: `max <= smooth <= (1 + tau) max` per nesting level (`max_over` of n nests `ceil(log2 n)` levels);
* minimum: `min / (1 + tau) <= smooth <= min` per nesting level;
* floor, ceil, round: within 1 of the hard value, and equal to it in the limit; floor and ceil also at whole numbers,
  where they are within `sqrt(tau / 2) / pi`, because they jump beside them; round is half-way at its jumps;
* at_least (an indicator): no bracket; it must not enter a bound.

Maximum and minimum scale with their arguments and at_least does not change when both of its are scaled, so nothing
here depends on a unit; no square of an argument is taken, so nothing overflows before the result does.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.units import Leaf, Scalar, as_leaf, check_range
from watos_jax.xla import fold

Result = Float[Array, "..."]
"""What an operation returns; its arguments may also be plain floats."""
Triple = tuple[Leaf, Leaf, Scalar]


class Relaxation(eqx.Module):
    """How the model treats kinks: `Hard` or `Smooth`.

    Arguments of maximum, minimum and at_least are non-negative; those of floor, ceil and round may have any sign.
    """

    @abc.abstractmethod
    def maximum(self, a: Leaf, b: Leaf) -> Result:
        """The larger of two arrays, element by element."""

    @abc.abstractmethod
    def minimum(self, a: Leaf, b: Leaf) -> Result:
        """The smaller of two arrays, element by element."""

    @abc.abstractmethod
    def max_over(self, a: Leaf) -> Result:
        """The largest element along the last axis."""

    @abc.abstractmethod
    def floor(self, a: Leaf) -> Result:
        """The largest whole number not above."""

    @abc.abstractmethod
    def ceil(self, a: Leaf) -> Result:
        """The smallest whole number not below."""

    @abc.abstractmethod
    def round(self, a: Leaf) -> Result:
        """The nearest whole number."""

    @abc.abstractmethod
    def at_least(self, a: Leaf, threshold: Leaf) -> Result:
        """1 where `a >= threshold`, otherwise 0."""


class Hard(Relaxation):
    """The exact operations. The gradient is that of the active branch; floor, ceil and indicators have none."""

    def maximum(self, a: Leaf, b: Leaf) -> Result:
        return _hard_maximum(a, b)

    def minimum(self, a: Leaf, b: Leaf) -> Result:
        return jnp.where(a <= b, a, b)

    def max_over(self, a: Leaf) -> Result:
        return _hard_largest(_with_last_axis(a))

    def floor(self, a: Leaf) -> Result:
        return jnp.floor(a)

    def ceil(self, a: Leaf) -> Result:
        return jnp.ceil(a)

    def round(self, a: Leaf) -> Result:
        return jnp.round(a)

    def at_least(self, a: Leaf, threshold: Leaf) -> Result:
        return jnp.where(a >= threshold, 1.0, 0.0)


class Smooth(Relaxation):
    """Smooth operations that keep log-log convexity: scale-free, exact in the limit of large sharpness.

    `maximum(a, b) = (a + b + sqrt((a - b)^2 + 4 tau^2 a b)) / 2`, `minimum(a, b) = a b / maximum(a, b)`,
    `floor(x) = s(x + sqrt(tau / 2) / pi)` with `s(x) = x - 1/2 + arctan(sin 2 pi x / (1 + tau - cos 2 pi x)) / pi`,
    `at_least(a, t) = sigmoid(sharpness (a - t) / (a + t))`.

    Attributes:
        sharpness: 1 / tau, above 0; 20 is gentle, 20,000 is hard for most purposes.
        smooth_steps: whether floor, ceil and round are smooth, too; not where what they count is held fixed.
    """

    sharpness: Scalar = eqx.field(converter=as_leaf, default=50.0)
    smooth_steps: bool = eqx.field(static=True, default=True)

    def __check_init__(self) -> None:
        check_range("Smooth", {"sharpness": self.sharpness}, open_low=True)

    @property
    def tau(self) -> Scalar:
        """Relative height of the smooth maximum above the hard one at a tie."""
        return 1.0 / self.sharpness

    def maximum(self, a: Leaf, b: Leaf) -> Result:
        return _smooth_maximum(a, b, self.tau)

    def minimum(self, a: Leaf, b: Leaf) -> Result:
        return _smooth_minimum(a, b, self.tau)

    def max_over(self, a: Leaf) -> Result:
        return _largest(self.maximum, a)

    def floor(self, a: Leaf) -> Result:
        return _smooth_steps(a + self._lead, self.tau) if self.smooth_steps else jnp.floor(a)

    def ceil(self, a: Leaf) -> Result:
        return -self.floor(-a)

    def round(self, a: Leaf) -> Result:
        return _smooth_steps(a + 0.5, self.tau) if self.smooth_steps else jnp.round(a)

    @property
    def _lead(self) -> Scalar:
        # where the smooth step has come nearest to its upper value, so that whole numbers keep theirs
        return jnp.sqrt(0.5 * self.tau) / jnp.pi

    def at_least(self, a: Leaf, threshold: Leaf) -> Result:
        return jax.nn.sigmoid(self.sharpness * _lean(a, threshold))


HARD = Hard()
"""The relaxation that relaxes nothing."""


def _smooth_steps(a: Leaf, tau: Scalar) -> Result:
    # half-way up at whole numbers; of the fraction alone and by half angles, which loses no digits to a large
    # argument or a small tau
    half = jnp.pi * (a - jnp.floor(a))
    return a - 0.5 + jnp.arctan(jnp.sin(half) * jnp.cos(half) / (0.5 * tau + jnp.sin(half) ** 2)) / jnp.pi


@jax.custom_jvp
def _lean(a: Leaf, b: Leaf) -> Result:
    # (a - b) / (a + b), in [-1, 1]; 0, 0 counts as a tie. Everything below is written in it, so that no square
    # overflows: a = total (1 + lean) / 2, b = total (1 - lean) / 2, maximum = total (1 + root) / 2
    total = jnp.asarray(a + b)
    return (a - b) / jnp.where(total > 0, total, 1.0)


@_lean.defjvp
def _lean_jvp(primals: tuple[Leaf, Leaf], tangents: tuple[Leaf, Leaf]) -> tuple[Result, Result]:
    a, b = primals
    a_dot, b_dot = tangents
    lean, total = _lean(a, b), jnp.asarray(a + b)
    return lean, ((1.0 - lean) * a_dot - (1.0 + lean) * b_dot) / jnp.where(total > 0, total, 1.0)


def _root(lean: Result, tau: Scalar) -> Result:
    return jnp.sqrt(tau**2 + (1.0 - tau**2) * lean**2)


def _slopes(a: Leaf, b: Leaf, lean: Result, root: Result, tau: Scalar) -> tuple[Result, Result, Result]:
    # of the smooth maximum in a, b and tau; the two of a tie are equal, at 0, 0 too
    inverse = 1.0 / jnp.where(root > 0, root, 1.0)
    common = 0.5 * (1.0 + tau**2 * inverse)
    apart = 0.5 * (1.0 - tau**2) * lean * inverse
    return common + apart, common - apart, 0.5 * tau * (a + b) * (1.0 - lean**2) * inverse


@jax.custom_jvp
def _smooth_maximum(a: Leaf, b: Leaf, tau: Scalar) -> Result:
    return 0.5 * (a + b) * (1.0 + _root(_lean(a, b), tau))


@_smooth_maximum.defjvp
def _smooth_maximum_jvp(primals: Triple, tangents: Triple) -> tuple[Result, Result]:
    a, b, tau = primals
    a_dot, b_dot, tau_dot = tangents
    lean = _lean(a, b)
    root = _root(lean, tau)
    slope_a, slope_b, slope_tau = _slopes(a, b, lean, root, tau)
    return 0.5 * (a + b) * (1.0 + root), slope_a * a_dot + slope_b * b_dot + slope_tau * tau_dot


@jax.custom_jvp
def _smooth_minimum(a: Leaf, b: Leaf, tau: Scalar) -> Result:
    lean = _lean(a, b)
    return jnp.where(a <= b, a, b) * ((1.0 + jnp.abs(lean)) / (1.0 + _root(lean, tau)))


@_smooth_minimum.defjvp
def _smooth_minimum_jvp(primals: Triple, tangents: Triple) -> tuple[Result, Result]:
    # of a b / maximum: the slope in a is (b / maximum)^2 times the slope of the maximum in b
    a, b, tau = primals
    a_dot, b_dot, tau_dot = tangents
    lean = _lean(a, b)
    root = _root(lean, tau)
    share_a, share_b = (1.0 + lean) / (1.0 + root), (1.0 - lean) / (1.0 + root)
    slope_a, slope_b, slope_tau = _slopes(a, b, lean, root, tau)
    dot = share_b**2 * slope_b * a_dot + share_a**2 * slope_a * b_dot - share_a * share_b * slope_tau * tau_dot
    return _smooth_minimum(a, b, tau), dot


@jax.custom_jvp
def _hard_maximum(a: Leaf, b: Leaf) -> Result:
    return jnp.where(a >= b, a, b)


@_hard_maximum.defjvp
def _hard_maximum_jvp(primals: tuple[Leaf, Leaf], tangents: tuple[Leaf, Leaf]) -> tuple[Result, Result]:
    # a slope of 1 or 0 as a number: the reverse pass of `where` would keep its condition and branch on it
    a, b = primals
    a_dot, b_dot = tangents
    slope = jnp.where(a >= b, 1.0, 0.0)
    return _hard_maximum(a, b), slope * a_dot + (1.0 - slope) * b_dot


@jax.custom_jvp
def _hard_largest(values: Result) -> Result:
    return jnp.max(values, axis=-1)


@_hard_largest.defjvp
def _hard_largest_jvp(primals: tuple[Result], tangents: tuple[Result]) -> tuple[Result, Result]:
    (values,), (tangent,) = primals, tangents
    largest = jnp.max(values, axis=-1)
    number = np.arange(1.0, values.shape[-1] + 1.0)
    first = jnp.min(jnp.where(values == largest[..., None], number, np.inf), axis=-1)
    return largest, jnp.sum(jnp.where(number == first[..., None], tangent, 0.0), axis=-1)


def _with_last_axis(values: Leaf) -> Result:
    a = jnp.asarray(values)
    if a.ndim == 0 or a.shape[-1] == 0:
        raise ValueError(f"max_over of shape {a.shape}: there must be a last axis, and it must not be empty")
    return a


def _largest(maximum: Callable[[Leaf, Leaf], Result], values: Leaf) -> Result:
    return fold(maximum, _with_last_axis(values))
