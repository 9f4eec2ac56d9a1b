"""Every line of the kernel table through the battery, on every problem of the shared list.

The CUDA lines are here where there is a device; ``tests/test_battery_emulator.py`` has them on the emulator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from pyconv import backends, registry
from pyconv.backends import cpu
from pyconv.problem import Problem
from pyconv.registry import Kernel
from tests.battery import Verdict, judge
from tests.devices import Device, device_of
from tests.problems import (
    CONV2D,
    CONV2D_CORE,
    CONV2D_LONG,
    CONV2D_MORE,
    DTYPES,
    DTYPES_16_BIT,
    MAXPOOL2D,
    MAXPOOL2D_CORE,
    MAXPOOL2D_MORE,
    variants,
)
from tests.problems_cuda import every_problem_of

_SHOWN = 8  # failures of one test that are written out
Record = Callable[[str, Any], None]


def report(kernel: Kernel, device: Device, verdicts: Iterable[Verdict], record_property: Record) -> None:
    """Leaves the counts of some verdicts for the summary, and fails with every failure of theirs."""
    run, failures = 0, []
    why: dict[str, Counter[str]] = {"unsupported": Counter(), "skipped": Counter()}
    for verdict in verdicts:
        run += len(verdict.ran)
        failures += verdict.failures
        why["unsupported"].update(reason for _, reason in verdict.unsupported)
        why["skipped"].update(reason for _, reason in verdict.skipped)
    counts = {outcome: [(kernel.id, *item) for item in counter.items()] for outcome, counter in why.items()}
    record_property("battery", {"device": device.name, "run": run, "failed": len(failures), **counts})
    if failures:
        more = [f"... and {len(failures) - _SHOWN} more"] if len(failures) > _SHOWN else []
        pytest.fail("\n".join([*failures[:_SHOWN], *more]), pytrace=False)


def judge_all(kernel: Kernel, problems: list[Problem], record_property: Record) -> None:
    """Judges one line on some problems, where its backend is judged."""
    report(kernel, device_of(kernel), (judge(kernel, problem) for problem in problems), record_property)


def _cases(
    conv2d: list[str], maxpool2d: list[str], dtypes: tuple[str, ...] = DTYPES, numba: bool = False
) -> list[Any]:
    """The problem outermost, so that a worker's references serve every line that runs on the processor.

    ``numba`` asks for the lines of numba-cpu, and those alone: each dtype takes half a minute to compile.
    """
    return [
        pytest.param(kernel, text, id=f"{kernel.id}: {text}")
        for operation, texts in (("conv2d", conv2d), ("maxpool2d", maxpool2d))
        for text in texts
        for kernel in registry.kernels(operation)
        if device_of(kernel).name == "cpu" and set(dtypes) & set(kernel.dtypes)
        if (kernel.backend == "numba-cpu") == numba
    ]


@pytest.mark.parametrize(("kernel", "text"), _cases(CONV2D, MAXPOOL2D))
def test_battery(kernel: Kernel, text: str, record_property: Record) -> None:
    judge_all(kernel, variants(text), record_property)


@pytest.mark.parametrize(("kernel", "text"), _cases(CONV2D_CORE, MAXPOOL2D_CORE, DTYPES_16_BIT))
def test_battery_in_16_bits(kernel: Kernel, text: str, record_property: Record) -> None:
    judge_all(kernel, variants(text, DTYPES_16_BIT), record_property)


@pytest.mark.parametrize(("kernel", "text"), _cases(CONV2D_CORE, MAXPOOL2D_CORE, numba=True))
def test_battery_of_numba_cpu(kernel: Kernel, text: str, record_property: Record) -> None:
    judge_all(kernel, variants(text, ("f32",)), record_property)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kernel", "text"), _cases(CONV2D + CONV2D_MORE, MAXPOOL2D + MAXPOOL2D_MORE, numba=True)
)
def test_battery_of_numba_cpu_exhaustive(kernel: Kernel, text: str, record_property: Record) -> None:
    judge_all(kernel, variants(text), record_property)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kernel", "text"), _cases(CONV2D_MORE, MAXPOOL2D_MORE))
def test_battery_exhaustive(kernel: Kernel, text: str, record_property: Record) -> None:
    judge_all(kernel, variants(text), record_property)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kernel", "text"),
    _cases(
        [*(text for text in CONV2D if text not in CONV2D_CORE), *CONV2D_LONG],
        [text for text in MAXPOOL2D if text not in MAXPOOL2D_CORE],
        DTYPES_16_BIT,
    ),
)
def test_battery_in_16_bits_exhaustive(kernel: Kernel, text: str, record_property: Record) -> None:
    judge_all(kernel, variants(text, DTYPES_16_BIT), record_property)


def _on_the_device() -> list[Any]:
    lines = [kernel for kernel in registry.kernels() if device_of(kernel).name == "cuda"]
    if not lines:
        why = backends.unavailable("cuda", "cuda") or "the table has no CUDA line"
        return [pytest.param(None, "", id="no device", marks=pytest.mark.skip(reason=why))]
    shared = {"conv2d": CONV2D, "maxpool2d": MAXPOOL2D}
    return [
        pytest.param(kernel, text, id=f"{kernel.id}: {text}")
        for kernel in lines
        for text in dict.fromkeys([*shared[kernel.operation], *every_problem_of(kernel)])
    ]


@pytest.mark.parametrize(("kernel", "text"), _on_the_device())
def test_battery_on_the_device(kernel: Kernel, text: str, record_property: Record) -> None:
    """Every dtype and layout in every run: launches are cheap there."""
    judge_all(kernel, variants(text, kernel.dtypes), record_property)


@pytest.mark.parametrize("isa", cpu.isas())
def test_table_and_library_name_the_same_kernels(isa: str) -> None:
    in_use = cpu.isa()
    cpu.set_isa(isa)
    try:
        compiled = set(cpu.compiled())
    finally:
        cpu.set_isa(in_use)
    lines = {kernel.name for kernel in registry.kernels() if kernel.backend == "cpu"}
    assert lines - compiled == set(), f"lines of the table with no kernel compiled for {isa}"
    assert compiled - lines == set(), f"kernels compiled for {isa} that no line of the table names"


def test_every_line_meets_a_problem_it_supports() -> None:
    problems = [problem for text in CONV2D + MAXPOOL2D for problem in variants(text, DTYPES + DTYPES_16_BIT)]
    for kernel in registry.kernels():
        name = kernel.operation
        supported = [p for p in problems if str(p).startswith(name) and kernel.supports(p) is None]
        assert supported, f"{kernel.id} supports no problem of tests/problems.py: nothing would judge it"
