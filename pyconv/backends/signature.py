"""What a pass takes and returns: the tensors of one problem, checked, made dense and allocated.

Used by backends that launch kernels on pointers. The C++ adapters of the CPU kernels do the same in
``kernels/bindings.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyconv.problem import Conv2dProblem, Problem

#: Kernels move up to 16 bytes at once, from any tensor's first element on.
ALIGNMENT = 16

#: Operands and results.
_Names = tuple[tuple[str, ...], tuple[str, ...]]

_CONV2D: dict[str, _Names] = {
    "fprop": (("x", "w", "bias"), ("y",)),
    "dgrad": (("dy", "w"), ("dx",)),
    "wgrad": (("x", "dy"), ("dw",)),
    "bgrad": (("dy",), ("db",)),
}
_MAXPOOL2D: dict[str, _Names] = {
    "fprop": (("x",), ("y",)),
    "fprop_argmax": (("x",), ("y", "argmax")),
    "dgrad": (("dy", "argmax"), ("dx",)),
    "gather": (("x", "argmax"), ("y",)),
}


@dataclass(frozen=True)
class Value:
    """One operand or result: its name in the equations, and the tensor it must be."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    memory_format: torch.memory_format

    @cached_property
    def strides(self) -> tuple[int, ...]:
        return torch.empty(self.shape, device="meta", memory_format=self.memory_format).stride()

    @property
    def bytes(self) -> int:
        size = self.dtype.itemsize
        for extent in self.shape:
            size *= extent
        return size

    def ready(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The tensor as a kernel takes it: dense in the layout of the problem, aligned, with data of its own.

        Raises:
            RuntimeError: if it is another tensor than the problem's.
        """
        if tensor.shape != self.shape or tensor.dtype is not self.dtype or tensor.device != device:
            raise self._refusal(tensor, device)
        if tensor.is_neg():  # a view that stands for -data
            tensor = tensor.resolve_neg()
        if not tensor.is_contiguous(memory_format=self.memory_format):
            tensor = tensor.contiguous(memory_format=self.memory_format)
        address = tensor.data_ptr()
        # No address: one of autograd's zeros that have no data.
        if address % ALIGNMENT or (address == 0 and tensor._is_zerotensor()):
            tensor = tensor.clone(memory_format=self.memory_format)
        return tensor

    def empty(self, device: torch.device) -> Tensor:
        """Memory for the value.

        Raises:
            torch.OutOfMemoryError: naming it, if the device has none left.
        """
        try:
            return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=device)
        except torch.OutOfMemoryError as error:
            what = f"{self.name} {list(self.shape)}, {self.bytes} bytes"
            raise torch.OutOfMemoryError(f"pyconv: no memory for {what}: {error}") from None

    def _refusal(self, tensor: Tensor, device: torch.device) -> RuntimeError:
        if tensor.device != device:
            return RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{device} and {tensor.device}!"
            )
        return RuntimeError(
            f"pyconv: {self.name} must be {self.dtype} of shape {list(self.shape)}, "
            f"got {tensor.dtype} of shape {list(tensor.shape)}"
        )


@dataclass(frozen=True)
class Signature:
    """Operands and results of one pass of one problem, in the order of :func:`pyconv.backends.bind`."""

    operands: tuple[Value, ...]
    results: tuple[Value, ...]

    def ready(self, tensors: Sequence[Tensor | None], device: torch.device) -> list[Tensor | None]:
        """The operands as kernels take them; only the bias may be ``None``."""
        if len(tensors) != len(self.operands):
            raise TypeError(f"takes {', '.join(value.name for value in self.operands)}, got {len(tensors)}")
        return [
            None if tensor is None and value.name == "bias" else value.ready(tensor, device)  # type: ignore[arg-type]
            for value, tensor in zip(self.operands, tensors, strict=True)
        ]


def signature(problem: Problem, pass_: str) -> Signature:
    """What one pass of a problem takes and returns.

    ``argmax`` is int32, the place in the plane; in passes that end in ``_tap`` it is uint8, the tap of the
    window.
    """
    by_tap = pass_.endswith("_tap")
    passes = _CONV2D if isinstance(problem, Conv2dProblem) else _MAXPOOL2D
    operands, results = passes["fprop_argmax" if pass_ == "fprop_tap" else pass_.removesuffix("_tap")]

    def value(name: str) -> Value:
        if name in ("bias", "db"):
            assert isinstance(problem, Conv2dProblem)
            return Value(name, (problem.k,), problem.torch_dtype, torch.contiguous_format)
        if name in ("w", "dw"):
            assert isinstance(problem, Conv2dProblem)
            shape = problem.w_shape
        else:
            shape = problem.x_shape if name in ("x", "dx") else problem.y_shape
        dtype = problem.torch_dtype
        if name == "argmax":
            dtype = torch.uint8 if by_tap else torch.int32
        return Value(name, shape, dtype, problem.memory_format)

    return Signature(tuple(map(value, operands)), tuple(map(value, results)))
