"""The splits of a weight gradient's long sum, and the step that adds them up in order."""

from __future__ import annotations

from collections.abc import Callable

from pyconv.kernels.conv2d.im2col_gemm_launch import splits_of, sum_splits

from pyconv.backends.program import Argument, Program, Scratch, Step
from pyconv.problem import DTYPES, Conv2dProblem


def pixel_splits(problem: Conv2dProblem, tiles: int) -> tuple[int, int]:
    """How many splits n*p*q has where dw is that many tiles, and the pixels of each. The problem decides."""
    return splits_of(problem.n * problem.p * problem.q, tiles)


def with_splits(
    problem: Conv2dProblem, tiles: int, step: Callable[[Argument, str, int, int], Step]
) -> Program:
    """``step(dw, dtype of dw, splits, split_k)`` and, if there are several splits, their sum."""
    splits, split_k = pixel_splits(problem, tiles)
    if splits == 1:
        return Program((step("dw", problem.dtype, 1, split_k),))
    sums = "f64" if problem.dtype == "f64" else "f32"
    steps = step(Scratch(), sums, splits, split_k), sum_splits(problem, Scratch(), splits)
    return Program(steps, splits * problem.w_size * DTYPES[sums].itemsize)
