"""ConvNets by name, each written once and built on pyconv's layers or on torch's own.

A model is a function ``(layers, in_channels, (h, w), classes) -> nn.Module`` with one line in :data:`MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pyconv.errors import UsageError, unknown
from pyconv.models import convnet, lenet
from pyconv.models.layers import KERNELS, Layers, layers

__all__ = ["KERNELS", "MODELS", "Layers", "Model", "build", "layers"]


@dataclass(frozen=True)
class Model:
    """One line of the registry.

    Attributes:
        make: Builds it.
        smallest: The smallest image, in pixels a side, that leaves something for the last layer.
        summary: What it is, in a line.
    """

    make: Callable[[Layers, int, tuple[int, int], int], nn.Module]
    smallest: int
    summary: str


MODELS = {
    "convnet-tiny": Model(convnet.tiny, 4, "three 3x3 convolutions for images of about 8x8"),
    "convnet-small": Model(convnet.small, 8, "four 3x3 convolutions for images of about 28x28"),
    "convnet-medium": Model(convnet.medium, 16, "six 3x3 convolutions for images of about 32x32 to 64x64"),
    "lenet5": Model(lenet.lenet5, 12, "LeNet-5 with max-pooling and ReLU"),
}


def build(
    name: str, in_channels: int, image_size: int | tuple[int, int], classes: int, kernels: str = "pyconv"
) -> nn.Module:
    """A model with fresh weights from torch's global random state; the same weights for either ``kernels``.

    Args:
        name: A key of :data:`MODELS`.
        in_channels: Channels of an image.
        image_size: Its ``(h, w)``, or one number for a square.
        classes: Outputs.
        kernels: ``pyconv`` for ours, ``aten`` for torch's own.

    Returns:
        A module that maps float ``[n, in_channels, h, w]`` to logits ``[n, classes]``.

    Raises:
        UsageError: for an unknown name, or an image too small for the model.
    """
    if name not in MODELS:
        raise unknown("--model", name, MODELS)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(size) < MODELS[name].smallest:
        small = MODELS[name].smallest
        raise UsageError(
            f"--model: {name} needs images of at least {small}x{small}, these are {size[0]}x{size[1]}"
        )
    return MODELS[name].make(layers(kernels), in_channels, size, classes)
