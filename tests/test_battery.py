"""Every line of the kernel table through the battery, on every problem of the shared list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pyconv import registry
from pyconv.backends import cpu
from pyconv.problem import Problem
from pyconv.registry import Kernel
from tests.battery import CHECKS, judge
from tests.problems import CONV2D, CONV2D_MORE, MAXPOOL2D, MAXPOOL2D_MORE, variants

_SHOWN = 8  # failures of one test that are written out


def judge_all(
    kernel: Kernel,
    problems: list[Problem],
    record_property: Callable[[str, Any], None],
    checks: tuple[str, ...] = tuple(CHECKS),
) -> None:
    """Judges one line on some problems, leaves the counts for the summary, and fails with every failure."""
    run, failures = 0, []
    why: dict[str, Counter[str]] = {"unsupported": Counter(), "skipped": Counter()}
    for problem in problems:
        verdict = judge(kernel, problem, checks)
        run += len(verdict.ran)
        failures += verdict.failures
        why["unsupported"].update(reason for _, reason in verdict.unsupported)
        why["skipped"].update(reason for _, reason in verdict.skipped)
    counts = {outcome: [(kernel.id, *item) for item in counter.items()] for outcome, counter in why.items()}
    record_property("battery", {"run": run, "failed": len(failures), **counts})
    if failures:
        more = [f"... and {len(failures) - _SHOWN} more"] if len(failures) > _SHOWN else []
        pytest.fail("\n".join([*failures[:_SHOWN], *more]), pytrace=False)


def _cases(conv2d: list[str], maxpool2d: list[str]) -> list[Any]:
    """The problem outermost, so that a worker's references serve every line."""
    return [
        pytest.param(kernel, text, id=f"{kernel.id}: {text}")
        for operation, texts in (("conv2d", conv2d), ("maxpool2d", maxpool2d))
        for text in texts
        for kernel in registry.kernels(operation)
    ]


@pytest.mark.parametrize(("kernel", "text"), _cases(CONV2D, MAXPOOL2D))
def test_battery(kernel: Kernel, text: str, record_property: Callable[[str, Any], None]) -> None:
    judge_all(kernel, variants(text), record_property)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kernel", "text"), _cases(CONV2D_MORE, MAXPOOL2D_MORE))
def test_battery_exhaustive(kernel: Kernel, text: str, record_property: Callable[[str, Any], None]) -> None:
    judge_all(kernel, variants(text), record_property)


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
    problems = [problem for text in CONV2D + MAXPOOL2D for problem in variants(text)]
    for kernel in registry.kernels():
        name = kernel.operation
        supported = [p for p in problems if str(p).startswith(name) and kernel.supports(p) is None]
        assert supported, f"{kernel.id} supports no problem of tests/problems.py: nothing would judge it"
