"""Convolution as im2col and a matrix product: programs and table lines, for any rung of the GEMM ladder.

With the matrices of ``im2col.cu``, in nchw and (with rows and columns exchanged) in nhwc, per group:

    fprop   y  (k, npq)   = w (k, crs) * col (crs, npq)
    dgrad   dx            = col2im(dcol),   dcol (crs, npq) = w^T (crs, k) * dy (k, npq)
    wgrad   dw (k, crs)   = dy (k, npq) * col^T (npq, crs)

Only the problem decides the order of a sum. In fprop and dgrad every element is the sum of one product over
all of gemm_k, so a sample's bits do not depend on its batch either.

dcol holds sums as they are, not yet rounded to a 16-bit element type: col2im adds them up and rounds once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

from pyconv.kernels.conv2d.im2col_launch import Chunk, chunks, image_fits_int32, is_pointwise
from pyconv.kernels.gemm.gemm_launch import Product, Rung
from pyconv.kernels.gemm.simt_launch import PIPELINED_RUNG, REGISTER_RUNG, TILED_RUNG
from pyconv.kernels.gemm.tensor_launch import TENSOR_RUNG, TF32_ACCURACY, TF32_RUNG

from pyconv.backends.program import Program, Scratch, Step, Work, blocks, cpp_type
from pyconv.problem import DTYPES, Conv2dProblem, Problem
from pyconv.registry import Kernel

#: Blocks that wgrad's gemm_k is split for, if the tiles of dw are fewer: two for each of the 132
#: multiprocessors of an H100. A constant, so that the order of the sums is the same on every device.
BLOCKS = 264
#: Terms that a split has at least: below, storing and adding partial sums would cost more than it gains.
LEAST_SPLIT = 512
#: A split is a multiple of this, which is a multiple of every rung's BK.
SPLIT_GRAIN = 64
#: Threads of a block that sums the splits.
SUM_THREADS = 256

#: Everything in the workspace starts at a multiple of this.
_ALIGNMENT = 256


def _sums(problem: Problem) -> str:
    """What sums are kept in."""
    return "f64" if problem.dtype == "f64" else "f32"


def _columns_bytes(parts: list[Chunk]) -> int:
    """Bytes of the matrix, the first thing in the workspace; the first chunk has the most images."""
    return max(_ALIGNMENT, blocks(parts[0].column_bytes, _ALIGNMENT) * _ALIGNMENT)


def fprop(problem: Problem, rung: Rung) -> Program:
    assert isinstance(problem, Conv2dProblem)
    parts = chunks(problem, problem.dtype)
    steps: list[Step] = []
    for chunk in parts:
        y = chunk.images_of("y", problem.k, "kMnMajor")
        w = chunk.filters("w", "kKMajor")
        if problem.layout == "nchw":
            sizes, a, b, along = (problem.group_k, chunk.pixels), w, chunk.columns("x", "kMnMajor"), "m"
        else:
            sizes, a, b, along = (chunk.pixels, problem.group_k), chunk.columns("x", "kKMajor"), w, "n"
        product = Product(
            problem.dtype,
            problem.dtype,
            *sizes,
            chunk.patch,
            a,
            b,
            y,
            batch=problem.groups,
            bias_along=along,
            bias_stride=problem.group_k,
        )
        steps += [*chunk.im2col(), rung.step(product)]
    return Program(tuple(steps), _columns_bytes(parts))


def dgrad(problem: Problem, rung: Rung) -> Program:
    assert isinstance(problem, Conv2dProblem)
    parts = chunks(problem, _sums(problem))
    result = problem.dtype if is_pointwise(problem) else _sums(problem)
    steps: list[Step] = []
    for chunk in parts:
        dcol = chunk.columns("dx", "kMnMajor")
        w = chunk.filters("w", "kMnMajor")
        if problem.layout == "nchw":
            sizes, a, b = (chunk.patch, chunk.pixels), w, chunk.images_of("dy", problem.k, "kMnMajor")
        else:
            sizes, a, b = (chunk.pixels, chunk.patch), chunk.images_of("dy", problem.k, "kKMajor"), w
        product = Product(problem.dtype, result, *sizes, problem.group_k, a, b, dcol, batch=problem.groups)
        steps += [rung.step(product), *chunk.col2im()]
    return Program(tuple(steps), _columns_bytes(parts))


def wgrad(problem: Problem, rung: Rung) -> Program:
    """The first chunk's product, to which the others add; if there are splits, then the sum of these."""
    assert isinstance(problem, Conv2dProblem)
    parts = chunks(problem, problem.dtype)
    splits, split_k = _splits(parts[0], rung)
    sums = _sums(problem)
    is_partial = splits > 1 or (len(parts) > 1 and sums != problem.dtype)
    partial_sums = Scratch(_columns_bytes(parts))

    steps: list[Step] = []
    for chunk in parts:
        major = "kKMajor" if problem.layout == "nchw" else "kMnMajor"
        product = Product(
            problem.dtype,
            sums if is_partial else problem.dtype,
            problem.group_k,
            chunk.patch,
            chunk.pixels,
            a=chunk.images_of("dy", problem.k, major),
            b=chunk.columns("x", major),
            c=chunk.filters(partial_sums if is_partial else "dw", "kMnMajor"),
            batch=problem.groups,
            splits=max(1, blocks(chunk.pixels, split_k)),
            split_k=split_k,
            split_stride=problem.w_size,
            accumulate=chunk.first > 0,
        )
        steps += [*chunk.im2col(), rung.step(product)]
    if is_partial:
        steps.append(sum_splits(problem, partial_sums, splits))
    partial_bytes = splits * problem.w_size * DTYPES[sums].itemsize if is_partial else 0
    return Program(tuple(steps), partial_sums.offset + partial_bytes)


def _splits(chunk: Chunk, rung: Rung) -> tuple[int, int]:
    problem, tile = chunk.problem, rung.tile(chunk.problem.dtype)
    tiles = blocks(problem.group_k, tile.bm) * blocks(chunk.patch, tile.bn) * problem.groups
    return splits_of(chunk.pixels, tiles)


def splits_of(pixels: int, tiles: int) -> tuple[int, int]:
    """How many splits a sum over pixels has where dw is that many tiles, and the pixels of each."""
    wanted = max(1, min(BLOCKS // max(tiles, 1), pixels // LEAST_SPLIT))
    split_k = max(1, blocks(blocks(pixels, wanted), SPLIT_GRAIN)) * SPLIT_GRAIN
    return max(1, blocks(pixels, split_k)), split_k


def sum_splits(problem: Conv2dProblem, partial_sums: Scratch, splits: int) -> Step:
    """Adds the splits' sums, which lie in the order of dw."""
    return Step(
        "gemm/sum_splits.cu",
        f"sum_splits<{cpp_type(problem)}, {SUM_THREADS}>",
        (blocks(problem.w_size, SUM_THREADS), 1, 1),
        (SUM_THREADS, 1, 1),
        (partial_sums, "dw", ctypes.c_int64(problem.w_size), ctypes.c_int32(splits)),
        work=Work(
            tensor_bytes=problem.w_size * problem.element_bytes,
            scratch_bytes=splits * problem.w_size * DTYPES[_sums(problem)].itemsize,
        ),
    )


# ---- Table lines -----------------------------------------------------------------------------------------

PASSES: dict[str, Callable[[Problem, Rung], Program]] = {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}

#: A gemm_k of several chains of additions, and in wgrad of several splits; two images whose planes are no
#: whole vectors.
LONG = (
    "conv2d n1c1100h3w4 k5r1s1 st1 pd0",
    "conv2d n1c5h3w4 k1100r1s1 st1 pd0",
    "conv2d n2c3h31w37 k5r1s1 st1 pd0",
    "conv2d n2c5h29w23 k7r3s3 st1 pd1",
)


def lines(rung: Rung, **claims: object) -> list[Kernel]:
    """The three passes on one rung. Padding is multiplied, except in dgrad, where col2im leaves it out."""
    return [
        Kernel(
            "conv2d",
            pass_,
            f"im2col_gemm_{rung.name}",
            "cuda",
            rung.dtypes,
            source=rung.source,
            restriction=image_fits_int32,
            batch_invariant=pass_ != "wgrad",
            nonfinite="local" if pass_ == "dgrad" else "padding",
            program=partial(program, rung=rung),
            problems=LONG,
            proved=("emulator",),
            **claims,  # type: ignore[arg-type]
        )
        for pass_, program in PASSES.items()
    ]


KERNELS = [
    *lines(TILED_RUNG),
    *lines(REGISTER_RUNG),
    *lines(PIPELINED_RUNG),
    *lines(TENSOR_RUNG),
    *lines(TF32_RUNG, accuracy=TF32_ACCURACY),
]
