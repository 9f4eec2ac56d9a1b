"""Convolution as im2col and a matrix product in Numba: programs and table lines.

With the matrices of ``im2col_numba.py``, for every image and group:

    fprop   y  (k, pq)    = w (k, crs) * col (crs, pq)
    dgrad   dx            = col2im(dcol),   dcol (crs, pq) = w^T (crs, k) * dy (k, pq)
    wgrad   dw (k, crs)   = sum over images of dy (k, pq) * col^T (pq, crs)

The matrices are views: in nhwc those of y and col have their lines along k and crs, and the product is that
of the transposed ones. Only the problem decides the order of a sum.
"""

from __future__ import annotations

from dataclasses import replace

from pyconv.kernels.conv2d.im2col_gemm_launch import BLOCKS, LONG
from pyconv.kernels.conv2d.im2col_launch import Chunk, chunks, image_fits_int32, is_pointwise

from pyconv.backends.numba_program import SUM_DTYPES, SUMS, dense, scratch, tensor
from pyconv.backends.program import Program, Scratch, Step, View, blocks
from pyconv.problem import DTYPES, Conv2dProblem, Problem
from pyconv.registry import Kernel

#: 16 x 16 elements of a block (``gemm_tiled_numba.py`` says why).
TILE = 16
#: Threads of a block of ``im2col_numba.py`` and ``sum_splits_numba.py``.
THREADS = 256
#: Everything in the workspace starts at a multiple of this.
_ALIGNMENT = 256

# ---- Matrices of a chunk of images: [image, group, row, column]


def _images(name: str, chunk: Chunk) -> View:
    """x, dx, y or dy of the chunk's images."""
    whole = tensor(name, chunk.problem)
    return replace(whole, shape=(chunk.images, *whole.shape[1:]), offset=chunk.first * whole.strides[0])


def _planes(name: str, chunk: Chunk) -> View:
    """The same as matrices of channels and pixels."""
    view, groups = _images(name, chunk), chunk.problem.groups
    n_stride, c_stride, _, pixel_stride = view.strides
    channels = view.shape[1] // groups
    return replace(
        view,
        shape=(chunk.images, groups, channels, view.shape[2] * view.shape[3]),
        strides=(n_stride, channels * c_stride, c_stride, pixel_stride),
    )


def _filters(name: str, problem: Conv2dProblem, images: int) -> View:
    """w or dw as matrices of filters and patches, the same for all images."""
    crs = problem.group_c * problem.r * problem.s
    shape = (images, problem.groups, problem.group_k, crs)
    return View(name, problem.dtype, shape, (0, problem.group_k * crs, crs, 1))


def _taps(chunk: Chunk, dtype: str) -> View:
    """col, at the start of the workspace: [image, group, c, r, s, p, q]."""
    a = chunk.problem
    shape = (chunk.images, a.groups, a.group_c, a.r, a.s, a.p, a.q)
    order = (0, 1, 5, 6, 3, 4, 2) if a.layout == "nhwc" else range(7)
    return View(Scratch(0), dtype, shape, dense(shape, tuple(order)))


def _columns(chunk: Chunk, dtype: str, in_place: str) -> View:
    """The same as matrices of patches and pixels; for a pointwise problem the tensor itself."""
    a = chunk.problem
    if is_pointwise(a):
        return _planes(in_place, chunk)
    crs, pq = a.group_c * a.r * a.s, a.p * a.q
    strides = (1, crs) if a.layout == "nhwc" else (pq, 1)
    return View(
        Scratch(0), dtype, (chunk.images, a.groups, crs, pq), (a.groups * crs * pq, crs * pq, *strides)
    )


def _transposed(matrix: View) -> View:
    shape, strides = matrix.shape, matrix.strides
    return replace(
        matrix, shape=(*shape[:2], shape[3], shape[2]), strides=(*strides[:2], strides[3], strides[2])
    )


# ---- Steps


def _product(problem: Conv2dProblem, a: View, b: View, c: View, images: int = 1, bias: bool = False) -> Step:
    """``C[split, group] = A * B``, each split over ``images`` images."""
    bias_shape, bias_strides = (c.shape[1:], (problem.group_k, 1, 0)) if bias else ((0, 0, 0), (0, 0, 0))
    if c.strides[3] != 1 and c.strides[2] == 1:  # its lines run along m: lanes must, too
        a, b, c = _transposed(b), _transposed(a), _transposed(c)
        if bias:
            bias_shape, bias_strides = c.shape[1:], (problem.group_k, 0, 1)
    splits, groups, gemm_m, gemm_n = c.shape
    return Step(
        "gemm/gemm_tiled_numba.py",
        kernel=f"gemm_tiled({SUMS[problem.dtype]}, {TILE})",
        grid=(blocks(gemm_m, TILE) * blocks(gemm_n, TILE) * groups * splits, 1, 1),
        block=(TILE * TILE, 1, 1),
        arguments=(
            images,
            int(a.strides[3] == 1),
            int(b.strides[2] == 1),
            a,
            b,
            View("bias", problem.dtype, bias_shape, bias_strides),
            c,
        ),
        sass=("LDS", "DFMA" if problem.dtype == "f64" else "FFMA"),
    )


def _step(name: str, chunk: Chunk, plane: int, kind: str, *arguments: View) -> tuple[Step, ...]:
    problem = chunk.problem
    if is_pointwise(problem):
        return ()
    step = Step(
        "conv2d/im2col_numba.py",
        kernel=f"{name}({kind})",
        grid=(blocks(chunk.images * problem.c * plane, THREADS), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(problem, int(problem.layout == "nhwc"), *arguments),
    )
    return (step,)


def _im2col(chunk: Chunk) -> tuple[Step, ...]:
    a, dtype = chunk.problem, chunk.problem.dtype
    return _step("im2col", chunk, a.p * a.q, SUMS[dtype], _images("x", chunk), _taps(chunk, dtype))


def _workspace(parts: list[Chunk], dtype: str) -> int:
    """Bytes of col; the first chunk has the most images."""
    a = parts[0].problem
    if is_pointwise(a):
        return 0
    elements = parts[0].images * a.c * a.r * a.s * a.p * a.q
    return blocks(elements * DTYPES[dtype].itemsize, _ALIGNMENT) * _ALIGNMENT


# ---- Programs


def fprop(problem: Problem) -> Program:
    assert isinstance(problem, Conv2dProblem)
    parts = chunks(problem, problem.dtype)
    steps: list[Step] = []
    for chunk in parts:
        w, col = _filters("w", problem, chunk.images), _columns(chunk, problem.dtype, "x")
        steps += [*_im2col(chunk), _product(problem, w, col, _planes("y", chunk), bias=True)]
    return Program(tuple(steps), _workspace(parts, problem.dtype))


def dgrad(problem: Problem) -> Program:
    assert isinstance(problem, Conv2dProblem)
    sum_dtype = SUM_DTYPES[problem.dtype]
    parts = chunks(problem, sum_dtype)
    steps: list[Step] = []
    for chunk in parts:
        w, dcol = _filters("w", problem, chunk.images), _columns(chunk, sum_dtype, "dx")
        steps.append(_product(problem, _transposed(w), _planes("dy", chunk), dcol))
        steps += _step(
            "col2im",
            chunk,
            problem.h * problem.w,
            SUMS[problem.dtype],
            _taps(chunk, sum_dtype),
            _images("dx", chunk),
        )
    return Program(tuple(steps), _workspace(parts, sum_dtype))


def wgrad(problem: Problem) -> Program:
    """A copy of dw for each split of the images, and their sum; dw itself if there is one."""
    assert isinstance(problem, Conv2dProblem)
    sum_dtype = SUM_DTYPES[problem.dtype]
    parts = chunks(problem, problem.dtype)
    of_split = _images_of_split(parts[0])
    splits = [max(1, blocks(chunk.images, of_split)) for chunk in parts]
    begin = _workspace(parts, problem.dtype)
    partial_sums = scratch(begin, sum_dtype, sum(splits), problem.w_size)
    dw = _filters("dw", problem, 1)

    steps: list[Step] = []
    for part, chunk in enumerate(parts):
        if sum(splits) > 1:
            c = replace(
                dw,
                of=partial_sums.of,
                dtype=sum_dtype,
                shape=(splits[part], *dw.shape[1:]),
                strides=(problem.w_size, *dw.strides[1:]),
                offset=sum(splits[:part]) * problem.w_size,
            )
        else:
            c = dw
        col = _columns(chunk, problem.dtype, "x")
        steps += [
            *_im2col(chunk),
            _product(problem, _planes("dy", chunk), _transposed(col), c, images=of_split),
        ]
    if sum(splits) > 1:
        flat = View("dw", problem.dtype, (problem.w_size,), (1,))
        step = Step(
            "gemm/sum_splits_numba.py",
            kernel=f"sum_splits({SUMS[problem.dtype]})",
            grid=(blocks(problem.w_size, THREADS), 1, 1),
            block=(THREADS, 1, 1),
            arguments=(partial_sums, flat),
        )
        steps.append(step)
        begin += sum(splits) * problem.w_size * DTYPES[sum_dtype].itemsize
    return Program(tuple(steps), begin)


def _images_of_split(chunk: Chunk) -> int:
    """As many images as leave the blocks that a device has room for."""
    a = chunk.problem
    tiles = blocks(a.group_k, TILE) * blocks(a.group_c * a.r * a.s, TILE) * a.groups
    return max(1, blocks(chunk.images, max(1, BLOCKS // max(1, tiles))))


KERNELS = [
    Kernel(
        "conv2d",
        pass_,
        "im2col_gemm_tiled",
        "numba",
        ("f32", "f64", "f16"),
        source="gemm/gemm_tiled_numba.py",
        restriction=image_fits_int32,
        program=program,
        batch_invariant=pass_ != "wgrad",
        nonfinite="local" if pass_ == "dgrad" else "padding",
        problems=LONG,
        proved=("emulator",),
    )
    for pass_, program in (("fprop", fprop), ("dgrad", dgrad), ("wgrad", wgrad))
]
