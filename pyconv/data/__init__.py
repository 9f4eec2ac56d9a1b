"""Data sets of images, read strictly, and the pipeline that feeds them to training.

``load("digits" | "fashion-mnist" | "cifar10" | FOLDER)`` gives an :class:`ImageData`;
:class:`pyconv.data.module.ImageDataModule` turns it into batches, every random draw of which derives from
(seed, epoch, sample).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyconv.data.images import Augmentation, ImageData, ImageSet
from pyconv.errors import DataError, UsageError, unknown

NAMES = ("digits", "fashion-mnist", "cifar10")

__all__ = ["NAMES", "Augmentation", "ImageData", "ImageSet", "key", "load"]


def key(name: str) -> str:
    """The data set's kind: its name, or ``folder`` for a path to class folders."""
    return name if name in NAMES else "folder"


def load(
    name: str,
    data_dir: Path = Path("data"),
    image_size: int | None = None,
    say: Callable[[str], None] = print,
) -> ImageData:
    """Read a data set, training and test images, into memory as uint8.

    Args:
        name: One of :data:`NAMES`, or a folder that holds one folder per class.
        data_dir: Where data files are looked for first, and downloaded to.
        image_size: The side images of a folder are resized to (64 unless told); refused for the others.
        say: Called with one line for every place that is tried.

    Raises:
        UsageError: for an unknown name, or an image size where the data set has its own.
        DataError: if a file is missing, truncated, corrupt or does not fit the others; it names the file.
    """
    try:
        return _load(name, data_dir, image_size, say)
    except OSError as error:  # a folder that may not be looked into
        raise DataError(f"{error.filename or name}: cannot be read ({error.strerror or error})") from None


def _load(name: str, data_dir: Path, image_size: int | None, say: Callable[[str], None]) -> ImageData:
    if name in NAMES and image_size is not None:
        raise UsageError(f"--image-size: {name} has images of one size; only class folders are resized")
    if name == "digits":
        from pyconv.data import digits

        return digits.load(say)
    if name == "fashion-mnist":
        from pyconv.data import fashion_mnist

        return fashion_mnist.load(data_dir, say)
    if name == "cifar10":
        from pyconv.data import cifar10

        return cifar10.load(data_dir, say)
    path = Path(name)
    if path.is_dir():
        from pyconv.data import folder

        return folder.load(path, folder.DEFAULT_SIZE if image_size is None else image_size, say)
    if path.exists():
        raise DataError(f"--data: {name} is a file; a folder with one folder per class is needed")
    if path.name != name:  # written as a path, so meant as one
        raise DataError(f"--data: no folder {name}")
    raise unknown("--data", name, [*NAMES, "or a folder of class folders"])
