"""fprop and dgrad as one gather (``gather.cuh``): what a launch file has to know of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyconv.backends.program import blocks
from pyconv.problem import Conv2dProblem


@dataclass(frozen=True)
class Axis:
    """One axis of the image: how outputs, taps and inputs lie to each other.

    Attributes:
        in_extent, out_extent: Of the tensors.
        taps: Most taps of a class.
        classes: Of outputs: 1, in dgrad the residues of the stride.
        period: Filter rows between the taps of a class.
        unit: Input rows between two places of a staged patch, which leaves out what no tap reads.
        in_step, tap_step: Places between neighbouring outputs, and between neighbouring taps.
    """

    in_extent: int
    out_extent: int
    taps: int
    classes: int = 1
    period: int = 1
    unit: int = 1
    in_step: int = 1
    tap_step: int = 1

    @property
    def outputs(self) -> int:
        """Of the largest class."""
        return blocks(self.out_extent, max(1, self.classes))

    def patch(self, tile: int) -> int:
        """Places that the taps of ``tile`` neighbouring outputs reach."""
        return (tile - 1) * self.in_step + (self.taps - 1) * self.tap_step + 1


def fprop_axis(inputs: int, outputs: int, taps: int, stride: int, dilation: int) -> Axis:
    unit = stride if taps == 1 else math.gcd(stride, dilation)
    return Axis(inputs, outputs, taps, unit=unit, in_step=stride // unit, tap_step=max(1, dilation // unit))


def dgrad_axis(inputs: int, outputs: int, taps: int, stride: int, dilation: int) -> Axis:
    common = math.gcd(stride, dilation)
    period = stride // common
    return Axis(
        inputs, outputs, blocks(taps, period), min(stride, outputs), period, tap_step=dilation // common
    )


@dataclass(frozen=True)
class Gather:
    """One pass of a problem: ``in`` is x or dy, ``out`` is y or dx. Channels are those of a group."""

    problem: Conv2dProblem
    pass_: str
    rows: Axis
    columns: Axis
    in_channels: int
    out_channels: int

    @property
    def taps(self) -> int:
        return self.rows.taps * self.columns.taps

    @property
    def sum_bytes(self) -> int:
        """Of the type that sums are kept in."""
        return 8 if self.problem.dtype == "f64" else 4

    @property
    def w_strides(self) -> tuple[int, int]:
        """Elements of w between neighbouring in channels, and between neighbouring out channels."""
        taps = self.problem.r * self.problem.s
        c_stride, k_stride = 1 if self.problem.layout == "nhwc" else taps, self.problem.group_c * taps
        return (c_stride, k_stride) if self.pass_ == "fprop" else (k_stride, c_stride)


def gather(problem: Conv2dProblem, pass_: str) -> Gather:
    a = problem
    if pass_ == "fprop":
        rows = fprop_axis(a.h, a.p, a.r, a.stride_h, a.dilation_h)
        columns = fprop_axis(a.w, a.q, a.s, a.stride_w, a.dilation_w)
        return Gather(a, pass_, rows, columns, a.group_c, a.group_k)
    rows = dgrad_axis(a.p, a.h, a.r, a.stride_h, a.dilation_h)
    columns = dgrad_axis(a.q, a.w, a.s, a.stride_w, a.dilation_w)
    return Gather(a, pass_, rows, columns, a.group_k, a.group_c)
