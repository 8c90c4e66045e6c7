"""Predictions against network simulators that share no code with the library; no number is fitted.

`data/network_simulated.csv` holds rows of runs of ASTRA-sim 2.0 (arXiv 2303.14006) with the congestion-aware
analytical backend, SimGrid 3.32 SMPI (Casanova et al., 2014, J. Parallel Distrib. Comput. 74(10)), TACOS (arXiv
2304.05301) and BookSim 2 (Jiang et al., 2013, ISPASS). The whole tables are read where WATOS_JAX_DATA names their
folder.
"""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from watos_jax.network.collectives import Transport, ring_all_reduce
from watos_jax.network.contention import Network
from watos_jax.network.simulated import predict
from watos_jax.network.topology import Fabric
from watos_jax.units import GIGA, MIB, NANO
from watos_jax.validate import network

SAMPLE = Path(__file__).parent / "data" / "network_simulated.csv"
TOLERANCE = 0.08
"""Median error of each class of buffers of 1 MiB and more."""
CLASSES = (
    "astra: direct all-to-all, mesh, few chunks",
    "astra: ring per dimension, mesh, chunked",
    "astra: ring per dimension, mesh, whole messages",
    "astra: ring per dimension, torus, chunked",
    "astra: ring, line, chunked",
    "astra: ring, line, whole messages",
    "astra: ring, mesh, chunked",
    "astra: ring, ring, chunked",
    "simgrid: all-to-all by rotation, mesh, row-major",
    "simgrid: all-to-all pairwise, mesh, row-major",
    "simgrid: direct all-to-all, mesh, row-major",
    "simgrid: direct all-to-all, torus",
    "simgrid: halving and doubling, mesh, row-major",
    "simgrid: ring, line",
    "simgrid: ring, mesh, hamiltonian-cycle",
    "simgrid: ring, mesh, row-major",
    "simgrid: ring, mesh, snake",
    "simgrid: ring, torus",
    "tacos: synthesised against bound, line",
    "tacos: synthesised against bound, mesh",
    "tacos: synthesised against bound, torus",
)
OTHERS = {
    "astra: direct all-to-all, line, few chunks": 0.08,
    "astra: direct all-to-all, line, whole messages": 0.17,
    "astra: direct all-to-all, mesh, whole messages": 0.08,
    "astra: direct all-to-all, torus, whole messages": 0.17,
    "astra: halving and doubling, mesh, whole messages": 0.01,
    "astra: ring per dimension, torus, whole messages": 0.01,
    "astra: ring, mesh, whole messages": 0.01,
    "astra: ring, ring, whole messages": 0.01,
    "simgrid: all-to-all by rotation, mesh, hamiltonian-cycle": 0.1,
    "simgrid: all-to-all pairwise, switch": 0.01,
    "simgrid: all-to-all pairwise, torus": 0.08,
    "simgrid: direct all-to-all, switch": 0.01,
    "simgrid: halving and doubling, line": 0.08,
    "simgrid: halving and doubling, ring": 0.08,
    "simgrid: halving and doubling, switch": 0.01,
    "simgrid: halving and doubling, torus": 0.08,
    "simgrid: recursive doubling, line": 0.08,
    "simgrid: recursive doubling, mesh, row-major": 0.08,
    "simgrid: recursive doubling, ring": 0.08,
    "simgrid: ring, ring": 0.08,
    "simgrid: ring, switch": 0.01,
}
"""Largest median error of the other classes; an all-to-all of whole messages is predicted too slow."""


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def tables():
    folder = os.environ.get("WATOS_JAX_DATA")
    if not folder:
        pytest.skip("WATOS_JAX_DATA is not set: it names the folder of the bulk tables")
    return [read(path) for path in sorted((Path(folder) / "network").glob("*.csv"))]


@pytest.fixture
def errors(tmp_path):
    """Report of rows of several tables: a file holds the columns of all of them."""

    def compare(rows, **options):
        path = tmp_path / "rows.csv"
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
        return network(path, **options)

    return compare


def test_the_sample_is_predicted(errors):
    found = errors(read(SAMPLE))
    assert set(found["groups"]) <= set(CLASSES)
    for case, error in found["groups"].items():
        assert error["median_ape"] <= TOLERANCE, (case, error)
    assert sum(found["skipped"].values()) == 2  # the rows of BookSim are below 1 MiB


def test_the_comparison_can_fail(errors):
    wrong = [{**row, "time_us": str(2 * float(row["time_us"]))} for row in read(SAMPLE)]
    assert all(error["median_ape"] > TOLERANCE for error in errors(wrong)["groups"].values())
    doubled = [{**row, "link_GBps": str(2 * float(row["link_GBps"]))} for row in read(SAMPLE)]
    assert max(error["median_ape"] for error in errors(doubled)["groups"].values()) > 5 * TOLERANCE


def test_whole_tables_are_predicted(errors):
    found = errors([row for table in tables() for row in table if "time_us" in row and "collective" in row])
    assert set(found["groups"]) == {*CLASSES, *OTHERS}
    for case, error in found["groups"].items():
        assert error["median_ape"] <= OTHERS.get(case, TOLERANCE), (case, error)
        assert error["used"] >= 10
    assert found["used"] > 3000


def test_flits_take_at_most_a_fifth_more_than_the_bound(errors):
    rows = [row for table in tables() for row in table if row["tool"] == "booksim2" and "time_us" in row]
    for error in errors(rows, least_bytes=0.0)["groups"].values():
        assert -0.25 < error["bias"] < 0
        assert error["max_ape"] < 0.2


def test_concurrent_groups_of_a_training_step():
    """Tensor groups on rows, data groups on columns of a 4 x 4 network: 8 layers of 4 and 1 all-reduces.

    Where bandwidth rules; at higher bandwidths adding latency and transfer is up to a third too much.
    """
    rows = [row for table in tables() for row in table if "tp_comm_us" in row and row["splits"] == "16"]
    rows = [row for row in rows if float(row["link_GBps"]) <= 1000]
    assert rows
    dies = np.arange(16).reshape(4, 4)
    for row in rows:
        network = Network((Fabric("mesh" if row["topology"] == "Mesh_Mesh" else "torus", 4, 4),))
        transport = Transport(store_and_forward=True)
        times = []
        for groups, size, count in (
            (dies, float(row["act_bytes_per_AR"]), 4),
            (dies.T, float(row["grad_bytes_per_layer"]), 1),
        ):
            ring = ring_all_reduce(network, groups, directions="one", transport=transport)
            once = size * ring.volume[0] / (float(row["link_GBps"]) * GIGA)
            times.append(8 * count * (once + ring.steps[0] * float(row["latency_ns"]) * NANO))
        assert times[0] == pytest.approx(float(row["tp_comm_us"]) * 1e-6, rel=0.1)
        assert times[1] == pytest.approx(float(row["dp_serial_us"]) * 1e-6, rel=0.1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tool": "calculator"}, "not a table of collectives of a known simulator"),
        ({"topology": "FullyConnected"}, "topology FullyConnected is not modelled"),
        ({"algorithm": "bruck"}, "algorithm bruck is not modelled"),
        ({"collective": "gossip"}, "collective gossip is not modelled"),
        ({"rank_mapping": "random"}, "rank_mapping random is not modelled"),
        ({"dims": "x8"}, "dims x8 are not modelled"),
        ({"bytes": "abc"}, "bytes is no number above 0"),
        ({"link_GBps": "0"}, "link_GBps is no number above 0"),
        ({"latency_ns": "nan"}, "latency_ns is no number from 0"),
    ],
)
def test_rows_that_are_not_modelled_say_why(change, reason):
    row = {
        "tool": "simgrid-3.32 smpi CM02",
        "topology": "mesh",
        "dims": "4x4",
        "collective": "all_reduce",
        "algorithm": "lr",
        "bytes": str(MIB),
        "link_GBps": "100",
        "latency_ns": "100",
        "time_us": "24",
        "rank_mapping": "snake",
    }
    assert not predict(row).skipped
    assert predict({**row, **change}).skipped == reason
    assert np.isnan(predict({**row, **change}).time)
    with pytest.raises(ValueError, match="row has no column or value 'rank_mapping': a table of simgrid needs it"):
        predict({name: value for name, value in row.items() if name != "rank_mapping"})
