"""GCMR against brute force that shares no code with it, against the dynamic program of the paper, and its laws."""

from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import LinearConstraint, milp

from watos_jax.baselines.binned_memory import least_slowest_in_bins
from watos_jax.recompute import choices, least_slowest, least_step, least_sum, near_least_sum

CASES = 200
solve = jax.jit(least_slowest, static_argnames="pooled")
near = jax.jit(near_least_sum)


def problem(seed, *, shipping, levels=4, stages=4):
    """A random small problem; times and bytes are whole, so that sums meet limits exactly now and then."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(10, 30, (levels, stages)), axis=0).astype(float)
    memory = -np.sort(-rng.integers(1, 20, (levels, stages)), axis=0).astype(float)
    capacity = float(rng.integers(4, 14))
    costs = {"send_time": 0.0, "hold_time": 0.0, "movable": np.inf}
    if shipping:
        costs["send_time"] = rng.integers(0, 4, stages) / 4.0
        costs["hold_time"] = float(rng.integers(0, 3)) / 4.0
        costs["movable"] = rng.integers(0, 12, (levels, stages)).astype(float)
    return time, memory, capacity, costs


def by_enumeration(time, memory, capacity, costs):
    """Every combination of levels: (seconds of senders and idle helpers, room of helpers, bytes sent), least cap.

    The cap of one combination is where the water stands: helpers of `hold_time` h and room r, busy for c, hold
    min(r, (T - c) / h) bytes; found from the corners of that piecewise linear function, one after the other.
    """
    send, hold = np.broadcast_to(costs["send_time"], time.shape[1:]), costs["hold_time"]
    movable = np.broadcast_to(costs["movable"], time.shape)
    for levels in product(range(len(time)), repeat=time.shape[1]):
        busy, rooms, sent, legal = [], [], 0.0, True
        total = 0.0
        for stage, level in enumerate(levels):
            over = memory[level, stage] - capacity
            seconds = time[level, stage]
            if over > 0:
                legal &= over <= movable[level, stage]
                seconds += send[stage] * over
                sent += over
            else:
                rooms.append((seconds, -over))
            busy.append(seconds)
            total += seconds
        if not legal or sent > sum(room for _, room in rooms):
            continue
        cap = max(busy)
        if hold > 0:
            corners = sorted({cap} | {c for c, _ in rooms} | {c + hold * r for c, r in rooms})
            corners = [c for c in corners if c >= cap] + [max([cap] + [c + hold * r for c, r in rooms])]

            def held(at, rooms=rooms):
                return sum(min(r, max(0.0, at - c) / hold) for c, r in rooms)

            if held(cap) < sent:
                for left, right in pairwise(corners):
                    if held(right) >= sent:
                        cap = left + (right - left) * (sent - held(left)) / (held(right) - held(left))
                        break
        yield levels, cap, total + hold * sent


@pytest.mark.parametrize("shipping", [False, True])
def test_least_slowest_is_that_of_every_combination(shipping, eps):
    fitting = 0
    for seed in range(CASES):
        time, memory, capacity, costs = problem(seed, shipping=shipping)
        found = solve(choices(time, memory, capacity, **costs))
        caps = [cap for _, cap, _ in by_enumeration(time, memory, capacity, costs)]
        fitting += bool(caps)
        assert bool(found.fits) == bool(caps)
        if caps:
            assert float(found.slowest) == pytest.approx(min(caps), rel=8 * eps), seed
            assert float(found.spare) >= 0.0
            # the levels that it names are a combination of that time
            own = {levels: cap for levels, cap, _ in by_enumeration(time, memory, capacity, costs)}
            assert own[tuple(np.asarray(found.level).tolist())] <= min(caps) * (1 + 8 * eps)
    assert CASES // 4 < fitting < CASES


def by_integer_program(time, memory, capacity, costs, links):
    """The same with bytes that pass along a line, as a mixed-integer program over levels, bytes held and flows."""
    levels, stages = time.shape
    hold, send = costs["hold_time"], np.broadcast_to(costs["send_time"], (stages,))
    over = np.maximum(memory - capacity, 0.0)
    room = np.maximum(capacity - memory, 0.0)
    busy = time + send * over
    legal = over <= np.broadcast_to(costs["movable"], time.shape)
    number, flows = levels * stages, stages - 1
    # variables: level chosen (levels x stages), bytes held (stages), flow over each boundary, the cap
    size = number + stages + flows + 1
    rows, low, high = [], [], []

    def add(entries, least, most):
        row = np.zeros(size)
        for place, value in entries:
            row[place] += value
        rows.append(row)
        low.append(least)
        high.append(most)

    for s in range(stages):
        chosen = [level * stages + s for level in range(levels)]
        add([(c, 1.0) for c in chosen], 1.0, 1.0)
        add([(c, busy[i, s]) for i, c in enumerate(chosen)] + [(number + s, hold), (size - 1, -1.0)], -np.inf, 0.0)
        add([(c, -room[i, s]) for i, c in enumerate(chosen)] + [(number + s, 1.0)], -np.inf, 0.0)
        balance = [(c, over[i, s]) for i, c in enumerate(chosen)] + [(number + s, -1.0)]
        balance += [(number + stages + s - 1, 1.0)] * (s > 0) + [(number + stages + s, -1.0)] * (s < flows)
        add(balance, 0.0, 0.0)
    bound = np.concatenate([legal.ravel().astype(float), np.full(stages, np.inf), links[:flows], [np.inf]])
    floor = np.concatenate([np.zeros(number + stages), -np.asarray(links[:flows]), [0.0]])
    answer = milp(
        np.eye(size)[-1],
        constraints=LinearConstraint(np.array(rows), low, high),
        integrality=np.concatenate([np.ones(number), np.zeros(size - number)]),
        bounds=(floor, bound),
    )
    return answer.fun if answer.success else None


@pytest.mark.float64
def test_in_a_line_it_is_the_optimum_of_the_integer_program():
    fitting = narrower = 0
    for seed in range(CASES):
        time, memory, capacity, costs = problem(seed, shipping=seed % 2 == 1)
        links = np.random.default_rng(1000 + seed).integers(0, 6, time.shape[1]).astype(float)
        given = choices(time, memory, capacity, **costs, link_bytes=links)
        found, pooled = solve(given, pooled=False), solve(given)
        least = by_integer_program(time, memory, capacity, costs, links)
        assert bool(found.fits) == (least is not None), seed
        if least is not None:
            assert float(found.slowest) == pytest.approx(least, rel=1e-6), seed
            fitting += 1
            narrower += float(found.slowest) > float(pooled.slowest) * (1 + 1e-9)
            assert float(found.slowest) >= float(pooled.slowest)
    assert fitting > CASES // 4 and narrower > 10


def test_a_line_without_limits_is_the_pool():
    for seed in range(50):
        time, memory, capacity, costs = problem(seed, shipping=True, stages=6)
        given = choices(time, memory, capacity, **costs)
        assert float(solve(given, pooled=False).slowest) == float(solve(given).slowest)


@pytest.mark.float64
@pytest.mark.parametrize("shipping", [False, True])
def test_least_sum_is_that_of_every_combination(shipping):
    loss = []
    for seed in range(CASES):
        time, memory, capacity, costs = problem(seed, shipping=shipping)
        given = choices(time, memory, capacity, **costs)
        table = list(by_enumeration(time, memory, capacity, costs))
        cap = float(np.random.default_rng(seed).uniform(12, 34))
        sums = [total for _, longest, total in table if longest <= cap]
        found = least_sum(given, cap)
        assert (found is None) == (not sums), seed
        if found is not None:
            assert found[1] == pytest.approx(min(sums), rel=1e-12), seed
            quick, lower, _ = near(given, jnp.asarray(cap))
            own = next(total for levels, _, total in table if levels == tuple(np.asarray(quick.level).tolist()))
            assert float(lower) <= min(sums) * (1 + 1e-9) and own >= min(sums) * (1 - 1e-12)
            loss.append(own / min(sums) - 1.0)
    assert len(loss) > CASES // 4
    assert 0.0 < max(loss) < 0.25  # the quick answer is not always the exact one: the comparison can tell them apart


@pytest.mark.float64
def test_the_scan_over_caps_finds_the_least_step():
    exact = 0
    for seed in range(CASES):
        time, memory, capacity, costs = problem(seed, shipping=seed % 2 == 1)
        weight = float(np.random.default_rng(seed).integers(0, 6))
        table = [total + weight * cap for _, cap, total in by_enumeration(time, memory, capacity, costs)]
        found = least_step(choices(time, memory, capacity, **costs), weight)
        assert (found is None) == (not table), seed
        if found is not None:
            assert found[1] >= min(table) * (1 - 1e-12)
            # exact where helpers take no time; else between the caps that are scanned there may be better ones
            assert found[1] <= min(table) * (1.0 + (0.02 if costs["hold_time"] else 1e-12)), seed
            exact += found[1] <= min(table) * (1 + 1e-12)
    assert exact > CASES // 3


def test_the_dynamic_program_over_bins_is_never_better_and_meets_it_in_the_limit(eps):
    losses = {16: [], 64: [], 4096: []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        time = np.sort(rng.uniform(1.0, 1.4, (8, 12)), axis=0)
        memory = -np.sort(-rng.uniform(0.4, 1.5, (8, 12)), axis=0)
        exact = float(solve(choices(time, memory, 1.0)).slowest)
        for bins, loss in losses.items():
            loss.append(least_slowest_in_bins(time, memory, 1.0, bins) / exact - 1.0)
    assert all(min(loss) >= -8 * eps for loss in losses.values())
    mean = {bins: np.mean(np.minimum(loss, 1.0)) for bins, loss in losses.items()}
    assert mean[16] > mean[64] > mean[4096] >= 0.0 and mean[64] > 0.002 and mean[4096] < 0.001


def test_more_memory_is_never_slower_and_less_of_it_never_quicker():
    capacities = jnp.linspace(2.0, 20.0, 25)
    one = lambda t, m, k, c: least_slowest(choices(t, m, c, **k)).slowest  # noqa: E731
    all_capacities = jax.jit(jax.vmap(one, in_axes=(None, None, None, 0)))
    for seed in range(40):
        time, memory, _, costs = problem(seed, shipping=True, stages=6)
        slowest = np.asarray(all_capacities(time, memory, costs, capacities))
        assert (slowest[1:] <= slowest[:-1]).all()
        assert slowest[-1] == time[0].max()  # all that is kept fits: nothing is recomputed


def test_padding_changes_nothing_and_many_are_solved_at_once():
    time, memory, capacity, costs = problem(3, shipping=True)
    plain = solve(choices(time, memory, capacity, **costs))
    pad = ((0, 0), (0, 4))
    wide = costs | {
        "send_time": np.pad(costs["send_time"], (0, 4)),
        "movable": np.pad(costs["movable"], pad),
        "active": np.where(np.arange(8) < 4, 1.0, 0.0),
    }
    padded = solve(choices(np.pad(time, pad), np.pad(memory, pad), capacity, **wide))
    assert float(padded.slowest) == float(plain.slowest)
    assert np.asarray(padded.level[:4]).tolist() == np.asarray(plain.level).tolist()
    many = jax.vmap(lambda c: least_slowest(choices(time, memory, c, **costs)))(jnp.full(3, capacity))
    assert many.slowest.tolist() == [float(plain.slowest)] * 3


def test_where_nothing_fits_the_missing_bytes_are_named():
    memory = np.array([[9.0, 5.0, 7.0], [6.0, 4.0, 7.0]])
    found = solve(choices(np.ones((2, 3)), memory, 5.0))
    assert not bool(found.fits) and float(found.spare) == (5 - 6) + (5 - 4) + (5 - 7)
