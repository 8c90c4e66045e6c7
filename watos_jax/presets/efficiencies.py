"""Efficiency of real machines and their software, fitted to measured training runs.

Each constant was fitted by `watos calibrate FILE --chip CHIP --source TEXT` to rows of one chip and one family of
software; `of` says which rows are predicted with which. Runs of Korthikanti et al. (arXiv 2205.05198) entered no fit.
"""

from typing import Final

from watos_jax.hardware import Efficiency

A100_MEGATRON: Final = Efficiency(
    matmul_overhead=0.319,
    matmul_rows=35.2,
    matmul_cols=246.0,
    attention_overhead=4.66,
    attention_rows=118.0,
    memory_overhead=0.134,
    launch_time=4.23e-05,
    collective_latency=1.6e-05,
    network_overhead=0.0233,
)
"""Megatron-LM and InternEvo on A100: fitted to
Narayanan et al. (SC 2021), the Megatron-LM README tables and the InternEvo performance document, 27 runs."""

A100_VTRAIN: Final = Efficiency(
    matmul_overhead=0.00115,
    matmul_rows=0.626,
    matmul_cols=2.19,
    attention_overhead=1.0,
    attention_rows=100.0,
    memory_overhead=0.0036,
    launch_time=5.99e-05,
    collective_latency=7.03e-05,
    network_overhead=0.0114,
)
"""Megatron-DeepSpeed on A100, small models included: held up by kernel launches: fitted to
the vTrain artifact (Bang et al., MICRO 2024), 1,032 runs."""

A100_BLOOM: Final = Efficiency(
    matmul_overhead=0.0547,
    matmul_rows=1010.0,
    matmul_cols=301.0,
    attention_overhead=4.89,
    attention_rows=88.2,
    memory_overhead=1.43,
    launch_time=0.000145,
    collective_latency=2.12e-05,
    network_overhead=1.58,
)
"""Megatron-DeepSpeed of BLOOM-176B on A100: fitted to
the BigScience chronicles, 64 runs."""

H100_NEMO: Final = Efficiency(
    matmul_overhead=0.0115,
    matmul_rows=16.0,
    matmul_cols=53.4,
    attention_overhead=3.68,
    attention_rows=76.1,
    memory_overhead=0.0525,
    launch_time=1.1e-06,
    collective_latency=0.000157,
    network_overhead=0.0947,
)
"""NeMo (Megatron-Core, Transformer Engine) on H100, bf16: fitted to
NVIDIA DGX Cloud benchmarking recipes, 59 runs."""

B200_MEGATRON: Final = Efficiency(
    matmul_overhead=0.903,
    matmul_rows=102.0,
    matmul_cols=214.0,
    attention_overhead=1.17,
    attention_rows=100.0,
    memory_overhead=2.6,
    launch_time=2.89e-05,
    collective_latency=2.53e-05,
    network_overhead=0.401,
)
"""Megatron-LM with Transformer Engine on B200, bf16, no overlap: fitted to
SimuMax v1.2 formal results, 12 runs."""

BY_SOURCE: Final = (
    ("A100", "vTrain", A100_VTRAIN),
    ("A100", "BLOOM", A100_BLOOM),
    ("A100", "", A100_MEGATRON),
    ("H100", "", H100_NEMO),
    ("B200", "", B200_MEGATRON),
)
"""Chip, text that the source contains, efficiency: the first that fits is used."""


def of(chip: str, source: str) -> Efficiency | None:
    """Return the efficiency for rows of a chip and a source, or None where none was fitted.

    Args:
        chip: such as `A100`.
        source: who measured.
    """
    return next((record for name, text, record in BY_SOURCE if name == chip and text in source), None)
