"""Pipeline schedules played in plain Python, one operation after the other: an oracle that shares no code.

An order is what one device does, in turn: a list of `(is_forward, micro_batch, chunk)`. Orders come from the published
descriptions; `play` lets every device start its next operation as soon as what it needs has arrived.
"""

from typing import NamedTuple


class Played(NamedTuple):
    """What came of a schedule: the time of the last operation, and for each stage the most work kept at once.

    Attributes:
        time: from the first forward to the last backward.
        kept: largest number of micro-batch chunks that a stage has run forward but not yet backward.
    """

    time: float
    kept: list[int]


def one_forward_one_backward(stages, micro_batches):
    """1F1B (PipeDream-flush): warm up with as many forwards as there are stages below, then one of each."""
    orders = []
    for stage in range(stages):
        warm_up = min(stages - 1 - stage, micro_batches)
        order = [(True, i, 0) for i in range(warm_up)]
        for i in range(micro_batches - warm_up):
            order += [(True, warm_up + i, 0), (False, i, 0)]
        orders.append(order + [(False, i, 0) for i in range(micro_batches - warm_up, micro_batches)])
    return orders


def all_forward_all_backward(stages, micro_batches):
    """GPipe: every forward, then every backward."""
    order = [(True, i, 0) for i in range(micro_batches)] + [(False, i, 0) for i in range(micro_batches)]
    return [order] * stages


def interleaved(stages, micro_batches, chunks):
    """Interleaved 1F1B as Megatron-LM runs it: micro-batches in rounds of `stages`, chunk after chunk.

    A device with `below` devices after it warms up with `2 below + (chunks - 1) stages` chunk forwards.
    """
    rounds = range(0, micro_batches, stages)
    forwards = [(True, first + i, c) for first in rounds for c in range(chunks) for i in range(stages)]
    backwards = [(False, first + i, c) for first in rounds for c in reversed(range(chunks)) for i in range(stages)]
    orders = []
    for stage in range(stages):
        warm_up = min(2 * (stages - 1 - stage) + (chunks - 1) * stages, len(forwards))
        order = forwards[:warm_up]
        for ahead, back in zip(forwards[warm_up:], backwards, strict=False):
            order = [*order, ahead, back]
        orders.append(order + backwards[len(forwards) - warm_up :])
    return orders


def play(orders, forward, backward, chunks=1):
    """Run the orders with each stage's seconds per micro-batch, a chunk taking its share of them.

    Seconds may also be a list per stage, one number for each of its chunks.
    """
    stages = len(orders)
    done = {}
    clock, position, held, kept = ([0.0] * stages, *([0] * stages for _ in range(3)))
    while any(position[s] < len(orders[s]) for s in range(stages)):
        moved = False
        for s in range(stages):
            while position[s] < len(orders[s]):
                is_forward, i, c = orders[s][position[s]]
                ready = _ready(done, stages, chunks, s, is_forward, i, c)
                if ready is None:
                    break
                clock[s] = max(clock[s], ready) + _seconds((forward if is_forward else backward)[s], c, chunks)
                done[s, is_forward, i, c] = clock[s]
                held[s] += 1 if is_forward else -1
                kept[s] = max(kept[s], held[s])
                position[s] += 1
                moved = True
        if not moved:
            raise RuntimeError("the schedule waits for itself")
    return Played(max(clock), kept)


def _seconds(stage, chunk, chunks):
    return stage[chunk] if isinstance(stage, list) else stage / chunks


def _ready(done, stages, chunks, stage, is_forward, i, c):
    """When the input of an operation arrives, None if its producer has not run."""
    if is_forward:
        if (stage, c) == (0, 0):
            return 0.0
        before = (stage - 1, True, i, c) if stage else (stages - 1, True, i, c - 1)
    elif (stage, c) == (stages - 1, chunks - 1):
        before = (stage, True, i, c)
    else:
        before = (stage + 1, False, i, c) if stage < stages - 1 else (0, False, i, c + 1)
    return done.get(before)
