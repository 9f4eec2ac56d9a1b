"""The registered operators ``torch.ops.pyconv.*``: schemas and fakes, defined once in Python.

Each operator has two overloads. ``default`` takes the name of the kernel to run and is implemented by every
backend: the CPU in ``kernels/bindings.cpp`` through torch's stable ABI; CUDA, and the CPU where that library
is missing, here. ``auto`` leaves the choice to :mod:`pyconv.selection` at the moment of the call, so a
compiled or exported graph holds no choice that was right only on the machine it was traced on.

``channels_last`` is the layout of the problem and so of every tensor the operator returns; operands in
another layout are copied into it. Padding is always four numbers, ``top, bottom, left, right``. ``argmax`` is
int32, the place ``h * w_extent + w`` within a plane.

Derivatives of every order are registered by :mod:`pyconv.autograd`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pyconv import backends
from pyconv.backends import cpu, cuda
from pyconv.plan import MOST_REMEMBERED, plan_for
from pyconv.problem import DTYPE_NAMES, Conv2dProblem, Pool2dProblem, Problem
from pyconv.registry import kernels

_WHERE = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
_CONV = f"{_WHERE}, SymInt groups, bool channels_last"
_POOL = f"SymInt[] window, {_WHERE}, bool ceil_mode, bool channels_last"

#: Operator -> (arguments without ``kernel``, returns).
SCHEMAS = {
    "conv2d_fprop": (f"Tensor x, Tensor w, Tensor? bias, {_CONV}", "Tensor"),
    "conv2d_dgrad": (f"Tensor dy, Tensor w, SymInt[] input_size, {_CONV}", "Tensor"),
    "conv2d_wgrad": (f"Tensor x, Tensor dy, SymInt[] filter_size, {_CONV}", "Tensor"),
    "conv2d_bgrad": ("Tensor dy, bool channels_last", "Tensor"),
    "max_pool2d": (f"Tensor x, {_POOL}", "Tensor"),
    "max_pool2d_argmax": (f"Tensor x, {_POOL}", "(Tensor, Tensor)"),
    "max_pool2d_dgrad": (f"Tensor dy, Tensor argmax, SymInt[] input_size, {_POOL}", "Tensor"),
    "max_pool2d_gather": (f"Tensor x, Tensor argmax, {_POOL}", "Tensor"),
}

library = torch.library.Library("pyconv", "DEF")
for _name, (_arguments, _returns) in SCHEMAS.items():
    _tags = (torch.Tag.pt2_compliant_tag,)
    library.define(f"{_name}({_arguments}, str kernel) -> {_returns}", tags=_tags)
    library.define(f"{_name}.auto({_arguments}) -> {_returns}", tags=_tags)

# How pyconv.backends.cpu launches: `bound` is the number of a kernel and a problem, which spares each call
# the handing over of a dozen integers. They have no derivative and no fake, and no one else calls them.
library.define("conv2d_bound(Tensor a, Tensor? b, Tensor? bias, int bound) -> Tensor")
library.define("max_pool2d_bound(Tensor a, Tensor? argmax, int bound) -> Tensor")
library.define("max_pool2d_argmax_bound(Tensor a, int bound) -> (Tensor, Tensor)")


def overloads(name: str) -> tuple[torch._ops.OpOverload, torch._ops.OpOverload]:
    """``(default, auto)`` of an operator."""
    packet = getattr(torch.ops.pyconv, name)
    return packet.default, packet.auto


# ---- Fakes: shapes and layouts without data -----------------------------------------------------------


def _empty(like: Tensor, shape: list[Any], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)


def _conv_extents(size: Any, filter_size: Any, stride: Any, padding: Any, dilation: Any) -> tuple[Any, Any]:
    top, bottom, left, right = padding
    p = (size[0] + top + bottom - dilation[0] * (filter_size[0] - 1) - 1) // stride[0] + 1
    q = (size[1] + left + right - dilation[1] * (filter_size[1] - 1) - 1) // stride[1] + 1
    return p, q


def _fake_fprop(x, w, bias, stride, padding, dilation, groups, channels_last, kernel=None):  # type: ignore[no-untyped-def]
    p, q = _conv_extents(x.shape[2:], w.shape[2:], stride, padding, dilation)
    return _empty(x, [x.shape[0], w.shape[0], p, q], channels_last)


def _fake_dgrad(dy, w, input_size, stride, padding, dilation, groups, channels_last, kernel=None):  # type: ignore[no-untyped-def]
    return _empty(dy, [dy.shape[0], w.shape[1] * groups, *input_size], channels_last)


def _fake_wgrad(x, dy, filter_size, stride, padding, dilation, groups, channels_last, kernel=None):  # type: ignore[no-untyped-def]
    return _empty(x, [dy.shape[1], x.shape[1] // groups, *filter_size], channels_last)


def _fake_bgrad(dy, channels_last, kernel=None):  # type: ignore[no-untyped-def]
    return dy.new_empty([dy.shape[1]])


def pool_extent(
    extent: Any, before: Any, after: Any, window: Any, stride: Any, dilation: Any, ceil_mode: bool
) -> Any:
    """Windows along one axis, as ``Pool2dProblem`` counts them; sizes may be symbolic, or too small."""
    count = (extent + before + after + (stride - 1) * ceil_mode - dilation * (window - 1) - 1) // stride + 1
    if not ceil_mode:
        return count
    starts_outside = (count - 1) * stride >= extent + before
    if isinstance(starts_outside, bool):
        return count - 1 if starts_outside else count
    return torch.sym_ite(starts_outside, count - 1, count)


def _pool_shape(x, window, stride, padding, dilation, ceil_mode):  # type: ignore[no-untyped-def]
    top, bottom, left, right = padding
    p = pool_extent(x.shape[2], top, bottom, window[0], stride[0], dilation[0], ceil_mode)
    q = pool_extent(x.shape[3], left, right, window[1], stride[1], dilation[1], ceil_mode)
    return [x.shape[0], x.shape[1], p, q]


def _fake_pool(x, window, stride, padding, dilation, ceil_mode, channels_last, kernel=None):  # type: ignore[no-untyped-def]
    return _empty(x, _pool_shape(x, window, stride, padding, dilation, ceil_mode), channels_last)


def _fake_pool_argmax(x, window, stride, padding, dilation, ceil_mode, channels_last, kernel=None):  # type: ignore[no-untyped-def]
    shape = _pool_shape(x, window, stride, padding, dilation, ceil_mode)
    return _empty(x, shape, channels_last), _empty(x, shape, channels_last, torch.int32)


def _fake_pool_dgrad(  # type: ignore[no-untyped-def]
    dy, argmax, input_size, window, stride, padding, dilation, ceil_mode, channels_last, kernel=None
):
    return _empty(dy, [*dy.shape[:2], *input_size], channels_last)


def _fake_pool_gather(  # type: ignore[no-untyped-def]
    x, argmax, window, stride, padding, dilation, ceil_mode, channels_last, kernel=None
):
    return _empty(x, list(argmax.shape), channels_last)


_FAKES: dict[str, Callable[..., Any]] = {
    "conv2d_fprop": _fake_fprop,
    "conv2d_dgrad": _fake_dgrad,
    "conv2d_wgrad": _fake_wgrad,
    "conv2d_bgrad": _fake_bgrad,
    "max_pool2d": _fake_pool,
    "max_pool2d_argmax": _fake_pool_argmax,
    "max_pool2d_dgrad": _fake_pool_dgrad,
    "max_pool2d_gather": _fake_pool_gather,
}


# ---- The problem of a call -------------------------------------------------------------------------------


def _strides(x_shape: tuple[int, ...], stride: Any, padding: Any) -> tuple[int, int]:
    """A stride beyond the padded image steps out of it as one to its end does: of any length, it is that."""
    padded = x_shape[2] + padding[0] + padding[1], x_shape[3] + padding[2] + padding[3]
    return min(stride[0], max(padded[0], 1)), min(stride[1], max(padded[1], 1))


def conv2d_problem(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    channels_last: bool,
    dtype: torch.dtype,
) -> Conv2dProblem:
    """The descriptor of a convolution of tensors of these shapes."""
    n, c, h, w = x_shape
    k, _, r, s = w_shape
    return Conv2dProblem(  # type: ignore[call-arg]
        n, c, h, w, k, r, s, *_strides(x_shape, stride, padding), *padding, *dilation, groups,
        DTYPE_NAMES[dtype], "nhwc" if channels_last else "nchw",
    )  # fmt: skip


def pool2d_problem(
    x_shape: tuple[int, ...],
    window: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    channels_last: bool,
    dtype: torch.dtype,
) -> Pool2dProblem:
    """The descriptor of a pooling of a tensor of this shape."""
    n, c, h, w = x_shape
    return Pool2dProblem(  # type: ignore[call-arg]
        n, c, h, w, *window, *_strides(x_shape, stride, padding), *padding, *dilation, ceil_mode,
        DTYPE_NAMES[dtype], "nhwc" if channels_last else "nchw",
    )  # fmt: skip


def _of_fprop(x, w, bias, stride, padding, dilation, groups, channels_last):  # type: ignore[no-untyped-def]
    problem = conv2d_problem(x.shape, w.shape, stride, padding, dilation, groups, channels_last, x.dtype)
    return problem, (x, w, bias)


def _of_dgrad(dy, w, input_size, stride, padding, dilation, groups, channels_last):  # type: ignore[no-untyped-def]
    x_shape = (dy.shape[0], w.shape[1] * groups, *input_size)
    problem = conv2d_problem(x_shape, w.shape, stride, padding, dilation, groups, channels_last, dy.dtype)
    return problem, (dy, w)


def _of_wgrad(x, dy, filter_size, stride, padding, dilation, groups, channels_last):  # type: ignore[no-untyped-def]
    w_shape = (dy.shape[1], x.shape[1] // groups, *filter_size)
    problem = conv2d_problem(x.shape, w_shape, stride, padding, dilation, groups, channels_last, x.dtype)
    return problem, (x, dy)


def _of_bgrad(dy, channels_last):  # type: ignore[no-untyped-def]
    # A sum over n, p, q: the problem of a 1x1 filter on one channel has the same y.
    n, k, p, q = dy.shape
    problem = conv2d_problem((n, 1, p, q), (k, 1, 1, 1), (1, 1), (0,) * 4, (1, 1), 1, channels_last, dy.dtype)
    return problem, (dy,)


def _of_pool(x, window, stride, padding, dilation, ceil_mode, channels_last):  # type: ignore[no-untyped-def]
    problem = pool2d_problem(x.shape, window, stride, padding, dilation, ceil_mode, channels_last, x.dtype)
    return problem, (x,)


def _of_pool_dgrad(  # type: ignore[no-untyped-def]
    dy, argmax, input_size, window, stride, padding, dilation, ceil_mode, channels_last
):
    x_shape = (*dy.shape[:2], *input_size)
    problem = pool2d_problem(x_shape, window, stride, padding, dilation, ceil_mode, channels_last, dy.dtype)
    return problem, (dy, argmax)


def _of_pool_gather(x, argmax, window, stride, padding, dilation, ceil_mode, channels_last):  # type: ignore[no-untyped-def]
    problem, operands = _of_pool(x, window, stride, padding, dilation, ceil_mode, channels_last)
    return problem, (*operands, argmax)


#: Operator -> its pass, and what makes the problem and the operands of that pass from its arguments.
_CALLS: dict[str, tuple[str, Callable[..., Any]]] = {
    "conv2d_fprop": ("fprop", _of_fprop),
    "conv2d_dgrad": ("dgrad", _of_dgrad),
    "conv2d_wgrad": ("wgrad", _of_wgrad),
    "conv2d_bgrad": ("bgrad", _of_bgrad),
    "max_pool2d": ("fprop", _of_pool),
    "max_pool2d_argmax": ("fprop_argmax", _of_pool),
    "max_pool2d_dgrad": ("dgrad", _of_pool_dgrad),
    "max_pool2d_gather": ("gather", _of_pool_gather),
}


# ---- Implementations ------------------------------------------------------------------------------------


def _auto(name: str) -> Callable[..., Any]:
    """The ``auto`` overload on every device: problem -> selection -> launch."""
    pass_, describe = _CALLS[name]

    def auto(*arguments):  # type: ignore[no-untyped-def]
        problem, operands = describe(*arguments)
        return plan_for(problem, operands[0].device.type).launch(pass_, *operands)

    return auto


@lru_cache(maxsize=MOST_REMEMBERED)
def _bound(
    name: str, operation: str, pass_: str, problem: Problem, backend: str, device_type: str, emulation: Any
) -> Callable[..., Any]:
    kernel = next((line for line in kernels(operation, pass_) if line.id == f"{name}@{backend}"), None)
    if kernel is None:
        raise RuntimeError(
            f"pyconv: no {operation}.{pass_} kernel {name!r} of backend {backend} in the table"
        )
    reason = backends.unavailable(backend, device_type) or kernel.supports(problem)
    if reason:
        raise RuntimeError(f"pyconv: {kernel.id} cannot do '{problem}': {reason}")
    return backends.bind(kernel, problem)  # to this emulation, if any


def _named(name: str, backend: str) -> Callable[..., Any]:
    """The ``default`` overload, of one backend's kernels; ``cpu`` has its own in ``kernels/bindings.cpp``."""
    pass_, describe = _CALLS[name]
    operation = "conv2d" if name.startswith("conv2d") else "maxpool2d"

    def named(*arguments):  # type: ignore[no-untyped-def]
        *rest, kernel = arguments
        problem, operands = describe(*rest)
        device_type = operands[0].device.type
        return _bound(kernel, operation, pass_, problem, backend, device_type, cuda.emulation())(*operands)

    return named


for _name in SCHEMAS:
    library.impl(f"{_name}.auto", _auto(_name), "CompositeExplicitAutograd")
    library.impl(_name, _named(_name, "cuda"), "CUDA")
    for _overload in overloads(_name):
        torch.library.register_fake(_overload, _FAKES[_name], lib=library)

# The library implements the schemas above, so it is loaded after them. Where it cannot be, the kernels' lines
# say why, and the operators take the names of the Numba kernels.
cpu.load()
for _name in SCHEMAS:
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"pyconv::{_name}", "CPU"):
        library.impl(_name, _named(_name, "numba-cpu"), "CPU")

__all__ = ["SCHEMAS", "conv2d_problem", "library", "overloads", "pool2d_problem", "pool_extent"]
