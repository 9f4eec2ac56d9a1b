"""Compiles Numba kernels for :mod:`pyconv.backends.emulator`, with a cache on disk.

A source is rewritten (:mod:`pyconv.backends.numba_rewrite`) into a module of the cache, named by the hash of
all that made it; so is the entry of each instantiation, which unpacks the parameters of a launch. Numba
compiles the entry for this processor and keeps the result beside it.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pyconv.backends import emulator, emulator_build, numba_program
from pyconv.backends.emulator_build import Function
from pyconv.backends.emulator_findings import EmulatorError
from pyconv.backends.program import Argument, View
from pyconv.backends.sources import KERNELS
from pyconv.problem import Conv2dProblem, Pool2dProblem

_PREFIX = "pyconv_emulated_"
_OWN = ("numba_intrinsics.py", "numba_rewrite.py", "numba_emulator.py", "numba_program.py")


@cache
def unavailable() -> str | None:
    """``None`` if Numba kernels can be emulated here, else the reason why not."""
    reason = emulator_build.unavailable()
    if reason is None and importlib.util.find_spec("numba") is None:
        reason = "no Numba (pip install numba)"
    return reason


# ---- The cache


def _folder() -> Path:
    return emulator_build.cache_folder() / "numba"


@cache
def _machinery() -> str:
    """What every entry of the cache depends on."""
    import llvmlite
    import numba

    own = [(Path(__file__).parent / name).read_text() for name in _OWN]
    return "\0".join([numba.__version__, llvmlite.__version__, emulator_build.runtime().name, *own])


def _module(name: str, text: str) -> ModuleType:
    """The module of this text, whose name begins with ``name``."""
    key = hashlib.sha256(f"{_machinery()}\0{text}".encode()).hexdigest()[:20]
    full = f"{_PREFIX}{name}_{key}"
    if full not in sys.modules:
        path = _folder() / f"{full}.py"
        if not path.exists() or path.read_text() != text:
            emulator_build.make_folder(path.parent)
            unfinished = path.with_suffix(f".{os.getpid()}")
            unfinished.write_text(text)
            unfinished.replace(path)
        specification = importlib.util.spec_from_file_location(full, path)
        assert specification is not None
        assert specification.loader is not None
        module = sys.modules[full] = importlib.util.module_from_spec(specification)
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[full]
            raise
    return sys.modules[full]


@cache
def _rewritten(path: Path, source: str, checked: bool) -> ModuleType:
    from pyconv.backends import numba_rewrite

    text = path.read_text()
    modules = {}
    for name in numba_rewrite.imports(text):
        other = f"{name.removeprefix('pyconv.kernels.').replace('.', '/')}.py"
        modules[name] = _rewritten(KERNELS / other, other, checked).__name__
    return _module(path.stem, numba_rewrite.rewritten(source, text, modules, checked))


# ---- Instantiations


class _Signature(ctypes.Structure):
    """``Signature`` of ``kernels/emulator/emulate.h``."""

    _fields_ = (("count", ctypes.c_int), ("bytes", ctypes.c_int * 32))


def words(argument: Argument) -> tuple[int, ...]:
    """A parameter in words of 8 bytes; the first of a view is where its pointer goes."""
    if isinstance(argument, View):
        return (0, *argument.shape, *argument.strides)
    if isinstance(argument, (Conv2dProblem, Pool2dProblem)):
        return numba_program.numbers(argument)
    if isinstance(argument, tuple):
        return argument
    assert isinstance(argument, int), argument
    return (argument,)


@dataclass(frozen=True)
class _Parameter:
    """How the entry takes one parameter: an expression, and what it has to import."""

    make: str
    module: str = ""
    name: str = ""


def _parameter(argument: Argument) -> _Parameter:
    if isinstance(argument, View):
        return _Parameter(f"array_argument({argument.dtype!r}, {len(argument.shape)})")
    if isinstance(argument, (Conv2dProblem, Pool2dProblem)):
        argument = numba_program.numbers(argument)
    if isinstance(argument, tuple):
        kind = type(argument)
        return _Parameter(f"tuple_argument({kind.__name__})", kind.__module__, kind.__name__)
    return _Parameter("integer_argument")


def function(source: str, kernel: str, arguments: Sequence[Argument], checked: bool) -> Function:
    """The instantiation for arguments of these kinds, compiled if it is not in the cache.

    Args:
        source: The file under ``kernels/``, or an absolute path.
        kernel: A Python expression inside the module, such as ``direct_naive_fprop(float32)``.

    Raises:
        EmulatorError: if there is no compiler, or Numba or the rewriting refuses the source.
    """
    return _function(
        source, kernel, tuple(map(_parameter, arguments)), tuple(map(_bytes, arguments)), checked
    )


def _bytes(argument: Argument) -> int:
    return 8 * len(words(argument))


@cache
def _function(
    source: str, kernel: str, parameters: tuple[_Parameter, ...], sizes: tuple[int, ...], checked: bool
) -> Function:
    from numba.core.errors import NumbaError

    from pyconv.backends import numba_intrinsics

    path = KERNELS / source
    if not path.exists():
        raise EmulatorError(f"no such source: {path}")
    numba_intrinsics.link(emulator._runtime())
    module = _rewritten(path, source, checked)
    name = kernel.partition("(")[0]
    lines = [
        "from numba import cfunc, float32, float64, types",
        "from pyconv.backends.numba_intrinsics import array_argument, integer_argument, tuple_argument",
        f"from {module.__name__} import {name}",
        *(f"from {each.module} import {each.name}" for each in parameters if each.module),
        f"kernel = {kernel}",
        *(f"take_{i} = {each.make}" for i, each in enumerate(parameters)),
        "@cfunc(types.void(types.CPointer(types.CPointer(types.int64))), cache=True, error_model='numpy')",
        "def entry(parameters):",
        f"    kernel({', '.join(f'take_{i}(parameters, {i})' for i in range(len(parameters)))})",
        "",
    ]
    try:
        entry: Any = _module(name, "\n".join(lines))
    except NumbaError as error:
        raise EmulatorError(f"{kernel} of {source} does not compile for the emulator:\n{error}") from error
    signature = _Signature(len(sizes), (ctypes.c_int * 32)(*sizes))
    return Function(
        kernel, checked, sizes, Path(entry.__file__), entry.entry.address, ctypes.addressof(signature),
        (entry, signature), _lines,
    )  # fmt: skip


def _lines(library: Path, places: set[str]) -> dict[str, list[str]]:
    """``file:line`` of each place."""
    from pyconv.backends import numba_rewrite

    return {place: [numba_rewrite.line_of(int(place, 16))] for place in places}
