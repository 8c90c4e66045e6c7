"""Validation of kernels and memory from files of rows; rows of SimuMax are transcribed, the others are made."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from watos_jax import validate
from watos_jax.presets import chips, efficiencies

# Peak of each stage, MiB as PyTorch counts it, 8 B200, Megatron-LM with Transformer Engine:
# MooreThreads/SimuMax@4dcaae51 docs/b200/b200_release_v1.2_summary.json
# Columns: model, layers, tensor, pipeline, expert and data parallel, first and last rank
SIMUMAX = (
    ("llama3-70b", 12, 1, 2, 1, 4, 68149.2, 64478.5),
    ("llama3-70b", 12, 2, 1, 1, 4, 62136.3, 62136.3),
    ("llama3-70b", 12, 4, 1, 1, 2, 40009.8, 40009.7),
    ("llama3-70b", 12, 8, 1, 1, 1, 28965.4, 28965.4),
    ("deepseekv2", 4, 1, 1, 8, 8, 46726.2, 46726.9),
    ("deepseekv2", 4, 1, 2, 4, 4, 32342.7, 45775.8),
    ("deepseekv3", 4, 1, 1, 8, 8, 106801.0, 106801.0),
    ("deepseekv3", 4, 1, 2, 4, 4, 72948.3, 116737.0),
)


def write(path, rows):
    """A CSV file of dictionaries."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def ranks():
    """Rows of the first and last rank of each run."""
    names = "model layers tp pp ep dp".split()
    for number, row in enumerate(SIMUMAX):
        for rank, measured in ((0, row[-2]), (7, row[-1])):
            yield dict(zip(names, row, strict=False)) | {
                "case": f"{number} mbc4",
                "rank": rank,
                "max_allocated_mb": measured,
                "max_reserved_mb": 1.05 * measured,
                "seq": 4096,
            }


def test_memory_of_every_rank_is_within_three_per_cent(tmp_path):
    report = validate.memory(write(tmp_path / "ranks.csv", list(ranks())))
    assert (report["rows"], report["used"], report["skipped"]) == (16, 16, {})
    assert report["max_ape"] <= 0.03 and report["memory_mape"] <= 0.015
    assert report["reserved_over_allocated"]["median"] == pytest.approx(1.05)
    assert set(report["groups"]) == {"llama3-70b", "deepseekv2", "deepseekv3"}


def test_wrong_memory_is_seen_and_rows_that_cannot_be_used_are_counted(tmp_path):
    rows = list(ranks())[:5]
    rows[0]["max_allocated_mb"] *= 1.2
    rows[1]["max_allocated_mb"] = ""
    rows[2]["model"] = "unheard of"
    rows[3]["tp"] = 3
    report = validate.memory(write(tmp_path / "ranks.csv", rows))
    assert report["max_ape"] > 0.15
    assert report["rows"] == 5 and report["used"] == 2
    assert report["skipped"] == {
        "max_allocated_mb blank": 1,
        "model without a preset": 1,
        "illegal: tensor_parallel": 1,
    }


MATMUL = {"chip": "B200", "dtype": "bf16", "kind": "matmul", "batch": 1, "m": 4096, "n": 8192, "k": 8192, "tflops": ""}


def test_products_by_hand(tmp_path):
    time = 2 * 4096 * 8192 * 8192 / 1500e12
    rows = [MATMUL | {"time_us": 1e6 * time}, MATMUL | {"time_us": "", "tflops": 1500.0}]
    rows += [MATMUL | {"time_us": 1.0, "chip": "MI210"}, MATMUL | {"time_us": 1.0, "dtype": "fp8"}]
    report = validate.kernels(write(tmp_path / "rows.csv", [*rows, MATMUL | {"time_us": ""}]))
    first, second = report["predictions"]
    assert first["measured"] == pytest.approx(time) and second["measured"] == pytest.approx(time)
    real = efficiencies.B200_MEGATRON
    slower = 1.0 + real.matmul_overhead + real.matmul_rows / 4096 + 2.0 * real.matmul_cols / 8192
    ideal = 2 * 4096 * 8192 * 8192 / float(chips.DGX_B200.die.flop_rate)
    assert first["predicted"] == pytest.approx(slower * ideal, rel=1e-5)
    assert sum(report["skipped"].values()) == 3 and report["rows"] == 5
    assert report["naive_mape"] == pytest.approx(0.0, abs=1e-6)


def test_a_collective_takes_its_bytes_over_the_link(tmp_path):
    row = {"op": "all_reduce", "chip": "A100-SXM4", "n_ranks": 8, "n_nodes": 1, "size_bytes": 2**30, "busbw_GBs": 240.0}
    rows = [row, row | {"n_ranks": 16, "n_nodes": 2}, row | {"op": "gossip"}, row | {"n_ranks": 12, "n_nodes": 2}]
    report = validate.kernels(write(tmp_path / "rows.csv", rows))
    within, between = report["predictions"]
    real = efficiencies.A100_MEGATRON
    assert within["measured"] == pytest.approx(2 * 7 / 8 * 2**30 / 240e9)
    carried = 2 * 7 / 8 * 2**30 / 300e9 * (1.0 + real.network_overhead)
    assert within["predicted"] == pytest.approx(carried + real.collective_latency, rel=1e-2)  # and hops
    # an eighth of the buffer goes to the other node, over one adapter per device
    assert between["predicted"] > within["predicted"] + 2 * 1 / 2 * 2**30 / 8 / 25e9
    assert report["skipped"] == {"operator gossip": 1, "nodes that are not whole": 1}


def test_attention_and_elementwise_operators_take_their_time(tmp_path):
    core = {
        "kernel": "FlashAttention-2",
        "chip": "H100-SXM5-80GB",
        "causal": 1,
        "batch": 2,
        "seq": 8192,
        "heads": 16,
        "head_dim": 128,
        "flop_convention": "FA",
        "tflops": 400.0,
    }
    rows = [core | {"pass_": part} for part in ("fwd", "bwd", "fwd+bwd", "sideways")]
    report = validate.kernels(write(tmp_path / "cores.csv", rows))
    forward, backward, both = report["predictions"]
    assert both["predicted"] == pytest.approx(forward["predicted"] + backward["predicted"], rel=1e-5)
    assert forward["measured"] == pytest.approx(2 * 2 * 8192 * 4096 * 16 * 256 / 400e12)
    assert backward["measured"] == pytest.approx(2.5 * forward["measured"])
    row = {"chip": "A100", "op": "softmax", "m": 2**14, "n": 2**14, "time_us": 800.0}
    only = validate.kernels(write(tmp_path / "rows.csv", [row]))["predictions"][0]
    bandwidth = float(chips.DGX_A100.die.memory.bandwidth) / (1.0 + efficiencies.A100_MEGATRON.memory_overhead)
    assert only["predicted"] == pytest.approx(4 * 2**28 / bandwidth, rel=1e-5)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = write(tmp_path / "rows.csv", [{"a": 1}])
    with pytest.raises(ValueError, match=r"rows\.csv has no columns of kernels"):
        validate.kernels(path)
    with pytest.raises(ValueError, match=r"rows\.csv lacks the column"):
        validate.memory(path)
    with pytest.raises(ValueError, match="has no row that can be used"):
        validate.kernels(write(path, [MATMUL | {"time_us": 1.0, "chip": "MI210"}]))


@pytest.mark.parametrize("kind", ["kernels", "memory"])
def test_the_command_refuses_in_one_sentence(kind, tmp_path):
    code = "import sys; from watos_jax.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "validate", kind, str(tmp_path / "none.csv")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("watos: ") and done.stderr.count("\n") == 1


def test_the_best_constant_is_the_median_of_each_group():
    times = validate.errors.constant_per_group([1.0, 1.0, 1.0, 2.0], [2.0, 3.0, 50.0, 1.0], ["a", "a", "a", "b"])
    np.testing.assert_allclose(times, [3.0, 3.0, 3.0, 1.0])
