"""``Conv2d`` and ``MaxPool2d``: torch's modules with pyconv's kernels inside.

They are subclasses of torch's, so state dicts, initialisation, attributes, ``repr`` and ``isinstance`` are
the same. Padding per side, ``(top, bottom, left, right)``, is an addition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyconv.functional import conv2d, max_pool2d


class Conv2d(torch.nn.Conv2d):
    """2-D convolution over ``[n, c, h, w]`` or ``[c, h, w]``, as :class:`torch.nn.Conv2d`.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, padding_mode, device, dtype:
            as torch.
        padding: as torch, or four numbers ``(top, bottom, left, right)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        sides = tuple(padding) if not isinstance(padding, (int, str)) and len(padding) == 4 else None
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            0 if sides else padding,  # type: ignore[arg-type]
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )
        if sides:
            if min(sides) < 0:
                raise ValueError(f"padding must be non-negative, got {sides}")
            self.padding = sides  # type: ignore[assignment]
            top, bottom, left, right = sides
            self._reversed_padding_repeated_twice = [left, right, top, bottom]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return conv2d(input, weight, bias, self.stride, (0, 0), self.dilation, self.groups)
        return conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class MaxPool2d(torch.nn.MaxPool2d):
    """2-D max-pooling over ``[n, c, h, w]`` or ``[c, h, w]``, as :class:`torch.nn.MaxPool2d`.

    ``padding`` may also be four numbers ``(top, bottom, left, right)``.
    """

    def forward(self, input: Tensor) -> Any:
        return max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )
