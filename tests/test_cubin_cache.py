"""Compiled kernels on disk: built once, never out of date, whole or not at all."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pyconv import parse_problem
from pyconv.backends import gpu, nvrtc, sources
from pyconv.backends.cache import Cache, folder
from pyconv.backends.nvrtc import Nvrtc
from pyconv.backends.program import Step
from pyconv.registry import find

PROBE = str(Path(__file__).parent / "backend" / "probe.cu")
CONV = parse_problem("conv2d n2c4h6w5 k3r3s3 st1 pd1 f32 nchw")
NAIVE = find("conv2d.fprop.direct_naive@cuda")


@pytest.fixture(scope="module")
def compiler() -> Nvrtc:
    found = nvrtc.find()
    assert isinstance(found, Nvrtc), found
    return found


# ---- The cache ----


def _build(calls: list[int], content: bytes = b"code") -> Any:
    def build() -> bytes:
        calls.append(1)
        return content

    return build


def test_a_blob_is_built_once_for_all_processes(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        cache = Cache(tmp_path / "new" / "folder")  # as another process would open it
        for _ in range(2):
            assert cache.get(("kernel<float>", "sm_90a"), _build(calls)) == b"code"
    assert len(calls) == 1
    assert cache.get(("kernel<float>", "sm_80"), _build(calls, b"other")) == b"other"
    names = sorted(path.name for path in cache.folder.iterdir())
    assert len(names) == 2
    assert all(name.startswith("kernel-float--") for name in names)


def test_parts_are_kept_apart() -> None:
    assert Cache.key(("a", "bc")) != Cache.key(("ab", "c"))
    assert Cache.key(("a",)) != Cache.key(("a", ""))
    assert Cache.key(("../../etc/passwd",)).startswith("------etc-passwd-")


@pytest.mark.parametrize("damage", [b"", b"short", b"pyconv 1 ", None])
def test_a_damaged_entry_is_built_again(tmp_path: Path, damage: bytes | None) -> None:
    calls: list[int] = []
    Cache(tmp_path).get(("k",), _build(calls))
    entry = tmp_path / Cache.key(("k",))
    content = entry.read_bytes()
    entry.write_bytes(content[:-1] if damage is None else damage)
    assert Cache(tmp_path).get(("k",), _build(calls)) == b"code"
    assert len(calls) == 2
    assert entry.read_bytes() == content


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails() -> bytes:
        raise RuntimeError("no")

    cache = Cache(tmp_path)
    with pytest.raises(RuntimeError, match="no"):
        cache.get(("k",), fails)
    assert list(tmp_path.iterdir()) == []
    assert cache.get(("k",), _build([])) == b"code"


def test_threads_build_one_blob_once_and_different_ones_side_by_side(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path), []
    both = threading.Barrier(2, timeout=20)

    def meets() -> bytes:
        both.wait()
        return b"code"

    threads = [threading.Thread(target=cache.get, args=((name,), meets)) for name in "ab"]
    threads += [threading.Thread(target=cache.get, args=(("c",), _build(calls))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def _fill(folder: Path, barrier: Any) -> None:
    cache = Cache(folder)
    for number in range(20):
        barrier.wait()
        assert cache.get((f"k{number}",), lambda number=number: bytes([number]) * 100_000)[0] == number


def test_processes_fill_it_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_fill, args=(tmp_path, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 20
    for number in range(20):
        assert Cache(tmp_path).get((f"k{number}",), _build([]))[0] == number


@pytest.mark.parametrize("trouble", ["file in the way", "open to everybody", "foreign", "full"])
def test_a_folder_that_cannot_be_used_is_told_once(
    tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache"
    if trouble == "file in the way":
        place.write_text("")
    elif trouble == "open to everybody":
        place.mkdir()
        place.chmod(0o777)
    elif trouble == "foreign":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    else:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    cache, calls = Cache(place), []
    with pytest.warns(UserWarning, match=f"{place}, .*; kernels are compiled anew in every process") as told:
        blobs = [cache.get((name,), _build(calls)) for name in "aab"]
    assert blobs == [b"code"] * 3
    assert len(told) == 1
    assert len(calls) == 2, "what was built is kept in memory"
    assert not place.is_dir() or list(place.iterdir()) == []


def test_the_folder_is_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYCONV_CACHE", str(tmp_path))
    assert folder() == tmp_path / "cubin"
    monkeypatch.delenv("PYCONV_CACHE")
    assert folder() == Path.home() / ".cache" / "pyconv" / "cubin"


def test_what_an_instantiation_depends_on_is_in_its_key(
    compiler: Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_cache", lambda: Cache(tmp_path))
    step = Step(PROBE, "probe_bias", (1, 1, 1), (1, 1, 1), ())

    def entries() -> int:
        gpu.compile_for(step, "sm_80")
        return len(list(tmp_path.iterdir()))

    assert [entries(), entries()] == [1, 1]
    with monkeypatch.context() as patch:
        patch.setattr(sources, "digest", lambda source: "another text")
        assert entries() == 2
    with monkeypatch.context() as patch:
        patch.setattr(nvrtc, "FLAGS", (*nvrtc.FLAGS, "-DNDEBUG"))
        assert entries() == 3
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "version", (99, 9))
        assert entries() == 4
    gpu.compile_for(step, "sm_90a")
    assert entries() == 5
    gpu.compile_for(dataclasses.replace(step, kernel="probe_overrun"), "sm_80")
    assert entries() == 6
