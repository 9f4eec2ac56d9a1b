"""Problems nobody thought of: Hypothesis draws them, and every line that supports one must agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from pyconv import registry
from pyconv.problem import LAYOUTS, Conv2dProblem, Pool2dProblem, Problem
from tests.battery import judge
from tests.devices import ORDERS, Emulator, device_of
from tests.problems import DTYPES, DTYPES_16_BIT

_CHECKS = ("value", "exact_integers", "views")


def _axis(draw: Callable[..., Any], most: int, pooling: bool) -> tuple[int, int, int, int, int, int]:
    """Extent, taps, stride, padding before and after, dilation along one axis, with at least one output."""
    taps, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    reach = dilation * (taps - 1) + 1
    widest = taps // 2 if pooling else reach + 1
    before, after = draw(st.integers(0, widest)), draw(st.integers(0, widest))
    extent = draw(st.integers(max(1, reach - before - after), max(most, reach)))
    return extent, taps, draw(st.integers(1, 4)), before, after, dilation


@st.composite
def conv2d_problems(draw: Callable[..., Any], dtypes: tuple[str, ...] = DTYPES) -> Conv2dProblem:
    h, r, stride_h, top, bottom, dilation_h = _axis(draw, 20, pooling=False)
    w, s, stride_w, left, right, dilation_w = _axis(draw, 36, pooling=False)
    if draw(st.booleans()):  # depthwise is rare among free draws
        groups = draw(st.integers(2, 20))
        c, k = groups, groups * draw(st.integers(1, 3))
    else:
        groups = draw(st.integers(1, 4))
        c, k = groups * draw(st.integers(1, 20)), groups * draw(st.integers(1, 20))
    return Conv2dProblem(
        draw(st.integers(1, 3)), c, h, w, k, r, s, stride_h, stride_w, top, bottom, left, right,
        dilation_h, dilation_w, groups, draw(st.sampled_from(dtypes)), draw(st.sampled_from(LAYOUTS)),
    )  # fmt: skip


@st.composite
def maxpool2d_problems(draw: Callable[..., Any], dtypes: tuple[str, ...] = DTYPES) -> Pool2dProblem:
    h, r, stride_h, top, bottom, dilation_h = _axis(draw, 30, pooling=True)
    w, s, stride_w, left, right, dilation_w = _axis(draw, 70, pooling=True)
    return Pool2dProblem(
        draw(st.integers(1, 3)), draw(st.integers(1, 40)), h, w, r, s, stride_h, stride_w, top, bottom, left,
        right, dilation_h, dilation_w, draw(st.booleans()), draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(LAYOUTS)),
    )  # fmt: skip


def _every_line_agrees(problem: Problem, operation: str) -> None:
    failures = [
        failure
        for kernel in registry.kernels(operation)
        if device_of(kernel).name != "emulator"
        if kernel.backend != "numba-cpu" or problem.dtype == "f32"  # f64 would compile as long again
        for failure in judge(kernel, problem, _CHECKS).failures
    ]
    assert not failures, "\n".join(failures)


@given(problem=conv2d_problems())
def test_any_convolution(problem: Conv2dProblem) -> None:
    _every_line_agrees(problem, "conv2d")


@given(problem=maxpool2d_problems())
def test_any_pooling(problem: Pool2dProblem) -> None:
    _every_line_agrees(problem, "maxpool2d")


# ---- On the emulator, where a problem may take seconds: part of the exhaustive run ------------------------

_EVERY_DTYPE = DTYPES + DTYPES_16_BIT
_ORDERS = st.sampled_from(ORDERS)


def _every_cuda_line_agrees(problem: Problem, operation: str, order: str) -> None:
    failures = [
        failure
        for kernel in registry.kernels(operation)
        if kernel.backend == "cuda"
        for failure in judge(kernel, problem, device=Emulator(order), in_short=True).failures
    ]
    assert not failures, "\n".join(failures)


@pytest.mark.exhaustive
@settings(max_examples=40)
@given(problem=conv2d_problems(_EVERY_DTYPE), order=_ORDERS)
def test_any_convolution_on_the_emulator(problem: Conv2dProblem, order: str) -> None:
    assume(problem.flops("fprop") < 2e7)
    _every_cuda_line_agrees(problem, "conv2d", order)


@pytest.mark.exhaustive
@settings(max_examples=40)
@given(problem=maxpool2d_problems(_EVERY_DTYPE), order=_ORDERS)
def test_any_pooling_on_the_emulator(problem: Pool2dProblem, order: str) -> None:
    _every_cuda_line_agrees(problem, "maxpool2d", order)
