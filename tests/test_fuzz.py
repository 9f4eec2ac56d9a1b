"""Any bytes give a reader's data or its own one-line error, in memory that grows with the file alone."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pyconv.data import cifar10, folder, idx
from pyconv.errors import DataError, PyconvError, RunError, UsageError
from pyconv.training import evaluation, weights
from pyconv.training.config import TrainConfig
from tests.test_data import idx_bytes

pytestmark = pytest.mark.filterwarnings("ignore")
fuzz = settings(suppress_health_check=list(HealthCheck))

#: Buffers of the readers (1 MiB at a time), whatever is in the file.
_BUFFERS = 8 << 20


def is_one_line_that_names(path: Path, error: PyconvError) -> bool:
    return str(path) in str(error) and "\n" not in str(error)


def survives(read: Callable[[], Any], path: Path, content: bytes, kind: type[PyconvError]) -> Any:
    """What ``read`` gives, or ``None`` if it raises ``kind`` with one line that names the file."""
    path.write_bytes(content)
    tracemalloc.start()
    found, refusal = None, None
    try:
        found = read()
    except kind as error:
        refusal = error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < _BUFFERS + 20 * len(content)
    assert refusal is None or is_one_line_that_names(path, refusal)
    return found


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """A good file with some bytes replaced, and perhaps cut or with something behind it."""

    def apply(changes: list[tuple[int, bytes]], end: int, more: bytes) -> bytes:
        content = bytearray(good)
        for place, new in changes:
            content[place : place + len(new)] = new
        return bytes(content[:end]) + more

    places = st.integers(0, max(len(good) - 1, 0))
    return st.builds(
        apply,
        st.lists(st.tuples(places, st.binary(min_size=1, max_size=8)), max_size=4),
        st.one_of(st.just(len(good)), st.integers(0, len(good))),
        st.one_of(st.just(b""), st.binary(max_size=40)),
    )


# IDX

#: Headers that say anything, with few bytes behind them.
_forged = st.builds(
    lambda kind, count, sizes, data: (
        bytes([0, 0, kind, count]) + struct.pack(f">{len(sizes)}I", *sizes) + data
    ),
    st.sampled_from([8, 8, 8, 9, 13]),
    st.integers(0, 5),
    st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1)), max_size=4),
    st.binary(max_size=200),
)
_idx = st.one_of(st.binary(max_size=300), _forged, damaged(idx_bytes(np.zeros((2, 3, 4)))))


@fuzz
@given(content=_idx, dimensions=st.sampled_from([1, 3]))
def test_idx_survives_anything(tmp_path_factory, content: bytes, dimensions: int) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    array = survives(lambda: idx.read(path, dimensions), path, content, DataError)
    if array is not None:
        assert idx_bytes(array) == content


@fuzz
@given(content=st.one_of(damaged(gzip.compress(idx_bytes(np.zeros((2, 3, 4))))), _forged.map(gzip.compress)))
def test_compressed_idx_survives_anything(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.gz"
    survives(lambda: idx.read(path, 3), path, content, DataError)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_forged_idx_header_allocates_nothing(tmp_path, suffix) -> None:
    content = struct.pack(">4B3I", 0, 0, 8, 3, 1 << 10, 1 << 10, 1 << 10) + b"few"
    path = tmp_path / f"forged{suffix}"
    assert (
        survives(lambda: idx.read(path, 3), path, gzip.compress(content) if suffix else content, DataError)
        is None
    )


# CIFAR-10

RECORDS = 2
GOOD = {name: bytes([1, *([7] * 3072)]) * RECORDS for name in (*cifar10.TRAIN_FILES, cifar10.TEST_FILE)}


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _headers(good: bytes) -> st.SearchStrategy[bytes]:
    """An archive whose members' headers are changed, with the checksum that makes tarfile believe them."""

    def apply(changes: list[tuple[int, int, bytes]]) -> bytes:
        content = bytearray(good)
        step = 512 + 512 * -(-len(GOOD[cifar10.TEST_FILE]) // 512)
        for member, place, new in changes:
            header = content[member * step : member * step + 512]
            header[place : place + len(new)] = new
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header[:512])
            content[member * step : member * step + 512] = header[:512]
        return bytes(content)

    fields = st.one_of(
        st.tuples(st.integers(0, 5), st.integers(0, 500), st.binary(min_size=1, max_size=12)),
        # The size, in octal or in tar's base 256, and the kind of member (links, sparse, long names, pax).
        st.tuples(st.integers(0, 5), st.just(124), st.sampled_from([b"77777777777", b"\x80" + b"\xff" * 11])),
        st.tuples(
            st.integers(0, 5), st.just(156), st.sampled_from([b"S", b"L", b"K", b"x", b"g", b"1", b"5"])
        ),
    )
    return st.lists(fields, min_size=1, max_size=4).map(apply)


@fuzz
@given(content=st.one_of(st.binary(max_size=100), damaged(GOOD["test_batch.bin"])))
def test_cifar_records_survive_anything(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "RECORDS", RECORDS)
        found = survives(lambda: cifar10.parse(path, cifar10._bytes(path)), path, content, DataError)
    assert found is None or (found.images.shape == (RECORDS, 3, 32, 32) and found.labels.max() < 10)


_tar = tarred(GOOD)
_archives = st.one_of(
    st.binary(max_size=100),
    damaged(gzip.compress(_tar)),
    damaged(_tar).map(gzip.compress),
    _headers(_tar).map(gzip.compress),
)


@fuzz
@given(content=_archives)
def test_cifar_archives_survive_anything(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar.gz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "RECORDS", RECORDS)
        sets = survives(lambda: cifar10._read_archive(path), path, content, DataError)
    assert sets is None or set(sets) == set(GOOD)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
    monkeypatch.setattr(cifar10, "_LARGEST_ARCHIVE", 1 << 22)
    path = tmp_path / "bomb.tar.gz"
    content = gzip.compress(tarred({"filler": bytes(1 << 24), **GOOD}))
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}: corrupt archive: it unpacks to more than {1 << 22} bytes"):
        cifar10._read_archive(path)


# Images


def _image(kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "webp", "ppm", "tiff"])
def test_images_survive_anything(tmp_path_factory, kind: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzzed.{kind}"
    named: list[bool] = []

    @fuzz
    @given(content=damaged(_image(kind)), fit=st.booleans())
    def check(content: bytes, fit: bool) -> None:
        path.write_bytes(content)
        try:
            assert folder.decode(path, 3, (8, 9), fit).shape == (3, 8, 9)
            folder._is_grey(path)
        except DataError as error:
            named.append(is_one_line_that_names(path, error))

    check()
    assert named
    assert all(named)


# What a run leaves


def _weights(**changes: Any) -> bytes:
    card = {
        "model": "lenet5", "in_channels": 1, "image_size": [12, 12], "classes": ["a", "b"], "kernels": "aten",
        "layout": "nchw", "mean": [0.5], "std": [0.5], "data": "digits", "source": "", "resized": False,
    }  # fmt: skip
    metadata = {"pyconv": json.dumps({**card, **changes})}
    return safetensors.torch.save({"a": torch.zeros(2)}, metadata)


_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
_fields = ["model", "in_channels", "image_size", "classes", "kernels", "layout", "mean", "std", "resized"]
_safetensors = st.one_of(
    st.binary(max_size=100),
    damaged(_weights()),
    st.dictionaries(st.sampled_from(_fields), _values, max_size=2).map(lambda changes: _weights(**changes)),
    st.just(_weights(image_size=[10**6, 10**6])),
)


@fuzz
@given(content=_safetensors)
def test_weights_survive_anything(tmp_path_factory, content: bytes) -> None:
    run = tmp_path_factory.getbasetemp() / "fuzzed-run"
    run.mkdir(exist_ok=True)
    path = run / "weights.safetensors"
    assert survives(lambda: evaluation.network_of(run), path, content, RunError) is None


def _checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"network.a": torch.zeros(2)}, "history": []}, buffer)
    return buffer.getvalue()


@fuzz
@given(content=st.one_of(st.binary(max_size=100), damaged(_checkpoint())))
def test_checkpoints_survive_anything(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.ckpt"
    survives(lambda: evaluation.read_checkpoint(path), path, content, RunError)


_config = json.dumps({"model": "lenet5", "epochs": 2, "lr": 0.1, "threads": None}).encode()
_configs = st.one_of(
    st.binary(max_size=100),
    damaged(_config),
    st.dictionaries(st.sampled_from(["model", "epochs", "lr", "threads", "seed"]), _values).map(
        lambda fields: json.dumps(fields).encode()
    ),
)


@fuzz
@given(content=_configs)
def test_configurations_survive_anything(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    config = survives(lambda: TrainConfig.load(path), path, content, RunError)
    if config is not None:
        with contextlib.suppress(UsageError):
            config.check()


def test_a_pickle_never_runs(tmp_path) -> None:
    """Neither as weights nor as a checkpoint: the file of one that would leave a mark leaves none."""
    import pickle

    mark = tmp_path / "mark"

    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    inside = io.BytesIO()
    torch.save({"state_dict": Runs()}, inside)
    for content in (pickle.dumps(Runs()), inside.getvalue()):
        for name, read in (
            ("weights.safetensors", weights.load),
            ("last.ckpt", evaluation.read_checkpoint),
        ):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(RunError, match=f"{name}: not a whole"):
                read(tmp_path / name)
    assert not mark.exists()
