# ruff: noqa: E501 (one wrong call a line)
"""Wrong calls raise what torch raises: the same exception type, and torch's words.

Each call is made on torch and on pyconv, and what torch says is the expectation. Where ours differs on
purpose, the call stands in a second list with the reason and with our words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pyconv

X, W, B = torch.randn(2, 4, 6, 6), torch.randn(6, 4, 3, 3), torch.randn(6)

#: The same type, and the same first line.
SAME_CONV: dict[str, tuple[Any, ...]] = {
    "2-D input": (X[0, 0], W),
    "5-D input": (X[None], W),
    "0-D input": (X[0, 0, 0, 0], W),
    "too few channels": (X[:, :3], W),
    "too few channels, unbatched": (X[0, :3], W),
    "too few channels, same": (X[:, :3], W, None, 1, "same"),
    "channels do not match groups": (X, W, None, 1, 0, 1, 2),
    "groups do not fit any filter": (X, W[:1, :2], None, 1, 0, 1, 2),
    "groups beyond everything": (X, W, None, 1, 0, 1, 2**40),
    "no filters": (X, W[:0]),
    "no filters, with bias": (X, W[:0], B[:0]),
    "filter larger than the image": (X[:, :, :2, :2], W),
    "filter larger than the image, unbatched": (X[0, :, :2, :2], W),
    "filter larger than the image, one axis": (X[:, :, :2], W),
    "filter larger than the padded image": (X[:, :, :1, :1], W, None, 1, (0, 1)),
    "dilated filter larger than the image": (X, W, None, 1, 0, 3),
    "image of no rows": (X[:, :, :0], W),
    "image of no rows, padded": (X[:, :, :0], W, None, 1, 2),
    "input and weight swapped": (W, X),
    "bias of another length": (X, W, B[:5]),
    "2-D bias": (X, W, B[None]),
    "0-D bias": (X, W, B[0]),
    "stride 0": (X, W, B, 0),
    "stride 0 on one axis": (X, W, B, (1, 0)),
    "stride -1": (X, W, B, -1),
    "three strides": (X, W, B, (1, 1, 1)),
    "no stride": (X, W, B, ()),
    "padding -1": (X, W, B, 1, -1),
    "padding -1 on one axis": (X, W, B, 1, (0, -1)),
    "unknown padding": (X, W, B, 1, "full"),
    "same with stride": (X, W, B, 2, "same"),
    "three dilations": (X, W, B, 1, 0, (1, 1, 1)),
    "groups 0": (X, W, B, 1, 0, 1, 0),
    "groups -1": (X, W, B, 1, 0, 1, -1),
    "sparse input": (X.to_sparse(), W),
    "sparse weight": (X, W.to_sparse()),
}

#: The same type; our words, and why they are not torch's.
OUR_CONV: dict[str, tuple[tuple[Any, ...], str]] = {
    # torch complains of the length of a stride that was not given.
    "3-D weight": ((X, W[0]), "Expected 3-dimensional input for 3-dimensional weight [4, 3, 3]"),
    "5-D weight": ((X, W[None]), "Expected 5-dimensional input for 5-dimensional weight [1, 6, 4, 3, 3]"),
    "3-D weight, same": ((X, W[0], None, 1, "same"), "Expected 3-dimensional input for 3-dimensional weight"),
    "1-D weight": ((X, W[0, 0, 0]), "Expected 1-dimensional input for 1-dimensional weight [3]"),
    # torch prints the size in two pairs of brackets.
    "filters not divisible by groups": (
        (X, W[:5, :2], None, 1, 0, 1, 2),
        "Given groups=2, expected weight to be divisible by 2 at dimension 0, but got weight of size [5, 2, 3, 3]",
    ),
    # Four numbers are a padding here, so the accepted forms are one more.
    "three paddings": ((X, W, B, 1, (1, 1, 1)), "or of 4 values (top, bottom, left, right), but got padding=[1, 1, 1]"),
    "five paddings": ((X, W, B, 1, (1,) * 5), "but got padding=[1, 1, 1, 1, 1]"),
    "no padding": ((X, W, B, 1, ()), "but got padding=[]"),
    # torch has two wordings, depending on the kernel that would have run; ours has both.
    "dilation 0": ((X, W, B, 1, 0, 0), "non-positive dilation is not supported"),
    "dilation -1": ((X, W, B, 1, 0, -1), "dilation should be greater than zero"),
    # oneDNN's "could not create a primitive descriptor" names nothing.
    "filter of no rows": ((X, W[:, :, :0]), "expected a filter of at least 1x1, but got weight of size [6, 4, 0, 3]"),
    # torch's words depend on the kernel and name tensor types that few remember.
    "double weight": ((X, W.double()), "Input type (torch.float32) and weight type (torch.float64) should be the same"),
    "integer input": ((X.long(), W), "Input type (torch.int64) and weight type (torch.float32) should be the same"),
    "half input": ((X.half(), W), "Input type (torch.float16) and weight type (torch.float32) should be the same"),
    "complex input": ((X.cfloat(), W), "Input type (torch.complex64) and weight type (torch.float32) should be the same"),
    "double bias": ((X, W, B.double()), "Input type (torch.float32) and bias type (torch.float64) should be the same"),
    # torch prints every signature and does not say which argument is wrong.
    "no input": ((None, W), "conv2d(): argument 'input' must be Tensor, not NoneType"),
    "list as input": (([1.0], W), "conv2d(): argument 'input' must be Tensor, not list"),
    "array as input": ((X.numpy(), W), "conv2d(): argument 'input' must be Tensor, not ndarray"),
    "no weight": ((X, None), "conv2d(): argument 'weight' must be Tensor, not NoneType"),
    "list as bias": ((X, W, [1.0]), "conv2d(): argument 'bias' must be Tensor, not list"),
    "float stride": ((X, W, B, 1.0), "argument 'stride' must be tuple of ints, not float"),
    "bool stride": ((X, W, B, True), "argument 'stride' must be tuple of ints, not bool"),
    "text as stride": ((X, W, B, "1"), "argument 'stride' must be tuple of ints, not str"),
    "stride None": ((X, W, B, None), "argument 'stride' must be tuple of ints, not NoneType"),
    "bool in stride": ((X, W, B, (True, 1)), "argument 'stride' must be tuple of ints"),
    "float in stride": ((X, W, B, (1, 2.0)), "argument 'stride' must be tuple of ints"),
    "array as stride": ((X, W, B, np.array([1, 2])), "argument 'stride' must be tuple of ints"),
    "tensor of two as stride": ((X, W, B, torch.tensor([1, 2])), "argument 'stride' must be tuple of ints"),
    "set as stride": ((X, W, B, {1}), "argument 'stride' must be tuple of ints, not set"),
    "float padding": ((X, W, B, 1, 0.5), "argument 'padding' must be tuple of ints, not float"),
    "padding None": ((X, W, B, 1, None), "argument 'padding' must be tuple of ints, not NoneType"),
    "float dilation": ((X, W, B, 1, 0, 1.5), "argument 'dilation' must be tuple of ints, not float"),
    "float groups": ((X, W, B, 1, 0, 1, 1.0), "argument 'groups' must be int, not float"),
    "bool groups": ((X, W, B, 1, 0, 1, True), "argument 'groups' must be int, not bool"),
    "text as groups": ((X, W, B, 1, 0, 1, "1"), "argument 'groups' must be int, not str"),
    "groups None": ((X, W, B, 1, 0, 1, None), "argument 'groups' must be int, not NoneType"),
    "tuple as groups": ((X, W, B, 1, 0, 1, (1,)), "argument 'groups' must be int, not tuple"),
    "no weight at all": ((X,), "missing 1 required positional argument: 'weight'"),
    "one argument too many": ((X, W, B, 1, 0, 1, 1, 1), "takes from 2 to 7 positional arguments but 8 were given"),
    # Sizes past int64 are torch's business in words; the type is what matters.
    "padding past int64": ((X, W, B, 1, 2**62), ""),
    "stride past int64": ((X, W, B, 2**70), ""),
}  # fmt: skip

SAME_POOL: dict[str, tuple[Any, ...]] = {
    "window 0": (X, 0),
    "window 0 on one axis": (X, (2, 0)),
    "window 0, integers": (X.long(), 0),
    "window 0 with a stride": (X, 0, 1),
    "window -1": (X, -1),
    "three windows": (X, (1, 1, 1)),
    "no window": (X, ()),
    "stride 0": (X, 2, 0),
    "stride 0 on one axis": (X, 2, (1, 0)),
    "stride -1": (X, 2, -1),
    "three strides": (X, 2, (1, 1, 1)),
    "padding -1": (X, 2, 2, -1),
    "padding beyond half the window": (X, 2, 2, 2),
    "padding beyond half the window, dilated": (X, 2, 2, 2, 3),
    "dilation 0": (X, 2, 2, 0, 0),
    "dilation -1": (X, 2, 2, 0, -1),
    "three dilations": (X, 2, 2, 0, (1, 1, 1)),
    "no dilation": (X, 2, 2, 0, ()),
    "2-D input": (X[0, 0], 2),
    "5-D input": (X[None], 2),
    "0-D input": (X[0, 0, 0, 0], 2),
    "no channels": (X[:, :0], 2),
    "no rows": (X[:, :, :0], 2),
    "no samples, no channels": (X[:0, :0], 2),
    "unbatched, no channels": (X[0, :0], 2),
    "window larger than the image": (X, 7),
    "window larger than the image, unbatched": (X[0], 7),
    "window larger than the image, one axis": (X, (1, 7)),
    "dilated window larger than the image": (X, 3, 1, 0, 3),
    "integers, window larger than the image": (X.long(), 7),
    "bool": (X > 0, 2),
    "complex": (X.cfloat(), 2),
}

OUR_POOL: dict[str, tuple[tuple[Any, ...], str]] = {
    # Four numbers are a padding here.
    "three paddings": ((X, 2, 2, (0, 0, 0)), "or of four (top, bottom, left, right), but got [0, 0, 0]"),
    "no padding": ((X, 2, 2, ()), "or of four (top, bottom, left, right), but got []"),
    # torch adds the argument's position, which depends on the function that F.max_pool2d forwards to.
    "float window": ((X, 2.0), "max_pool2d(): argument 'kernel_size' must be tuple of ints, not float"),
    "bool window": ((X, True), "max_pool2d(): argument 'kernel_size' must be tuple of ints, not bool"),
    "text as window": ((X, "2"), "max_pool2d(): argument 'kernel_size' must be tuple of ints, not str"),
    "window None": ((X, None), "max_pool2d(): argument 'kernel_size' must be tuple of ints, not NoneType"),
    "float stride": ((X, 2, 1.0), "max_pool2d(): argument 'stride' must be tuple of ints, not float"),
    "float padding": ((X, 2, 2, 0.5), "max_pool2d(): argument 'padding' must be tuple of ints, not float"),
    "text as padding": ((X, 2, 2, "same"), "max_pool2d(): argument 'padding' must be tuple of ints, not str"),
    "padding None": ((X, 2, 2, None), "max_pool2d(): argument 'padding' must be tuple of ints, not NoneType"),
    "float dilation": ((X, 2, 2, 0, 1.0), "max_pool2d(): argument 'dilation' must be tuple of ints, not float"),
    "ceil_mode None": ((X, 2, 2, 0, 1, None), "max_pool2d(): argument 'ceil_mode'"),
    "ceil_mode 1": ((X, 2, 2, 0, 1, 1), "max_pool2d(): argument 'ceil_mode'"),
    "text as ceil_mode": ((X, 2, 2, 0, 1, "yes"), "max_pool2d(): argument 'ceil_mode'"),
    "no input": ((None, 2), "max_pool2d(): argument 'input' must be Tensor, not NoneType"),
    "list as input": (([1.0], 2), "max_pool2d(): argument 'input' must be Tensor, not list"),
    "array as input": ((X.numpy(), 2), "max_pool2d(): argument 'input' must be Tensor, not ndarray"),
    "no window at all": ((X,), "missing 1 required positional argument: 'kernel_size'"),
    "stride past int64": ((X, 2, 2**70), ""),
}  # fmt: skip


def _error(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011 (which one is the question)
        function(*arguments)
    return raised.value


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


def _same(ours: Callable[..., Any], torchs: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    expected = _error(torchs, arguments)
    raised = _error(ours, arguments)
    assert type(raised) is type(expected), (raised, expected)
    assert _first_line(raised) == _first_line(expected)


@pytest.mark.parametrize("name", SAME_CONV)
def test_conv2d_raises_as_torch(name: str) -> None:
    _same(pyconv.conv2d, F.conv2d, SAME_CONV[name])


@pytest.mark.parametrize("name", SAME_POOL)
def test_max_pool2d_raises_as_torch(name: str) -> None:
    _same(pyconv.max_pool2d, F.max_pool2d, SAME_POOL[name])


@pytest.mark.parametrize("name", OUR_CONV)
def test_conv2d_raises_torchs_type_in_our_words(name: str) -> None:
    arguments, words = OUR_CONV[name]
    raised = _error(pyconv.conv2d, arguments)
    assert type(raised) is type(_error(F.conv2d, arguments)), raised
    assert words in str(raised)


@pytest.mark.parametrize("name", OUR_POOL)
def test_max_pool2d_raises_torchs_type_in_our_words(name: str) -> None:
    arguments, words = OUR_POOL[name]
    raised = _error(pyconv.max_pool2d, arguments)
    assert type(raised) is type(_error(F.max_pool2d, arguments)), raised
    assert words in str(raised)


def test_unknown_keywords() -> None:
    for ours, torchs, named in (
        (pyconv.conv2d, F.conv2d, {"weight": W, "strides": 1}),
        (pyconv.max_pool2d, F.max_pool2d, {"kernel_size": 2, "strides": 1}),
    ):
        for function in (ours, torchs):
            with pytest.raises(TypeError, match="strides"):
                function(X, **named)


def test_what_differs_in_kind_on_purpose() -> None:
    # torch: NotImplementedError of its kernel, a kind of RuntimeError; the operands' disagreement comes first here.
    with pytest.raises(RuntimeError, match=r"torch\.bool.*torch\.float32.*should be the same"):
        pyconv.conv2d(X > 0, W)
    # torch silently takes a meta tensor beside a real one and returns a meta tensor.
    for arguments in ((X.to("meta"), W), (X, W.to("meta")), (X, W, B.to("meta"))):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            pyconv.conv2d(*arguments)


def test_a_failed_call_leaves_nothing_behind() -> None:
    before = dict(pyconv.functional._plans)
    for arguments in SAME_CONV.values():
        _error(pyconv.conv2d, arguments)
        _error(pyconv.conv2d, arguments)
    for arguments in SAME_POOL.values():
        _error(pyconv.max_pool2d, arguments)
        _error(pyconv.max_pool2d, arguments)
    assert pyconv.functional._plans == before


@pytest.mark.parametrize("two", [np.int64(2), np.int32(2), torch.tensor(2)], ids=repr)
def test_whatever_torch_takes_for_an_integer(two: Any) -> None:
    one = two - 1
    for arguments in (
        (X, W, B, two),
        (X, W, B, (two, 1)),
        (X, W, B, 1, two, two),
        (X, W, B, 1, (one, 0), 1, one),
    ):
        torch.testing.assert_close(pyconv.conv2d(*arguments), F.conv2d(*arguments))
    for arguments in ((X, two), (X, (two, 3)), (X, 2, two, one), (X, 2, 1, 0, (one, two))):
        assert torch.equal(pyconv.max_pool2d(*arguments), F.max_pool2d(*arguments))
