"""Every instruction set that this machine has runs the core of the battery; one more checks the switch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyconv import registry
from pyconv.backends import cpu
from pyconv.registry import Kernel
from tests.problems import CONV2D_CORE, DTYPES_16_BIT, MAXPOOL2D_CORE, variants
from tests.test_battery import judge_all

LINES = [kernel for kernel in registry.kernels() if kernel.backend == "cpu"]


@pytest.fixture
def _isa(request: pytest.FixtureRequest) -> Iterator[str]:
    in_use = cpu.isa()
    cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa(in_use)


@pytest.mark.parametrize("_isa", [isa for isa in cpu.isas() if isa != cpu.isa()], indirect=True)
@pytest.mark.parametrize("kernel", LINES, ids=[kernel.id for kernel in LINES])
def test_battery_core_on_every_isa(
    kernel: Kernel, _isa: str, record_property: Callable[[str, Any], None]
) -> None:
    """In 16 bits, half the core. The instruction set in use runs the whole list in test_battery.py."""
    core = CONV2D_CORE if kernel.operation == "conv2d" else MAXPOOL2D_CORE
    problems = [problem for text in core for problem in variants(text)]
    problems += [problem for text in core[1::2] for problem in variants(text, DTYPES_16_BIT)]
    judge_all(kernel, problems, record_property)


def test_this_machine_runs_the_baseline_and_its_best() -> None:
    assert "baseline" in cpu.isas()
    assert cpu.isa() in cpu.isas()


def test_set_isa_names_what_it_would_accept() -> None:
    in_use = cpu.isa()
    with pytest.raises(ValueError, match=r"'mmx' cannot run here; accepted: .*baseline"):
        cpu.set_isa("mmx")
    assert cpu.isa() == in_use
