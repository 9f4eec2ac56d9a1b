"""The judge is judged on Numba kernels: the table's own, each with one fault put into it, must fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyconv import registry
from pyconv.backends import numba_emulator
from pyconv.backends.program import Program
from pyconv.backends.sources import KERNELS
from pyconv.problem import Problem, parse_problem
from pyconv.registry import Kernel
from tests.battery import judge
from tests.devices import Emulator

pytestmark = pytest.mark.skipif(
    numba_emulator.unavailable() is not None, reason=str(numba_emulator.unavailable())
)

#: What is wrong: the line, a statement of its source, what takes its place, and what the failure says.
FAULTS = {
    "a dropped barrier": (
        "conv2d.fprop.im2col_gemm_tiled@numba",
        "                cuda.syncthreads()\n\n                # ---- Compute",
        "\n                # ---- Compute",
        "conv2d n2c17h4w5 k3r1s1 st1 pd0",
        "race at",
    ),
    "a dropped second barrier": (
        "conv2d.fprop.im2col_gemm_tiled@numba",
        "                cuda.syncthreads()  # before the next tile overwrites this one\n",
        "",
        "conv2d n2c17h4w5 k3r1s1 st1 pd0",
        "race at",
    ),
    "a halo one row off": (
        "conv2d.fprop.direct_tiled@numba",
        "patch_row = row_input + first_row",
        "patch_row = row_input + 1 + first_row",
        "conv2d n1c3h6w7 k4r3s3 st1 pd1",
        "relative L2 error",
    ),
    "the wrong one of two equals": (
        "maxpool2d.fprop_argmax.direct@numba",
        "winner < 0 or value > best",
        "winner < 0 or value >= best",
        "maxpool2d n1c3h8w9 r3s3 st2 pd1",
        "argmax[",
    ),
    "padding as the last row": (
        "maxpool2d.gather.direct@numba",
        "if 0 <= winner <",
        "if winner <",
        "maxpool2d n1c2h2w3 r2s2 st1 pd1 dl3",
        "out of bounds at",
    ),
    "an element too many": (
        "maxpool2d.dgrad.direct@numba",
        "if element >= ",
        "if element > ",
        "maxpool2d n1c3h8w9 r3s3 st2 pd1",
        "out of bounds at",
    ),
    "half the warp left out": (
        "conv2d.bgrad.direct@numba",
        "distance = WARP // 2\n        while distance >= lanes",
        "distance = WARP // 4\n        while distance >= lanes",
        "conv2d n2c1h9w11 k3r1s1 st1 pd0",
        "relative L2 error",
    ),
}


@pytest.fixture
def faulty(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Kernel, Problem, str]]:
    """A line whose steps take a copy of its source with the fault in it."""
    line_id, right, wrong, text, said = FAULTS[request.param]
    line = registry.find(line_id)
    source = KERNELS / line.source
    copy = tmp_path / source.name
    assert source.read_text().count(right) == 1, f"{line.source} has changed: {right!r}"
    copy.write_text(source.read_text().replace(right, wrong))

    def program(problem: Problem) -> Program:
        assert line.program is not None
        made = line.program(problem)
        steps = (
            dataclasses.replace(step, source=str(copy) if step.source == line.source else step.source)
            for step in made.steps
        )
        return dataclasses.replace(made, steps=tuple(steps))

    kernel = registry.register(dataclasses.replace(line, algorithm="judged", program=program))
    yield kernel, parse_problem(f"{text} f32 nchw"), said
    registry.unregister(kernel)


#: What every run injects; `make test-all` the others too.
_ALWAYS = (
    "a dropped barrier",
    "a halo one row off",
    "the wrong one of two equals",
    "padding as the last row",
)


@pytest.mark.parametrize(
    "faulty",
    [pytest.param(name, marks=() if name in _ALWAYS else pytest.mark.exhaustive, id=name) for name in FAULTS],
    indirect=True,
)
def test_an_injected_fault_fails_the_battery(faulty: tuple[Kernel, Problem, str]) -> None:
    kernel, problem, said = faulty
    verdict = judge(kernel, problem, device=Emulator(), in_short=True)
    assert verdict.failures, f"not found on {problem}"
    assert any(said in failure for failure in verdict.failures), "\n".join(verdict.failures)
