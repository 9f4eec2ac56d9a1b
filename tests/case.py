"""One line of the table on one problem under one check: the launch, and the words of a failure."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pyconv.problem import Problem
from pyconv.registry import Kernel
from tests import accuracy
from tests.devices import Cpu, Device
from tests.memory import POISONS, dense_strides, lay_out, placements, poisoned_memory, storage_bytes, values
from tests.operands import OPERANDS, Array, is_sum, operands, operation_of, result_shapes


class Unclaimed(str):
    """Why a line is not held to a check: it does not claim what the check proves."""


class CannotRun(str):
    """Why a check cannot run on this machine."""


class Failure(AssertionError):
    """A kernel did not pass a check."""

    def __init__(self, case: Case, what: str) -> None:
        super().__init__(f"{case.kernel.id} fails '{case.check}' on '{case.problem}': {what}")


class Crash(Failure):
    """A kernel raised: what the other checks would say of it is the same."""


Outcome = Unclaimed | CannotRun | None


@dataclass
class Short:
    """A battery in few launches, for a device on which each is slow.

    No launch is for poisoned memory or for hostile views alone: every launch, whatever it is for, is in
    poisoned memory, and takes the next placement of its operands. A launch of the same operands again is
    spared where a check does not need it.
    """

    launches: int = 0
    latest: str = "none"
    normal: list[Array] | None = None  # what the kernel gave for the first draw of normal operands

    def next(self, operand_count: int) -> tuple[tuple[str, ...], int]:
        """The placement of the operands and the poison of the next launch."""
        every = [("dense",) * operand_count, *placements(operand_count)]
        placement, poison = every[self.launches % len(every)], POISONS[self.launches % len(POISONS)]
        self.launches += 1
        self.latest = f"operands placed {', '.join(placement)}, memory filled with {poison:#x}"
        return placement, poison


@dataclass(frozen=True)
class Case:
    """One line of the table on one problem on one device, under one check."""

    check: str
    kernel: Kernel
    problem: Problem
    device: Device = field(default_factory=Cpu)
    short: Short | None = None

    def fail(self, what: str, kind: type[Failure] = Failure) -> Failure:
        return kind(self, f"{what} [latest launch: {self.short.latest}]" if self.short else what)

    def launch(
        self,
        arrays: tuple[Array | None, ...],
        placement: tuple[str, ...] | None = None,
        problem: Problem | None = None,
        poison: int | None = None,
        way: str | None = None,
        note: str = "",
    ) -> list[Array]:
        """Runs the kernel on operands laid out as asked; what it returned, as arrays.

        Raises:
            Failure: if it raises, writes to an operand's buffer, returns a view of one, or returns another
                shape, dtype, layout or device than the problem's.
        """
        problem = problem or self.problem
        if self.short:
            placement, poison = self.short.next(len(arrays))
        placement = placement or ("dense",) * len(arrays)
        tensors = [
            None
            if array is None
            else lay_out(array, problem.torch_dtype, problem.layout, where, self.device.tensors)
            for array, where in zip(arrays, placement, strict=True)
        ]
        names = OPERANDS[operation_of(problem), self.kernel.pass_]
        before = [None if tensor is None else storage_bytes(tensor) for tensor in tensors]
        poisoned = (
            contextlib.nullcontext() if poison is None else poisoned_memory(poison, self.device.tensors)
        )
        try:
            with self.device.running(way), poisoned:
                returned = self.device.bind(self.kernel, problem)(*tensors)
        except Exception as error:
            raise self.fail(f"{note}it raised {type(error).__name__}: {error}", Crash) from error
        for name, tensor, was in zip(names, tensors, before, strict=True):
            if tensor is not None and storage_bytes(tensor) != was:
                raise self.fail(f"{note}it wrote to its input {name} or beside it")
        results = list(returned) if isinstance(returned, tuple) else [returned]
        self._check_form(results, tensors, problem, note)
        return [values(result) for result in results]

    def normal_result(self) -> list[Array]:
        """What the kernel gives for the first draw of normal operands; in a short battery, launched once."""
        if self.short and self.short.normal is not None:
            return self.short.normal
        result = self.launch(operands(self.problem, self.kernel.pass_, "normal"), way=self.device.ways[0])
        if self.short:
            self.short.normal = result
        return result

    def _check_form(self, results: list[Any], tensors: list[Any], problem: Problem, note: str) -> None:
        shapes = result_shapes(problem, self.kernel.pass_)
        if len(results) != len(shapes):
            raise self.fail(f"{note}it returned {len(results)} tensors, expected {len(shapes)}")
        owned = {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor is not None}
        dtypes = [problem.torch_dtype, torch.uint8 if self.kernel.pass_.endswith("_tap") else torch.int32]
        for result, shape, dtype in zip(results, shapes, dtypes, strict=False):
            if tuple(result.shape) != shape or result.dtype != dtype:
                raise self.fail(
                    f"{note}it returned {result.dtype} of shape {tuple(result.shape)}, "
                    f"expected {dtype} of {shape}"
                )
            if result.device.type != self.device.tensors:
                raise self.fail(f"{note}its result is on {result.device}, its operands are not")
            strides = dense_strides(shape, problem.layout)
            wrong = [
                axis for axis, size in enumerate(shape) if size > 1 and result.stride(axis) != strides[axis]
            ]
            if result.numel() and wrong:
                raise self.fail(
                    f"{note}its result has strides {result.stride()}, dense {problem.layout} is {strides}"
                )
            if result.numel() and result.untyped_storage().data_ptr() in owned:
                raise self.fail(f"{note}its result is a view of an input")

    def same_bits(self, got: list[Array], want: list[Array], note: str) -> None:
        """Raises unless every bit agrees."""
        for part, (new, old) in enumerate(zip(got, want, strict=True)):
            integers = {1: np.uint8, 4: np.int32, 8: np.int64}[new.itemsize]
            different = new.view(integers) != old.view(integers)
            if different.any():
                raise self.fail(f"{note}: {first_wrong(different, part, old, new)}")

    def agrees(self, got: list[Array], want: list[Array], note: str) -> None:
        """As :meth:`same_bits`, but a sum that does not claim determinism is held to its accuracy only."""
        if self.kernel.deterministic or not is_sum(self.problem, self.kernel.pass_):
            self.same_bits(got, want, note)
            return
        limit = 4 * accuracy.allowed(self.kernel, self.problem)  # both may be off, either way
        for part, (new, old) in enumerate(zip(got, want, strict=True)):
            if not accuracy.relative_error([new], [old]) <= limit:
                raise self.fail(f"{note}: {first_wrong(new != old, part, old, new)}")


def first_wrong(wrong: Array, part: int, want: Array, got: Array) -> str:
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    which = "argmax" if part else "result"
    return (
        f"{which}{list(index)} is {got[index]!s}, expected {want[index]!s} "
        f"({int(wrong.sum())} of {wrong.size} wrong)"
    )
