"""Numba kernels on one GPU: compiled by Numba at the first call that needs them, launched on torch's current
stream.

Memory is torch's: a view is given to Numba as ``__cuda_array_interface__`` has it, an address, extents and
strides, and nothing is copied or waited for. Numba keeps one compiled kernel for each kind of arguments (a
dtype; nchw and any other strides), in memory and in its cache on disk (``NUMBA_CACHE_DIR``, else
``__pycache__``). Make one call before a CUDA graph is captured: that is the one that compiles.

This is the only module of the backend that needs a GPU. It has not run on one yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyconv.backends import numba_program
from pyconv.backends.gpu import LEAST_CAPABILITY
from pyconv.backends.program import Scratch, Step, View
from pyconv.backends.sources import KERNELS
from pyconv.problem import Conv2dProblem, Pool2dProblem

_DRIVER = "libcuda.so.1"

#: dtype of a view -> its name and bytes as ``__cuda_array_interface__`` has them.
_TYPES = {"f32": ("<f4", 4), "f64": ("<f8", 8), "f16": ("<f2", 2), "i32": ("<i4", 4)}


@cache
def missing() -> str | None:
    """What this machine lacks to run Numba kernels on a GPU, all of it; ``None`` if nothing."""
    reasons = []
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        reasons.append(f"no NVIDIA driver ({_DRIVER} cannot be loaded)")
    if torch.version.cuda is None:
        reasons.append(f"torch {torch.__version__} is built without CUDA")
    elif not reasons and not torch.cuda.is_available():
        reasons.append("torch finds no CUDA device")
    for module, package in (
        ("numba", "numba"),
        ("numba_cuda", "numba-cuda[cu13], or numba-cuda[cu12] for CUDA 12"),
    ):
        if importlib.util.find_spec(module) is None:
            reasons.append(f"no {package.partition('[')[0]} (pip install {package})")
    if not reasons:
        try:
            importlib.import_module("numba.cuda")
        except Exception as error:
            reasons.append(f"numba.cuda cannot be imported: {error}")
    if not reasons:
        reasons += [
            f"cuda:{index} has compute capability {have[0]}.{have[1]}, the kernels are compiled for "
            f"{need[0]}.{need[1]} and newer"
            for index in range(torch.cuda.device_count())
            if (have := torch.cuda.get_device_capability(index)) < (need := LEAST_CAPABILITY)
        ]
    return "; ".join(reasons) or None


def module_of(source: str) -> Any:
    """The Python module of a source under ``kernels/``, or of an absolute path."""
    path = KERNELS / source
    if path.is_relative_to(KERNELS):
        return importlib.import_module(f"pyconv.kernels.{source.removesuffix('.py').replace('/', '.')}")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@cache
def kernel_of(source: str, kernel: str) -> Any:
    """The kernel that an expression names inside the module of a source, as ``numba.cuda.jit`` made it."""
    import numba

    # A layer may be small; that is no news to who trains it.
    warnings.filterwarnings("ignore", r"Grid size \d+ will likely")
    names = {"float32": numba.float32, "float64": numba.float64}
    return eval(kernel, {**vars(module_of(source)), **names})  # an expression of our own launch files


class Gpu:
    """A device on which Numba launches."""

    def __init__(self, index: int) -> None:
        self.index = index

    def load(self, step: Step) -> tuple[Step, Any, list[Callable[..., Any]]]:
        """The step's kernel, to be compiled when it is launched, and what makes its arguments."""
        kernel = kernel_of(step.source, step.kernel)
        with contextlib.suppress(
            RuntimeError, AttributeError
        ):  # nowhere to keep it: compiled in every process
            kernel.enable_caching()
        return step, kernel, [self._argument(argument) for argument in step.arguments]

    def launch(
        self,
        launches: Sequence[tuple[Step, Any, list[Callable[..., Any]]]],
        tensors: dict[str, Tensor | None],
        workspace: Tensor | None,
    ) -> None:
        """The launches, one after the other, on torch's current stream of this device."""
        with self._stream() as stream:
            for step, kernel, arguments in launches:
                configured = kernel[step.grid, step.block, stream, step.shared_bytes]
                configured(*(argument(tensors, workspace) for argument in arguments))

    @contextlib.contextmanager
    def _stream(self) -> Any:
        """torch's current stream as Numba's; within the block, the device's context is current."""
        from numba import cuda

        with torch.cuda.device(self.index), cuda.gpus[self.index]:
            yield cuda.external_stream(torch.cuda.current_stream(self.index).cuda_stream)

    def _argument(self, argument: Any) -> Callable[..., Any]:
        """What gives the argument of a call, from its tensors and its workspace."""
        if isinstance(argument, View):
            return lambda tensors, workspace: self.array(*_placed(argument, tensors, workspace))
        if isinstance(argument, (Conv2dProblem, Pool2dProblem)):
            argument = numba_program.numbers(argument)
        return lambda tensors, workspace: argument

    def array(self, address: int, typestr: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        """A strided array of the device's memory, without a copy. Strides are in bytes."""
        from numba import cuda

        described = {
            "data": (address, False),
            "typestr": typestr,
            "shape": shape,
            "strides": strides,
            "version": 3,
        }
        return cuda.from_cuda_array_interface(described, sync=False)


def _placed(
    view: View, tensors: dict[str, Tensor | None], workspace: Tensor | None
) -> tuple[int, str, tuple[int, ...], tuple[int, ...]]:
    typestr, size = _TYPES[view.dtype]
    address, is_there = pointer(view, tensors, workspace)
    shape = view.shape if is_there else (0,) * len(view.shape)
    return address, typestr, shape, tuple(size * stride for stride in view.strides)


def pointer(view: View, tensors: dict[str, Tensor | None], workspace: Tensor | None) -> tuple[int, bool]:
    """Where the view begins, and whether it is there at all: a bias may be missing, and has no elements
    then."""
    offset = view.offset * _TYPES[view.dtype][1]
    if isinstance(view.of, Scratch):
        return (0 if workspace is None else workspace.data_ptr() + view.of.offset + offset), True
    tensor = tensors.get(view.of)
    return (0, False) if tensor is None else (tensor.data_ptr() + offset, True)


@cache
def gpu(index: int) -> Gpu:
    return Gpu(index)
