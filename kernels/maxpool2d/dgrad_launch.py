"""Launches and table lines of ``dgrad.cu``."""

from pyconv.kernels.maxpool2d.items import (
    Tile,
    channels,
    comes_in_pairs,
    cuda_line,
    known_window,
    launch,
    typed,
)

from pyconv.backends.program import Program
from pyconv.problem import Pool2dProblem, Problem

#: Rows of dx that a thread owns where the window is known. A row of windows is loaded once for all the rows
#: that it covers: 4 rows look at 6 rows of windows at stride 1, at 3 at stride 2. With vectors, half as many
#: sums fit the registers.
ROWS, VECTOR_ROWS = 4, 2


def _program(problem: Problem, place: str) -> Program:
    assert isinstance(problem, Pool2dProblem)
    operands = ("dy", "argmax", "dx")
    vector = channels(problem)
    sass = ("LDG.E.128", "STG.E.128") if vector > 1 else ()
    window = known_window(problem)
    if window is None:
        tile = Tile("dgrad.cu", f"dgrad_any<{typed(problem, vector, place)}>", elements=vector, sass=sass)
        return launch(problem, tile, operands, problem.h, problem.w)
    size, stride = window
    cells = (VECTOR_ROWS if vector > 1 else ROWS) // stride  # of stride rows each
    pair = comes_in_pairs(problem)
    odd = problem.pad_left % 2 if pair else 0
    known = typed(problem, 2 if pair else vector, size, size, stride, cells, odd, place)
    tile = Tile("dgrad.cu", f"dgrad_window<{known}>", cells, 2 if pair else 1, vector, sass)
    # Cells begin at multiples of the stride in rows that count the padding's; those that hold a row of dx:
    first, last = problem.pad_top // stride, (problem.pad_top + problem.h - 1) // stride
    return launch(problem, tile, operands, last - first + 1, problem.w)


def dgrad(problem: Problem) -> Program:
    return _program(problem, "int32_t")


def dgrad_tap(problem: Problem) -> Program:
    return _program(problem, "uint8_t")


KERNELS = [cuda_line("dgrad", "dgrad.cu", dgrad), cuda_line("dgrad_tap", "dgrad.cu", dgrad_tap)]
