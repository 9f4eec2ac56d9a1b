"""Backend ``cuda``: the ``.cu`` kernels, on NVIDIA GPUs, or on the CPU in the emulator.

A line of the table says what to launch for a problem (:mod:`pyconv.backends.program`). :func:`bind` makes
that ready once: it checks and packs the launches, and at the first call on a device compiles the kernels for
exactly that device and loads them (:mod:`pyconv.backends.gpu`). A call then makes its operands dense, takes
results and workspace from torch, writes their addresses into the packed arguments and launches, on torch's
current stream. It never waits for the device and takes memory from torch only, so it can be captured in a
CUDA graph; the call before a capture, which torch asks for anyway, is the one that compiles.

Within :func:`emulated`, or with ``PYCONV_EMULATE=checked`` or ``plain`` in the environment, tensors on the
CPU go the very same way to the emulator.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

from pyconv.backends import emulator, gpu
from pyconv.backends.emulator import Buffer, Emulator, Function
from pyconv.backends.packing import Frame, Packing
from pyconv.backends.program import Program, Step
from pyconv.backends.signature import Signature, signature
from pyconv.problem import Problem
from pyconv.registry import Kernel

# ---- Where programs run ---------------------------------------------------------------------------------


class Device(Protocol):
    """Loads kernels and launches them: a GPU, or the emulator."""

    def load(self, step: Step) -> Any:
        """The step's kernel, ready to launch."""

    def launch(
        self,
        launches: Sequence[Any],
        frame: Frame,
        tensors: Sequence[Tensor | None],
        workspace: Tensor | None,
    ) -> None:
        """One launch after the other, each with its parameters of the frame; these tensors hold the data."""


def _from_environment() -> Emulator | str | None:
    chosen = os.environ.get("PYCONV_EMULATE", "")
    if chosen in ("checked", "plain"):
        return Emulator(checked=chosen == "checked")
    return f"PYCONV_EMULATE is {chosen!r}; accepted: checked, plain" if chosen else None


#: The environment's choice, read once; a text says why it cannot be followed.
_environment = _from_environment()
_emulation: ContextVar[Emulator | None] = ContextVar(
    "pyconv_emulation", default=_environment if isinstance(_environment, Emulator) else None
)

#: The emulator in force now, or ``None``. It is a part of every remembered choice.
emulation: Callable[[], Emulator | None] = _emulation.get


@contextlib.contextmanager
def emulated(checked: bool = True, order: str = "forward", seed: int = 0) -> Iterator[None]:
    """Within the block, backend ``cuda`` runs on CPU tensors too, in the emulator.

    It is available then, but not preferred: ``pyconv.use("cuda")`` asks for it.

    Args:
        checked, order, seed: As :class:`pyconv.backends.emulator.Emulator` has them.

    Raises:
        ValueError: for an order that there is not.
    """
    with emulating(Emulator(checked, order, seed)):
        yield


@contextlib.contextmanager
def emulating(how: Emulator | None) -> Iterator[None]:
    """Within the block, :func:`emulation` is ``how``."""
    token = _emulation.set(how)
    try:
        yield
    finally:
        _emulation.reset(token)


def unavailable(device_type: str) -> str | None:
    if device_type == "cuda":
        if torch.version.hip is not None:
            return "runs on NVIDIA GPUs; this torch is built for ROCm"
        return gpu.missing()
    if device_type == "cpu" and emulation() is not None:
        return emulator.unavailable()
    if device_type == "cpu" and isinstance(_environment, str):
        return _environment
    return f"runs on cuda, not on {device_type}"


# ---- Bound kernels ----------------------------------------------------------------------------------------


def workspace_bytes(kernel: Kernel, problem: Problem) -> int:
    assert kernel.program is not None
    return kernel.program(problem).workspace_bytes


def bind(kernel: Kernel, problem: Problem) -> Callable[..., Any]:
    assert kernel.program is not None
    return Bound(kernel, problem)


def workspace_of(size: int, device: torch.device) -> Tensor:
    """Memory of so many bytes from torch, or an error that says how to need less."""
    try:
        return torch.empty(size, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        advice = "pyconv.set_workspace_limit makes selection take kernels that need less"
        raise torch.OutOfMemoryError(
            f"pyconv: no memory for a workspace of {size} bytes ({advice}): {error}"
        ) from None


class Bound:
    """A kernel and a problem: a function of the tensors alone, on any device that has them."""

    def __init__(self, kernel: Kernel, problem: Problem) -> None:
        assert kernel.program is not None, kernel.id
        self.signature: Signature = signature(problem, kernel.pass_)
        self._is_empty = 0 in self.signature.results[0].shape
        program = Program(()) if self._is_empty else kernel.program(problem)
        values = (*self.signature.operands, *self.signature.results)
        self.packing = Packing(program, [value.name for value in values])
        # A backward outside an `emulated` block goes where its forward went.
        self._emulation = emulation()
        self._loaded: dict[torch.device, tuple[Device, list[Any]]] = {}
        self._lock = threading.Lock()

    def __call__(self, *operands: Tensor | None) -> Any:
        device = operands[0].device  # type: ignore[union-attr]
        tensors = self.signature.ready(operands, device)
        results = [value.empty(device) for value in self.signature.results]
        if not self._is_empty:
            where, launches = self._loaded.get(device) or self._load(device)
            packing = self.packing
            # Goes back to torch when this returns; what is launched on the stream later comes after us.
            workspace = None
            if packing.workspace_bytes:
                workspace = workspace_of(packing.workspace_bytes, device)
            tensors += results
            frame = packing.take(
                [0 if tensor is None else tensor.data_ptr() for tensor in tensors],
                0 if workspace is None else workspace.data_ptr(),
            )
            where.launch(launches, frame, tensors, workspace)
            packing.give(frame)
        return results[0] if len(results) == 1 else tuple(results)

    def _load(self, device: torch.device) -> tuple[Device, list[Any]]:
        with self._lock:
            if device not in self._loaded:
                where = self._device(device)
                self._loaded[device] = where, [where.load(step) for step in self.packing.steps]
        return self._loaded[device]

    def _device(self, device: torch.device) -> Device:
        if device.type == "cuda":
            return gpu.gpu(device.index)
        if device.type != "cpu" or self._emulation is None:
            raise RuntimeError(f"pyconv: backend cuda runs on cuda, not on {device.type}")
        return Emulated(self._emulation, self.signature, self.packing)


class Emulated:
    """The emulator as the device of one bound kernel, whose tensors bound what its launches may touch."""

    def __init__(self, how: Emulator, signature: Signature, packing: Packing) -> None:
        self._how = how
        self._values = [
            *((value, True) for value in signature.operands),
            *((value, False) for value in signature.results),
        ]
        self._packing = packing

    def load(self, step: Step) -> tuple[Step, Function]:
        function = self._how.function(step.source, step.kernel)
        given = self._packing.argument_bytes(step)
        if given != function.parameter_bytes:
            raise RuntimeError(
                f"pyconv: {step.kernel} of {step.source} has parameters of {function.parameter_bytes} bytes, "
                f"its launch gives {given}"
            )
        return step, function

    def launch(
        self,
        launches: Sequence[tuple[Step, Function]],
        frame: Frame,
        tensors: Sequence[Tensor | None],
        workspace: Tensor | None,
    ) -> None:
        buffers = [
            Buffer(
                value.name, tensor.data_ptr(), value.bytes, initialised=is_operand, writable=not is_operand
            )
            for (value, is_operand), tensor in zip(self._values, tensors, strict=True)
            if tensor is not None
        ]
        if workspace is not None:
            buffers.append(Buffer("workspace", workspace.data_ptr(), workspace.numel(), False, True))
        with self._how.session(buffers) as session:
            for (step, function), parameters in zip(launches, frame.parameters, strict=True):
                session.launch(function, step.grid, step.block, step.shared_bytes, parameters)
