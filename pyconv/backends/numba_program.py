"""What launch files of Numba kernels share: the problem as a named tuple, and tensors as strided arrays.

A Numba kernel is given its tensors as arrays of four indices, ``x[n, c, h, w]``, whatever their layout: that
is in the strides. So one source, and on the emulator one instantiation, serves both layouts.
"""

from __future__ import annotations

import ctypes
import keyword
from collections.abc import Sequence
from typing import NamedTuple

from pyconv.backends.program import Scratch, View
from pyconv.problem import Conv2dProblem, Pool2dProblem, Problem

#: dtype of a descriptor -> what sums are kept in, by its name in ``numba``: the argument ``Sum`` of a kernel.
SUMS = {"f32": "float32", "f64": "float64", "f16": "float32"}
#: The same as a dtype of the workspace.
SUM_DTYPES = {"f32": "f32", "f64": "f64", "f16": "f32"}


class Conv2d(NamedTuple):
    """``Conv2dProblem`` as a kernel's argument, with the sizes that follow from it."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    p: int
    q: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    dilation_h: int
    dilation_w: int
    groups: int
    group_c: int
    group_k: int


class Pool2d(NamedTuple):
    """``Pool2dProblem`` as a kernel's argument, with the sizes that follow from it."""

    n: int
    c: int
    h: int
    w: int
    r: int
    s: int
    p: int
    q: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    dilation_h: int
    dilation_w: int


def numbers(problem: Problem) -> Conv2d | Pool2d:
    """The problem as a kernel in Numba is given it."""
    kind = Conv2d if isinstance(problem, Conv2dProblem) else Pool2d
    return kind(*(getattr(problem, field) for field in kind._fields))  # type: ignore[no-any-return]


def dense(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense array whose axes lie in memory in this order, the outermost first."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= max(1, shape[axis])
    return tuple(strides)


def layout_order(layout: str) -> tuple[int, int, int, int]:
    """The axes of a tensor of four indices in the order in which they lie in memory."""
    return (0, 2, 3, 1) if layout == "nhwc" else (0, 1, 2, 3)


def tensor(name: str, problem: Problem) -> View:
    """An operand or result of that name in the equations, with its indices in their order: ``w[k, c, r,
    s]``."""
    if name in ("bias", "db"):
        assert isinstance(problem, Conv2dProblem)
        return View(name, problem.dtype, (problem.k,), (1,))
    if name in ("w", "dw"):
        assert isinstance(problem, Conv2dProblem)
        shape = problem.w_shape
    else:
        shape = problem.x_shape if name in ("x", "dx") else problem.y_shape
    dtype = "i32" if name == "argmax" else problem.dtype
    return View(name, dtype, shape, dense(shape, layout_order(problem.layout)))


def scratch(offset: int, dtype: str, *shape: int) -> View:
    """A dense array in the workspace, ``offset`` bytes from its start."""
    return View(Scratch(offset), dtype, shape, dense(shape, range(len(shape))))


def flattened(structure: ctypes.Structure, prefix: str = "") -> dict[str, int]:
    """The integers of a C struct by name, those of a member ``rows`` as ``rows_...``."""
    found: dict[str, int] = {}
    for field in structure._fields_:
        value = getattr(structure, field[0])
        name = f"{prefix}{field[0]}"
        if isinstance(value, ctypes.Structure):
            found |= flattened(value, f"{name}_")
        else:
            found[f"{name}_" if keyword.iskeyword(name) else name] = int(value)
    return found


__all__ = [
    "SUMS",
    "SUM_DTYPES",
    "Conv2d",
    "Conv2dProblem",
    "Pool2d",
    "Pool2dProblem",
    "dense",
    "flattened",
    "layout_order",
    "numbers",
    "scratch",
    "tensor",
]  # fmt: skip
