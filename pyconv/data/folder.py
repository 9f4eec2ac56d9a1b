"""Any folder of class folders: ``FOLDER/<class>/<image>``, or ``FOLDER/{train,test}/<class>/<image>``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pyconv.data.images import Augmentation, ImageData, ImageSet, stratified_split
from pyconv.errors import DataError, PyconvError, UsageError

DEFAULT_SIZE = 64
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_GREY = ("1", "L", "LA", "I", "I;16", "F")
_TEST_FRACTION = 0.2
_TEST_FOLDERS = ("test", "val")


def load(folder: Path, size: int, say: Callable[[str], None]) -> ImageData:
    """The images of a folder, resized to ``size`` x ``size`` (cut to a square about the centre first).

    With ``train`` and ``test`` (or ``val``) inside, those are the two parts; else a fixed stratified split
    takes 20 % to test. Colour if any image has colour, else grey. Everything is held in memory, decoded:
    ``c * size * size`` bytes an image.

    Raises:
        UsageError: for a size below 1.
        DataError: if there are fewer than two classes, a class without images, an image that cannot be
            decoded, or parts whose classes differ; it names the folder or file.
    """
    if size < 1:
        raise UsageError(f"--image-size: {size} given; 1 or more is needed")
    parts = [folder]
    if (folder / "train").is_dir():
        tests = [folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()]
        if not tests:
            raise DataError(f"{folder}: there is train/ but no test/ or val/ beside it")
        parts = [folder / "train", tests[0]]
    listings = [_list(part) for part in parts]
    classes = list(listings[0])
    for part, listing in zip(parts[1:], listings[1:], strict=True):
        odd = sorted(set(classes) ^ set(listing))
        if odd:
            raise DataError(
                f"{part}: its class folders are not those of {parts[0]}: {odd[0]!r} is in only one"
            )
    paths = [
        [(path, label) for label, name in enumerate(classes) for path in listing[name]]
        for listing in listings
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        everything = [path for part in paths for path, _ in part]
        channels = 1 if all(pool.map(_is_grey, everything)) else 3
        sets = [
            ImageSet(
                np.stack(
                    list(pool.map(lambda item: decode(item[0], channels, (size, size), fit=True), part))
                ),
                np.array([label for _, label in part], np.int64),
            )
            for part in paths
        ]
    how = f"{folder}: {len(everything)} images of {len(classes)} classes, resized to {size}x{size}"
    if len(sets) == 1:
        for label, name in enumerate(classes):
            if np.count_nonzero(sets[0].labels == label) < 2:
                raise DataError(
                    f"{folder / name}: one image only; at least two are needed to train and to test"
                )
        train, test = stratified_split(sets[0].labels, _TEST_FRACTION)
        sets = [sets[0].take(train), sets[0].take(test)]
        how += "; fixed stratified split, 80 % to train and 20 % to test"
    say(how)
    return ImageData(
        name=str(folder),
        train=sets[0],
        test=sets[1],
        classes=tuple(classes),
        source=how,
        augmentation=Augmentation(shift=max(1, size // 8), flip=True, fill="reflect" if size > 1 else "zero"),
        resized=True,
    )


def _list(folder: Path) -> dict[str, list[Path]]:
    try:
        classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        listing = {
            path.name: sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            for path in classes
        }
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from None
    if len(listing) < 2:
        raise DataError(f"{folder}: {len(listing)} class folders; at least two are needed")
    for name, paths in listing.items():
        if not paths:
            raise DataError(f"{folder / name}: no images ({', '.join(SUFFIXES)})")
    return listing


def _is_grey(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.mode in _GREY
    except Exception as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> Exception:
    """The error for an image that cannot be read. Pillow raises a dozen kinds for files that are damaged."""
    if isinstance(error, PyconvError | MemoryError):
        return error
    lines = (getattr(error, "strerror", None) or str(error)).splitlines() or [type(error).__name__]
    reason = "of no kind that Pillow knows" if isinstance(error, UnidentifiedImageError) else lines[0][:120]
    return DataError(f"{path}: not a readable image ({reason})")


def decode(path: Path, channels: int, size: tuple[int, int], fit: bool) -> np.ndarray:
    """An image file as uint8 ``[channels, h, w]``.

    Args:
        path: The file.
        channels: 1 for grey, 3 for colour.
        size: ``(h, w)``.
        fit: Resize and convert to what is wanted; if false, an image of another size or kind is refused.

    Raises:
        DataError: if it cannot be decoded, or does not fit; it names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                image: Image.Image = file
                grey = image.mode in _GREY
                if not fit and (image.height, image.width) != size:
                    raise DataError(
                        f"{path}: {image.height}x{image.width} pixels, but the model was trained on "
                        f"{size[0]}x{size[1]}; --resize makes it fit"
                    )
                if not fit and grey != (channels == 1):
                    is_, wants = ("grey", "colour") if grey else ("colour", "grey")
                    raise DataError(
                        f"{path}: a {is_} image, but the model was trained on {wants}; --resize converts it"
                    )
                image.load()
                if image.mode.startswith("I") or image.mode == "F":
                    # 16-bit grey: Pillow clips instead of scaling.
                    wide = np.asarray(image, np.float64)
                    image = Image.fromarray(
                        (wide / (257 if wide.max(initial=0) > 255 else 1)).astype(np.uint8)
                    )
                converted = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
                if converted.size != (size[1], size[0]):
                    converted = ImageOps.fit(converted, (size[1], size[0]), Image.Resampling.BILINEAR)
    except Exception as error:
        raise _broken(path, error) from None
    pixels = np.asarray(converted)
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))
