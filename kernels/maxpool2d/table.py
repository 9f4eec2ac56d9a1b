"""The max-pooling kernels: one line each."""

import dataclasses

from pyconv.kernels.maxpool2d import dgrad_launch, fprop_launch, gather_launch, numba_launch
from pyconv.kernels.maxpool2d.restrictions import plane_fits_int32, torch_padding

from pyconv.problem import POOL2D_PASSES
from pyconv.registry import Kernel

FLOATS = ("f32", "f64", "f16", "bf16")


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


def _numba_cpu(pass_: str, source: str) -> Kernel:
    # Numba has no 16-bit floats on a CPU.
    return dataclasses.replace(_cpu(pass_, source), backend="numba-cpu", dtypes=("f32", "f64"))


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


_CPU = [
    _cpu("fprop", "fprop.cpp"),
    _cpu("fprop_argmax", "fprop_argmax.cpp"),
    _cpu("dgrad", "dgrad.cpp"),
    _cpu("gather", "gather.cpp"),
]

_NUMBA_CPU = [
    _numba_cpu("fprop", "fprop_numba_cpu.py"),
    _numba_cpu("fprop_argmax", "fprop_numba_cpu.py"),
    _numba_cpu("dgrad", "dgrad_numba_cpu.py"),
    _numba_cpu("gather", "dgrad_numba_cpu.py"),
]

_CUDA = [
    *fprop_launch.KERNELS,
    *dgrad_launch.KERNELS,
    *gather_launch.KERNELS,
]

#: torch has no argmax of one byte, so it has no lines for the passes by tap.
_ATEN = [_aten(pass_) for pass_ in ("fprop", "fprop_argmax", "dgrad", "gather")]

_LINES = [*_CPU, *_NUMBA_CPU, *_CUDA, *numba_launch.KERNELS, *_ATEN]
KERNELS = sorted(_LINES, key=lambda kernel: POOL2D_PASSES.index(kernel.pass_))
