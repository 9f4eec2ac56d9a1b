"""Launches and table line of ``bgrad.cu``: chunks of n, p, q, then the sum of their partial sums."""

from __future__ import annotations

from ctypes import c_int32

from pyconv.kernels.conv2d.restrictions import indices_fit_int32, planes_fit_int32

from pyconv.backends.program import Program, Scratch, Step, blocks, cpp_type
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/bgrad.cu"

#: Threads of a block: 8 warps.
THREADS = 256
#: Elements of a thread in a chunk. Long enough for the loads to outweigh the end of a block; short enough for
#: thousands of blocks on a layer's gradient, and for short chains of additions.
PER_THREAD = 64


def bgrad(problem: Problem) -> Program:
    assert isinstance(problem, Conv2dProblem)
    element, sum_bytes = cpp_type(problem), 8 if problem.dtype == "f64" else 4
    plane = problem.p * problem.q
    rows = problem.n * plane
    most = 16 // problem.element_bytes
    contiguous = problem.k if problem.layout == "nhwc" else plane
    vector = most if contiguous % most == 0 else 1
    if problem.layout == "nchw":
        chunk = THREADS * PER_THREAD
        chunks = blocks(rows, chunk)
        step = Step(
            SOURCE,
            kernel=f"bgrad_nchw<{element}, {vector}, {chunk}, {THREADS}>",
            grid=(problem.k * chunks, 1, 1),
            block=(THREADS, 1, 1),
            arguments=(problem, c_int32(chunks), "dy", Scratch()),
            sass=("LDG.E.128.CONSTANT",) if vector > 1 else (),
        )
    else:
        # As many lanes along k as it has vectors, a power of two; the others of a warp take further rows.
        lanes = min(32, 1 << max(0, blocks(problem.k, vector) - 1).bit_length())
        chunk = THREADS // lanes * PER_THREAD
        chunks = blocks(rows, chunk)
        step = Step(
            SOURCE,
            kernel=f"bgrad_nhwc<{element}, {vector}, {THREADS}>",
            grid=(blocks(problem.k, lanes * vector) * chunks, 1, 1),
            block=(THREADS, 1, 1),
            arguments=(problem, c_int32(chunks), c_int32(chunk), c_int32(lanes), "dy", Scratch()),
            sass=("LDG.E.128.CONSTANT",) if vector > 1 else (),
        )
    total = Step(
        SOURCE,
        kernel=f"bgrad_total<{element}, {THREADS}>",
        grid=(blocks(problem.k, THREADS // 32), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(problem, c_int32(chunks), Scratch(), "db"),
    )
    return Program((step, total), workspace_bytes=problem.k * chunks * sum_bytes)


def _restriction(problem: Problem) -> str | None:
    return indices_fit_int32(problem) or planes_fit_int32(problem)


KERNELS = [
    Kernel(
        "conv2d",
        "bgrad",
        "direct",
        "cuda",
        ("f32", "f64", "f16", "bf16"),
        source=SOURCE,
        restriction=_restriction,
        program=bgrad,
        proved=("emulator",),
        # Several chunks; chunks that end within a plane; vectors and none; more filters than lanes.
        problems=(
            "conv2d n2c1h100w131 k1r1s1 st1 pd0",
            "conv2d n70c1h16w16 k2r1s1 st1 pd0",
            "conv2d n3c1h40w50 k34r1s1 st1 pd0",
            "conv2d n1c1h9w33 k136r1s1 st1 pd0",
        ),
    )
]
