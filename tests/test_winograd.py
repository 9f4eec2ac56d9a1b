"""Winograd in CUDA: its matrices against Cook and Toom's in exact arithmetic, its programs, its chunks.

``tests/test_battery_emulator.py`` has the lines themselves.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pyconv.kernels.conv2d import winograd_launch

from pyconv import backends, registry
from pyconv.backends import cuda
from pyconv.backends.emulator import Buffer, Emulator, unavailable
from pyconv.problem import Conv2dProblem, parse_problem

needs_emulator = pytest.mark.skipif(unavailable() is not None, reason=f"no emulator: {unavailable()}")

SOURCE = str(Path(__file__).resolve().parent / "primitives" / "winograd.cu")


# ---- Exact arithmetic: a + b*sqrt(2) with rational a and b -----------------------------------------------


@dataclass(frozen=True)
class Number:
    a: Fraction
    b: Fraction = Fraction(0)

    def __add__(self, other: Number) -> Number:
        return Number(self.a + other.a, self.b + other.b)

    def __sub__(self, other: Number) -> Number:
        return Number(self.a - other.a, self.b - other.b)

    def __mul__(self, other: Number) -> Number:
        return Number(self.a * other.a + 2 * self.b * other.b, self.a * other.b + self.b * other.a)

    def __truediv__(self, other: Number) -> Number:
        norm = other.a**2 - 2 * other.b**2  # 0 for 0 only: sqrt(2) is irrational
        return self * Number(other.a / norm, -other.b / norm)

    def __float__(self) -> float:
        """The nearest double: sqrt(2) to 40 digits."""
        root = Fraction(14142135623730950488016887242096980785697, 10**40)
        return float(self.a + self.b * root)


ZERO, ONE = Number(Fraction(0)), Number(Fraction(1))
Matrix = list[list[Number]]

#: m -> the finite points, in the order of the rows.
POINTS = {
    2: [ZERO, ONE, ZERO - ONE],
    4: [ZERO, *(Number(Fraction(0), Fraction(n, 2)) for n in (1, -1, 2, -2))],
}


def _times_root(polynomial: list[Number], root: Number) -> list[Number]:
    """The coefficients of ``polynomial * (x - root)``, the lowest first."""
    shifted = [ZERO, *polynomial]
    return [high - root * low for high, low in zip(shifted, [*polynomial, ZERO], strict=True)]


def _cook_toom(m: int) -> tuple[Matrix, Matrix, Matrix]:
    """B^T, G and A^T of F(m, 3)."""
    points = POINTS[m]
    to_points, filters, columns = [], [], []
    for point in points:
        others = [other for other in points if other != point]
        numerator = reduce(_times_root, others, [ONE])
        scale = reduce(lambda product, other: product * (point - other), others, ONE)
        powers = list(itertools.accumulate([ONE] + [point] * (m + 1), lambda power, by: power * by))
        to_points.append([*numerator, ZERO])
        filters.append([power / scale for power in powers[:3]])
        columns.append(powers[:m])
    to_points.append(reduce(_times_root, points, [ONE]))
    filters.append([ZERO, ZERO, ONE])
    columns.append([ZERO] * (m - 1) + [ONE])
    # A point's rows of B^T and G may change sign together: 0's, where the numerator is odd at F(2, 3).
    for i, row in enumerate(to_points):
        if i == 0 and float(row[0]) < 0:
            to_points[i] = [ZERO - element for element in row]
            filters[i] = [ZERO - element for element in filters[i]]
    return to_points, filters, [list(row) for row in zip(*columns, strict=True)]


def _times(matrix: Matrix, vector: Sequence[Number]) -> list[Number]:
    return [
        reduce(lambda total, pair: total + pair[0] * pair[1], zip(row, vector, strict=True), ZERO)
        for row in matrix
    ]


@pytest.mark.parametrize("m", [2, 4])
def test_cook_and_tooms_matrices_filter_exactly(m: int) -> None:
    b, g, a = _cook_toom(m)
    for place, tap in itertools.product(range(m + 2), range(3)):
        inputs = [ONE if i == place else ZERO for i in range(m + 2)]
        taps = [ONE if i == tap else ZERO for i in range(3)]
        products = [x * w for x, w in zip(_times(b, inputs), _times(g, taps), strict=True)]
        assert _times(a, products) == [ONE if place == i + tap else ZERO for i in range(m)]


def _launch(m: int, kernel: str, given: npt.NDArray[np.float32] | None, out: npt.NDArray[np.generic]) -> None:
    arrays = [array for array in (given, out) if array is not None]
    buffers = [
        Buffer(str(i), array.ctypes.data, array.nbytes, initialised=array is given, writable=array is out)
        for i, array in enumerate(arrays)
    ]
    values = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    parameters = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    emulator = Emulator(checked=True)
    function = emulator.function(SOURCE, f"{kernel}<{m}>")
    emulator.launch(function, (1, 1, 1), (1, 1, 1), 0, parameters, buffers)


@needs_emulator
@pytest.mark.parametrize("m", [2, 4])
def test_the_matrices_are_cook_and_tooms(m: int) -> None:
    want = np.array([float(element) for matrix in _cook_toom(m) for row in matrix for element in row])
    got = np.zeros_like(want)
    _launch(m, "winograd_matrices", None, got)
    # To a rounding of sqrt(2) and one of what is made of it; what is rational is exact.
    np.testing.assert_allclose(got, want, rtol=2**-52, atol=0)
    rational = np.array(
        [not element.b for matrix in _cook_toom(m) for row in matrix for element in row], dtype=bool
    )
    np.testing.assert_array_equal(got[rational], want[rational])


@needs_emulator
@pytest.mark.parametrize("m", [2, 4])
def test_the_transforms_are_products_with_the_matrices(m: int) -> None:
    random = np.random.default_rng(m)
    sizes = (m + 2, 3, m + 2)
    given = random.integers(-9, 10, sum(sizes)).astype(np.float32)
    got = np.zeros(m + 2 + m + 2 + m, np.float32)
    _launch(m, "winograd_transforms", given, got)
    parts = np.split(given.astype(np.float64), np.cumsum(sizes)[:-1])
    matrices = [np.array([[float(each) for each in row] for row in matrix]) for matrix in _cook_toom(m)]
    want = np.concatenate([matrix @ part for matrix, part in zip(matrices, parts, strict=True)])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 if m == 4 else 0)


# ---- Programs --------------------------------------------------------------------------------------------


def _problem(text: str) -> Conv2dProblem:
    problem = parse_problem(text)
    assert isinstance(problem, Conv2dProblem)
    return problem


LINES = [k for k in registry.kernels("conv2d") if k.algebra == "winograd" and "fused" not in k.algorithm]


@pytest.mark.parametrize("kernel", LINES, ids=lambda kernel: kernel.id)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_chunks_have_every_tile_once_and_fit_the_workspace(kernel: registry.Kernel, layout: str) -> None:
    problem = _problem(f"conv2d n64c64h112w112 k128r3s3 pd1 f32 {layout}")
    assert kernel.program is not None
    program = kernel.program(problem)
    plans = [step.arguments[0] for step in program.steps if "winograd_output" in step.kernel]
    assert all(isinstance(plan, winograd_launch.Plan) for plan in plans)
    m = 4 if "4x4" in kernel.algorithm else 2
    side = -(-112 // m)
    ends = list(itertools.accumulate(plan.tiles for plan in plans))  # type: ignore[union-attr]
    assert [plan.first_tile for plan in plans] == [0, *ends[:-1]]  # type: ignore[union-attr]
    assert ends[-1] == 64 * side * side
    assert len(plans) > 1
    filters = 4 * (m + 2) ** 2 * 64 * 128
    bound = winograd_launch.WORKSPACE + filters
    assert 0.9 * bound < program.workspace_bytes <= bound
    assert sum("winograd_filter" in step.kernel for step in program.steps) == 1, "filters: once a call"
    assert {step.source for step in program.steps} == {"conv2d/winograd.cu", "gemm/gemm_pipelined.cu"}


@needs_emulator
@pytest.mark.parametrize("kernel", LINES, ids=lambda kernel: kernel.id)
def test_chunks_change_no_bit(kernel: registry.Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _problem("conv2d n2c5h19w21 k6r3s3 pd1 f32 nchw")
    for layout in ("nchw", "nhwc"):
        problem = replace(problem, layout=layout)
        shapes = (
            (problem.x_shape, problem.w_shape)
            if kernel.pass_ == "fprop"
            else (problem.y_shape, problem.w_shape)
        )
        operands = [torch.randn(shape).contiguous(memory_format=problem.memory_format) for shape in shapes]
        operands += [torch.randn(problem.k)] if kernel.pass_ == "fprop" else []
        results = []
        for workspace in (winograd_launch.WORKSPACE, 1):
            monkeypatch.setattr(winograd_launch, "WORKSPACE", workspace)
            with cuda.emulated():
                bound = backends.bind(kernel, problem)
                results.append(bound(*operands))
        assert len(bound.packing.steps) > 4  # type: ignore[attr-defined]
        assert torch.equal(*results)


@pytest.mark.parametrize("pass_", ["fprop", "dgrad"])
def test_the_fused_kernel_keeps_nothing_but_filters_in_memory(pass_: str) -> None:
    kernel = registry.find(f"conv2d.{pass_}.winograd_2x2_fused@cuda")
    assert kernel.program is not None
    program = kernel.program(_problem("conv2d n64c64h112w112 k128r3s3 pd1 f32 nchw"))
    assert [step.kernel.split("<")[0] for step in program.steps] == ["winograd_filter", "winograd_fused"]
    assert program.workspace_bytes == 4 * 16 * 64 * 128
    long = _problem("conv2d n1c257h8w8 k257r3s3 pd1")
    assert (kernel.supports(long) or "").startswith("a sum over 257 channels")


def test_what_it_cannot_do_is_named() -> None:
    kernel = registry.find("conv2d.fprop.winograd_2x2@cuda")
    for text, reason in (
        ("conv2d n1c4h9w9 k4r5s5", "filters of 5x5"),
        ("conv2d n1c4h9w9 k4r3s3 st2", "a stride above 1"),
        ("conv2d n1c4h9w9 k4r3s3 dl2", "a dilation above 1"),
        ("conv2d n1c4h9w9 k4r3s3 f64", "dtype f64"),
        ("conv2d n100000c1h600w600 k1r3s3 pd1", "2^31 tiles"),
    ):
        assert (kernel.supports(_problem(text)) or "").startswith(reason), text
