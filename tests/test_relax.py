"""Laws of the relaxations: brackets, limits, scale, convexity, gradients at every corner, two compilations."""

import ast
import functools
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import watos_jax
from watos_jax.relax import HARD, Hard, Relaxation, Smooth

SHARPNESSES = (1.0, 2.0, 20.0, 50.0, 2e4)
RELAXATIONS = {"hard": HARD, "gentle": Smooth(2.0), "sharp": Smooth(2e4)}
MAGNITUDES = (0.0, 1e-30, 1e-12, 0.5, 1.0, 1.0 + 1e-6, 3.0, 1e15, 1e30)  # their squares overflow float32
EXTREMES = ("maximum", "minimum")
PAIRED = (*EXTREMES, "at_least")
STEPS = ("floor", "ceil", "round")
FIRST_JUMP = {"floor": 0.0, "ceil": 0.0, "round": 0.5}

every_relaxation = pytest.mark.parametrize("relax", RELAXATIONS.values(), ids=RELAXATIONS)


def _operation(relax, name, *arguments):
    return getattr(relax, name)(*arguments)


# one compilation for each operation and shape, instead of one for each step of it
_apply = jax.jit(_operation, static_argnames="name")


@functools.partial(jax.jit, static_argnames="name")
def _gradient(relax, name, a, b):
    return jax.vmap(jax.grad(functools.partial(_operation, relax, name), argnums=(0, 1)))(a, b)


def _pairs():
    """Every pair of magnitudes, exact and near ties, and log-uniform pairs over forty decades."""
    rng = np.random.default_rng(0)
    ties = 10.0 ** rng.uniform(-20, 20, size=100)
    near = np.stack([ties, ties * (1 + 10.0 ** rng.uniform(-7, 0, size=100))], axis=1)
    wide = 10.0 ** rng.uniform(-20, 20, size=(200, 2))
    close = 10.0 ** rng.uniform(-1, 1, size=(200, 2))
    corners = np.array(tuple(itertools.product(MAGNITUDES, repeat=2)))
    both = np.concatenate([corners, np.stack([ties, ties], axis=1), near, wide, close])
    return jnp.asarray(both[:, 0], dtype=float), jnp.asarray(both[:, 1], dtype=float)


def _numbers():
    """Arguments of the steps: around the jumps, at them, negative and large ones."""
    fine = np.linspace(-3.0, 3.0, 601)
    return jnp.asarray(np.concatenate([fine, 1000.0 + fine, 65536.0 + fine]), dtype=float)


# brackets and limits


@pytest.mark.parametrize("sharpness", SHARPNESSES)
def test_maximum_and_minimum_are_bracketed(sharpness, eps):
    a, b = _pairs()
    relax, factor, slack = Smooth(sharpness), 1 + 1 / sharpness, 4 * eps
    hard, smooth = _apply(HARD, "maximum", a, b), _apply(relax, "maximum", a, b)
    np.testing.assert_array_equal(hard, np.maximum(a, b))
    assert np.all(smooth >= hard * (1 - slack))
    assert np.all(smooth <= hard * factor * (1 + slack))
    hard, smooth = _apply(HARD, "minimum", a, b), _apply(relax, "minimum", a, b)
    np.testing.assert_array_equal(hard, np.minimum(a, b))
    assert np.all(smooth <= hard * (1 + slack))
    assert np.all(smooth >= hard / factor * (1 - slack))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 64])
def test_max_over_is_bracketed(size, eps):
    rng = np.random.default_rng(size)
    values = 10.0 ** rng.uniform(-6, 6, size=(50, size))
    one_number = np.eye(size) * 7.0  # zeros in every slot but one
    one_hole = 3.0 * (1.0 - np.eye(size))
    rows = jnp.asarray(np.concatenate([values, one_number, one_hole, np.ones((1, size))]), dtype=float)
    hard = _apply(HARD, "max_over", rows)
    np.testing.assert_array_equal(hard, np.max(rows, axis=-1))
    levels = math.ceil(math.log2(size))
    slack = 1 + 8 * (levels + 1) * eps
    for sharpness in (2.0, 50.0):
        smooth = _apply(Smooth(sharpness), "max_over", rows)
        assert np.all(smooth >= hard / slack)
        assert np.all(smooth <= hard * (1 + 1 / sharpness) ** levels * slack)


@pytest.mark.parametrize("sharpness", SHARPNESSES)
def test_bracket_is_reached_at_a_tie(sharpness, eps):
    relax, factor = Smooth(sharpness), 1 + 1 / sharpness
    assert float(_apply(relax, "maximum", 3.0, 3.0)) == pytest.approx(3.0 * factor, rel=4 * eps)
    assert float(_apply(relax, "minimum", 3.0, 3.0)) == pytest.approx(3.0 / factor, rel=4 * eps)
    assert float(_apply(relax, "max_over", 3.0 * jnp.ones(8))) == pytest.approx(3.0 * factor**3, rel=16 * eps)


@pytest.mark.parametrize("name", EXTREMES)
def test_converges_as_sharpness_grows(name, eps):
    a, b = _pairs()
    hard = np.asarray(_apply(HARD, name, a, b))
    scale = np.where(hard > 0, hard, 1.0)
    previous = math.inf
    for sharpness in (1.0, 10.0, 100.0, 1e3, 1e4):
        error = np.max(np.abs(_apply(Smooth(sharpness), name, a, b) - hard) / scale)
        assert error <= 1 / sharpness + 4 * eps
        assert error < previous
        previous = error


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("sharpness", SHARPNESSES)
def test_steps_stay_within_one(name, sharpness):
    numbers = _numbers()
    assert np.all(np.abs(_apply(Smooth(sharpness), name, numbers) - _apply(HARD, name, numbers)) <= 1.0)


@pytest.mark.parametrize("name", STEPS)
def test_steps_converge_away_from_jumps(name, eps):
    numbers = _numbers()
    distance = np.asarray(numbers) - FIRST_JUMP[name]
    away = np.abs(distance - np.round(distance)) > 0.05
    hard = _apply(HARD, name, numbers)
    for sharpness in (1e2, 1e4):
        error = np.max(np.abs(_apply(Smooth(sharpness), name, numbers) - hard)[away])
        # tau / (2 pi tan(pi distance)), and one rounding of the largest number
        left = 0.05 - (0.0 if name == "round" else _lead(sharpness))
        assert error <= 1.01 / (2 * np.pi * np.tan(np.pi * left) * sharpness) + np.max(numbers) * eps


def _lead(sharpness):
    return math.sqrt(0.5 / sharpness) / math.pi


@pytest.mark.parametrize("name", ["floor", "ceil"])
@pytest.mark.parametrize("sharpness", SHARPNESSES)
def test_whole_numbers_keep_their_floor_and_ceil(name, sharpness, eps):
    """A design of the lattice, three memory stacks on an edge, is not priced as three and a half."""
    whole = jnp.arange(-3.0, 4.0)
    error = np.abs(_apply(Smooth(sharpness), name, whole) - whole)
    assert np.max(error) <= _lead(sharpness) + 8 * eps


@pytest.mark.parametrize("name", STEPS)
def test_steps_increase(name, eps):
    relax = Smooth(20.0)
    assert np.all(np.diff(_apply(relax, name, jnp.linspace(-2.0, 2.0, 401))) > 0)
    jumps = jnp.arange(-3.0, 4.0) + 0.5
    np.testing.assert_allclose(relax.round(jumps), jumps, atol=8 * eps)


def test_at_least_is_an_indicator():
    a, b = _pairs()
    apart = np.abs(a - b) > 1e-2 * np.maximum(a, b)
    hard = _apply(HARD, "at_least", a, b)
    np.testing.assert_array_equal(hard, np.where(a >= b, 1.0, 0.0))
    gentle, sharp = (_apply(Smooth(sharpness), "at_least", a, b) for sharpness in (2.0, 2e4))
    assert np.all((gentle >= 0) & (gentle <= 1))
    assert np.max(np.abs(sharp - hard)[apart]) < 1e-6
    assert float(_apply(Smooth(), "at_least", 1.0, 1.0)) == 0.5


# scale, order, convexity


@every_relaxation
@pytest.mark.parametrize("scale", [1e-12, 1.0 / 3.0, 1e15])
def test_no_form_depends_on_the_unit(relax, scale, eps):
    rng = np.random.default_rng(1)
    a, b = jnp.asarray(10.0 ** rng.uniform(-3, 3, size=(2, 200)), dtype=float)
    for name in EXTREMES:
        np.testing.assert_allclose(
            _apply(relax, name, scale * a, scale * b), scale * _apply(relax, name, a, b), rtol=64 * eps
        )
    rows = jnp.stack([a, b, a * b], axis=-1)
    np.testing.assert_allclose(
        _apply(relax, "max_over", scale * rows), scale * _apply(relax, "max_over", rows), rtol=64 * eps
    )
    # the logistic multiplies the rounding of its argument by the sharpness
    np.testing.assert_allclose(
        _apply(relax, "at_least", scale * a, scale * b),
        _apply(relax, "at_least", a, b),
        rtol=1e6 * eps,
        atol=1e-30,
    )


@every_relaxation
@pytest.mark.parametrize("name", EXTREMES)
def test_order_of_arguments_does_not_matter(relax, name, eps):
    a, b = _pairs()
    np.testing.assert_allclose(_apply(relax, name, a, b), _apply(relax, name, b, a), rtol=4 * eps)


@pytest.mark.float64
@pytest.mark.parametrize("sharpness", [1.0, 2.0, 50.0, 2e4])
def test_log_log_curvature(sharpness):
    """Maxima are log-log convex (a midpoint is below the chord), minima log-log concave."""
    rng = np.random.default_rng(2)
    start, end = jnp.asarray(rng.uniform(-4, 4, size=(2, 2000, 5)))
    near = start + 1e-2 * (end - start)

    @functools.partial(jax.jit, static_argnames="name")
    def bend(relax, name, low, high):
        def form(y):
            x = jnp.exp(y)
            return jnp.log(relax.max_over(x) if name == "max_over" else _operation(relax, name, x[:, 0], x[:, 1]))

        return 0.5 * (form(low) + form(high)) - form(0.5 * (low + high))

    for low, high in ((start, end), (start, near)):
        for name, sign in (("maximum", 1.0), ("minimum", -1.0), ("max_over", 1.0)):
            assert np.min(sign * bend(Smooth(sharpness), name, low, high)) >= -1e-13


# gradients


@pytest.mark.float64
@pytest.mark.parametrize("name", [*PAIRED, "max_over"])
def test_gradients_in_log_space(name):
    @jax.jit
    @jax.vmap
    def form(y, log_sharpness):
        relax, x = Smooth(jnp.exp(log_sharpness)), jnp.exp(y)
        return jnp.log(relax.max_over(x) if name == "max_over" else _operation(relax, name, x[0], x[1]))

    points = jnp.array([[0.0, 0.0, 0.0], [0.0, 0.3, -0.2], [-2.0, 1.0, 0.5], [20.0, 19.9, 0.0]])
    for sharpness, order in ((2.0, 2), (20.0, 1)):
        arguments = (points, jnp.full(len(points), jnp.log(sharpness)))
        check_grads(form, arguments, order=order, modes=("fwd", "rev"), rtol=2e-4)


@pytest.mark.float64
@pytest.mark.parametrize("name", STEPS)
def test_gradients_of_steps(name):
    form = jax.jit(lambda x, sharpness: _operation(Smooth(sharpness), name, x))
    points = jnp.array([0.0, 0.25, 0.5, -1.75, 1000.125])
    check_grads(form, (points, 5.0), order=2, modes=("fwd", "rev"), rtol=2e-4)


@every_relaxation
@pytest.mark.parametrize("name", PAIRED)
def test_gradient_is_finite_at_every_corner(relax, name):
    assert np.all(np.isfinite(_gradient(relax, name, *_pairs())))


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("sharpness", SHARPNESSES)
def test_more_of_an_argument_is_never_less(name, sharpness, eps):
    assert np.min(np.asarray(_gradient(Smooth(sharpness), name, *_pairs()))) >= -8 * eps


def test_smooth_gradient_at_ties_and_zeros_is_shared(eps):
    points = jnp.array([0.0, 1e-30, 1.0, 1e30])
    relax, tau = Smooth(20.0), 1 / 20
    np.testing.assert_allclose(_gradient(relax, "maximum", points, points), (1 + tau) / 2, rtol=8 * eps)
    np.testing.assert_allclose(_gradient(relax, "minimum", points, points), 1 / (1 + tau) / 2, rtol=8 * eps)
    for value in (0.0, 1.0):
        slopes = jax.jit(jax.grad(relax.max_over))(jnp.full(4, value))
        np.testing.assert_allclose(slopes, ((1 + tau) / 2) ** 2, rtol=16 * eps)


@every_relaxation
def test_arguments_times_slopes_give_the_value(relax, eps):
    """Euler: so it is for every form of degree 1."""
    rng = np.random.default_rng(3)
    rows = jnp.asarray(10.0 ** rng.uniform(-2, 2, size=(100, 6)), dtype=float)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(relax.max_over)))(rows)
    np.testing.assert_allclose(np.sum(slopes * rows, axis=-1), values, rtol=64 * eps)


@pytest.mark.parametrize("name", EXTREMES)
def test_hard_gradient_at_a_tie_is_a_subgradient(name):
    points = jnp.array([0.0, 1.0, 1e25])
    slopes = np.asarray(_gradient(HARD, name, points, points))
    np.testing.assert_array_equal(np.sort(slopes, axis=0), np.array([[0.0] * 3, [1.0] * 3]))


@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_hard_gradient_of_equal_numbers_goes_to_one(size):
    slopes = jax.jit(jax.grad(HARD.max_over))(jnp.full(size, 2.0))
    assert sorted(slopes.tolist()) == [0.0] * (size - 1) + [1.0]


def test_sharpness_has_a_gradient(eps):
    slope = jax.jit(jax.grad(lambda relax: relax.maximum(1.0, 1.0)))(Smooth(20.0))
    assert float(slope.sharpness) == pytest.approx(-1 / 400, rel=8 * eps)  # of 1 + 1 / sharpness


# precision, transformations, compilations


@pytest.mark.float64
@pytest.mark.parametrize("name", [*PAIRED, *STEPS, "max_over"])
def test_single_precision_agrees_with_double(name):
    rng = np.random.default_rng(4)
    points = rng.uniform(0.1, 10.0, size=(500, 2)).astype(np.float32)
    relax = Smooth(20.0)

    def form(point):
        if name == "max_over":
            return relax.max_over(point)
        return _operation(relax, name, *(point if name in PAIRED else point[:1]))

    both = jax.jit(jax.vmap(jax.value_and_grad(lambda point: jnp.sum(form(point)))))
    value, slope = both(jnp.asarray(points))
    assert value.dtype == jnp.float32 and slope.dtype == jnp.float32
    exact_value, exact_slope = both(jnp.asarray(points, dtype=jnp.float64))
    np.testing.assert_allclose(value, exact_value, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(slope, exact_slope, rtol=2e-3, atol=2e-3)


@every_relaxation
@pytest.mark.parametrize("name", [*PAIRED, *STEPS])
def test_jit_and_vmap_change_nothing(relax, name, eps):
    rng = np.random.default_rng(5)
    a, b = jnp.asarray(rng.uniform(0.1, 10.0, size=(2, 20)), dtype=float)
    arguments = (a, b) if name in PAIRED else (a,)
    plain = _operation(relax, name, *arguments)
    tolerance = {"rtol": 256 * eps, "atol": (1e5 if name == "at_least" else 256) * eps}
    np.testing.assert_allclose(_apply(relax, name, *arguments), plain, **tolerance)
    mapped = jax.vmap(functools.partial(_operation, relax, name))(*arguments)
    np.testing.assert_allclose(mapped, plain, **tolerance)


def test_plain_floats_and_numpy_arrays_are_accepted():
    for relax in (HARD, Smooth(2e4)):
        assert float(relax.maximum(1.0, 2.0)) == pytest.approx(2.0, rel=1e-3)
        assert float(relax.minimum(1.0, np.float64(2.0))) == pytest.approx(1.0, rel=1e-3)
        assert float(relax.max_over(np.array([1.0, 5.0, 2.0]))) == pytest.approx(5.0, rel=1e-3)
        assert float(relax.ceil(1.25)) == pytest.approx(2.0, rel=1e-3)
        assert float(relax.at_least(2.0, 1.0)) == pytest.approx(1.0, rel=1e-3)


def test_two_compilations():
    traces = []

    @jax.jit
    def physics(relax: Relaxation, a, b):
        traces.append(type(relax))
        return relax.maximum(a, b) + relax.ceil(a) * relax.max_over(jnp.stack([a, b, a * b]))

    for relax in (HARD, Hard(), Smooth(), Smooth(20.0), Smooth(20000)):
        physics(relax, 1.0, 2.0)
        physics(relax, 3.0, 4.0)
    assert traces == [Hard, Smooth]


def test_sharpness_can_be_mapped_over():
    values = jax.vmap(lambda sharpness: Smooth(sharpness).maximum(1.0, 1.0))(jnp.array([1.0, 10.0]))
    np.testing.assert_allclose(values, np.array([2.0, 1.1]), rtol=1e-6)


# malformed input, and the one place for softening


@pytest.mark.parametrize("sharpness", [0.0, -1.0, math.inf, math.nan])
def test_sharpness_must_be_positive_and_finite(sharpness):
    with pytest.raises(ValueError, match=r"Smooth\.sharpness is .*: it must be above 0"):
        Smooth(sharpness)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_max_over_needs_an_axis(shape):
    with pytest.raises(ValueError, match=r"max_over of shape .*: there must be a last axis"):
        HARD.max_over(jnp.zeros(shape))


def test_interface_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        Relaxation()


def test_nothing_else_softens():
    """Smooth stand-ins for kinks live in relax.py alone.

    A learned predictor may use activations, and multiplicative weights, which search the multipliers of a bound, are
    a softmax by definition: neither stands in for a kink of the model.
    """
    package = Path(watos_jax.__file__).parent
    others = ("relax.py", "operators/predictor.py", "search/pooled.py")
    soft = {"sigmoid", "softplus", "softmax", "log_softmax", "logsumexp", "logaddexp", "smooth_step"}
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).as_posix() in others:
            continue
        used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not used & soft, f"{path.name} uses {used & soft}"


def test_steps_may_stay_hard_beside_smooth_maxima():
    whole = Smooth(50.0, smooth_steps=False)
    values = jnp.asarray([-1.5, 0.0, 2.0, 2.0 + 1e-5, 2.5])
    for name in STEPS:
        np.testing.assert_array_equal(getattr(whole, name)(values), getattr(HARD, name)(values))
    assert float(whole.maximum(1.0, 1.0)) == float(Smooth(50.0).maximum(1.0, 1.0))
