"""``pyconv.max_pool2d`` against torch: equal to the bit, indices included. Maxima need no tolerance."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pyconv

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FORMATS = (torch.contiguous_format, torch.channels_last)

# kernel_size, stride, padding, dilation, ceil_mode
POOLS: list[tuple[Any, ...]] = [
    (2, None, 0, 1, False),
    (3, 2, 1, 1, False),
    (3, 1, 1, 1, False),
    ((3, 2), (2, 1), (1, 0), 1, False),
    (2, 2, 0, 1, True),
    (3, 2, 1, 1, True),
    (3, 3, 1, 1, True),
    (2, 3, 1, 1, True),
    (2, 2, 1, (2, 3), False),
    (3, 2, 1, 2, True),
    (1, 1, 0, 1, False),
    (1, 3, 0, 1, True),
    ([2], [1], [1], [2], False),
    ((5, 4), 1, (2, 2), 1, False),
    (2, (), 0, 1, False),
]
SHAPES = [(2, 3, 9, 8), (1, 1, 6, 7), (3, 5, 7, 17)]


def _inputs(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)
    plain = torch.randn(shape, dtype=dtype, generator=generator)
    mask = torch.rand(shape, generator=generator)
    return {
        "distinct": plain,
        "ties": torch.randint(-1, 2, shape, generator=generator).to(dtype),
        "all equal": torch.zeros(shape, dtype=dtype),
        "signed zeros": torch.where(mask < 0.5, -0.0, 0.0).to(dtype),
        "NaN": plain.masked_fill(mask < 0.2, float("nan")),
        "all NaN": torch.full(shape, float("nan"), dtype=dtype),
        "-inf": torch.full(shape, -float("inf"), dtype=dtype),
        "inf and NaN": plain.masked_fill(mask < 0.2, float("inf")).masked_fill(mask > 0.9, float("nan")),
        "lowest": torch.full(shape, torch.finfo(dtype).min, dtype=dtype),
        "subnormal": torch.full(shape, torch.finfo(dtype).smallest_normal / 4, dtype=dtype) * plain.sign(),
    }


def _bits(x: Tensor) -> Tensor:
    """Equal bits: the signs of zeros count, and so does NaN."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.dtype.itemsize]
    return torch.where(x.isnan(), torch.full_like(x, float("nan")), x).view(integers)


def _same_format(ours: Tensor, torchs: Tensor) -> None:
    """Sizes of 1 make strides arbitrary, so formats are compared, not strides."""
    for memory_format in FORMATS:
        expected = torchs.is_contiguous(memory_format=memory_format)
        assert ours.is_contiguous(memory_format=memory_format) == expected, (ours.stride(), torchs.stride())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_values_indices_gradients_and_formats(pool: tuple[Any, ...], dtype: torch.dtype) -> None:
    for shape, memory_format in itertools.product(SHAPES, FORMATS):
        for name, x in _inputs(shape, dtype).items():
            x = x.to(memory_format=memory_format).requires_grad_()
            y, indices = pyconv.max_pool2d(x, *pool, return_indices=True)
            expected, places = F.max_pool2d(x, *pool, return_indices=True)
            assert torch.equal(_bits(y), _bits(expected)), name
            assert indices.dtype == torch.int64
            assert torch.equal(indices, places), name
            _same_format(y, expected)
            _same_format(indices, places)
            assert not indices.requires_grad
            with torch.no_grad():
                assert torch.equal(_bits(pyconv.max_pool2d(x, *pool)), _bits(expected))
        dy = torch.randn(expected.shape, dtype=dtype)
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        (expected_dx,) = torch.autograd.grad(expected, x, dy)
        if dtype.itemsize == 2:  # torch adds in 16 bits, and ours in 32
            wide = x.detach().float().requires_grad_()
            (sums,) = torch.autograd.grad(F.max_pool2d(wide, *pool), wide, dy.float())
            expected_dx.copy_(sums)
        torch.testing.assert_close(dx, expected_dx)
        _same_format(dx, expected_dx)
        (from_values,) = torch.autograd.grad(pyconv.max_pool2d(x, *pool), x, dy)
        assert torch.equal(from_values, dx)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("sides", [(1, 0, 0, 1), (0, 1, 1, 0), [1, 1, 0, 0], (0, 0, 0, 0)], ids=str)
def test_padding_per_side_is_padding_with_minus_infinity(sides: Any, ceil_mode: bool) -> None:
    top, bottom, left, right = sides
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    padded = F.pad(x, (left, right, top, bottom), value=-float("inf"))
    # 9 and up to 10 rows with windows of 3 by 3 steps: ceil_mode has no window that starts in the padding.
    ours = pyconv.max_pool2d(x, 3, 2, sides, ceil_mode=ceil_mode)
    torchs = F.max_pool2d(padded, 3, 2, ceil_mode=ceil_mode)
    assert torch.equal(ours, torchs)
    dy = torch.randn_like(ours)
    (dx,), (expected,) = (torch.autograd.grad(y, x, dy) for y in (ours, torchs))
    torch.testing.assert_close(dx, expected)


def test_indices_unpool() -> None:
    x = torch.rand(2, 3, 8, 6)
    y, indices = pyconv.max_pool2d(x, 2, return_indices=True)
    restored = F.max_unpool2d(y, indices, 2)
    assert torch.equal(restored[restored != 0].sort().values, y.flatten().sort().values)
    assert torch.equal(restored[restored != 0], x[restored != 0])


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_no_samples(memory_format: torch.memory_format) -> None:
    x = torch.ones(0, 3, 8, 6).to(memory_format=memory_format).requires_grad_()
    y, indices = pyconv.max_pool2d(x, 2, return_indices=True)
    expected, places = F.max_pool2d(x, 2, return_indices=True)
    assert (y.shape, y.stride()) == (expected.shape, expected.stride())
    assert (indices.shape, indices.dtype) == (places.shape, places.dtype)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.shape == x.shape


def test_a_large_plane_has_large_places() -> None:
    x = torch.zeros(1, 1, 3000, 1500)
    x[0, 0, -1, -1] = 1
    y, indices = pyconv.max_pool2d(x, (3000, 1500), return_indices=True)
    assert y.item() == 1
    assert indices.item() == 3000 * 1500 - 1
