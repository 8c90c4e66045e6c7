"""The central scheduler: what it reads from the model, that its three ways are ordered, that shared memory adds up."""

from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from watos_jax.estimate import estimate
from watos_jax.network.layout import layout
from watos_jax.presets import models, wafers
from watos_jax.search.central import WAYS, central
from watos_jax.search.sharing import LEVELS, levels_of, shipping_times
from watos_jax.search.space import Options, strategies
from watos_jax.strategy import RECOMPUTE_LEVELS, Strategy

MODEL = replace(models.LLAMA2_7B, num_layers=16)
FEW = Options(
    global_batch_size=16,
    micro_batch_sizes=(1,),
    virtual_stages=(1,),
    context_parallel=(1,),
    sequence_parallel=(1,),
    optimizer_sharding=(0,),
    recompute=tuple(RECOMPUTE_LEVELS),
    least_use=1.0,
)


def wafer(gigabytes):
    """Eight dies with little memory."""
    whole = wafers.WATOS_CONFIG_3
    memory = replace(whole.die.memory, stack_bytes=gigabytes * 1e9 / float(whole.die.memory.num_stacks))
    return replace(whole, die_rows=2, die_cols=4, die=replace(whole.die, memory=memory))


SIZES = (9.0, 12.0, 18.0, 60.0)
# heads and batch that nothing divides leave one layout, eight stages in a row, whose early stages are short of memory
ONE_MODEL, ONE = replace(MODEL, num_attention_heads=31, num_kv_heads=31), replace(FEW, global_batch_size=17)


def floats(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), tree)


@pytest.fixture(scope="module")
def answers():
    return {size: central(wafer(size), ONE_MODEL, options=ONE, top=3) for size in SIZES}


def test_levels_are_estimates_at_each_level_and_a_stage_depends_on_its_own_alone(eps):
    machine, strategy = wafer(15.0), Strategy(pipeline_parallel=8, global_batch_size=16)
    placed = layout(machine, strategy)
    levels = levels_of(*floats((machine, MODEL, strategy, placed)))
    mixed = np.arange(8.0) % LEVELS
    several = estimate(machine, MODEL, replace(strategy, recompute=mixed), layout=placed)
    for stage, level in enumerate(mixed.astype(int)):
        one = estimate(machine, MODEL, replace(strategy, recompute=level), layout=placed)
        for name, table in (
            ("stage_forward", levels.forward),
            ("stage_backward", levels.backward),
            ("memory", levels.memory),
        ):
            assert float(table[level, stage]) == pytest.approx(float(getattr(one, name)[stage]), rel=32 * eps)
            assert float(table[level, stage]) == pytest.approx(float(getattr(several, name)[stage]), rel=32 * eps)


def test_what_a_sender_pays_follows_from_its_micro_batches_in_flight(eps):
    machine, strategy = wafer(11.0), Strategy(pipeline_parallel=8, global_batch_size=16)
    levels = levels_of(*floats((machine, MODEL, strategy, layout(machine, strategy))))
    own, there = shipping_times(machine.system, layout(machine, strategy))
    rate = float(machine.d2d.bandwidth)
    assert own[:7].tolist() == pytest.approx([max(1 / rate, float(there))] * 7, rel=8 * eps)
    over = -np.asarray(levels.given.room[0])
    extra = np.asarray(levels.given.busy[0] - levels.forward[0] - levels.backward[0])
    for stage in range(8):
        in_flight = 8 - stage
        movable = (in_flight - 1) / in_flight * float(levels.base.memory_parts.activations[stage])
        assert np.isfinite(extra[stage]) == (over[stage] <= movable)
        if 0 < over[stage] <= movable:
            assert extra[stage] == pytest.approx(2 * over[stage] / (in_flight - 1) * float(own[stage]), rel=1e4 * eps)
    assert np.isinf(extra).any() and (extra[np.isfinite(extra)] > 0).any()


def test_the_three_ways_are_ordered_and_sharing_is_needed_somewhere(answers):
    for answer in answers.values():
        times = [answer.least_step_time[way] for way in WAYS]
        assert answer.evaluated == 1 and times == sorted(times, reverse=True)
        assert [answer.feasible[way] for way in WAYS] == np.isfinite(times).tolist()
    assert not answers[9.0].best  # weights and optimizer alone are too large
    for earlier, later in (("uniform", "local"), ("local", "shared")):
        assert answers[12.0].least_step_time[later] < answers[12.0].least_step_time[earlier] * 0.997
    assert len(set(answers[60.0].least_step_time.values())) == 1  # where all is kept there is nothing to settle


def test_one_level_for_all_stages_is_the_best_of_all_estimates(eps):
    machine = wafer(13.0)
    answer, space = central(machine, MODEL, options=FEW), strategies(machine, MODEL, FEW)
    assert len(space) == answer.evaluated * (LEVELS - 1) > 7  # with flash attention "selective" is "none"
    every = [estimate(machine, MODEL, space.strategy(i), layout=space.layout(i)) for i in range(len(space))]
    least = min(float(one.step_time) for one in every if float(one.margins["memory"]) >= 0.0)
    assert answer.least_step_time["uniform"] == pytest.approx(least, rel=1e3 * eps)
    assert float(answer.best[0].step_time) <= least * (1 + 1e2 * eps)


def test_the_answer_fits_the_wafer_and_is_no_worse_than_ranked(answers, eps):
    shipped = 0
    for size, answer in answers.items():
        for one in answer.best:
            number = int(one.strategy.pipeline_parallel)
            sent, held = np.asarray(one.sent), np.asarray(one.held)
            assert sent.sum() == pytest.approx(held.sum(), rel=1e3 * eps, abs=1.0)
            assert not ((sent > 0) & (held > 0)).any()
            resident = np.asarray(one.estimate.memory[:number]) - sent + held
            assert (resident <= size * 1e9 * (1 + 1e-6)).all()
            assert float(one.step_time) >= float(one.estimate.step_time) * (1 - 8 * eps)
            shipped += sent.sum() > 0
        if answer.best:
            # real distances take a little longer than the neighbours that the ranking assumes
            assert float(answer.best[0].step_time) <= answer.least_step_time["shared"] * 1.001
    assert shipped


def test_more_memory_is_never_slower(answers, eps):
    best = [float(a.best[0].step_time) if a.best else np.inf for a in answers.values()]
    assert all(later <= earlier * (1 + 1e2 * eps) for earlier, later in pairwise(best))


def test_a_wrong_top_is_refused():
    with pytest.raises(ValueError, match="top is 0: it must be from 1 to 20"):
        central(wafer(15.0), MODEL, options=FEW, top=0)
