"""From the forward and backward times of the stages to the time of a step: closed forms, bounds, exact recurrence.

With f, b the forward and backward time of a stage for one micro-batch, c = f + b, m micro-batches, p stages and v
chunks per stage:

| Schedule | `step_time`, the closed form of `estimate` | what it is |
|---|---|---|
| GPipe | `sum c + (m - 1) (max f + max b)` | exact |
| 1F1B | `sum c + (m - 1) max c` | exact for equal stages; above where b / f is common to all stages |
| interleaved | `m max c + (sum c - max c) / v` | likewise; for chunks that share a stage's time equally |

Where b / f differs between stages the last two may lie on either side; `step_time_bounds` holds for any stages, and
`replay` is exact. Sends belong to the times of the stages; the flush between steps is part of every schedule.

Reference: Huang et al., NeurIPS 2019, arXiv 1811.06965 (GPipe); Narayanan et al., SC 2021, arXiv 2104.04473.
"""

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from watos_jax.relax import HARD, Relaxation
from watos_jax.strategy import Strategy
from watos_jax.units import PerChunk, PerStage, Scalar, concrete
from watos_jax.xla import total


def step_time(forward: PerStage, backward: PerStage, strategy: Strategy, relax: Relaxation = HARD) -> Scalar:
    """Time of all micro-batches through the pipeline, closed form.

    Args:
        forward: s per micro-batch, zero on padding, shape (stages,).
        backward: s per micro-batch, likewise.
        strategy: schedule, micro-batches and virtual stages.
        relax: hard or smooth maximum over stages.

    Returns:
        Seconds.
    """
    return closed_form(forward, jnp.asarray(forward + backward), strategy, relax)


def closed_form(forward: PerStage, both: PerStage, strategy: Strategy, relax: Relaxation = HARD) -> Scalar:
    """`step_time` from the forward time, and its sum with the backward time, of each stage."""
    gpipe = strategy.schedule == 1.0
    # GPipe's two phases have each their slowest stage, 1F1B has one
    slowest = relax.max_over(jnp.where(gpipe, forward, both)) + relax.max_over(jnp.where(gpipe, both - forward, 0.0))
    return strategy.num_micro_batches * slowest + (total(both) - slowest) / strategy.virtual_stages


def step_time_bounds(forward: PerStage, backward: PerStage, strategy: Strategy) -> tuple[Scalar, Scalar]:
    """Lower and upper bound of the exact time for arbitrary stages, whose chunks share their time equally.

    Below, the longest of some chains of operations that wait for each other: `sum c`; for every stage s (0-based)
    `sum_{i<s} c_i / v + m c_s`, for it works m c_s after the first chunks before it have run forward and before they
    have run backward; and for 1F1B `sum c + (m - 1) b_s + (m - w) f_s`, `w = min(m, p - s)`: the first micro-batch
    runs through all stages and back to s, which has done w forwards by then and has the rest of its work to do, and
    the last one runs back. Above, `sum c + (m - 1) (max f + max b)`, which GPipe takes
    exactly; interleaved, `(m + (p - 1) / v) (max f + max b)`, the time of p stages as slow as the slowest: no
    operation that takes less can make a fixed order take longer.

    Args:
        forward: s per micro-batch, zero on padding, shape (stages,).
        backward: s per micro-batch, likewise.
        strategy: schedule, stages, micro-batches and virtual stages.
    """
    both = jnp.asarray(forward + backward)
    m, v, p = strategy.num_micro_batches, strategy.virtual_stages, strategy.pipeline_parallel
    whole = total(both)
    before = jnp.cumsum(both, axis=-1) - both
    warm_up = jnp.minimum(m, p - jnp.arange(both.shape[-1]))
    back = whole + jnp.max((m - 1.0) * backward + (m - warm_up) * forward, axis=-1)
    lower = jnp.maximum(jnp.where(v > 1.0, whole, back), jnp.max(before / v + m * both, axis=-1))
    slowest = jnp.max(forward, axis=-1) + jnp.max(backward, axis=-1)
    upper = jnp.where(v > 1.0, (m + (p - 1.0) / v) * slowest, whole + (m - 1.0) * slowest)
    return jnp.where(strategy.schedule == 1.0, upper, lower), upper


def replay(forward: PerChunk, backward: PerChunk, strategy: Strategy) -> Scalar:
    """Exact time of the schedule for arbitrary stages: 1F1B, GPipe, or interleaved 1F1B.

    Each stage works through a fixed order of chunk operations. It starts with w forwards, goes on with a forward and a
    backward in turn, and ends with the backwards that are left: `w = p - 1 - s` on stage s (0-based), all of them for
    GPipe, `2 (p - 1 - s) + (v - 1) p` interleaved, where forwards take p micro-batches through chunk 0, the same
    through chunk 1, ..., then the next p, and backwards likewise from the last chunk. An operation starts when its
    stage is free and its input is there. Every round all stages that can do so run their next operation: 2 (m v + p)
    rounds or a little more.

    Args:
        forward: s per micro-batch, shape (stages,): the chunks of a stage share it equally; or of each chunk, shape
            (chunks, stages), where the first and last chunk of a model have more to do. Padding is ignored.
        backward: s per micro-batch, of the same shape.
        strategy: schedule, `pipeline_parallel` (at most the stages given), micro-batches, virtual stages.

    Returns:
        Seconds from the first forward to the last backward; differentiable in forward and reverse mode.

    Raises:
        ValueError: a concrete strategy needs more stages or chunks than the arrays have, or interleaves micro-batches
            that are not a multiple of the stages, which Megatron-LM refuses too. A traced one gives NaN.

    **Neglects:** variants of the interleaved order: Megatron-LM before Core ran all forwards first where m = p, and
    later versions can take groups of other than p micro-batches.
    """
    shape = forward.shape[-1], None if forward.ndim == 1 else forward.shape[0]
    _check(strategy, *shape)
    if forward.ndim == 1:
        forward, backward = (x[None] / strategy.virtual_stages for x in (forward, backward))
    sizes = strategy.pipeline_parallel, strategy.num_micro_batches, strategy.virtual_stages, strategy.schedule
    whole = jnp.stack([jnp.round(jnp.asarray(size, forward.dtype)) for size in sizes])
    return _differentiable_last_end(jnp.stack([forward, backward]), whole)


def _check(strategy: Strategy, stages: int, chunks: int | None) -> None:
    sizes = [concrete(x) for x in (strategy.pipeline_parallel, strategy.num_micro_batches, strategy.virtual_stages)]
    if any(size is None or size.ndim for size in sizes):
        return
    p, m, v = (float(size) for size in sizes)  # type: ignore[arg-type]
    if p > stages:
        raise ValueError(f"pipeline_parallel is {p:g}: it must be at most the number of stages given ({stages})")
    if chunks is not None and v > chunks:
        raise ValueError(f"virtual_stages is {v:g}: it must be at most the number of chunks given ({chunks})")
    if v > 1 and m % p:
        raise ValueError(
            f"virtual_stages is {v:g}: the number of micro-batches ({m:g}) must be a multiple of pipeline_parallel "
            f"({p:g})"
        )


_AHEAD: Final = 4
# a stage is at most three operations ahead of its neighbour, for their warm-ups differ by at most two


class _State(NamedTuple):
    # clock: when each stage is free; done: its finished forwards and backwards; ended: when the k-th of them was, at
    # place k modulo `_AHEAD`; wrapped: the same of the last stage's forwards and the first one's backwards, which wait
    # p turns for the next chunk; moved: whether the last round ran anything
    clock: Float[Array, " stages"]
    done: Int[Array, "2 stages"]
    ended: Float[Array, "2 ahead stages"]
    wrapped: Float[Array, "2 stages"]
    moved: Bool[Array, ""]


@jax.jit
def _last_end(times: Float[Array, "2 chunks stages"], sizes: Float[Array, "4"]) -> Float[Array, ""]:
    p, m, v, schedule = sizes.astype(jnp.int32)
    chunks, stages = times.shape[1:]
    stage, count, below = jnp.arange(stages), m * v, p - 1 - jnp.arange(stages)
    exists, first, last = stage < p, stage == 0, stage == p - 1
    warm_up = jnp.where(schedule == 1, count, jnp.where(v > 1, 2 * below + (v - 1) * p, below))
    above, under = jnp.where(first, p - 1, stage - 1), jnp.where(last, 0, stage + 1)
    ends = jnp.stack([p - 1, jnp.zeros_like(p)])  # where a chunk's forward ends, and its backward
    both = jnp.arange(2)

    def run(state: _State) -> _State:
        ahead, back = state.done
        goes_ahead = (ahead < count) & (ahead - back <= warm_up)
        turn, kind = jnp.where(goes_ahead, ahead, back), jnp.where(goes_ahead, 0, 1)
        in_order = turn // p % v
        chunk = jnp.minimum(jnp.where(goes_ahead, in_order, v - 1 - in_order), chunks - 1)
        # the first chunk waits for nothing (backward: for its own forward); elsewhere for the same turn of the
        # neighbour, which on the other side of the wrap came p turns earlier
        wraps, source = jnp.where(goes_ahead, first, last), jnp.where(goes_ahead, above, under)
        begins, needed = wraps & (in_order == 0), jnp.where(wraps, turn - p, turn)
        passed = jnp.where(wraps, state.wrapped[kind, needed % stages], state.ended[kind, needed % _AHEAD, source])
        runs = exists & (back < count) & (begins | (state.done[kind, source] > needed))
        end = jnp.maximum(state.clock, jnp.where(begins, 0.0, passed)) + times[kind, chunk, stage]
        here, there = (kind, turn % _AHEAD, stage), (both, turn[ends] % stages)
        return _State(
            clock=jnp.where(runs, end, state.clock),
            done=state.done.at[kind, stage].add(jnp.where(runs, 1, 0)),
            ended=state.ended.at[here].set(jnp.where(runs, end, state.ended[here])),
            wrapped=state.wrapped.at[there].set(
                jnp.where(runs[ends] & (kind[ends] == both), end[ends], state.wrapped[there])
            ),
            moved=jnp.any(runs),
        )

    start = _State(
        clock=jnp.zeros(stages, times.dtype),
        done=jnp.zeros((2, stages), jnp.int32),
        ended=jnp.zeros((2, _AHEAD, stages), times.dtype),
        wrapped=jnp.zeros((2, stages), times.dtype),
        moved=jnp.asarray(True),
    )
    final = jax.lax.while_loop(lambda state: state.moved, run, start)
    legal = (p <= stages) & ((v == 1) | (m % p == 0)) & ((chunks == 1) | (v <= chunks))
    return jnp.where(legal, jnp.max(final.clock), jnp.nan)


_differentiable_last_end = jax.custom_jvp(_last_end)


@_differentiable_last_end.defjvp
def _last_end_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    # a loop of unknown length has no reverse mode; but the time is a sum of operations, and its slope their numbers
    times, sizes = primals
    return _last_end(times, sizes), jnp.sum(jax.jacfwd(_last_end)(times, sizes) * tangents[0])
