"""Lines of the table that show what arrived, for the tests of backend cuda (``tests/backend/probe.cu``)."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from pyconv import parse_problem
from pyconv.backends.program import Program, Scratch, Step
from pyconv.problem import Problem
from pyconv.registry import Kernel

PROBE = str(Path(__file__).parent / "backend" / "probe.cu")
THREADS = 64

#: A pooling whose y is as large as its x.
SAME = parse_problem("maxpool2d n2c5h4w3 r1s1 st1 pd0 f32 nchw")
CONV = parse_problem("conv2d n2c4h6w5 k3r3s3 st1 pd1 f32 nchw")


def line(program: Any, pass_: str = "fprop", operation: str = "maxpool2d") -> Kernel:
    return Kernel(operation, pass_, "probe", "cuda", ("f32", "f64"), source=PROBE, program=program)  # type: ignore[arg-type]


def step(
    kernel: str, arguments: tuple[Any, ...], blocks: int = 1, threads: int = THREADS, **more: Any
) -> Step:
    return Step(PROBE, kernel, (blocks, 1, 1), (threads, 1, 1), arguments, **more)


def two_steps(problem: Problem) -> Program:
    """y = 2 * x + 1 + n."""
    element = "double" if problem.dtype == "f64" else "float"
    blocks = -(-problem.y_size // THREADS)
    middle = Scratch(256)
    return Program(
        (
            step("probe_overrun", ("y", ctypes.c_int64(0)), blocks=0),  # an empty grid: not launched
            step(
                f"probe_scale<{element}>",
                ("x", middle, ctypes.c_int64(problem.y_size), ctypes.c_double(2), ctypes.c_int32(1)),
                blocks,
            ),
            step(f"probe_add<{element}>", (problem, middle, "y"), blocks, shared_bytes=8 * THREADS),
        ),
        workspace_bytes=256 + 8 * problem.y_size,
    )
