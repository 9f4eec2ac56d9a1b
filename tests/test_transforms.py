"""torch.func on the operators: vmap, grad, vjp, jvp, jacobians, and their nestings, against torch's own.

Compilation, export, tracing, fakes and autocast are in ``test_compile.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.testing import assert_close

import pyconv
import pyconv.nn
from pyconv import ops

Op = Callable[..., Tensor]
F64 = torch.float64
_generator = torch.Generator().manual_seed(0)


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=_generator)


X, W, B = _randn(2, 4, 5, 5), _randn(6, 2, 3, 3), _randn(6)
XS, WS, BS = _randn(3, 2, 4, 5, 5), _randn(3, 6, 2, 3, 3), _randn(3, 6)


def _ours(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return pyconv.conv2d(x, w, b, 2, 1, 1, 2)


def _torchs(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return F.conv2d(x, w, b, 2, 1, 1, 2)


def _our_pool(x: Tensor) -> Tensor:
    return pyconv.max_pool2d(x, 3, 2, 1)


def _torchs_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, 1)


def _agree(transform: Callable[[Op, Op], Any], **tolerance: float) -> None:
    """``transform(conv, pool)`` gives the same with ours as with torch's."""
    assert_close(transform(_ours, _our_pool), transform(_torchs, _torchs_pool), **tolerance)


def _loss(conv: Op, pool: Op) -> Callable[..., Tensor]:
    return lambda x, w, b: pool(conv(x, w, b).sin()).square().sum()


# ---- vmap ----


@pytest.mark.parametrize("which", list(itertools.product([True, False], repeat=3))[:-1], ids=str)
def test_vmap_of_each_subset(which: tuple[bool, bool, bool]) -> None:
    operands = [
        mapped if w else single for mapped, single, w in zip((XS, WS, BS), (X, W, B), which, strict=True)
    ]
    dims = tuple(0 if w else None for w in which)
    _agree(lambda conv, pool: vmap(conv, dims)(*operands))


@pytest.mark.parametrize("x_dim", [None, 1, -1, 4, -5])
@pytest.mark.parametrize("w_dim", [None, 2, -1, -4])
@pytest.mark.parametrize("b_dim", [None, 1, -1])
def test_vmap_over_any_dimension(x_dim: int | None, w_dim: int | None, b_dim: int | None) -> None:
    if x_dim is None and w_dim is None and b_dim is None:
        pytest.skip("vmap needs a mapped operand")
    operands = [
        single if dim is None else mapped.movedim(0, dim).contiguous()
        for mapped, single, dim in zip((XS, WS, BS), (X, W, B), (x_dim, w_dim, b_dim), strict=True)
    ]
    for out_dim in (0, 2, -1):
        _agree(lambda conv, pool, o=out_dim: vmap(conv, (x_dim, w_dim, b_dim), o)(*operands))  # type: ignore[misc]


@pytest.mark.parametrize("dims", [(0, 0), (1, 2), (-1, -1), (3, 1)], ids=str)
def test_vmap_of_pooling(dims: tuple[int, int]) -> None:
    mapped = XS.movedim(0, dims[0]).contiguous()
    _agree(lambda conv, pool: vmap(pool, dims[0], dims[1])(mapped))
    ours = vmap(lambda x: pyconv.max_pool2d(x, 2, return_indices=True), dims[0])(mapped)
    torchs = vmap(lambda x: F.max_pool2d(x, 2, return_indices=True), dims[0])(mapped)
    assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))


def test_vmap_without_bias_unbatched_and_chunked() -> None:
    _agree(lambda conv, pool: vmap(lambda x, w: conv(x, w, None))(XS, WS))
    _agree(lambda conv, pool: vmap(lambda x: pool(conv(x, W, B)))(X))  # each sample unbatched
    _agree(lambda conv, pool: vmap(lambda x: conv(x, W, B), chunk_size=2)(XS))


def test_nested_vmap() -> None:
    xs, ws = _randn(2, 3, 2, 4, 5, 5), _randn(2, 6, 2, 3, 3)
    _agree(lambda conv, pool: vmap(vmap(lambda x: pool(conv(x, W, B))))(xs))
    _agree(lambda conv, pool: vmap(lambda x, w: vmap(lambda x: conv(x, w, B))(x))(xs, ws))
    _agree(lambda conv, pool: vmap(vmap(conv, (0, None, None)), (None, 0, None))(xs[0], ws, B))
    _agree(lambda conv, pool: vmap(vmap(conv, (None, 0, None)), (0, None, None))(xs[0], ws, B))
    _agree(lambda conv, pool: vmap(vmap(vmap(lambda x: conv(x, W, B))))(xs))


def test_vmap_keeps_channels_last_right() -> None:
    xs, w = XS.contiguous(memory_format=torch.contiguous_format), W.to(memory_format=torch.channels_last)
    _agree(lambda conv, pool: vmap(lambda x: pool(conv(x, w, B)))(xs))
    last = X.to(memory_format=torch.channels_last)
    _agree(lambda conv, pool: vmap(lambda w: conv(last, w, B))(WS))


def test_vmap_over_nothing_mapped_of_size_one() -> None:
    _agree(lambda conv, pool: vmap(conv, (0, 0, None))(XS[:1], WS[:1], B))
    _agree(lambda conv, pool: vmap(lambda x: pool(conv(x, W, B)))(XS[:, :0]))  # empty batches


# ---- grad, jvp, jacobians ----

TRANSFORMS: dict[str, Callable[[Op, Op], Any]] = {
    "grad": lambda c, p: grad(_loss(c, p), (0, 1, 2))(X, W, B),
    "vjp": lambda c, p: vjp(c, X, W, B)[1](_torchs(X, W, B).cos()),
    "jvp": lambda c, p: jvp(_loss(c, p), (X, W, B), (X.cos(), W.cos(), B.cos())),
    "jvp in x only": lambda c, p: jvp(lambda x: c(x, W, B), (X,), (X.cos(),)),
    "jvp in w only": lambda c, p: jvp(lambda w: c(X, w, B), (W,), (W.cos(),)),
    "jvp in b only": lambda c, p: jvp(lambda b: c(X, W, b), (B,), (B.cos(),)),
    "linearize": lambda c, p: linearize(_loss(c, p), X, W, B)[1](X.cos(), W.cos(), B.cos()),
    "jacrev": lambda c, p: jacrev(c, (0, 1, 2))(X, W, B),
    "jacfwd": lambda c, p: jacfwd(c, (0, 1, 2))(X, W, B),
    "jacrev of the pool": lambda c, p: jacrev(p)(X[:1]),
    "jacfwd of the pool": lambda c, p: jacfwd(p)(X[:1]),
    "hessian in w": lambda c, p: hessian(lambda w: _loss(c, p)(X, w, B))(W),
    "hessian in x": lambda c, p: hessian(lambda x: _loss(c, p)(x, W, B))(X[:1]),
    "hessian in b": lambda c, p: hessian(lambda b: _loss(c, p)(X, W, b))(B),
    "jacrev of jacrev": lambda c, p: jacrev(jacrev(lambda b: _loss(c, p)(X, W, b)))(B),
    "jacfwd of jacfwd": lambda c, p: jacfwd(jacfwd(lambda b: _loss(c, p)(X, W, b)))(B),
    "grad of grad": lambda c, p: grad(lambda w: grad(_loss(c, p), 1)(X, w, B).square().sum())(W),
    "grad of grad of grad": lambda c, p: grad(
        lambda w: grad(lambda w: grad(_loss(c, p), 1)(X, w, B).square().sum())(w).square().sum()
    )(W),
    "grad in w of grad in x": lambda c, p: grad(lambda w: grad(_loss(c, p), 0)(X, w, B).square().sum())(W),
    "jvp of grad": lambda c, p: jvp(lambda w: grad(_loss(c, p), 1)(X, w, B), (W,), (W.cos(),)),
    "grad of jvp": lambda c, p: grad(lambda w: jvp(lambda x: _loss(c, p)(x, w, B), (X,), (X.cos(),))[1])(W),
    "jvp of jvp": lambda c, p: jvp(
        lambda w: jvp(lambda x: _loss(c, p)(x, w, B), (X,), (X.cos(),))[1], (W,), (W.cos(),)
    ),
    "vmap of jvp": lambda c, p: vmap(lambda t: jvp(lambda w: c(X, w, B), (W,), (t,))[1])(WS),
    "vmap of vjp": lambda c, p: vmap(vjp(c, X, W, B)[1])(_torchs(X, W, B).expand(3, 2, 6, 3, 3)),
    "per-sample gradients": lambda c, p: vmap(
        grad(lambda w, b, x: _loss(c, p)(x[None], w, b), (0, 1)), (None, None, 0)
    )(W, B, X),
    "per-sample gradients, ensembles": lambda c, p: vmap(
        vmap(grad(_loss(c, p), 1), (0, None, None)), (None, 0, 0)
    )(XS, WS, BS),
    "grad of vmap": lambda c, p: grad(lambda w: vmap(lambda x: _loss(c, p)(x, w, B))(XS).sum())(W),
    "grad through requires_grad": lambda c, p: torch.autograd.grad(
        grad(lambda w: _loss(c, p)(X, w, B))(leaf := W.clone().requires_grad_()).square().sum(), leaf
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(name: str) -> None:
    _agree(TRANSFORMS[name], rtol=1e-8, atol=1e-8)


def test_unbatched_and_per_side_under_transforms() -> None:
    def ours(w: Tensor) -> Tensor:
        return pyconv.conv2d(X[0], w, None, 1, (1, 0, 2, 0), 1, 2)

    def torchs(w: Tensor) -> Tensor:
        return F.conv2d(F.pad(X[0], (2, 0, 1, 0)), w, None, 1, 0, 1, 2)

    for transform in (jacrev, jacfwd):
        assert_close(transform(ours)(W), transform(torchs)(W))
    assert_close(vmap(ours)(WS), vmap(torchs)(WS))


@pytest.mark.parametrize("overload", ["auto", "default"])
def test_jvp_straight_on_the_operators_is_never_silently_zero(overload: str) -> None:
    """An operator's own tangent is right. torch's default for a registered operator is a silent zero."""
    rest = ((2, 2), (1, 1, 1, 1), (1, 1), 2, False)
    pool = ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), False, False)
    dy, places = _torchs(X, W, B), pyconv.ops.overloads("max_pool2d_argmax")[1](X, *pool)[1]
    problem = pyconv.Conv2dProblem(2, 4, 5, 5, 6, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 2, "f64")
    pooling = pyconv.Pool2dProblem(2, 4, 5, 5, 3, 3, 2, 2, 1, 1, 1, 1, dtype="f64")
    dp = _randn(*places.shape)

    def run(name: str, pass_: str, *arguments: Any) -> Any:
        default, auto = ops.overloads(name)
        if overload == "auto":
            return auto(*arguments)
        kernel = pyconv.selection.select(problem if name.startswith("conv") else pooling, pass_)
        if kernel.backend != "cpu":
            pytest.skip(f"PYCONV_KERNELS asks for {kernel.id}, which is no registered implementation")
        return default(*arguments, kernel.name)

    def backward(x: Tensor, w: Tensor, dy: Tensor, which: int) -> Tensor:
        mask = [which == 0, which == 1, False]
        return torch.ops.aten.convolution_backward(
            dy, x, w, None, (2, 2), (1, 1), (1, 1), False, (0, 0), 2, mask
        )[which]

    t = torch.cos
    cases: list[tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]] = [
        (lambda x, w, b: run("conv2d_fprop", "fprop", x, w, b, *rest), _torchs, (X, W, B)),
        (
            lambda dy, w: run("conv2d_dgrad", "dgrad", dy, w, (5, 5), *rest),
            lambda dy, w: backward(X, w, dy, 0),
            (dy, W),
        ),
        (
            lambda x, dy: run("conv2d_wgrad", "wgrad", x, dy, (3, 3), *rest),
            lambda x, dy: backward(x, W, dy, 1),
            (X, dy),
        ),
        (lambda dy: run("conv2d_bgrad", "bgrad", dy, False), lambda dy: dy.sum((0, 2, 3)), (dy,)),
        (lambda x: run("max_pool2d", "fprop", x, *pool), _torchs_pool, (X,)),
        (lambda x: run("max_pool2d_argmax", "fprop_argmax", x, *pool)[0], _torchs_pool, (X,)),
        (
            lambda dy: run("max_pool2d_dgrad", "dgrad", dy, places, (5, 5), *pool),
            lambda dy: vjp(_torchs_pool, X)[1](dy)[0],
            (dp,),
        ),
        (
            lambda x: run("max_pool2d_gather", "gather", x, places, *pool),
            lambda x: x.flatten(2).gather(2, places.long().flatten(2)).view(places.shape),
            (X,),
        ),
    ]
    for ours, torchs, primals in cases:
        tangents = tuple(t(p) for p in primals)
        result, expected = jvp(ours, primals, tangents), jvp(torchs, primals, tangents)
        assert_close(result, expected)
        assert result[1].abs().max() > 0


def test_functional_call_on_modules() -> None:
    def network(package: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(package.Conv2d(4, 3, 3, padding=1), package.MaxPool2d(2)).double()

    results = []
    for package in (pyconv.nn, torch.nn):
        module = network(package)
        parameters = {name: p.detach() for name, p in module.named_parameters()}

        def loss(parameters: dict[str, Tensor], x: Tensor, module: torch.nn.Module = module) -> Tensor:
            return functional_call(module, parameters, (x[None],)).square().sum()

        per_sample = vmap(grad(loss), (None, 0))(parameters, X)
        stacked = {name: torch.stack([p, p * 2]) for name, p in parameters.items()}
        ensemble = vmap(lambda p, module=module: functional_call(module, p, (X,)))(stacked)
        results.append((per_sample, ensemble))
    assert_close(*results)
