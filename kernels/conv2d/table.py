"""The convolution kernels: one line each. Order is the order in which ``pyconv kernels`` lists them."""

from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

FLOATS = ("f32", "f64")


def depthwise_only(problem: Problem) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    return None if problem.group_c == 1 and problem.groups > 1 else "not depthwise (c/groups is not 1)"


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
        deterministic=False,
        exact_integers=False,
        nonfinite="tile",
    )


KERNELS = [
    _cpu("fprop", "direct", "direct.cpp", batch_invariant=True),
    _cpu("fprop", "depthwise", "depthwise.cpp", batch_invariant=True, restriction=depthwise_only),
    _cpu("fprop", "im2col_gemm", "im2col_gemm.cpp", batch_invariant=True, nonfinite="padding"),
    _aten("fprop"),
    _cpu("dgrad", "direct", "direct.cpp", batch_invariant=True),
    _cpu("dgrad", "depthwise", "depthwise.cpp", batch_invariant=True, restriction=depthwise_only),
    _cpu("dgrad", "im2col_gemm", "im2col_gemm.cpp", batch_invariant=True),
    _aten("dgrad"),
    _cpu("wgrad", "direct", "direct_wgrad.cpp"),
    _cpu("wgrad", "depthwise", "depthwise.cpp", restriction=depthwise_only),
    _cpu("wgrad", "im2col_gemm", "im2col_gemm.cpp", nonfinite="padding"),
    _aten("wgrad"),
    _cpu("bgrad", "direct", "bgrad.cpp"),
    _aten("bgrad"),
]
