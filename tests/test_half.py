"""16-bit elements on a CPU, beyond the battery: every bit pattern, every rounding, and torch's own ways."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pyconv
from pyconv.backends import cpu
from pyconv.problem import Problem
from pyconv.registry import Kernel

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
FORMATS = (torch.contiguous_format, torch.channels_last)

#: Products with them are exact in float32; narrowed, they round every way, overflow and become subnormal.
FACTORS = (1.0, -1.0, 1.00390625, 0.3330078125, 1.5 * 2.0**-14, 2.0**-24, 1.75 * 2.0**9, -3.0)


@pytest.fixture(params=cpu.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    in_use = cpu.isa()
    cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa(in_use)


def _every_pattern(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def _same(ours: Tensor, expected: Tensor) -> None:
    """Equal to the bit, but for the sign of zeros, which a sum from 0 on loses, and the kind of NaNs."""
    assert ours.dtype == expected.dtype
    assert torch.equal(ours.isnan(), expected.isnan())
    wrong = (ours != expected) & ~ours.isnan()
    assert not wrong.any(), (ours[wrong][:4], expected[wrong][:4])


@HALVES
def test_maxima_keep_every_bit(isa: str, dtype: torch.dtype) -> None:
    x = _every_pattern(dtype).view(1, 4, 64, 256)
    for memory_format in FORMATS:
        formed = x.to(memory_format=memory_format)
        y = pyconv.max_pool2d(formed, 1)
        number = ~x.isnan()
        assert torch.equal(y.isnan(), x.isnan())
        assert torch.equal(y[number].view(torch.int16), x[number].view(torch.int16))
        window = F.max_pool2d(formed, (2, 3), (2, 1))
        assert torch.equal(pyconv.max_pool2d(formed, (2, 3), (2, 1)).nan_to_num(9), window.nan_to_num(9))


#: More planes than a unit of work has scratch for, and planes, rows and images larger than that.
LARGE_POOLS = [((2, 401, 9, 17), (2, 2, 0)), ((1, 2, 210, 211), (3, 2, 1)), ((1, 41, 40, 43), (3, 1, 1)),
               ((1, 3, 120, 130), (5, 1, 2)), ((1, 300, 3, 301), (2, 1, 0))]  # fmt: skip


@pytest.mark.parametrize("pool", LARGE_POOLS, ids=str)
@HALVES
def test_pooling_of_many_and_of_large_planes(dtype: torch.dtype, pool: tuple[tuple[int, ...], Any]) -> None:
    x = torch.randn(pool[0], generator=torch.Generator().manual_seed(0)).to(dtype)
    for memory_format in FORMATS:
        formed = x.to(memory_format=memory_format)
        y, places = pyconv.max_pool2d(formed.requires_grad_(), *pool[1], return_indices=True)
        wide = formed.detach().float().requires_grad_()
        expected, expected_places = F.max_pool2d(wide, *pool[1], return_indices=True)
        assert torch.equal(y, expected.to(dtype))
        assert torch.equal(places, expected_places)
        assert torch.equal(pyconv.max_pool2d(x.to(memory_format=memory_format), *pool[1]), y)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        (dx,), (expected_dx,) = (
            torch.autograd.grad(y, formed, dy),
            torch.autograd.grad(expected, wide, dy.float()),
        )
        torch.testing.assert_close(dx, expected_dx.to(dtype))


@pytest.mark.parametrize("algorithm", ["direct", "depthwise", "im2col_gemm"])
@HALVES
def test_products_are_rounded_once(isa: str, algorithm: str, dtype: torch.dtype) -> None:
    x = _every_pattern(dtype).view(1, 1, 256, 256)
    for factor in FACTORS:
        w = torch.full((1, 1, 1, 1), factor).to(dtype)
        expected = (x.float() * w.float()).to(dtype)
        for memory_format in FORMATS:
            with pyconv.use(algorithm):
                formed = x.to(memory_format=memory_format).requires_grad_()
                _same(pyconv.conv2d(formed, w).detach(), expected)
                # The gradient of a strided convolution is stored element by element.
                y = pyconv.conv2d(formed, w, stride=3)
                (dx,) = torch.autograd.grad(y, formed, x[..., ::3, ::3].contiguous())
            _same(dx[..., ::3, ::3], expected[..., ::3, ::3])


#: x, w, stride, padding: rows, results and sums too long for one block of the scratch that 16 bits need.
LARGE_CONVS: list[Any] = [
    ((1, 3, 3, 150), (1600, 3, 3, 3), 1, 1),
    ((1, 1, 2, 100_003), (1, 1, 2, 3), (1, 64), (0, 1)),
    ((1, 2, 2, 100_003), (5, 2, 2, 3), (2, 1), (1, 2)),
    ((2, 700, 5, 6), (40, 700, 3, 3), 2, 1),
    ((1, 40, 18, 17), (300, 40, 3, 3), 1, 1),
]


@pytest.mark.parametrize("case", LARGE_CONVS, ids=str)
@HALVES
def test_large_convolutions_are_exact_sums_rounded_once(isa: str, dtype: torch.dtype, case: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-3, 4, shape, generator=generator).float().requires_grad_() for shape in case[:2])
    y = F.conv2d(x, w, None, *case[2:])
    dy = torch.randint(-3, 4, y.shape, generator=generator).float()
    expected = (y, *torch.autograd.grad(y, (x, w), dy))
    assert max(part.abs().max() for part in expected) < 2**24  # so that they are exact
    for memory_format, algorithm in itertools.product(FORMATS, ("direct", "im2col_gemm")):
        leaves = [t.detach().to(dtype).to(memory_format=memory_format).requires_grad_() for t in (x, w)]
        with pyconv.use(algorithm):
            y = pyconv.conv2d(*leaves, None, *case[2:])
            ours = (y, *torch.autograd.grad(y, leaves, dy.to(dtype)))
        for part, want in zip(ours, expected, strict=True):
            _same(part.detach(), want.detach().to(dtype))


@HALVES
def test_sums_are_kept_in_float32(isa: str, dtype: torch.dtype) -> None:
    """1 + 2**-12 + ... is 1 in 16 bits at every step, and more than 1 in float32."""
    x = torch.full((1, 4096, 1, 1), 2.0**-12, dtype=dtype)
    x[0, 0] = 1
    for memory_format in FORMATS:
        for algorithm in ("direct", "im2col_gemm"):
            with pyconv.use(algorithm):
                w = torch.ones(1, 4096, 1, 1, dtype=dtype).to(memory_format=memory_format)
                assert pyconv.conv2d(x.to(memory_format=memory_format), w).item() == 2.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_runs_on_our_kernels(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast the operands of a training step are 16-bit, and no pass of it is torch's."""
    ran: list[str] = []
    bind = cpu.bind

    def recording(kernel: Kernel, problem: Problem) -> Callable[..., Any]:
        ran.append(f"{kernel.id} {problem.dtype}")
        return bind(kernel, problem)

    monkeypatch.setattr(cpu, "bind", recording)
    pyconv.selection.forget()
    pyconv.functional._plans.clear()
    model = torch.nn.Sequential(
        pyconv.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), pyconv.nn.MaxPool2d(3, 2, 1)
    )
    x = torch.randn(2, 3, 10, 10, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
        loss = y.float().square().mean()
    loss.backward()
    pyconv.selection.forget()
    pyconv.functional._plans.clear()
    assert y.dtype == dtype
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    name = {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    passes = {line.split("@")[0].rpartition(".")[0] for line in ran if line.endswith(f"@cpu {name}")}
    assert passes == {
        *(f"conv2d.{pass_}" for pass_ in ("fprop", "dgrad", "wgrad", "bgrad")),
        *(f"maxpool2d.{pass_}" for pass_ in ("fprop_argmax", "dgrad")),
    }


@HALVES
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_double_backward_as_torch(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 7, 6, generator=generator).to(dtype).to(memory_format=memory_format)
    w = torch.randn(6, 2, 3, 3, generator=generator).to(dtype).to(memory_format=memory_format)
    b = torch.randn(6, generator=generator).to(dtype)
    results = []
    for conv, pool in ((pyconv.conv2d, pyconv.max_pool2d), (F.conv2d, F.max_pool2d)):
        leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, w, b)]
        y = pool(conv(*leaves, 1, 1, 1, 2), 3, 2, 1)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g * g).mean() for g in first), leaves)
        results.append((y, *first, *second))
    for place, (ours, torchs) in enumerate(zip(*results, strict=True)):
        assert ours.dtype == torchs.dtype == dtype
        error = (ours.double() - torchs.double()).norm() / torchs.double().norm()
        assert error < 8 * torch.finfo(dtype).eps, error
        for form in FORMATS if place < 4 else ():  # of second derivatives torch's formats vary with the dtype
            assert ours.is_contiguous(memory_format=form) == torchs.is_contiguous(memory_format=form)


@HALVES
@pytest.mark.parametrize("x_shape", [(0, 4, 6, 6), (2, 4, 6, 6)], ids=str)
def test_empty_batches_and_views_as_torch(x_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(x_shape).to(dtype).requires_grad_()
    w = torch.randn(5, 4, 3, 3).to(dtype).requires_grad_()
    results = []
    for conv, pool in ((pyconv.conv2d, pyconv.max_pool2d), (F.conv2d, F.max_pool2d)):
        y, places = pool(conv(x.mT, w), 2, return_indices=True)
        results.append((y, places, *torch.autograd.grad(y.sum(), (x, w))))
    for ours, torchs in zip(*results, strict=True):
        assert ours.dtype == torchs.dtype
        assert ours.shape == torchs.shape
        if ours is not results[0][1]:
            torch.testing.assert_close(ours, torchs, rtol=5e-2, atol=5e-2)
