"""Launches and table lines of ``direct_naive.cu``: a thread per element of the result."""

from pyconv.kernels.conv2d.restrictions import indices_fit_int32

from pyconv.backends.program import Program, Step, Work, blocks, cpp_layout, cpp_type, unit_of
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/direct_naive.cu"

#: Threads of a block: 8 warps. There is nothing to share in a block; any multiple of a warp would do.
THREADS = 256
#: Of the FMAs' peak: instructions bound it in nchw, the many lines that a warp touches in nhwc (README.md).
SHARE = {"nchw": 0.07, "nhwc": 0.0075}


def _program(problem: Problem, name: str, operands: tuple[str, ...], elements: int) -> Program:
    step = Step(
        SOURCE,
        kernel=f"{name}<{cpp_type(problem)}, {cpp_layout(problem)}, {THREADS}>",
        grid=(blocks(elements, THREADS), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(problem, *operands),
        work=Work(
            flops=problem.flops("fprop"),
            unit=unit_of(problem),
            share=SHARE[problem.layout],
            tensor_bytes=problem.bytes("fprop"),
            resident=8,
            concurrent=8,
        ),
    )
    return Program((step,))


def fprop(problem: Problem) -> Program:
    return _program(problem, "direct_naive_fprop", ("x", "w", "bias", "y"), problem.y_size)


def dgrad(problem: Problem) -> Program:
    return _program(problem, "direct_naive_dgrad", ("dy", "w", "dx"), problem.x_size)


def wgrad(problem: Problem) -> Program:
    assert isinstance(problem, Conv2dProblem)
    return _program(problem, "direct_naive_wgrad", ("x", "dy", "dw"), problem.w_size)


KERNELS = [
    Kernel(
        "conv2d",
        pass_,
        "direct_naive",
        "cuda",
        ("f32", "f64", "f16", "bf16"),
        source=SOURCE,
        restriction=indices_fit_int32,
        program=program,
        batch_invariant=pass_ != "wgrad",
        proved=("emulator",),
    )
    for pass_, program in (("fprop", fprop), ("dgrad", dgrad), ("wgrad", wgrad))
]
