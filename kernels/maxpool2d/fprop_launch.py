"""Launches and table lines of ``fprop.cu`` and ``fprop_argmax.cu``."""

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

#: Results of a thread, below each other, by window. 4 of a 3x3 window by two look at 9 rows of x, one by one
#: they would at 12; at stride 1, where a result has fewer bytes to hide the work behind, 8 look at 10 instead
#: of 24.
OUTPUTS = {(2, 2): 4, (3, 2): 4, (3, 1): 8}
#: ``kUnaligned`` of pairs.cuh.
UNALIGNED = "kUnaligned"
#: The argmax of each pass as the kernels have it.
PLACES = {"fprop_argmax": "int32_t", "fprop_tap": "uint8_t"}


def _program(problem: Problem, place: str | None) -> Program:
    assert isinstance(problem, Pool2dProblem)
    source, operands = ("fprop_argmax.cu", ("x", "y", "argmax")) if place else ("fprop.cu", ("x", "y"))
    name, last = source.removesuffix(".cu"), (place,) if place else ()
    vector = channels(problem)
    # Two 16-bit elements in a register leave 16 bits for a tap.
    if place and problem.element_bytes == 2 and problem.r * problem.s >= 2**16:
        vector = 1
    sass = ("LDG.E.128", "STG.E.128") if vector > 1 else ()
    window = known_window(problem)
    if window is None:
        kernel = f"{name}_any<{typed(problem, vector, *last)}>"
        tile = Tile(source, kernel, elements=vector, sass=sass)
    else:
        size, stride = window
        pair = comes_in_pairs(problem)
        begin = 0 if not pair else UNALIGNED if problem.w % 2 else problem.pad_left % 2
        outputs = OUTPUTS[window]
        known = typed(problem, 2 if pair else vector, size, size, stride, outputs, begin, *last)
        tile = Tile(source, f"{name}_window<{known}>", outputs, 2 if pair else 1, vector, sass)
    return launch(problem, tile, operands, problem.p, problem.q)


def fprop(problem: Problem) -> Program:
    return _program(problem, None)


def fprop_argmax(problem: Problem) -> Program:
    return _program(problem, PLACES["fprop_argmax"])


def fprop_tap(problem: Problem) -> Program:
    return _program(problem, PLACES["fprop_tap"])


KERNELS = [
    cuda_line("fprop", "fprop.cu", fprop),
    cuda_line("fprop_argmax", "fprop_argmax.cu", fprop_argmax),
    cuda_line("fprop_tap", "fprop_argmax.cu", fprop_tap),
]
