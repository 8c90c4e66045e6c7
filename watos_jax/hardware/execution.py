"""How a machine and its software execute: distance from the roofline, width of numbers, overlap of communication."""

import equinox as eqx

from watos_jax.units import Leaf, as_leaf, check_range


class Efficiency(eqx.Module):
    """How far a real machine stays below its roofline: `1 / efficiency = 1 + overhead + sum of size / dimension`.

    All zeros is the ideal machine. The form is smooth and log-log convex in every dimension.

    Attributes:
        matmul_overhead: relative time added to every matrix product.
        matmul_rows: tokens at which a matrix product takes twice its ideal time.
        matmul_cols: width (of either weight dimension) at which it does.
        attention_overhead: relative time added to the attention core.
        attention_rows: sequence length at which the attention core takes twice its ideal time.
        memory_overhead: relative time added to DRAM transfers.
        launch_time: s per kernel.
        collective_latency: s added to every collective operation.
        network_overhead: relative time added to every transfer.
    """

    matmul_overhead: Leaf = eqx.field(converter=as_leaf, default=0.0)
    matmul_rows: Leaf = eqx.field(converter=as_leaf, default=0.0)
    matmul_cols: Leaf = eqx.field(converter=as_leaf, default=0.0)
    attention_overhead: Leaf = eqx.field(converter=as_leaf, default=0.0)
    attention_rows: Leaf = eqx.field(converter=as_leaf, default=0.0)
    memory_overhead: Leaf = eqx.field(converter=as_leaf, default=0.0)
    launch_time: Leaf = eqx.field(converter=as_leaf, default=0.0)
    collective_latency: Leaf = eqx.field(converter=as_leaf, default=0.0)
    network_overhead: Leaf = eqx.field(converter=as_leaf, default=0.0)

    def __check_init__(self) -> None:
        check_range("Efficiency", {name: getattr(self, name) for name in self.__dataclass_fields__})


class Precision(eqx.Module):
    """Width of the numbers that the matrix products of the layers multiply.

    Router, LM head and attention cores stay at 16 bits, and so do messages and what is kept for the backward pass.

    Attributes:
        operand_bytes: bytes per operand, 0.5 to 2; a core multiplies `2 / operand_bytes` times as many per clock as in
            16 bits. Below 2, every product reads its 16-bit input and writes it in the narrow format, as it is and
            transposed for the backward pass.
    """

    operand_bytes: Leaf = eqx.field(converter=as_leaf, default=2.0)

    def __check_init__(self) -> None:
        check_range("Precision", {"operand_bytes": self.operand_bytes}, low=0.5, high=2.0)


class Overlap(eqx.Module):
    """How much communication a machine and its software run beside computation.

    Attributes:
        independent: share of the computation that communication without an operator waiting for it may hide behind, 0
            to 1: gathering of sharded weights, reduction of gradients, sends between stages, the context ring.
        tensor: share of a block's products that its own tensor collective may hide behind, 0 to 1.
    """

    independent: Leaf = eqx.field(converter=as_leaf, default=1.0)
    tensor: Leaf = eqx.field(converter=as_leaf, default=0.0)

    def __check_init__(self) -> None:
        check_range("Overlap", {"independent": self.independent, "tensor": self.tensor}, high=1.0)
