"""How a line of the table is launched, and why a backend is not available here."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from pyconv.backends import aten, cpu, cuda, numba, numba_cpu
from pyconv.backends.signature import signature
from pyconv.problem import Problem
from pyconv.registry import Kernel

_MODULES: dict[str, ModuleType] = {
    "cpu": cpu,
    "cuda": cuda,
    "numba": numba,
    "numba-cpu": numba_cpu,
    "aten": aten,
}


def unavailable(backend: str, device_type: str) -> str | None:
    """``None`` if the backend can run on this kind of device, else the reason why not."""
    module = _MODULES.get(backend)
    if module is None:
        return f"backend {backend} is not built"
    reason: str | None = module.unavailable(device_type)
    return reason


def workspace_bytes(kernel: Kernel, problem: Problem) -> int:
    """Scratch memory that the kernel asks for, for a problem it supports: on a CPU, with one thread.

    0 for ``aten``, whose scratch memory is not known.
    """
    if 0 in signature(problem, kernel.pass_).results[0].shape:
        return 0  # nothing is launched
    size: int = _MODULES[kernel.backend].workspace_bytes(kernel, problem)
    return size


def bind(kernel: Kernel, problem: Problem) -> Callable[..., Any]:
    """The kernel made ready for one problem: a function of the tensors alone.

    conv2d: fprop ``(x, w, bias | None) -> y``, dgrad ``(dy, w) -> dx``, wgrad ``(x, dy) -> dw``,
    bgrad ``(dy) -> db``. maxpool2d: fprop ``(x) -> y``, fprop_argmax ``(x) -> (y, argmax)``, dgrad
    ``(dy, argmax) -> dx``, gather ``(x, argmax) -> y``; fprop_tap, dgrad_tap and gather_tap are the same with
    an argmax of uint8, the tap ``r*s_extent + s`` of the window (255: it covers nothing).

    Under :func:`pyconv.backends.cuda.emulated`, a kernel of backend ``cuda`` or ``numba`` is bound to the
    emulator.
    """
    launch: Callable[..., Any] = _MODULES[kernel.backend].bind(kernel, problem)
    return launch
