"""The same bits from run to run, for any number of threads, and under any setting of OpenMP.

Selection and the kernels' units of work come from the problem: that is proved where they can be seen, in the
launcher of :mod:`tests.native`, and the bits are compared in processes of their own (:mod:`tests.bits`).
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from pyconv.registry import Kernel
from tests import bits
from tests.memory import POISONS, lay_out
from tests.native import Way, running
from tests.operands import operands
from tests.problems import CONV2D_CORE, MAXPOOL2D_CORE, variants
from tests.test_sanitizers import ISA

ROOT = Path(__file__).resolve().parent.parent
THREADS = (1, 2, 3, 8)

#: Settings of the OpenMP under torch's threads, which set how many there are, where and in what order.
SETTINGS = [
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "8", "OMP_DYNAMIC": "true", "OMP_WAIT_POLICY": "passive"},
    {"OMP_NUM_THREADS": "3", "OMP_SCHEDULE": "dynamic,1", "OMP_WAIT_POLICY": "active"},
    {"OMP_NUM_THREADS": "2", "OMP_PROC_BIND": "close", "OMP_PLACES": "cores"},
]
MORE_SETTINGS = [
    {},
    {"OMP_NUM_THREADS": "2", "OMP_SCHEDULE": "guided"},
    {"OMP_NUM_THREADS": "8", "OMP_SCHEDULE": "static,3", "OMP_PROC_BIND": "spread"},
    {"OMP_NUM_THREADS": "8", "GOMP_CPU_AFFINITY": "0"},
    {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "0", "OMP_STACKSIZE": "16M"},
    {"OMP_NUM_THREADS": "8", "OMP_THREAD_LIMIT": "2"},
    {"OMP_NUM_THREADS": "2", "OMP_NESTED": "true", "OMP_MAX_ACTIVE_LEVELS": "4"},
    {"MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "5", "KMP_DETERMINISTIC_REDUCTION": "false"},
]


def _bits(threads: str, setting: dict[str, str], repetitions: int = 1, isa: str = "") -> list[str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.bits", threads, str(repetitions)],
        cwd=ROOT, env={**clean, **setting}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    return [line for line in lines if not line.startswith("#")]


@cache
def _reference() -> list[str]:
    """The bits of this process, in which torch computes on one thread."""
    torch.set_num_threads(1)
    return [" | ".join(item) for item in bits.every()]


# ---- The units of work -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", bits.lines(), ids=lambda kernel: kernel.id)
def test_units_of_work_come_from_the_problem(kernel: Kernel) -> None:
    """The same parallel loops, of as many units, with 1 thread and with 8; and in any order the same bits."""
    launcher = running("address", ISA["address"])
    texts = CONV2D_CORE if kernel.operation == "conv2d" else MAXPOOL2D_CORE
    problems = [problem for text in texts for problem in variants(text, kernel.dtypes)]
    most = 0
    for problem in problems + bits.with_many_units(kernel):
        if kernel.supports(problem):
            continue
        tensors = tuple(
            lay_out(array, problem.torch_dtype, problem.layout)
            for array in operands(problem, kernel.pass_, "normal")
        )
        ways = (Way(1), Way(8, order=1), Way(3, order=2, fill=POISONS[1]))
        first, *others = (launcher.launch(kernel.name, kernel.pass_, problem, tensors, way) for way in ways)
        for way, other in zip(ways[1:], others, strict=True):
            assert other.units == first.units, f"{kernel.id} on '{problem}': {way}"
            for one, another in zip(first.results, other.results, strict=True):
                assert torch.equal(one, another), f"{kernel.id} on '{problem}': {way}"
        most = max([most, *first.units])
    assert most > 1, "no problem of the list is shared by threads"


def test_units_that_come_from_the_threads_are_seen() -> None:
    """What the test above is for: ``chunks_are_threads`` of ``tests/native/broken.cpp``."""
    problem = variants("conv2d n1c1h8w24 k1r1s1 st1 pd0", ("f32",))[0]
    dy = (torch.ones(1, 1, 8, 24),)
    launch = running("address", ISA["address"]).launch
    found = [
        launch("conv2d.bgrad.chunks_are_threads", "bgrad", problem, dy, Way(threads)).units
        for threads in THREADS
    ]
    assert found == [[1], [2], [3], [8]]


# ---- The bits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_bits_under_settings_of_openmp(setting: dict[str, str]) -> None:
    assert _bits("as they come", setting) == _reference()


@pytest.mark.exhaustive
@pytest.mark.parametrize("setting", SETTINGS + MORE_SETTINGS, ids=str)
def test_bits_under_settings_of_openmp_exhaustive(setting: dict[str, str]) -> None:
    assert _bits("1,2,3,8", setting) == _reference()


@contextmanager
def _load(processes: int) -> Iterator[None]:
    """Other processes that use the processor all the while."""
    burn = "import itertools, os\nparent = os.getppid()\nfor _ in itertools.count():\n  sum(range(100000))\n"
    burn += "  if os.getppid() != parent: break\n"
    others = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_bits_from_run_to_run_under_load() -> None:
    with _load(2):
        assert _bits("8,1,3,2", {"OMP_WAIT_POLICY": "passive"}, repetitions=2) == _reference()


@pytest.mark.exhaustive
def test_bits_of_100_runs_under_load() -> None:
    with _load(multiprocessing.cpu_count() + 1):
        assert _bits("8,3", {"OMP_WAIT_POLICY": "passive"}, repetitions=50) == _reference()
