"""Derivatives of every order, in both modes, and what autograd asks of an operator besides."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradcheck, gradgradcheck

import pyconv
from pyconv.plan import Plan

F64 = torch.float64


def _leaf(*shape: int, seed: int = 0, memory_format: Any = torch.contiguous_format) -> Tensor:
    values = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return (values.to(memory_format=memory_format) if len(shape) == 4 else values).requires_grad_()


def _operands(x: tuple[int, ...], w: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    return _leaf(*x, seed=1), _leaf(*w, seed=2), _leaf(w[0], seed=3)


# Tiny, so that gradcheck may take every element: x shape, w shape, options.
CONVS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 2, 3, 4), (2, 2, 2, 3), {}),
    "stride, padding": ((1, 2, 4, 3), (2, 2, 3, 2), {"stride": (2, 1), "padding": (1, 0)}),
    "dilation": ((1, 1, 4, 4), (2, 1, 2, 2), {"dilation": (2, 3)}),
    "groups": ((1, 4, 3, 3), (2, 2, 2, 2), {"groups": 2}),
    "depthwise": ((2, 3, 3, 3), (3, 1, 2, 2), {"groups": 3, "padding": 1, "stride": 2}),
    "per side": ((1, 2, 3, 3), (1, 2, 2, 2), {"padding": (1, 0, 0, 2)}),
    "same": ((1, 1, 3, 3), (2, 1, 2, 3), {"padding": "same"}),
    "valid": ((1, 1, 3, 3), (2, 1, 2, 3), {"padding": "valid"}),
    "stride beyond the filter": ((1, 1, 5, 5), (2, 1, 1, 2), {"stride": 3}),
    "unbatched": ((2, 3, 3), (2, 2, 2, 2), {"padding": 1}),
    "1x1": ((2, 2, 2, 2), (3, 2, 1, 1), {}),
}
POOLS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 2, 4, 4), {"kernel_size": 2}),
    "overlapping": ((1, 2, 5, 4), {"kernel_size": 3, "stride": 1, "padding": 1}),
    "ceil, dilation": ((1, 1, 6, 5), {"kernel_size": 2, "stride": 2, "dilation": (2, 1), "ceil_mode": True}),
    "per side": ((1, 1, 5, 5), {"kernel_size": 3, "stride": 2, "padding": (1, 0, 0, 1)}),
    "unbatched": ((2, 4, 4), {"kernel_size": 2}),
}
EVERYTHING = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}


@pytest.mark.parametrize("name", CONVS)
def test_conv2d_gradcheck(name: str) -> None:
    x, w, options = CONVS[name]
    x, w, b = _operands(x, w)

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return pyconv.conv2d(x, w, b, **options)

    assert gradcheck(function, (x, w, b), **EVERYTHING)
    assert gradgradcheck(function, (x, w, b), check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("which", list(itertools.product([False, True], repeat=3))[1:], ids=str)
def test_conv2d_gradcheck_of_each_subset(which: tuple[bool, bool, bool]) -> None:
    operands = [
        t.detach().requires_grad_(w)
        for t, w in zip(_operands((1, 2, 3, 3), (2, 2, 2, 2)), which, strict=True)
    ]
    for bias in (True, False) if not which[2] else (True,):
        leaves = tuple(operands if bias else operands[:2])
        if any(leaf.requires_grad for leaf in leaves):
            assert gradcheck(pyconv.conv2d, leaves, **EVERYTHING)
            assert gradgradcheck(pyconv.conv2d, leaves, check_fwd_over_rev=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", POOLS)
def test_max_pool2d_gradcheck(name: str, memory_format: Any) -> None:
    shape, options = POOLS[name]
    # Distinct values a tenth apart: a finite difference must not change the winner.
    x = (
        torch.randperm(torch.Size(shape).numel(), generator=torch.Generator().manual_seed(4))
        .to(F64)
        .view(shape)
        / 10
    )
    if len(shape) == 4:
        x = x.to(memory_format=memory_format)
    x.requires_grad_()
    assert gradcheck(lambda x: pyconv.max_pool2d(x, **options), x, **EVERYTHING)
    assert gradcheck(lambda x: pyconv.max_pool2d(x, **options, return_indices=True)[0], x, **EVERYTHING)
    assert gradgradcheck(lambda x: pyconv.max_pool2d(x.sin(), **options), x, check_fwd_over_rev=True)


def test_channels_last_gradcheck() -> None:
    x = _leaf(2, 2, 3, 3, memory_format=torch.channels_last)
    w = _leaf(2, 2, 2, 2, memory_format=torch.channels_last)
    assert gradcheck(lambda x, w: pyconv.conv2d(x, w, None, 1, 1), (x, w), **EVERYTHING)
    assert gradgradcheck(lambda x, w: pyconv.conv2d(x, w, None, 1, 1), (x, w), check_fwd_over_rev=True)


def test_third_derivative() -> None:
    def nested(function: Callable[..., Tensor]) -> list[Tensor]:
        leaves = _operands((1, 2, 4, 4), (2, 2, 2, 2))
        value = function(*leaves, 1, 1).tanh().square().sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum((g.square().sum() for g in grads), start=torch.zeros((), dtype=F64))
        return [value, *grads]

    torch.testing.assert_close(nested(pyconv.conv2d), nested(F.conv2d), rtol=1e-9, atol=1e-9)


def test_double_backward_through_the_bias() -> None:
    x, w, b = _operands((2, 2, 3, 3), (3, 2, 2, 2))
    results = []
    for function in (pyconv.conv2d, F.conv2d):
        y = function(x, w, b)
        (db,) = torch.autograd.grad(y.pow(3).sum(), b, create_graph=True)
        results.append(torch.autograd.grad(db.square().sum(), (x, w, b)))
    torch.testing.assert_close(*results)
    # db is linear in dy, and does not depend on x or w at all
    dy = torch.randn_like(y).requires_grad_()
    (db,) = torch.autograd.grad(pyconv.conv2d(x, w, b), b, dy, create_graph=True)
    (ddy,) = torch.autograd.grad(db, dy, torch.arange(3.0, dtype=F64))
    assert torch.equal(ddy, torch.arange(3.0, dtype=F64).view(1, 3, 1, 1).expand_as(dy))


# ---- Only what is needed ----


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes that plans launch, in order."""
    passes: list[str] = []
    launch = Plan.launch

    def spy(self: Plan[Any], pass_: str, *tensors: Any) -> Any:
        passes.append(pass_)
        return launch(self, pass_, *tensors)

    monkeypatch.setattr(Plan, "launch", spy)
    return passes


@pytest.mark.parametrize("which", itertools.product([False, True], repeat=3), ids=str)
def test_gradients_nobody_needs_are_not_computed(which: tuple[bool, ...], launched: list[str]) -> None:
    pyconv.functional._plans.clear()
    leaves = [
        t.detach().requires_grad_(w)
        for t, w in zip(_operands((1, 2, 4, 4), (2, 2, 3, 3)), which, strict=True)
    ]
    y = pyconv.conv2d(*leaves)
    assert launched == ["fprop"]
    assert y.requires_grad == any(which)
    launched.clear()
    if any(which):
        y.sum().backward()
    expected = [pass_ for pass_, needed in zip(("dgrad", "wgrad", "bgrad"), which, strict=True) if needed]
    assert launched == expected
    assert [leaf.grad is not None for leaf in leaves] == list(which)


def test_pooling_without_a_gradient_computes_no_argmax(launched: list[str]) -> None:
    x = torch.randn(1, 2, 4, 4)
    for _ in range(2):
        pyconv.max_pool2d(x, 2)
    with torch.no_grad():
        pyconv.max_pool2d(x.clone().requires_grad_(), 2)
    assert launched == ["fprop"] * 3
    launched.clear()
    pyconv.max_pool2d(x.clone().requires_grad_(), 2).sum().backward()
    assert launched == ["fprop_argmax", "dgrad"]


@pytest.mark.parametrize("which", list(itertools.product([False, True], repeat=3)), ids=str)
def test_only_needed_tensors_are_saved(which: tuple[bool, bool, bool]) -> None:
    operands = [
        t.detach().requires_grad_(w)
        for t, w in zip(_operands((1, 2, 4, 4), (2, 2, 3, 3)), which, strict=True)
    ]
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pyconv.conv2d(*operands)
    # dx needs w, dw needs x, db needs neither
    expected = [operands[0]] * which[1] + [operands[1]] * which[0]
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in expected}
    assert len(saved) == len(expected)


def test_pooling_saves_its_argmax_alone() -> None:
    saved: list[Tensor] = []
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        pyconv.max_pool2d(x, 2)
    assert [(t.dtype, tuple(t.shape)) for t in saved] == [(torch.int32, (1, 2, 2, 2))]


def test_saved_tensors_hooks_may_move_the_data() -> None:
    leaves = _operands((1, 2, 4, 4), (2, 2, 3, 3))
    expected = torch.autograd.grad(pyconv.conv2d(*leaves).sin().sum(), leaves)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy):
        y = pyconv.max_pool2d(pyconv.conv2d(*leaves).sin(), 1)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), leaves), expected)


# ---- Life of a graph ----


def test_backward_twice() -> None:
    leaves = _operands((1, 2, 4, 4), (2, 2, 3, 3))
    value = pyconv.max_pool2d(pyconv.conv2d(*leaves), 2).sum()
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    second = torch.autograd.grad(value, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("place", [0, 1])
def test_changing_a_saved_input_in_place_is_noticed(place: int) -> None:
    operands = [
        t.detach().requires_grad_(i != place) for i, t in enumerate(_operands((1, 2, 4, 4), (2, 2, 3, 3)))
    ]
    y = pyconv.conv2d(*operands)
    operands[place].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_changing_the_output_in_place_is_fine() -> None:
    leaves = _operands((1, 2, 4, 4), (2, 2, 3, 3))
    results = [
        torch.autograd.grad(pool(conv(*leaves).relu_(), 2).mul_(2).sum(), leaves)
        for conv, pool in ((pyconv.conv2d, pyconv.max_pool2d), (F.conv2d, F.max_pool2d))
    ]
    torch.testing.assert_close(*results)


def test_hooks_see_and_may_change_gradients() -> None:
    x, w, b = _operands((1, 2, 4, 4), (2, 2, 3, 3))
    plain = torch.autograd.grad(F.conv2d(x, w, b).sum(), (x, w, b))
    y = pyconv.conv2d(x, w, b)
    seen: list[str] = []
    y.register_hook(lambda g: seen.append("y") or g * 2)
    w.register_hook(lambda g: seen.append("w") or g * 3)
    assert y.grad_fn is not None
    y.grad_fn.register_hook(lambda inputs, outputs: seen.append("node"))
    y.sum().backward()
    torch.testing.assert_close([x.grad, w.grad, b.grad], [plain[0] * 2, plain[1] * 6, plain[2] * 2])
    assert sorted(seen) == ["node", "w", "y"]


def test_graph_nodes_are_named_after_the_passes() -> None:
    x, w, b = _operands((1, 2, 4, 4), (2, 2, 3, 3))
    y = pyconv.conv2d(x, w, b)
    assert "Conv2dFprop" in type(y.grad_fn).__name__
    (dw,) = torch.autograd.grad(y.square().sum(), w, create_graph=True)
    assert "Conv2dWgrad" in type(dw.grad_fn).__name__
    assert "MaxPool" in type(pyconv.max_pool2d(x, 2).grad_fn).__name__


@pytest.mark.parametrize("leaf_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("other_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_accumulated_gradients_have_the_leafs_format(leaf_format: Any, other_format: Any) -> None:
    x, w = _leaf(2, 3, 5, 5, memory_format=leaf_format), _leaf(4, 3, 2, 2, memory_format=other_format)
    for _ in range(2):
        pyconv.max_pool2d(pyconv.conv2d(x, w), 2).sum().backward()
    assert x.grad is not None
    assert w.grad is not None
    assert x.grad.stride() == x.stride()
    assert w.grad.stride() == w.stride()


def test_anomaly_mode_names_the_forward() -> None:
    x, w, _ = _operands((1, 2, 4, 4), (2, 2, 3, 3))
    with torch.autograd.set_detect_anomaly(True):
        pyconv.conv2d(x, w).sum().backward()  # sound: passes
        y = pyconv.conv2d(x, w) * float("nan")
        with (
            pytest.warns(UserWarning, match="Error detected in .*Backward"),
            pytest.raises(RuntimeError, match="returned nan values in its"),
        ):
            y.sum().backward()


def test_undefined_gradients() -> None:
    x, w, b = _operands((1, 2, 4, 4), (2, 2, 3, 3))
    y = pyconv.conv2d(x, w, b)
    z = torch.zeros_like(y, requires_grad=True)
    # The double backward of a path where y takes no part: torch hands the node an undefined gradient.
    grads = torch.autograd.grad((y * 0 + z).sum(), (x, z), allow_unused=True, create_graph=True)
    assert torch.equal(grads[0], torch.zeros_like(x))
    y, places = pyconv.max_pool2d(x, 2, return_indices=True)
    assert torch.autograd.grad(y.sum(), x, allow_unused=True)[0] is not None
    assert not places.requires_grad


def test_forward_mode_with_tangents_on_some_operands() -> None:
    x, w, b = (t.detach() for t in _operands((2, 2, 4, 4), (2, 2, 3, 3)))
    tangents = [t.cos() for t in (x, w, b)]
    for which in list(itertools.product([False, True], repeat=3))[1:]:
        results = []
        for function in (pyconv.conv2d, F.conv2d):
            with forward_ad.dual_level():
                duals = [
                    forward_ad.make_dual(p, t) if dual else p
                    for p, t, dual in zip((x, w, b), tangents, which, strict=True)
                ]
                primal, tangent = forward_ad.unpack_dual(function(*duals, 1, 1))
                assert tangent is not None
                results.append((primal.clone(), tangent.clone()))
        torch.testing.assert_close(*results)


def test_a_tangent_through_no_grad_and_through_pooling() -> None:
    x = torch.randn(1, 2, 4, 4, dtype=F64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x.cos())
        with torch.no_grad():  # forward mode does not ask for grad mode
            ours = forward_ad.unpack_dual(pyconv.max_pool2d(dual, 2)).tangent
            torchs = forward_ad.unpack_dual(F.max_pool2d(dual, 2)).tangent
        assert ours is not None
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize("kernels", [(), ("aten",)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_batched_gradients(memory_format: Any, kernels: tuple[str, ...]) -> None:
    """``is_grads_batched`` runs the backward once on batched tensors, with torch's older vmap."""
    x, w = _leaf(2, 2, 4, 4, memory_format=memory_format), _leaf(3, 2, 2, 2, seed=1)
    with pyconv.use(*kernels):
        y = pyconv.max_pool2d(pyconv.conv2d(x, w), 2, 1)
    dys = torch.randn(3, *y.shape, dtype=F64)
    batched = torch.autograd.grad(y, (x, w), dys, is_grads_batched=True, retain_graph=True)
    for i, dy in enumerate(dys):
        single = torch.autograd.grad(y, (x, w), dy, retain_graph=True)
        torch.testing.assert_close([g[i] for g in batched], list(single))
