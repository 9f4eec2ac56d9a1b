"""How much error a sum may have: at most twice torch's own on the same problem, and one rounding.

Both errors are relative L2 errors against sums of the same operands in higher precision (longdouble for
float64, float64 for the others), over enough draws of the operands that luck evens out on small results.
Torch's own is that of the less accurate of its two layouts, on this machine's processor, wherever the kernel
runs. Where torch cannot do the problem, the plain loops of :mod:`pyconv.reference` stand in for it, in the
problem's own precision; a 16-bit dtype's is sums in float32, rounded once.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from pyconv import backends, registry
from pyconv.problem import LAYOUTS, Problem
from pyconv.registry import Kernel
from tests.memory import lay_out, values
from tests.operands import (
    ARRAY_DTYPES,
    Array,
    expected,
    integer_limits,
    operands,
    operation_of,
    result_shapes,
    rounded,
)

#: Whether longdouble is more than double (on x86 it is; where it is not, exact integers judge float64).
HAS_LONGDOUBLE = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps

# Results over which an error is taken: it is then known to 1 in sqrt(2 * 256), 4 %. In short, to 7 %.
_LEAST_RESULTS = 256
_LEAST_RESULTS_IN_SHORT = 96
_MOST_DRAWS = 16


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number."""
    return float(torch.finfo(dtype).eps) / 2


def draws(problem: Problem, pass_: str, in_short: bool = False) -> int:
    """At least two, so that a kernel that returns an earlier result is seen."""
    results = math.prod(result_shapes(problem, pass_)[0])
    least = _LEAST_RESULTS_IN_SHORT if in_short else _LEAST_RESULTS
    return 2 if results == 0 else min(_MOST_DRAWS, max(2, math.ceil(least / results)))


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
    precise = np.longdouble if problem.dtype == "f64" else np.float64
    return list(expected(problem, pass_, operands(problem, pass_, "normal", draw), precise))


def exact(problem: Problem, pass_: str, draw: int) -> list[Array]:
    """The reference for the normal operands of a draw."""
    return _exact(_any_layout(problem), pass_, draw)


def exact_integers(problem: Problem, pass_: str, arrays: tuple[Array | None, ...]) -> list[Array]:
    """The reference for integer operands, rounded once. Raises ``OverflowError`` if a sum might round too."""
    largest_sum = integer_limits(problem, pass_)[1]
    accumulator = torch.from_numpy(np.empty(0, ARRAY_DTYPES[problem.dtype])).dtype
    if largest_sum >= 1 / unit_roundoff(accumulator):
        raise OverflowError(f"sums up to {largest_sum} may round in {accumulator}, of {pass_} of '{problem}'")
    exact_sums = expected(_any_layout(problem), pass_, arrays)
    return [
        rounded(part, problem.dtype) if np.issubdtype(part.dtype, np.floating) else part
        for part in exact_sums
    ]


@lru_cache(maxsize=2048)
def _own(problem: Problem, pass_: str) -> float:
    """The error of torch on this problem: the larger of its two layouts'."""
    if math.prod(result_shapes(problem, pass_)[0]) == 0:
        return 0.0
    inputs = [operands(problem, pass_, "normal", draw) for draw in range(draws(problem, pass_))]
    want = [part for draw in range(len(inputs)) for part in exact(problem, pass_, draw)]
    plain = [
        rounded(part, problem.dtype)
        for arrays in inputs
        for part in expected(problem, pass_, arrays, ARRAY_DTYPES[problem.dtype])
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
        got = [
            values(launch(*(lay_out(array, problem.torch_dtype, layout) for array in arrays)))
            for arrays in inputs
        ]
        errors.append(relative_error(got, want))
    own = max(errors)
    # A baseline that is wrong would let everything pass.
    if not own <= 8 * plain_error + 4 * unit_roundoff(problem.torch_dtype):
        raise AssertionError(
            f"the judge is broken: torch's own error on {pass_} of '{problem}' is {own:.3g}, "
            f"that of plain loops {plain_error:.3g}"
        )
    return own


def standard(problem: Problem, pass_: str) -> float:
    """The relative L2 error of a line whose accuracy is ``standard``."""
    # torch has no argmax of one byte; the sums are those of the pass that has four.
    return 2 * _own(_any_layout(problem), pass_.removesuffix("_tap")) + unit_roundoff(problem.torch_dtype)


def allowed(kernel: Kernel, problem: Problem) -> float:
    """The relative L2 error that a line of the table may have."""
    return standard(problem, kernel.pass_) if kernel.error_bound is None else kernel.error_bound
