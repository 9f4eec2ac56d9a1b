"""Runs the CUDA sources on the CPU (``kernels/emulator/README.md``): each instantiation is compiled by the
machine's C++ compiler when first asked for, and the threads of a block are fibers.

::

    emulator = Emulator(checked=True, order="reverse")
    function = emulator.function("conv2d/direct.cu", "direct_fprop<float, kNchw>")
    with emulator.session(buffers) as session:  # one program: launches that share memory
        session.launch(function, grid, block, shared_bytes, parameters)

What a launch does wrong raises :class:`EmulatorError`, which names every finding with its file and line; the
emulator is then as usable as before.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

from pyconv.backends import emulator_build
from pyconv.backends.emulator_build import Function
from pyconv.backends.emulator_findings import EmulatorError, Finding, raise_findings

__all__ = ["ORDERS", "Buffer", "Emulator", "EmulatorError", "Finding", "Function", "Session", "unavailable"]

#: In which order threads, warps and blocks run. Correct kernels give the same result in each.
ORDERS = ("forward", "reverse", "odd", "random")

Dim3 = tuple[int, int, int]


@dataclass(frozen=True)
class Buffer:
    """A piece of global memory that the kernels of a program may touch, to the byte.

    Attributes:
        name: As findings call it.
        pointer, bytes: Where it is. Empty ones are ignored.
        initialised: It holds values already; what does not is filled with 0xFF when the session begins.
        writable: Kernels may write it.
    """

    name: str
    pointer: int
    bytes: int
    initialised: bool
    writable: bool


class _Buffer(ctypes.Structure):
    """``Buffer`` of ``kernels/emulator/memory.cpp``."""

    _fields_ = (
        ("pointer", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("initialised", ctypes.c_bool),
        ("writable", ctypes.c_bool),
    )


class _Request(ctypes.Structure):
    """``Request`` of ``kernels/emulator/launch.cpp``."""

    _fields_ = (
        ("run", ctypes.c_void_p),
        ("parameters", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_bytes", ctypes.c_uint64),
        ("checked", ctypes.c_int32),
        ("order", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("signature", ctypes.c_void_p),
    )


# The runtime library has one state: sessions of several Python threads take turns.
_turn = threading.RLock()
_in_session = False


@cache
def _runtime() -> ctypes.CDLL:
    runtime = ctypes.CDLL(str(emulator_build.runtime()))
    runtime.pyconv_emulator_begin.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_bool)
    runtime.pyconv_emulator_launch.argtypes = (ctypes.c_void_p,)
    runtime.pyconv_emulator_findings.restype = ctypes.c_char_p
    return runtime


def unavailable() -> str | None:
    """``None`` if kernels can be emulated on this machine, else the reason why not."""
    return emulator_build.unavailable()


class Session:
    """The launches of one program. What one launch writes is there, and initialised, for the next."""

    def __init__(self, emulator: Emulator, buffers: Sequence[Buffer]) -> None:
        self._emulator = emulator
        self._buffers = (_Buffer * len(buffers))(
            *(_Buffer(b.pointer, b.bytes, b.name.encode(), b.initialised, b.writable) for b in buffers)
        )

    def __enter__(self) -> Session:
        global _in_session
        _turn.acquire()
        if _in_session:
            _turn.release()
            raise RuntimeError("emulator: a session within a session of the same thread")
        _in_session = True
        _runtime().pyconv_emulator_begin(
            ctypes.addressof(self._buffers), len(self._buffers), self._emulator.checked
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _in_session
        _runtime().pyconv_emulator_end()
        _in_session = False
        _turn.release()

    def launch(self, function: Function, grid: Dim3, block: Dim3, shared_bytes: int, parameters: Any) -> None:
        """Runs the kernel; ``parameters`` are ``void*`` to each of its parameters, as for cuLaunchKernel.

        Raises:
            EmulatorError: with everything found.
        """
        emulator = self._emulator
        request = _Request(
            function.entry,
            ctypes.cast(parameters, ctypes.c_void_p),
            (ctypes.c_uint32 * 3)(*grid),
            (ctypes.c_uint32 * 3)(*block),
            shared_bytes,
            function.checked,
            ORDERS.index(emulator.order),
            emulator.seed,
            function.signature,
        )
        if _runtime().pyconv_emulator_launch(ctypes.addressof(request)):
            text = _runtime().pyconv_emulator_findings().decode()
            raise_findings(function.kernel, function.library, text, function.lines)


@dataclass(frozen=True)
class Emulator:
    """How kernels are to be run.

    Attributes:
        checked: Every access is checked (some ten times slower than without).
        order: One of :data:`ORDERS`.
        seed: Of order ``random``.
    """

    checked: bool = False
    order: str = "forward"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order {self.order!r}; accepted: {', '.join(ORDERS)}")

    def function(self, source: str, kernel: str, defines: tuple[str, ...] = ()) -> Function:
        """The instantiation, compiled if it is not in the cache.

        Args:
            source: The file under ``kernels/``, or an absolute path.
            kernel: A C++ expression inside namespace ``pyconv``: ``name<float, kNchw, 128>``.
            defines: Macros for the source, ``NAME=value``.

        Raises:
            EmulatorError: if there is no compiler, or it refuses the source.
        """
        _runtime()  # its symbols must be there before a kernel's library is loaded
        return emulator_build.function(source, kernel, self.checked, defines)

    def session(self, buffers: Sequence[Buffer]) -> Session:
        """A context in which the kernels of one program are launched on these buffers."""
        return Session(self, buffers)

    def launch(
        self,
        function: Function,
        grid: Dim3,
        block: Dim3,
        shared_bytes: int,
        parameters: Any,
        buffers: Sequence[Buffer],
    ) -> None:
        """A program of one launch."""
        with self.session(buffers) as session:
            session.launch(function, grid, block, shared_bytes, parameters)
