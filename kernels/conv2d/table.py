"""The convolution kernels: one line each.

The lines of the CUDA kernels stand in the launch file beside each source (``direct_naive_launch.py`` is the
example to read first); a new one is added to ``_CUDA`` here. ``pyconv kernels`` lists the lines by pass, and
within a pass in the order of this file.
"""

from pyconv.kernels.conv2d import (
    bgrad_launch,
    bgrad_numba_launch,
    depthwise_launch,
    direct_naive_launch,
    direct_naive_numba_launch,
    direct_stem_launch,
    direct_tiled_launch,
    direct_tiled_numba_launch,
    direct_tiled_wgrad_launch,
    direct_tiled_wgrad_numba_launch,
    im2col_gemm_launch,
    im2col_gemm_numba_launch,
    implicit_gemm_launch,
    implicit_gemm_tensor_launch,
    winograd_fused_launch,
    winograd_launch,
)
from pyconv.kernels.conv2d.restrictions import depthwise_only, row_fits_int32, torch_takes

from pyconv.problem import CONV2D_PASSES
from pyconv.registry import Kernel

FLOATS = ("f32", "f64", "f16", "bf16")


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


def _numba_cpu(pass_: str, source: str, batch_invariant: bool = False) -> Kernel:
    return Kernel(
        "conv2d",
        pass_,
        "direct",
        "numba-cpu",
        ("f32", "f64"),  # Numba has no 16-bit floats on a CPU
        source=f"conv2d/{source}",
        batch_invariant=batch_invariant,
        proved=("cpu",),
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

_CPU = [
    _cpu("fprop", "direct", "direct.cpp", batch_invariant=True),
    _cpu("fprop", "depthwise", "depthwise.cpp", batch_invariant=True, restriction=depthwise_only),
    _cpu("fprop", "im2col_gemm", "im2col_gemm.cpp", batch_invariant=True, **GEMM),
    _cpu("dgrad", "direct", "direct.cpp", batch_invariant=True),
    _cpu("dgrad", "depthwise", "depthwise.cpp", batch_invariant=True, restriction=depthwise_only),
    _cpu("dgrad", "im2col_gemm", "im2col_gemm.cpp", batch_invariant=True, **GEMM),
    _cpu("wgrad", "direct", "direct_wgrad.cpp"),
    _cpu("wgrad", "depthwise", "depthwise_wgrad.cpp", restriction=depthwise_only),
    _cpu("wgrad", "im2col_gemm", "im2col_gemm.cpp", **GEMM),
    _cpu("bgrad", "direct", "bgrad.cpp"),
]

_NUMBA_CPU = [
    _numba_cpu("fprop", "direct_numba_cpu.py", batch_invariant=True),
    _numba_cpu("dgrad", "direct_numba_cpu.py", batch_invariant=True),
    _numba_cpu("wgrad", "direct_wgrad_numba_cpu.py"),
    _numba_cpu("bgrad", "bgrad_numba_cpu.py"),
]

#: The launch files of the CUDA kernels, from the simplest on.
_CUDA = [
    *direct_naive_launch.KERNELS,
    *direct_tiled_launch.KERNELS,
    *direct_tiled_wgrad_launch.KERNELS,
    *direct_stem_launch.KERNELS,
    *depthwise_launch.KERNELS,
    *im2col_gemm_launch.KERNELS,
    *implicit_gemm_launch.KERNELS,
    *implicit_gemm_tensor_launch.KERNELS,
    *winograd_launch.KERNELS,
    *winograd_fused_launch.KERNELS,
    *bgrad_launch.KERNELS,
]

#: Those of the Numba kernels, likewise.
_NUMBA = [
    *direct_naive_numba_launch.KERNELS,
    *direct_tiled_numba_launch.KERNELS,
    *direct_tiled_wgrad_numba_launch.KERNELS,
    *im2col_gemm_numba_launch.KERNELS,
    *bgrad_numba_launch.KERNELS,
]

_ATEN = [_aten(pass_) for pass_ in CONV2D_PASSES]

_LINES = [*_CPU, *_NUMBA_CPU, *_CUDA, *_NUMBA, *_ATEN]
KERNELS = sorted(_LINES, key=lambda kernel: CONV2D_PASSES.index(kernel.pass_))
