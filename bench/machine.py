"""What a measurement depends on: allocator, processor, versions, and the machine's measured ceilings."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import pyconv
from pyconv.backends import cpu
from pyconv.machine import last_level_cache
from pyconv.problem import DTYPES

ROOT = Path(__file__).resolve().parent.parent

#: glibc gives large blocks back to the system at every free; the page faults of the next allocation can cost
#: more than a kernel. With this setting both sides keep their memory. glibc reads it when a process starts.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "268435456",
}

_VECTOR_FLAGS = re.compile(r"sse|avx|fma|f16c|amx|asimd|neon|sve")


def restart_with_allocator_setting(module: str, arguments: Sequence[str]) -> None:
    """Starts this process afresh as ``python -m module`` under :data:`ALLOCATOR`, unless it runs under it."""
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        sys.stdout.flush()
        command = [sys.executable, "-m", module, *arguments]
        os.execve(sys.executable, command, {**os.environ, **ALLOCATOR})


def allocator() -> dict[str, Any]:
    """The allocator's setting in this process, the same for every side."""
    return {
        "libc": " ".join(platform.libc_ver()).strip() or "not glibc",
        "settings": {name: os.environ.get(name, "") for name in ALLOCATOR},
        "preload": [Path(name).name for name in os.environ.get("LD_PRELOAD", "").split()],
    }


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def describe() -> dict[str, Any]:
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "flags": " ".join(flag for flag in flags if _VECTOR_FLAGS.search(flag)),
        "last_level_cache": last_level_cache(),
    }


def describe_device() -> dict[str, Any]:
    """The present CUDA device, as torch and the driver see it."""
    properties = torch.cuda.get_device_properties()
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "last_level_cache": last_level_cache("cuda"),
        "driver": _driver(),
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.splitlines()[0].strip()


def device_versions() -> dict[str, str]:
    """Versions of what a comparison on a CUDA device depends on."""
    from importlib import metadata

    def package(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "none"

    from pyconv.backends import nvrtc

    compiler = nvrtc.find()
    cupy = map(package, ("cupy-cuda13x", "cupy-cuda12x", "cupy"))
    return {
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "cupy": next((version for version in cupy if version != "none"), "none"),
        "nvrtc": "none" if isinstance(compiler, str) else "{}.{}".format(*compiler.version),
    }


def versions() -> dict[str, str]:
    onednn = re.search(r"MKL-DNN v(\S+)", torch.__config__.show())
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onednn": onednn[1] if onednn else "none",
        "pyconv": pyconv.__version__,
        "isa": cpu.isa() if cpu.unavailable("cpu") is None else "none",
    }


def commit() -> str:
    """The checkout's commit, with ``+`` where files differ from it; ``unknown`` outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _best_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def ceilings(dtypes: Sequence[str], repeats: int = 5) -> dict[str, float]:
    """The machine's measured limits under the present number of threads, each the best of ``repeats``.

    ``fma_<dtype>``: operations per second of a 2048^3 matrix product of torch, a proxy for the peak of fused
    multiply-adds. ``copy``: bytes per second, read and written, of a copy four times the last-level cache.
    """
    found = {}
    for dtype in dtypes:
        a, b = (torch.randn(2048, 2048, dtype=torch.float32).to(DTYPES[dtype]) for _ in range(2))
        out = torch.empty_like(a)

        def product(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> object:
            return torch.mm(a, b, out=out)

        found[f"fma_{dtype}"] = 2 * 2048**3 / _best_seconds(product, repeats)
    source = torch.ones(max(2 * last_level_cache(), 64 * 1024**2), dtype=torch.uint8)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.numel() / _best_seconds(lambda: target.copy_(source), repeats)
    return found


def device_ceilings(dtypes: Sequence[str], repeats: int = 5) -> dict[str, float]:
    """The measured limits of the CUDA device, as :func:`ceilings`: an 8192^3 product (4096^3 in float64) by
    cuBLAS, under ``fma_tf32`` also in TF32, and a copy of 1 GiB."""

    def best(call: Callable[[], object], repeats: int) -> float:
        call()
        torch.cuda.synchronize()
        times = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e-3)
        return min(times)

    found = {}
    for math in dtypes:
        size = 4096 if math == "f64" else 8192
        dtype = DTYPES["f32" if math == "tf32" else math]
        # Random numbers: a product of zeros runs faster than any real one.
        a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        with tf32(math == "tf32"):
            found[f"fma_{math}"] = (
                2 * size**3 / best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), repeats)
            )
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    found["copy"] = 2 * source.numel() / best(lambda: target.copy_(source), repeats)
    return found


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """torch's TF32 flags for convolutions and products, within the block."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
