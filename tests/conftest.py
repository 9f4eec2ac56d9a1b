"""Settings of every test run, and the battery's counts at the end of it.

What was run, unsupported or skipped is counted apart, each with its reason: a check that did not run has
proved nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

# Idle threads of torch's pool must not spin: the tests run beside each other. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# What someone has tuned on this machine is no part of what is tested. Read when a kernel is first chosen.
os.environ["PYCONV_TUNING"] = "off"

import pytest
import torch
from hypothesis import HealthCheck, settings

# `make test` (-m "not exhaustive") draws the same examples in every run; `make test-all` looks for new ones.
_quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "default", derandomize=True, max_examples=40, deadline=None, database=None, suppress_health_check=_quiet
)
settings.register_profile("exhaustive", max_examples=500, deadline=None, suppress_health_check=_quiet)


def pytest_configure(config: pytest.Config) -> None:
    is_default = "not exhaustive" in config.option.markexpr
    settings.load_profile("default" if is_default else "exhaustive")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Each worker of pytest-xdist computes on one thread; what needs more asks for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The counts that tests left under ``battery`` (see ``tests/test_battery.py``), from every worker."""
    counts: dict[str, Counter[str]] = {}
    reasons: Counter[tuple[str, str, str]] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "call":
                continue
            for name, value in getattr(report, "user_properties", ()):
                if name != "battery":
                    continue
                of_device = counts.setdefault(value["device"], Counter())
                of_device["run"] += value["run"]
                of_device["failed"] += value["failed"]
                for outcome in ("unsupported", "skipped"):
                    for kernel, reason, number in value[outcome]:
                        of_device[outcome] += number
                        reasons[outcome, kernel, reason] += number
    if not counts:
        return
    write = terminalreporter.write_line
    terminalreporter.section("checks of kernels on problems")
    for device, numbers in sorted(counts.items()):
        outcomes = ("run", "failed", "unsupported", "skipped")
        write(f"battery on {device}: " + ", ".join(f"{numbers[outcome]} {outcome}" for outcome in outcomes))
    for (outcome, kernel, reason), number in sorted(reasons.items()):
        write(f"  {outcome} {number:6d}  {kernel}: {reason}")
