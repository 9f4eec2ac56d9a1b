"""How the depthwise weight gradient is cut into blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pyconv.kernels.conv2d.depthwise_launch import wgrad

from bench.problems import SHAPES, read_cases
from pyconv.problem import LAYOUTS, Layout

#: Multiprocessors of an H100.
_MULTIPROCESSORS = 132

LAYERS = [case.problem for case in read_cases(SHAPES / "depthwise.txt", ["wgrad"])]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_multiprocessor_has_a_block_and_partial_sums_stay_small(layer: object, layout: Layout) -> None:
    problem = replace(layer, layout=layout)  # type: ignore[type-var]
    program = wgrad(problem)
    grid = program.steps[0].grid
    if layout == "nhwc" or problem.k >= _MULTIPROCESSORS:
        assert grid[0] * grid[1] * grid[2] >= _MULTIPROCESSORS
    assert program.workspace_bytes <= problem.bytes("wgrad") / 4
