"""Reading measured runs, fitting a machine to them, and judging predictions."""

import csv

import jax
import numpy as np
import pytest

from watos_jax import calibrate, measured, validate
from watos_jax.cli import main
from watos_jax.hardware import Efficiency

ROW = {
    "row_id": "r0",
    "source": "somebody",
    "model": "GPT",
    "layers": "24",
    "hidden": "2048",
    "heads": "16",
    "kv_heads": "16",
    "ffn": "8192",
    "vocab": "51200",
    "seq": "2048",
    "gated_mlp": "0",
    "moe_experts": "0",
    "chip": "A100-SXM4-80GB",
    "n_chips": "8",
    "tp": "2",
    "pp": "2",
    "vpp": "1",
    "dp": "2",
    "cp": "1",
    "ep": "1",
    "sp": "0",
    "zero": "0",
    "mbs": "2",
    "gbs": "32",
    "recompute": "full",
    "precision": "fp16 mixed",
    "iter_time_s": "1.0",
    "mem_per_gpu_gb": "",
    "mem_kind": "",
    "notes": "",
}


def write(path, rows):
    """A CSV file of the rows."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(ROW))
        writer.writeheader()
        writer.writerows(rows)
    return path


def grid():
    """Rows of many shapes and strategies on 8 GPUs."""
    for hidden, layers in ((1024, 12), (2048, 24), (4096, 24), (6144, 32)):
        for tensor, stages, replicas in ((1, 1, 8), (2, 2, 2), (8, 1, 1), (4, 2, 1), (1, 8, 1)):
            for micro in (1, 4):
                yield ROW | {
                    "row_id": f"{hidden}-{tensor}-{stages}-{micro}",
                    "hidden": str(hidden),
                    "ffn": str(4 * hidden),
                    "layers": str(layers),
                    "tp": str(tensor),
                    "pp": str(stages),
                    "dp": str(replicas),
                    "mbs": str(micro),
                }


def test_a_row_becomes_the_run_it_describes():
    run = measured.run_of(ROW, "7")
    assert (run.chip, run.step_time, run.memory) == ("A100", 1.0, None)
    assert float(run.strategy.tensor_parallel) == 2 and float(run.strategy.num_micro_batches) == 8
    assert float(run.strategy.recompute) == 7 and float(run.strategy.flash_attention) == 0
    assert float(run.system.num_dies) == 8
    assert float(run.model.learned_positions) == 1 and float(run.model.gated_mlp) == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chip": "TPUv4"}, "chip without a preset: TPUv4"),
        ({"precision": "fp8"}, "precision that A100 does not multiply in"),
        ({"precision": "fp4", "chip": "H100"}, "precision that H100 does not multiply in"),
        ({"chip": "H100-96GB-HBM2e-500W"}, "chip without a preset"),
        ({"precision": ""}, "precision blank"),
        ({"tp": ""}, "tp blank"),
        ({"tp": "nan"}, "tp blank"),
        ({"zero": "HSDP"}, "sharded within groups or partly: HSDP"),
        ({"zero": "FSDP", "recompute": ""}, "recompute blank with sharded weights"),
        ({"recompute": "selective", "source": "InternEvo"}, "recompute selective beside flash attention"),
        ({"recompute": "selective (per-op)"}, "recompute is not one of"),
        ({"moe_experts": "8"}, "model without a preset"),
        ({"moe_experts": "8", "model": "Mixtral-8x7B"}, "mixture of experts: hidden is not that of the preset"),
        ({"model": "Llama3-8B finetune LoRA"}, "adapters (LoRA)"),
        ({"notes": "LoRA Performance; packed sequences"}, "adapters (LoRA)"),
        ({"heads": "17"}, "heads do not divide hidden"),
        ({"tp": "16"}, "illegal"),
    ],
)
def test_what_cannot_be_represented_is_skipped_with_its_reason(change, reason, tmp_path):
    runs, skipped = measured.read(write(tmp_path / "rows.csv", [ROW, ROW | change]))
    assert len(runs) == 1
    assert sum(skipped.values()) == 1 and next(iter(skipped)).startswith(reason)


@pytest.mark.parametrize(
    ("chip", "devices", "tiers"), [("GB300", 8, (8, 1)), ("GB200", 256, (64, 4)), ("H200", 16, (8, 2))]
)
def test_a_job_takes_as_many_devices_of_every_node(chip, devices, tiers):
    run = measured.run_of(ROW | {"chip": chip, "n_chips": str(devices), "dp": str(devices // 4), "gbs": "512"}, "7")
    assert tuple(float(tier.cols) for tier in run.system.tiers) == tiers


def test_narrow_products_are_read():
    run = measured.run_of(ROW | {"chip": "H100", "precision": "FP8-MX"}, "7")
    assert run.system.precision.operand_bytes == 1.0
    assert measured.run_of(ROW, "7").system.precision.operand_bytes == 2.0


def test_a_mixture_is_its_published_model_with_the_layers_of_the_row():
    row = ROW | {"model": "DeepSeekV3 proxy L4", "moe_experts": "256", "moe_topk": "8", "hidden": "7168", "layers": "4"}
    run = measured.run_of(
        row | {"chip": "B200", "tp": "1", "ep": "4", "dp": "4", "recompute": "none", "vocab": "129280"}, "7"
    )
    assert (float(run.model.num_layers), float(run.model.num_dense_layers)) == (4, 1)
    assert float(run.model.moe_ffn_hidden_size) == 2048 and float(run.strategy.expert_parallel) == 4
    whole = measured.published("DeepSeek-V3", 61.0, 4096.0)
    assert float(whole.num_dense_layers) == 3
    with pytest.raises(measured.Skip, match="model without a preset"):
        measured.published("Grok", 64.0, 8192.0)


def test_sharded_weights_and_overlap_are_read():
    run = measured.run_of(
        ROW | {"zero": "3", "source": "MosaicML llm-foundry", "pp": "1", "dp": "4", "precision": "bf16/PURE"}, "7"
    )
    assert float(run.strategy.optimizer_sharding) == 3 and float(run.strategy.gradient_bytes) == 2
    assert (run.system.overlap.independent, run.system.overlap.tensor) == (1.0, 0.0)
    # weights stay gathered in a pipeline
    assert float(measured.run_of(ROW | {"zero": "FSDP2"}, "7").strategy.optimizer_sharding) == 2
    assert measured.run_of(ROW, "7").system.overlap.independent == 0.0


def test_a_file_without_a_column_is_refused(tmp_path):
    (tmp_path / "bad.csv").write_text("source,model\nx,y\n")
    with pytest.raises(ValueError, match=r"bad\.csv lacks the column"):
        measured.read(tmp_path / "bad.csv")
    with pytest.raises(ValueError, match=r"absent\.csv cannot be read: No such file"):
        measured.read(tmp_path / "absent.csv")
    (tmp_path / "bad.csv").write_bytes(b"source,model\n\xff,y\n")
    with pytest.raises(ValueError, match=r"bad\.csv cannot be read as a CSV file: 'utf-8'"):
        measured.read(tmp_path / "bad.csv")


def test_a_broken_row_is_counted_and_spoils_no_other(tmp_path, capfd):
    """Too few cells, too many, half a layer, a width in another unit."""
    jax.devices()  # a command must find JAX running: it may not change the devices of the other tests
    columns = list(ROW)
    rows = [ROW, {"source": "x"}, ROW | {"layers": "3.5"}, ROW | {"hidden": "1e300"}]
    lines = [",".join(columns), *(",".join(row.get(name, "") for name in columns) for row in rows)]
    lines += [lines[1] + ",more", lines[1].split(",")[0]]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines))
    runs, skipped = measured.read(path)
    assert len(runs) == 2
    assert main(["calibrate", str(path), "--chip", "H200"]) == 2
    assert f"--chip is 'H200': {path} must hold runs on it that can be modelled" in capfd.readouterr().err
    assert skipped == {
        "chip without a preset: blank": 2,
        "illegal: Transformer.num_layers": 1,
        "hidden is no number above 0, up to 1e+15": 1,
    }


@pytest.mark.float64
def test_a_fit_recovers_the_machine_that_made_the_times():
    truth = Efficiency(
        matmul_overhead=0.5,
        matmul_rows=200.0,
        matmul_cols=400.0,
        attention_overhead=2.0,
        attention_rows=100.0,
        memory_overhead=0.6,
        launch_time=2e-5,
        collective_latency=5e-5,
        network_overhead=0.4,
    )
    runs = [measured.run_of(row, "0") for row in grid()]
    times = np.asarray(calibrate.predict(calibrate.stack(runs), truth))
    runs = [run._replace(step_time=float(time)) for run, time in zip(runs, times, strict=True)]
    found = calibrate.fit(runs)
    assert found.error < 0.002
    assert found.cross_validated_error < 0.01
    assert found.num_rows == found.num_configurations == 40
    assert found.num_parameters == len(jax.tree.leaves(truth))
    for name in ("launch_time", "collective_latency"):
        assert float(getattr(found.efficiency, name)) == pytest.approx(float(getattr(truth, name)), rel=0.2)
    # a machine twice as slow per kernel is told apart: the fit can fail
    slower = [run._replace(step_time=2.0 * run.step_time) for run in runs]
    assert float(calibrate.fit(slower).efficiency.matmul_overhead) > 1.0


def test_a_fit_needs_rows():
    with pytest.raises(ValueError, match="1 runs of 1 configurations have a measured time: a fit needs at least"):
        calibrate.fit([measured.run_of(ROW, "0")])


def test_errors_ranks_and_regret_by_hand():
    truth = np.array([1.0, 2.0, 4.0, 3.0])
    predicted = np.array([1.1, 2.0, 2.0, 3.0])
    errors = validate.summary(predicted, truth)
    assert errors["mape"] == pytest.approx((0.1 + 0.5) / 4)
    assert errors["median_ape"] == pytest.approx(0.05)
    assert errors["max_ape"] == pytest.approx(0.5)
    assert errors["bias"] == pytest.approx((0.1 - 0.5) / 4)
    ranks = validate.ranking(["a"] * 4, predicted, truth)
    # six pairs: four agree, one is tied in the prediction and left out, one is swapped
    assert ranks["tau"] == pytest.approx((4 - 1) / 5)
    assert ranks["regret"] == 0.0
    assert validate.ranking(["a"] * 4, truth.max() - truth, truth)["regret"] == pytest.approx(3.0)
    assert validate.ranking(["a", "b", "c", "d"], predicted, truth) == {"tau": None, "regret": None}


def test_the_naive_baseline_has_one_utilisation_per_source():
    runs = [measured.run_of(row, "0") for row in grid()][:6]
    ideal = validate.naive_times([run._replace(step_time=1.0) for run in runs])
    runs = [run._replace(step_time=float(3.0 * time)) for run, time in zip(runs, ideal, strict=True)]
    np.testing.assert_allclose(validate.naive_times(runs), 3.0 * ideal, rtol=1e-5)
