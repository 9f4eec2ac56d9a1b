"""The file of measured kernels: a line that names the format, then one measurement a line, in JSON.

Several processes may write it at once: each takes the lock beside it, reads what is there, adds its own
and puts the whole in place of the old by ``rename``, so that a reader sees the old file or the new one. A
file that is something else, or of another version, is never replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pyconv.backends.cache import locked
from pyconv.errors import TuningError

_HEAD = {"format": "pyconv tuning", "version": 1}
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Key(NamedTuple):
    """What a measurement holds for, and nothing else: all of it must be as it was.

    Attributes:
        problem: Its text form, dtype and layout included.
        pass_: The pass.
        device: Kind and name; on a CPU, the instruction set of the kernels too.
        settings: The switches that selection heeds.
        sources: A hash of the kernels' sources.
        torch: Its version.
    """

    problem: str
    pass_: str
    device: str
    settings: str
    sources: str
    torch: str


@dataclass(frozen=True)
class Entry:
    """One measurement. ``str()`` is what ``explain`` says of the kernel.

    Attributes:
        kernel: The id of the fastest line.
        untuned: The id of the line that selection takes without this entry.
        milliseconds: Median time of a call, by id. A line that was far slower at once is not in it.
        threads: Of torch's pool. Selection never looks at their number.
        measured: When, in UTC.
    """

    key: Key
    kernel: str
    untuned: str
    milliseconds: dict[str, float]
    threads: int
    measured: str

    def __str__(self) -> str:
        fastest = self.milliseconds[self.kernel]
        text = f"tuned: {fastest:.3g} ms"
        if self.untuned == self.kernel:
            text += ", the untuned choice too"
        elif self.untuned in self.milliseconds:
            ratio = self.milliseconds[self.untuned] / fastest
            text += f", {ratio:.2f}x as fast as the untuned choice {_short(self.untuned, self.kernel)}"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{text}, measured {self.measured[:10]} with {threads}"


def _short(kernel_id: str, other_id: str) -> str:
    """A line's algorithm, and its backend where that is another than the other line's."""
    name, _, backend = kernel_id.partition("@")
    algorithm = name.rpartition(".")[2]
    return algorithm if other_id.endswith(f"@{backend}") else f"{algorithm}@{backend}"


Entries = dict[Key, Entry]

#: The fields of a key as the file has them: ``pass``, not ``pass_``.
_NAMES = tuple(name.rstrip("_") for name in Key._fields)


def read(path: Path) -> Entries:
    """The entries of a file; none, if there is no such file.

    Raises:
        TuningError: naming the file, if it cannot be read or is something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise TuningError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise TuningError(f"{path}: no file of measured kernels") from None
    head, *lines = text.removesuffix("\n").split("\n")
    try:
        found = json.loads(head)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("format") != _HEAD["format"]:
        raise TuningError(f"{path}: no file of measured kernels")
    if found != _HEAD:
        raise TuningError(
            f"{path}: measured kernels in a format of version {found.get('version')!r}; "
            f"this pyconv reads version {_HEAD['version']}"
        )
    entries: Entries = {}
    for number, line in enumerate(lines, start=2):
        try:
            entry = _entry(json.loads(line))
        except (ValueError, RecursionError):
            raise TuningError(f"{path}: damaged, line {number} is no measurement") from None
        entries[entry.key] = entry
    return entries


def _entry(fields: Any) -> Entry:
    """Raises ``ValueError`` for anything but what :func:`_line` writes."""
    if not isinstance(fields, dict):
        raise ValueError("no object")
    fields = dict(fields)
    words = [fields.pop(name, None) for name in (*_NAMES, "kernel", "untuned", "measured")]
    times, threads = fields.pop("milliseconds", None), fields.pop("threads", None)
    *key, kernel, untuned, measured = words
    if (
        fields
        or not all(map(_is_word, words))
        or not _DATE.fullmatch(measured)
        or type(threads) is not int
        or not isinstance(times, dict)
        or not all(map(_is_word, times))
        or not all(isinstance(time, float) and 0 < time < float("inf") for time in times.values())
        or kernel not in times
    ):
        raise ValueError("a field is missing, unknown or of another type")
    return Entry(Key(*key), kernel, untuned, times, threads, measured)


def _is_word(word: Any) -> bool:
    """Nothing that a terminal would take for a command, and no half of a character."""
    return isinstance(word, str) and word.isprintable()


def _line(entry: Entry) -> str:
    fields = asdict(entry)
    key = fields.pop("key")
    return json.dumps({**dict(zip(_NAMES, key, strict=True)), **fields}, ensure_ascii=False)


def newest(entries: Entries, more: Iterable[Entry]) -> Entries:
    """Both; of two measurements for the same key the one made last, and the second of equally old ones."""
    merged = dict(entries)
    for entry in more:
        if entry.key not in merged or merged[entry.key].measured <= entry.measured:
            merged[entry.key] = entry
    return merged


def merge(path: Path, more: Iterable[Entry]) -> None:
    """Adds entries to a file, by :func:`newest`.

    Raises:
        TuningError: naming the file, if it cannot be written or is something else.
    """
    path = path.resolve()  # a link stays one
    try:
        with locked(path.with_name(f".{path.name}.lock")):
            write(path, newest(read(path), more))
    except OSError as error:
        raise TuningError(f"{path}: cannot be written ({error.strerror or error})") from None


def write(path: Path, entries: Entries) -> None:
    """Puts a file of these entries in the place of ``path``. Raises ``OSError``."""
    text = "".join(f"{line}\n" for line in (json.dumps(_HEAD), *map(_line, entries.values())))
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
