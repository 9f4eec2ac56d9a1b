"""CIFAR-10, the binary version: 50,000 + 10,000 colour images, 32x32, ten classes (Krizhevsky, 2009).

A file is 10,000 records of 3073 bytes: the label, then 32x32 bytes of red, of green and of blue.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pyconv.data.download import fetch
from pyconv.data.images import Augmentation, ImageData, ImageSet
from pyconv.data.reading import Limited, read_at_most
from pyconv.errors import DataError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"

RECORDS = 10_000
#: The archive unpacks to 184 MB.
_LARGEST_ARCHIVE = 1 << 28
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32

#: What the Python version is called: pickles, which can run any code when read.
_PICKLED = ("cifar-10-python.tar.gz", "cifar-10-batches-py", "data_batch_1", "test_batch")


def load(data_dir: Path, say: Callable[[str], None]) -> ImageData:
    """CIFAR-10 from the six ``.bin`` files or their archive in ``data_dir``, else downloaded into it.

    Raises:
        DataError: if a file is broken, if only the pickled version is there, or if the download fails.
    """
    names = [*TRAIN_FILES, TEST_FILE]
    for folder in (data_dir, data_dir / FOLDER):
        found = [name for name in names if (folder / name).is_file()]
        if len(found) == len(names):
            say(f"cifar10: found in {folder}")
            return _data(str(folder), {name: parse(folder / name, _bytes(folder / name)) for name in names})
        say(f"cifar10: not in {folder} ({len(found)} of {len(names)} files)")
    archive = data_dir / ARCHIVE
    if archive.is_file():
        say(f"cifar10: found {archive}")
        return _data(str(archive), _read_archive(archive))
    say(f"cifar10: no {archive}")
    for name in _PICKLED:
        if (data_dir / name).exists():
            raise DataError(
                f"{data_dir / name}: the pickled version of CIFAR-10, which is refused because reading a "
                f"pickle can run any code; put the binary version there instead: {URL}"
            )
    fetch(URL, archive, SHA256, say)
    return _data(f"{archive}, downloaded from {URL}", _read_archive(archive))


def _data(source: str, sets: dict[str, ImageSet]) -> ImageData:
    train = [sets[name] for name in TRAIN_FILES]
    return ImageData(
        name="cifar10",
        train=ImageSet(
            np.concatenate([part.images for part in train]), np.concatenate([part.labels for part in train])
        ),
        test=sets[TEST_FILE],
        classes=CLASSES,
        source=source,
        augmentation=Augmentation(shift=4, flip=True, fill="reflect"),
    )


def _bytes(path: Path) -> bytes:
    """The bytes of a record file, or enough of a larger one to see that it is none."""
    try:
        with path.open("rb") as file:
            return read_at_most(file, RECORDS * _RECORD + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def parse(path: Path, data: bytes) -> ImageSet:
    """The records of one file.

    Args:
        path: Its name, for messages.
        data: Its bytes.

    Raises:
        DataError: if it does not hold exactly :data:`RECORDS` records, or a label is not below 10.
    """
    if len(data) != RECORDS * _RECORD:
        size = RECORDS * _RECORD
        found = f"truncated: {len(data)} bytes" if len(data) < size else f"corrupt: more than {size} bytes"
        raise DataError(f"{path}: {found}, but {RECORDS} records of {_RECORD} bytes are {size}")
    records = np.frombuffer(data, np.uint8).reshape(RECORDS, _RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(CLASSES):
        record = int(np.argmax(labels >= len(CLASSES)))
        raise DataError(f"{path}: corrupt: record {record} has label {labels[record]}, but labels are 0 to 9")
    return ImageSet(np.ascontiguousarray(records[:, 1:]).reshape(RECORDS, *_SHAPE), labels)


def _limited(path: Path, file: io.BufferedIOBase) -> Limited:
    limit = _LARGEST_ARCHIVE
    return Limited(
        file, limit, lambda: DataError(f"{path}: corrupt archive: it unpacks to more than {limit} bytes")
    )


def _read_archive(path: Path) -> dict[str, ImageSet]:
    sets: dict[str, ImageSet] = {}
    names = {*TRAIN_FILES, TEST_FILE}
    try:
        # Read straight from the archive: nothing is extracted, so no member's path can matter. As a stream,
        # because there no length that a header gives is allocated before its bytes are there.
        with (
            gzip.open(path) as unpacked,
            tarfile.open(fileobj=_limited(path, unpacked), mode="r|") as archive,
        ):
            for member in archive:
                name = Path(member.name).name
                if name in names and member.isfile() and not member.issparse():
                    stream = archive.extractfile(member)
                    assert stream is not None  # a regular file has one
                    data = read_at_most(stream, RECORDS * _RECORD + 1)
                    sets[name] = parse(path / member.name, data)
    except DataError:
        raise
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or error.errno is None:
            raise DataError(f"{path}: truncated or corrupt archive ({error})") from None
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # tarfile, for forged headers: ValueError, KeyError, RecursionError and more
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{path}: truncated or corrupt archive ({reason})") from None
    missing = sorted(names - sets.keys())
    if missing:
        raise DataError(f"{path}: no {missing[0]} in the archive; the binary version is needed: {URL}")
    return sets
