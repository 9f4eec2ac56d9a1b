"""What kernels of this folder cannot do: the ``restriction`` of their table lines.

Each takes a problem and returns ``None`` or the reason why not.
"""

from pyconv.problem import Pool2dProblem, Problem


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


def indices_fit_int32(problem: Problem) -> str | None:
    """For kernels that count along each axis in 32 bits, padding and dilation included; offsets have 64."""
    assert isinstance(problem, Pool2dProblem)
    channels = problem.c if problem.layout == "nhwc" else 1
    spans = {
        "h": problem.h
        + problem.pad_top
        + problem.pad_bottom
        + problem.stride_h
        + problem.r * problem.dilation_h,
        "w": problem.w
        + problem.pad_left
        + problem.pad_right
        + problem.stride_w
        + problem.s * problem.dilation_w,
        "a row of x": problem.w * channels,
        "a row of y": problem.q * channels,
        "the window": problem.r * problem.s,
    }
    name, widest = max(spans.items(), key=lambda span: span[1])
    return None if widest < 2**29 else f"{name} spans {widest} places (takes fewer than 2^29)"


def place_fits_int32(problem: Problem) -> str | None:
    return plane_fits_int32(problem) or indices_fit_int32(problem)


def tap_fits_a_byte(problem: Problem) -> str | None:
    """255 says that a window covers nothing."""
    assert isinstance(problem, Pool2dProblem)
    taps = problem.r * problem.s
    if taps > 255:
        return f"a window of {taps} places (a byte numbers 255)"
    return indices_fit_int32(problem)
