"""Launches and table lines of ``depthwise_nchw.cu``, ``depthwise_nhwc.cu`` and ``depthwise_wgrad.cu``."""

import ctypes

from pyconv.kernels.conv2d.restrictions import indices_fit_int32

from pyconv.backends.program import Program, Scratch, Step, Work, blocks, cpp_type, unit_of
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

#: nchw: outputs below each other that a thread computes. 4 share (4+2)*3 loads at 3x3; 8 would save another
#: sixth of them and leave the planes of small images half empty.
ROWS = 4
#: nhwc: neighbouring outputs of a thread. 4 of 4 floats (8 halves) keep 16 (32) sums in registers.
COLUMNS = 4
#: nhwc: vectors of channels of a block: 128 bytes of a pixel, one cache line.
VECTORS = 8
#: Threads of a block: 8 warps, in every kernel here.
THREADS = 256
#: Filters known when compiling, ``(size, stride)``: MobileNet's and EfficientNet's.
KNOWN = ((3, 1), (3, 2), (5, 1), (5, 2))
#: wgrad: pixels of a chunk, at least: 16 for each thread, so that the block's closing sum is little work. In
#: nhwc a block has 32 filters and 8 pixels at a time: with larger chunks most of a device would be idle.
CHUNK_PIXELS = {"nchw": 16 * THREADS, "nhwc": 16 * THREADS // 32}
#: wgrad: chunks, at most: enough blocks for any device, and partial sums far smaller than x and dy.
MOST_CHUNKS = 256


#: Of the FMAs' peak, with taps known when compiled and not: a thread of 4 outputs of 3x3 has 36 FMAs among
#: some 130 instructions. An estimate; DRAM bounds all but large filters.
SHARE, SHARE_OF_ANY = 0.25, 0.1


def _work(problem: Conv2dProblem, scratch_bytes: float = 0) -> Work:
    return Work(
        flops=problem.flops("fprop"),
        unit=unit_of(problem),
        share=SHARE_OF_ANY if _filter(problem).startswith("0") else SHARE,
        tensor_bytes=problem.bytes("fprop"),
        scratch_bytes=scratch_bytes,
        resident=4,
        concurrent=4,
    )


def _filter(problem: Conv2dProblem) -> str:
    """``R, S, STRIDE`` of the instantiation; zeros where they are known when running only."""
    size, stride = problem.r, problem.stride_h
    is_square = (problem.s, problem.stride_w) == (size, stride)
    is_known = is_square and (size, stride) in KNOWN and problem.dilation_h == problem.dilation_w == 1
    return f"{size}, {size}, {stride}" if is_known else "0, 0, 0"


def _power_of_two(extent: int, most: int) -> int:
    """The least power of two that covers ``extent``, at most ``most``."""
    return min(most, 1 << max(extent - 1, 0).bit_length())


def _gather(problem: Problem, dgrad: bool) -> Program:
    """fprop or dgrad: they differ in which side is read."""
    assert isinstance(problem, Conv2dProblem)
    n, channels, rows, columns = problem.x_shape if dgrad else problem.y_shape
    operands = ("dy", "w", ctypes.c_int64(0), "dx") if dgrad else ("x", "w", "bias", "y")
    known = f"{cpp_type(problem)}, {'true' if dgrad else 'false'}, {_filter(problem)}"
    if problem.layout == "nchw":
        x = _power_of_two(columns, 32)
        y = _power_of_two(blocks(rows, ROWS), min(8, THREADS // x))
        z = _power_of_two(n * channels, min(64, THREADS // (x * y)))
        step = Step(
            "conv2d/depthwise_nchw.cu",
            kernel=f"depthwise_nchw<{known}, {ROWS}>",
            grid=(blocks(n * channels, z), blocks(columns, x), blocks(blocks(rows, ROWS), y)),
            block=(x, y, z),
            arguments=(problem, *operands),
            work=_work(problem),
        )
    else:
        whole = 16 // problem.element_bytes
        vector = whole if problem.group_k == 1 and channels % whole == 0 else 1
        y = THREADS // VECTORS
        step = Step(
            "conv2d/depthwise_nhwc.cu",
            kernel=f"depthwise_nhwc<{known}, {COLUMNS}, {vector}, {VECTORS}>",
            grid=(blocks(n * rows * blocks(columns, COLUMNS), y), blocks(channels, VECTORS * vector), 1),
            block=(VECTORS, y, 1),
            arguments=(problem, *operands),
            sass=("LDG.E.128", "STG.E.128") if vector > 1 else (),
            work=_work(problem),
        )
    return Program((step,))


def fprop(problem: Problem) -> Program:
    return _gather(problem, dgrad=False)


def dgrad(problem: Problem) -> Program:
    return _gather(problem, dgrad=True)


def wgrad(problem: Problem) -> Program:
    assert isinstance(problem, Conv2dProblem)
    rows = problem.n * problem.p
    known = _filter(problem)
    taps = problem.r * problem.s if known.startswith("0") else 1
    is_nchw = problem.layout == "nchw"
    least_rows = blocks(CHUNK_PIXELS[problem.layout], max(problem.q, 1))
    rows_per_chunk = max(least_rows, blocks(rows, MOST_CHUNKS), 1)
    chunks = max(1, blocks(rows, rows_per_chunk))
    sum_bytes = 8 if problem.dtype == "f64" else 4
    add_up = Step(
        "conv2d/depthwise_wgrad.cu",
        kernel=(
            f"depthwise_wgrad_nchw<{cpp_type(problem)}, {known}, {THREADS}>"
            if is_nchw
            else f"depthwise_wgrad_nhwc<{cpp_type(problem)}, {known}, {THREADS // 32}>"
        ),
        grid=(problem.k if is_nchw else blocks(problem.k, 32), chunks, taps),
        block=(THREADS, 1, 1) if is_nchw else (32, THREADS // 32, 1),
        arguments=(problem, "x", "dy", Scratch(), ctypes.c_int32(rows_per_chunk)),
        work=_work(problem, chunks * problem.w_size * sum_bytes),
    )
    add_chunks = Step(
        "conv2d/depthwise_wgrad.cu",
        kernel=f"depthwise_wgrad_add<{cpp_type(problem)}, {THREADS}>",
        grid=(blocks(problem.w_size, THREADS), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(Scratch(), ctypes.c_int32(chunks), ctypes.c_int64(problem.w_size), "dw"),
        work=Work(
            tensor_bytes=problem.w_size * problem.element_bytes,
            scratch_bytes=chunks * problem.w_size * sum_bytes,
        ),
    )
    return Program((add_up, add_chunks), workspace_bytes=chunks * problem.w_size * sum_bytes)


def one_channel_per_filter(problem: Problem) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    if problem.group_c != 1:
        return "not depthwise (c/groups = 1)"
    if max(problem.h, problem.p, problem.r * problem.s) >= 2**16:
        return "more than 65535 rows or taps, which are an axis of the grid"
    if problem.n * problem.p * problem.q >= 2**31:
        return "2^31 pixels or more"
    return indices_fit_int32(problem)


KERNELS = [
    Kernel(
        "conv2d",
        pass_,
        "depthwise",
        "cuda",
        ("f32", "f64", "f16", "bf16"),
        source=f"conv2d/{source}",
        restriction=one_channel_per_filter,
        program=program,
        batch_invariant=pass_ != "wgrad",
        problems=(
            # Strips, vectors of channels and blocks of them, one more and one less than full; small planes.
            "conv2d n2c33h9w31 k33r3s3 st1 pd1 g33",
            "conv2d n1c64h8w33 k64r3s3 st2 pd1 g64",
            "conv2d n3c32h7w7 k32r5s5 st1 pd2 g32",
            "conv2d n2c8h14w15 k16r5s5 st2 pd2 g8",
        ),
        proved=("emulator",),
    )
    for pass_, source, program in (
        ("fprop", "depthwise_nchw.cu", fprop),
        ("dgrad", "depthwise_nchw.cu", dgrad),
        ("wgrad", "depthwise_wgrad.cu", wgrad),
    )
]
