"""The convolution kernels: one line each. Order is the order in which ``pyconv kernels`` lists them."""

from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

FLOATS = ("f32", "f64")


def depthwise_only(problem: Problem) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    if problem.groups == problem.c == problem.k:
        return None
    return "not depthwise with one filter per channel (groups = c = k)"


def row_fits_int32(problem: Problem) -> str | None:
    # im2col_gemm counts places within one source row, padding included, in 32-bit lanes.
    assert isinstance(problem, Conv2dProblem)
    side = problem.pad_left + problem.pad_right
    widest = max(problem.w + side, problem.q + side, problem.h * problem.w, problem.p * problem.q)
    if problem.layout == "nhwc":
        widest = max((problem.w + side) * problem.c, (problem.q + side) * problem.k)
    return None if widest < 2**30 else f"a source row of {widest} elements (takes fewer than 2^30)"


def torch_takes(problem: Problem) -> str | None:
    empty = [name for name in ("c", "k", "h", "w") if getattr(problem, name, 1) == 0]
    return f"torch refuses, or answers otherwise, where {empty[0]} is 0" if empty else None


def _cpu(pass_: str, algorithm: str, source: str, **claims: object) -> Kernel:
    return Kernel(
        "conv2d",
        pass_,
        algorithm,
        "cpu",
        FLOATS,
        source=f"conv2d/{source}",
        proved=("cpu",),
        **claims,  # type: ignore[arg-type]
    )


def _aten(pass_: str) -> Kernel:
    return Kernel(
        "conv2d",
        pass_,
        "aten",
        "aten",
        ("f32", "f64", "f16", "bf16"),
        restriction=torch_takes,
        deterministic=False,
        exact_integers=False,
        nonfinite="tile",
    )


GEMM: dict[str, object] = {"restriction": row_fits_int32, "nonfinite": "padding"}

KERNELS = [
    _cpu("fprop", "direct", "direct.cpp", batch_invariant=True),
    _cpu("fprop", "depthwise", "depthwise.cpp", batch_invariant=True, restriction=depthwise_only),
    _cpu("fprop", "im2col_gemm", "im2col_gemm.cpp", batch_invariant=True, **GEMM),
    _aten("fprop"),
    _cpu("dgrad", "direct", "direct.cpp", batch_invariant=True),
    _cpu("dgrad", "depthwise", "depthwise.cpp", batch_invariant=True, restriction=depthwise_only),
    _cpu("dgrad", "im2col_gemm", "im2col_gemm.cpp", batch_invariant=True, **GEMM),
    _aten("dgrad"),
    _cpu("wgrad", "direct", "direct_wgrad.cpp"),
    _cpu("wgrad", "depthwise", "depthwise_wgrad.cpp", restriction=depthwise_only),
    _cpu("wgrad", "im2col_gemm", "im2col_gemm.cpp", **GEMM),
    _aten("wgrad"),
    _cpu("bgrad", "direct", "bgrad.cpp"),
    _aten("bgrad"),
]
