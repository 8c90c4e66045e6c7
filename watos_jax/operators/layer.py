"""From operators to a layer: the pieces whose times (or energies) add up, and what each recomputation level repeats."""

from typing import Final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from watos_jax.strategy import RECOMPUTE_LEVELS, Strategy
from watos_jax.units import Scalar
from watos_jax.workload import Elementwise


class Pieces(eqx.Module):
    """Seconds (or joules) of each piece of the forward or backward pass of one micro-batch on one device.

    Attributes:
        projections: queries, keys and values, with rotary positions.
        core: scores, softmax and product with the values.
        attention_output: output projection.
        norms: both norms.
        residuals: both residual additions.
        up: first feed-forward product, dense layer.
        activation: activation function, dense layer.
        down: second feed-forward product, dense layer.
        expert_up: first product of routed and shared experts.
        expert_activation: activation function, dispatch and combine of experts.
        expert_down: router and second product of experts.
        head: LM head and loss.
    """

    projections: Scalar
    core: Scalar
    attention_output: Scalar
    norms: Scalar
    residuals: Scalar
    up: Scalar
    activation: Scalar
    down: Scalar
    expert_up: Scalar
    expert_activation: Scalar
    expert_down: Scalar
    head: Scalar

    @property
    def matmul(self) -> tuple[Scalar, Scalar]:
        """Sum over matrix products of a dense and of a mixture layer."""
        shared = self.projections + self.attention_output
        return shared + self.up + self.down, shared + self.expert_up + self.expert_down

    @property
    def elementwise(self) -> tuple[Scalar, Scalar]:
        """Sum over element-wise operators of a dense and of a mixture layer."""
        shared = self.norms + self.residuals
        return shared + self.activation, shared + self.expert_activation

    @property
    def layer(self) -> tuple[Scalar, Scalar]:
        """Sum over a dense and over a mixture layer."""
        shared = self.projections + self.core + self.attention_output + self.norms + self.residuals
        dense = shared + self.up + self.activation + self.down
        return dense, shared + self.expert_up + self.expert_activation + self.expert_down


_PIECE: Final = (0, 0, 0, 0, 1, 2, 3, 5, 4, 5, 4, 5, 6)
_PIECES: Final = np.eye(8)[np.array(_PIECE)]
# which piece each product belongs to, as a matrix: its product is one operation on all strategies, where sums of single
# products become thousands of strided loads; an eighth, empty piece fills a vector


def pieces(matmuls: Float[Array, " ops"], core: Scalar, traffic: Elementwise, scale: float = 1.0) -> Pieces:
    """Group per-operator values into pieces.

    Args:
        matmuls: one value per name in `workload.MATMULS`.
        core: value of the attention core.
        traffic: values of the element-wise groups.
        scale: factor on the element-wise values (2 for backward: gradient and saved tensor are both read).
    """
    projections, attention_output, up, down, expert_up, expert_down, head, _ = jnp.dot(
        matmuls, _PIECES, precision="highest"
    )
    return Pieces(
        projections=projections + scale * traffic.rotary,
        core=core,
        attention_output=attention_output,
        norms=scale * traffic.norms,
        residuals=scale * traffic.residuals,
        up=up,
        activation=scale * traffic.activation,
        down=down,
        expert_up=expert_up,
        expert_activation=scale * traffic.expert_activation,
        expert_down=expert_down,
        head=head + scale / 3.0 * traffic.loss,
    )


def recomputed(
    forward: Pieces, communication: tuple[Scalar, Scalar], dispatch: Scalar, strategy: Strategy
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """What one dense and one mixture layer repeat in the backward pass at the strategy's recomputation level.

    Each level repeats what produces the tensors it does not keep (`memory.kept_bytes`). Flash attention repeats its
    core only where its output is dropped; its backward recomputes the scores in any case.

    Args:
        forward: values of the forward pass.
        communication: value of the forward tensor and context collectives of a dense and of a mixture layer, repeated
            by "full" alone.
        dispatch: value of one all-to-all; repeated where dispatched tokens are dropped, twice by "full".
        strategy: `recompute` is one level or one per stage.

    Returns:
        Values of a dense and of a mixture layer, of the shape of `strategy.recompute`.
    """
    level = jnp.asarray(strategy.recompute)
    flash = strategy.flash_attention
    at = {name: jnp.where(level >= code, 1.0, 0.0) for code, name in enumerate(RECOMPUTE_LEVELS)}
    shared = (
        forward.core * ((1.0 - flash) * at["selective"] + flash * at["attention"])
        + forward.norms * at["norms"]
        + forward.projections * at["projections"]
        + (forward.attention_output + forward.residuals) * at["full"]
    )
    dense = forward.activation * at["activation"] + forward.up * at["mlp"]
    dense += (forward.down + communication[0]) * at["full"]
    mixture = (
        forward.expert_activation * at["activation"]
        + (forward.expert_up + dispatch) * at["mlp"]
        + (forward.expert_down + dispatch + communication[1]) * at["full"]
    )
    return shared + dense, shared + mixture
