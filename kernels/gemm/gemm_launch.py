"""Products of matrices as steps of a program, on any rung of the ladder.

A :class:`Product` says what is multiplied and where it lies (``operands.h`` has the convention); a
:class:`Rung` is one kernel of the ladder and turns a product into a :class:`~pyconv.backends.program.Step`.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass

from pyconv.backends.program import CPP_TYPES, Argument, Scratch, Step, Work, blocks
from pyconv.problem import DTYPES

#: Sizes of a product and its blocks are counted in C ints.
MOST = 2**31 - 1


@dataclass(frozen=True)
class Matrix:
    """One matrix of a product: lines of consecutive elements. Strides are in elements.

    Attributes:
        at: Its pointer: an operand or result of the pass, or a place in the workspace.
        major: ``kKMajor``: its lines run along k; ``kMnMajor``: along m or n. C is always ``kMnMajor``.
        offset: From the pointer to the first element.
        line_stride: The leading dimension.
        batch_stride: From the matrix of one product of the batch to that of the next.
        segment, segment_stride: If a line comes in pieces: their elements, and from piece to piece.
    """

    at: Argument
    major: str
    line_stride: int
    batch_stride: int = 0
    offset: int = 0
    segment: int | None = None
    segment_stride: int = 0

    def copy_elements(self, extent: int, element_bytes: int) -> int:
        """Elements that one aligned access may take, 16 bytes at most; ``extent`` is the places of a line.

        An access starts at a multiple of itself within a line. It may reach past the end of a line, which
        a kernel must mask, but never past that of a segment.
        """
        most = 16 // element_bytes
        places = [self.offset, self.batch_stride, self.line_stride]
        if self.segment is not None and self.segment < extent:
            places += [self.segment, self.segment_stride]
        return math.gcd(most, *places)


@dataclass(frozen=True)
class Product:
    """``C[m, n] = sum over k of A[m, k] * B[k, n] (+ bias)``, for ``batch`` products, cut into ``splits``.

    Attributes:
        dtype: Of A, B and the bias.
        result: The dtype of C: that of the operands, or of the sums (``f32``, for ``f64`` ``f64``).
        split_k: Terms of one split; a multiple of :attr:`Rung.tile`'s BK unless there is one split.
        split_stride: Elements of C from split to split.
        bias: The operand that is added, null in a pass that has none; ``None`` for no bias in any pass.
        bias_along: ``m`` or ``n``.
        accumulate: C += instead of C =.
    """

    dtype: str
    result: str
    gemm_m: int
    gemm_n: int
    gemm_k: int
    a: Matrix
    b: Matrix
    c: Matrix
    batch: int = 1
    splits: int = 1
    split_k: int = MOST
    split_stride: int = 0
    bias: str | None = "bias"
    bias_along: str = "m"
    bias_stride: int = 0
    accumulate: bool = False

    @property
    def extents(self) -> tuple[int, int, int]:
        """Places in a line of A, B and C."""
        return (
            self.gemm_k if self.a.major == "kKMajor" else self.gemm_m,
            self.gemm_k if self.b.major == "kKMajor" else self.gemm_n,
            self.gemm_n,
        )

    @property
    def copy_elements(self) -> tuple[int, int, int]:
        """Elements of A, B and C that one aligned access may take."""
        a, b, c = self.extents
        bytes_in = DTYPES[self.dtype].itemsize
        return (
            self.a.copy_elements(a, bytes_in),
            self.b.copy_elements(b, bytes_in),
            self.c.copy_elements(c, DTYPES[self.result].itemsize),
        )

    def blocks(self, tile: Tile) -> int:
        """Blocks of a grid with that tile."""
        tiles = blocks(self.gemm_m, tile.bm) * blocks(self.gemm_n, tile.bn)
        return tiles * self.batch * self.splits

    def to_c(self) -> CGemmProblem:
        """``GemmProblem`` of ``operands.h``."""

        def layout(matrix: Matrix, extent: int) -> CMatrixLayout:
            in_pieces = matrix.segment is not None and matrix.segment < extent
            segment = max(1, matrix.segment or 1) if in_pieces else MOST
            return CMatrixLayout(
                matrix.offset, matrix.batch_stride, matrix.line_stride, matrix.segment_stride, segment, extent
            )  # fmt: skip

        a, b, c = (
            layout(matrix, extent)
            for matrix, extent in zip((self.a, self.b, self.c), self.extents, strict=True)
        )
        return CGemmProblem(
            a, b, c, self.split_stride, self.bias_stride, self.gemm_m, self.gemm_n, self.gemm_k, self.batch,
            self.splits, self.split_k, ("m", "n").index(self.bias_along), int(self.accumulate),
        )  # fmt: skip


class CMatrixLayout(ctypes.Structure):
    """``MatrixLayout`` of ``operands.h``."""

    _fields_ = [
        ("offset", ctypes.c_int64),
        ("batch_stride", ctypes.c_int64),
        ("line_stride", ctypes.c_int64),
        ("segment_stride", ctypes.c_int64),
        ("segment", ctypes.c_int32),
        ("extent", ctypes.c_int32),
    ]


class CGemmProblem(ctypes.Structure):
    """``GemmProblem`` of ``operands.h``."""

    _fields_ = [
        ("a", CMatrixLayout),
        ("b", CMatrixLayout),
        ("c", CMatrixLayout),
        ("split_stride", ctypes.c_int64),
        ("bias_stride", ctypes.c_int64),
        ("gemm_m", ctypes.c_int32),
        ("gemm_n", ctypes.c_int32),
        ("gemm_k", ctypes.c_int32),
        ("batch", ctypes.c_int32),
        ("splits", ctypes.c_int32),
        ("split_k", ctypes.c_int32),
        ("bias_along", ctypes.c_int32),
        ("accumulate", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class Tile:
    """The tile of a block and its threads, as a rung instantiates its kernel."""

    bm: int
    bn: int
    bk: int
    threads: int
    shared_bytes: int = 0  # dynamic


@dataclass(frozen=True)
class Rung:
    """One kernel of the ladder.

    Attributes:
        name: ``tiled``, ``register``, ``pipelined``, ...
        source: Under ``kernels/``.
        dtypes: Of the operands.
        tile: Its tile by dtype, the largest if it has several.
        kernel: The instantiation for a product.
        choose: The tile of a product, if it has several. They all add in the same order.
        sass: Machine instructions that an instantiation must show.
        unit: As in :class:`~pyconv.backends.program.Work`.
        share: Of the unit's peak that a product reaches with a tile (README.md has the reasons).
        resident: Blocks with a tile that a multiprocessor holds.
        concurrent: As in ``Work``: 1 if the copies of the next tiles run while one is multiplied.
    """

    name: str
    source: str
    dtypes: tuple[str, ...]
    tile: Callable[[str], Tile]
    kernel: Callable[[Product], str]
    sass: Callable[[Product], tuple[str, ...]] = lambda product: ()
    choose: Callable[[Product], Tile] | None = None
    unit: Callable[[str], str] = lambda dtype: "f64" if dtype == "f64" else "f32"
    share: Callable[[Product, Tile], float] = lambda product, tile: 1
    resident: Callable[[Product, Tile], int] = lambda product, tile: 2
    concurrent: float = 1

    def step(self, product: Product) -> Step:
        tile = self.choose(product) if self.choose else self.tile(product.dtype)
        bias = ctypes.c_int64(0) if product.bias is None else product.bias
        return Step(
            self.source,
            self.kernel(product),
            (product.blocks(tile), 1, 1),
            (tile.threads, 1, 1),
            (product.to_c(), product.a.at, product.b.at, bias, product.c.at),
            tile.shared_bytes,
            self.sass(product),
            self._work(product, tile),
        )

    def _work(self, product: Product, tile: Tile) -> Work:
        m, n, k = product.gemm_m, product.gemm_n, product.gemm_k
        size, result_size = DTYPES[product.dtype].itemsize, DTYPES[product.result].itemsize
        ends = product.blocks(tile)
        terms = blocks(min(k, product.split_k), tile.bk) * tile.bk  # of a block
        written = product.splits * (1 + product.accumulate)
        moved = (
            (product.a.at, m * k * size),
            (product.b.at, k * n * size),
            (product.c.at, m * n * written * result_size),
        )
        scratch = sum(bytes_ for at, bytes_ in moved if isinstance(at, Scratch))
        return Work(
            flops=2 * ends * tile.bm * tile.bn * terms,
            unit=self.unit(product.dtype),
            share=self.share(product, tile),
            tensor_bytes=product.batch * (sum(bytes_ for _, bytes_ in moved) - scratch),
            scratch_bytes=product.batch * scratch,
            cache_bytes=ends * (tile.bm + tile.bn) * terms * size,
            resident=self.resident(product, tile),
            concurrent=self.concurrent,
        )


def instantiation(name: str, product: Product, *more: object) -> str:
    """``name<T, C, A_MAJOR, B_MAJOR, more...>``: the template arguments that every rung begins with."""
    arguments = (CPP_TYPES[product.dtype], CPP_TYPES[product.result], product.a.major, product.b.major, *more)
    return f"{name}<{', '.join(str(argument) for argument in arguments)}>"
