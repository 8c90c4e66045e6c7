"""Draw `docs/accuracy.svg`: predicted against measured, every row that is used, from files of public measurements.

    WATOS_JAX_DATA=DIR python docs/draw_accuracy.py

`DIR` holds `training/training_runs.csv` and `kernels/memory_by_rank_simumax_b200.csv`; see `docs/accuracy.md`.
"""

import os
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib import ticker

from watos_jax import validate

FOLDER: Final = "WATOS_JAX_DATA"
PANELS: Final = (
    ("vTrain, A100", ("vTrain",), "fitted"),
    ("BLOOM, A100", ("BLOOM",), "fitted"),
    ("DGX Cloud, H100, 16 and 8 bits", ("DGX Cloud",), "fitted"),
    ("llm-foundry (FSDP), A100 and H100", ("llm-foundry",), "fitted"),
    ("SimuMax, B200, dense and mixtures", ("SimuMax",), "fitted"),
    ("Megatron-Bridge, GB200 and GB300", ("on GB200", "on GB300"), "fitted"),
    ("Korthikanti et al., MegaScale, NeMo 24.07", ("Korthikanti", "MegaScale", "NeMo perf"), "in no fit"),
    ("CS-2, weights streamed", ("CS-2",), "fitted"),
)
"""Title, texts of the sources, and whether efficiencies were fitted to these rows."""
BAND: Final = 0.1


def pairs(report: dict[str, Any], texts: tuple[str, ...]) -> np.ndarray:
    """Measured and predicted values of the groups whose name contains one of the texts, shape (rows, 2)."""
    chosen = [one for one in report["predictions"] if any(text in one["group"] for text in texts)]
    return np.array([(one["measured"], one["predicted"]) for one in chosen], float)


def draw(axis: Any, points: np.ndarray, title: str, note: str, unit: str) -> None:
    """One panel: points on logarithmic axes, the diagonal and a band of 10 %."""
    low, high = points.min() / 1.3, points.max() * 1.3
    line = np.array([low, high])
    axis.fill_between(line, (1 - BAND) * line, (1 + BAND) * line, color="#dddddd", linewidth=0, zorder=0)
    axis.plot(line, line, color="#888888", linewidth=0.8, zorder=1)
    axis.plot(
        points[:, 0],
        points[:, 1],
        ".",
        color="#2171b5",
        markersize=3.5 if len(points) > 300 else 6.0,
        markeredgewidth=0,
        alpha=0.6,
    )
    error = float(np.mean(np.abs(points[:, 1] / points[:, 0] - 1.0)))
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel=f"measured, {unit}")
    axis.set_title(f"{title}\n{len(points)} rows, {note}, mean error {error:.1%}", fontsize=8)
    axis.tick_params(labelsize=7)
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0) if high < 50.0 * low else (1.0,)))
        scale.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        scale.set_minor_formatter(ticker.NullFormatter())
    axis.set_ylabel(f"predicted, {unit}", fontsize=8)
    axis.xaxis.label.set_size(8)


def main() -> None:
    """Validate and draw."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        raise SystemExit(f"{FOLDER} is not set: it must name the folder with the files of measurements")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "watos_jax"  # the same figure from the same data
    from matplotlib import pyplot

    training = validate.training(Path(folder) / "training" / "training_runs.csv")
    memory = validate.memory(Path(folder) / "kernels" / "memory_by_rank_simumax_b200.csv")
    figure, axes = pyplot.subplots(3, 3, figsize=(9.6, 9.6), layout="constrained")
    for axis, (title, texts, note) in zip(axes.flat[:-1], PANELS, strict=True):
        draw(axis, pairs(training, texts), title, note, "s")
    ranks = pairs(memory, ("",)) / 1e9
    draw(axes.flat[-1], ranks, "Memory of each rank, SimuMax, B200", "nothing fitted", "GB")
    target = Path(os.environ.get("OUT", Path(__file__).parent)) / "accuracy.svg"
    figure.savefig(target, metadata={"Date": None})
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
