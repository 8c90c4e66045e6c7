"""Validation of kernels and memory from files of rows; rows of SimuMax are transcribed, the others are made."""

import csv

import jax
import numpy as np
import pytest

from watos_jax import validate
from watos_jax.cli import main
from watos_jax.presets import chips

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


MATMUL = {"chip": "B200", "dtype": "bf16", "kind": "matmul", "batch": 1, "tflops": "", "time_us": ""}


def matmul_rows():
    """Products that take 1.2 + 150 / m + 400 / n + 400 / k times their ideal time."""
    for m in (1024, 2048, 4096, 8192):
        for n, k in ((2048, 8192), (8192, 2048), (8192, 8192)):
            slower = 1.0 + 0.2 + 150.0 / m + 400.0 / n + 400.0 / k
            seconds = slower * 2.0 * m * n * k / float(chips.DGX_B200.die.flop_rate)
            yield MATMUL | {"m": m, "n": n, "k": k, "time_us": 1e6 * seconds}


@pytest.mark.float64
def test_a_curve_is_found_again_on_products_left_out(tmp_path):
    rows = list(matmul_rows())
    rows[0] |= {"time_us": "", "tflops": 2 * 1024 * 2048 * 8192 / rows[0]["time_us"] / 1e6}
    left = [rows[1] | {"chip": "MI210"}, rows[1] | {"dtype": "fp8"}, rows[1] | {"time_us": ""}]
    few = [rows[1] | {"kind": "grouped_matmul"}] * 3
    report = validate.kernels(write(tmp_path / "rows.csv", [*rows, *left, *few]))
    assert report["used"] == len(rows) and report["mape"] < 0.03 < report["naive_mape"]
    found = report["efficiency"]["products on B200"]
    assert set(found) == {"matmul_overhead", "matmul_rows", "matmul_cols", "launch_time"}
    assert found["matmul_cols"] == pytest.approx(400.0, rel=0.1)
    assert report["skipped"] == {
        "chip without a preset: MI210": 1,
        "precision other than 16 bits": 1,
        "time_us and tflops blank": 1,
        "fewer than 10 kernels of 5 shapes in a group": 3,
    }
    # measurements without a shape are not learned
    noise = np.random.default_rng(0).lognormal(0.0, 0.5, len(rows))
    spoiled = [row | {"time_us": float(row["time_us"] or 100.0) * x} for row, x in zip(rows, noise, strict=True)]
    assert validate.kernels(write(tmp_path / "rows.csv", spoiled))["mape"] > 0.2


@pytest.mark.float64
def test_a_collective_takes_its_bytes_over_the_link_and_a_call(tmp_path):
    def seconds(size):
        return 2 * 7 / 8 * size / 300e9 * 1.25 + 3e-5

    row = {"op": "all_reduce", "chip": "A100-SXM4", "n_ranks": 8, "n_nodes": 1, "busbw_GBs": ""}
    rows = [row | {"size_bytes": 2**i, "time_us": 1e6 * seconds(2**i)} for i in range(14, 34)]
    odd = [rows[0] | {"op": "gossip"}, rows[0] | {"n_ranks": 12, "n_nodes": 2}, rows[0] | {"time_us": ""}]
    report = validate.kernels(write(tmp_path / "rows.csv", rows + odd))
    assert report["mape"] < 0.02 < report["naive_mape"]
    found = report["efficiency"]["all_reduce on A100-SXM4"]
    assert found["network_overhead"] == pytest.approx(0.25, rel=0.05)
    assert sum(report["skipped"].values()) == 3


@pytest.mark.float64
def test_attention_and_elementwise_operators_take_their_time(tmp_path):
    common = {"chip": "H100-SXM5-80GB", "causal": 1, "batch": 2, "heads": 16, "head_dim": 128, "flop_convention": "FA"}
    common |= {"kernel": "FlashAttention-2"}
    rate = float(chips.DGX_H100.die.flop_rate) / 1e12
    rows = [
        common | {"seq": length, "pass_": part, "tflops": rate / (1.5 + 600.0 / length)}
        for length in (1024, 2048, 4096, 8192, 16384)
        for part in ("fwd", "bwd", "fwd+bwd")
    ]
    report = validate.kernels(write(tmp_path / "cores.csv", [*rows, rows[0] | {"pass_": "sideways"}]))
    assert report["mape"] < 0.05 and report["skipped"] == {"pass_ is sideways": 1}
    forward, backward, both = (one["measured"] for one in report["predictions"][:3])
    assert both == pytest.approx(forward + backward) and backward == pytest.approx(2.5 * forward)
    row = {"chip": "A100", "op": "softmax", "m": 2**10}
    bandwidth = float(chips.DGX_A100.die.memory.bandwidth) / 1.4
    rows = [row | {"n": 2**i, "time_us": 1e6 * max(4 * 2 ** (10 + i) / bandwidth, 2e-5)} for i in range(4, 20)]
    report = validate.kernels(write(tmp_path / "rows.csv", rows))
    assert report["mape"] < 0.02
    assert report["efficiency"]["softmax on A100"]["launch_time"] == pytest.approx(2e-5, rel=0.05)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = write(tmp_path / "rows.csv", [{"a": 1}])
    with pytest.raises(ValueError, match=r"rows\.csv has no columns of kernels"):
        validate.kernels(path)
    with pytest.raises(ValueError, match=r"rows\.csv lacks the column"):
        validate.memory(path)
    with pytest.raises(ValueError, match="has no row that can be used"):
        validate.kernels(write(path, [next(matmul_rows()) | {"chip": "MI210"}]))


@pytest.mark.parametrize("kind", ["kernels", "memory", "network", "training"])
def test_the_command_refuses_in_one_sentence(kind, tmp_path, capfd):
    jax.devices()  # a command must find JAX running: it may not change the devices of the other tests
    assert main(["validate", kind, str(tmp_path / "none.csv")]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("watos: ") and err.count("\n") == 1


def test_the_best_constant_is_the_median_of_each_group():
    times = validate.errors.constant_per_group([1.0, 1.0, 1.0, 2.0], [2.0, 3.0, 50.0, 1.0], ["a", "a", "a", "b"])
    np.testing.assert_allclose(times, [3.0, 3.0, 3.0, 1.0])
