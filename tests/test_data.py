"""Readers refuse what is broken, naming the file; splits are fixed; each draw is a function of its sample."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyconv.data import Augmentation, ImageSet, cifar10, download, fashion_mnist, folder, idx, load, rng
from pyconv.data.images import statistics, stratified_split
from pyconv.data.module import Batches, EpochBatches, ImageDataModule
from pyconv.errors import DataError, UsageError


def silent(line: str) -> None:
    pass


def idx_bytes(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    )


def fake_fashion(path: Path, train: int = 60, test: int = 20, side: int = 28) -> Path:
    """Files of Fashion-MNIST's format, gzip-compressed, in which the class is easy to see."""
    path.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = draw.integers(0, 80, (count, side, side))
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 3] += 150
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (path / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array), mtime=0))
    return path


# Random numbers


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected) -> None:
    words = rng.philox(np.array(counter, np.uint64)[:, None], key)
    assert " ".join(f"{int(word):08x}" for word in words[:, 0]) == expected


def test_integers_are_in_range_and_cover_it() -> None:
    draws = rng.integers(1, 2, np.arange(2000), [5, 2, 3, 7, 28])
    for draw, high in zip(draws, [5, 2, 3, 7, 28], strict=True):
        counts = np.bincount(draw, minlength=high)
        assert len(counts) == high
        assert counts.min() > 0.7 * 2000 / high - 10


def test_permutation_is_one_and_differs_between_epochs() -> None:
    first, second = rng.permutation(0, 0, 100), rng.permutation(0, 1, 100)
    assert sorted(first) == list(range(100))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, rng.permutation(0, 0, 100))


# Batches


def colour_set(n: int = 40) -> ImageSet:
    draw = np.random.default_rng(1)
    return ImageSet(draw.integers(0, 256, (n, 3, 9, 7)).astype(np.uint8), np.arange(n) % 4)


@pytest.mark.parametrize("fill", ["zero", "reflect"])
def test_a_sample_is_augmented_alike_in_any_batch(fill) -> None:
    how = Augmentation(shift=2, flip=True, erase=3, fill=fill)
    batches = Batches(colour_set(), (0.5,) * 3, (0.2,) * 3, how, seed=5)
    together = batches.augmented(3, np.arange(40))
    for index in (0, 7, 39):
        assert np.array_equal(batches.augmented(3, np.array([index]))[0], together[index])
    assert not np.array_equal(batches.augmented(4, np.arange(40)), together)


def test_augmentation_is_shift_flip_and_nothing_else() -> None:
    images = colour_set()
    batches = Batches(images, (0.5,) * 3, (0.2,) * 3, Augmentation(shift=1, flip=True), seed=0)
    seen = set()
    for index, result in enumerate(batches.augmented(0, np.arange(40))):
        padded = np.pad(images.images[index], ((0, 0), (1, 1), (1, 1)))
        possible = {
            (down, right, flip): padded[:, down : down + 9, right : right + 7][..., :: -1 if flip else 1]
            for down in range(3)
            for right in range(3)
            for flip in (False, True)
        }
        matches = [draw for draw, image in possible.items() if np.array_equal(image, result)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 10  # of 18


def test_without_augmentation_a_batch_is_the_normalised_images() -> None:
    images = colour_set()
    mean, std = statistics(images.images)
    x, labels = Batches(images, mean, std)[(0, np.arange(40))]
    assert x.dtype == torch.float32
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-5)
    assert labels.tolist() == images.labels.tolist()


def test_an_epoch_visits_each_sample_once_in_even_batches() -> None:
    sampler = EpochBatches(103, 25, seed=1, shuffle=True)
    keys = list(sampler)
    assert len(keys) == len(sampler) == 5
    assert {len(indices) for _, indices in keys} == {20, 21}
    assert sorted(np.concatenate([indices for _, indices in keys])) == list(range(103))


def test_workers_change_nothing() -> None:
    data = load("digits", say=silent)
    batches = []
    for workers in (0, 2):
        loader = ImageDataModule(data, 200, seed=4, workers=workers).train_dataloader()
        loader.sampler.set_epoch(2)
        batches.append(list(loader))
    assert len(batches[0]) == len(batches[1])
    for (x, labels), (other_x, other_labels) in zip(*batches, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(labels, other_labels)


# Splits


def test_the_split_is_stratified_disjoint_and_fixed() -> None:
    labels = np.repeat(np.arange(10), 30)
    first, second = stratified_split(labels, 0.2)
    assert np.bincount(labels[second]).tolist() == [6] * 10
    assert sorted([*first, *second]) == list(range(300))
    assert np.array_equal(second, stratified_split(labels, 0.2)[1])


def test_digits_are_always_the_same_images() -> None:
    data = load("digits", say=silent)
    assert (len(data.train), len(data.test), data.channels, data.image_size) == (1438, 359, 1, (8, 8))
    assert data.train.images.max() == 255
    digest = hashlib.sha256(data.test.images.tobytes() + data.test.labels.tobytes()).hexdigest()
    assert digest[:16] == "d4b1202025ee943f"


# IDX


def test_idx_plain_and_compressed(tmp_path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "a").write_bytes(idx_bytes(array))
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx_bytes(array), mtime=0))
    assert np.array_equal(idx.read(tmp_path / "a", 3), array)
    assert np.array_equal(idx.read(tmp_path / "a.gz", 3), array)


GOOD = idx_bytes(np.zeros((2, 3, 4)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", b"", "truncated: 0 bytes"),
        ("short-header", GOOD[:9], "truncated: 9 bytes"),
        ("short", GOOD[:-1], "truncated: the header says 24 bytes of data, there are 23"),
        ("long", GOOD + b"x", "data after the 24 bytes"),
        ("magic", b"\x89PNG" + GOOD[4:], "not an IDX file"),
        ("type", b"\0\0\x0d\x03" + GOOD[4:], "not an IDX file of unsigned bytes"),
        ("labels", idx_bytes(np.zeros(30)), "3 dimensions expected, the header says 1"),
        (
            "huge",
            struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1),
            "corrupt: the header says",
        ),
        ("none", idx_bytes(np.zeros((0, 3, 4))), "corrupt: the header says 0x3x4"),
        ("empty.gz", b"", "truncated"),
        ("cut.gz", gzip.compress(GOOD, mtime=0)[:-9], "truncated: the compressed data ends early"),
        ("other.gz", GOOD, "corrupt gzip data"),
        ("crc.gz", gzip.compress(GOOD, mtime=0)[:-8] + b"\0" * 8, "corrupt gzip data"),
    ],
)
def test_idx_refuses(tmp_path, name, content, message) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        idx.read(path, 3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_idx_never_raises_anything_else(tmp_path) -> None:
    """Any change of any byte gives an array or a DataError."""
    draw = np.random.default_rng(0)
    named = []
    for content in (GOOD, gzip.compress(GOOD, mtime=0)):
        path = tmp_path / ("x.gz" if content is not GOOD else "x")
        for _ in range(300):
            broken = bytearray(content)
            broken[draw.integers(len(broken))] = draw.integers(256)
            path.write_bytes(broken[: draw.integers(len(broken) + 1)])
            try:
                idx.read(path, 3)
            except DataError as error:
                named.append(str(path) in str(error))
    assert len(named) > 400
    assert all(named)


def test_idx_missing_file(tmp_path) -> None:
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        idx.read(tmp_path / "nowhere", 3)


# Fashion-MNIST


def test_fashion_mnist_in_the_data_folder_comes_first(tmp_path) -> None:
    said: list[str] = []
    data = load("fashion-mnist", fake_fashion(tmp_path), say=said.append)
    assert (len(data.train), len(data.test)) == (60, 20)
    assert said == [f"fashion-mnist: found in {tmp_path}"]


def test_fashion_mnist_then_debians_then_downloaded(tmp_path, monkeypatch) -> None:
    source = fake_fashion(tmp_path / "server")
    monkeypatch.setattr(fashion_mnist, "SYSTEM_DIR", tmp_path / "system")
    monkeypatch.setattr(fashion_mnist, "URL", source.as_uri() + "/")
    sums = {
        name: hashlib.sha256((source / f"{name}.gz").read_bytes()).hexdigest() for name in fashion_mnist.FILES
    }
    monkeypatch.setattr(fashion_mnist, "FILES", sums)
    said: list[str] = []
    load("fashion-mnist", tmp_path / "data", say=said.append)
    assert [line.split()[0] for line in said] == ["fashion-mnist:"] * 3 + ["downloading"] * 4
    assert len(list((tmp_path / "data" / "fashion-mnist").iterdir())) == 4
    fake_fashion(tmp_path / "system")
    load("fashion-mnist", tmp_path / "elsewhere", say=said.append)
    assert said[-1] == f"fashion-mnist: found in {tmp_path / 'system'}"


def test_fashion_mnist_mismatches(tmp_path) -> None:
    fake_fashion(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    good = labels.read_bytes()
    labels.write_bytes(gzip.compress(idx_bytes(np.zeros(59))))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz: 59 labels, but 60 images"):
        load("fashion-mnist", tmp_path, say=silent)
    labels.write_bytes(gzip.compress(idx_bytes(np.full(60, 10))))
    with pytest.raises(DataError, match="label 10 found, but there are 10 classes"):
        load("fashion-mnist", tmp_path, say=silent)
    labels.write_bytes(good)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros((20, 9, 9)))))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz: images are 9x9, but 28x28"):
        load("fashion-mnist", tmp_path, say=silent)


# Downloads


def test_a_download_with_a_wrong_checksum_leaves_nothing(tmp_path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"something else")
    with pytest.raises(DataError, match="wrong checksum"):
        download.fetch(source.as_uri(), tmp_path / "to" / "file", "0" * 64, silent)
    assert list((tmp_path / "to").iterdir()) == []


def test_a_download_that_fails_says_from_where(tmp_path) -> None:
    url = (tmp_path / "missing").as_uri()
    with pytest.raises(DataError, match=f"{url}: cannot be downloaded"):
        download.fetch(url, tmp_path / "file", "0" * 64, silent)
    assert list(tmp_path.iterdir()) == []


# CIFAR-10


@pytest.fixture
def small_cifar(monkeypatch) -> dict[str, bytes]:
    """Ten records a file instead of ten thousand."""
    monkeypatch.setattr(cifar10, "RECORDS", 10)
    draw = np.random.default_rng(0)
    return {
        name: b"".join(bytes([i]) + draw.integers(0, 256, 3072).astype(np.uint8).tobytes() for i in range(10))
        for name in (*cifar10.TRAIN_FILES, cifar10.TEST_FILE)
    }


def archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_cifar_from_files_and_from_the_archive(tmp_path, small_cifar) -> None:
    for name, content in small_cifar.items():
        (tmp_path / name).write_bytes(content)
    files = load("cifar10", tmp_path, say=silent)
    assert files.train.images.shape == (50, 3, 32, 32)
    record = np.frombuffer(small_cifar["test_batch.bin"], np.uint8).reshape(10, 3073)[3]
    assert files.test.labels[3] == 3
    assert np.array_equal(files.test.images[3].ravel(), record[1:])
    (tmp_path / "other").mkdir()
    archive(tmp_path / "other" / cifar10.ARCHIVE, small_cifar)
    archived = load("cifar10", tmp_path / "other", say=silent)
    assert np.array_equal(archived.train.images, files.train.images)


def test_cifar_refuses_broken_files(tmp_path, small_cifar) -> None:
    for name, content in small_cifar.items():
        (tmp_path / name).write_bytes(content)
    broken = tmp_path / "data_batch_2.bin"
    for content, message in (
        (small_cifar[broken.name][:-1], "truncated: 30729 bytes"),
        (small_cifar[broken.name] * 2, "corrupt: more than 30730 bytes"),
        (b"\x0a" + small_cifar[broken.name][1:], "corrupt: record 0 has label 10"),
        (b"", "truncated: 0 bytes"),
    ):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            load("cifar10", tmp_path, say=silent)
        assert str(broken) in str(caught.value)


def test_cifar_refuses_a_broken_archive(tmp_path, small_cifar) -> None:
    path = tmp_path / cifar10.ARCHIVE
    archive(path, small_cifar)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a gzip file", whole[:1000]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"truncated or corrupt archive|no .* in the archive"):
            load("cifar10", tmp_path, say=silent)
    archive(path, {name: content for name, content in small_cifar.items() if name != "test_batch.bin"})
    with pytest.raises(DataError, match=r"no test_batch.bin in the archive"):
        load("cifar10", tmp_path, say=silent)


def test_cifar_refuses_the_pickled_version(tmp_path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"anything")
    with pytest.raises(
        DataError, match=r"cifar-10-python.tar.gz: the pickled version.*cifar-10-binary.tar.gz"
    ):
        load("cifar10", tmp_path, say=silent)


# Class folders


def class_folders(
    path: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 5, mode: str = "RGB"
) -> Path:
    draw = np.random.default_rng(len(str(path)))
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(count):
            shape = (20 + i, 30) if mode == "L" else (20 + i, 30, 3)
            Image.fromarray(draw.integers(0, 256, shape).astype(np.uint8), mode).save(
                path / name / f"{i}.png"
            )
    return path


def test_class_folders_are_split_or_taken_as_split(tmp_path) -> None:
    data = load(str(class_folders(tmp_path / "whole")), image_size=16, say=silent)
    assert (len(data.train), len(data.test), data.classes) == (8, 2, ("cat", "dog"))
    assert (data.channels, data.image_size) == (3, (16, 16))
    class_folders(tmp_path / "split" / "train", count=4, mode="L")
    class_folders(tmp_path / "split" / "test", count=3, mode="L")
    data = load(str(tmp_path / "split"), say=silent)
    assert (len(data.train), len(data.test), data.channels, data.image_size) == (8, 6, 1, (64, 64))


def test_class_folders_refuse_what_is_broken(tmp_path) -> None:
    root = class_folders(tmp_path / "data")
    whole = (root / "cat" / "0.png").read_bytes()
    for content in (whole[:200], b"", b"text"):
        (root / "dog" / "1.png").write_bytes(content)
        with pytest.raises(DataError, match=r"dog/1.png: not a readable image"):
            load(str(root), say=silent)
    (root / "dog" / "1.png").write_bytes(whole)
    (root / "emu").mkdir()
    with pytest.raises(DataError, match="emu: no images"):
        load(str(root), say=silent)
    with pytest.raises(DataError, match="0 class folders; at least two"):
        load(str(root / "cat"), say=silent)
    class_folders(tmp_path / "two" / "train")
    class_folders(tmp_path / "two" / "test", ("cat", "eel"))
    with pytest.raises(DataError, match="'dog' is in only one"):
        load(str(tmp_path / "two"), say=silent)


def test_decode_refuses_what_does_not_fit(tmp_path) -> None:
    root = class_folders(tmp_path / "data", count=1)
    path = root / "cat" / "0.png"
    assert folder.decode(path, 1, (8, 8), fit=True).shape == (1, 8, 8)
    with pytest.raises(DataError, match=r"0.png: 20x30 pixels, but the model was trained on 8x8"):
        folder.decode(path, 3, (8, 8), fit=False)
    with pytest.raises(DataError, match=r"0.png: a colour image, but the model was trained on grey"):
        folder.decode(path, 1, (20, 30), fit=False)


def test_sixteen_bit_grey_is_scaled(tmp_path) -> None:
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "deep.png")
    assert folder.decode(tmp_path / "deep.png", 1, (4, 4), fit=False).max() == 255


# Names


def test_unknown_data_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown name 'fashion'; did you mean fashion-mnist\?"):
        load("fashion", say=silent)
    with pytest.raises(DataError, match="no folder some/where"):
        load("some/where", say=silent)
    with pytest.raises(UsageError, match="--image-size"):
        load("digits", image_size=32, say=silent)
