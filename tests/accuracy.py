"""How much error a sum may have: at most twice torch's own on the same problem, and one rounding.

Both errors are relative L2 errors against sums in higher precision (float64 for float32, longdouble for
float64), over enough draws of the operands that luck evens out on small results. Torch's own is that of the
less accurate of its two layouts. Where torch cannot do the problem, the plain loops of
:mod:`pyconv.reference` in the problem's own precision stand in for it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from pyconv import backends, registry
from pyconv.problem import LAYOUTS, Problem
from tests.operands import NUMPY_DTYPES, Array, expected, lay_out, operands, operation_of, result_shapes

#: Whether longdouble is more than double (on x86 it is; where it is not, exact integers judge float64).
HAS_LONGDOUBLE = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps

_LEAST_RESULTS = 256  # results over which an error is taken
_MOST_DRAWS = 16


def is_sum(problem: Problem, pass_: str) -> bool:
    """Whether a pass rounds. The others select elements, and are exact."""
    return operation_of(problem) == "conv2d" or pass_ == "dgrad"


def unit_roundoff(problem: Problem) -> float:
    return float(np.finfo(NUMPY_DTYPES[problem.dtype]).eps) / 2


def draws(problem: Problem, pass_: str) -> int:
    """At least two, so that a kernel that returns an earlier result is seen."""
    results = math.prod(result_shapes(problem, pass_)[0])
    return 2 if results == 0 else min(_MOST_DRAWS, max(2, math.ceil(_LEAST_RESULTS / results)))


def relative_error(got: list[Array], want: list[Array]) -> float:
    """``|got - want| / |want|`` over all the arrays; 0 where both are zero, NaN if anything is not finite."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = math.sqrt(
            sum(float(((a - b).astype(np.float64) ** 2).sum()) for a, b in zip(got, want, strict=True))
        )
        size = math.sqrt(sum(float((b.astype(np.float64) ** 2).sum()) for b in want))
    if math.isnan(size) or math.isnan(error):
        return math.nan
    return 0.0 if error == 0 else error / size if size else math.inf


def _any_layout(problem: Problem) -> Problem:
    return replace(problem, layout="nchw")


@lru_cache(maxsize=512)
def _exact(problem: Problem, pass_: str, draw: int) -> list[Array]:
    precise = np.float64 if problem.dtype == "f32" else np.longdouble
    return list(expected(problem, pass_, operands(problem, pass_, "normal", draw), precise))


def exact(problem: Problem, pass_: str, draw: int) -> list[Array]:
    """The reference for the normal operands of a draw."""
    return _exact(_any_layout(problem), pass_, draw)


def exact_integers(problem: Problem, pass_: str, arrays: tuple[Array | None, ...]) -> list[Array]:
    """The reference for integer operands. Raises ``OverflowError`` if a sum might round."""
    depth = max(1, problem.flops(pass_) // max(1, math.prod(result_shapes(problem, pass_)[0])))
    if 9 * depth >= 1 / unit_roundoff(problem):
        raise OverflowError(f"sums of {depth} products of integers up to 3 may round in {problem.dtype}")
    return list(expected(_any_layout(problem), pass_, arrays))


@lru_cache(maxsize=2048)
def _own(problem: Problem, pass_: str) -> float:
    """The error of torch on this problem: the larger of its two layouts'."""
    if math.prod(result_shapes(problem, pass_)[0]) == 0:
        return 0.0
    inputs = [operands(problem, pass_, "normal", draw) for draw in range(draws(problem, pass_))]
    want = [part for draw in range(len(inputs)) for part in exact(problem, pass_, draw)]
    plain = [
        part for arrays in inputs for part in expected(problem, pass_, arrays, NUMPY_DTYPES[problem.dtype])
    ]
    plain_error = relative_error(plain, want)
    line = registry.find(f"{operation_of(problem)}.{pass_}.aten@aten")
    errors = []
    for layout in LAYOUTS:
        variant = replace(problem, layout=layout)
        if line.supports(variant):
            errors.append(plain_error)
            continue
        launch = backends.bind(line, variant)
        got = [launch(*(lay_out(array, layout) for array in arrays)).numpy() for arrays in inputs]
        errors.append(relative_error(got, want))
    own = max(errors)
    # A baseline that is wrong would let everything pass.
    if not own <= 8 * plain_error + 4 * unit_roundoff(problem):
        raise AssertionError(
            f"the judge is broken: torch's own error on {pass_} of '{problem}' is {own:.3g}, "
            f"that of plain loops {plain_error:.3g}"
        )
    return own


def allowed(problem: Problem, pass_: str) -> float:
    """The relative L2 error that a line of the table may have."""
    return 2 * _own(_any_layout(problem), pass_) + unit_roundoff(problem)
