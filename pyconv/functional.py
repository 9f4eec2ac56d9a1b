"""``conv2d`` and ``max_pool2d``: torch's functions, run by pyconv's kernels.

Signatures, defaults, results, memory formats and errors are those of :mod:`torch.nn.functional`. What torch
lacks is an addition: padding per side, as four numbers ``(top, bottom, left, right)``.

Integer, boolean and complex tensors, and tensors with a layout other than strided, are passed to torch's own
operator as they are: pyconv has no kernels for them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from pyconv import ops
from pyconv.autograd import Eager, is_differentiated
from pyconv.plan import MOST_REMEMBERED, plan_for
from pyconv.problem import DTYPE_NAMES, Conv2dProblem, Pool2dProblem
from pyconv.selection import forced as _forced

IntOrPair = int | Sequence[int]
Padding = int | Sequence[int] | str

#: Arguments of an eager call -> the form that runs it. Cleared whenever choices may change.
_plans: dict[Any, Eager] = {}

_PLAIN = (Tensor, torch.nn.Parameter)
_functorch_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_is_compiling = torch.compiler.is_compiling
_is_tracing = torch._C._is_tracing
_autocast_enabled = torch.is_autocast_enabled


def _intercepted() -> bool:
    """Whether a mode, a transform or a tracer stands between the call and the kernels."""
    return bool(_functorch_active() or _dispatch_modes() or _function_modes() or _is_tracing())


def _is_plain(*tensors: Tensor | None) -> bool:
    """Whether the kernels can be called straight: nothing intercepts, no subclass, and data to work on."""
    return not _intercepted() and all(
        tensor is None or (type(tensor) in _PLAIN and not tensor.is_meta) for tensor in tensors
    )


def _autocasts(device_type: str) -> bool:
    # is_autocast_enabled raises for kinds of device that have no autocast, such as meta.
    return torch.amp.is_autocast_available(device_type) and _autocast_enabled(device_type)


# ---- Arguments, with torch's errors ------------------------------------------------------------------------


def _as_int(value: Any) -> int | None:
    """An integer, also one of numpy's or a tensor of one integer; ``None`` for anything else."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value  # type: ignore[return-value]
    if isinstance(value, bool) or (isinstance(value, Tensor) and (value.dim() or value.dtype == torch.bool)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _ints(function: str, name: str, value: Any) -> tuple[int, ...]:
    """``value`` as a tuple of integers, whether it was one integer or a sequence."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    found = [_as_int(item) for item in (value if several else (value,))]
    integers = tuple(item for item in found if item is not None)
    if len(integers) < len(found):
        kind = type(value).__name__
        raise TypeError(f"{function}(): argument '{name}' must be tuple of ints, not {kind} ({value!r})")
    for item in integers:
        if isinstance(item, int) and not -(2**63) <= item < 2**63:
            raise ValueError(f"{function}(): argument '{name}' = {item} does not fit 64 bits")
    return integers


def _conv_pair(name: str, value: Any) -> tuple[int, int]:
    values = _ints("conv2d", name, value)
    if len(values) not in (1, 2):
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of 2 values to match the convolution "
            f"dimensions, but got {name}={list(values)}"
        )
    return values[0], values[-1]


def _conv_padding(
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
    values = _ints("conv2d", "padding", value)
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


def _check_conv_operands(x: Tensor, w: Tensor, bias: Tensor | None, groups: int) -> None:
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


def _check_conv_sizes(
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


def _is_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
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


def _prefers_channels_last(*tensors: Tensor) -> bool:
    return any(_is_channels_last(tensor.shape, tensor.stride()) for tensor in tensors)


# ---- conv2d ------------------------------------------------------------------------------------------


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: Padding = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution (cross-correlation), as :func:`torch.nn.functional.conv2d`.

    ``y[n,k,p,q] = bias[k] + sum over c,r,s of x[n,c, p*stride_h - pad_top + r*dilation_h,
    q*stride_w - pad_left + s*dilation_w] * w[k,c,r,s]``, where x outside the image is zero.

    Args:
        input: ``[n, c, h, w]`` or unbatched ``[c, h, w]``; any strides.
        weight: ``[k, c/groups, r, s]`` of the same dtype.
        bias: ``[k]`` or ``None``.
        stride, dilation: one integer or ``(vertical, horizontal)``.
        padding: one integer, ``(vertical, horizontal)``, ``(top, bottom, left, right)``, ``"valid"`` or
            ``"same"``.
        groups: divides both c and k.

    Returns:
        ``[n, k, p, q]``, channels_last if the input or the weight is, else contiguous.

    float32 and float64 run on pyconv's kernels. float16 and bfloat16 run on the kernels that the table lists
    for them, integers, booleans and complex numbers on torch's own operator.

    Raises:
        RuntimeError, TypeError: as torch, naming the argument.
    """
    if _is_compiling():
        return _conv2d(input, weight, bias, stride, padding, dilation, groups)
    try:
        key: Any = (
            input.shape, input.stride(), weight.shape, weight.stride(), input.dtype, weight.dtype,
            input.device, weight.device, None if bias is None else (bias.shape, bias.dtype, bias.device),
            stride, padding, dilation, groups, _forced(),
            # 1 == True == 1.0, and only the first is right
            type(stride), type(padding), type(dilation), type(groups),
        )  # fmt: skip
        form = _plans.get(key)
    except (AttributeError, TypeError):  # not a tensor, or a list where a tuple could stand
        return _conv2d(input, weight, bias, stride, padding, dilation, groups)
    if (
        form is None
        or _intercepted()
        or type(input) not in _PLAIN
        or type(weight) not in _PLAIN
        or (bias is not None and type(bias) not in _PLAIN)
        or _autocast_enabled(form.plan.device_type)
    ):
        return _conv2d(input, weight, bias, stride, padding, dilation, groups, key)
    return form("fprop", input, weight, bias)  # type: ignore[no-any-return]


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: Padding,
    dilation: IntOrPair,
    groups: int,
    key: Any = None,
) -> Tensor:
    """The whole of :func:`conv2d`: overrides, checks, autocast, and the form for next time."""
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(  # type: ignore[no-any-return]
            conv2d, (input, weight, bias), input, weight, bias, stride, padding, dilation, groups
        )
    if isinstance(input, Tensor) and _autocasts(input.device.type):
        return _autocast_conv2d(input, weight, bias, stride, padding, dilation, groups)
    one_groups = _as_int(groups)
    if one_groups is None:
        raise TypeError(f"conv2d(): argument 'groups' must be int, not {type(groups).__name__}")
    groups = one_groups
    _check_conv_operands(input, weight, bias, groups)
    pair_stride, pair_dilation = _conv_pair("stride", stride), _conv_pair("dilation", dilation)
    sides = _conv_padding(padding, weight.shape[2:], pair_stride, pair_dilation)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    _check_conv_sizes(x.shape, weight.shape, bias, pair_stride, sides, pair_dilation, groups)
    no_kernel = input.dtype not in DTYPE_NAMES or {input.layout, weight.layout} != {torch.strided}
    if no_kernel or 0 in x.shape[1:]:  # torch has an answer of its own to images and channels of no size
        return _aten_conv2d(input, weight, bias, pair_stride, sides, pair_dilation, groups)
    channels_last = _prefers_channels_last(x, weight)
    if _is_compiling() or not _is_plain(input, weight, bias):
        y = torch.ops.pyconv.conv2d_fprop.auto(
            x, weight, bias, pair_stride, sides, pair_dilation, groups, channels_last
        )
    else:
        problem = _described(
            ops.conv2d_problem,
            x.shape,
            weight.shape,
            pair_stride,
            sides,
            pair_dilation,
            groups,
            channels_last,
            x.dtype,
        )
        form = Eager(plan_for(problem, x.device.type))
        _remember(key if input.dim() == 4 else None, form)
        y = form("fprop", x, weight, bias)
    return y if input.dim() == 4 else y.squeeze(0)


def conv2d_problem(layer: torch.nn.Conv2d, input: Tensor) -> Conv2dProblem:
    """The problem that a convolution layer (with padding mode ``zeros``) poses for an input."""
    stride, dilation = _conv_pair("stride", layer.stride), _conv_pair("dilation", layer.dilation)
    weight = layer.weight
    sides = _conv_padding(layer.padding, weight.shape[2:], stride, dilation)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    channels_last = _prefers_channels_last(x, weight)
    return ops.conv2d_problem(
        x.shape, weight.shape, stride, sides, dilation, layer.groups, channels_last, x.dtype
    )


def max_pool2d_problem(layer: torch.nn.MaxPool2d, input: Tensor) -> Pool2dProblem:
    """The problem that a max-pooling layer poses for an input."""
    window = _pool_pair("kernel_size", layer.kernel_size)
    stride = _pool_pair("stride", layer.stride)
    sides, dilation = _pool_padding(layer.padding), _pool_pair("dilation", layer.dilation)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    return ops.pool2d_problem(
        x.shape, window, stride, sides, dilation, layer.ceil_mode, _prefers_channels_last(x), x.dtype
    )


def _described(describe: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return describe(*arguments)
    except ValueError as error:  # torch's type for sizes that no tensor can have
        raise RuntimeError(str(error)) from None


def _remember(key: Any, form: Eager) -> None:
    if key is not None:
        if len(_plans) >= MOST_REMEMBERED:
            _plans.clear()
        _plans[key] = form


def _autocast_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """torch's autocast rule for convolutions: floating-point operands in the autocast dtype."""
    device_type = input.device.type
    dtype = torch.get_autocast_dtype(device_type)

    def cast(tensor: Any) -> Any:
        eligible = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if eligible else tensor

    with torch.autocast(device_type, enabled=False):
        return _conv2d(cast(input), cast(weight), cast(bias), *rest)


def _aten_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """torch's own operator, for dtypes and layouts that pyconv has no kernels for."""
    top, bottom, left, right = sides
    if (top, left) == (bottom, right):
        return F.conv2d(input, weight, bias, stride, (top, left), dilation, groups)
    return F.conv2d(F.pad(input, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)


# ---- max_pool2d --------------------------------------------------------------------------------------


def _pool_pair(name: str, value: Any) -> tuple[int, int]:
    values = _ints("max_pool2d", name, value)
    if len(values) not in (1, 2):
        accepted = {
            "kernel_size": "must either be a single int, or a tuple of two ints",
            "stride": "must either be omitted, a single int, or a tuple of two ints",
            "dilation": "must be either a single int, or a tuple of two ints",
        }
        raise RuntimeError(f"max_pool2d: {name} {accepted[name]}")
    return values[0], values[-1]


def _pool_padding(value: Any) -> tuple[int, int, int, int]:
    values = _ints("max_pool2d", "padding", value)
    if len(values) not in (1, 2, 4):
        raise RuntimeError(
            "max_pool2d: padding must either be a single int, or a tuple of two ints, or of four "
            f"(top, bottom, left, right), but got {list(values)}"
        )
    if len(values) == 4:
        top, bottom, left, right = values
        return top, bottom, left, right
    return values[0], values[0], values[-1], values[-1]


def _check_pool(
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


def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: int | Sequence[int] = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """2-D max-pooling, as :func:`torch.nn.functional.max_pool2d`.

    ``y[n,c,p,q]`` is the largest of ``x[n,c, p*stride_h - pad_top + r*dilation_h, ...]`` over the places of
    the window that lie inside the image. The first of equal values wins, in row-major order; a NaN beats
    every number.

    Args:
        input: ``[n, c, h, w]`` or unbatched ``[c, h, w]``.
        kernel_size, stride, dilation: one integer or ``(vertical, horizontal)``; stride defaults to
            kernel_size.
        padding: one integer, ``(vertical, horizontal)`` or ``(top, bottom, left, right)``, each at most half
            the window.
        ceil_mode: also take a last, partial window that starts inside the image or its leading padding.
        return_indices: also return int64 places ``h * w_extent + w`` within each plane.

    Returns:
        ``y`` or ``(y, indices)``, in the memory format of the input.

    float32 and float64 run on pyconv's kernels, integers on torch's own operator.

    Raises:
        RuntimeError, TypeError: as torch, naming the argument.
    """
    if _is_compiling():
        return _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    try:
        key: Any = (
            "pool", input.shape, input.stride(), input.dtype, input.device,
            kernel_size, stride, padding, dilation, ceil_mode, _forced(),
            type(kernel_size), type(stride), type(padding), type(dilation), type(ceil_mode),
        )  # fmt: skip
        form = _plans.get(key)
    except (AttributeError, TypeError):
        return _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if form is None or _intercepted() or type(input) not in _PLAIN:
        return _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, key)
    return _run_pool(form, input, return_indices)


def _run_pool(form: Eager, x: Tensor, return_indices: bool) -> Any:
    if return_indices:
        y, argmax = form("fprop_argmax", x)
        return y, argmax.long()
    if is_differentiated(x):
        return form("fprop_argmax", x)[0]
    return form.plan.launch("fprop", x)


def _max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None,
    padding: int | Sequence[int],
    dilation: IntOrPair,
    ceil_mode: bool,
    return_indices: bool,
    key: Any = None,
) -> Any:
    if has_torch_function_unary(input):
        return handle_torch_function(
            max_pool2d, (input,), input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
        )
    if not isinstance(input, Tensor):
        raise TypeError(f"max_pool2d(): argument 'input' must be Tensor, not {type(input).__name__}")
    window = _pool_pair("kernel_size", kernel_size)
    has_stride = stride is not None and not (isinstance(stride, Sequence) and len(stride) == 0)
    pair_stride = _pool_pair("stride", stride) if has_stride else window
    sides, pair_dilation = _pool_padding(padding), _pool_pair("dilation", dilation)
    if not isinstance(ceil_mode, bool):
        kind = type(ceil_mode).__name__
        raise TypeError(f"max_pool2d(): argument 'ceil_mode' must be bool, not {kind}")
    _check_pool(input.shape, window, pair_stride, sides, pair_dilation, ceil_mode)
    if input.dtype not in DTYPE_NAMES or input.layout != torch.strided:
        return _aten_max_pool2d(input, window, pair_stride, sides, pair_dilation, ceil_mode, return_indices)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    channels_last = _prefers_channels_last(x)
    if _is_compiling() or not _is_plain(input):
        arguments = (x, window, pair_stride, sides, pair_dilation, ceil_mode, channels_last)
        if return_indices:
            y, argmax = torch.ops.pyconv.max_pool2d_argmax.auto(*arguments)
            result: Any = (y, argmax.long())
        else:
            result = torch.ops.pyconv.max_pool2d.auto(*arguments)
    else:
        problem = _described(
            ops.pool2d_problem,
            x.shape,
            window,
            pair_stride,
            sides,
            pair_dilation,
            ceil_mode,
            channels_last,
            x.dtype,
        )
        form = Eager(plan_for(problem, x.device.type))
        _remember(key if input.dim() == 4 else None, form)
        result = _run_pool(form, x, return_indices)
    if input.dim() == 4:
        return result
    return tuple(part.squeeze(0) for part in result) if return_indices else result.squeeze(0)


def _aten_max_pool2d(
    input: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    """torch's own operator, for dtypes and layouts that pyconv has no kernels for."""
    top, bottom, left, right = sides
    if (top, left) != (bottom, right):
        _no_kernel(f"max_pool2d: padding per side takes floating-point tensors, not {input.dtype}")
    return F.max_pool2d(  # type: ignore[call-overload]
        input, window, stride, (top, left), dilation, ceil_mode, return_indices=return_indices
    )


def _no_kernel(message: str) -> NoReturn:
    raise NotImplementedError(message)
