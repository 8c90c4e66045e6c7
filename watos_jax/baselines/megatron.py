"""Megatron-LM's own choice on any machine: the best strategy that its arguments can state, searched exhaustively.

Its rules: tensor groups inside the fast domain (the innermost tier: a node, or a whole wafer) with a ring among them;
1F1B, interleaved or not; recomputation of the attention core, norms and MLP, or of whole layers, the same on every
stage; sharding of optimizer, gradients and weights; memory local to each stage; experts in tensor groups only with
sequence parallelism. Stages may be uneven, as its recent versions allow (`--pipeline-model-parallel-layout`), or only
equal, as the older ones want them. On a wafer it gets our placement of its groups, which its numbering of ranks does
not know.

Reference: Narayanan et al., SC 2021, arXiv 2104.04473; Korthikanti et al., arXiv 2205.05198; Megatron Core's arguments.
"""

from dataclasses import replace
from typing import Final

import numpy as np
from jaxtyping import Bool

from watos_jax.hardware import System, Wafer
from watos_jax.model import Transformer
from watos_jax.network.contention import Network
from watos_jax.search.plan import Plan, every_option, plan
from watos_jax.search.space import Options
from watos_jax.strategy import Strategy

LEVELS: Final = ("none", "selective", "norms", "mlp", "full")
"""Levels of recomputation that its arguments can state."""


def can_train_experts(model: Transformer, strategy: Strategy) -> Bool[np.ndarray, "*n"]:
    """Whether Megatron-LM's mixture layers accept the split: tensor groups only with sequence parallelism.

    Args:
        model: the transformer, concrete.
        strategy: one strategy, or many as record of arrays.
    """
    whole = np.asarray(strategy.tensor_parallel) == 1.0
    return np.asarray((float(model.num_experts) == 0.0) | whole | (np.asarray(strategy.sequence_parallel) == 1.0))


def allowed(
    system: System | Wafer, model: Transformer, strategies: Strategy, *, equal_stages: bool = False
) -> Bool[np.ndarray, " n"]:
    """Which of many strategies, stacked, follow its rules.

    Args:
        system: the machine, whose innermost tier is the fast domain.
        model: the transformer.
        strategies: record of arrays, shape (n,).
        equal_stages: whether stages must have equal numbers of layers.
    """
    domain = Network.of(system).fabrics[0].num_nodes
    equal = np.mod(float(model.num_layers), strategies.pipeline_parallel) == 0
    inside = (strategies.tensor_parallel <= domain) & (strategies.tensor_collective == 0)
    inside = inside & can_train_experts(model, strategies)
    return inside & equal if equal_stages else inside


def megatron(
    system: System | Wafer,
    model: Transformer,
    *,
    options: Options | None = None,
    global_batch_size: int = 512,
    equal_stages: bool = False,
    top: int = 1,
) -> Plan:
    """Find the best strategies that follow its rules.

    Args:
        system: the machine, concrete.
        model: the transformer, concrete.
        options: what strategies may choose from, beside what it cannot state; `every_option` where None.
        global_batch_size: sequences per optimizer step, where `options` is None.
        equal_stages: whether stages must have equal numbers of layers.
        top: how many of the best to return.
    """
    every = options or every_option(model, global_batch_size)
    chosen = replace(every, recompute=tuple(x for x in every.recompute if x in LEVELS), schedule=("1f1b",))

    def rule(found: Strategy) -> Bool[np.ndarray, " n"]:
        return allowed(system, model, found, equal_stages=equal_stages)

    return plan(system, model, options=chosen, top=top, rule=rule)
