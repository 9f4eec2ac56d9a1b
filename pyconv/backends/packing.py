"""The arguments of a program's kernels in the form that ``cuLaunchKernel`` takes: arrays of pointers to them.

Everything is packed once per problem; a call changes the pointers to its tensors and nothing else. What a
call changes is a :class:`Frame` of its own, so that two threads can launch the same program at once.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable

from pyconv.backends.program import Program, Scratch, Step
from pyconv.problem import Conv2dProblem, Pool2dProblem

#: Limits of every CUDA device (compute capability 3.0 and newer).
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
MOST_THREADS = 1024

#: Everything in the workspace starts at a multiple of this.
SCRATCH_ALIGNMENT = 16


class Frame:
    """What one call at a time uses: the pointers to its tensors, and each launch's array of pointers to
    arguments, whose addresses are ``parameters``."""

    __slots__ = ("_keep", "parameters", "pointers")

    def __init__(self, pointers: ctypes.Array[ctypes.c_void_p], arrays: list[ctypes.Array[ctypes.c_void_p]]):
        self.pointers = pointers
        self.parameters = [ctypes.addressof(array) for array in arrays]
        self._keep = arrays


class Packing:
    """A program's steps with their arguments packed.

    Attributes:
        steps: Those that launch anything.
        workspace_bytes: As the program says; 0 if no step takes it.
    """

    def __init__(self, program: Program, tensors: Iterable[str]) -> None:
        """``tensors`` are the names of operands and results, in the order in which a call gives them.

        Raises:
            ValueError: for a launch that no device can do, or an argument that is none.
        """
        self.steps = tuple(step for step in program.steps if 0 not in step.grid)
        self._slots: dict[str | Scratch, int] = {name: slot for slot, name in enumerate(tensors)}
        self._tensors = len(self._slots)
        self._constants: list[list[ctypes._CDataType | int]] = []  # by step; an int is a pointer's slot
        for step in self.steps:
            check_launch(step)
            self._constants.append([self._pack(argument, step, program) for argument in step.arguments])
        self._offsets = [place.offset for place in self._slots if isinstance(place, Scratch)]
        self.workspace_bytes = program.workspace_bytes if self._offsets else 0
        self._write = struct.Struct(f"{len(self._slots)}P").pack_into
        self._frames: list[Frame] = []

    def _pack(self, argument: object, step: Step, program: Program) -> ctypes._CDataType | int:
        if isinstance(argument, (Conv2dProblem, Pool2dProblem)):
            return argument.to_c()
        if isinstance(argument, (ctypes.Structure, ctypes._SimpleCData)):
            return type(argument).from_buffer_copy(argument)
        if isinstance(argument, Scratch):
            if argument.offset % SCRATCH_ALIGNMENT or not 0 <= argument.offset <= program.workspace_bytes:
                raise ValueError(
                    f"{step.kernel}: {argument} is no multiple of {SCRATCH_ALIGNMENT} within a workspace of "
                    f"{program.workspace_bytes} bytes"
                )
            return self._slots.setdefault(argument, len(self._slots))
        if isinstance(argument, str) and argument in self._slots:
            return self._slots[argument]
        if argument == "bias":
            return ctypes.c_void_p(0)  # a pass without one
        raise ValueError(
            f"{step.kernel}: {argument!r} is no argument; there are {', '.join(map(str, self._slots))}"
        )

    def argument_bytes(self, step: Step) -> tuple[int, ...]:
        """The size of each argument of one of :attr:`steps`."""
        constants = self._constants[self.steps.index(step)]
        return tuple(
            ctypes.sizeof(ctypes.c_void_p if isinstance(constant, int) else constant)
            for constant in constants
        )

    def take(self, tensors: list[int], workspace: int) -> Frame:
        """A frame with these pointers, for one call; :meth:`give` it back after the launches."""
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = self._frame()
        self._write(frame.pointers, 0, *tensors, *[workspace + offset for offset in self._offsets])
        return frame

    def give(self, frame: Frame) -> None:
        self._frames.append(frame)

    def _frame(self) -> Frame:
        pointers = (ctypes.c_void_p * len(self._slots))()
        first = ctypes.addressof(pointers)
        arrays = []
        for constants in self._constants:
            addresses = [
                first + constant * ctypes.sizeof(ctypes.c_void_p)
                if isinstance(constant, int)
                else ctypes.addressof(constant)
                for constant in constants
            ]
            arrays.append((ctypes.c_void_p * len(addresses))(*addresses))
        return Frame(pointers, arrays)


def check_launch(step: Step) -> None:
    """Raises ``ValueError`` for a launch that no device can do."""
    threads = step.block[0] * step.block[1] * step.block[2]
    if any(blocks > most for blocks, most in zip(step.grid, MOST_BLOCKS, strict=True)) or min(step.grid) < 0:
        raise ValueError(f"{step.kernel}: a grid of {step.grid} blocks; at most {MOST_BLOCKS}")
    if not 0 < threads <= MOST_THREADS or min(step.block) < 1 or step.block[2] > 64:
        raise ValueError(f"{step.kernel}: {step.block} threads a block; 1 to {MOST_THREADS}, of depth 64")
