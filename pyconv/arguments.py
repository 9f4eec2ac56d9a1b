"""Arguments of the public functions: in one form, and checked with torch's errors in torch's order."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyconv import ops

IntOrPair = int | Sequence[int]
Padding = int | Sequence[int] | str


def as_int(value: Any) -> int | None:
    """An integer, also one of numpy's or a tensor of one integer; ``None`` for anything else."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value  # type: ignore[return-value]
    if isinstance(value, bool) or (isinstance(value, Tensor) and (value.dim() or value.dtype == torch.bool)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def ints(function: str, name: str, value: Any) -> tuple[int, ...]:
    """``value`` as a tuple of integers, whether it was one integer or a sequence."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    found = [as_int(item) for item in (value if several else (value,))]
    integers = tuple(item for item in found if item is not None)
    if len(integers) < len(found):
        kind = type(value).__name__
        raise TypeError(f"{function}(): argument '{name}' must be tuple of ints, not {kind} ({value!r})")
    for item in integers:
        if isinstance(item, int) and not -(2**63) <= item < 2**63:
            raise ValueError(f"{function}(): argument '{name}' = {item} does not fit 64 bits")
    return integers


def conv_pair(name: str, value: Any) -> tuple[int, int]:
    values = ints("conv2d", name, value)
    if len(values) not in (1, 2):
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of 2 values to match the convolution "
            f"dimensions, but got {name}={list(values)}"
        )
    return values[0], values[-1]


def conv_padding(
    value: Padding, filter_size: Sequence[int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    if isinstance(value, str):
        if value == "valid":
            return 0, 0, 0, 0
        if value != "same":
            raise RuntimeError(f"Invalid padding string: '{value}'")
        if stride != (1, 1):
            raise RuntimeError("padding='same' is not supported for strided convolutions")
        vertical, horizontal = (d * (size - 1) for d, size in zip(dilation, filter_size, strict=True))
        # The extra element of an odd total goes after, as torch does it.
        return vertical // 2, vertical - vertical // 2, horizontal // 2, horizontal - horizontal // 2
    values = ints("conv2d", "padding", value)
    if len(values) not in (1, 2, 4):
        raise RuntimeError(
            "expected padding to be a single integer value or a list of 2 values to match the convolution "
            "dimensions, or of 4 values (top, bottom, left, right), "
            f"but got padding={list(values)}"
        )
    if len(values) == 4:
        top, bottom, left, right = values
        return top, bottom, left, right
    return values[0], values[0], values[-1], values[-1]


def check_conv_operands(x: Tensor, w: Tensor, bias: Tensor | None, groups: int) -> None:
    for name, tensor in (("input", x), ("weight", w), ("bias", bias)):
        if not isinstance(tensor, Tensor) and not (name == "bias" and tensor is None):
            raise TypeError(f"conv2d(): argument '{name}' must be Tensor, not {type(tensor).__name__}")
    if groups <= 0:
        raise RuntimeError("non-positive groups is not supported")
    if x.dim() not in (3, 4):
        raise RuntimeError(
            f"Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: {list(x.shape)}"
        )
    if w.dim() != 4:
        # torch's words for a batched input; an unbatched one meets the same rule.
        raise RuntimeError(
            f"Expected {w.dim()}-dimensional input for {w.dim()}-dimensional weight {list(w.shape)}, "
            f"but got {x.dim()}-dimensional input of size {list(x.shape)} instead"
        )
    if x.dtype != w.dtype:
        raise RuntimeError(f"Input type ({x.dtype}) and weight type ({w.dtype}) should be the same")
    if bias is not None and bias.dtype != x.dtype:
        raise RuntimeError(f"Input type ({x.dtype}) and bias type ({bias.dtype}) should be the same")
    for name, tensor in (("weight", w), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but input is on {x.device} and {name} is on "
                f"{tensor.device}"
            )


def check_conv_sizes(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    """``x_shape`` is batched."""
    if min(stride) <= 0:
        raise RuntimeError("non-positive stride is not supported")
    if min(padding) < 0:
        raise RuntimeError("negative padding is not supported")
    if min(dilation) <= 0:
        raise RuntimeError("dilation should be greater than zero: non-positive dilation is not supported")
    if w_shape[0] < groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, "
            f"but got weight of size {list(w_shape)} instead"
        )
    if w_shape[0] % groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, "
            f"but got weight of size {list(w_shape)} instead"
        )
    if x_shape[1] != w_shape[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(w_shape)}, expected input{list(x_shape)} to have "
            f"{w_shape[1] * groups} channels, but got {x_shape[1]} channels instead"
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != w_shape[0]):
        raise RuntimeError(
            f"Given weight of size {list(w_shape)}, expected bias to be 1-dimensional with {w_shape[0]} "
            f"elements, but got bias of size {list(bias.shape)} instead"
        )
    if min(w_shape[2:]) <= 0:
        raise RuntimeError(f"expected a filter of at least 1x1, but got weight of size {list(w_shape)}")
    padded = (x_shape[2] + padding[0] + padding[1], x_shape[3] + padding[2] + padding[3])
    effective = tuple(d * (size - 1) + 1 for d, size in zip(dilation, w_shape[2:], strict=True))
    if padded[0] < effective[0] or padded[1] < effective[1]:
        raise RuntimeError(
            f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). "
            f"Kernel size: ({effective[0]} x {effective[1]}). "
            "Kernel size can't be greater than actual input size"
        )


def is_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """torch's ``suggest_memory_format`` for a 4-D tensor (c10/core/MemoryFormat.h), ambiguities included."""
    least = 0
    if strides[1] == 0:
        return False
    for axis in (1, 3, 2, 0):
        if shape[axis] == 0 or strides[axis] < least:
            return False
        if axis == 0 and least == strides[1]:
            return False
        least = strides[axis] * max(shape[axis], 1)
    return True


def prefers_channels_last(*tensors: Tensor) -> bool:
    return any(is_channels_last(tensor.shape, tensor.stride()) for tensor in tensors)


def pool_pair(name: str, value: Any) -> tuple[int, int]:
    values = ints("max_pool2d", name, value)
    if len(values) not in (1, 2):
        accepted = {
            "kernel_size": "must either be a single int, or a tuple of two ints",
            "stride": "must either be omitted, a single int, or a tuple of two ints",
            "dilation": "must be either a single int, or a tuple of two ints",
        }
        raise RuntimeError(f"max_pool2d: {name} {accepted[name]}")
    return values[0], values[-1]


def pool_padding(value: Any) -> tuple[int, int, int, int]:
    values = ints("max_pool2d", "padding", value)
    if len(values) not in (1, 2, 4):
        raise RuntimeError(
            "max_pool2d: padding must either be a single int, or a tuple of two ints, or of four "
            f"(top, bottom, left, right), but got {list(values)}"
        )
    if len(values) == 4:
        top, bottom, left, right = values
        return top, bottom, left, right
    return values[0], values[0], values[-1], values[-1]


def check_pool(
    shape: Sequence[int],
    window: tuple[int, int],
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
) -> None:
    """torch's checks, in torch's order: the first that fails is the one a user sees."""
    if len(shape) not in (3, 4):
        raise RuntimeError("non-empty 3D or 4D (batch mode) tensor expected for input")
    if 0 in stride:
        raise RuntimeError("stride should not be zero")
    widest = max(sides[:2]), max(sides[2:])
    if min(sides) < 0:
        raise RuntimeError(f"pad must be non-negative, but got pad: {min(sides)}")
    for axis in (0, 1):
        # int() rounds towards 0 as C++ does, which tells for the windows below 1 that come to the next check
        if widest[axis] > int((dilation[axis] * (window[axis] - 1) + 1) / 2):
            raise RuntimeError(
                "pad should be at most half of effective kernel size, but got "
                f"pad={widest[axis]}, kernel_size={window[axis]} and dilation={dilation[axis]}"
            )
    for name, letters, pair in (
        ("kernel size", ("kH", "kW"), window),
        ("stride", ("dH", "dW"), stride),
        ("dilation", ("dilationH", "dilationW"), dilation),
    ):
        if min(pair) <= 0:
            raise RuntimeError(
                f"{name} should be greater than zero, but got {letters[0]}: {pair[0]} {letters[1]}: {pair[1]}"
            )
    if 0 in shape[-3:]:  # only the batch may be empty
        raise RuntimeError(
            "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, "
            f"but got:{list(shape)}"
        )
    if widest[0] > window[0] // 2 or widest[1] > window[1] // 2:
        raise RuntimeError(
            "pad should be smaller than or equal to half of kernel size, but got "
            f"padW = {widest[1]}, padH = {widest[0]}, kW = {window[1]}, kH = {window[0]}"
        )
    c, h, w = shape[-3:]
    p = ops.pool_extent(h, *sides[:2], window[0], stride[0], dilation[0], ceil_mode)
    q = ops.pool_extent(w, *sides[2:], window[1], stride[1], dilation[1], ceil_mode)
    if p < 1 or q < 1:
        raise RuntimeError(
            f"Given input size: ({c}x{h}x{w}). Calculated output size: ({c}x{p}x{q}). "
            "Output size is too small"
        )
