"""One GPU: kernels compiled for it, loaded into it and launched on torch's current stream.

The driver is called through CuPy; memory is torch's. This is the only module of the backend that needs a GPU,
and it is kept thin: everything before the driver's calls is run in the tests, on the emulator.

Loading. A kernel is compiled and loaded at the first call on a device that needs it, and stays loaded for the
life of the process. That costs seconds where the cache on disk has no entry. It is work of the host alone: it
neither waits for the device nor allocates from torch, and so that it may also happen while a CUDA graph is
captured, the thread's capture mode is relaxed meanwhile. Still, make one call before the capture, as torch
asks for every operator.

Launching neither synchronises nor allocates.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch

from pyconv.backends import nvrtc, sources
from pyconv.backends.cache import Cache, folder
from pyconv.backends.packing import Frame
from pyconv.backends.program import Step

#: The kernels use cp.async and bf16 conversions: Ampere and newer.
LEAST_CAPABILITY = (8, 0)

_DRIVER = "libcuda.so.1"
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
_MOST_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES; not every CuPy need show it

#: What cuLaunchKernel takes before the stream: the function, the grid, the block, the dynamic shared memory.
Launch = tuple[int, int, int, int, int, int, int, int]


@cache
def missing() -> str | None:
    """What this machine lacks to run kernels on a GPU, all of it; ``None`` if nothing."""
    reasons = []
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        reasons.append(f"no NVIDIA driver ({_DRIVER} cannot be loaded)")
    if torch.version.cuda is None:
        reasons.append(f"torch {torch.__version__} is built without CUDA")
    elif not reasons and not torch.cuda.is_available():
        reasons.append("torch finds no CUDA device")
    if importlib.util.find_spec("cupy") is None:
        reasons.append("no CuPy (pip install cupy-cuda13x, or cupy-cuda12x for CUDA 12)")
    compiler = nvrtc.find()
    if isinstance(compiler, str):
        reasons.append(compiler)
    if not reasons:
        try:
            importlib.import_module("cupy.cuda")
        except Exception as error:
            reasons.append(f"CuPy cannot be imported: {error}")
    if not reasons:
        reasons += [
            f"cuda:{index} has compute capability {have[0]}.{have[1]}, the kernels need {need[0]}.{need[1]}"
            for index in range(torch.cuda.device_count())
            if (have := torch.cuda.get_device_capability(index)) < (need := LEAST_CAPABILITY)
        ]
    return "; ".join(reasons) or None


@cache
def _cache() -> Cache:
    return Cache(folder())


def compile_for(step: Step, architecture: str) -> nvrtc.Image:
    """The instantiation that a step launches, from the cache where it has it.

    Raises:
        RuntimeError: if there is no NVRTC, or with its log if the source does not compile.
    """
    compiler = nvrtc.find()
    if isinstance(compiler, str):
        raise RuntimeError(f"pyconv: {compiler}")
    parts = (
        step.kernel, step.source, sources.digest(step.source), architecture, " ".join(nvrtc.FLAGS),
        "nvrtc {}.{}".format(*compiler.version),
    )  # fmt: skip
    build = lambda: compiler.compile(step.source, step.kernel, architecture).to_bytes()  # noqa: E731
    return nvrtc.Image.from_bytes(_cache().get(parts, build))


class Gpu:
    """A device with what is loaded into it."""

    def __init__(self, index: int) -> None:
        from cupy.cuda import driver

        self.index = index
        compiler = nvrtc.find()
        assert isinstance(compiler, nvrtc.Nvrtc)
        capability = torch.cuda.get_device_capability(index)
        self.architecture = nvrtc.architecture(capability, compiler.architectures)
        self._driver: Any = driver
        self._current_stream: Any = torch._C._cuda_getCurrentRawStream
        with _relaxed_capture(), self._active():
            self._context: int = driver.ctxGetCurrent()
        self._functions: dict[tuple[str, str], int] = {}
        self._names: dict[int, str] = {}  # of functions, for errors
        self._shared_bytes: dict[int, int] = {}  # of functions: what they have been allowed
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def _active(self) -> Iterator[None]:
        with torch.cuda.device(self.index):
            torch.cuda.mem_get_info(self.index)  # a thread that has not used the device has no context yet
            yield

    def load(self, step: Step) -> Launch:
        """The step's kernel, ready to launch on this device.

        Raises:
            RuntimeError: if it cannot be compiled, loaded, or given its shared memory.
        """
        with self._lock:
            key = (step.source, step.kernel)
            function = self._functions.get(key)
            if function is None:
                function = self._functions[key] = self._load(compile_for(step, self.architecture), step)
                self._names[function] = step.kernel
            if step.shared_bytes > self._shared_bytes.get(function, 0):
                self._allow_shared(function, step)
            return (function, *step.grid, *step.block, step.shared_bytes)

    def _load(self, image: nvrtc.Image, step: Step) -> int:
        try:
            with _relaxed_capture(), self._active():
                # Never unloaded: when Python ends, the driver may be gone before its objects.
                module = self._driver.moduleLoadData(image.code)
                return int(self._driver.moduleGetFunction(module, image.entry))
        except self._driver.CUDADriverError as error:
            raise RuntimeError(
                f"pyconv: cuda:{self.index} does not load {step.kernel}, compiled for {self.architecture}: "
                f"{error}"
            ) from error

    def _allow_shared(self, function: int, step: Step) -> None:
        """A block has 48 KB unless its function asks for more."""
        try:
            with _relaxed_capture(), self._active():
                self._driver.funcSetAttribute(function, _MOST_DYNAMIC_SHARED, step.shared_bytes)
        except self._driver.CUDADriverError as error:
            raise RuntimeError(
                f"pyconv: {step.kernel} takes {step.shared_bytes} bytes of dynamic shared memory a block, "
                f"which cuda:{self.index} ({torch.cuda.get_device_name(self.index)}) does not give: {error}"
            ) from error
        self._shared_bytes[function] = step.shared_bytes

    def launch(self, launches: Sequence[Launch], frame: Frame, *_: object) -> None:
        """The launches, one after the other, on torch's current stream of this device."""
        driver, context = self._driver, self._context
        stream = self._current_stream(self.index)
        # torch's default stream has no number of its own: it is that of the current context. A thread may be
        # on another device, or on none yet.
        before = driver.ctxGetCurrent()
        if before != context:
            driver.ctxSetCurrent(context)
        try:
            for launch, parameters in zip(launches, frame.parameters, strict=True):
                driver.launchKernel(*launch, stream, parameters, 0)
        except driver.CUDADriverError as error:
            function, *shape = launch
            raise RuntimeError(
                f"pyconv: cuda:{self.index} does not launch {self._names[function]} with grid, block and "
                f"shared memory {shape}: {error}"
            ) from error
        finally:
            if before != context:
                driver.ctxSetCurrent(before)


@cache
def gpu(index: int) -> Gpu:
    return Gpu(index)


@contextlib.contextmanager
def _relaxed_capture() -> Iterator[None]:
    """Lets this thread load code while a graph is captured: nothing of that belongs into the graph."""
    library = ctypes.CDLL(_DRIVER)
    mode = ctypes.c_int(_RELAXED)
    library.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    try:
        yield
    finally:
        library.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
