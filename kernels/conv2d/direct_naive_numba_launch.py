"""Launches and table lines of ``direct_naive_numba.py``: a thread per element of the result."""

from pyconv.kernels.conv2d.restrictions import indices_fit_int32

from pyconv.backends.numba_program import SUMS, tensor
from pyconv.backends.program import Program, Step, blocks
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/direct_naive_numba.py"

#: Threads of a block: 8 warps, as in ``direct_naive_launch.py``.
THREADS = 256


def _program(problem: Problem, name: str, operands: tuple[str, ...], elements: int) -> Program:
    step = Step(
        SOURCE,
        kernel=f"{name}({SUMS[problem.dtype]})",
        grid=(blocks(elements, THREADS), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(problem, int(problem.layout == "nhwc"), *(tensor(name, problem) for name in operands)),
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
        "numba",
        ("f32", "f64", "f16"),
        source=SOURCE,
        restriction=indices_fit_int32,
        program=program,
        batch_invariant=pass_ != "wgrad",
        proved=("emulator",),
    )
    for pass_, program in (("fprop", fprop), ("dgrad", dgrad), ("wgrad", wgrad))
]
