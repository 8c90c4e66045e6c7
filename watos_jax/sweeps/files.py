"""Files that are whole or not there, folders that one process writes, and refusals of the disk in a sentence."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


class StoreError(ValueError):
    """The folder cannot take or give the results; nothing in it was changed."""


def replace_file(file: Path, write: Callable[[Any], Any]) -> None:
    """Write a file whole or not at all; it is on the disk when this returns.

    Args:
        file: its place.
        write: receives an open binary file.
    """
    temporary = file.parent / f".{file.name}.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        with temporary.open("wb") as sink:
            write(sink)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in a sentence what the operating system refuses.

    Args:
        path: the folder, for the message.

    Raises:
        StoreError: an OSError inside `with`.
    """
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; finished parts are kept: free space and start again to go on",
            errno.EDQUOT: "the disk quota is used up; finished parts are kept: free space and start again to go on",
            errno.EFBIG: "a file would be larger than this user may write; finished parts are kept",
            errno.EACCES: "it cannot be written to; it must be a folder that this user may write",
            errno.EPERM: "it cannot be written to; it must be a folder that this user may write",
            errno.EROFS: "its file system is read-only; it must be a folder that can be written",
            errno.ENOTDIR: "a part of the path is a file; it must be a folder",
            errno.ENOENT: "it cannot be created there; it must be a folder that can be made",
        }
        known = reasons.get(error.errno or 0)
        raise StoreError(f"out is {str(path)!r}: {known or error}") from error


def locked(path: Path) -> IO[str]:
    """Lock a folder until the file that is returned is closed, or the process ends, however it ends.

    Args:
        path: the folder.

    Raises:
        StoreError: another process holds it.
    """
    lock = (path / ".lock").open("a")
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ModuleNotFoundError:  # no such locks on this system
        pass
    except BlockingIOError:
        lock.close()
        raise StoreError(f"out is {str(path)!r}: another process is writing it; wait for it or end it") from None
    return lock


def visible(path: Path) -> Iterator[Path]:
    """Entries of a folder that are not hidden."""
    return (entry for entry in path.iterdir() if not entry.name.startswith("."))
