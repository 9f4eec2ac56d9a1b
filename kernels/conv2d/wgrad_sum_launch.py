"""The step of ``wgrad_sum.cu``, with which weight gradients of split pixels end."""

from __future__ import annotations

from ctypes import c_int32

from pyconv.backends.program import Scratch, Step, Work, blocks, cpp_layout, cpp_type
from pyconv.problem import Conv2dProblem

#: Elements of a block: the lanes of a warp.
ELEMENTS = 32
#: Rows of threads, each of which adds its part of the splits: where dw is small and the splits are many, the
#: loads of all rows are under way together.
ROWS = 8


def sum_splits(problem: Conv2dProblem, splits: int) -> Step:
    """Adds ``splits`` copies of dw, in the order k, c, r, s from the start of the workspace on."""
    return Step(
        "conv2d/wgrad_sum.cu",
        kernel=f"wgrad_sum_splits<{cpp_type(problem)}, {cpp_layout(problem)}, {ROWS}>",
        grid=(blocks(problem.w_size, ELEMENTS), 1, 1),
        block=(ELEMENTS * ROWS, 1, 1),
        arguments=(problem, c_int32(splits), Scratch(), "dw"),
        work=Work(
            tensor_bytes=problem.w_size * problem.element_bytes,
            scratch_bytes=splits * problem.w_size * (8 if problem.dtype == "f64" else 4),
        ),
    )
