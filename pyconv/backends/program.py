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


@dataclass(frozen=True)
class View:
    """A strided array of an operand, a result or of the workspace: an argument of a kernel in Numba.

    Attributes:
        of: What it is a view of.
        dtype: A name of :data:`pyconv.problem.DTYPES`, or ``i32``.
        shape: Its extents.
        strides: Elements from one index to the next, along each axis; 0 where there is one for all.
        offset: Elements from the start to the first.
    """

    of: str | Scratch
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0


#: A kernel's argument: the name of an operand or result of the pass (``x w bias dy argmax``, ``y dx dw db
#: argmax``) as its pointer, a place in the workspace, the problem as its C struct by value, or a C number.
#: Kernels in Numba take views instead of pointers, the problem and other numbers as named tuples, and
#: integers.
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
    | View
    | int
    | tuple[int, ...]
)


@dataclass(frozen=True)
class Work:
    """What one launch does, counted from its tiles, for the model that selection orders lines by
    (:mod:`pyconv.gpu_model`).

    Attributes:
        flops: Multiplications and additions that its blocks issue: those of idle parts of tiles too.
        unit: What issues them: ``f32`` or ``f64``, the ordinary units; ``f16``, ``tf32`` or ``f64 tensor``,
            tensor cores.
        share: Of the unit's peak, as far as the inner loop's other instructions and loads leave it.
        tensor_bytes: Of operands and results, each once: they come from DRAM and go there.
        scratch_bytes: Read and written of the workspace.
        cache_bytes: That blocks read, whoever else has read them: from the L2 cache, where not from DRAM.
        resident: Blocks that a multiprocessor holds at once.
        concurrent: Blocks that it needs at once to reach the share, because one alone waits for its loads.
    """

    flops: float = 0
    unit: str = "f32"
    share: float = 1
    tensor_bytes: float = 0
    scratch_bytes: float = 0
    cache_bytes: float = 0
    resident: int = 2
    concurrent: float = 1


@dataclass(frozen=True)
class Step:
    """One launch.

    Attributes:
        source: The file under ``kernels/``.
        kernel: The instantiation, a C++ expression inside namespace ``pyconv``: ``name<float, kNchw, 128>``.
            Of a source in Numba, a Python expression inside that module: ``name(float32, 128)``.
        grid, block: Blocks and threads. A step with an empty grid is not launched.
        arguments: In the order of the kernel's parameters. Where a pass has no bias, ``"bias"`` is null.
        shared_bytes: Dynamic shared memory of a block.
        sass: Machine instructions that make the kernel what it claims to be: ``HMMA.16816.F32.BF16``,
            ``LDSM``, ``LDGSTS.128``, ``LDG.128``. The first part is the whole instruction, the others are
            some of its modifiers in order. :mod:`pyconv.gates` fails if the compiled instantiation lacks one.
        work: What it does, for the model; ``None`` has that estimated from the problem.
    """

    source: str
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    shared_bytes: int = 0
    sass: tuple[str, ...] = ()
    work: Work | None = None


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


def unit_of(problem: Problem) -> str:
    """The ordinary unit that sums of the problem's elements take (:attr:`Work.unit`)."""
    return "f64" if problem.dtype == "f64" else "f32"


def blocks(items: int, per_block: int) -> int:
    """Blocks that cover ``items``."""
    return -(-items // per_block)
