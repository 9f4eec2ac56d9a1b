"""Derivatives through the CUDA kernels on the emulator: what autograd asks of all passes together.

``tests/test_gpu.py`` does the same on a device. ``tests/test_autograd.py`` does much more, with the CPU's
kernels: the autograd above them is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.gradcheck import gradcheck, gradgradcheck

import pyconv
from pyconv import selection
from pyconv.backends import cuda, numba_emulator
from pyconv.problem import Problem, parse_problem
from pyconv.registry import Kernel

FORMATS = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)


@pytest.fixture
def on_the_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """CPU tensors go through the CUDA kernels; yields the passes, ``operation.pass``, that did."""
    launched: set[str] = set()
    bind = cuda.bind

    def recorded(kernel: Kernel, problem: Problem) -> Callable[..., Any]:
        launched.add(f"{kernel.operation}.{kernel.pass_}")
        return bind(kernel, problem)

    monkeypatch.setattr(cuda, "bind", recorded)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    selection.forget()  # so that every kernel is bound anew
    with cuda.emulated(checked=False), pyconv.use("cuda"):
        yield launched


def _leaf(*shape: int, seed: int, memory_format: Any = torch.contiguous_format) -> Tensor:
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (values.to(memory_format=memory_format) if len(shape) == 4 else values).requires_grad_()


@FORMATS
@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d_gradcheck(on_the_emulator: set[str], groups: int, memory_format: Any) -> None:
    x = _leaf(1, 2, 4, 3, seed=1, memory_format=memory_format)
    w = _leaf(2, 2 // groups, 3, 2, seed=2, memory_format=memory_format)
    b = _leaf(2, seed=3)

    def conv2d(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return pyconv.conv2d(x, w, b, stride=(2, 1), padding=(1, 0), groups=groups)

    assert gradcheck(conv2d, (x, w, b), check_forward_ad=True)
    assert gradgradcheck(conv2d, (x, w, b))
    assert on_the_emulator == {"conv2d.fprop", "conv2d.dgrad", "conv2d.wgrad", "conv2d.bgrad"}


@FORMATS
@pytest.mark.parametrize("window", [(3, 3), (16, 17)], ids=["argmax of one byte", "argmax of four"])
def test_max_pool2d_gradcheck(on_the_emulator: set[str], window: tuple[int, int], memory_format: Any) -> None:
    x = _leaf(1, 2, window[0] + 2, window[1] + 1, seed=4, memory_format=memory_format)

    def max_pool2d(x: Tensor) -> Tensor:
        return pyconv.max_pool2d(x, window, 2, 1, ceil_mode=True)

    is_large = window[0] * window[1] > 255
    assert gradcheck(max_pool2d, (x,), check_forward_ad=True, fast_mode=is_large)
    assert gradgradcheck(max_pool2d, (x,), fast_mode=is_large)
    forward, end = ("fprop_argmax", "") if is_large else ("fprop_tap", "_tap")
    assert on_the_emulator == {f"maxpool2d.{pass_}" for pass_ in (forward, f"dgrad{end}", f"gather{end}")}


class _Tiny(nn.Module):
    """LeNet's layers, on images of 8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = pyconv.nn.Conv2d(1, 4, 5, padding=2)
        self.conv2 = pyconv.nn.Conv2d(4, 6, 3)
        self.pool = pyconv.nn.MaxPool2d(2)
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x).relu())
        return self.linear(self.pool(self.conv2(x).relu()).flatten(1))


def _trained(steps: int) -> list[Tensor]:
    torch.manual_seed(0)
    model = _Tiny()
    images, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 2, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_training_is_that_of_the_cpu_kernels(on_the_emulator: set[str]) -> None:
    got = _trained(steps=3)
    with pyconv.use("cpu"):
        want = _trained(steps=3)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    passes = {f"conv2d.{pass_}" for pass_ in ("fprop", "dgrad", "wgrad", "bgrad")}
    assert on_the_emulator == passes | {"maxpool2d.fprop_tap", "maxpool2d.dgrad_tap"}


def test_training_on_numba_is_that_of_the_cpu_kernels() -> None:
    """All passes that a training needs are there in Numba too."""
    if reason := numba_emulator.unavailable():
        pytest.skip(reason)
    selection.forget()
    with cuda.emulated(), pyconv.use("numba"):
        problem = parse_problem("conv2d n3c4h4w4 k6r3s3 f32 nchw")
        pool = parse_problem("maxpool2d n3c4h8w8 r2s2 st2 f32 nchw")
        chosen = [selection.select(problem, pass_) for pass_ in ("fprop", "dgrad", "wgrad", "bgrad")]
        chosen += [selection.select(pool, pass_) for pass_ in ("fprop_argmax", "dgrad", "gather")]
        assert {kernel.backend for kernel in chosen} == {"numba"}
        got = _trained(steps=2)
    with pyconv.use("cpu"):
        want = _trained(steps=2)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
