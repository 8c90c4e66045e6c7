"""Train the operator predictor, or judge one that learns from measured kernels.

    python -m watos_jax.learn --out FOLDER
    python -m watos_jax.learn --measured gemm.csv --chip B200

The first draws operators, labels them with the mapper, fits both networks and writes them with their manifest. A run is
deterministic: one seed decides samples, start and order, and nothing is taken from presets. A tenth of the samples,
drawn last, is held out: the errors of the manifest are of them alone. The second cross-validates a network on measured
times by shape, and writes nothing.
"""

import argparse
import json
import sys
from pathlib import Path

from watos_jax.learn.fit import STEPS
from watos_jax.learn.train import train_all
from watos_jax.operators import predictor


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m watos_jax.learn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=predictor.FOLDER, help="folder for the weights and the manifest")
    parser.add_argument("--seed", type=int, default=0, help="of samples, start and order")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the optimizer, a multiple of 1000")
    parser.add_argument("--labels", type=Path, help="folder that keeps the labels of the mapper between runs")
    parser.add_argument("--measured", type=Path, help="CSV file of measured products or attention cores")
    parser.add_argument("--chip", default="", help="what the column `chip` of the rows to be used says")
    arguments = parser.parse_args()
    if arguments.measured is None:
        train_all(arguments.out, arguments.seed, arguments.steps, arguments.labels)
        return
    from watos_jax.learn import measured

    try:
        report = measured.cross_validate(arguments.measured, arguments.chip, seed=arguments.seed)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
