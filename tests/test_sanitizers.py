"""The CPU kernels under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer.

The default run checks the best instruction set of this machine for memory and undefined behaviour, and for
races the baseline, all of whose loads and stores are plain C++ that ThreadSanitizer sees. ``make sanitize``
puts every instruction set through the whole battery, and through what Hypothesis draws, under either.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from pyconv import registry
from pyconv.backends import cpu
from pyconv.problem import Problem, parse_problem
from pyconv.registry import Kernel
from tests.battery import CHECKS, judge
from tests.bits import with_many_units
from tests.native import SANITIZERS, Fault, Launched, Native, Way, build, environment, running
from tests.problems import (
    CONV2D,
    CONV2D_CORE,
    DTYPES,
    MAXPOOL2D,
    MAXPOOL2D_CORE,
    variants,
)
from tests.test_battery import report
from tests.test_battery_random import conv2d_problems, maxpool2d_problems

Record = Callable[[str, Any], None]

LINES = [kernel for kernel in registry.kernels() if kernel.backend == "cpu"]
LISTS = {"conv2d": (CONV2D, CONV2D_CORE), "maxpool2d": (MAXPOOL2D, MAXPOOL2D_CORE)}
of_every_line = pytest.mark.parametrize("kernel", LINES, ids=[kernel.id for kernel in LINES])

#: Sanitizer -> the instruction set of the default run.
ISA = {"address": cpu.isas()[-1], "thread": "baseline"}


def _judge(
    kernel: Kernel, problems: list[Problem], checks: tuple[str, ...], device: Native, record: Record
) -> None:
    report(kernel, device, (judge(kernel, problem, checks, device) for problem in problems), record)


# ---- The default run ---------------------------------------------------------------------------------------


@of_every_line
def test_no_wrong_access_and_nothing_undefined(kernel: Kernel, record_property: Record) -> None:
    every, core = LISTS[kernel.operation]
    dtypes_16_bit = tuple(dtype for dtype in kernel.dtypes if dtype not in DTYPES)
    problems = [problem for text in every for problem in variants(text)]
    problems += [problem for text in core for problem in variants(text, dtypes_16_bit)]
    problems += with_many_units(kernel)
    _judge(kernel, problems, ("exact_integers",), Native("address", ISA["address"]), record_property)


@of_every_line
def test_no_race(kernel: Kernel, record_property: Record) -> None:
    device = Native("thread", ISA["thread"])
    _judge(kernel, with_many_units(kernel), ("exact_integers",), device, record_property)
    assert device.most_units[kernel.id] >= 4, "too few units of work for a race to show"


def test_no_race_between_the_loops_own_threads() -> None:
    """kernels/common/threads.cpp, which hands out the units of work to torch's threads."""
    running("thread", ISA["thread"])  # if it can
    program = build("pyconv_pool", "thread", ISA["thread"])
    done = subprocess.run(
        [program], env=environment(ISA["thread"]), capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "every index once\n"), done.stderr


# ---- make sanitize -----------------------------------------------------------------------------------------

_EVERY_ISA = [(sanitizer, isa) for sanitizer in SANITIZERS for isa in cpu.isas()]
# torch's adapters would make dense copies of the views of the one check that is missing.
_CHECKS = tuple(check for check in CHECKS if check != "views")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("sanitizer", "isa"), _EVERY_ISA)
@of_every_line
def test_battery(kernel: Kernel, sanitizer: str, isa: str, record_property: Record) -> None:
    every, core = LISTS[kernel.operation]
    texts = every if sanitizer == "address" else core
    problems = [problem for text in texts for problem in variants(text, kernel.dtypes)]
    _judge(kernel, problems + with_many_units(kernel), _CHECKS, Native(sanitizer, isa), record_property)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("sanitizer", "isa"), _EVERY_ISA)
@pytest.mark.parametrize("operation", list(LISTS))
def test_problems_that_nobody_thought_of(operation: str, sanitizer: str, isa: str) -> None:
    device = Native(sanitizer, isa)
    lines = [kernel for kernel in LINES if kernel.operation == operation]
    dtypes = tuple({dtype: None for kernel in lines for dtype in kernel.dtypes})
    problems = conv2d_problems(dtypes) if operation == "conv2d" else maxpool2d_problems(dtypes)

    @settings(max_examples=500 if sanitizer == "address" else 60)  # a race shows in few problems, and slowly
    @given(problem=problems)
    def check(problem: Problem) -> None:
        failures = [f for line in lines for f in judge(line, problem, ("exact_integers",), device).failures]
        assert not failures, "\n".join(failures)

    check()


@pytest.mark.exhaustive
def test_adapters_to_torch() -> None:
    """kernels/bindings.cpp and the kernels behind it, in Python, under AddressSanitizer."""
    running("address", ISA["address"])  # if it can
    library = build("pyconv_cpu", "address", ISA["address"])
    # Before anything else is loaded; and libstdc++ with it, or it does not find what throws exceptions.
    files = [
        subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in ("libasan.so", "libstdc++.so")
    ]
    more = {"LD_PRELOAD": " ".join(files).replace("\n", ""), "PYCONV_LIBRARY": str(library)}
    tests = ["tests/test_functional.py", "tests/test_functional_pool.py", "tests/test_functional_errors.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *tests],
        env={**environment(ISA["address"]), **more}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


# ---- Sizes that no memory holds ----------------------------------------------------------------------------

_HUGE = [
    "conv2d n70000c64h224w224 k64r3s3 st1 pd1",
    "conv2d n1c3h65536w65536 k64r7s7 st2 pd3",
    "conv2d n2c1048576h9w9 k1048576r3s3 st1 pd1 g1048576",
    "conv2d n16c65536h32w32 k65536r1s1 st1 pd0",
    "maxpool2d n70000c64h224w224 r3s3 st2 pd1",
    "maxpool2d n1c16h40000w40000 r2s2 st2 pd0",
]


@of_every_line
def test_plans_of_huge_problems_do_not_overflow(kernel: Kernel) -> None:
    """A kernel's workspace is asked for, and with it its plan made, for tensors of 2^31 elements and more."""
    asked = 0
    for text in _HUGE:
        for problem in variants(text, kernel.dtypes) if text.startswith(kernel.operation) else []:
            if kernel.supports(problem) is None:
                assert running("address", ISA["address"]).workspace(kernel.name, problem, threads=8) >= 0
                asked += 1
    assert asked > 0


# ---- The gates themselves: kernels with one mistake each (tests/native/broken.cpp) -------------------------

#: Mistake -> what AddressSanitizer and UndefinedBehaviorSanitizer call it.
_MISTAKES = {
    "reads_past_x": "AddressSanitizer",
    "reads_before_x": "AddressSanitizer",
    "writes_past_y": "AddressSanitizer",
    "writes_before_y": "AddressSanitizer",
    "writes_x": "SEGV",
    "reads_past_workspace": "AddressSanitizer",
    "writes_past_workspace": "AddressSanitizer",
    "writes_before_workspace": "AddressSanitizer",
    "overflows": "signed integer overflow",
    "shifts_too_far": "shift exponent 32 is too large",
    "loads_misaligned": "misaligned address",
}
#: Mistake -> the edge of memory that it crosses: the end, else the beginning. A fence there finds it, by
#: whatever instruction. AddressSanitizer alone does not see masked vectors, nor half a word before a block.
_OUTSIDE = {
    "reads_past_x": True,
    "reads_before_x": False,
    "writes_past_y": True,
    "writes_before_y": False,
    "writes_before_workspace": False,
}
_ONE_WAY = Way()


def _broken(sanitizer: str, name: str, way: Way = _ONE_WAY) -> Launched:
    launch = running(sanitizer, ISA[sanitizer]).launch
    if name.startswith("conv2d.bgrad"):
        problem = parse_problem("conv2d n1c1h8w24 k1r1s1 st1 pd0 f32 nchw")
        return launch(name, "bgrad", problem, (torch.ones(1, 1, 8, 24),), way)
    problem = parse_problem("conv2d n1c1h3w5 k1r1s1 st1 pd0 f32 nchw")
    tensors = (torch.arange(15.0).reshape(1, 1, 3, 5), torch.ones(1, 1, 1, 1), None)
    return launch(f"conv2d.fprop.{name}", "fprop", problem, tensors, way)


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_the_gate_finds(mistake: str) -> None:
    """Wherever memory is fenced, but for what crosses the edge that is not."""
    for ends_at_fence in (True, False):
        if _OUTSIDE.get(mistake, ends_at_fence) == ends_at_fence:
            with pytest.raises(Fault, match=_MISTAKES[mistake]):
                _broken("address", mistake, Way(ends_at_fence=ends_at_fence))


@pytest.mark.parametrize("mistake", _OUTSIDE)
def test_the_fence_alone_finds(mistake: str) -> None:
    with pytest.raises(Fault, match="SEGV"):
        _broken("thread", mistake, Way(ends_at_fence=_OUTSIDE[mistake]))


def test_a_write_between_the_workspace_and_its_fence_is_found() -> None:
    """Its end is at a cache line, which its last element need not be at."""
    with pytest.raises(Fault, match="wrote beside its workspace"):
        _broken("thread", "writes_past_workspace")


def test_the_gate_finds_a_race_between_units_of_work() -> None:
    for seed in range(3):
        with pytest.raises(Fault, match="data race"):
            _broken("thread", "conv2d.bgrad.races", Way(threads=3, order=seed))


def test_a_nested_loop_is_refused() -> None:
    with pytest.raises(Fault, match="never nest"):
        _broken("thread", "conv2d.bgrad.nests", Way(threads=2))


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("ends_at_fence", [True, False])
def test_the_gates_pass_what_is_right(sanitizer: str, ends_at_fence: bool) -> None:
    (y,) = _broken(sanitizer, "none", Way(ends_at_fence=ends_at_fence)).results
    assert torch.equal(y.flatten(), torch.arange(15.0))
    for threads in (1, 2, 3, 8):
        done = _broken(sanitizer, "conv2d.bgrad.sums", Way(threads, 2, ends_at_fence))
        assert done.results[0].item() == 192
        assert done.units == [8]
