"""Whoever listens to torch's calls hears pyconv's: subclasses, modes, grad modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import pyconv

X, W, B = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3), torch.randn(3)


class Listening(Tensor):
    """A subclass that notes every function called on it."""

    heard: list[Any] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.heard.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("place", ["input", "weight", "bias"])
def test_a_tensor_subclass_sees_the_call(place: str) -> None:
    operands = {"input": X, "weight": W, "bias": B}
    expected = pyconv.conv2d(**operands)
    for _ in range(2):  # the second call finds a plan for the same shapes
        Listening.heard.clear()
        y = pyconv.conv2d(**{**operands, place: operands[place].as_subclass(Listening)})
        assert pyconv.conv2d in Listening.heard
        assert type(y) is Listening
        assert torch.equal(y.as_subclass(Tensor), expected)


def test_a_tensor_subclass_sees_the_pooling() -> None:
    expected = pyconv.max_pool2d(X, 2)
    Listening.heard.clear()
    y = pyconv.max_pool2d(X.as_subclass(Listening), 2)
    assert pyconv.max_pool2d in Listening.heard
    assert type(y) is Listening
    assert torch.equal(y.as_subclass(Tensor), expected)


class Fake42:
    """No tensor at all, but it answers ``__torch_function__``."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 42 if func in (pyconv.conv2d, pyconv.max_pool2d) else NotImplemented


def test_duck_typed_operands_answer_for_themselves() -> None:
    assert pyconv.conv2d(Fake42(), W) == 42  # type: ignore[arg-type,comparison-overlap]
    assert pyconv.conv2d(X, W, Fake42()) == 42  # type: ignore[arg-type,comparison-overlap]
    assert pyconv.max_pool2d(Fake42(), 2) == 42  # type: ignore[arg-type]


class FunctionMode(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append(func)
        return func(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("remembered", [False, True])
def test_a_function_mode_sees_the_calls(remembered: bool) -> None:
    """Also a call whose plan is remembered from before the mode."""
    pyconv.functional._plans.clear()
    if remembered:
        pyconv.conv2d(X, W)
        pyconv.max_pool2d(X, 2)
    with FunctionMode() as mode:
        pyconv.conv2d(X, W)
        pyconv.max_pool2d(X, 2)
    assert pyconv.conv2d in mode.heard
    assert pyconv.max_pool2d in mode.heard


@pytest.mark.parametrize("remembered", [False, True])
def test_a_dispatch_mode_sees_the_operators(remembered: bool) -> None:
    pyconv.functional._plans.clear()
    if remembered:
        pyconv.conv2d(X, W, B)
        pyconv.max_pool2d(X, 2)
    leaves = [t.clone().requires_grad_() for t in (X, W, B)]
    with DispatchMode() as mode:
        pyconv.max_pool2d(pyconv.conv2d(*leaves), 2).sum().backward()
    for name in ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "conv2d_bgrad", "max_pool2d"):
        assert any(heard.startswith(f"pyconv.{name}") for heard in mode.heard), (name, mode.heard)
    assert all(leaf.grad is not None for leaf in leaves)


def test_a_dispatch_mode_around_the_backward_alone() -> None:
    leaves = [t.clone().requires_grad_() for t in (X, W, B)]
    y = pyconv.conv2d(*leaves)
    expected = torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True)
    with DispatchMode() as mode:
        grads = torch.autograd.grad(y, leaves, torch.ones_like(y))
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))
    assert any("conv" in heard for heard in mode.heard)


def test_grad_modes() -> None:
    leaf, weight = X.clone().requires_grad_(), W.clone().requires_grad_()
    with torch.no_grad():
        assert not pyconv.conv2d(leaf, weight).requires_grad
        assert not pyconv.max_pool2d(leaf, 2).requires_grad
        with torch.enable_grad():
            assert pyconv.conv2d(leaf, weight).requires_grad
    with torch.inference_mode():
        y = pyconv.conv2d(leaf, weight)
        p = pyconv.max_pool2d(leaf, 2, return_indices=True)
        assert y.is_inference()
        assert all(part.is_inference() for part in p)
        assert not y.requires_grad
        made_inside = X * 2
    # An inference tensor outside: usable where nothing is saved, refused by torch where it would be.
    assert torch.equal(pyconv.conv2d(made_inside, W), pyconv.conv2d(X * 2, W))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        pyconv.conv2d(made_inside, weight)
    # The plan remembered in inference mode still records outside.
    assert pyconv.conv2d(leaf, weight).requires_grad
    assert pyconv.max_pool2d(leaf, 2).requires_grad


def test_parameters_and_requires_grad_share_a_plan() -> None:
    parameter = torch.nn.Parameter(W)
    y = pyconv.conv2d(X, parameter)
    assert y.requires_grad
    assert torch.equal(pyconv.conv2d(X, W), y.detach())
