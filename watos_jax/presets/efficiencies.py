"""Efficiency of real machines and their software, fitted to measured training runs.

Each constant was fitted by `watos calibrate FILE --chip CHIP --source TEXT` to rows of one chip and one family of
software; `of` says which rows are predicted with which. Runs of Korthikanti et al. (arXiv 2205.05198) entered no fit.
"""

from typing import Final

from watos_jax.hardware import Efficiency

A100_MEGATRON: Final = Efficiency(
    matmul_overhead=0.366,
    matmul_rows=49.4,
    matmul_cols=320,
    attention_overhead=4.68,
    attention_rows=120,
    memory_overhead=0.0854,
    launch_time=5e-06,
    collective_latency=7.43e-05,
    network_overhead=0.0239,
)
"""Megatron-LM and InternEvo on A100: fitted to
Narayanan et al. (SC 2021), the Megatron-LM README tables and the InternEvo performance document, 27 runs."""

A100_VTRAIN: Final = Efficiency(
    matmul_overhead=0.0774,
    matmul_rows=2.27,
    matmul_cols=303,
    attention_overhead=1,
    attention_rows=100,
    memory_overhead=0.251,
    launch_time=6.49e-05,
    collective_latency=1.14e-05,
    network_overhead=0.374,
)
"""Megatron-DeepSpeed on A100, small models included: held up by kernel launches: fitted to
the vTrain artifact (Bang et al., MICRO 2024), 1,032 runs."""

A100_BLOOM: Final = Efficiency(
    matmul_overhead=0.0457,
    matmul_rows=1.35e03,
    matmul_cols=343,
    attention_overhead=5.05,
    attention_rows=95.9,
    memory_overhead=1.5,
    launch_time=5e-06,
    collective_latency=0.000475,
    network_overhead=1.53,
)
"""Megatron-DeepSpeed of BLOOM-176B on A100: fitted to
the BigScience chronicles, 64 runs."""

H100_NEMO: Final = Efficiency(
    matmul_overhead=0.149,
    matmul_rows=95.8,
    matmul_cols=206,
    attention_overhead=3.09,
    attention_rows=99.1,
    memory_overhead=0.222,
    launch_time=5e-06,
    collective_latency=2.58e-05,
    network_overhead=0.313,
)
"""NeMo (Megatron-Core, Transformer Engine) on H100, bf16: fitted to
NVIDIA DGX Cloud benchmarking recipes, 53 runs."""

B200_MEGATRON: Final = Efficiency(
    matmul_overhead=1.1,
    matmul_rows=99,
    matmul_cols=237,
    attention_overhead=0.815,
    attention_rows=99.6,
    memory_overhead=1.3,
    launch_time=5.61e-05,
    collective_latency=2.39e-05,
    network_overhead=0.514,
)
"""Megatron-LM with Transformer Engine on B200, bf16, no overlap: fitted to
SimuMax v1.2 formal results, 12 runs."""

CS2_MODEL_ZOO: Final = Efficiency(
    matmul_overhead=1.43,
    attention_overhead=9.37,
    collective_latency=0.00117,
)
"""Cerebras Model Zoo on a CS-2, weights streamed: fitted to
Zhang et al. (arXiv 2409.00287, tables IV and V) and logs of the same runs, 22 runs; three fields, the others are 0."""

A100_FSDP: Final = Efficiency(
    matmul_overhead=0.114,
    matmul_rows=697,
    matmul_cols=657,
    attention_overhead=2.04,
    attention_rows=101,
    memory_overhead=0.411,
    launch_time=5e-06,
    collective_latency=2.01e-05,
    network_overhead=0.493,
)
"""PyTorch FSDP (Composer, flash attention) on A100: fitted to
the llm-foundry benchmarking tables (MosaicML), 43 runs."""

H100_FSDP: Final = Efficiency(
    matmul_overhead=0.325,
    matmul_rows=2.16e03,
    matmul_cols=827,
    attention_overhead=4.45,
    attention_rows=101,
    memory_overhead=0.475,
    launch_time=5e-06,
    collective_latency=2.01e-05,
    network_overhead=3.76,
)
"""The same on H100, bf16, 32 runs."""

FSDP_SOURCES: Final = ("llm-foundry", "fms-fsdp", "torchtitan")
"""Sources that train with PyTorch FSDP; only rows of the first entered a fit."""

BY_SOURCE: Final = (
    *(("A100", text, A100_FSDP) for text in FSDP_SOURCES),
    *(("H100", text, H100_FSDP) for text in FSDP_SOURCES),
    ("A100", "vTrain", A100_VTRAIN),
    ("A100", "BLOOM", A100_BLOOM),
    ("A100", "", A100_MEGATRON),
    ("H100", "", H100_NEMO),
    ("B200", "", B200_MEGATRON),
    ("CS-2", "", CS2_MODEL_ZOO),
)
"""Chip, text that the source contains, efficiency: the first that fits is used."""


def of(chip: str, source: str) -> Efficiency | None:
    """Return the efficiency for rows of a chip and a source, or None where none was fitted.

    Args:
        chip: such as `A100`.
        source: who measured.
    """
    return next((record for name, text, record in BY_SOURCE if name == chip and text in source), None)
