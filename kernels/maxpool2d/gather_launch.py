"""Launches and table lines of ``gather.cu``."""

from pyconv.kernels.maxpool2d.items import Tile, cuda_line, launch, typed

from pyconv.backends.program import Program
from pyconv.problem import Pool2dProblem, Problem

#: Results of a thread, below each other: a read of x waits for one of the argmax, so several are in flight.
OUTPUTS = 4


def _program(problem: Problem, place: str) -> Program:
    assert isinstance(problem, Pool2dProblem)
    tile = Tile("gather.cu", f"gather<{typed(problem, OUTPUTS, place)}>", rows=OUTPUTS)
    return launch(problem, tile, ("x", "argmax", "y"), problem.p, problem.q)


def gather(problem: Problem) -> Program:
    return _program(problem, "int32_t")


def gather_tap(problem: Problem) -> Program:
    return _program(problem, "uint8_t")


KERNELS = [cuda_line("gather", "gather.cu", gather), cuda_line("gather_tap", "gather.cu", gather_tap)]
