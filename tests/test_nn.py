"""``pyconv.nn`` against ``torch.nn``: states, texts, padding modes, life cycle."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.testing import assert_close

import pyconv
import pyconv.nn

CONVS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((4, 6, 3), {}),
    ((4, 6, (3, 2)), {"stride": (2, 1), "padding": (1, 0)}),
    ((4, 6, 3), {"padding": "same", "dilation": 2}),
    ((4, 6, 3), {"padding": "valid", "stride": 2, "bias": False}),
    ((4, 8, 3, 2, 1, 1, 4), {}),
    ((4, 6, 3), {"padding": 2, "padding_mode": "reflect"}),
    ((4, 6, 3), {"padding": (2, 1), "padding_mode": "replicate"}),
    ((4, 6, 3), {"padding": (1, 2), "padding_mode": "circular", "stride": 2}),
    ((4, 6, (2, 4)), {"padding": "same", "padding_mode": "reflect"}),
    ((4, 6, 3), {"dtype": torch.float64}),
]


def _input(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, 8, 9, dtype=dtype, generator=torch.Generator().manual_seed(5))


def _pair(arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[nn.Conv2d, nn.Conv2d]:
    return pyconv.nn.Conv2d(*arguments, **options), nn.Conv2d(*arguments, **options)


@pytest.mark.parametrize(("arguments", "options"), CONVS, ids=str)
def test_conv2d_is_torchs_module(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    ours = pyconv.nn.Conv2d(*arguments, **options)
    torch.manual_seed(1)
    torchs = nn.Conv2d(*arguments, **options)
    assert isinstance(ours, nn.Conv2d)
    assert repr(ours) == repr(torchs)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for name, value in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), "the same seed draws the same weights"
    for source, target in (
        (ours, nn.Conv2d(*arguments, **options)),
        (torchs, pyconv.nn.Conv2d(*arguments, **options)),
    ):
        assert str(target.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
        assert torch.equal(target.weight, source.weight)
    for x in (_input(ours.weight.dtype), _input(ours.weight.dtype)[0]):
        y, expected = ours(x), torchs(x)
        assert_close(y, expected)
        assert y.stride() == expected.stride()
    y, expected = ours(x), torchs(x)
    for a, b in zip(
        torch.autograd.grad(y.square().sum(), list(ours.parameters())),
        torch.autograd.grad(expected.square().sum(), list(torchs.parameters())),
        strict=True,
    ):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("sides", [(1, 2, 0, 3), [2, 0, 1, 0]], ids=str)
def test_padding_per_side_in_every_mode(mode: str, sides: Any) -> None:
    ours = pyconv.nn.Conv2d(4, 6, 3, stride=2, padding=sides, padding_mode=mode, dtype=torch.float64)
    x = _input(torch.float64)
    top, bottom, left, right = sides
    padded = nn.functional.pad(x, (left, right, top, bottom), mode=_MODES[mode])
    expected = nn.functional.conv2d(padded, ours.weight, ours.bias, 2)
    assert_close(ours(x), expected)
    assert ours.padding == tuple(sides)
    assert f"padding={tuple(sides)}" in repr(ours)


def test_padding_per_side_is_checked_when_made() -> None:
    with pytest.raises(ValueError, match="padding must be non-negative"):
        pyconv.nn.Conv2d(4, 6, 3, padding=(1, -1, 0, 0))


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((4, 6, 3), {"groups": 0}),
        ((4, 6, 3), {"groups": 3}),
        ((4, 7, 3), {"groups": 2}),
        ((4, 6, 3), {"padding": "full"}),
        ((4, 6, 3), {"padding": "same", "stride": 2}),
        ((4, 6, 3), {"padding_mode": "mirror"}),
        ((4, 6), {}),
        ((4, 6, 3), {"strides": 2}),
    ],
    ids=str,
)
def test_what_torch_refuses(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(Exception) as expected:  # noqa: PT011 (which one is the question)
        nn.Conv2d(*arguments, **options)
    with pytest.raises(type(expected.value)) as raised:
        pyconv.nn.Conv2d(*arguments, **options)
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("padding", [1, "same", (1, 2, 0, 3)], ids=str)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_behave_alike(how: str, padding: Any) -> None:
    module = nn.Sequential(pyconv.nn.Conv2d(4, 6, 3, padding=padding), pyconv.nn.MaxPool2d(2, ceil_mode=True))
    x = _input()
    expected = module(x)
    if how == "deepcopy":
        copied = copy.deepcopy(module)
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps(module))
    else:
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    assert type(copied[0]) is pyconv.nn.Conv2d
    assert type(copied[1]) is pyconv.nn.MaxPool2d
    assert copied[0].weight is not module[0].weight
    assert torch.equal(copied(x), expected)
    assert repr(copied) == repr(module)


def test_device_and_dtype() -> None:
    module = pyconv.nn.Conv2d(4, 6, 3, device="meta", dtype=torch.float64)
    assert module.weight.device.type == "meta"
    assert module.weight.dtype == torch.float64
    assert module(torch.empty(2, 4, 8, 9, device="meta", dtype=torch.float64)).shape == (2, 6, 6, 7)
    assert module.to_empty(device="cpu").weight.device.type == "cpu"
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert pyconv.nn.Conv2d(4, 6, 3)(_input(torch.float64)).dtype == torch.float64
    finally:
        torch.set_default_dtype(default)
    assert pyconv.nn.Conv2d(4, 6, 3).double()(_input(torch.float64)).dtype == torch.float64


def test_channels_last_module() -> None:
    ours, torchs = _pair((4, 6, 3), {"padding": 1})
    ours.load_state_dict(torchs.state_dict())
    ours, torchs = ours.to(memory_format=torch.channels_last), torchs.to(memory_format=torch.channels_last)
    y, expected = ours(_input()), torchs(_input())
    assert y.stride() == expected.stride()
    y.sum().backward()
    expected.sum().backward()
    assert ours.weight.grad is not None
    assert torchs.weight.grad is not None
    assert ours.weight.grad.stride() == torchs.weight.grad.stride()


def test_a_module_in_a_torch_network_trains_alike() -> None:
    def network(package: Any) -> nn.Sequential:
        torch.manual_seed(3)
        layers = (package.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), package.MaxPool2d(2))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 4 * 4, 3)).double()

    losses: list[list[float]] = []
    for package in (pyconv.nn, nn):
        model = network(package)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        losses.append([])
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(_input(torch.float64)).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "ceil_mode": True},
        {"kernel_size": 2, "return_indices": True},
    ],
    ids=str,
)
def test_max_pool2d_is_torchs_module(options: dict[str, Any]) -> None:
    ours, torchs = pyconv.nn.MaxPool2d(**options), nn.MaxPool2d(**options)
    assert isinstance(ours, nn.MaxPool2d)
    assert repr(ours) == repr(torchs)
    for x in (_input(), _input()[0]):
        y, expected = ours(x), torchs(x)
        if not options.get("return_indices"):
            y, expected = (y,), (expected,)
        assert len(y) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(y, expected, strict=True))


def test_max_pool2d_padding_per_side() -> None:
    module = pyconv.nn.MaxPool2d(3, 2, padding=(1, 0, 0, 1))
    padded = nn.functional.pad(_input(), (0, 1, 1, 0), value=-float("inf"))
    assert torch.equal(module(_input()), nn.functional.max_pool2d(padded, 3, 2))
    assert "padding=(1, 0, 0, 1)" in repr(module)


def test_weight_norm_and_pruning_reach_the_kernels() -> None:
    module = nn.utils.parametrizations.weight_norm(pyconv.nn.Conv2d(4, 6, 3))
    reference = nn.functional.conv2d(_input(), module.weight, module.bias)
    assert_close(module(_input()), reference)
    prune.l1_unstructured(pruned := pyconv.nn.Conv2d(4, 6, 3), "weight", amount=0.5)
    assert_close(pruned(_input()), nn.functional.conv2d(_input(), pruned.weight, pruned.bias))
