"""``conv2d`` and ``max_pool2d``: torch's functions, run by pyconv's kernels.

Signatures, defaults, results, memory formats and errors are those of :mod:`torch.nn.functional`. What torch
lacks is an addition: padding per side, as four numbers ``(top, bottom, left, right)``.

Integer, boolean and complex tensors, and tensors with a layout other than strided, are passed to torch's own
operator as they are: pyconv has no kernels for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from pyconv import ops
from pyconv.arguments import (
    IntOrPair,
    Padding,
    as_int,
    check_conv_operands,
    check_conv_sizes,
    check_pool,
    conv_padding,
    conv_pair,
    pool_padding,
    pool_pair,
    prefers_channels_last,
)
from pyconv.autograd import Eager, is_differentiated
from pyconv.backends.cuda import emulation as _emulation
from pyconv.plan import MOST_REMEMBERED, plan_for
from pyconv.problem import DTYPE_NAMES, Conv2dProblem, Pool2dProblem
from pyconv.selection import forced as _forced
from pyconv.selection import tf32
from pyconv.switches import current as _switches

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

    float16, bfloat16, float32 and float64 run on pyconv's kernels, which sum 16-bit products in float32 and
    round once; integers, booleans and complex numbers run on torch's own operator.

    Raises:
        RuntimeError, TypeError: as torch, naming the argument.
    """
    if _is_compiling():
        return _conv2d(input, weight, bias, stride, padding, dilation, groups)
    try:
        key: Any = (
            input.shape, input.stride(), weight.shape, weight.stride(), input.dtype, weight.dtype,
            input.device, weight.device, None if bias is None else (bias.shape, bias.dtype, bias.device),
            stride, padding, dilation, groups, _forced(), _emulation(), _switches(),
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
        or (form.plan.tf32 is not None and form.plan.tf32 != tf32())
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
    one_groups = as_int(groups)
    if one_groups is None:
        raise TypeError(f"conv2d(): argument 'groups' must be int, not {type(groups).__name__}")
    groups = one_groups
    check_conv_operands(input, weight, bias, groups)
    pair_stride, pair_dilation = conv_pair("stride", stride), conv_pair("dilation", dilation)
    sides = conv_padding(padding, weight.shape[2:], pair_stride, pair_dilation)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    check_conv_sizes(x.shape, weight.shape, bias, pair_stride, sides, pair_dilation, groups)
    no_kernel = input.dtype not in DTYPE_NAMES or {input.layout, weight.layout} != {torch.strided}
    if no_kernel or 0 in x.shape[1:]:  # torch has an answer of its own to images and channels of no size
        return _aten_conv2d(input, weight, bias, pair_stride, sides, pair_dilation, groups)
    channels_last = prefers_channels_last(x, weight)
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
    stride, dilation = conv_pair("stride", layer.stride), conv_pair("dilation", layer.dilation)
    weight = layer.weight
    sides = conv_padding(layer.padding, weight.shape[2:], stride, dilation)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    channels_last = prefers_channels_last(x, weight)
    return ops.conv2d_problem(
        x.shape, weight.shape, stride, sides, dilation, layer.groups, channels_last, x.dtype
    )


def max_pool2d_problem(layer: torch.nn.MaxPool2d, input: Tensor) -> Pool2dProblem:
    """The problem that a max-pooling layer poses for an input."""
    window = pool_pair("kernel_size", layer.kernel_size)
    stride = pool_pair("stride", layer.stride)
    sides, dilation = pool_padding(layer.padding), pool_pair("dilation", layer.dilation)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    return ops.pool2d_problem(
        x.shape, window, stride, sides, dilation, layer.ceil_mode, prefers_channels_last(x), x.dtype
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

    Floating-point tensors run on pyconv's kernels, integers on torch's own operator.

    Raises:
        RuntimeError, TypeError: as torch, naming the argument.
    """
    if _is_compiling():
        return _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    try:
        key: Any = (
            "pool", input.shape, input.stride(), input.dtype, input.device,
            kernel_size, stride, padding, dilation, ceil_mode, _forced(), _emulation(), _switches(),
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
        return form(form.plan.argmax_pass, x)[0]
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
    window = pool_pair("kernel_size", kernel_size)
    has_stride = stride is not None and not (isinstance(stride, Sequence) and len(stride) == 0)
    pair_stride = pool_pair("stride", stride) if has_stride else window
    sides, pair_dilation = pool_padding(padding), pool_pair("dilation", dilation)
    if not isinstance(ceil_mode, bool):
        kind = type(ceil_mode).__name__
        raise TypeError(f"max_pool2d(): argument 'ceil_mode' must be bool, not {kind}")
    check_pool(input.shape, window, pair_stride, sides, pair_dilation, ceil_mode)
    if input.dtype not in DTYPE_NAMES or input.layout != torch.strided:
        return _aten_max_pool2d(input, window, pair_stride, sides, pair_dilation, ceil_mode, return_indices)
    x = input if input.dim() == 4 else input.unsqueeze(0)
    channels_last = prefers_channels_last(x)
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
