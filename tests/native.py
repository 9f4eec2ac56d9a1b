"""The CPU kernels outside torch: under a sanitizer, on fenced memory, on threads of another kind.

:func:`build` makes a program of the kernels of one instruction set (``tests/native/``) and :class:`Native` is
a device of the battery that runs them there. It knows the kernels by the table and their operands by their
bytes, so a new line or a new dtype needs nothing here.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyconv.problem import Problem
from pyconv.registry import Kernel
from tests.devices import Device
from tests.memory import POISONS, dense_strides
from tests.operands import result_shapes

ROOT = Path(__file__).resolve().parent.parent

#: Each stops at its first finding, and says what it found.
SANITIZERS = ("address", "thread")
_OPTIONS = {
    # The launcher's own memory is released by the end of the process.
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


# ---- Building ----------------------------------------------------------------------------------------------


@cache
def unavailable(sanitizer: str, isa: str) -> str | None:
    """Why a sanitizer cannot run here, or ``None``. A launcher that does not build or start is an error."""
    if not sys.platform.startswith("linux"):
        return f"runs on Linux, not on {sys.platform}"
    if not any(map(shutil.which, (os.environ.get("CXX", "c++").split()[0], "c++", "g++", "clang++"))):
        return "no C++ compiler"
    done = subprocess.run(
        _command(build("pyconv_launcher", sanitizer, isa)), stdin=subprocess.DEVNULL, env=environment(isa),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unexpected memory mapping" in done.stderr:
        return f"the {sanitizer} sanitizer of this compiler does not know this kernel's address space"
    assert done.returncode == 0, done.stderr
    return None


def _command(program: Path) -> list[str]:
    """Without random addresses if that is allowed: some of a kernel's are none of ThreadSanitizer's."""
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    if fixed and subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode:
        fixed = []
    return [*fixed, str(program)]


@cache
def build(target: str, sanitizer: str, isa: str) -> Path:
    """Builds a target of ``tests/native/CMakeLists.txt`` if it is not current.

    Args:
        sanitizer: One of :data:`SANITIZERS`, or nothing.
    """
    folder = ROOT / "build" / "tests" / f"{sanitizer or 'plain'}-{isa}"
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", "CLICOLOR_FORCE": "0"}
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja",
        f"-DTORCH_PATH={Path(torch.__file__).parent}", f"-DPYCONV_OUTPUT_DIR={folder}",
        f"-DPYCONV_SANITIZE={sanitizer}", f"-DPYCONV_ISAS={isa}",
    ]  # fmt: skip
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers of pytest-xdist wait
        for command in (configure, ["cmake", "--build", str(folder), "--target", target]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{target} does not build: {(done.stdout + done.stderr)[-3000:]}")
    program, library = folder / target, folder / f"lib{target}.so"
    return library if library.exists() else program


def environment(isa: str) -> dict[str, str]:
    """What a program with a sanitizer runs in."""
    return {**os.environ, **_OPTIONS, "PYCONV_ISA": isa}


# ---- Talking to it -----------------------------------------------------------------------------------------


class Fault(Exception):
    """A launch ended the launcher: the text is its report, from the first line that says what happened."""


@dataclass(frozen=True)
class Way:
    """How one launch runs: threads, the order in which they get the units of work, where memory is fenced."""

    threads: int = 1
    order: int = 0  # 0: forward, 1: reverse, else a shuffle of that seed
    ends_at_fence: bool = True
    fill: int = POISONS[0]


@dataclass(frozen=True)
class Launched:
    """What a launch gave: the results, and the units of work of each of its parallel loops."""

    results: list[Tensor]
    units: list[int]
    workspace: int


@dataclass
class Launcher:
    """A running launcher. One that a fault ended is started again by the next launch."""

    sanitizer: str
    isa: str
    _process: subprocess.Popen[bytes] | None = None
    _report: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def launch(
        self, name: str, pass_: str, problem: Problem, tensors: tuple[Tensor | None, ...], way: Way
    ) -> Launched:
        """Runs a kernel on dense copies of some tensors.

        Raises:
            Fault: with the sanitizer's report.
        """
        results = [
            torch.empty_strided(shape, dense_strides(shape, problem.layout), dtype=dtype)
            for shape, dtype in zip(
                result_shapes(problem, pass_), (problem.torch_dtype, torch.int32), strict=False
            )
        ]
        if any(result.numel() == 0 for result in results):
            return Launched(results, [], 0)  # torch's adapters launch nothing either
        operands = [None if tensor is None else _bytes(tensor, problem.layout) for tensor in tensors]
        sizes = [result.numel() * result.element_size() for result in results]
        self._request(name, problem, operands, sizes, way)
        workspace = self._number()
        if workspace < 0:
            raise Fault(f"{name} refuses '{problem}'")
        units = [self._number() for _ in range(self._number())]
        for result, size in zip(results, sizes, strict=True):
            data = torch.frombuffer(bytearray(self._receive(size)), dtype=result.dtype)
            result.copy_(data.as_strided(result.shape, result.stride()))
        return Launched(results, units, workspace)

    def workspace(self, name: str, problem: Problem, threads: int) -> int:
        """Bytes of workspace that a kernel would take; nothing is launched."""
        self._request(name, problem, [], [], Way(threads))
        workspace = self._number()
        if workspace >= 0:
            self._number()
        return workspace

    def _request(
        self, name: str, problem: Problem, operands: list[bytes | None], results: list[int], way: Way
    ) -> None:
        struct = bytes(problem.to_c())
        names = ("a", "b", "bias") if name.startswith("conv2d") else ("a", "argmax")
        size = {of: -1 if data is None else len(data) for of, data in zip(names, operands, strict=False)}
        numbers = (
            len(name), len(struct), way.threads, way.order, way.ends_at_fence, way.fill, len(results) > 0,
            *(size.get(of, -1) for of in ("a", "b", "bias", "argmax")), *(results + [-1, -1])[:2],
        )  # fmt: skip
        message = np.array(numbers, np.int64).tobytes() + name.encode() + struct
        self._send(message + b"".join(data for data in operands if data is not None))

    def _send(self, message: bytes) -> None:
        if self._process is None:
            program = build("pyconv_launcher", self.sanitizer, self.isa)
            self._report.seek(0)
            self._report.truncate()
            self._process = subprocess.Popen(
                _command(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._report,
                env=environment(self.isa),
            )  # fmt: skip
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._fault() from None

    def _receive(self, count: int) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        if len(data) < count:
            raise self._fault()
        return data

    def _number(self) -> int:
        return int.from_bytes(self._receive(8), sys.byteorder, signed=True)

    def _fault(self) -> Fault:
        assert self._process is not None
        assert self._process.stdout is not None
        status = self._process.wait(timeout=60)
        self._process.stdout.close()
        self._process = None
        self._report.seek(0)
        lines = self._report.read().decode(errors="replace").strip().strip("=\n").splitlines()
        return Fault("\n".join([f"the launcher ended with status {status}", *lines[:14]]))


def _as_bytes(dense: Tensor) -> Tensor:
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)


def _bytes(tensor: Tensor, layout: str) -> bytes:
    shape = tuple(tensor.shape)
    dense = torch.empty_strided(shape, dense_strides(shape, layout), dtype=tensor.dtype).copy_(tensor)
    return _as_bytes(dense).numpy().tobytes()


# ---- The device --------------------------------------------------------------------------------------------

_launchers: dict[tuple[str, str], Launcher] = {}


def running(sanitizer: str, isa: str) -> Launcher:
    """The launcher of this process. Skips the test where there cannot be one."""
    reason = unavailable(sanitizer, isa)
    if reason:
        pytest.skip(reason)
    if (sanitizer, isa) not in _launchers:
        _launchers[sanitizer, isa] = Launcher(sanitizer, isa)
    return _launchers[sanitizer, isa]


class Native(Device):
    """The CPU kernels of one instruction set under a sanitizer.

    A launch is on the threads and in the order of its way. Under AddressSanitizer it is two, whose results
    must agree: memory is fenced at its end and then at its beginning, and results and workspace come filled
    with one poison and then with the other.
    """

    name = "cpu"
    tensors = "cpu"
    ways = (
        "1 thread, order 0", "1 thread, order 1", "2 threads, order 1", "3 threads, order 2",
        "8 threads, order 3",
    )  # fmt: skip

    def __init__(self, sanitizer: str, isa: str) -> None:
        self._launcher = running(sanitizer, isa)
        self._way = "3 threads, order 2"
        self._fences = (True, False) if sanitizer == "address" else (True,)
        #: Kernel id -> the most units of work that one parallel loop of it had.
        self.most_units: dict[str, int] = {}

    def unavailable(self, backend: str) -> str | None:
        return None  # see running()

    @contextmanager
    def running(self, way: str | None = None) -> Iterator[None]:
        before, self._way = self._way, way or self._way
        try:
            yield
        finally:
            self._way = before

    def bind(self, kernel: Kernel, problem: Problem) -> Callable[..., Any]:
        def launch(*tensors: Tensor | None) -> Any:
            threads, order = (int(word) for word in self._way.replace(",", "").split() if word.isdigit())
            launches = [
                self._launcher.launch(
                    kernel.name, kernel.pass_, problem, tensors, Way(threads, order, ends_at_fence, fill)
                )
                for ends_at_fence, fill in zip(self._fences, POISONS, strict=False)
            ]
            results = launches[0].results
            for again in launches[1:]:
                for first, second in zip(results, again.results, strict=True):
                    if not torch.equal(_as_bytes(first), _as_bytes(second)):
                        raise Fault("the result depends on where memory lies or what it held before")
            most = max([*launches[0].units, self.most_units.get(kernel.id, 0)])
            self.most_units[kernel.id] = most
            return results[0] if len(results) == 1 else tuple(results)

        return launch
