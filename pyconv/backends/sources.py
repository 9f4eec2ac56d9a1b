"""The texts of the kernels, as a compiler is given them: a source, and every header it can include."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

import pyconv.kernels

#: The folder that ``#include "common/cuda.h"`` starts from.
KERNELS = Path(pyconv.kernels.__file__).resolve().parent

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


def included(source: str, folder: Path = KERNELS) -> list[str]:
    """``source`` and every file of ours it can include, whatever macros are set; paths under ``folder``."""
    found: dict[str, None] = {}
    waiting = [source]
    while waiting:
        name = waiting.pop()
        if name in found or not (folder / name).is_file():  # a missing file is the compiler's to report
            continue
        found[name] = None
        for match in _INCLUDE.findall((folder / name).read_bytes()):
            include = match.decode()
            beside = (folder / name).parent / include
            path = beside if beside.is_file() else folder / include
            waiting.append(_under(path, folder))
    return sorted(found)


def _under(path: Path, folder: Path) -> str:
    resolved = path.resolve()
    return str(resolved.relative_to(folder)) if resolved.is_relative_to(folder) else str(resolved)


@cache
def digest(source: str, folder: Path = KERNELS) -> str:
    """A hash of what :func:`included` lists: names and contents. Taken once a process."""
    total = hashlib.sha256()
    for name in included(source, folder):
        text = (folder / name).read_bytes()
        total.update(f"{name} {len(text)}\n".encode())
        total.update(text)
    return total.hexdigest()
