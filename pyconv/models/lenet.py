"""LeNet-5 (LeCun, Bottou, Bengio and Haffner, 1998), with today's max-pooling and ReLU."""

from __future__ import annotations

from torch import nn

from pyconv.models.layers import Layers


def lenet5(layers: Layers, in_channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    """5x5 convolutions of 6 and 16 filters, each pooled 2x2, then 120, 84 and ``classes`` units.

    Padding 2 at the first keeps the published volumes for 28x28 images: 28x28x6, 14x14x6, 10x10x16, 5x5x16.
    """
    h, w = (((side // 2) - 4) // 2 for side in size)
    return nn.Sequential(
        layers.Conv2d(in_channels, 6, 5, padding=2),
        nn.ReLU(),
        layers.MaxPool2d(2),
        layers.Conv2d(6, 16, 5),
        nn.ReLU(),
        layers.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * h * w, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )
