"""What ``pyconv tune`` has measured, as selection reads it: loaded once a process, when first asked for.

The file is ``tuning/measured.jsonl`` in ``$PYCONV_CACHE`` or ``~/.cache/pyconv``; ``PYCONV_TUNING`` names
another, or is ``off``. A measurement is taken only where everything it depends on is as it was
(:class:`pyconv.tuning_file.Key`). The number of threads is not in that: selection never looks at it.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pyconv import machine
from pyconv.backends import cpu
from pyconv.backends.cache import refusal, root
from pyconv.backends.sources import KERNELS
from pyconv.errors import TuningError
from pyconv.problem import Problem
from pyconv.tuning_file import Entries, Entry, Key, read

if TYPE_CHECKING:
    from pyconv.selection import Settings

#: How the reason for a tuned choice begins.
TUNED = "tuned: "

_SOURCES = (".h", ".cpp", ".cu", ".cuh", ".py")


def location() -> Path | None:
    """The file of measured kernels; ``None`` if ``PYCONV_TUNING`` is ``off``.

    Raises:
        TuningError: if it is in a home folder that there is not.
    """
    chosen = _named()
    if chosen == "off":
        return None
    try:
        return Path(chosen).expanduser() if chosen else root() / "tuning" / "measured.jsonl"
    except RuntimeError as error:
        raise TuningError(
            f"no place for what is measured ({error}); PYCONV_TUNING or PYCONV_CACHE names one"
        ) from None


def _named() -> str:
    return os.environ.get("PYCONV_TUNING", "").strip()


def is_ours() -> bool:
    """Whether the file is the one in the cache folder, since ``PYCONV_TUNING`` names none."""
    return not _named()


def check_folder(path: Path) -> None:
    """Raises :class:`pyconv.errors.TuningError` if someone else could have filled the cache folder.

    A file that ``PYCONV_TUNING`` names may be anyone's.
    """
    if is_ours() and path.parent.is_dir() and (why := refusal(path.parent)):
        raise TuningError(f"{path}: not used, since {path.parent} {why}")


@cache
def entries() -> Entries:
    """Every measurement of the file. One that cannot be used is none, and that is said once."""
    try:
        path = location()
    except TuningError:
        return {}
    # Nobody has tuned here, or the home is not ours to read: nothing to warn everybody of.
    if path is None or (is_ours() and not os.access(path, os.R_OK)):
        return {}
    try:
        check_folder(path)
        return read(path)
    except (TuningError, OSError) as error:
        warnings.warn(f"pyconv: {error}; selection goes on without what was measured", stacklevel=2)
        return {}


def lookup(problem: Problem, pass_: str, device_type: str, in_force: Settings) -> Entry | None:
    """The measurement for this problem here and now, if there is one."""
    measured = entries()
    if not measured:
        return None
    key = key_of(problem, pass_, device_type, in_force)
    return None if key is None else measured.get(key)


def key_of(problem: Problem, pass_: str, device_type: str, in_force: Settings) -> Key | None:
    """What a measurement made now would hold for; ``None`` where there is no such device."""
    name = device(device_type)
    if name is None:
        return None
    return Key(str(problem), pass_, name, settings_text(in_force), sources(), torch.__version__)


def device(device_type: str) -> str | None:
    """Kind and name of the device of a kind, the first of several; ``None`` if there is none."""
    if device_type == "cpu":
        isa = "no C++ library" if cpu.unavailable("cpu") else cpu.isa()
        return f"cpu: {machine.processor()}, {isa}"
    if device_type == "cuda" and torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name(0)}"
    return None


def settings_text(in_force: Settings) -> str:
    """The switches in words. What is asked for by name and the emulator change no measurement."""
    switches = {k: v for k, v in in_force._asdict().items() if k not in ("names", "emulation")}
    return " ".join(f"{name}={value}" for name, value in switches.items())


@cache
def sources() -> str:
    """A hash of every file of the kernels, so that a new kernel or a new version of one is measured anew."""
    total = hashlib.sha256()
    for path in sorted(KERNELS.rglob("*")):
        if path.suffix in _SOURCES:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(KERNELS)} {digest}\n".encode())
    return total.hexdigest()[:16]


def refresh() -> None:
    """Lets the next question read the file again."""
    entries.cache_clear()
