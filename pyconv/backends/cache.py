"""Compiled kernels kept on disk, so that a kernel is compiled once per machine and not once per process.

The folder is ``cubin`` in ``$PYCONV_CACHE`` or ``~/.cache/pyconv``. An entry's name is a hash of everything
it depends on, so nothing is ever out of date and entries need no locks: two processes that make the same one
write the same bytes under names of their own, and the later ``rename`` wins. The content carries its own
hash, so that a truncated or damaged file is taken for a missing one.

A folder that cannot be written, or that someone else could have filled, is not used: that is said once, and
compilation goes on in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

_MAGIC = b"pyconv 1 "  # the number is the format's


def root() -> Path:
    """The folder of everything that is kept from one process to the next."""
    return Path(os.environ.get("PYCONV_CACHE") or "~/.cache/pyconv").expanduser()


def folder() -> Path:
    """Where compiled kernels are kept."""
    return root() / "cubin"


@contextlib.contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Within the block no other process holds this file, which is made; where files cannot be locked, none is
    kept out."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(lock, "a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing it lets go of the lock


def refusal(folder: Path) -> str | None:
    """Why code must not be taken from this folder, or ``None``: nobody else may have put it there.

    Raises:
        OSError: if the folder is not there.
    """
    me = os.getuid()
    # Who can write the folder above can put another in this one's place: its owner, and everybody unless it
    # is sticky, as /tmp is.
    for place, owners, sticky, words in (
        (folder, (me,), 0, ""),
        (folder.parent, (me, 0), stat.S_ISVTX, f"is in {folder.parent}, which "),
    ):
        status = place.stat()
        if status.st_uid not in owners:
            return f"{words}belongs to user {status.st_uid}"
        if status.st_mode & stat.S_IWOTH and not status.st_mode & sticky:
            return f"{words}can be written by everybody"
    return None


class Cache:
    """Blobs by key, in memory and on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._memory: dict[str, bytes] = {}
        self._building: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._on_disk: bool | None = None  # not tried yet

    def get(self, parts: tuple[str, ...], build: Callable[[], bytes]) -> bytes:
        """The blob of these parts, built if there is none.

        Args:
            parts: Everything the blob depends on. The first names it for people who look into the folder.
            build: Called by one thread of this process at a time for the same parts.
        """
        key = self.key(parts)
        with self._lock:
            known = self._memory.get(key)
            building = self._building.setdefault(key, threading.Lock())
        if known is not None:
            return known
        with building:
            known = self._memory.get(key)
            if known is None:
                known = self._read(key)
                if known is None:
                    known = build()
                    self._write(key, known)
                self._memory[key] = known
        return known

    @staticmethod
    def key(parts: tuple[str, ...]) -> str:
        """The entry's file name: a readable word and a hash that no other parts have."""
        total = hashlib.sha256()
        for part in parts:
            total.update(f"{len(part.encode())} {part}\n".encode())
        word = "".join(letter if letter.isalnum() else "-" for letter in parts[0])[:60]
        return f"{word}-{total.hexdigest()[:40]}"

    # ---- The disk ----

    def _read(self, key: str) -> bytes | None:
        if not self.usable():
            return None
        try:
            with (self.folder / key).open("rb") as file:
                if os.fstat(file.fileno()).st_uid != os.getuid():
                    return None
                content = file.read()
        except OSError:
            return None
        head, _, blob = content.partition(b"\n")
        return blob if head == _head(blob) else None

    def _write(self, key: str, blob: bytes) -> None:
        if not self.usable():
            return
        temporary = None
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=f".{key[:40]}", dir=self.folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_head(blob) + b"\n" + blob)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / key)
        except OSError as error:
            self._give_up(f"cannot be written ({error.strerror or error})")
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def usable(self) -> bool:
        """Whether the folder is ours to write to; where it is not, the first answer also warns."""
        if self._on_disk is None:
            self._on_disk = True
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if why := refusal(self.folder):
                    self._give_up(why)
                elif not os.access(self.folder, os.W_OK | os.X_OK):
                    self._give_up("cannot be written")
            except OSError as error:
                self._give_up(f"cannot be made ({error.strerror or error})")
        return self._on_disk

    def _give_up(self, why: str) -> None:
        self._on_disk = False
        warnings.warn(
            f"pyconv: the folder for compiled kernels, {self.folder}, {why}; kernels are compiled anew in "
            "every process. PYCONV_CACHE names another folder.",
            stacklevel=2,
        )


def _head(blob: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(blob).hexdigest().encode()
