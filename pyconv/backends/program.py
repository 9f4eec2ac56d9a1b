"""What a CUDA line of the table launches for a problem: a few kernels, one after the other on one stream.

A program is made by a pure function of the problem (``*_launch.py`` beside each ``.cu``), so it can be read,
tested and compared without a device. :mod:`pyconv.backends.cuda` compiles and launches it on a GPU, and
:mod:`pyconv.backends.emulator` on the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from pyconv.problem import Problem

#: dtype of a descriptor -> type in the sources (``kernels/common/numbers.h``).
CPP_TYPES = {"f32": "float", "f64": "double", "f16": "Half", "bf16": "BFloat16"}
#: Layout of a descriptor -> enumerator in the sources (``kernels/common/problem.h``).
CPP_LAYOUTS = {"nchw": "kNchw", "nhwc": "kNhwc"}


@dataclass(frozen=True)
class Scratch:
    """A place in the program's workspace, as an argument of a kernel. ``offset`` is in bytes."""

    offset: int = 0


#: A kernel's argument: the name of an operand or result of the pass (``x w bias dy argmax``, ``y dx dw db
#: argmax``) as its pointer, a place in the workspace, the problem as its C struct by value, or a C number.
Argument = (
    str
    | Scratch
    | Problem
    | ctypes.c_int32
    | ctypes.c_int64
    | ctypes.c_uint32
    | ctypes.c_uint64
    | ctypes.c_float
    | ctypes.c_double
    | ctypes.Structure
)


@dataclass(frozen=True)
class Step:
    """One launch.

    Attributes:
        source: The file under ``kernels/``.
        kernel: The instantiation, a C++ expression inside namespace ``pyconv``: ``name<float, kNchw, 128>``.
        grid, block: Blocks and threads. A step with an empty grid is not launched.
        arguments: In the order of the kernel's parameters. Where a pass has no bias, ``"bias"`` is null.
        shared_bytes: Dynamic shared memory of a block.
        sass: Machine instructions that make the kernel what it claims to be: ``HMMA.16816.F32.BF16``,
            ``LDSM``, ``LDGSTS.128``, ``LDG.128``. The first part is the whole instruction, the others are
            some of its modifiers in order. :mod:`pyconv.gates` fails if the compiled instantiation lacks one.
    """

    source: str
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    shared_bytes: int = 0
    sass: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """The launches of one pass of one problem, in order, and the bytes of scratch they share."""

    steps: tuple[Step, ...]
    workspace_bytes: int = 0


#: Makes the program of a problem: the ``program`` of a table line.
MakeProgram = Callable[[Problem], Program]


def cpp_type(problem: Problem) -> str:
    """The element type of the problem in the sources."""
    return CPP_TYPES[problem.dtype]


def cpp_layout(problem: Problem) -> str:
    """The layout of the problem in the sources."""
    return CPP_LAYOUTS[problem.layout]


def blocks(items: int, per_block: int) -> int:
    """Blocks that cover ``items``."""
    return -(-items // per_block)
