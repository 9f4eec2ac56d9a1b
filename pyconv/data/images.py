"""Labelled images in memory, and the fixed splits made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pyconv.data import rng
from pyconv.errors import DataError

#: Splits are part of a data set, so their seed is no option: the test images are the same for everyone.
SPLIT_SEED = 20260101


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    Attributes:
        images: uint8 ``[n, c, h, w]``.
        labels: int64 ``[n]``.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> ImageSet:
        """The images and labels at ``indices``, in that order."""
        return ImageSet(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image, each by a draw of its own.

    Attributes:
        shift: Largest shift, in pixels, up, down, left and right.
        flip: Mirror left and right, every second image.
        erase: Side of a square at a random centre that is set to the fill; 0 for none.
        fill: What comes in from outside: ``zero`` (black, for drawings on a black ground) or ``reflect``.
    """

    shift: int = 0
    flip: bool = False
    erase: int = 0
    fill: str = "zero"

    def __str__(self) -> str:
        parts = [f"shifts of up to {self.shift} px ({self.fill} fill)"] if self.shift else []
        parts += ["horizontal flips"] if self.flip else []
        parts += [f"an erased square of {self.erase} px"] if self.erase else []
        return ", ".join(parts) or "none"


@dataclass(frozen=True)
class ImageData:
    """A data set: training and test images, class names, and where they came from.

    Attributes:
        name: The name the user gave.
        source: The place the files were found in, in words.
        resized: True if the images were resized to fit, so that ``predict`` may do so too.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    source: str
    augmentation: Augmentation = field(default_factory=Augmentation)
    resized: bool = False

    def __post_init__(self) -> None:
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise DataError(
                f"{self.source}: training images are {_size(self.train)}, test images {_size(self.test)}"
            )

    @property
    def channels(self) -> int:
        """Channels of an image, ``c``."""
        return int(self.train.images.shape[1])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image, ``(h, w)``."""
        return int(self.train.images.shape[2]), int(self.train.images.shape[3])


def _size(images: ImageSet) -> str:
    return "x".join(str(n) for n in images.images.shape[1:])


def stratified_split(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split samples in two, the same way always, with every class in the same proportion.

    Args:
        labels: int ``[n]``.
        fraction: The part that goes to the second group. Of a class with two images or more, at least one
            goes to each group.

    Returns:
        The ascending int64 indices of both groups.
    """
    keys = rng.keys(SPLIT_SEED, 0, np.arange(len(labels)))
    second: list[np.ndarray] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        second.append(members[np.argsort(keys[members], kind="stable")][:count])
    chosen = np.sort(np.concatenate(second)) if second else np.empty(0, np.int64)
    rest = np.ones(len(labels), bool)
    rest[chosen] = False
    return np.flatnonzero(rest), chosen


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 ``[n, c, h, w]``, on the scale 0 to 1."""
    counts = [np.bincount(images[:, c].ravel(), minlength=256) for c in range(images.shape[1])]
    levels = np.arange(256) / 255
    means = [float((n * levels).sum() / n.sum()) for n in counts]
    stds = [
        float(np.sqrt((n * (levels - mean) ** 2).sum() / n.sum()))
        for n, mean in zip(counts, means, strict=True)
    ]
    # A channel that never changes carries nothing; dividing by 1 keeps it finite.
    return tuple(means), tuple(std or 1.0 for std in stds)


def existing(paths: list[Path]) -> Path | None:
    """The first of the paths that is a file."""
    return next((path for path in paths if path.is_file()), None)
