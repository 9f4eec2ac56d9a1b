"""``pyconv.functional`` against torch: values, gradients, dtypes, memory formats, shapes.

What a wrong call raises is in ``test_functional_errors.py``; who else sees a call, in ``test_overrides.py``.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import pyconv

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FORMATS = (CONTIGUOUS, CHANNELS_LAST)


# A 16-bit sum may be off by a rounding of each side, of sums around 8.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def _close(ours: Tensor, torchs: Tensor) -> None:
    assert ours.dtype == torchs.dtype
    assert ours.shape == torchs.shape
    tolerance = _TOLERANCES.get(ours.dtype, 1e-10)
    assert_close(ours, torchs, rtol=tolerance, atol=tolerance, equal_nan=True)


def _same_format(ours: Tensor, torchs: Tensor) -> None:
    """Sizes of 1 make strides arbitrary, so formats are compared, not strides."""
    for memory_format in FORMATS:
        expected = torchs.is_contiguous(memory_format=memory_format)
        assert ours.is_contiguous(memory_format=memory_format) == expected, (ours.stride(), torchs.stride())


# x shape, w shape, arguments of conv2d after the bias
CONVS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 4, 7, 6), (6, 4, 3, 3), {}),
    ((2, 4, 7, 6), (6, 4, 3, 3), {"padding": 1}),
    ((2, 4, 7, 6), (6, 4, 3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    ((2, 4, 9, 9), (6, 2, 3, 3), {"stride": 2, "padding": (2, 1), "groups": 2}),
    ((2, 4, 9, 9), (4, 1, 3, 3), {"padding": 1, "groups": 4}),
    ((2, 4, 9, 9), (8, 1, 3, 3), {"stride": 2, "dilation": 2, "groups": 4}),
    ((3, 4, 5, 5), (6, 4, 1, 1), {"stride": 3}),
    ((1, 1, 6, 5), (3, 1, 2, 2), {"padding": 2}),
    ((2, 4, 1, 1), (6, 4, 3, 3), {"padding": 1}),
    ((2, 3, 4, 4), (1, 3, 4, 4), {}),
    ((1, 3, 2, 2), (2, 3, 5, 5), {"padding": 2}),
    ((2, 3, 8, 8), (5, 3, 4, 3), {"padding": "same"}),
    ((2, 3, 8, 8), (5, 3, 2, 4), {"padding": "same", "dilation": (3, 1)}),
    ((2, 3, 8, 8), (5, 3, 4, 3), {"padding": "valid", "stride": 2}),
    ((2, 4, 8, 8), (4, 2, 3, 3), {"stride": [2], "padding": [1], "dilation": [1], "groups": 2}),
    ((2, 4, 8, 8), (4, 4, 3, 3), {"stride": [2, 1], "padding": (2,), "dilation": (2,)}),
    ((2, 17, 5, 19), (33, 17, 3, 3), {"padding": 1}),
]


def _conv_operands(case: Any, dtype: torch.dtype, x_format: Any, w_format: Any) -> tuple[Tensor, ...]:
    x_shape, w_shape, _ = case
    generator = torch.Generator().manual_seed(7)
    x, w, b = (
        torch.randn(shape, dtype=dtype, generator=generator) for shape in (x_shape, w_shape, w_shape[:1])
    )
    return x.to(memory_format=x_format), w.to(memory_format=w_format), b


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv2d_values_gradients_and_formats(case: Any, dtype: torch.dtype) -> None:
    for x_format, w_format, dy_format in itertools.product(FORMATS, repeat=3):
        operands = _conv_operands(case, dtype, x_format, w_format)
        results = []
        for function in (pyconv.conv2d, F.conv2d):
            leaves = [t.detach().requires_grad_() for t in operands]
            y = function(*leaves, **case[2])
            dy = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape).to(memory_format=dy_format)
            results.append((y, *torch.autograd.grad(y, leaves, dy)))
        for ours, torchs in zip(*results, strict=True):
            _close(ours, torchs)
        for ours, torchs in zip(results[0][:3], results[1][:3], strict=True):
            _same_format(ours, torchs)
        with torch.no_grad():
            assert_close(pyconv.conv2d(*operands, **case[2]), results[0][0].detach(), rtol=0, atol=0)
            _close(pyconv.conv2d(*operands[:2], **case[2]), F.conv2d(*operands[:2], **case[2]))


def test_a_channels_last_filter_alone_makes_the_output_channels_last() -> None:
    x = torch.randn(2, 4, 7, 6, requires_grad=True)
    w = torch.randn(6, 4, 3, 3).to(memory_format=CHANNELS_LAST).requires_grad_()
    y = pyconv.conv2d(x, w)
    y.sum().backward()
    assert y.is_contiguous(memory_format=CHANNELS_LAST)
    assert w.grad is not None
    assert w.grad.is_contiguous(memory_format=CHANNELS_LAST)
    assert x.grad is not None
    assert x.grad.is_contiguous()


@pytest.mark.parametrize("sides", [(1, 2, 0, 3), (0, 0, 2, 1), [3, 0, 0, 0], (1, 1, 2, 2)])
@pytest.mark.parametrize("options", [{}, {"stride": (2, 1), "groups": 2}, {"dilation": 2}], ids=str)
def test_conv2d_padding_per_side_is_padding_first(sides: Any, options: dict[str, Any]) -> None:
    top, bottom, left, right = sides
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64, requires_grad=True)
    w = torch.randn(6, 4 // options.get("groups", 1), 3, 3, dtype=torch.float64, requires_grad=True)
    ours = pyconv.conv2d(x, w, padding=sides, **options)
    torchs = F.conv2d(F.pad(x, (left, right, top, bottom)), w, **options)
    _close(ours, torchs)
    dy = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(y, (x, w), dy) for y in (ours, torchs)), strict=True):
        _close(a, b)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_unbatched(dtype: torch.dtype) -> None:
    x, w, b = (torch.randn(*s, dtype=dtype, requires_grad=True) for s in ((3, 6, 7), (5, 3, 3, 2), (5,)))
    for _ in range(2):
        ours, torchs = pyconv.conv2d(x, w, b, 2, 1), F.conv2d(x, w, b, 2, 1)
        _close(ours, torchs)
        _same_format(ours[None], torchs[None])
    for a, e in zip(*(torch.autograd.grad(y.sin().sum(), (x, w, b)) for y in (ours, torchs)), strict=True):
        _close(a, e)
    y, indices = pyconv.max_pool2d(x, 2, return_indices=True)
    expected = F.max_pool2d(x, 2, return_indices=True)
    _close(y, expected[0])
    assert torch.equal(indices, expected[1])
    assert torch.equal(pyconv.max_pool2d(x, 3, 1, 1), F.max_pool2d(x, 3, 1, 1))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "groups"),
    [
        ((0, 3, 6, 6), (4, 3, 3, 3), 1),  # no samples
        ((2, 0, 6, 6), (4, 0, 3, 3), 1),  # no input channels: torch's y has no channels either
        ((0, 4, 6, 6), (4, 1, 3, 3), 4),
    ],
)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_conv2d_of_nothing(
    x_shape: Any, w_shape: Any, groups: int, memory_format: torch.memory_format
) -> None:
    results = []
    for function in (pyconv.conv2d, F.conv2d):
        x = torch.ones(x_shape).to(memory_format=memory_format).requires_grad_()
        w = torch.ones(w_shape, requires_grad=True)
        b = torch.arange(4.0, requires_grad=True)
        y = function(x, w, b, 1, 1, 1, groups)
        results.append((y, *torch.autograd.grad(y.sum(), (x, w, b))))
    for ours, torchs in zip(*results, strict=True):
        _close(ours, torchs)


def _hostile_views(x: Tensor) -> dict[str, Tensor]:
    """The same values under strides that no kernel expects."""
    n, c, h, w = x.shape
    padded = torch.full((n + 1, c + 2, h + 3, w + 4), float("nan"), dtype=x.dtype)
    padded[1:, 1:-1, 2:-1, 3:-1] = x
    spaced = torch.full((n, c, 2 * h, 3 * w), float("nan"), dtype=x.dtype)
    spaced[:, :, ::2, ::3] = x
    return {
        "sliced": padded[1:, 1:-1, 2:-1, 3:-1],
        "every second row, third column": spaced[:, :, ::2, ::3],
        "transposed": x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        "offset by one element": torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
        "channels_last slice": padded.to(memory_format=CHANNELS_LAST)[1:, 1:-1, 2:-1, 3:-1],
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_non_contiguous_views(dtype: torch.dtype) -> None:
    x, w = torch.randn(2, 4, 5, 6, dtype=dtype), torch.randn(4, 4, 3, 3, dtype=dtype)
    for (x_name, xv), (w_name, wv) in itertools.product(_hostile_views(x).items(), _hostile_views(w).items()):
        xv, wv = xv.detach().requires_grad_(), wv.detach().requires_grad_()
        ours, torchs = pyconv.conv2d(xv, wv, None, 1, 1), F.conv2d(xv, wv, None, 1, 1)
        _close(ours, torchs)
        dy = _hostile_views(torch.randn(ours.shape, dtype=dtype))[x_name]
        for a, e in zip(*(torch.autograd.grad(y, (xv, wv), dy) for y in (ours, torchs)), strict=True):
            _close(a, e)
        assert ours.stride() == torchs.stride(), (x_name, w_name)
    for name, xv in _hostile_views(x).items():
        y, indices = pyconv.max_pool2d(xv, 2, 1, 1, return_indices=True)
        expected = F.max_pool2d(xv, 2, 1, 1, return_indices=True)
        assert torch.equal(y, expected[0]), name
        assert torch.equal(indices, expected[1]), name
        assert y.stride() == expected[0].stride(), name


def test_expanded_operands_and_a_negative_view() -> None:
    x = torch.randn(1, 1, 5, 6, dtype=torch.float64).expand(3, 4, 5, 6)
    w = torch.randn(6, 4, 1, 1, dtype=torch.float64).expand(6, 4, 3, 3)
    _close(pyconv.conv2d(x, w), F.conv2d(x, w))
    assert torch.equal(pyconv.max_pool2d(x, 2), F.max_pool2d(x, 2))
    dy = torch.ones((), dtype=torch.float64).expand(3, 6, 3, 4)
    leaf = w.detach().requires_grad_()
    (ours,), (torchs,) = (torch.autograd.grad(f(x, leaf), leaf, dy) for f in (pyconv.conv2d, F.conv2d))
    _close(ours, torchs)
    # imag of a conjugate is a lazily negated view
    negated = torch.randn(2, 4, 5, 6, dtype=torch.complex128).conj().imag
    assert negated.is_neg()
    _close(pyconv.conv2d(negated, w), F.conv2d(negated, w))
    _close(pyconv.max_pool2d(negated, 2), F.max_pool2d(negated, 2))


# ---- Dtypes without kernels of ours ----


def _outcome(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What a call returns, or the type and words of what it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error), str(error)


INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.complex64, torch.complex128], ids=str)
def test_other_dtypes_get_torchs_own_answer(dtype: torch.dtype) -> None:
    """Stated: integers, booleans and complex numbers go to torch's operator; so do its refusals."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, 5, (2, 3, 6, 6), generator=generator).to(dtype)
    w = torch.randint(0, 5, (4, 3, 3, 3), generator=generator).to(dtype)
    calls = [
        (pyconv.conv2d, F.conv2d, (x, w, None, 2, 1)),
        (pyconv.max_pool2d, F.max_pool2d, (x, 3, 2, 1)),
    ]
    for ours, torchs, arguments in calls:
        expected, result = _outcome(torchs, arguments), _outcome(ours, arguments)
        if isinstance(expected, Tensor):
            assert result.dtype == expected.dtype
            assert torch.equal(result, expected)
        else:
            assert result == expected


def test_integer_padding_per_side() -> None:
    x, w = torch.arange(36).view(1, 1, 6, 6), torch.ones(1, 1, 3, 3, dtype=torch.int64)
    expected = F.conv2d(F.pad(x, (2, 0, 1, 0)), w)
    assert torch.equal(pyconv.conv2d(x, w, padding=(1, 0, 2, 0)), expected)
    with pytest.raises(
        NotImplementedError, match=r"padding per side takes floating-point tensors, not torch\.int64"
    ):
        pyconv.max_pool2d(x, 2, padding=(1, 0, 0, 0))


# ---- The plan cache ----


def test_cached_plans_are_keyed_by_all_that_matters() -> None:
    """Equal shapes with other strides, dtypes, options or choices must not get each other's plan."""
    pyconv.functional._plans.clear()
    x, w = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3)
    depthwise = torch.randn(4, 1, 3, 3)
    calls: list[tuple[Any, ...]] = []
    for dtype, xf, wf in itertools.product(FLOATS, FORMATS, FORMATS):
        xv, wv = (t.to(dtype).to(memory_format=f) for t, f in ((x, xf), (w, wf)))
        for options in ((1, 1, 1, 1), (2, 1, 1, 1), (1, 0, 1, 1), (1, 2, 2, 1)):
            calls.append((xv, wv, None, *options))
            calls.append((xv, wv, wv[:, 0, 0, 0].clone(), *options))
        calls.append((xv, depthwise.to(dtype).to(memory_format=wf), None, 1, 1, 1, 4))
    for _ in range(2):
        for call in calls:
            ours, torchs = pyconv.conv2d(*call), F.conv2d(*call)
            _close(ours, torchs)
            assert ours.stride() == torchs.stride()
    before = len(pyconv.functional._plans)
    assert before == len(calls)
    with pyconv.use("aten", "direct"):
        _close(pyconv.conv2d(*calls[0]), F.conv2d(*calls[0]))
    assert len(pyconv.functional._plans) == before + 1
    # A list cannot be a key; the call still works.
    _close(pyconv.conv2d(x, w, None, [1, 1], [1, 1]), F.conv2d(x, w, None, 1, 1))


def test_true_is_not_one_in_the_cache() -> None:
    # 1 == True and they hash alike: a remembered call must not let a wrong argument through.
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    pyconv.conv2d(x, w, None, 1, 1)
    pyconv.max_pool2d(x, 1, 1)
    for ours, torchs, arguments in (
        (pyconv.conv2d, F.conv2d, (x, w, None, True, 1)),
        (pyconv.conv2d, F.conv2d, (x, w, None, 1.0, 1)),
        (pyconv.max_pool2d, F.max_pool2d, (x, 1, 1.0)),
    ):
        with pytest.raises(TypeError):
            torchs(*arguments)
        with pytest.raises(TypeError):
            ours(*arguments)
