"""Efficiency of real machines and their software, fitted to measured training runs.

Each constant was fitted by `watos calibrate FILE --chip CHIP --source TEXT` to rows of one chip and one family of
software (docs/accuracy.md has the texts); `of` says which rows are predicted with which. Runs of Korthikanti et al.
(arXiv 2205.05198) entered no fit.
"""

from typing import Final

from watos_jax.hardware import Efficiency

A100_MEGATRON: Final = Efficiency(
    matmul_overhead=0.363,
    matmul_rows=48.6,
    matmul_cols=322,
    attention_overhead=4.72,
    attention_rows=119,
    memory_overhead=0.0868,
    launch_time=5e-06,
    collective_latency=6.8e-05,
    network_overhead=0.0237,
)
"""Megatron-LM and InternEvo on A100: fitted to
Narayanan et al. (SC 2021), the Megatron-LM README tables and the InternEvo performance document, 27 runs."""

A100_VTRAIN: Final = Efficiency(
    matmul_overhead=0.24,
    matmul_rows=4.86,
    matmul_cols=43.6,
    attention_overhead=1,
    attention_rows=100,
    memory_overhead=0.363,
    launch_time=6.58e-05,
    collective_latency=7.85e-07,
    network_overhead=0.825,
)
"""Megatron-DeepSpeed on A100, small models included: held up by kernel launches: fitted to
the vTrain artifact (Bang et al., MICRO 2024), 1,032 runs."""

A100_BLOOM: Final = Efficiency(
    matmul_overhead=0.0402,
    matmul_rows=1.43e03,
    matmul_cols=448,
    attention_overhead=5.05,
    attention_rows=96.4,
    memory_overhead=1.5,
    launch_time=5e-06,
    collective_latency=0.000309,
    network_overhead=1.4,
)
"""Megatron-DeepSpeed of BLOOM-176B on A100: fitted to
the BigScience chronicles, 64 runs."""

H100_NEMO: Final = Efficiency(
    matmul_overhead=0.0237,
    matmul_rows=510,
    matmul_cols=631,
    attention_overhead=2.88,
    attention_rows=83.4,
    memory_overhead=0.0364,
    launch_time=5e-06,
    collective_latency=5.37e-05,
    network_overhead=0.0281,
)
"""NeMo (Megatron-Core, Transformer Engine) on H100, 16 and 8 bits: fitted to
NVIDIA DGX Cloud benchmarking recipes, 105 runs."""

B200_MEGATRON: Final = Efficiency(
    matmul_overhead=0.713,
    matmul_rows=164,
    matmul_cols=2.63e03,
    attention_overhead=1.18,
    attention_rows=100,
    memory_overhead=0.666,
    launch_time=8.98e-06,
    collective_latency=1.54e-05,
    network_overhead=0.872,
)
"""Megatron-LM with Transformer Engine on B200, bf16, no overlap, dense models and mixtures: fitted to
SimuMax v1.2 formal results, 24 runs."""

GB200_NEMO: Final = Efficiency(
    matmul_overhead=0.0336,
    matmul_rows=86.7,
    matmul_cols=3.22e03,
    attention_overhead=0.445,
    attention_rows=102,
    memory_overhead=1.06,
    launch_time=5e-06,
    collective_latency=0.000332,
    network_overhead=0.017,
)
"""Megatron-Bridge in NeMo containers on GB200, 8 and 4 bits: fitted to
NVIDIA's Megatron-Bridge performance summaries (releases 25.09 to 26.06), 32 runs of 20 configurations."""

GB300_NEMO: Final = Efficiency(
    matmul_overhead=0.0292,
    matmul_rows=1.6e03,
    matmul_cols=97.1,
    attention_overhead=2.78,
    attention_rows=94,
    memory_overhead=0.039,
    launch_time=5e-06,
    collective_latency=7.67e-06,
    network_overhead=0.0171,
)
"""The same on GB300, 28 runs of 18 configurations."""

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
    matmul_overhead=0.323,
    matmul_rows=2.19e03,
    matmul_cols=669,
    attention_overhead=4.55,
    attention_rows=101,
    memory_overhead=0.828,
    launch_time=5e-06,
    collective_latency=2.01e-05,
    network_overhead=3.77,
)
"""The same on H100, 16 and 8 bits, 35 runs."""

FSDP_SOURCES: Final = ("llm-foundry", "fms-fsdp", "torchtitan")
"""Sources that train with PyTorch FSDP; only rows of the first entered a fit."""

BY_SOURCE: Final = (
    *(("A100", text, A100_FSDP) for text in FSDP_SOURCES),
    *(("H100", text, H100_FSDP) for text in FSDP_SOURCES),
    ("A100", "vTrain", A100_VTRAIN),
    ("A100", "BLOOM", A100_BLOOM),
    ("A100", "", A100_MEGATRON),
    ("H100", "", H100_NEMO),
    ("H200", "", H100_NEMO),
    ("B200", "Megatron-Bridge", GB200_NEMO),
    ("B200", "", B200_MEGATRON),
    ("B300", "", GB300_NEMO),
    ("GB200", "", GB200_NEMO),
    ("GB300", "", GB300_NEMO),
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
