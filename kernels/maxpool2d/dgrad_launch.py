"""Launches and table lines of ``dgrad.cu``."""

from pyconv.kernels.maxpool2d.items import (
    Tile,
    channels,
    cuda_line,
    known_window,
    launch,
    typed,
)

from pyconv.backends.program import Program
from pyconv.problem import Pool2dProblem, Problem

#: Rows of dx that a thread owns, by stride, where the window is known. A row of windows is loaded once for
#: all the rows that it covers: of a 3x3 window, 8 rows at stride 2 look at 5 rows of windows, and so do 3 at
#: stride 1. Fewer with vectors and with elements of 8 bytes, which fill the registers sooner.
ROWS = {1: 3, 2: 8}
FEWER_ROWS = {1: 2, 2: 4}


def _owns_pairs(problem: Pool2dProblem) -> bool:
    """Whether a thread of nchw owns two columns.

    That is half the work of 16-bit elements, which are short of it; and of others where both are stored at
    once (w even), but not of 8 bytes, which would not fit the registers.
    """
    if problem.layout == "nhwc" or problem.element_bytes == 8:
        return False
    return problem.element_bytes == 2 or problem.w % 2 == 0


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
    cells = (FEWER_ROWS if vector > 1 or problem.element_bytes == 8 else ROWS)[
        stride
    ] // stride  # of stride rows each
    pair = _owns_pairs(problem)
    odd = problem.pad_left % 2 if pair else 0
    whole = "false" if pair and problem.w % 2 else "true"
    known = typed(problem, 2 if pair else vector, size, size, stride, cells, odd, whole, place)
    tile = Tile("dgrad.cu", f"dgrad_window<{known}>", cells, 2 if pair else 1, vector, sass)
    # Cells begin at multiples of the stride in rows that count the padding's; those that hold a row of dx:
    first, last = problem.pad_top // stride, (problem.pad_top + problem.h - 1) // stride
    return launch(problem, tile, operands, last - first + 1, problem.w)


def dgrad(problem: Problem) -> Program:
    return _program(problem, "int32_t")


def dgrad_tap(problem: Problem) -> Program:
    return _program(problem, "uint8_t")


KERNELS = [cuda_line("dgrad", "dgrad.cu", dgrad), cuda_line("dgrad_tap", "dgrad.cu", dgrad_tap)]
