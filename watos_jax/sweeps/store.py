"""A sweep on disk: one folder with a manifest and Parquet files, each whole or not there.

    manifest.json           the space and its digest, library version, device, seed, columns with units
    parts/00000000.parquet  answers of one part; it is written last, so a part is finished where this file exists
    rows/00000000.parquet   rows of one part, where rows are kept
    top.parquet, pareto.parquet, histogram.parquet    the answers, once all parts are finished

Every file is written beside its place, flushed to the disk and renamed into place; nothing that exists is overwritten.
The files of a part hold no time or name of a machine, so that equal sweeps are equal byte for byte.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import jax
import numpy as np

from watos_jax.sweeps import merge
from watos_jax.sweeps.answers import Sweep
from watos_jax.sweeps.columns import Column, Rows, expanded
from watos_jax.sweeps.files import StoreError, explained, locked, replace_file, visible
from watos_jax.sweeps.metrics import METRICS
from watos_jax.sweeps.points import Plan
from watos_jax.sweeps.run import Outcome

FORMAT: Final = 1
"""Version of the folder's layout."""
FLAGS: Final = ("in_top", "in_pareto")
"""Columns of a part's answers that say why a row was kept."""


class Store:
    """The folder of one sweep.

    Attributes:
        path: the folder.
        plan: the sweep that it belongs to.
        manifest: what `manifest.json` says.
    """

    def __init__(self, path: Path, plan: Plan, manifest: dict[str, Any]):
        self.path, self.plan, self.manifest = path, plan, manifest
        self._lock: IO[str] | None = None

    @classmethod
    def open(cls, path: str | Path, plan: Plan, *, chunk: Callable[[], int]) -> "Store":
        """Create the folder, or go on with it where it holds the same sweep.

        Args:
            path: a new or empty folder, or that of an interrupted or finished run.
            plan: the sweep.
            chunk: chooses the points of a tile, which a new folder records: who goes on with it takes the same.

        Raises:
            StoreError: the folder cannot be used; the message says why and what to do.
        """
        _arrow()
        path = Path(path)
        with explained(path):
            if path.exists() and not path.is_dir():
                raise StoreError(f"out is {str(path)!r}: it is a file; it must be a folder")
            file = path / "manifest.json"
            if not file.exists() and path.exists() and any(visible(path)):
                raise StoreError(f"out is {str(path)!r}: it holds other files; it must be new, empty or of this sweep")
            path.mkdir(parents=True, exist_ok=True)
            lock = locked(path)
            try:
                if not file.exists():
                    text = json.dumps(_manifest(plan, chunk()), indent=2) + "\n"
                    replace_file(file, lambda sink: sink.write(text.encode()))
                store = cls.join(path, plan)
                for name in ("parts", "rows") if plan.keep.rows != "none" else ("parts",):
                    (path / name).mkdir(exist_ok=True)
                for left in (*path.glob(".*.tmp"), *path.glob("*/.*.tmp")):
                    left.unlink(missing_ok=True)
            except BaseException:
                lock.close()
                raise
            store._lock = lock
            return store

    @classmethod
    def join(cls, path: str | Path, plan: Plan) -> "Store":
        """Use a folder that another process opened, for one of several that write parts."""
        path = Path(path)
        try:
            manifest = json.loads((path / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise StoreError(f"out is {str(path)!r}: its manifest.json cannot be read ({error})") from None
        if manifest.get("digest") != plan.digest:
            changed = ", ".join(_differences(manifest.get("space", {}), plan.description)) or "format"
            raise StoreError(
                f"out is {str(path)!r}: it holds another sweep (different: {changed}); give a new folder, or the "
                "space that it was started with"
            )
        here, there = jax.default_backend(), manifest["device"]["platform"]
        if here != there:
            raise StoreError(
                f"out is {str(path)!r}: it was started on {there} and this is {here}, whose rounding differs; give a "
                "new folder"
            )
        return cls(path, plan, manifest)

    def close(self) -> None:
        """Let other processes open the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def finished(self) -> set[int]:
        """Numbers of the finished parts."""
        return {int(file.stem) for file in (self.path / "parts").glob("[0-9]*.parquet")}

    def write(self, outcome: Outcome) -> None:
        """Write one part; it is finished when this returns."""
        name = f"{outcome.part.number:08d}.parquet"
        if outcome.rows is not None:
            self._table(self.path / "rows" / name, self.plan.columns, outcome.rows)
        rows = merge.joined([outcome.best, outcome.front])
        index, first = np.unique(rows["index"], return_index=True)
        rows = merge.taken(rows, first)
        flags = {"in_top": outcome.best["index"], "in_pareto": outcome.front["index"]}
        rows |= {flag: np.isin(index, kept) for flag, kept in flags.items()}
        columns = (*self.plan.columns, *(Column(flag, "1") for flag in FLAGS))
        counts = {
            "digest": self.plan.digest,
            "part": outcome.part.number,
            "evaluated": outcome.evaluated,
            "feasible": outcome.feasible,
            "histogram": outcome.histogram.tolist(),
        }
        self._table(self.path / "parts" / name, columns, rows, counts)

    def outcome(self, number: int) -> Outcome:
        """The outcome of a finished part, without its rows."""
        _, parquet = _arrow()
        file = self.path / "parts" / f"{number:08d}.parquet"
        try:
            table = parquet.read_table(file, columns=["index", *self.plan.keep.metrics, *FLAGS])
            counts = json.loads(table.schema.metadata[b"watos_jax"])
        except Exception as error:
            raise StoreError(f"{file} cannot be read ({error}); delete it to have the part computed again") from None
        part = self.plan.part(number)
        cell = self.plan.cells[part.cell]
        columns = {name: table[name].to_numpy() for name in table.column_names}
        names = {column.name: list(column.values) for column in self.plan.columns if column.values is not None}
        metrics = {
            name: np.array([names[name].index(v) for v in columns[name]]) if METRICS[name].is_code else columns[name]
            for name in self.plan.keep.metrics
        }
        point = columns["index"] - cell.first - part.first * cell.strategies
        hardware, strategy = (leaf.astype(np.int32) for leaf in np.divmod(point, cell.strategies))
        rows = self.plan.rows(part, hardware, strategy, metrics)
        best, front = (merge.taken(rows, columns[flag]) for flag in FLAGS)
        best = merge.best(best, self.plan.keep.by, len(best["index"]))
        histogram = np.array(counts["histogram"], np.int64)
        return Outcome(part, counts["evaluated"], counts["feasible"], histogram, best, front, None)

    def write_answers(self, answers: Sweep) -> None:
        """Write the merged answers, unless they are there."""
        group = [Column(c.name, c.unit) for c in self.plan.columns if c.name in self.plan.keep.per]
        of = self.plan.keep.histogram
        unit = "" if of is None else METRICS[of.of].unit
        bins = (*group, Column("low", unit), Column("high", unit), Column("count", "1"))
        shown = tuple(Column(column.name, column.unit) for column in self.plan.columns)
        asked = {
            "top": (self.plan.keep.top, shown, answers.top),
            "pareto": (self.plan.keep.pareto, shown, answers.pareto),
            "histogram": (of, bins, answers.histogram),
        }
        counts = {"digest": self.plan.digest, "evaluated": answers.evaluated, "feasible": answers.feasible}
        for name, (wanted, columns, rows) in asked.items():
            if wanted:
                self._table(self.path / f"{name}.parquet", columns, rows, counts)

    def _table(self, file: Path, columns: tuple[Column, ...], rows: Rows, counts: dict[str, Any] | None = None) -> None:
        if file.exists():
            return
        arrow, parquet = _arrow()
        arrays, fields, plain = [], [], []
        for column in columns:
            array = _array(arrow, column, rows[column.name])
            arrays.append(array)
            metadata = {"unit": column.unit} if column.unit else None
            fields.append(arrow.field(column.name, array.type, nullable=False, metadata=metadata))
            if column.name in METRICS and column.values is None:
                plain.append(column.name)
        metadata = {"watos_jax": json.dumps(counts or {"digest": self.plan.digest})}
        table = arrow.Table.from_arrays(arrays, schema=arrow.schema(fields, metadata=metadata))
        encoded = [name for name in table.column_names if name not in (*plain, "index", *FLAGS)]
        # readers skip by what they filter on; knobs take all their values in every part
        filtered = [name for name in table.column_names if name in METRICS or name == "index"]
        with explained(self.path):
            replace_file(
                file,
                lambda sink: parquet.write_table(
                    table,
                    sink,
                    compression="zstd",
                    compression_level=1,
                    use_dictionary=encoded,
                    column_encoding={name: "DELTA_BINARY_PACKED" for name in table.column_names if name == "index"},
                    write_statistics=filtered,
                ),
            )


def columns(path: str | Path) -> dict[str, str]:
    """Units of the columns of a folder of results, by name."""
    manifest = json.loads((Path(path) / "manifest.json").read_text())
    return {column["name"]: column["unit"] for column in manifest["columns"]}


def _array(arrow: Any, column: Column, values: np.ndarray) -> Any:
    # names as dictionaries of text, numbers as they are
    if column.values is None:
        return arrow.array(values, arrow.string()) if values.dtype == object else arrow.array(values)
    if column.values.dtype != object:
        return arrow.array(expanded((column,), {column.name: values})[column.name])
    return arrow.DictionaryArray.from_arrays(arrow.array(values.astype(np.int8)), arrow.array(list(column.values)))


def _manifest(plan: Plan, chunk: int) -> dict[str, Any]:
    device = jax.local_devices()[0]
    return {
        "format": FORMAT,
        "digest": plan.digest,
        "version": plan.description["version"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": {
            "platform": jax.default_backend(),
            "kind": device.device_kind,
            "count": len(jax.local_devices()),
            "jax": jax.__version__,
        },
        "seed": plan.space.seed,
        "precision": plan.space.precision,
        "chunk": chunk,
        "points": len(plan),
        "parts": plan.num_parts,
        "pruned": plan.pruned,
        "columns": [{"name": column.name, "unit": column.unit} for column in plan.columns],
        "space": plan.description,
    }


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise StoreError(
            "out needs pyarrow, which is not installed: pip install 'watos_jax[sweeps]', or keep only answers in memory"
        ) from None
    return pyarrow, pyarrow.parquet


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    # names of the entries that differ, at most three
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in dict.fromkeys([*old, *new]):
            if old.get(key) != new.get(key):
                found += _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found[:3]
    return [prefix]
