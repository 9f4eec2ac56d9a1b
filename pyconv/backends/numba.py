"""Backend ``numba``: kernels written in Python, on NVIDIA GPUs through Numba, or on the CPU in the emulator.

A line of the table says what to launch for a problem, as for backend ``cuda``
(:mod:`pyconv.backends.program`): here the source of a step is a Python module, its kernel an expression in
it, and tensors are strided views of the operands, the results and the workspace. :func:`bind` makes that
ready once. A call makes its operands dense, takes results and workspace from torch and launches, on torch's
current stream (:mod:`pyconv.backends.numba_gpu`).

Numba is imported by the first launch, never by ``import pyconv``. Within :func:`emulated`, which is that of
backend ``cuda``, or with ``PYCONV_EMULATE`` in the environment, tensors on the CPU go to the emulator.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pyconv.backends import cuda, numba_emulator, numba_gpu
from pyconv.backends.cuda import emulated
from pyconv.backends.emulator import Buffer, Emulator, Function
from pyconv.backends.packing import check_launch
from pyconv.backends.program import Program, Step, View
from pyconv.backends.signature import Signature, signature
from pyconv.problem import Problem
from pyconv.registry import Kernel

__all__ = ["bind", "emulated", "unavailable", "workspace_bytes"]


def unavailable(device_type: str) -> str | None:
    if device_type == "cuda":
        if torch.version.hip is not None:
            return "runs on NVIDIA GPUs; this torch is built for ROCm"
        return numba_gpu.missing()
    if device_type == "cpu" and cuda.emulation() is not None:
        return numba_emulator.unavailable()
    return cuda.unavailable(device_type)


def workspace_bytes(kernel: Kernel, problem: Problem) -> int:
    assert kernel.program is not None
    return int(kernel.program(problem).workspace_bytes)


def bind(kernel: Kernel, problem: Problem) -> Callable[..., Any]:
    return Bound(kernel, problem)


class Device(Protocol):
    """Loads kernels and launches them: a GPU, or the emulator."""

    def load(self, step: Step) -> Any:
        """The step's kernel, ready to launch."""

    def launch(
        self, launches: Sequence[Any], tensors: dict[str, Tensor | None], workspace: Tensor | None
    ) -> None:
        """One launch after the other, on these tensors."""


class Bound:
    """A kernel and a problem: a function of the tensors alone, on any device that has them."""

    def __init__(self, kernel: Kernel, problem: Problem) -> None:
        assert kernel.program is not None, kernel.id
        self.signature: Signature = signature(problem, kernel.pass_)
        self._is_empty = 0 in self.signature.results[0].shape
        program = Program(()) if self._is_empty else kernel.program(problem)
        self.steps = tuple(step for step in program.steps if 0 not in step.grid)
        for step in self.steps:
            check_launch(step)
        self.workspace_bytes = program.workspace_bytes
        # A backward outside an `emulated` block goes where its forward went.
        self._emulation = cuda.emulation()
        self._loaded: dict[torch.device, tuple[Device, list[Any]]] = {}
        self._lock = threading.Lock()

    def __call__(self, *operands: Tensor | None) -> Any:
        device = operands[0].device  # type: ignore[union-attr]
        tensors = self.signature.ready(operands, device)
        results = [value.empty(device) for value in self.signature.results]
        if not self._is_empty:
            where, launches = self._loaded.get(device) or self._load(device)
            workspace = None
            if self.workspace_bytes:
                workspace = cuda.workspace_of(self.workspace_bytes, device)
            names = (value.name for value in (*self.signature.operands, *self.signature.results))
            where.launch(launches, dict(zip(names, [*tensors, *results], strict=True)), workspace)
        return results[0] if len(results) == 1 else tuple(results)

    def _load(self, device: torch.device) -> tuple[Device, list[Any]]:
        with self._lock:
            if device not in self._loaded:
                where = self._device(device)
                self._loaded[device] = where, [where.load(step) for step in self.steps]
        return self._loaded[device]

    def _device(self, device: torch.device) -> Device:
        if device.type == "cuda":
            return numba_gpu.gpu(device.index)
        if device.type != "cpu" or self._emulation is None:
            raise RuntimeError(f"pyconv: backend numba runs on cuda, not on {device.type}")
        return Emulated(self._emulation, self.signature)


class Emulated:
    """The emulator as the device of one bound kernel, whose tensors bound what its launches may touch."""

    def __init__(self, how: Emulator, signature: Signature) -> None:
        self._how = how
        self._values = {value.name: (value, True) for value in signature.operands}
        self._values |= {value.name: (value, False) for value in signature.results}

    def load(self, step: Step) -> tuple[Step, Function]:
        return step, numba_emulator.function(step.source, step.kernel, step.arguments, self._how.checked)

    def launch(
        self,
        launches: Sequence[tuple[Step, Function]],
        tensors: dict[str, Tensor | None],
        workspace: Tensor | None,
    ) -> None:
        buffers = [
            Buffer(name, tensor.data_ptr(), value.bytes, initialised=is_operand, writable=not is_operand)
            for name, (value, is_operand) in self._values.items()
            if (tensor := tensors[name]) is not None
        ]
        if workspace is not None:
            buffers.append(Buffer("workspace", workspace.data_ptr(), workspace.numel(), False, True))
        with self._how.session(buffers) as session:
            for step, function in launches:
                parameters = [self._parameter(argument, tensors, workspace) for argument in step.arguments]
                pointers = (ctypes.c_void_p * len(parameters))(*map(ctypes.addressof, parameters))
                session.launch(function, step.grid, step.block, step.shared_bytes, pointers)

    def _parameter(
        self, argument: Any, tensors: dict[str, Tensor | None], workspace: Tensor | None
    ) -> ctypes.Array[ctypes.c_int64]:
        words = list(numba_emulator.words(argument))
        if isinstance(argument, View):
            words[0], is_there = numba_gpu.pointer(argument, tensors, workspace)
            words[1:] = words[1:] if is_there else [0] * (len(words) - 1)
        return (ctypes.c_int64 * len(words))(*words)
