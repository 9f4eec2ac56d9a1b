"""What a machine does to a run besides stopping it: no memory, no rights, others' folders, many users."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from pyconv.backends.cache import Cache
from pyconv.training import memory
from tests import trainer
from tests.test_data import fake_fashion

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
NOBODY = 65534


@pytest.fixture
def open_folder():
    """A folder that any user can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="pyconv-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


# Memory


def _little_memory() -> None:
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (150 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="Linux's way to see how much memory is taken"
)
@pytest.mark.parametrize("kernels", ["pyconv", "aten"])
def test_memory_that_ends_is_one_line(tmp_path, kernels) -> None:
    """150 MiB more than the process has: a batch of 28x28 images takes 100 KB an image in the first layer."""
    data = fake_fashion(tmp_path / "data", train=3000)
    options = [
        "--data",
        "fashion-mnist",
        "--data-dir",
        str(data),
        "--model",
        "convnet-small",
        "--kernels",
        kernels,
    ]
    sizes = ["--batch-size", "2500", "--epochs", "1", "--threads", "1", "--out", str(tmp_path / "run")]
    status, error = trainer.call(["train", *options, *sizes], tmp_path / "errors", _little_memory)
    assert (status, error.count("\n")) == (1, 1), error
    start = "error: out of memory while training convnet-small with batches of 2500 images of 1x28x28 ("
    assert error.startswith(start)
    assert "iB" in error[len(start) :]
    assert error.endswith("could not be had); a lower --batch-size or a smaller model needs less\n")
    if kernels == "pyconv":
        assert " for the result of " in error or " for the workspace of " in error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
                "you tried to allocate 3145728 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "3 MiB",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), "2.50 GiB"),
        (MemoryError("Unable to allocate 1.5 GiB for an array with shape (9, 9)"), "1.5 GiB"),
        (
            RuntimeError(
                "pyconv: can't allocate memory: tried to allocate 1000 bytes for the result of k [9]"
            ),
            "1000 bytes for the result of k",
        ),
        (MemoryError("std::bad_alloc"), "an unknown amount"),
        (OSError(12, "Cannot allocate memory"), "an unknown amount"),
        (OSError(2, "No such file or directory"), None),
        (RuntimeError("shape mismatch"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_what_is_an_end_of_memory(error, told) -> None:
    assert memory.wanted(error) == told


# Folders


def _without_rights() -> None:
    """Root to whom permission bits apply as to anybody: without the capability to override them."""
    import ctypes

    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; the low words, then the high ones
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0


@as_root
def test_a_folder_without_rights_is_one_line(open_folder, tmp_path) -> None:
    options = ["--epochs", "1", "--batch-size", "350", "--threads", "1"]
    secret = open_folder / "secret"
    secret.mkdir(mode=0)
    open_folder.chmod(0o555)
    empty = open_folder / "empty"
    empty.mkdir(mode=0o555)
    unchanged = "what was saved before is unchanged"
    for arguments, what in (
        (
            ["train", "--out", str(open_folder / "run"), *options],
            f"{open_folder / 'run'}: cannot be written (Permission denied); {unchanged}",
        ),
        (
            ["train", "--out", str(empty), *options],
            f"{empty / 'config.json'}: cannot be written (Permission denied); {unchanged}",
        ),
        (
            ["train", "--out", str(secret / "run"), *options],
            f"{secret / 'run'}: cannot be read (Permission denied)",
        ),
        (["train", "--resume", str(secret)], f"{secret}: cannot be read (Permission denied)"),
        (["train", "--data", str(secret), *options], f"{secret}/train: cannot be read (Permission denied)"),
        (["evaluate", str(secret)], f"{secret / 'weights.safetensors'}: cannot be read (Permission denied)"),
        (["evaluate", str(secret / "run")], f"{secret / 'run'}: cannot be read (Permission denied)"),
        (
            ["predict", str(secret), str(secret / "x.png")],
            f"{secret / 'weights.safetensors'}: cannot be read (Permission denied)",
        ),
    ):
        status, error = trainer.call(arguments, tmp_path / "errors", _without_rights)
        assert (status, error) == (1, f"error: {what}\n")


@as_root
def test_a_disk_that_is_read_only_is_one_line(open_folder, tmp_path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,ro", "tmpfs", str(open_folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.decode().strip()}")
    try:
        status, error = trainer.call(["train", "--out", str(open_folder / "run")], tmp_path / "errors")
    finally:
        subprocess.run(["umount", "-l", str(open_folder)], check=True)
    assert (status, error) == (
        1,
        f"error: {open_folder / 'run'}: cannot be written (Read-only file system); what was saved before is "
        "unchanged\n",
    )


# The cache of compiled kernels


def _python(code: str, cache: Path, prepare=None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYCONV_CACHE": str(cache)},
        capture_output=True, text=True, check=False, preexec_fn=prepare,
    )  # fmt: skip


@as_root
def test_a_cache_that_another_user_owns_is_not_used(open_folder) -> None:
    """Neither the folder itself nor one in a folder whose owner could put another in its place."""
    theirs = open_folder / "theirs"
    for place in (theirs, theirs / "cubin", theirs / "emulator"):
        place.mkdir()
    os.chown(theirs / "cubin", NOBODY, NOBODY)
    Cache(theirs / "cubin")
    with pytest.warns(UserWarning, match=f"cubin, belongs to user {NOBODY}; kernels are compiled anew"):
        assert Cache(theirs / "cubin").get(("k",), lambda: b"code") == b"code"
    os.chown(theirs / "cubin", 0, 0)
    os.chown(theirs, NOBODY, NOBODY)
    message = f"is in {theirs}, which belongs to user {NOBODY}"
    with pytest.warns(UserWarning, match=message):
        assert Cache(theirs / "cubin").get(("k",), lambda: b"code") == b"code"
    assert list((theirs / "cubin").iterdir()) == []
    # What the emulator compiles is loaded into the process, so it is an error there.
    result = _python("from pyconv.backends import emulator_build; emulator_build.runtime()", theirs)
    assert message in result.stderr
    assert list((theirs / "emulator").iterdir()) == []


@as_root
def test_an_entry_that_another_user_wrote_is_not_used(open_folder) -> None:
    cache = Cache(open_folder / "cubin")
    cache.get(("k",), lambda: b"code")
    entry = open_folder / "cubin" / Cache.key(("k",))
    os.chown(entry, NOBODY, NOBODY)
    assert Cache(open_folder / "cubin").get(("k",), lambda: b"mine") == b"mine"
    assert entry.stat().st_uid == 0


def _race(folder: Path, seed: int, keys: int) -> None:
    draw = random.Random(seed)
    while True:
        # Each time new to the cache, as another process would be.
        key = draw.randrange(keys)
        blob = Cache(folder).get((f"k{key}",), lambda key=key: _blob(key))
        assert blob == _blob(key), "torn"
        if draw.random() < 0.3:
            (folder / Cache.key((f"k{key}",))).unlink(missing_ok=True)  # so that it is written again


def _blob(key: int) -> bytes:
    return bytes([key]) * (50_000 + 9_000 * key)


def test_many_processes_share_a_cache_and_read_nothing_torn(tmp_path) -> None:
    """Eight write, read, delete and die at the same keys; what is there is always whole."""
    folder, draw = tmp_path / "cubin", random.Random(0)
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_race, args=(folder, seed, 6)) for seed in range(8)]
    for racer in racers:
        racer.start()
    time.sleep(1.5)
    for racer in racers:  # in the middle of anything
        time.sleep(0.05 * draw.random())
        racer.kill()
        racer.join()
    assert [racer.exitcode for racer in racers] == [-signal.SIGKILL] * 8, "one saw a torn entry"
    assert any(folder.iterdir())
    for key in range(6):
        assert Cache(folder).get((f"k{key}",), lambda key=key: _blob(key)) == _blob(key)
