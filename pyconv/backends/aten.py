"""Backend ``aten``: torch's own kernels, as baseline and last resort. Nothing here is ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyconv.problem import Conv2dProblem, Pool2dProblem, Problem
from pyconv.registry import Kernel


def unavailable(device_type: str) -> str | None:
    return None


def workspace_bytes(kernel: Kernel, problem: Problem) -> int:
    return 0  # torch does not say


def bind(kernel: Kernel, problem: Problem) -> Callable[..., Any]:
    if isinstance(problem, Conv2dProblem):
        return _bind_conv2d(kernel.pass_, problem)
    return _bind_maxpool2d(kernel.pass_, problem)


def _laid_out(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """The tensor with the very strides of that format; ``contiguous()`` leaves those of sizes of 1 open."""
    dense = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format)
    return tensor if tensor.stride() == dense.stride() else dense.copy_(tensor)


def _bind_conv2d(pass_: str, problem: Conv2dProblem) -> Callable[..., Any]:
    top, bottom, left, right = problem.padding
    symmetric = (top, left) == (bottom, right)
    padding = [top, left] if symmetric else [0, 0]
    stride = [problem.stride_h, problem.stride_w]
    dilation = [problem.dilation_h, problem.dilation_w]
    rest = (stride, padding, dilation, False, [0, 0], problem.groups)
    memory_format = problem.memory_format

    # torch pads both sides of an axis alike; anything else is padded first.
    def padded(x: Tensor) -> Tensor:
        x = x if symmetric else F.pad(x, (left, right, top, bottom))
        return x.contiguous(memory_format=memory_format)

    def blank(like: Tensor, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)

    def backward(dy: Tensor, x: Tensor, w: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
        return torch.ops.aten.convolution_backward.default(dy, x, w, None, *rest, mask)  # type: ignore[no-any-return]

    def fprop(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.ops.aten.convolution.default(padded(x), w, bias, *rest)
        return _laid_out(y, memory_format)

    def dgrad(dy: Tensor, w: Tensor) -> Tensor:
        x = padded(blank(dy, problem.x_shape))
        dx = backward(dy, x, w, [True, False, False])[0]
        if not symmetric:
            dx = dx[:, :, top : top + problem.h, left : left + problem.w]
        return _laid_out(dx, memory_format)

    def wgrad(x: Tensor, dy: Tensor) -> Tensor:
        w = blank(x, problem.w_shape)
        dw = backward(dy, padded(x), w, [False, True, False])[1]
        return _laid_out(dw, memory_format)

    def bgrad(dy: Tensor) -> Tensor:
        return dy.sum((0, 2, 3))

    passes: dict[str, Callable[..., Any]] = {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad, "bgrad": bgrad}
    return passes[pass_]


def _bind_maxpool2d(pass_: str, problem: Pool2dProblem) -> Callable[..., Any]:
    rest = (
        [problem.r, problem.s],
        [problem.stride_h, problem.stride_w],
        [problem.pad_top, problem.pad_left],
        [problem.dilation_h, problem.dilation_w],
        problem.ceil_mode,
    )
    memory_format = problem.memory_format

    def fprop_argmax(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous(memory_format=memory_format)
        y, argmax = torch.ops.aten.max_pool2d_with_indices.default(x, *rest)
        return _laid_out(y, memory_format), _laid_out(argmax.to(torch.int32), memory_format)

    def fprop(x: Tensor) -> Tensor:
        return fprop_argmax(x)[0]

    def dgrad(dy: Tensor, argmax: Tensor) -> Tensor:
        x = torch.empty(problem.x_shape, dtype=dy.dtype, device=dy.device, memory_format=memory_format)
        dx: Tensor = torch.ops.aten.max_pool2d_with_indices_backward.default(
            dy.contiguous(memory_format=memory_format), x, *rest, argmax.long()
        )
        return _laid_out(dx, memory_format)

    def gather(x: Tensor, argmax: Tensor) -> Tensor:
        places = argmax.long().flatten(2)
        y = x.flatten(2).gather(2, places.clamp(min=0)).masked_fill(places < 0, 0)
        return _laid_out(y.view(problem.y_shape), memory_format)

    passes: dict[str, Callable[..., Any]] = {
        "fprop": fprop,
        "fprop_argmax": fprop_argmax,
        "dgrad": dgrad,
        "gather": gather,
    }
    return passes[pass_]
