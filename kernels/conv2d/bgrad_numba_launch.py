"""Launches and table line of ``bgrad_numba.py``: chunks of n, p, q, then the sum of their partial sums."""

from __future__ import annotations

from pyconv.kernels.conv2d.restrictions import indices_fit_int32, planes_fit_int32

from pyconv.backends.numba_program import SUM_DTYPES, SUMS, scratch, tensor
from pyconv.backends.program import Program, Step, View, blocks
from pyconv.problem import DTYPES, Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/bgrad_numba.py"

#: Threads of a block and elements of a thread in a chunk: as in ``bgrad_launch.py``.
THREADS = 256
PER_THREAD = 64


def bgrad(problem: Problem) -> Program:
    assert isinstance(problem, Conv2dProblem)
    # In nhwc as many lanes along k as it has filters, a power of two; the others take further rows.
    lanes = min(32, 1 << (problem.k - 1).bit_length()) if problem.layout == "nhwc" else 1
    chunk_rows = THREADS // lanes * PER_THREAD
    chunks = blocks(problem.n * problem.p * problem.q, chunk_rows)
    sums, sum_dtype = SUMS[problem.dtype], SUM_DTYPES[problem.dtype]
    dy = tensor("dy", problem)
    n_stride, k_stride, _, pixel_stride = dy.strides
    pixels = View(
        "dy", problem.dtype, (problem.n, problem.k, problem.p * problem.q), (n_stride, k_stride, pixel_stride)
    )
    partial = scratch(0, sum_dtype, problem.k, chunks)
    step = Step(
        SOURCE,
        kernel=f"bgrad_partial({sums}, {THREADS})",
        grid=(blocks(problem.k, lanes) * chunks, 1, 1),
        block=(THREADS, 1, 1),
        arguments=(problem, chunks, chunk_rows, lanes, pixels, partial),
    )
    total = Step(
        SOURCE,
        kernel=f"bgrad_total({sums}, {THREADS})",
        grid=(blocks(problem.k, THREADS // 32), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(problem, chunks, partial, tensor("db", problem)),
    )
    return Program((step, total), workspace_bytes=problem.k * chunks * DTYPES[sum_dtype].itemsize)


def _restriction(problem: Problem) -> str | None:
    return indices_fit_int32(problem) or planes_fit_int32(problem)


KERNELS = [
    Kernel(
        "conv2d",
        "bgrad",
        "direct",
        "numba",
        ("f32", "f64", "f16"),
        source=SOURCE,
        restriction=_restriction,
        program=bgrad,
        proved=("emulator",),
        # Several chunks, chunks that end within a plane, more filters than lanes.
        problems=(
            "conv2d n2c1h100w131 k1r1s1 st1 pd0",
            "conv2d n3c1h40w50 k34r1s1 st1 pd0",
            "conv2d n1c1h9w33 k136r1s1 st1 pd0",
        ),
    )
]
