"""Files of a run folder: whole under their own name or not there, whenever the process or the machine dies.

A file is written under a temporary name in the same folder, synced, and renamed over the old one; then the
folder is synced, because the rename is in it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyconv.errors import RunError

#: What a process that was killed may leave beside a file: its name, the process's number, ``part``.
_TEMPORARY = re.compile(r".\.\d+\.part$")


def write(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file, replacing an older one at once and for good.

    Raises:
        RunError: naming the file, if it cannot be written (a full disk, a folder that is read-only); an older
            one is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            # Not there after a rename; and if even this fails, the reason of the first failure counts.
            with contextlib.suppress(OSError):
                temporary.unlink()
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, if it is not there.

    Raises:
        RunError: naming it, if it cannot be made.
    """
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _sync_folder(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error) from None


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error for a file or folder that cannot be written."""
    place = (
        error.filename if isinstance(error.filename, str) and not isinstance(error, FileExistsError) else ""
    )
    if place.endswith(".part") or not place:
        place = str(path)
    return RunError(
        f"{place}: cannot be written ({error.strerror or error}); what was saved before is unchanged"
    )


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_leftover(path: Path) -> bool:
    """Whether this is a temporary file of a process that was killed while it wrote."""
    return _TEMPORARY.search(path.name) is not None


def remove_leftovers(*folders: Path) -> None:
    """Remove what killed processes left; for one who holds the folder's lock.

    Raises:
        RunError: naming the file, if it cannot be removed.
    """
    for folder in folders:
        for path in folder.glob("*.part"):
            if is_leftover(path):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise cannot_write(path, error) from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder: no two processes may train in one. The lock ends with its process.

    Raises:
        RunError: if another process holds it.
    """
    fcntl: Any
    try:
        import fcntl
    except ImportError:  # Windows has no lock for a folder
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise RunError(f"{folder}: cannot be read ({error.strerror or error})") from None
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder}: another process is training in it") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


#: A process that makes batches outlives a killed trainer by seconds; it must not hold the lock for it.
_held: set[int] = set()


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
