"""What the battery feeds a kernel, and how it lays that out in memory.

Operands are numpy arrays indexed ``[n, c, h, w]``; :func:`lay_out` turns them into torch tensors in a plain
or a hostile placement. Every placement lives in a buffer with margins of NaN, so a kernel that reads beside
its operand, or takes a view for a dense tensor, cannot give the right result.
"""

from __future__ import annotations

import ctypes
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyconv import reference
from pyconv.problem import Conv2dProblem, Pool2dProblem, Problem

Array = npt.NDArray[Any]

#: (operation, pass) -> its operands, in the order of :func:`pyconv.backends.bind`.
OPERANDS = {
    ("conv2d", "fprop"): ("x", "w", "bias"),
    ("conv2d", "dgrad"): ("dy", "w"),
    ("conv2d", "wgrad"): ("x", "dy"),
    ("conv2d", "bgrad"): ("dy",),
    ("maxpool2d", "fprop"): ("x",),
    ("maxpool2d", "fprop_argmax"): ("x",),
    ("maxpool2d", "dgrad"): ("dy", "argmax"),
    ("maxpool2d", "gather"): ("x", "argmax"),
}

NUMPY_DTYPES: dict[str, type[np.floating[Any]]] = {"f32": np.float32, "f64": np.float64}


def operation_of(problem: Problem) -> str:
    return "conv2d" if isinstance(problem, Conv2dProblem) else "maxpool2d"


def _shape(problem: Problem, name: str) -> tuple[int, ...]:
    if isinstance(problem, Conv2dProblem) and name in ("w", "bias"):
        return problem.w_shape if name == "w" else (problem.k,)
    return problem.x_shape if name == "x" else problem.y_shape


def result_shapes(problem: Problem, pass_: str) -> list[tuple[int, ...]]:
    """Shapes of what a pass returns."""
    if isinstance(problem, Conv2dProblem):
        shapes: dict[str, tuple[int, ...]] = {
            "fprop": problem.y_shape,
            "dgrad": problem.x_shape,
            "wgrad": problem.w_shape,
            "bgrad": (problem.k,),
        }
        return [shapes[pass_]]
    if pass_ == "fprop_argmax":
        return [problem.y_shape, problem.y_shape]
    return [problem.x_shape if pass_ == "dgrad" else problem.y_shape]


# ---- Values ----------------------------------------------------------------------------------------------


def _values(kind: str, shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """``normal``; ``integers`` up to 3, with zeros of both signs; ``special``: those, with NaN and -inf."""
    random = np.random.default_rng(seed)
    if kind == "normal":
        return random.standard_normal(shape).astype(NUMPY_DTYPES[dtype])
    values = random.integers(-3, 4, shape).astype(NUMPY_DTYPES[dtype])
    values[random.random(shape) < 0.1] = -0.0
    if kind == "special":
        values[random.random(shape) < 0.1] = np.nan
        values[random.random(shape) < 0.4] = -np.inf
    return values


@lru_cache(maxsize=512)
def operands(problem: Problem, pass_: str, kind: str, draw: int = 0) -> tuple[Array, ...]:
    """The operands of one pass. They depend on the problem's sizes and dtype, not on its layout."""
    arrays: list[Array] = []
    for name in OPERANDS[operation_of(problem), pass_]:
        sizes = str(problem).rsplit(" ", 1)[0]
        seed = zlib.crc32(f"{sizes} {name} {kind} {draw}".encode())
        if name == "argmax":
            assert isinstance(problem, Pool2dProblem)
            ties = _values("integers", problem.x_shape, problem.dtype, seed)
            arrays.append(reference.maxpool2d_fprop_argmax(problem, ties)[1])
        else:
            arrays.append(_values(kind, _shape(problem, name), problem.dtype, seed))
    for array in arrays:
        array.flags.writeable = False
    return tuple(arrays)


def expected(
    problem: Problem,
    pass_: str,
    arrays: tuple[Array | None, ...],
    dtype: npt.DTypeLike = np.float64,
    padding_multiplied: bool = False,
) -> tuple[Array, ...]:
    """What :mod:`pyconv.reference` says."""
    function = getattr(reference, f"{operation_of(problem)}_{pass_}")
    sums = isinstance(problem, Conv2dProblem) or pass_ == "dgrad"
    extra: dict[str, Any] = {"dtype": dtype} if sums else {}
    if padding_multiplied:
        extra["padding_multiplied"] = True
    result = function(problem, *arrays, **extra)
    return result if isinstance(result, tuple) else (result,)


# ---- Placement -------------------------------------------------------------------------------------------

#: ``dense`` is what the problem's layout says; the others are views that a kernel must not mistake for it.
PLACEMENTS = ("dense", "strided", "sliced", "offset", "transposed")


def dense_strides(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Strides, in elements, of a dense tensor of the layout (one dimension is always contiguous)."""
    order = (0, 2, 3, 1) if layout == "nhwc" and len(shape) == 4 else range(len(shape))
    strides, step = [0] * len(shape), 1
    for axis in reversed(tuple(order)):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


_MARGIN = 32  # elements of NaN before and after: whole cache lines, so a dense operand stays aligned


def lay_out(array: Array, layout: str, placement: str = "dense") -> Tensor:
    """A tensor of these values: see :data:`PLACEMENTS`. Everything around them is NaN (an int's largest)."""
    if placement == "transposed":
        layout = "nchw" if layout == "nhwc" else "nhwc"
    grown = array.shape
    if placement in ("strided", "sliced"):  # every second element, or the middle, of a larger tensor
        grown = tuple(2 * size + 1 if placement == "strided" else size + 3 for size in array.shape)
    strides = dense_strides(grown, layout)
    start = _MARGIN + (placement == "offset")  # one element more: aligned to nothing but its element
    size = int(np.prod(grown))
    around = torch.iinfo(torch.int32).max if array.dtype == np.int32 else float("nan")
    buffer = torch.full(
        (start + size + _MARGIN,), around, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype
    )
    view = buffer.as_strided(grown, strides, start)
    if placement == "strided":
        view = view[tuple(slice(1, None, 2) for _ in array.shape)]
    elif placement == "sliced":
        view = view[tuple(slice(1, 1 + size) for size in array.shape)]
    view.copy_(torch.from_numpy(np.array(array)))
    return view


def storage_bytes(tensor: Tensor) -> bytes:
    """Every byte of the buffer that a tensor is a view of."""
    storage = tensor.untyped_storage()
    return ctypes.string_at(storage.data_ptr(), storage.nbytes()) if storage.nbytes() else b""


def placements(count: int) -> list[tuple[str, ...]]:
    """Every hostile placement of every one of ``count`` operands, in as few calls as there are placements."""
    hostile = PLACEMENTS[1:]
    return [
        tuple(hostile[(call + operand) % len(hostile)] for operand in range(count))
        for call in range(len(hostile))
    ]


# ---- Poison ----------------------------------------------------------------------------------------------

_M_PERTURB = -6  # glibc's mallopt: fill whatever is allocated with the complement of a byte


def _perturb(byte: int | None) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_PERTURB, 0 if byte is None else 0x100 | (byte ^ 0xFF)))


@contextmanager
def poisoned_memory(byte: int) -> Iterator[bool]:
    """Whatever is allocated within the block, by torch too, is filled with ``byte``. Yields whether it is.

    0xFF is NaN in every floating-point dtype and -1 in every integer. A block below 1 kB escapes now and then
    (glibc hands out a cached one as it is), a larger one never; the shared list has both for every kernel.
    """
    try:
        _perturb(byte)
        probes = [torch.empty(size, dtype=torch.uint8) for size in (2000, 70_000)]
        yield all(bool((probe == byte).all()) for probe in probes)
    finally:
        _perturb(None)
