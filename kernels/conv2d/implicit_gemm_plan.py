"""What the implicit GEMM kernels are told of a problem: the operands of the product, gathered and plain.

Twins of the structures in ``implicit_gemm_plan.cuh`` and ``implicit_gemm_patches.cuh``.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

from pyconv.kernels.gemm.gemm_launch import CGemmProblem, Matrix, Product, Tile

from pyconv.backends.program import Argument, blocks
from pyconv.problem import Conv2dProblem

#: Residue classes of an axis in one launch (``kMostClasses``).
MOST_CLASSES = 8


class Divisor(ctypes.Structure):
    """``Divisor`` of ``common/divisor.h``."""

    _fields_ = (("divisor", ctypes.c_int32), ("multiplier", ctypes.c_uint32), ("shift", ctypes.c_int32))


def divisor(number: int) -> Divisor:
    """What divides by ``number``, at least 1 and below 2^31."""
    shift = (number - 1).bit_length()
    return Divisor(number, 2**32 * (2**shift - number) // number + 1, shift)


# ---- fprop and dgrad --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AxisClass:
    """One axis of one class of output pixels (``AxisClass`` of ``gather.cuh``)."""

    out_origin: int
    out_step: int
    out_count: int
    taps: int
    tap_origin: int
    tap_step: int
    in_origin: int


def fprop_class(outputs: int, taps: int, pad: int) -> AxisClass:
    return AxisClass(0, 1, outputs, taps, 0, 1, -pad)


def dgrad_class(outputs: int, taps: int, pad: int, stride: int, dilation: int, residue: int) -> AxisClass:
    """The outputs ``residue``, ``residue + stride``, ...: ``dgrad_axis`` of ``gather.cuh``."""
    period, count = stride // math.gcd(stride, dilation), blocks(outputs - residue, stride)
    for first in range(min(taps, period)):
        if (residue + pad - first * dilation) % stride == 0:
            own = (taps - 1 - first) // period + 1
            origin = first + (own - 1) * period
            reached = (residue + pad - origin * dilation) // stride
            return AxisClass(residue, stride, count, own, origin, -period, reached)
    return AxisClass(residue, stride, count, 0, 0, -period, 0)


@dataclass(frozen=True)
class Axis:
    """One axis of a gather, with its classes, those with the most taps first."""

    in_extent: int
    out_extent: int
    in_step: int
    tap_step: int
    classes: tuple[AxisClass, ...]


def fprop_axis(inputs: int, outputs: int, taps: int, pad: int, stride: int, dilation: int) -> Axis:
    return Axis(inputs, outputs, stride, dilation, (fprop_class(outputs, taps, pad),))


def dgrad_axis(inputs: int, outputs: int, taps: int, pad: int, stride: int, dilation: int) -> Axis:
    classes = (
        dgrad_class(outputs, taps, pad, stride, dilation, residue) for residue in range(min(stride, outputs))
    )
    ordered = tuple(sorted(classes, key=lambda each: -each.taps))
    return Axis(inputs, outputs, 1, dilation // math.gcd(stride, dilation), ordered)


class _AxisClass(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in (
            "out_origin", "out_step", "out_count", "taps", "tap_origin", "tap_step", "in_origin",
        )
    )  # fmt: skip


class _GatherClass(ctypes.Structure):
    _fields_ = (("axis", _AxisClass), ("outputs", Divisor))


class _GatherAxis(ctypes.Structure):
    _fields_ = (
        ("in_extent", ctypes.c_int32),
        ("out_extent", ctypes.c_int32),
        ("in_step", ctypes.c_int32),
        ("tap_step", ctypes.c_int32),
        ("of", _GatherClass * MOST_CLASSES),
    )


class GatherPlan(ctypes.Structure):
    """``GatherPlan`` of ``implicit_gemm_plan.cuh``."""

    _fields_ = (
        ("gemm", CGemmProblem),
        ("rows", _GatherAxis),
        ("columns", _GatherAxis),
        ("column_classes", ctypes.c_int32),
        ("images", ctypes.c_int32),
        ("in_channels", ctypes.c_int32),
        ("group_channels", ctypes.c_int32),
        ("in_width", ctypes.c_int32),
        ("filter_rows", ctypes.c_int32),
        ("filter_columns", ctypes.c_int32),
    )


def _to_c(axis: Axis) -> _GatherAxis:
    def of(each: AxisClass) -> _GatherClass:
        numbers = (
            each.out_origin, each.out_step, each.out_count, each.taps, each.tap_origin, each.tap_step,
            each.in_origin,
        )  # fmt: skip
        return _GatherClass(_AxisClass(*numbers), divisor(max(1, each.out_count)))

    table = (_GatherClass * MOST_CLASSES)(*map(of, axis.classes))
    return _GatherAxis(axis.in_extent, axis.out_extent, axis.in_step, axis.tap_step, table)


@dataclass(frozen=True)
class Gather:
    """One launch of fprop or dgrad: the product of the largest class, and all its classes.

    Attributes:
        product: A is the gathered matrix; its lines stand for the pixels of ``in``, which is what alignment
            depends on.
    """

    problem: Conv2dProblem
    pass_: str
    product: Product
    rows: Axis
    columns: Axis

    @property
    def classes(self) -> int:
        return len(self.rows.classes) * len(self.columns.classes)

    def plan(self) -> GatherPlan:
        a = self.problem
        channels = a.c if self.pass_ == "fprop" else a.k
        return GatherPlan(
            self.product.to_c(), _to_c(self.rows), _to_c(self.columns), len(self.columns.classes), a.n,
            channels, channels // a.groups, self.product.copy_elements[0], a.r, a.s,
        )  # fmt: skip


def gathers(problem: Conv2dProblem, pass_: str) -> list[Gather]:
    """The launches of one pass: one, unless a stride has more residues than a launch takes."""
    a = problem
    if pass_ == "fprop":
        rows = fprop_axis(a.h, a.p, a.r, a.pad_top, a.stride_h, a.dilation_h)
        columns = fprop_axis(a.w, a.q, a.s, a.pad_left, a.stride_w, a.dilation_w)
    else:
        rows = dgrad_axis(a.p, a.h, a.r, a.pad_top, a.stride_h, a.dilation_h)
        columns = dgrad_axis(a.q, a.w, a.s, a.pad_left, a.stride_w, a.dilation_w)
    return [
        Gather(a, pass_, _product(a, pass_, rows_part, columns_part), rows_part, columns_part)
        for rows_part in _parts(rows)
        for columns_part in _parts(columns)
    ]


def _parts(axis: Axis) -> list[Axis]:
    starts = range(0, max(1, len(axis.classes)), MOST_CLASSES)
    return [
        Axis(
            axis.in_extent, axis.out_extent, axis.in_step, axis.tap_step, axis.classes[at : at + MOST_CLASSES]
        )
        for at in starts
    ]


def _product(a: Conv2dProblem, pass_: str, rows: Axis, columns: Axis) -> Product:
    """Of the largest class. In fprop w is read along k; in dgrad across it, line by line of one tap."""
    outputs = [max((each.out_count for each in axis.classes), default=0) for axis in (rows, columns)]
    taps = [max((each.taps for each in axis.classes), default=0) for axis in (rows, columns)]
    patch = a.r * a.s * a.group_c
    if pass_ == "fprop":
        pixels, out = ("x", a.c, a.group_c), ("y", a.k, a.group_k)
        w = Matrix("w", "kKMajor", line_stride=patch, batch_stride=a.group_k * patch)
    else:
        pixels, out = ("dy", a.k, a.group_k), ("dx", a.c, a.group_c)
        w = Matrix("w", "kMnMajor", line_stride=a.group_c, batch_stride=a.group_k * patch)
    return Product(
        a.dtype,
        a.dtype,
        gemm_m=a.n * outputs[0] * outputs[1],
        gemm_n=out[2],
        gemm_k=taps[0] * taps[1] * pixels[2],
        a=Matrix(pixels[0], "kKMajor", line_stride=pixels[1], batch_stride=pixels[2]),
        b=w,
        c=Matrix(out[0], "kMnMajor", line_stride=out[1], batch_stride=out[2]),
        batch=a.groups,
        bias_along="n",
        bias_stride=a.group_k,
    )


# ---- wgrad ------------------------------------------------------------------------------------------------


class _PatchAxis(ctypes.Structure):
    _fields_ = (
        ("in_extent", ctypes.c_int32),
        ("stride", ctypes.c_int32),
        ("pad", ctypes.c_int32),
        ("dilation", ctypes.c_int32),
        ("outputs", Divisor),
    )


class _Pixels(ctypes.Structure):
    _fields_ = (("image", ctypes.c_int32), ("row", ctypes.c_int32), ("column", ctypes.c_int32))


class PatchPlan(ctypes.Structure):
    """``PatchPlan`` of ``implicit_gemm_patches.cuh``."""

    _fields_ = (
        ("gemm", CGemmProblem),
        ("rows", _PatchAxis),
        ("columns", _PatchAxis),
        ("step", _Pixels),
        ("images", ctypes.c_int32),
        ("filter_columns", ctypes.c_int32),
        ("in_channels", ctypes.c_int32),
        ("group_channels", ctypes.c_int32),
        ("in_width", ctypes.c_int32),
    )


def wgrad_product(a: Conv2dProblem, dw: Argument, result: str, splits: int, split_k: int) -> Product:
    """``dw`` is the result itself, or the place of the partial sums, which lie in its order."""
    patch = a.r * a.s * a.group_c
    return Product(
        a.dtype,
        result,
        gemm_m=a.group_k,
        gemm_n=patch,
        gemm_k=a.n * a.p * a.q,
        a=Matrix("dy", "kMnMajor", line_stride=a.k, batch_stride=a.group_k),
        # Lines of B are patches of x: the alignment of their parts is that of the channels of a pixel.
        b=Matrix("x", "kMnMajor", line_stride=a.c, batch_stride=a.group_c),
        c=Matrix(dw, "kMnMajor", line_stride=patch, batch_stride=a.group_k * patch),
        batch=a.groups,
        splits=splits,
        split_k=split_k,
        split_stride=a.w_size,
    )


def patch_plan(a: Conv2dProblem, product: Product, tile: Tile) -> PatchPlan:
    p, q, width = max(1, a.p), max(1, a.q), product.copy_elements[1]
    rows = _PatchAxis(a.h, a.stride_h, a.pad_top, a.dilation_h, divisor(p))
    columns = _PatchAxis(a.w, a.stride_w, a.pad_left, a.dilation_w, divisor(q))
    lines = tile.threads // (tile.bn // width)  # that are copied at once
    step = _Pixels(lines // q // p, lines // q % p, lines % q)
    return PatchPlan(product.to_c(), rows, columns, step, a.n, max(1, a.s), a.c, max(1, a.group_c), width)
