"""Launching Numba kernels on a GPU, up to the driver; and in Numba's own simulator, by the same launches."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pyconv
from pyconv import backends
from pyconv.backends import numba_gpu
from pyconv.problem import parse_problem
from pyconv.registry import find

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="no numba-cuda")


# ---- Launches ------------------------------------------------------------------------------------------


class _Kernel:
    """Stands for a kernel that ``numba.cuda.jit`` made."""

    def __init__(self) -> None:
        self.launched: list[tuple[Any, tuple[Any, ...]]] = []

    def __getitem__(self, configuration: Any) -> Any:
        return lambda *arguments: self.launched.append((configuration, arguments))


class _Gpu(numba_gpu.Gpu):
    """What is given to Numba stays as it was described."""

    @contextlib.contextmanager
    def _stream(self) -> Iterator[str]:
        yield "the stream"

    def array(self, *description: Any) -> Any:
        return description


def _launched(
    monkeypatch: pytest.MonkeyPatch, kernel_id: str, text: str, *operands: Any
) -> tuple[Any, _Kernel]:
    kernel = _Kernel()
    monkeypatch.setattr(numba_gpu, "kernel_of", lambda source, name: kernel)
    monkeypatch.setattr(numba_gpu, "gpu", _Gpu)
    bound = backends.bind(find(kernel_id), parse_problem(text))
    monkeypatch.setattr(bound, "_device", lambda device: _Gpu(0))
    return bound(*operands), kernel


def test_tensors_are_given_as_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 5, 6).contiguous(memory_format=torch.channels_last)
    w = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    text = "conv2d n2c3h5w6 k4r3s3 st1 pd1 f32 nhwc"
    y, kernel = _launched(monkeypatch, "conv2d.fprop.direct_naive@numba", text, x, w, None)
    ((grid, block, stream, shared), arguments) = kernel.launched[0]
    assert (grid, block, stream, shared) == ((1, 1, 1), (256, 1, 1), "the stream", 0)
    problem, channels_last, *arrays = arguments
    assert (problem.group_c, problem.q, channels_last) == (3, 6, 1)
    for (address, typestr, shape, strides), tensor in zip(arrays, [x, w, None, y], strict=True):
        if tensor is None:  # no bias: an array of no elements
            assert (address, shape) == (0, (0,))
            continue
        assert (address, typestr, shape) == (tensor.data_ptr(), "<f4", tuple(tensor.shape))
        assert strides == tuple(4 * stride for stride in tensor.stride())


def test_chunks_and_the_workspace_have_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyconv.kernels.conv2d import im2col_launch

    monkeypatch.setattr(im2col_launch, "WORKSPACE", 1)  # an image at a time
    x, dy = torch.randn(3, 2, 4, 4, dtype=torch.float16), torch.randn(3, 5, 4, 4, dtype=torch.float16)
    text = "conv2d n3c2h4w4 k5r3s3 st1 pd1 f16 nchw"
    dw, kernel = _launched(monkeypatch, "conv2d.wgrad.im2col_gemm_tiled@numba", text, x, dy)
    # im2col and a product for each image, then the sum of three splits
    assert len(kernel.launched) == 7
    products = [arguments for _, arguments in kernel.launched if len(arguments) == 7]
    assert [a[0] - dy.data_ptr() for _, _, _, a, *_ in products] == [0, 2 * 80, 4 * 80]
    partial, out = kernel.launched[-1][1]
    assert (partial[1], partial[2]) == ("<f4", (3, 90))  # sums are not rounded before they are added
    assert (out[0], out[1], out[2]) == (dw.data_ptr(), "<f2", (90,))
    assert [arguments[-1][0] - partial[0] for arguments in products] == [0, 360, 720]


@needs_numba
def test_numba_is_asked_for_torchs_stream_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import cuda

    seen: list[Any] = []
    stream = types.SimpleNamespace(cuda_stream=4711)
    monkeypatch.setattr(
        torch.cuda, "device", lambda index: contextlib.nullcontext(seen.append(("device", index)))
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: stream)
    monkeypatch.setattr(cuda, "gpus", {1: contextlib.nullcontext()})
    monkeypatch.setattr(cuda, "external_stream", lambda pointer: ("external", pointer))
    monkeypatch.setattr(cuda, "from_cuda_array_interface", lambda described, sync: (described, sync))
    gpu = numba_gpu.Gpu(1)
    with gpu._stream() as given:
        assert given == ("external", 4711)
    assert seen == [("device", 1)]
    described, sync = gpu.array(64, "<f4", (2, 3), (12, 4))
    assert not sync
    assert described == {
        "data": (64, False), "typestr": "<f4", "shape": (2, 3), "strides": (12, 4), "version": 3,
    }  # fmt: skip


@needs_numba
def test_a_kernel_is_made_once_and_is_numbas() -> None:
    kernel = numba_gpu.kernel_of("conv2d/direct_naive_numba.py", "direct_naive_fprop(float32)")
    assert kernel is numba_gpu.kernel_of("conv2d/direct_naive_numba.py", "direct_naive_fprop(float32)")
    assert type(kernel).__name__ == "CUDADispatcher"


# ---- What is missing -----------------------------------------------------------------------------------


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = numba_gpu.missing.__wrapped__
    monkeypatch.setattr(numba_gpu.ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba_cuda" else object())
    assert missing() == "no numba-cuda (pip install numba-cuda[cu13], or numba-cuda[cu12] for CUDA 12)"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "numba.cuda", types.ModuleType("numba.cuda"))
    assert "compute capability 7.5" in str(missing())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert missing() is None


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA")
def test_explain_says_what_is_missing() -> None:
    lines = {
        choice.kernel.id: choice.reason
        for choice in pyconv.explain("conv2d n1c2h4w4 k3r3s3", "cuda")["fprop"]
    }
    assert "torch" in lines["conv2d.fprop.direct_naive@numba"]
    assert lines["conv2d.fprop.direct_naive@numba"] == f"not able: {backends.unavailable('numba', 'cuda')}"
    assert backends.unavailable("numba", "cpu") == "runs on cuda, not on cpu"


# ---- Numba's simulator ---------------------------------------------------------------------------------

_SIMULATED = """
import contextlib, ctypes, sys
import numpy as np, torch
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from pyconv import backends
from pyconv.backends import numba_gpu
from pyconv.problem import parse_problem
from pyconv.registry import find
from tests.operands import expected, operands

class Simulated(numba_gpu.Gpu):
    @contextlib.contextmanager
    def _stream(self):
        yield 0

    def array(self, address, typestr, shape, strides):
        dtype = np.dtype(typestr)
        steps = zip(shape, strides)
        size = 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in steps) // dtype.itemsize
        flat = (ctypes.c_byte * (size * dtype.itemsize)).from_address(address) if size else b""
        return FakeCUDAArray(np.lib.stride_tricks.as_strided(np.frombuffer(flat, dtype), shape, strides))

for name, text in CASES:
    kernel, problem = find(name), parse_problem(text)
    arrays = operands(problem, kernel.pass_, "integers")
    tensors = [None if a is None else torch.from_numpy(np.array(a)) for a in arrays]
    tensors = [t if t is None or t.dtype == torch.int32 else t.to(problem.torch_dtype) for t in tensors]
    bound = backends.bind(kernel, problem)
    bound._device = lambda device: Simulated(0)
    got = bound(*tensors)
    want = expected(problem, kernel.pass_, arrays)
    for new, old in zip(got if isinstance(got, tuple) else (got,), want):
        rounded = torch.from_numpy(np.asarray(old, dtype=np.float64)).to(new.dtype)
        assert torch.equal(new.contiguous(), rounded.contiguous()), name
    print(name)
"""

#: It takes a second for a thousand threads, and knows no shuffles.
_CASES = [
    ("conv2d.fprop.direct_naive@numba", "conv2d n1c2h4w5 k3r3s3 st1 pd1 f32 nchw"),
    ("conv2d.wgrad.direct_naive@numba", "conv2d n2c2h4w5 k3r2s2 st2 pd1 f16 nhwc"),
    ("conv2d.dgrad.direct_tiled@numba", "conv2d n1c2h4w5 k3r3s3 st2 pd1 f32 nhwc"),
    ("conv2d.wgrad.im2col_gemm_tiled@numba", "conv2d n1c2h3w4 k3r2s2 st1 pd0 f64 nhwc"),
    ("maxpool2d.fprop_argmax.direct@numba", "maxpool2d n1c2h5w6 r3s3 st2 pd1 f32 nchw"),
]


@needs_numba
def test_numbas_own_simulator_agrees() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"CASES = {_CASES}\n{_SIMULATED}"],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [name for name, _ in _CASES], done.stderr
