"""The max-pooling kernels: one line each."""

from pyconv.problem import Pool2dProblem, Problem
from pyconv.registry import Kernel

FLOATS = ("f32", "f64")


def plane_fits_int32(problem: Problem) -> str | None:
    return None if problem.h * problem.w < 2**31 else f"plane {problem.h}x{problem.w} exceeds 32-bit places"


def torch_padding(problem: Problem) -> str | None:
    assert isinstance(problem, Pool2dProblem)
    top, bottom, left, right = problem.padding
    if (top, left) != (bottom, right):
        return "padding per side"
    if 2 * top > problem.r or 2 * left > problem.s:
        return "padding larger than half the window"
    if 0 in problem.x_shape[1:]:
        return "torch refuses planes or channels of no size"
    if _covers_nothing(problem):
        return "a window that covers no element, where torch's place is outside the plane"
    return plane_fits_int32(problem)


def _covers_nothing(problem: Pool2dProblem) -> bool:
    """Whether some window has every tap on padding, which takes dilation."""
    for extent, count, before, taps, stride, dilation in (
        (problem.h, problem.p, problem.pad_top, problem.r, problem.stride_h, problem.dilation_h),
        (problem.w, problem.q, problem.pad_left, problem.s, problem.stride_w, problem.dilation_w),
    ):
        if dilation == 1:
            continue
        for i in range(count):
            first = i * stride - before
            if not any(0 <= first + tap * dilation < extent for tap in range(taps)):
                return True
    return False


def _cpu(pass_: str, source: str) -> Kernel:
    return Kernel(
        "maxpool2d",
        pass_,
        "direct",
        "cpu",
        FLOATS,
        source=f"maxpool2d/{source}",
        restriction=plane_fits_int32,
        batch_invariant=True,
        proved=("cpu",),
    )


def _aten(pass_: str) -> Kernel:
    return Kernel(
        "maxpool2d",
        pass_,
        "aten",
        "aten",
        ("f32", "f64", "f16", "bf16"),
        restriction=torch_padding,
        deterministic=False,
        exact_integers=pass_ != "dgrad",  # which adds in 16 bits
    )


KERNELS = [
    _cpu("fprop", "fprop.cpp"),
    _aten("fprop"),
    _cpu("fprop_argmax", "fprop_argmax.cpp"),
    _aten("fprop_argmax"),
    _cpu("dgrad", "dgrad.cpp"),
    _aten("dgrad"),
    _cpu("gather", "gather.cpp"),
    _aten("gather"),
]
