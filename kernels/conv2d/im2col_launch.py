"""``im2col.cu``: the matrix of a convolution for a chunk of images, its steps, and its form as an operand.

The matrix is made for as many images at a time as fit :data:`WORKSPACE`; the problem alone decides the
chunks. A 1x1 convolution of stride 1 without padding has ``col = x``: the product then reads x, or writes dx,
in place.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from pyconv.kernels.conv2d.restrictions import indices_fit_int32
from pyconv.kernels.gemm.gemm_launch import Matrix

from pyconv.backends.program import Argument, Scratch, Step, Work, blocks, cpp_layout, cpp_type
from pyconv.problem import DTYPES, Conv2dProblem, Problem

SOURCE = "conv2d/im2col.cu"

#: Bytes of the matrix of one chunk of images, unless a single image takes more. It only has to be large
#: enough that the product of a chunk fills the device: 256 MiB are 512 tiles 128 wide, with a gemm_k of 1024
#: floats.
WORKSPACE = 256 * 2**20

#: Elements that may be counted in an ``int``: tiles reach a little beyond the last of them.
MOST_ELEMENTS = 2**31 - 2**16

#: Threads of a block (``kColumnThreads``).
THREADS = 256


class CColumnChunk(ctypes.Structure):
    """``ColumnChunk`` of ``im2col.cu``."""

    _fields_ = [
        ("first_image", ctypes.c_int64),
        ("images", ctypes.c_int32),
        ("pitch", ctypes.c_int32),
        ("p", ctypes.c_int32),
        ("q", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class Chunk:
    """Some images of a problem, and the matrices that their product is made of.

    Attributes:
        first, images: Which.
        dtype: Of col: that of the problem, or of dcol that of its sums.
    """

    problem: Conv2dProblem
    first: int
    images: int
    dtype: str

    @property
    def pixels(self) -> int:
        return self.images * self.problem.p * self.problem.q

    @property
    def patch(self) -> int:
        """Elements of one pixel and one group: crs."""
        return self.problem.group_c * self.problem.r * self.problem.s

    @property
    def _lines(self) -> tuple[int, int]:
        """Lines of the matrix of a group, and elements of a line."""
        lines = self.patch, self.pixels
        return lines if self.problem.layout == "nchw" else lines[::-1]

    @property
    def pitch(self) -> int:
        """Elements from line to line: whole 16 bytes, so that lines can be copied as vectors."""
        vector = 16 // self.problem.element_bytes
        return blocks(self._lines[1], vector) * vector

    @property
    def column_elements(self) -> int:
        return 0 if is_pointwise(self.problem) else self.problem.groups * self._lines[0] * self.pitch

    @property
    def column_bytes(self) -> int:
        return self.column_elements * DTYPES[self.dtype].itemsize

    # ---- The operands of the product

    def images_of(self, at: Argument, channels: int, major: str) -> Matrix:
        """x, dx, y or dy in place, where its planes have p*q pixels: channels by pixels."""
        plane, group_channels = self.problem.p * self.problem.q, channels // self.problem.groups
        offset = self.first * channels * plane
        if self.problem.layout == "nhwc":
            return Matrix(at, major, line_stride=channels, batch_stride=group_channels, offset=offset)
        return Matrix(
            at,
            major,
            line_stride=plane,
            batch_stride=group_channels * plane,
            offset=offset,
            segment=plane,
            segment_stride=channels * plane,
        )

    def columns(self, in_place: str, major: str) -> Matrix:
        """col, at the start of the workspace; for a pointwise problem the tensor itself."""
        if is_pointwise(self.problem):
            return self.images_of(in_place, self.problem.c, major)
        return Matrix(Scratch(0), major, line_stride=self.pitch, batch_stride=self._lines[0] * self.pitch)

    def filters(self, at: Argument, major: str) -> Matrix:
        """w or dw: filters by patches."""
        return Matrix(at, major, line_stride=self.patch, batch_stride=self.problem.group_k * self.patch)

    # ---- Steps

    def im2col(self) -> tuple[Step, ...]:
        """From x to col, over the pixels of y."""
        return self._step("im2col", self.problem.p * self.problem.q, "x", Scratch(0))

    def col2im(self) -> tuple[Step, ...]:
        """From dcol to dx, over the pixels of x."""
        return self._step("col2im", self.problem.h * self.problem.w, Scratch(0), "dx")

    def _step(self, name: str, plane: int, *arguments: Argument) -> tuple[Step, ...]:
        problem = self.problem
        if is_pointwise(problem):
            return ()
        vector = 16 // problem.element_bytes
        if problem.layout == "nchw" or problem.group_c % vector:
            vector = 1
        chunk = CColumnChunk(self.first, self.images, self.pitch, problem.p, problem.q)
        step = Step(
            SOURCE,
            f"{name}<{cpp_type(problem)}, {cpp_layout(problem)}, {vector}>",
            (blocks(self.images * plane * problem.c // vector, THREADS), 1, 1),
            (THREADS, 1, 1),
            (problem, chunk, *arguments),
            sass=("LDG.E.128", "STG.E.128") if vector > 1 else (),
            work=Work(
                tensor_bytes=self.images * problem.c * problem.h * problem.w * problem.element_bytes,
                scratch_bytes=self.column_bytes,
                resident=4,
            ),
        )
        return (step,)


def is_pointwise(problem: Conv2dProblem) -> bool:
    """Whether col is x: 1x1, stride 1, no padding."""
    ones = (problem.r, problem.s, problem.stride_h, problem.stride_w)
    return ones == (1, 1, 1, 1) and problem.padding == (0, 0, 0, 0)


def chunks(problem: Conv2dProblem, dtype: str) -> list[Chunk]:
    """The images in chunks, at least one. Indices within a chunk fit an int, and col the workspace."""
    image = Chunk(problem, 0, 1, dtype)
    most = MOST_ELEMENTS // max(1, _largest(image))
    if image.column_bytes:
        most = min(most, WORKSPACE // image.column_bytes)
    most = max(1, most)
    starts = range(0, max(problem.n, 1), most)
    return [Chunk(problem, first, min(most, problem.n - first), dtype) for first in starts]


def _largest(image: Chunk) -> int:
    """Elements of the largest part of x, y and col that an image has."""
    problem = image.problem
    x, y = problem.c * problem.h * problem.w, problem.k * problem.p * problem.q
    return max(x, y, image.column_elements)


def image_fits_int32(problem: Problem) -> str | None:
    """For kernels whose indices within an image, its im2col matrix and the filters are an ``int``."""
    assert isinstance(problem, Conv2dProblem)
    elements = max(_largest(Chunk(problem, 0, 1, problem.dtype)), problem.w_size)
    if elements > MOST_ELEMENTS:
        return f"one image, its im2col matrix or the filters have {elements} elements (takes fewer than 2^31)"
    return indices_fit_int32(problem)
