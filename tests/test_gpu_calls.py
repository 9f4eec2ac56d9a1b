"""The GPU's part of backend cuda, up to the driver: what it is asked, and what is missing here."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pyconv
from pyconv import backends, parse_problem
from pyconv.backends import cuda, gpu, nvrtc
from pyconv.backends.cache import Cache
from pyconv.backends.program import Step
from pyconv.registry import find

PROBE = str(Path(__file__).parent / "backend" / "probe.cu")
CONV = parse_problem("conv2d n2c4h6w5 k3r3s3 st1 pd1 f32 nchw")
NAIVE = find("conv2d.fprop.direct_naive@cuda")


# ---- The driver ----


class Driver:
    """Stands in for ``cupy.cuda.driver``, and writes down what it is asked."""

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
        "import torch; torchs = set(sys.modules)\n"  # which takes cuda.bindings where there are any
        "import pyconv; pyconv.conv2d.__module__\n"
        "added = {name.split('.')[0] for name in set(sys.modules) - torchs}\n"
        "assert not {'cupy', 'cupy_backends', 'cuda', 'numba', 'numba_cuda'} & added, added"
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
