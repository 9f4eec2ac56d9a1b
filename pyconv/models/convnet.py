"""Plain ConvNets: stages of 3x3 convolution, batch normalisation and ReLU; each stage pools 2x2 at its end.

The pooling stands before the normalisation: with a positive scale the result is the same as after it, and
normalisation and ReLU then touch a quarter of the memory.
"""

from __future__ import annotations

from torch import nn

from pyconv.models.layers import Layers


def _stages(
    layers: Layers,
    in_channels: int,
    size: tuple[int, int],
    classes: int,
    stages: tuple[tuple[int, ...], ...],
    dropout: float,
) -> nn.Module:
    """``stages`` gives the filters of each convolution, stage by stage; every stage halves h and w."""
    modules: list[nn.Module] = []
    c, (h, w) = in_channels, size
    for stage in stages:
        for position, k in enumerate(stage, 1):
            # Batch normalisation subtracts the mean, and with it any bias.
            modules.append(layers.Conv2d(c, k, 3, padding=1, bias=False))
            if position == len(stage):
                modules.append(layers.MaxPool2d(2))
                h, w = h // 2, w // 2
            modules += [nn.BatchNorm2d(k), nn.ReLU(inplace=True)]
            c = k
    modules += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(c * h * w, classes)]
    return nn.Sequential(*modules)


def tiny(layers: Layers, in_channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    """8x8x1 -> 8x8x32 -> 4x4x64 -> 2x2x64 -> classes. 3.6 Mflop an image of the digits, forward."""
    return _stages(layers, in_channels, size, classes, ((32, 64), (64,)), dropout=0.2)


def small(layers: Layers, in_channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    """28x28x1 -> 14x14x32 -> 14x14x32 -> 7x7x64 -> 3x3x128 -> classes. 18.5 Mflop an image, forward."""
    return _stages(layers, in_channels, size, classes, ((32,), (32, 64), (128,)), dropout=0.1)


def medium(layers: Layers, in_channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    """32x32x3 -> 16x16x32 -> 8x8x64 -> 4x4x128 -> 2x2x256 -> classes. 67.8 Mflop an image, forward."""
    return _stages(layers, in_channels, size, classes, ((32,), (64, 64), (128, 128), (256,)), dropout=0.2)
