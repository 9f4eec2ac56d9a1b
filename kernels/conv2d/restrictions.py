"""What several kernels of this folder cannot do: the ``restriction`` of their table lines.

Each takes a problem and returns ``None`` or the reason why not.
"""

from pyconv.problem import Conv2dProblem, Problem


def depthwise_only(problem: Problem) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    if problem.groups == problem.c == problem.k:
        return None
    return "not depthwise with one filter per channel (groups = c = k)"


def indices_fit_int32(problem: Problem) -> str | None:
    """For kernels whose indices along one axis, padding included, are an ``int``; offsets are 64-bit."""
    assert isinstance(problem, Conv2dProblem)
    axes = {
        "n": problem.n,
        "c": problem.c,
        "k": problem.k,
        "h": problem.h + problem.pad_top + problem.pad_bottom + problem.dilation_h * problem.r,
        "w": problem.w + problem.pad_left + problem.pad_right + problem.dilation_w * problem.s,
        "stride": max(problem.stride_h, problem.stride_w),
    }
    name, widest = max(axes.items(), key=lambda axis: axis[1])
    return None if widest < 2**30 else f"{name} spans {widest} places (takes fewer than 2^30)"


def planes_fit_int32(problem: Problem) -> str | None:
    """For kernels that number the pixels of an image of x and of y with an ``int``."""
    assert isinstance(problem, Conv2dProblem)
    widest = max(problem.h * problem.w, problem.p * problem.q)
    return None if widest < 2**31 else f"an image of {widest} pixels (takes fewer than 2^31)"


def row_fits_int32(problem: Problem) -> str | None:
    """For im2col_gemm on cpu, which counts the places of a source row, padding included, in 32-bit lanes."""
    assert isinstance(problem, Conv2dProblem)
    side = problem.pad_left + problem.pad_right
    widest = max(problem.w + side, problem.q + side, problem.h * problem.w, problem.p * problem.q)
    if problem.layout == "nhwc":
        widest = max((problem.w + side) * problem.c, (problem.q + side) * problem.k)
    return None if widest < 2**30 else f"a source row of {widest} elements (takes fewer than 2^30)"


def torch_takes(problem: Problem) -> str | None:
    empty = [name for name in ("c", "k", "h", "w") if getattr(problem, name, 1) == 0]
    return f"torch refuses, or answers otherwise, where {empty[0]} is 0" if empty else None
