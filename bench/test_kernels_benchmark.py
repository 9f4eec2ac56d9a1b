"""pytest-benchmark entries for the problems of ``bench/shapes``: ``python -m pytest bench``.

For looking at one kernel while working on it (``-k "wgrad and nchw-pyconv"``, ``--benchmark-compare``). The
sides are not interleaved here and the allocator is as the shell has set it: for ratios use ``bench.run``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.contenders import OperandSets, in_layout, our_contender, torch_contender
from bench.problems import CALL_PASSES, SHAPES, Case, read_cases
from pyconv.problem import LAYOUTS, Layout

_CASES = [case for path in sorted(SHAPES.glob("*.txt")) for case in read_cases(path)]


@pytest.mark.parametrize("library", ["pyconv", "torch"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", _CASES, ids=lambda case: f"{case.problem} {case.pass_}".replace(" ", "_"))
def test_kernel(benchmark: Any, case: Case, layout: Layout, library: str) -> None:
    problem = in_layout(case.problem, layout)
    with torch.set_grad_enabled(case.pass_ in ("call_grad", "call_step")):
        make = our_contender if library == "pyconv" else torch_contender
        contender = make(problem, case.pass_)
        operands = OperandSets(problem, case.pass_).pick(contender.takes)
        benchmark.group = f"{problem} {case.pass_}"
        benchmark.extra_info["kernel"] = contender.kernel
        if case.pass_ in CALL_PASSES:
            benchmark(contender.call, *next(operands))
        else:
            benchmark.pedantic(contender.call, setup=lambda: (next(operands), {}), rounds=10, warmup_rounds=1)
