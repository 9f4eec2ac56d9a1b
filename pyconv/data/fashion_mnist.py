"""Fashion-MNIST: 60,000 + 10,000 grey pictures of clothes, 28x28, in ten classes (Xiao et al., 2017)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyconv.data import idx
from pyconv.data.download import fetch
from pyconv.data.images import Augmentation, ImageData, ImageSet, existing
from pyconv.errors import DataError

#: Where Debian's package ``dataset-fashion-mnist`` puts it.
SYSTEM_DIR = Path("/usr/share/datasets/fashion-mnist")
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

#: The published files and the sha256 of each, as downloaded.
FILES = {
    "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}


def load(data_dir: Path, say: Callable[[str], None]) -> ImageData:
    """Fashion-MNIST from ``data_dir``, else from Debian's package, else downloaded into ``data_dir``.

    Files may be gzip-compressed or not. A place counts only if all four files are there; a file that is
    there and broken is an error, never passed over.

    Raises:
        DataError: if there is no such place and it cannot be downloaded, or a file is broken.
    """
    source, paths = _find(data_dir, say)
    train_images, train_labels, test_images, test_labels = paths
    train = idx.read_set(train_images, train_labels, len(CLASSES))
    test = idx.read_set(test_images, test_labels, len(CLASSES))
    _same_size(train, test, train_images, test_images)
    return ImageData(
        name="fashion-mnist",
        train=train,
        test=test,
        classes=CLASSES,
        source=source,
        augmentation=Augmentation(shift=1, flip=True),
    )


def _find(data_dir: Path, say: Callable[[str], None]) -> tuple[str, list[Path]]:
    for folder in (data_dir, data_dir / "fashion-mnist", SYSTEM_DIR):
        paths = [existing([folder / f"{name}.gz", folder / name]) for name in FILES]
        found = [path for path in paths if path is not None]
        if len(found) == len(FILES):
            say(f"fashion-mnist: found in {folder}")
            return str(folder), found
        say(f"fashion-mnist: not in {folder} ({len(found)} of {len(FILES)} files)")
    folder = data_dir / "fashion-mnist"
    try:
        for name, sha256 in FILES.items():
            if not (folder / f"{name}.gz").is_file():
                fetch(f"{URL}{name}.gz", folder / f"{name}.gz", sha256, say)
    except DataError as error:
        raise DataError(
            f"fashion-mnist: not in {data_dir} nor {SYSTEM_DIR} (Debian package dataset-fashion-mnist), "
            f"and {error}"
        ) from None
    return f"{folder}, downloaded from {URL}", [folder / f"{name}.gz" for name in FILES]


def _same_size(train: ImageSet, test: ImageSet, train_path: Path, test_path: Path) -> None:
    if train.images.shape[1:] != test.images.shape[1:]:
        (_, _, h, w), (_, _, test_h, test_w) = train.images.shape, test.images.shape
        raise DataError(f"{test_path}: images are {test_h}x{test_w}, but {h}x{w} in {train_path}")
