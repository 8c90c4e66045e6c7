"""Programs kept between processes: a function traced and lowered once, as StableHLO in a folder.

JAX keeps compiled code between processes, but finds it only after it has traced and lowered the function again, which
takes most of a run that compiles nothing. A program that is kept is read instead: the same operations, the same
numbers.

Programs are found by a digest of the function's name, the structure, shapes and types of its arguments, the devices,
the version of JAX and every file of this package, so that none outlives a change. Files are written by rename, and
begin with a digest of what follows: what is damaged is traced again.

Neglects: functions outside this package, devices other than CPUs, settings of JAX other than the precision; results
other than arrays, tuples, dictionaries and `returned` records. All of these are traced as ever.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax import export
from jax.sharding import NamedSharding

Record = TypeVar("Record", bound=type)

_folder: Path | None = None
_read: dict[Any, Callable] = {}


def keep_in(folder: Path | None) -> None:
    """Keep programs in a folder, which must exist, from now on; None keeps none."""
    global _folder
    _folder = folder
    _read.clear()


def returned(record: Record) -> Record:
    """Declare a `NamedTuple` that programs return."""
    export.register_namedtuple_serialization(record, serialized_name=f"{record.__module__}.{record.__qualname__}")
    return record


def kept(
    function: Callable, name: str, args: Any, shardings: tuple[NamedSharding, ...], options: dict[str, bool]
) -> Callable | None:
    """The program of a function, read or made; None where none is to be kept.

    Args:
        function: of the leaves of `args`; not compiled.
        name: dotted name of what the function computes, in this package, and all that it does not take from `args`.
        args: pytree of arrays.
        shardings: of each leaf.
        options: of the compiler.

    Returns:
        A compiled function of the leaves.
    """
    if _folder is None or jax.default_backend() != "cpu" or not name.startswith(f"{__package__}.") or "<" in name:
        return None
    leaves, structure = jax.tree.flatten(args)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    key = name, structure, shapes, len(shardings[0].device_set), jax.config.values["jax_enable_x64"]
    if key not in _read:
        digest = hashlib.sha256(f"{key} {options}".encode() + _digest())
        file = _folder / f"{digest.hexdigest()[:40]}.stablehlo"
        program = _load(file)
        if program is None:
            program = export.export(jax.jit(function))(*leaves)
            _save(file, program)
        _read[key] = jax.jit(program.call, in_shardings=shardings, compiler_options=options)
    return _read[key]


@cache
def _digest() -> bytes:
    # of the package and of what turns it into programs
    found = hashlib.sha256(f"{jax.__version__} {version('jaxlib')}".encode())
    for file in sorted(Path(__file__).parent.rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            found.update(file.read_bytes())
    return found.digest()


def _load(file: Path) -> export.Exported | None:
    try:
        data = file.read_bytes()
    except OSError:
        return None
    whole = hashlib.sha256(data[32:]).digest() == data[:32]
    return export.deserialize(bytearray(data[32:])) if whole else None


def _save(file: Path, program: export.Exported) -> None:
    try:
        data = bytes(program.serialize())
    except ValueError:  # what it returns has no name
        return
    with suppress(OSError):
        number, temporary = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(number, "wb") as out:
            out.write(hashlib.sha256(data).digest() + data)
        os.replace(temporary, file)
