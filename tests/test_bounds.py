"""No kernel touches a byte outside its operands, its result and its workspace.

A process of its own runs the kernels with every block of torch's memory against a page that faults when
touched (``tests/fence.c``): once with the end of each block at the fence, once with its beginning there. Each
line of the table runs in a fork of that process, which a fault ends, and with it only that line. This is the
library as it is shipped; ``tests/test_sanitizers.py`` has the same kernels under AddressSanitizer, to which a
workspace that does not end at a cache line is fenced to the byte too.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pyconv import backends, registry
from pyconv.backends import cpu
from pyconv.problem import Problem
from pyconv.registry import Kernel
from tests.memory import dense_strides
from tests.native import build
from tests.operands import Array, operands
from tests.problems import CONV2D, MAXPOOL2D, variants

ROOT = Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def _exact(array: Array, problem: Problem) -> torch.Tensor:
    """A dense tensor whose block holds its elements and nothing else."""
    tensor = torch.from_numpy(array.copy())
    if tensor.is_floating_point():
        tensor = tensor.to(problem.torch_dtype)
    return torch.empty_strided(
        tensor.shape, dense_strides(array.shape, problem.layout), dtype=tensor.dtype
    ).copy_(tensor)


def _run_line(kernel: Kernel, tell: Callable[[str], None]) -> None:
    for text in CONV2D if kernel.operation == "conv2d" else MAXPOOL2D:
        for problem in variants(text, kernel.dtypes):
            if kernel.supports(problem):
                continue
            arrays = operands(problem, kernel.pass_, "integers")
            for isa in cpu.isas():
                cpu.set_isa(isa)
                tell(f"{kernel.id} on '{problem}', instruction set {isa}")
                backends.bind(kernel, problem)(*(_exact(array, problem) for array in arrays))


def _in_a_fork(run: Callable[[Callable[[str], None]], None]) -> str | None:
    """``None``, or what a fork of this process was doing when it died."""
    note = mmap.mmap(-1, 4096)

    def tell(text: str) -> None:
        note.seek(0)
        note.write(text.encode().ljust(1000))

    child = os.fork()
    if child == 0:
        try:
            run(tell)
            os._exit(0)
        except Exception as error:
            tell(f"{note[:1000].decode().strip()}: {type(error).__name__}: {error}"[:900])
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return None
    how = f"died of {signal.Signals(-status).name} (memory not its own)" if status < 0 else "raised"
    return f"{how}: {note[:1000].decode().strip()}"


def main() -> int:
    """Runs in the fenced process: prints what died; the exit status says whether anything did."""
    torch.set_num_threads(1)
    lines = [kernel for kernel in registry.kernels() if kernel.backend == "cpu"]
    found = [_in_a_fork(lambda tell, kernel=kernel: _run_line(kernel, tell)) for kernel in lines]
    faults = [fault for fault in found if fault]
    print("\n".join(faults))
    return 1 if faults else 0


def broken() -> int:
    """Runs in the fenced process with the kernels of ``tests/native/broken.cpp``: prints those that died."""
    torch.set_num_threads(1)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)  # 64 bytes: torch's blocks end where a cache line does

    def run(mistake: str) -> None:
        name = f"conv2d.fprop.{mistake}"
        torch.ops.pyconv.conv2d_fprop(
            x, torch.ones(1, 1, 1, 1), None, [1, 1], [0] * 4, [1, 1], 1, False, name
        )

    mistakes = [name.removeprefix("conv2d.fprop.") for name in cpu.compiled() if "fprop" in name]
    print(*(mistake for mistake in mistakes if _in_a_fork(lambda tell, mistake=mistake: run(mistake))))
    return 0


@pytest.fixture(scope="module")
def fence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not sys.platform.startswith("linux") or COMPILER is None:
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("fence") / "fence.so"
    command = [
        COMPILER,
        "-O1",
        "-Wall",
        "-shared",
        "-fPIC",
        "-o",
        library,
        ROOT / "tests" / "fence.c",
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return library


def _fenced(fence: Path, side: str, function: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_PRELOAD": str(fence), "PYCONV_FENCE": side, **more}
    code = f"from tests.test_bounds import {function}; raise SystemExit({function}())"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("side", ["before", "after"])
def test_no_kernel_leaves_its_memory(fence: Path, side: str) -> None:
    done = _fenced(fence, side, "main")
    if done.returncode:
        pytest.fail(f"memory fenced {side} every block: {done.stdout}{done.stderr[-2000:]}", pytrace=False)


@pytest.mark.parametrize(
    ("side", "found"),
    [
        ("before", {"reads_before_x", "writes_before_y", "writes_before_workspace"}),
        ("after", {"reads_past_x", "writes_past_y", "reads_past_workspace", "writes_past_workspace"}),
    ],
)
def test_the_fence_finds_one_element_too_far(fence: Path, side: str, found: set[str]) -> None:
    library = build("pyconv_broken", "", "baseline")
    done = _fenced(fence, side, "broken", PYCONV_LIBRARY=str(library))
    assert set(done.stdout.split()) == found, done.stderr
