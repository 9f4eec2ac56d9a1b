"""What the battery feeds a kernel: numpy arrays indexed ``[n, c, h, w]``, whatever the layout of the tensors.

numpy has no bfloat16, and slow arithmetic in float16. The values of a 16-bit dtype are therefore held as
float32 throughout: every one of them is a float32, so an array of them compares as the tensor itself would,
to the bit. :func:`rounded` is the only way into a dtype; :mod:`tests.memory` makes tensors of the arrays.
"""

from __future__ import annotations

import math
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pyconv import reference
from pyconv.problem import DTYPES, Conv2dProblem, Pool2dProblem, Problem

Array = npt.NDArray[Any]

#: (operation, pass) -> its operands, in the order of :func:`pyconv.backends.bind`.
OPERANDS = {
    ("conv2d", "fprop"): ("x", "w", "bias"),
    ("conv2d", "dgrad"): ("dy", "w"),
    ("conv2d", "wgrad"): ("x", "dy"),
    ("conv2d", "bgrad"): ("dy",),
    ("maxpool2d", "fprop"): ("x",),
    ("maxpool2d", "fprop_argmax"): ("x",),
    ("maxpool2d", "dgrad"): ("dy", "argmax"),
    ("maxpool2d", "gather"): ("x", "argmax"),
    ("maxpool2d", "fprop_tap"): ("x",),
    ("maxpool2d", "dgrad_tap"): ("dy", "argmax"),
    ("maxpool2d", "gather_tap"): ("x", "argmax"),
}

#: dtype -> the type of the arrays that hold its values, which is also the type its sums are kept in.
ARRAY_DTYPES: dict[str, type[np.floating[Any]]] = {
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.float32,
    "bf16": np.float32,
}


def rounded(array: Array, dtype: str) -> Array:
    """The values of ``dtype`` nearest to those of ``array`` (which a float32 has to hold, if 16-bit)."""
    array = np.asarray(array, ARRAY_DTYPES[dtype])
    if is_16_bit(dtype):
        return torch.from_numpy(np.array(array, order="C")).to(DTYPES[dtype]).float().numpy()
    return array


def is_16_bit(dtype: str) -> bool:
    return DTYPES[dtype].itemsize == 2


def operation_of(problem: Problem) -> str:
    return "conv2d" if isinstance(problem, Conv2dProblem) else "maxpool2d"


def is_sum(problem: Problem, pass_: str) -> bool:
    """Whether a pass rounds. The others select elements, and are exact."""
    return operation_of(problem) == "conv2d" or pass_ in ("dgrad", "dgrad_tap")


def _shape(problem: Problem, name: str) -> tuple[int, ...]:
    if isinstance(problem, Conv2dProblem) and name in ("w", "bias"):
        return problem.w_shape if name == "w" else (problem.k,)
    return problem.x_shape if name == "x" else problem.y_shape


def result_shapes(problem: Problem, pass_: str) -> list[tuple[int, ...]]:
    """Shapes of what a pass returns."""
    if isinstance(problem, Conv2dProblem):
        shapes: dict[str, tuple[int, ...]] = {
            "fprop": problem.y_shape,
            "dgrad": problem.x_shape,
            "wgrad": problem.w_shape,
            "bgrad": (problem.k,),
        }
        return [shapes[pass_]]
    if pass_ in ("fprop_argmax", "fprop_tap"):
        return [problem.y_shape, problem.y_shape]
    return [problem.x_shape if pass_ in ("dgrad", "dgrad_tap") else problem.y_shape]


# ---- Values ----------------------------------------------------------------------------------------------


def _terms(problem: Problem, pass_: str) -> int:
    """The most terms that one sum has."""
    if isinstance(problem, Conv2dProblem):
        terms = problem.n * problem.p * problem.q if pass_ == "bgrad" else problem.gemm(pass_)[2]
    else:  # the windows that one element is in
        terms = math.ceil(problem.r / problem.stride_h) * math.ceil(problem.s / problem.stride_w)
    return max(1, terms)


def integer_limits(problem: Problem, pass_: str) -> tuple[int, int]:
    """The largest magnitude of the ``integers`` operands of a pass, and of any partial sum of theirs.

    Up to 3, so that selections meet ties and no sum rounds. A 16-bit result is rounded once, from an exact
    sum, and that has to show: there the integers are so large that sums are around 2^13, which is more than
    the 8 or 11 bits of a result and less than the largest float16.
    """
    is_product = operation_of(problem) == "conv2d" and pass_ != "bgrad"
    terms = _terms(problem, pass_)
    largest = 3
    if is_16_bit(problem.dtype) and is_sum(problem, pass_):
        # Integers up to m have a mean square of m^2 / 3, their products of m^4 / 9.
        size = 2**13 / math.sqrt(terms)
        representable = 2048 if problem.dtype == "f16" else 256
        largest = min(representable, math.isqrt(int(3 * size)) if is_product else int(math.sqrt(3) * size))
    largest = max(1, largest)
    return largest, terms * (largest**2 if is_product else largest) + largest  # and the bias


def _values(kind: str, shape: tuple[int, ...], dtype: str, seed: int, largest: int = 3) -> Array:
    """``normal``; ``integers`` with zeros of both signs; ``special``: those, with NaN and -inf."""
    random = np.random.default_rng(seed)
    if kind == "normal":
        return rounded(random.standard_normal(shape), dtype)
    values = random.integers(-largest, largest + 1, shape).astype(ARRAY_DTYPES[dtype])
    values[random.random(shape) < 0.1] = -0.0
    if kind == "special":
        values[random.random(shape) < 0.1] = np.nan
        values[random.random(shape) < 0.4] = -np.inf
    return values


@lru_cache(maxsize=512)
def operands(problem: Problem, pass_: str, kind: str, draw: int = 0) -> tuple[Array, ...]:
    """The operands of one pass. They depend on the problem's sizes and dtype, not on its layout."""
    arrays: list[Array] = []
    for name in OPERANDS[operation_of(problem), pass_]:
        sizes = str(problem).rsplit(" ", 1)[0]
        seed = zlib.crc32(f"{sizes} {name} {kind} {draw}".encode())
        if name == "argmax":
            assert isinstance(problem, Pool2dProblem)
            ties = _values("integers", problem.x_shape, problem.dtype, seed)
            by_tap = pass_.endswith("_tap")
            forward = reference.maxpool2d_fprop_tap if by_tap else reference.maxpool2d_fprop_argmax
            arrays.append(forward(problem, ties)[1])
        else:
            largest = integer_limits(problem, pass_)[0]
            arrays.append(_values(kind, _shape(problem, name), problem.dtype, seed, largest))
    for array in arrays:
        array.flags.writeable = False
    return tuple(arrays)


def expected(
    problem: Problem,
    pass_: str,
    arrays: tuple[Array | None, ...],
    dtype: npt.DTypeLike = np.float64,
    padding_multiplied: bool = False,
) -> tuple[Array, ...]:
    """What :mod:`pyconv.reference` says."""
    function = getattr(reference, f"{operation_of(problem)}_{pass_}")
    extra: dict[str, Any] = {"dtype": dtype} if is_sum(problem, pass_) else {}
    if padding_multiplied:
        extra["padding_multiplied"] = True
    result = function(problem, *arrays, **extra)
    return result if isinstance(result, tuple) else (result,)
