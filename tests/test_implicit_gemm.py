"""Implicit GEMM: what small problems do not show of its lines.

``tests/test_battery_emulator.py`` has the lines themselves, and small problems are the smallest tile's. Here
every tile is forced, ReLU is asked for, which no operator does yet, and so is a split longer than a chain.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from pyconv.kernels.conv2d import (
    im2col_gemm_launch,
    implicit_gemm_launch,
    implicit_gemm_plan,
    implicit_gemm_tensor_launch,
)

from pyconv import backends, registry
from pyconv.backends import cuda, emulator
from pyconv.problem import Conv2dProblem, parse_problem
from pyconv.registry import Kernel
from tests.battery import judge
from tests.devices import Emulator

needs_emulator = pytest.mark.skipif(
    emulator.unavailable() is not None, reason=f"no emulator: {emulator.unavailable()}"
)


def _line(pass_: str, name: str) -> Kernel:
    return registry.find(f"conv2d.{pass_}.{name}@cuda")


def _judge(pass_: str, name: str, text: str, order: str = "forward") -> None:
    verdict = judge(_line(pass_, name), parse_problem(f"{text} nhwc"), device=Emulator(order), in_short=True)
    assert not verdict.failures, "\n".join(verdict.failures)
    assert verdict.ran


def _only_tensor_shape(monkeypatch: pytest.MonkeyPatch, name: str, dtype: str, place: int) -> None:
    precision = implicit_gemm_tensor_launch.THREE if "3x" in name else implicit_gemm_tensor_launch.OWN
    monkeypatch.setitem(precision.shapes, dtype, precision.shapes[dtype][place : place + 1])


# ---- Tiles -----------------------------------------------------------------------------------------------


@needs_emulator
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
def test_every_tile_of_16_bits(monkeypatch: pytest.MonkeyPatch, pass_: str, place: int) -> None:
    """Products one more than the tile; the smallest tile is the battery's."""
    _only_tensor_shape(monkeypatch, "implicit_gemm_tensor", "f16", place)
    sizes = "n1c136h13w38 k16" if pass_ == "dgrad" else "n1c16h13w38 k136"
    _judge(pass_, "implicit_gemm_tensor", f"conv2d {sizes}r3s3 st2 pd1 f16", "reverse")


@needs_emulator
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "pass_", "place"),
    [
        ("implicit_gemm_tf32", "fprop", 0),
        ("implicit_gemm_tf32", "dgrad", 0),
        ("implicit_gemm_3xtf32", "fprop", 0),
        ("implicit_gemm_3xtf32", "wgrad", 1),
    ],
)
def test_large_tiles_of_float(monkeypatch: pytest.MonkeyPatch, name: str, pass_: str, place: int) -> None:
    _only_tensor_shape(monkeypatch, name, "f32", place)
    _judge(pass_, name, "conv2d n1c68h5w13 k132r1s1 st1 pd0 f32", "reverse")


@needs_emulator
@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("place", range(2))
def test_every_tile_of_the_ordinary_units(monkeypatch: pytest.MonkeyPatch, pass_: str, place: int) -> None:
    shapes = implicit_gemm_launch.SHAPES
    monkeypatch.setitem(shapes, "f32", shapes["f32"][place : place + 1])
    _judge(pass_, "implicit_gemm", "conv2d n1c68h5w13 k132r1s1 st1 pd0 f32", "random")


@needs_emulator
@pytest.mark.parametrize("name", ["implicit_gemm", "implicit_gemm_3xtf32"])
def test_no_bit_depends_on_the_tile(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """So none depends on the batch, which decides on the tile. The sums are several chains."""
    problem = parse_problem("conv2d n1c230h3w4 k6r3s3 st1 pd1 f32 nhwc")
    x, w = torch.randn(problem.x_shape), torch.randn(problem.w_shape)
    results = []
    for place in range(3):
        with monkeypatch.context() as patch, cuda.emulated(checked=False):
            if name == "implicit_gemm":
                shapes = implicit_gemm_launch.SHAPES
                patch.setitem(shapes, "f32", shapes["f32"][place : place + 1])
            else:
                _only_tensor_shape(patch, name, "f32", place)
            results.append(backends.bind(_line("fprop", name), problem)(x, w, None))
    assert all(torch.equal(result, results[0]) for result in results)


@needs_emulator
@pytest.mark.parametrize("name", ["implicit_gemm", "implicit_gemm_3xtf32"])
def test_a_split_longer_than_a_chain(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """dw then holds parts of its sums, as it does where many tiles leave no splits."""
    monkeypatch.setattr(im2col_gemm_launch, "BLOCKS", 1)
    _judge("wgrad", name, "conv2d n1c4h48w47 k5r1s1 st1 pd0 f32")


# ---- ReLU ------------------------------------------------------------------------------------------------


@needs_emulator
@pytest.mark.parametrize(("name", "dtype"), [("implicit_gemm", "f32"), ("implicit_gemm_tensor", "bf16")])
def test_relu_in_the_epilogue(name: str, dtype: str) -> None:
    """Of the whole sum, chains and bias included. A NaN stays one."""
    problem = parse_problem(f"conv2d n1c40h4w5 k9r3s3 st1 pd1 {dtype} nhwc")
    line = _line("fprop", name)
    relu = dataclasses.replace(line, program=partial(line.program, activation="kRelu"))  # type: ignore[arg-type]
    torch.manual_seed(0)
    x = torch.randn(problem.x_shape).to(problem.torch_dtype)
    w = torch.randn(problem.w_shape).to(problem.torch_dtype)
    bias = torch.randn(problem.k).to(problem.torch_dtype)
    bias[3] = torch.nan
    with cuda.emulated():
        plain, got = (backends.bind(each, problem)(x, w, bias) for each in (line, relu))
    assert (plain < 0).any()
    assert torch.equal(got.nan_to_num(-1), torch.relu(plain).nan_to_num(-1))
    assert got[:, 3].isnan().all()


# ---- Three products of tf32 ------------------------------------------------------------------------------


@needs_emulator
def test_three_products_have_the_bits_of_float() -> None:
    """Numbers of 21 fraction bits, which one tf32 does not hold, times powers of two: exact in float."""
    problem = parse_problem("conv2d n1c4h6w6 k4r3s3 st1 pd0 f32 nhwc")
    torch.manual_seed(0)
    fine = (torch.rand(4, 4, 6, 6)[:1] * 2**20).round() / 2**20
    powers = torch.zeros(problem.y_shape)
    powers[0, 0, 1, 2] = 0.5  # one term a sum
    line = _line("wgrad", "implicit_gemm_3xtf32")
    line = dataclasses.replace(line, restriction=registry.every_problem)
    with cuda.emulated(checked=False):
        dw = backends.bind(line, problem)(fine, powers)
    want = torch.nn.grad.conv2d_weight(fine.double(), problem.w_shape, powers.double())
    assert torch.equal(dw.double(), want)


# ---- The plan --------------------------------------------------------------------------------------------


def test_a_divisor_divides() -> None:
    numbers = np.unique(
        np.concatenate([2 ** np.arange(31) + step for step in (-1, 0, 1)] + [np.arange(1, 99)])
    )
    numbers = numbers[(numbers > 0) & (numbers < 2**31)].astype(np.uint64)
    for number in numbers:
        by = implicit_gemm_plan.divisor(int(number))
        assert 0 < by.multiplier < 2**32
        high = numbers * np.uint64(by.multiplier) >> np.uint64(32)
        quotients = (high + numbers & np.uint64(2**32 - 1)) >> np.uint64(by.shift)
        assert (quotients == numbers // number).all(), number


@pytest.mark.parametrize(
    ("stride", "dilation", "taps"), [(1, 1, 3), (2, 1, 3), (3, 2, 4), (4, 6, 5), (9, 3, 2)]
)
def test_the_classes_of_dgrad_are_the_rows_that_reach(stride: int, dilation: int, taps: int) -> None:
    """Every row of dx is in one class, and the taps of its class are those that divide exactly."""
    outputs, pad = 13, 2
    axis = implicit_gemm_plan.dgrad_axis(7, outputs, taps, pad, stride, dilation)
    seen = {}
    for each in axis.classes:
        for i in range(each.out_count):
            row = each.out_origin + i * each.out_step
            seen[row] = {
                (each.tap_origin + t * each.tap_step, each.in_origin + i * axis.in_step + t * axis.tap_step)
                for t in range(each.taps)
            }
    assert sorted(seen) == list(range(outputs))
    for row, reached in seen.items():
        wanted = {
            (tap, (row + pad - tap * dilation) // stride)
            for tap in range(taps)
            if (row + pad - tap * dilation) % stride == 0
        }
        assert reached == wanted
    assert [each.taps for each in axis.classes] == sorted((each.taps for each in axis.classes), reverse=True)


def test_a_stride_with_many_residues_takes_several_launches() -> None:
    problem = parse_problem("conv2d n1c8h21w19 k16r5s4 st9x3 pd2 f16 nhwc")
    assert isinstance(problem, Conv2dProblem)
    launches = implicit_gemm_plan.gathers(problem, "dgrad")
    assert [len(each.rows.classes) for each in launches] == [8, 1]


def test_what_does_not_fit_an_int_is_refused() -> None:
    line = _line("fprop", "implicit_gemm_tensor")
    wide = parse_problem("conv2d n40000c8h300w300 k8r3s3 st1 pd1 f16 nhwc")
    assert line.supports(wide) == "n*h*w is 3600000000 (takes fewer than 2^31)"
    few = parse_problem("conv2d n1c1h9w9 k8r3s3 f32 nhwc")
    assert "9 terms" in str(_line("fprop", "implicit_gemm_3xtf32").supports(few))
