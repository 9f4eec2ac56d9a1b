"""Machine code of the Numba CPU kernels, made when it is first asked for and kept on disk.

The folder is ``numba-cpu`` in ``$PYCONV_CACHE``, else in ``$NUMBA_CACHE_DIR``, else in ``build`` of a
checkout, else in ``~/.cache/pyconv``. Numba's own cache writes the files; what it lacks is here. Its entries
know the file of the kernel but not those that the kernel imports, so the folder's name has a hash of all of
them. Two processes that fill one of its indexes at once can mix up their entries, so a process locks the
folder while it compiles, and the next one then finds the code there.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from pyconv.backends.cache import Cache, locked
from pyconv.backends.sources import KERNELS
from pyconv.registry import Kernel


def folder() -> Path:
    """Where the machine code of these very sources is kept."""
    chosen, numbas = os.environ.get("PYCONV_CACHE"), os.environ.get("NUMBA_CACHE_DIR")
    checkout = KERNELS.parent
    if chosen or numbas:
        root = Path(chosen or numbas or "").expanduser()
    elif (checkout / "setup.py").is_file() and os.access(checkout, os.W_OK):
        root = checkout / "build"
    else:
        root = Path("~/.cache/pyconv").expanduser()
    return root / "numba-cpu" / _digest()


@cache
def _digest() -> str:
    import numba
    import numpy

    total = hashlib.sha256(f"{numba.__version__} {numpy.__version__} {sys.version}".encode())
    for path in sorted(KERNELS.rglob("*numba_cpu.py")):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:20]


@cache
def _disk(folder: Path) -> Cache:
    return Cache(folder)


# One thread compiles at a time, and a fork waits for it: Numba's own lock would be lost in the child.
_compiling = threading.RLock()


def _forked() -> None:
    global _compiling
    _compiling = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _compiling.acquire(),
        after_in_parent=lambda: _compiling.release(),
        after_in_child=_forked,
    )


def compiled(kernel: Kernel, parallel: bool, sizes: Any, arrays: list[Any]) -> Callable[..., None]:
    """The function of a line, which is named after its pass, with machine code for arguments of these types.

    Args:
        parallel: The form on Numba's threads, or the one on the calling thread.
        sizes, arrays: What it will be called with.
    """
    import numba

    module = importlib.import_module("pyconv.kernels." + kernel.source.removesuffix(".py").replace("/", "."))
    pair = getattr(module, kernel.pass_)
    dispatcher = pair.parallel if parallel else pair.serial
    types = tuple(numba.typeof(argument) for argument in (sizes, *arrays))
    with _compiling:
        if types in dispatcher.overloads:
            return dispatcher  # type: ignore[no-any-return]
        place = folder() / ("parallel" if parallel else "serial")
        if not _disk(place).usable():
            dispatcher.compile(types)
            return dispatcher  # type: ignore[no-any-return]
        with locked(place / "lock"):
            _keep_in(place, dispatcher)
            try:
                dispatcher.compile(types)
            except Exception as error:
                # A damaged entry, or a full disk. If it is the kernel, it will fail once more.
                warnings.warn(
                    f"pyconv: compiled kernels in {place} cannot be used ({type(error).__name__}: {error}); "
                    "they are made anew",
                    stacklevel=2,
                )
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                _keep_in(place, dispatcher)
                dispatcher.compile(types)
    return dispatcher  # type: ignore[no-any-return]


def _keep_in(place: Path, dispatcher: Any) -> None:
    numba = importlib.import_module("numba")
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(place)
    try:
        dispatcher.enable_caching()
    finally:
        numba.config.CACHE_DIR = before
