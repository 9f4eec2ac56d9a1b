"""Backend ``cpu``: the SIMD C++ kernels, launched through torch's dispatcher.

The library (``pyconv/lib/libpyconv_cpu.so``, or what the environment variable ``PYCONV_LIBRARY`` names) holds
every kernel once per instruction set. The best one that the processor has is chosen when the library is
loaded; ``PYCONV_ISA`` forces one.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

_BUILT = Path(__file__).resolve().parent.parent / "lib" / "libpyconv_cpu.so"
LIBRARY = Path(os.environ.get("PYCONV_LIBRARY") or _BUILT)


@cache
def load() -> ctypes.CDLL | str:
    """The library, or the reason why it cannot be used."""
    if not LIBRARY.exists():
        if LIBRARY != _BUILT:
            return f"PYCONV_LIBRARY={str(LIBRARY)!r} is not there"
        return f"{LIBRARY.name} was not built when pyconv was installed (no C++17 compiler, or it failed)"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} cannot be loaded: {error}"
    library = ctypes.CDLL(str(LIBRARY))
    try:
        _declare(library)
    except AttributeError as error:
        return f"{LIBRARY.name} was built from other sources than these ({error}); set pyconv up again"
    refused = str(library.pyconv_isa_error().decode())
    if refused:
        return refused
    return library


def _declare(library: ctypes.CDLL) -> None:
    """The types of its functions. Raises ``AttributeError`` for one that it does not have."""
    for function in ("pyconv_isa", "pyconv_isa_error", "pyconv_isas", "pyconv_kernels"):
        getattr(library, function).restype = ctypes.c_char_p
    for function in ("pyconv_bind_conv2d", "pyconv_bind_pool2d"):
        getattr(library, function).restype = ctypes.c_int64
        getattr(library, function).argtypes = (ctypes.c_char_p, ctypes.c_void_p)
    for function in ("pyconv_conv2d_workspace", "pyconv_pool2d_workspace"):
        getattr(library, function).restype = ctypes.c_int64
        getattr(library, function).argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
    library.pyconv_unbind.restype, library.pyconv_unbind.argtypes = None, (ctypes.c_int64,)
    library.pyconv_bound.restype = ctypes.c_int64
    for function in ("pyconv_conv2d_sizes", "pyconv_pool2d_sizes"):
        getattr(library, function).argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64))


def _library() -> ctypes.CDLL:
    library = load()
    if isinstance(library, str):
        raise RuntimeError(f"pyconv: backend cpu is not available: {library}")
    return library


def unavailable(device_type: str) -> str | None:
    if device_type != "cpu":
        return f"runs on cpu, not on {device_type}"
    library = load()
    return library if isinstance(library, str) else None


def isa() -> str:
    """The instruction set in use: ``baseline``, ``avx2`` or ``avx512``."""
    return str(_library().pyconv_isa().decode())


def isas() -> list[str]:
    """Every instruction set that this build has and this processor can run, best last."""
    return str(_library().pyconv_isas().decode()).split("\n")


def set_isa(name: str) -> None:
    """Switches the whole process to another instruction set (for tests). Raises ``ValueError``."""
    if _library().pyconv_set_isa(name.encode()):
        raise ValueError(f"isa {name!r} cannot run here; accepted: {', '.join(isas())}")


def compiled() -> list[str]:
    """Names of the kernels compiled in for the instruction set in use."""
    return sorted(str(_library().pyconv_kernels().decode()).split("\n"))


def workspace_bytes(kernel: Kernel, problem: Problem, threads: int = 1) -> int:
    """Bytes of scratch the kernel takes for this problem with so many threads."""
    struct = problem.to_c()
    library = _library()
    of = (
        library.pyconv_conv2d_workspace
        if isinstance(problem, Conv2dProblem)
        else library.pyconv_pool2d_workspace
    )
    return int(of(kernel.name.encode(), ctypes.byref(struct), threads))


def c_sizes(problem: Problem) -> dict[str, int]:
    """What the C struct computes, for the test that C and Python agree."""
    struct = problem.to_c()
    sizes = (ctypes.c_int64 * 6)()
    library = _library()
    of = library.pyconv_conv2d_sizes if isinstance(problem, Conv2dProblem) else library.pyconv_pool2d_sizes
    of(ctypes.byref(struct), sizes)
    names = ("struct_bytes", "p", "q", "x_size", "w_size", "y_size")
    return {"struct_bytes_python": ctypes.sizeof(struct), **dict(zip(names, sizes, strict=True))}


def bound() -> int:
    """Kernels bound to problems now: each as long as what :func:`bind` returned for it lives."""
    return int(_library().pyconv_bound())


def bind(kernel: Kernel, problem: Problem) -> Callable[..., Any]:
    library = _library()
    struct = ctypes.byref(problem.to_c())
    of = library.pyconv_bind_conv2d if isinstance(problem, Conv2dProblem) else library.pyconv_bind_pool2d
    number = int(of(kernel.name.encode(), struct))
    launch = _launch(kernel, number)
    weakref.finalize(launch, library.pyconv_unbind, number).atexit = False
    return launch


def _launch(kernel: Kernel, number: int) -> Callable[..., Any]:
    """A function of the tensors alone, for a number of the library's."""
    if kernel.operation == "conv2d":
        conv2d = torch.ops.pyconv.conv2d_bound.default._op
        if kernel.pass_ == "fprop":
            return lambda x, w, bias: conv2d(x, w, bias, number)
        if kernel.pass_ == "bgrad":
            return lambda dy: conv2d(dy, None, None, number)
        return lambda a, b: conv2d(a, b, None, number)
    if kernel.pass_ == "fprop_argmax":
        pool2d_argmax = torch.ops.pyconv.max_pool2d_argmax_bound.default._op
        return lambda x: pool2d_argmax(x, number)
    pool2d = torch.ops.pyconv.max_pool2d_bound.default._op
    if kernel.pass_ == "fprop":
        return lambda x: pool2d(x, None, number)
    return lambda a, argmax: pool2d(a, argmax, number)
