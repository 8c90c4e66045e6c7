"""From the forward and backward times of the stages to the time of a step: closed forms, and the exact recurrence.

With f, b the forward and backward time of a stage for one micro-batch, c = f + b, m micro-batches and p stages:

* `step_time`, the closed form of `estimate`: `m max c + (sum c - max c) / v` with v chunks per stage, which is
  `sum c + (m - 1) max c` for plain 1F1B and for GPipe;
* `step_time_bounds`: `max_s(sum_{i<s} c_i + m c_s)` below and `sum c + (m - 1)(max f + max b)` above the exact 1F1B;
* `replay`: the exact 1F1B time, by a max-plus recurrence over the schedule.

The closed form is an upper bound where backward / forward is common to the stages. Reference: Narayanan et al.,
SC 2021, arXiv 2104.04473.
"""

import jax
import jax.numpy as jnp

from watos_jax.relax import HARD, Relaxation
from watos_jax.strategy import Strategy
from watos_jax.units import PerStage, Scalar
from watos_jax.xla import total


def step_time(forward: PerStage, backward: PerStage, strategy: Strategy, relax: Relaxation = HARD) -> Scalar:
    """Time of all micro-batches through the pipeline, closed form.

    Args:
        forward: s per micro-batch, zero on padding, shape (stages,).
        backward: s per micro-batch, likewise.
        strategy: micro-batches and virtual stages.
        relax: hard or smooth maximum over stages.

    Returns:
        Seconds.
    """
    return closed_form(forward + backward, strategy, relax)


def closed_form(both: PerStage, strategy: Strategy, relax: Relaxation = HARD) -> Scalar:
    """`step_time` from the sum of forward and backward, s per micro-batch, shape (stages,)."""
    slowest = relax.max_over(both)
    return strategy.num_micro_batches * slowest + (total(both) - slowest) / strategy.virtual_stages


def step_time_bounds(forward: PerStage, backward: PerStage, micro_batches: Scalar) -> tuple[Scalar, Scalar]:
    """Lower and upper bound of the exact 1F1B time for arbitrary stage times.

    Args:
        forward: s per micro-batch, zero on padding.
        backward: s per micro-batch, likewise.
        micro_batches: m.

    Returns:
        `max_s(sum_{i<s} c_i + m c_s)` and `sum c + (m - 1)(max f + max b)`.
    """
    both = forward + backward
    before = jnp.cumsum(both, axis=-1) - both
    lower = jnp.max(before + micro_batches * both, axis=-1)
    slowest = jnp.max(forward, axis=-1) + jnp.max(backward, axis=-1)
    return lower, jnp.sum(both, axis=-1) + (micro_batches - 1.0) * slowest


@jax.jit
def replay(forward: PerStage, backward: PerStage, micro_batches: Scalar, num_stages: Scalar) -> Scalar:
    """Exact time of plain 1F1B for arbitrary stage times.

    Stage s (0-based) runs `p - 1 - s` forwards, then one forward and one backward in turn, then the remaining
    backwards. With unit times, forward i of stage s falls in slot `s + i` while warming up and `2 i + s` after, its
    backward in slot `2 p - 1 - s + 2 i`; every stage does at most one operation per slot and depends on earlier slots
    only, so one pass over the `2 (m + p - 1)` slots carrying each stage's clock gives the exact start times.

    Args:
        forward: s per micro-batch, shape (stages,), padding ignored.
        backward: s per micro-batch, likewise.
        micro_batches: m, a whole number.
        num_stages: p, at most the length of the arrays.

    Returns:
        Seconds from the first forward to the last backward.
    """
    index = jnp.arange(forward.shape[-1], dtype=forward.dtype)
    p, m = num_stages, micro_batches
    active = index < p
    zeros = jnp.zeros_like(forward)

    def slot(tick, state):  # type: ignore[no-untyped-def]
        clock, forward_done, backward_done = state
        time = tick.astype(forward.dtype)
        warming = time - index
        steady = (time - index) / 2.0
        in_warm_up = (warming >= 0) & (warming <= p - 1 - index) & (warming < m)
        in_steady = (steady == jnp.floor(steady)) & (steady > p - 1 - index) & (steady < m)
        does_forward = active & (in_warm_up | in_steady)
        back = (time - (2.0 * p - 1.0 - index)) / 2.0
        does_backward = active & (back == jnp.floor(back)) & (back >= 0) & (back < m)
        from_above = jnp.concatenate([zeros[:1], forward_done[:-1]])
        from_below = jnp.where(index == p - 1, forward_done, jnp.concatenate([backward_done[1:], zeros[:1]]))
        forward_end = jnp.maximum(clock, from_above) + forward
        backward_end = jnp.maximum(clock, from_below) + backward
        return (
            jnp.where(does_forward, forward_end, jnp.where(does_backward, backward_end, clock)),
            jnp.where(does_forward, forward_end, forward_done),
            jnp.where(does_backward, backward_end, backward_done),
        )

    slots = jnp.asarray(2.0 * (m + p - 1.0)).astype(jnp.int32)
    clock, _, _ = jax.lax.fori_loop(0, slots, slot, (zeros, zeros, zeros))
    return jnp.max(clock, axis=-1)
