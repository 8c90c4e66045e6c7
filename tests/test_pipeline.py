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
CHUNKS = 4
closed_form = jax.jit(step_time)
bounds = jax.jit(step_time_bounds)
replayed = jax.jit(replay)
replay_slopes = jax.jit(jax.grad(replay, argnums=(0, 1)))


@jax.jit
def replay_tangent(forward, backward, code):
    return jax.jvp(lambda f, b: replay(f, b, code), (forward, backward), (jnp.ones_like(forward),) * 2)


def tolerance(eps):
    return 1e-9 if eps < 1e-12 else 64 * eps


def padded(seconds, filler=0.0):
    return jnp.asarray(
        np.pad(np.asarray(seconds, dtype=float), (0, WIDTH - len(seconds)), constant_values=filler), dtype=float
    )


def strategy(micro_batches, **changes):
    return Strategy(global_batch_size=micro_batches, **changes)


def orders(code):
    """The published order of operations of a strategy's schedule."""
    p, m, v = (int(x) for x in (code.pipeline_parallel, code.num_micro_batches, code.virtual_stages))
    if v > 1:
        return interleaved(p, m, v)
    return all_forward_all_backward(p, m) if code.schedule else one_forward_one_backward(p, m)


def played(forward, backward, code):
    return play(orders(code), forward, backward, int(code.virtual_stages)).time


seconds = st.one_of(st.just(0.0), st.floats(2**-10, 10.0, width=32))
counts = st.integers(1, 20)


@st.composite
def schedules(draw, kinds=("1f1b", "gpipe", "interleaved")):
    """A strategy of any schedule and size: one stage, fewer micro-batches than stages, one round, one chunk."""
    kind, stages = draw(st.sampled_from(kinds)), draw(st.integers(1, WIDTH))
    if kind == "interleaved":
        chunks, rounds = draw(st.integers(1, CHUNKS)), draw(st.integers(1, 3))
        return strategy(rounds * stages, pipeline_parallel=stages, virtual_stages=chunks)
    return strategy(draw(counts), pipeline_parallel=stages, schedule=kind == "gpipe")


def times_of(draw, code, values=seconds):
    stages = int(code.pipeline_parallel)
    return tuple(draw(st.lists(values, min_size=stages, max_size=stages)) for _ in range(2))


@settings(max_examples=200)
@given(data=st.data(), code=schedules(), junk=st.floats(0.0, 100.0))
def test_replay_is_the_played_schedule_whatever_the_padding(data, code, junk, eps):
    forward, backward = times_of(data.draw, code)
    exact = float(replayed(padded(forward, junk), padded(backward, junk), code))
    assert exact == pytest.approx(played(forward, backward, code), rel=tolerance(eps), abs=1e-12)


@settings(max_examples=60)
@given(data=st.data(), code=schedules(kinds=("interleaved",)))
def test_replay_takes_chunks_of_their_own_length(data, code, eps):
    """An embedding on the first chunk, an LM head on the last, anything else anywhere."""
    stages, chunks = int(code.pipeline_parallel), int(code.virtual_stages)
    each = st.lists(seconds, min_size=chunks, max_size=chunks)
    forward, backward = (data.draw(st.lists(each, min_size=stages, max_size=stages)) for _ in range(2))
    rows = [np.zeros((CHUNKS, WIDTH)) for _ in range(2)]
    for row, by_stage in zip(rows, (forward, backward), strict=True):
        row[:chunks, :stages] = np.transpose(by_stage)
    exact = float(replayed(*(jnp.asarray(row, dtype=float) for row in rows), code))
    assert exact == pytest.approx(played(forward, backward, code), rel=tolerance(eps), abs=1e-12)


def test_replay_of_more_stages_than_the_width_of_the_other_tests(eps):
    rng = np.random.default_rng(0)
    for code in (
        strategy(70, pipeline_parallel=33),
        strategy(70, pipeline_parallel=33, schedule=1),
        strategy(66, pipeline_parallel=33, virtual_stages=3),
    ):
        forward, backward = rng.exponential(size=(2, 33))
        exact = float(replayed(jnp.asarray(forward, dtype=float), jnp.asarray(backward, dtype=float), code))
        assert exact == pytest.approx(played(forward, backward, code), rel=tolerance(eps))


def test_replay_maps_over_schedules_in_one_program(eps):
    codes = [
        strategy(3, pipeline_parallel=5),
        strategy(7, pipeline_parallel=8, schedule=1),
        strategy(12, pipeline_parallel=4, virtual_stages=3),
        strategy(9, pipeline_parallel=1),
    ]
    rng = np.random.default_rng(1)
    forward, backward = rng.uniform(0.5, 2.0, (2, len(codes), WIDTH))
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(leaves, dtype=float), *codes)
    times = jax.vmap(replayed)(jnp.asarray(forward, dtype=float), jnp.asarray(backward, dtype=float), stacked)
    for time, ahead, back, code in zip(times, forward, backward, codes, strict=True):
        stages = int(code.pipeline_parallel)
        assert float(time) == pytest.approx(played(ahead[:stages], back[:stages], code), rel=tolerance(eps))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline_parallel": 9}, r"pipeline_parallel is 9: it must be at most the number of stages given \(8\)"),
        (
            {"pipeline_parallel": 4, "virtual_stages": 2},
            r"virtual_stages is 2: the number of micro-batches \(6\) must be a multiple of pipeline_parallel \(4\)",
        ),
    ],
)
def test_replay_refuses_what_no_schedule_runs(changes, message):
    times, code = padded([1.0]), strategy(6, **changes)
    with pytest.raises(ValueError, match=message):
        replay(times, times, code)
    assert np.isnan(float(replayed(times, times, code)))


def test_replay_refuses_more_chunks_than_it_is_given():
    with pytest.raises(ValueError, match=r"virtual_stages is 3: it must be at most the number of chunks given \(2\)"):
        replay(jnp.ones((2, 4)), jnp.ones((2, 4)), strategy(4, pipeline_parallel=4, virtual_stages=3))


@settings(max_examples=120)
@given(data=st.data(), code=schedules())
def test_bounds_bracket_the_played_schedule(data, code, eps):
    forward, backward = times_of(data.draw, code)
    lower, upper = bounds(padded(forward), padded(backward), code)
    exact, slack = played(forward, backward, code), 1 + tolerance(eps)
    assert float(lower) <= exact * slack + 1e-12
    assert exact <= float(upper) * slack + 1e-12


@settings(max_examples=60)
@given(data=st.data(), code=schedules())
def test_bounds_bracket_the_closed_form(data, code, eps):
    forward, backward = (padded(x) for x in times_of(data.draw, code))
    lower, upper = bounds(forward, backward, code)
    closed, slack = float(closed_form(forward, backward, code)), 1 + tolerance(eps)
    assert float(lower) <= closed * slack + 1e-12
    assert closed <= float(upper) * slack + 1e-12


@settings(max_examples=60)
@given(data=st.data(), code=schedules(kinds=("gpipe",)))
def test_closed_form_and_bounds_are_exact_for_gpipe(data, code, eps):
    forward, backward = times_of(data.draw, code)
    exact = played(forward, backward, code)
    times = padded(forward), padded(backward)
    for value in (closed_form(*times, code), *bounds(*times, code)):
        assert float(value) == pytest.approx(exact, rel=tolerance(eps), abs=1e-12)


@settings(max_examples=60)
@given(code=schedules(), forward=st.floats(2**-10, 10.0, width=32), backward=st.floats(2**-10, 10.0, width=32))
def test_closed_form_and_bounds_are_exact_for_equal_stages(code, forward, backward, eps):
    p, m, v = (float(x) for x in (code.pipeline_parallel, code.num_micro_batches, code.virtual_stages))
    times = [forward] * int(p), [backward] * int(p)
    exact = played(*times, code)
    assert exact == pytest.approx((m + (p - 1) / v) * (forward + backward))
    lower, upper = bounds(*(padded(x) for x in times), code)
    for value in (closed_form(*(padded(x) for x in times), code), lower, upper):
        assert float(value) == pytest.approx(exact, rel=tolerance(eps))


@settings(max_examples=120)
@given(data=st.data(), code=schedules(), ratio=st.floats(0.25, 8.0))
def test_closed_form_is_above_the_exact_time_where_backward_is_a_common_multiple(data, code, ratio, eps):
    forward, _ = times_of(data.draw, code, st.floats(0.0, 10.0, width=32))
    backward = [ratio * share for share in forward]
    closed = float(closed_form(padded(forward), padded(backward), code))
    assert closed * (1 + tolerance(eps)) + 1e-12 >= played(forward, backward, code)


@pytest.mark.parametrize(
    ("code", "closed", "exact"),
    [
        (strategy(2, pipeline_parallel=3), 17, 18),
        (strategy(3, pipeline_parallel=3, virtual_stages=2), 18.5, 25),
    ],
)
def test_closed_form_can_be_below_the_exact_time_where_the_ratio_differs(code, closed, exact):
    forward, backward = [1.0, 4.0, 1.0], [4.0, 1.0, 1.0]
    assert float(closed_form(padded(forward), padded(backward), code)) == closed
    assert played(forward, backward, code) == exact


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


@settings(max_examples=40)
@given(data=st.data(), code=schedules(), stage=st.integers(0, WIDTH - 1))
def test_a_slower_stage_never_shortens_the_step(data, code, stage):
    forward, backward = times_of(data.draw, code, st.floats(0.1, 10.0))
    slower = [x + (s == stage % len(forward)) for s, x in enumerate(forward)]
    for time in (closed_form, replayed):
        assert float(time(padded(slower), padded(backward), code)) >= float(
            time(padded(forward), padded(backward), code)
        )


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


def test_gradients_of_the_closed_form_are_those_of_the_active_branch():
    times = padded([1.0, 2.0, 1.5]), padded([2.2, 3.9, 4.1])
    slope = jax.jit(jax.grad(step_time, argnums=(0, 1)))
    assert [np.asarray(x)[:3].tolist() for x in slope(*times, strategy(10, pipeline_parallel=3))] == [[1, 10, 1]] * 2
    phases = slope(*times, strategy(10, pipeline_parallel=3, schedule=1))
    assert [np.asarray(x)[:3].tolist() for x in phases] == [[1, 10, 1], [1, 1, 10]]


@pytest.mark.parametrize(
    "code",
    [
        strategy(10, pipeline_parallel=3),
        strategy(10, pipeline_parallel=3, schedule=1),
        strategy(6, pipeline_parallel=3, virtual_stages=2),
    ],
)
def test_gradients_of_the_replay_are_differences_of_the_played_schedule(code):
    """Forward and reverse mode, and the gradient of a sum: the time is linear between kinks."""
    forward, backward = [1.0, 2.0, 1.5], [2.2, 3.9, 3.1]
    slopes = replay_slopes(padded(forward), padded(backward), code)
    step, measured = 2.0**-8, []
    for s in range(6):
        ends = []
        for sign in (1, -1):
            moved = [*forward, *backward]
            moved[s] += sign * step
            ends.append(played(moved[:3], moved[3:], code))
        measured.append((ends[0] - ends[1]) / (2 * step))
    assert np.concatenate([np.asarray(x)[:3] for x in slopes]) == pytest.approx(measured, rel=1e-3)
    value, tangent = replay_tangent(padded(forward), padded(backward), code)
    assert float(value) == pytest.approx(played(forward, backward, code))
    assert float(tangent) == pytest.approx(sum(measured), rel=1e-3)
