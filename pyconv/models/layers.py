"""The layers a model is written with: ours, or torch's own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pyconv.errors import unknown

#: What ``--kernels`` accepts.
KERNELS = ("pyconv", "aten")


@dataclass(frozen=True)
class Layers:
    """The two layers that kernels are behind. Everything else of a network is torch's on either side."""

    Conv2d: type[nn.Conv2d]
    MaxPool2d: type[nn.MaxPool2d]


def layers(kernels: str) -> Layers:
    """The layers for ``pyconv`` or ``aten``.

    Raises:
        UsageError: for another name.
    """
    if kernels == "aten":
        return Layers(nn.Conv2d, nn.MaxPool2d)
    if kernels == "pyconv":
        from pyconv.nn import Conv2d, MaxPool2d

        return Layers(Conv2d, MaxPool2d)
    raise unknown("--kernels", kernels, KERNELS)
