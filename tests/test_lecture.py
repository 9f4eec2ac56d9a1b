"""The lecture's worked examples, on every kernel of the table that can do them.

They come from the lecture on convolutional networks that pyconv makes work: one 3x3 filter on a 5x5 image,
the volumes of a layer, its number of weights, stride and padding, and what max-pooling does to a shifted
image.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pyconv
import pyconv.nn
from pyconv import backends, parse_problem
from pyconv.problem import DTYPES, LAYOUTS
from pyconv.registry import Kernel, kernels

IMAGE = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]
FILTER = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
#: The first two values are on the slides; the rest follow from the same sums.
FEATURE = [[4, 3, 4], [2, 4, 3], [2, 3, 4]]

POOLED_IMAGE = [[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]]


def _lines(operation: str, pass_: str) -> list[Any]:
    """Every line for every dtype and layout it takes on this kind of device."""
    return [
        pytest.param(kernel, dtype, layout, id=f"{kernel.id}-{dtype}-{layout}")
        for kernel in kernels(operation, pass_)
        if backends.unavailable(kernel.backend, "cpu") is None
        for dtype in kernel.dtypes
        for layout in kernel.layouts
    ]


conv_line = pytest.mark.parametrize(("kernel", "dtype", "layout"), _lines("conv2d", "fprop"))
pool_line = pytest.mark.parametrize(("kernel", "dtype", "layout"), _lines("maxpool2d", "fprop"))
argmax_line = pytest.mark.parametrize(("kernel", "dtype", "layout"), _lines("maxpool2d", "fprop_argmax"))


def _run(kernel: Kernel, text: str, *tensors: Tensor | None) -> Tensor | tuple[Tensor, Tensor] | None:
    """The kernel on the problem, or None where its line says that it cannot do it."""
    problem = parse_problem(text)
    if kernel.supports(problem) is not None:
        return None
    return backends.bind(kernel, problem)(*tensors)


def _image(values: list[list[int]], dtype: str) -> Tensor:
    return torch.tensor([[values]], dtype=DTYPES[dtype])


@conv_line
def test_one_filter_on_a_small_image(kernel: Kernel, dtype: str, layout: str) -> None:
    text = f"conv2d n1c1h5w5 k1r3s3 {dtype} {layout}"
    y = _run(kernel, text, _image(IMAGE, dtype), _image(FILTER, dtype), None)
    if y is None:
        # A depthwise kernel wants groups: the same example on two channels, each with its own filter.
        x, w = _image(IMAGE, dtype).repeat(1, 2, 1, 1), _image(FILTER, dtype).repeat(2, 1, 1, 1)
        y = _run(kernel, f"conv2d n1c2h5w5 k2r3s3 g2 {dtype} {layout}", x, w, None)
    assert isinstance(y, Tensor), f"{kernel.id} takes neither form of the example"
    assert y[0, 0, 0, 0] == 4
    assert y[0, 0, 0, 1] == 3
    assert all(plane.tolist() == FEATURE for plane in y[0])


@conv_line
def test_the_bias_shifts_the_feature(kernel: Kernel, dtype: str, layout: str) -> None:
    x, w = _image(IMAGE, dtype).repeat(1, 2, 1, 1), _image(FILTER, dtype).repeat(2, 1, 1, 1)
    bias = torch.tensor([10, -1], dtype=DTYPES[dtype])
    y = _run(kernel, f"conv2d n1c2h5w5 k2r3s3 g2 {dtype} {layout}", x, w, bias)
    assert isinstance(y, Tensor)
    assert torch.equal(y[0], torch.tensor(FEATURE, dtype=y.dtype) + bias.view(2, 1, 1))


#: filters, padding, stride -> the volume that the lecture gives for a 32x32x3 image and 5x5x3 filters.
VOLUMES = [
    (10, 2, 1, (32, 32, 10)),
    (10, 0, 1, (28, 28, 10)),
    (10, 2, 2, (16, 16, 10)),
    (24, 2, 1, (32, 32, 24)),
]


@conv_line
@pytest.mark.parametrize(("filters", "padding", "stride", "volume"), VOLUMES)
def test_volumes_of_a_layer(
    kernel: Kernel, dtype: str, layout: str, filters: int, padding: int, stride: int, volume: tuple[int, ...]
) -> None:
    text = f"conv2d n1c3h32w32 k{filters}r5s5 st{stride} pd{padding} {dtype} {layout}"
    problem = parse_problem(text)
    assert (problem.p, problem.q, filters) == volume
    # All ones: each output counts the taps inside the image, 75 in the middle.
    y = _run(
        kernel,
        text,
        *(torch.ones(s, dtype=DTYPES[dtype]) for s in ((1, 3, 32, 32), (filters, 3, 5, 5))),
        None,
    )
    if y is None:
        pytest.skip(f"unsupported: {kernel.supports(problem)}")
    assert isinstance(y, Tensor)
    height, width, channels = volume
    assert y.shape == (1, channels, height, width)
    assert y[0, :, height // 2, width // 2].tolist() == [75] * channels
    assert y[0, 0, 0, 0] == (75 if padding == 0 else 27)


@pytest.mark.parametrize(("filters", "padding", "stride", "volume"), VOLUMES)
def test_volumes_through_the_module(filters: int, padding: int, stride: int, volume: tuple[int, ...]) -> None:
    layer = pyconv.nn.Conv2d(3, filters, 5, stride, padding)
    height, width, channels = volume
    assert layer(torch.randn(3, 32, 32)).shape == (channels, height, width)
    assert layer(torch.randn(7, 3, 32, 32)).shape == (7, channels, height, width)


def test_the_number_of_weights_does_not_depend_on_the_image() -> None:
    layer = pyconv.nn.Conv2d(3, 10, 5)
    assert layer.weight.numel() == 750
    for size in (5, 32, 57):
        y = layer(torch.randn(1, 3, size, size + 2))
        assert y.shape == (1, 10, size - 4, size - 2)
        assert layer.weight.numel() == 750
        assert parse_problem(f"conv2d n1c3h{size}w{size} k10r5s5").w_size == 750  # type: ignore[union-attr]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_lectures_formula(layout: str) -> None:
    """``(n + 2p - f)/s + 1`` on every combination where the division is exact, and on the operator itself."""
    checked = 0
    for n in (5, 7, 8, 12):
        for f in (1, 2, 3, 5):
            for s in (1, 2, 3):
                for p in (0, 1, 2):
                    if n + 2 * p < f or (n + 2 * p - f) % s:
                        continue
                    expected = (n + 2 * p - f) // s + 1
                    problem = parse_problem(f"conv2d n1c2h{n}w{n} k3r{f}s{f} st{s} pd{p} {layout}")
                    assert (problem.p, problem.q) == (expected, expected)
                    y = pyconv.conv2d(torch.ones(1, 2, n, n), torch.ones(3, 2, f, f), stride=s, padding=p)
                    assert y.shape == (1, 3, expected, expected)
                    checked += 1
    assert checked > 50


def test_the_first_layer_of_the_drawn_network() -> None:
    """224x224 to 56x56 by two strides of 2, 64 filters of 5x5: the padding is 2."""
    network = torch.nn.Sequential(pyconv.nn.Conv2d(3, 64, 5, stride=2, padding=2), pyconv.nn.MaxPool2d(2))
    assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 64, 56, 56)


def test_equivariance_to_translation() -> None:
    """The feature of a shifted image is the shifted feature, away from the borders."""
    x, w = torch.randn(1, 3, 16, 16), torch.randn(8, 3, 3, 3)
    y, shifted = pyconv.conv2d(x, w), pyconv.conv2d(x.roll((1, 2), (2, 3)), w)
    torch.testing.assert_close(shifted[:, :, 1:, 2:], y[:, :, :-1, :-2])


@pool_line
def test_pooling_takes_the_largest_of_four(kernel: Kernel, dtype: str, layout: str) -> None:
    y = _run(kernel, f"maxpool2d n1c1h4w4 r2s2 st2 {dtype} {layout}", _image(POOLED_IMAGE, dtype))
    assert isinstance(y, Tensor)
    assert y[0, 0].tolist() == [[6, 8], [3, 4]]


def _shifted_up(image: Tensor) -> Tensor:
    return torch.nn.functional.pad(image[:, :, 1:], (0, 0, 0, 1))


@pool_line
def test_a_shift_by_one_pixel_changes_one_output(kernel: Kernel, dtype: str, layout: str) -> None:
    """The image moves by one pixel, zeros come in: one of the four outputs goes from 3 to 2, three stay."""
    shifted = _shifted_up(_image(POOLED_IMAGE, dtype))
    y = _run(kernel, f"maxpool2d n1c1h4w4 r2s2 st2 {dtype} {layout}", shifted)
    assert isinstance(y, Tensor)
    assert y[0, 0].tolist() == [[6, 8], [2, 4]]
    # The other way the outcome changes quite a bit, as the lecture warns: here all four.
    down = torch.nn.functional.pad(_image(POOLED_IMAGE, dtype)[:, :, :-1], (0, 0, 1, 0))
    y = _run(kernel, f"maxpool2d n1c1h4w4 r2s2 st2 {dtype} {layout}", down)
    assert isinstance(y, Tensor)
    assert y[0, 0].tolist() == [[1, 4], [6, 8]]


@argmax_line
def test_pooling_remembers_where_the_largest_was(kernel: Kernel, dtype: str, layout: str) -> None:
    result = _run(kernel, f"maxpool2d n1c1h4w4 r2s2 st2 {dtype} {layout}", _image(POOLED_IMAGE, dtype))
    assert isinstance(result, tuple)
    y, argmax = result
    assert y[0, 0].tolist() == [[6, 8], [3, 4]]
    assert argmax[0, 0].tolist() == [[5, 7], [8, 15]]


def test_pooling_halves_each_side_of_a_volume() -> None:
    assert pyconv.max_pool2d(torch.randn(1, 64, 224, 224), 2).shape == (1, 64, 112, 112)
