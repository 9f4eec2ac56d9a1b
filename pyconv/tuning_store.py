"""What can be done with the file of measured kernels: add to it, list it, delete it, copy it out and in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import torch

from pyconv import tuning
from pyconv.errors import TuningError
from pyconv.tuning_file import Entry, merge, read, write


def keep(entries: Iterable[Entry]) -> None:
    """Adds measurements to the file, and lets selection heed them.

    Raises:
        TuningError: if the file cannot be written, or is something else.
    """
    merge(writable_location(), entries)
    _forget()


def _forget() -> None:
    from pyconv import selection  # which reads what is kept here

    selection.forget()


def writable_location() -> Path:
    """The file of measured kernels, its folder made if it is in the cache.

    Raises:
        TuningError: if the folder cannot be made or is not safe, or ``PYCONV_TUNING`` is ``off``.
    """
    path = tuning.location()
    if path is None:
        raise TuningError("PYCONV_TUNING is off")
    try:
        if tuning.is_ours():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        tuning.check_folder(path)
    except OSError as error:
        raise TuningError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def _readable_location() -> Path:
    path = tuning.location()
    if path is None:
        raise TuningError("PYCONV_TUNING is off")
    tuning.check_folder(path)
    return path


def listing() -> str:
    """The measurements that hold on this machine, problem by problem, and how many others there are.

    Raises:
        TuningError: if the file cannot be used.
    """
    path = _readable_location()
    entries = read(path).values()
    devices = {tuning.device("cpu"), tuning.device("cuda")}
    here = (tuning.sources(), torch.__version__)
    current = [
        entry
        for entry in entries
        if entry.key.device in devices and (entry.key.sources, entry.key.torch) == here
    ]
    lines = []
    by_problem = sorted(current, key=lambda entry: entry.key)
    for (problem, device, settings), group in itertools.groupby(
        by_problem, key=lambda entry: (entry.key.problem, entry.key.device, entry.key.settings)
    ):
        lines += [f"{problem} ({device}; {settings})"]
        lines += [f"  {entry.key.pass_}: {entry.kernel} {entry}" for entry in group]
    others = len(entries) - len(current)
    lines.append(
        f"{path}: {len(current)} measurements for this machine and these versions, {others} for others"
    )
    return "\n".join(lines)


def clear() -> tuple[Path, int]:
    """Deletes the file; says which, and how many measurements it had.

    Raises:
        TuningError: if it cannot be deleted, or is something else.
    """
    path = _readable_location()
    try:
        count = len(read(path))
    except TuningError:
        if not tuning.is_ours():  # someone's own file, which we did not make
            raise
        count = 0
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise TuningError(f"{path}: cannot be deleted ({error.strerror or error})") from None
    _forget()
    return path, count


def export(target: Path) -> int:
    """Writes every measurement to another file, which must not be there yet; says how many they are.

    Raises:
        TuningError: if it is there, or a file cannot be read or written.
    """
    entries = read(_readable_location())
    if target.exists():
        raise TuningError(f"{target}: exists already")
    try:
        write(target, entries)
    except OSError as error:
        raise TuningError(f"{target}: cannot be written ({error.strerror or error})") from None
    return len(entries)


def take(source: Path) -> int:
    """Adds the measurements of an exported file; of two for the same key, the one made last stays.

    Raises:
        TuningError: if there is no such file, or one of the two cannot be used.
    """
    if not source.exists():
        raise TuningError(f"{source}: no such file")
    entries = read(source).values()
    keep(entries)
    return len(entries)
