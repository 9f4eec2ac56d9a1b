"""The GPU's part of backend cuda, up to the driver: NVRTC, the cache of compiled kernels, the calls made."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import multiprocessing
import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pyconv
from pyconv import backends, parse_problem
from pyconv.backends import cuda, gpu, nvrtc, sources
from pyconv.backends.cache import Cache, folder
from pyconv.backends.nvrtc import Image, Nvrtc, architecture
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


# ---- NVRTC ----


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "compute_90"])
def test_an_instantiation_is_compiled_for_an_architecture(compiler: Nvrtc, target: str) -> None:
    assert NAIVE.program is not None
    step = NAIVE.program(CONV).steps[0]
    image = compiler.compile(step.source, step.kernel, target)
    assert image.entry.startswith("_ZN6pyconv")
    assert "direct_naive_fprop" in image.entry
    if target.startswith("sm_"):
        assert image.code.startswith(b"\x7fELF")
        assert image.entry.encode() in image.code
    else:
        assert f".target {target.replace('compute', 'sm')}".encode() in image.code
        assert image.code.endswith(b"\0"), "the driver takes PTX as a C string"
    assert Image.from_bytes(image.to_bytes()) == image


def test_what_does_not_compile_is_told_with_the_file_and_the_log(compiler: Nvrtc, tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text("namespace pyconv {\n__global__ void wrong() { undeclared = 1; }\n}\n")
    with pytest.raises(RuntimeError) as error:
        compiler.compile("wrong.cu", "wrong", "sm_80", tmp_path)
    text = str(error.value)
    assert f"does not compile wrong of {tmp_path / 'wrong.cu'} for sm_80" in text
    assert 'wrong.cu(2): error: identifier "undeclared" is undefined' in text
    with pytest.raises(RuntimeError, match="probe_scale<int>"):
        compiler.compile(PROBE, "probe_scale<int>", "sm_80")
    with pytest.raises(RuntimeError, match=r"cannot open source file \"none.cu\""):
        compiler.compile("none.cu", "none", "sm_80")
    with pytest.raises(RuntimeError, match="sm_10"):
        compiler.compile(PROBE, "probe_bias", "sm_10")


def test_compilers_work_side_by_side(compiler: Nvrtc) -> None:
    kernels = [
        f"probe_{name}<{element}>" for name in ("scale", "add") for element in ("float", "double", "Half")
    ]
    images: dict[str, Image] = {}

    def compile_(kernel: str) -> None:
        images[kernel] = compiler.compile(PROBE, kernel, "sm_80")

    threads = [threading.Thread(target=compile_, args=(kernel,)) for kernel in kernels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {kernel: compiler.compile(PROBE, kernel, "sm_80") for kernel in kernels} == images


def test_the_architecture_is_the_devices_own() -> None:
    known = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121]
    for capability, target in (
        ((8, 0), "sm_80"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90a"),
        ((10, 0), "sm_100a"),
        ((10, 3), "sm_103"),
        ((12, 0), "sm_120"),
        ((13, 0), "compute_121"),  # newer than this NVRTC: the driver compiles the rest of the way
        ((10, 1), "compute_100"),
    ):
        assert architecture(capability, known) == target
    with pytest.raises(RuntimeError, match=r"compute capability 7\.5 and newer; the device has 7\.0"):
        architecture((7, 0), known)


def test_nvrtc_is_looked_for_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nvrtc, "find", nvrtc.find.__wrapped__)
    monkeypatch.setenv("PYCONV_NVRTC", str(tmp_path / "libnvrtc.so.13"))
    reason = nvrtc.find()
    assert isinstance(reason, str)
    assert reason.startswith("no NVRTC (pip install nvidia-cuda-nvrtc): ")
    assert str(tmp_path) in reason


def test_every_place_is_searched_and_torchs_release_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for place, name in (
        ("nvidia/cu13/lib", "libnvrtc.so.13"),
        ("nvidia/cu13/lib", "libnvrtc.alt.so.13"),
        ("nvidia/cu13/lib", "libnvrtc-builtins.so.13.0"),
        ("nvidia/cuda_nvrtc/lib", "libnvrtc.so.12"),
        ("home/lib64", "libnvrtc.so.13.0.88"),
        ("torch/lib", "libnvrtc-36e31c53.so.12"),
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / name).touch()
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.delenv("PYCONV_NVRTC", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))

    def found(release: str | None) -> list[str]:
        monkeypatch.setattr(torch.version, "cuda", release)
        return [path.removeprefix(f"{tmp_path}/") for path in nvrtc._candidates()]

    in_order = [
        "nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
        "torch/lib/libnvrtc-36e31c53.so.12", "home/lib64/libnvrtc.so.13.0.88",
        "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so",
    ]  # fmt: skip
    assert found(None) == in_order
    assert found("12.8")[:3] == [in_order[1], in_order[2], "libnvrtc.so.12"]
    assert found("13.0")[:3] == [in_order[0], in_order[3], "libnvrtc.so.13"]


# ---- Sources ----


def test_a_change_of_any_header_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "op").mkdir()
    files = {
        "op/a.cu": '#include "common/b.h"\n  #  include "c.h"  // beside\n#include <x>\n#include "gone.h"\n',
        "common/b.h": '#ifdef NEVER\n#include "d.h"\n#endif\n#include "op/a.cu"\n',
        "op/c.h": "",
        "common/d.h": "",
        "op/unrelated.h": "",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert sources.included("op/a.cu", tmp_path) == ["common/b.h", "common/d.h", "op/a.cu", "op/c.h"]
    digest = sources.digest.__wrapped__
    before = digest("op/a.cu", tmp_path)
    (tmp_path / "op/unrelated.h").write_text("//")
    assert digest("op/a.cu", tmp_path) == before
    (tmp_path / "common/d.h").write_text("//")
    assert digest("op/a.cu", tmp_path) != before


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


# ---- The driver ----


class Driver:
    """Stands in for ``cupy.cuda.driver``, and writes down what it is asked."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    class CUDADriverError(RuntimeError):
        pass

    def __init__(self) -> None:
        self.context = 0  # of the thread
        self.said: list[tuple[Any, ...]] = []
        self.fails = False

    def ctxGetCurrent(self) -> int:
        return self.context

    def ctxSetCurrent(self, context: int) -> None:
        self.context = context
        self.said.append(("context", context))

    def moduleLoadData(self, image: bytes) -> int:
        assert self.context
        self.said.append(("load", image[:4], self.context))
        return 70

    def moduleGetFunction(self, module: int, name: str) -> int:
        self.said.append(("function", module, name))
        return 700 + len(self.said)

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        if value > 227 * 1024:
            raise self.CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self.said.append(("attribute", function, attribute, value))

    def launchKernel(self, function: int, *numbers: int) -> None:
        if self.fails:
            raise self.CUDADriverError("CUDA_ERROR_INVALID_HANDLE: invalid resource handle")
        *shape, stream, parameters, extra = numbers
        assert extra == 0
        first = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[1]
        pointer = ctypes.c_uint64.from_address(first or 0).value
        self.said.append(("launch", function, tuple(shape), stream, self.context, pointer))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Driver:
    """A GPU number 1 of compute capability 9.0, whose context is 901."""
    driver, cache = Driver(), Cache(tmp_path)
    monkeypatch.setattr(gpu, "_cache", lambda: cache)
    cupy = types.ModuleType("cupy.cuda")
    cupy.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))
    monkeypatch.setitem(sys.modules, "cupy.cuda", cupy)

    @contextlib.contextmanager
    def device(index: int) -> Iterator[None]:
        before, driver.context = driver.context, 900 + index
        yield
        driver.context = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (0, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A GPU")
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 5000 + index, raising=False)
    monkeypatch.setattr(gpu, "_relaxed_capture", contextlib.nullcontext)
    return driver


def test_a_bound_kernel_is_loaded_once_and_launched_on_torchs_stream(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = gpu.Gpu(1)
    monkeypatch.setattr(cuda.Bound, "_device", lambda self, of: device)
    bound = backends.bind(NAIVE, CONV)
    x, w = torch.zeros(CONV.x_shape), torch.zeros(3, 4, 3, 3)
    driver.context = 901
    bound(x, w, None)
    (load, function, launch) = driver.said
    assert load == ("load", b"\x7fELF", 901)
    assert function[2].startswith("_ZN6pyconv18direct_naive_fprop")
    number = launch[1]
    assert launch == ("launch", number, (1, 1, 1, 256, 1, 1, 0), 5001, 901, x.data_ptr())

    # A thread on another device is put back there, one that has used none yet too.
    for context in (900, 0):
        driver.said.clear()
        driver.context = context
        bound(x, w, None)
        assert [said[0] for said in driver.said] == ["context", "launch", "context"]
        assert driver.said[1][4] == 901
        assert driver.context == context
    driver.fails = True
    driver.context = 900
    with pytest.raises(RuntimeError, match=r"cuda:1 does not launch direct_naive_fprop<.*CUDA_ERROR_INVALID"):
        bound(x, w, None)
    assert driver.context == 900
    driver.fails = False
    bound(x, w, None)


def test_dynamic_shared_memory_is_asked_for_once_and_the_most_of_it(driver: Driver) -> None:
    device = gpu.Gpu(1)
    step = Step(PROBE, "probe_add<float>", (1, 1, 1), (1, 1, 1), ())
    for bytes_, asked in ((0, 0), (1000, 1000), (100_000, 100_000), (50_000, 0), (100_000, 0)):
        driver.said.clear()
        launch = device.load(dataclasses.replace(step, shared_bytes=bytes_))
        assert launch[-1] == bytes_
        attributes = [said for said in driver.said if said[0] == "attribute"]
        assert attributes == ([("attribute", launch[0], 8, asked)] if asked else [])
    with pytest.raises(
        RuntimeError, match=r"takes 300000 bytes of dynamic shared memory .* cuda:1 \(A GPU\)"
    ):
        device.load(dataclasses.replace(step, shared_bytes=300_000))


# ---- What is missing ----


def test_importing_pyconv_needs_no_gpu_no_cupy_and_no_nvrtc() -> None:
    code = (
        "import sys, ctypes; load = ctypes.CDLL.__init__\n"
        "def refuse(self, name, *rest, **more):\n"
        "    assert not name or 'nvrtc' not in name and 'libcuda' not in name, name\n"
        "    load(self, name, *rest, **more)\n"
        "ctypes.CDLL.__init__ = refuse\n"
        "import pyconv; pyconv.conv2d.__module__\n"
        "assert not {'cupy', 'cupy_backends', 'cuda'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA")
def test_explain_names_all_that_is_missing() -> None:
    reason = backends.unavailable("cuda", "cuda")
    assert reason is not None
    assert "is built without CUDA" in reason
    if importlib.util.find_spec("cupy") is None:
        assert "no CuPy (pip install cupy-cuda13x" in reason
    lines = {choice.kernel.id: choice.reason for choice in pyconv.explain(CONV, "cuda")["fprop"]}
    assert lines[NAIVE.id] == f"not able: {reason}"


def test_each_part_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = gpu.missing.__wrapped__
    has_driver, capabilities = True, {0: (9, 0), 1: (7, 5)}

    def library(name: str) -> object:
        if has_driver:
            return object()
        raise OSError

    monkeypatch.setattr(gpu.ctypes, "CDLL", library)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))
    monkeypatch.setitem(sys.modules, "cupy.cuda", types.ModuleType("cupy.cuda"))
    assert missing() == "cuda:1 has compute capability 7.5, the kernels need 8.0"
    capabilities[1] = (8, 6)
    assert missing() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert missing() == "torch finds no CUDA device"
    has_driver = False
    assert missing() == "no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(nvrtc, "find", lambda: "no NVRTC here")
    assert (missing() or "").split("; ")[1:] == [
        "no CuPy (pip install cupy-cuda13x, or cupy-cuda12x for CUDA 12)",
        "no NVRTC here",
    ]
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert cuda.unavailable("cuda") == "runs on NVIDIA GPUs; this torch is built for ROCm"
