"""The IDX format of MNIST and its successors, read strictly, plain or gzip-compressed.

A file is: two zero bytes, a type byte (0x08: unsigned bytes), the number of dimensions, each dimension as a
big-endian 32-bit number, then the bytes, and nothing after them.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from pyconv.data.images import ImageSet
from pyconv.data.reading import read_at_most
from pyconv.errors import DataError

_UNSIGNED_BYTE = 0x08
#: More than any data set of this format has: EMNIST's largest file is 0.6 GB.
_LARGEST = 1 << 30


def read(path: Path, dimensions: int) -> np.ndarray:
    """The array of an IDX file of unsigned bytes.

    Args:
        path: The file; gzip-compressed if its name ends in ``.gz``.
        dimensions: How many it must have: 3 for images ``[n, h, w]``, 1 for labels ``[n]``.

    Returns:
        uint8, of the shape the header says.

    Raises:
        DataError: one line that names the file, if it cannot be read, or is not exactly what its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = read_at_most(file, 4 + 4 * dimensions)
            shape = _shape(path, header, dimensions)
            size = math.prod(shape)
            # One byte more than the header says, to see what should not be there.
            data = read_at_most(file, size + 1)
    except EOFError:
        raise DataError(f"{path}: truncated: the compressed data ends early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: corrupt gzip data ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(data) < size:
        raise DataError(f"{path}: truncated: the header says {size} bytes of data, there are {len(data)}")
    if len(data) > size:
        raise DataError(f"{path}: corrupt: there is data after the {size} bytes that the header says")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path}: truncated: {len(header)} bytes are too few for an IDX header")
    if header[0] or header[1] or header[2] != _UNSIGNED_BYTE:
        raise DataError(f"{path}: not an IDX file of unsigned bytes (it starts with {header[:4].hex()})")
    if header[3] != dimensions:
        raise DataError(f"{path}: {dimensions} dimensions expected, the header says {header[3]}")
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4", dimensions, 4))
    if 0 in shape or math.prod(shape) > _LARGEST:
        raise DataError(f"{path}: corrupt: the header says {'x'.join(map(str, shape))}")
    return shape


def read_set(images_path: Path, labels_path: Path, classes: int) -> ImageSet:
    """Images and their labels.

    Raises:
        DataError: if either file is not what :func:`read` accepts, if they do not have the same number of
            samples, or if a label is not below ``classes``.
    """
    images, labels = read(images_path, 3), read(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: {len(labels)} labels, but {len(images)} images in {images_path}")
    if labels.max() >= classes:
        raise DataError(f"{labels_path}: label {labels.max()} found, but there are {classes} classes")
    return ImageSet(images[:, None], labels.astype(np.int64))
