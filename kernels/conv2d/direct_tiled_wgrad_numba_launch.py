"""Launches and table line of ``direct_tiled_wgrad_numba.py``; ``direct_wgrad_tile.py`` cuts its tiles too."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from functools import lru_cache

from pyconv.kernels.conv2d import direct_tiled_wgrad_launch as twin
from pyconv.kernels.conv2d import direct_wgrad_tile
from pyconv.kernels.conv2d.direct_tiled_numba_launch import CHANNEL_LANES
from pyconv.kernels.conv2d.direct_wgrad_tile import SHARED_BYTES, THREADS, pixel_tiles, wgrad_plan
from pyconv.kernels.conv2d.restrictions import indices_fit_int32, planes_fit_int32

from pyconv.backends.numba_program import SUM_DTYPES, SUMS, flattened, scratch, tensor
from pyconv.backends.program import Program, Step, View, blocks
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/direct_tiled_wgrad_numba.py"

#: Filters of a thread: half of those of the CUDA C++, since indices of 64 bits take registers.
TM, TM_DOUBLE = 8, 4
#: Threads of a block that adds up the splits.
SUM_THREADS = 256

#: ``WgradPlan`` of ``direct_tiled_wgrad.cu`` as a kernel in Numba has it: ``plan.rows_tile``.
WgradPlan = namedtuple("WgradPlan", [*flattened(direct_wgrad_tile.WgradPlan()), "lanes"])  # type: ignore[misc]


@dataclass(frozen=True)
class Tile(twin.Tile):
    """One tile of dw for all threads of a block."""

    @property
    def tm(self) -> int:
        return TM_DOUBLE if self.sum_bytes == 8 else TM


@lru_cache(maxsize=4096)
def best_tile(problem: Conv2dProblem) -> Tile | None:
    """The cheapest tile that fits the shared memory that Numba gives a kernel, or ``None``."""
    tiles = (Tile(problem, *pixels, groups) for groups in twin.GROUPS for pixels in pixel_tiles(problem))
    fitting = (tile for tile in tiles if tile.shared_bytes <= SHARED_BYTES)
    return min(fitting, key=lambda tile: tile.cost, default=None)


def wgrad(problem: Problem) -> Program:
    assert isinstance(problem, Conv2dProblem)
    a = problem
    sums, dw = SUMS[a.dtype], tensor("dw", a)
    if not a.n * a.p * a.q * a.w_size:  # an empty sum, or nothing to sum
        return Program((_sum_splits(a, 0),))
    tile = best_tile(a)
    assert tile is not None, "refused by the restriction"
    plan, grid = wgrad_plan(tile)
    partial = scratch(0, SUM_DTYPES[a.dtype], plan.splits, *a.w_shape)
    lanes = CHANNEL_LANES if a.layout == "nhwc" else 1
    shared = SHARED_BYTES // tile.sum_bytes
    step = Step(
        SOURCE,
        kernel=f"direct_tiled_wgrad({sums}, {tile.tm}, {twin.TN}, {THREADS}, {shared})",
        grid=(grid, 1, 1),
        block=(THREADS, 1, 1),
        arguments=(
            a,
            WgradPlan(**flattened(plan), lanes=lanes),
            tensor("x", a),
            tensor("dy", a),
            View(partial.of, partial.dtype, partial.shape, (a.w_size, *dw.strides)),
        ),
        sass=("LDS", "FFMA" if tile.sum_bytes == 4 else "DFMA"),
    )
    return Program((step, _sum_splits(a, plan.splits)), plan.splits * a.w_size * tile.sum_bytes)


def _sum_splits(problem: Conv2dProblem, splits: int) -> Step:
    """Adds up the copies of dw, which lie in memory as dw does."""
    return Step(
        "gemm/sum_splits_numba.py",
        kernel=f"sum_splits({SUMS[problem.dtype]})",
        grid=(blocks(problem.w_size, SUM_THREADS), 1, 1),
        block=(SUM_THREADS, 1, 1),
        arguments=(
            scratch(0, SUM_DTYPES[problem.dtype], splits, problem.w_size),
            View("dw", problem.dtype, (problem.w_size,), (1,)),
        ),
    )


def _restriction(problem: Problem) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    if reason := indices_fit_int32(problem) or planes_fit_int32(problem):
        return reason
    if problem.n * problem.p * problem.q * problem.w_size and best_tile(problem) is None:
        return f"the pixels that a filter reaches take more than {SHARED_BYTES // 1024} KB of a block"
    return None


KERNELS = [
    Kernel(
        "conv2d",
        "wgrad",
        "direct_tiled",
        "numba",
        ("f32", "f64", "f16"),
        source=SOURCE,
        restriction=_restriction,
        program=wgrad,
        nonfinite="padding",
        proved=("emulator",),
        # Edges of tiles of filters, entries, pixels; several splits, chains, images; more taps than entries.
        problems=twin.KERNELS[0].problems,
    )
]
