"""No kernel touches a byte outside its operands, its result and its workspace.

A process of its own runs the kernels with every block of torch's memory against a page that faults when
touched (``tests/fence.c``): once with the end of each block at the fence, once with its beginning there. Each
line of the table runs in a fork of that process, which a fault ends, and with it only that line.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyconv import backends, registry
from pyconv.backends import cpu
from pyconv.problem import Problem
from pyconv.registry import Kernel
from tests.memory import dense_strides
from tests.operands import Array, operands
from tests.problems import CONV2D, MAXPOOL2D, variants

ROOT = Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def _exact(array: Array, problem: Problem) -> torch.Tensor:
    """A dense tensor whose block holds its elements and nothing else."""
    tensor = torch.from_numpy(array.copy())
    return torch.empty_strided(
        tensor.shape, dense_strides(array.shape, problem.layout), dtype=tensor.dtype
    ).copy_(tensor)


def _run_line(kernel: Kernel, tell: Callable[[str], None]) -> None:
    for text in CONV2D if kernel.operation == "conv2d" else MAXPOOL2D:
        for problem in variants(text):
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


def _read_past_either_end(tell: Callable[[str], None]) -> None:
    """What the fence is for: one element too far in the direction that the environment names."""
    tensor = torch.zeros(7)
    step = -1 if os.environ["PYCONV_FENCE"] == "before" else 7
    tell("one element too far")
    ctypes.string_at(tensor.data_ptr() + 4 * step, 4)


def main() -> int:
    """Runs in the fenced process: prints what died; the exit status says whether anything did."""
    torch.set_num_threads(1)
    if _in_a_fork(_read_past_either_end) is None:
        print("the fence does not hold: a read outside a block was let through")
        return 2
    lines = [kernel for kernel in registry.kernels() if kernel.backend == "cpu"]
    found = [_in_a_fork(lambda tell, kernel=kernel: _run_line(kernel, tell)) for kernel in lines]
    faults = [fault for fault in found if fault]
    print("\n".join(faults))
    return 1 if faults else 0


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


@pytest.mark.parametrize("side", ["before", "after"])
def test_no_kernel_leaves_its_memory(fence: Path, side: str) -> None:
    environment: dict[str, Any] = {**os.environ, "LD_PRELOAD": str(fence), "PYCONV_FENCE": side}
    done = subprocess.run(
        [sys.executable, "-c", "from tests.test_bounds import main; raise SystemExit(main())"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(f"memory fenced {side} every block: {done.stdout}{done.stderr[-2000:]}", pytrace=False)
