"""Pipeline: closed forms, bounds and the exact recurrence against schedules played in plain Python."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from schedules import all_forward_all_backward, interleaved, one_forward_one_backward, play

from watos_jax.pipeline import replay, step_time, step_time_bounds
from watos_jax.relax import Smooth
from watos_jax.strategy import Strategy

WIDTH = 8  # padded stages: one shape, one compilation
closed_form = jax.jit(step_time)
bounds = jax.jit(step_time_bounds)


def tolerance(eps):
    return 1e-9 if eps < 1e-12 else 64 * eps


def padded(seconds):
    return jnp.asarray(np.pad(np.asarray(seconds, dtype=float), (0, WIDTH - len(seconds))), dtype=float)


def played(forward, backward, micro_batches):
    return play(one_forward_one_backward(len(forward), micro_batches), forward, backward).time


def strategy(micro_batches, **changes):
    return Strategy(global_batch_size=micro_batches, **changes)


seconds = st.one_of(st.just(0.0), st.floats(2**-10, 10.0, width=32))
counts = st.integers(1, 20)


@st.composite
def stage_times(draw, values=seconds):
    stages = draw(st.integers(1, WIDTH))
    return tuple(draw(st.lists(values, min_size=stages, max_size=stages)) for _ in range(2))


@settings(max_examples=120)
@given(times=stage_times(), micro_batches=counts)
def test_replay_is_the_played_schedule(times, micro_batches, eps):
    forward, backward = times
    exact = float(replay(padded(forward), padded(backward), float(micro_batches), float(len(forward))))
    assert exact == pytest.approx(played(forward, backward, micro_batches), rel=tolerance(eps), abs=1e-12)


@settings(max_examples=40)
@given(times=stage_times(), micro_batches=counts, junk=st.floats(1.0, 100.0))
def test_replay_ignores_padding(times, micro_batches, junk, eps):
    forward, backward = (padded(x) for x in times)
    stages = float(len(times[0]))
    dirty = jnp.where(jnp.arange(WIDTH) < stages, 0.0, junk)
    clean = float(replay(forward, backward, float(micro_batches), stages))
    assert float(replay(forward + dirty, backward + dirty, float(micro_batches), stages)) == clean


@settings(max_examples=60)
@given(times=stage_times(), micro_batches=counts)
def test_bounds_bracket_the_played_schedule(times, micro_batches, eps):
    lower, upper = bounds(*(padded(x) for x in times), float(micro_batches))
    exact, slack = played(*times, micro_batches), 1 + tolerance(eps)
    assert float(lower) <= exact * slack + 1e-12
    assert exact <= float(upper) * slack + 1e-12


@settings(max_examples=60)
@given(times=stage_times(), micro_batches=counts)
def test_bounds_bracket_the_closed_form(times, micro_batches, eps):
    forward, backward = (padded(x) for x in times)
    lower, upper = bounds(forward, backward, float(micro_batches))
    closed, slack = float(closed_form(forward, backward, strategy(micro_batches))), 1 + tolerance(eps)
    assert float(lower) <= closed * slack + 1e-12
    assert closed <= float(upper) * slack + 1e-12


@settings(max_examples=40)
@given(
    stages=st.integers(1, WIDTH),
    micro_batches=counts,
    forward=st.floats(2**-10, 10.0, width=32),
    backward=st.floats(2**-10, 10.0, width=32),
)
def test_closed_form_and_bounds_are_exact_for_equal_stages(stages, micro_batches, forward, backward, eps):
    times = padded([forward] * stages), padded([backward] * stages)
    exact = played([forward] * stages, [backward] * stages, micro_batches)
    assert exact == pytest.approx((stages + micro_batches - 1) * (forward + backward))
    lower, upper = bounds(*times, float(micro_batches))
    for value in (closed_form(*times, strategy(micro_batches)), lower, upper):
        assert float(value) == pytest.approx(exact, rel=tolerance(eps))


@settings(max_examples=60)
@given(
    shares=st.lists(st.floats(0.0, 10.0, width=32), min_size=1, max_size=WIDTH),
    ratio=st.floats(0.25, 8.0),
    micro_batches=counts,
)
def test_closed_form_is_above_the_exact_time_where_backward_is_a_common_multiple(shares, ratio, micro_batches, eps):
    forward, backward = shares, [ratio * share for share in shares]
    closed = float(closed_form(padded(forward), padded(backward), strategy(micro_batches)))
    assert closed * (1 + tolerance(eps)) + 1e-12 >= played(forward, backward, micro_batches)


def test_closed_form_can_be_below_the_exact_time_where_the_ratio_differs():
    forward, backward = [1.0, 4.0, 1.0], [4.0, 1.0, 1.0]
    assert float(closed_form(padded(forward), padded(backward), strategy(2))) == 17
    assert played(forward, backward, 2) == 18


# ---- the bubble


@pytest.mark.parametrize("stages", [2, 5, 8])
def test_bubble_vanishes_with_many_micro_batches(stages):
    forward, backward = padded([1.0] * stages), padded([2.0] * stages)
    shares = []
    for micro_batches in (1, 8, 64, 4096):
        total = float(closed_form(forward, backward, strategy(micro_batches)))
        shares.append(1 - 3 * micro_batches / total)
        assert shares[-1] == pytest.approx((stages - 1) / (micro_batches + stages - 1), rel=1e-4)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.002


def test_one_stage_has_no_bubble():
    assert float(closed_form(padded([1.0]), padded([2.0]), strategy(5))) == pytest.approx(15)


@pytest.mark.parametrize("chunks", [1, 2, 3, 4])
@pytest.mark.parametrize(("stages", "rounds"), [(2, 1), (2, 3), (4, 2), (4, 5), (8, 2)])
def test_interleaving_divides_the_bubble_and_is_the_played_schedule(stages, rounds, chunks, eps):
    micro_batches = rounds * stages
    forward, backward = [1.0] * stages, [1.75] * stages
    code = strategy(micro_batches, pipeline_parallel=stages, virtual_stages=chunks)
    closed = float(closed_form(padded(forward), padded(backward), code))
    assert closed - micro_batches * 2.75 == pytest.approx((stages - 1) * 2.75 / chunks, rel=1e-4)
    if chunks > 1:
        exact = play(interleaved(stages, micro_batches, chunks), forward, backward, chunks).time
        assert closed == pytest.approx(exact, rel=tolerance(eps))


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 3), (3, 1), (4, 8), (8, 20)])
def test_gpipe_takes_as_long_as_1f1b_for_equal_stages(stages, micro_batches, eps):
    forward, backward = [1.0] * stages, [2.25] * stages
    exact = play(all_forward_all_backward(stages, micro_batches), forward, backward).time
    code = strategy(micro_batches, pipeline_parallel=stages, schedule=1)
    assert float(closed_form(padded(forward), padded(backward), code)) == pytest.approx(exact, rel=tolerance(eps))


@settings(max_examples=40)
@given(times=stage_times(st.floats(0.1, 10.0)), stage=st.integers(0, WIDTH - 1), micro_batches=counts)
def test_a_slower_stage_never_shortens_the_step(times, stage, micro_batches):
    forward, backward = times
    slower = [x + (s == stage % len(forward)) for s, x in enumerate(forward)]
    for time in (
        lambda f: float(closed_form(padded(f), padded(backward), strategy(micro_batches))),
        lambda f: float(replay(padded(f), padded(backward), float(micro_batches), float(len(f)))),
    ):
        assert time(slower) >= time(forward)


@pytest.mark.parametrize("sharpness", [10.0, 1e4])
def test_smooth_brackets_hard(sharpness, eps):
    rng = np.random.default_rng(0)
    smooth = jax.jit(lambda f, b, code, relax: step_time(f, b, code, relax))
    for micro_batches in (1, 7):
        forward, backward = rng.uniform(0, 1, WIDTH), rng.uniform(0, 2, WIDTH)
        code = strategy(micro_batches)
        hard = float(closed_form(padded(forward), padded(backward), code))
        soft = float(smooth(padded(forward), padded(backward), code, Smooth(sharpness)))
        # three nested levels over eight stages; `m max + (sum - max)` rises with the maximum for m >= 1
        assert hard * (1 - 8 * eps) <= soft <= hard * (1 + 1 / sharpness) ** 3 * (1 + 8 * eps)


def test_gradients_are_those_of_the_active_branch():
    forward, backward = [1.0, 2.0, 1.5], [2.2, 3.9, 3.1]
    slope = jax.jit(jax.grad(step_time))(padded(forward), padded(backward), strategy(10))
    assert np.asarray(slope)[:3].tolist() == [1.0, 10.0, 1.0]
    exact = lambda f: replay(f, padded(backward), 10.0, 3.0)  # noqa: E731
    time, slope = jax.jvp(exact, (padded(forward),), (padded([0.0, 1.0, 0.0]),))
    assert float(time) == pytest.approx(played(forward, backward, 10))
    step = 2.0**-8
    moved = played([1.0, 2.0 + step, 1.5], backward, 10) - played([1.0, 2.0 - step, 1.5], backward, 10)
    assert float(slope) == pytest.approx(moved / (2 * step))
