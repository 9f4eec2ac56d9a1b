"""Launches and table line of ``direct_tiled_wgrad.cu``; ``direct_wgrad_tile.py`` cuts the tiles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from pyconv.kernels.conv2d.direct_wgrad_tile import (
    MOST_SHARED_BYTES,
    THREADS,
    WgradTile,
    cheapest,
    pixel_tiles,
    wgrad_plan,
    wgrad_work,
)
from pyconv.kernels.conv2d.restrictions import indices_fit_int32, planes_fit_int32
from pyconv.kernels.conv2d.wgrad_sum_launch import sum_splits

from pyconv.backends.program import Program, Scratch, Step, blocks, cpp_layout, cpp_type
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/direct_tiled_wgrad.cu"

#: Filters and entries of a thread: as in ``direct_tile.py``.
TM, TN = 16, 4
TM_DOUBLE = 8
#: Groups of TM filters of a block; the 256 / groups threads of a group share them and differ in entries.
GROUPS = (1, 2, 4, 8)
#: FMAs among the instructions of the inner loop (README.md).
SHARE = 0.79


@dataclass(frozen=True)
class Tile(WgradTile):
    """One tile of dw for all threads of a block."""

    groups: int

    @property
    def tm(self) -> int:
        return TM_DOUBLE if self.sum_bytes == 8 else TM

    @property
    def filters(self) -> int:
        return self.groups * self.tm

    @property
    def entries(self) -> int:
        """Whole channels, unless one has more taps than a block has entries."""
        most = THREADS // self.groups * TN
        return most // self.taps * self.taps or most

    @property
    def channels(self) -> int:
        return min(self.problem.group_c, self.entries // self.taps or 2)

    @property
    def cost(self) -> float:
        a = self.problem
        products = a.n * a.p * a.q * self.tm * TN * 1.25
        dw_blocks = blocks(a.group_k, self.filters) * blocks(a.group_c * self.taps, self.entries)
        return dw_blocks * (products + self.staging_cost)


@lru_cache(maxsize=4096)
def best_tile(problem: Conv2dProblem) -> Tile | None:
    """The cheapest tile, or ``None`` if none fits shared memory."""
    return cheapest(Tile(problem, *pixels, groups) for groups in GROUPS for pixels in pixel_tiles(problem))


def wgrad(problem: Problem) -> Program:
    assert isinstance(problem, Conv2dProblem)
    a = problem
    if not a.n * a.p * a.q * a.w_size:  # an empty sum, or nothing to sum
        return Program((sum_splits(a, 0),))
    tile = best_tile(a)
    assert tile is not None, "refused by the restriction"
    plan, grid = wgrad_plan(tile)
    step = Step(
        SOURCE,
        kernel=f"direct_tiled_wgrad<{cpp_type(a)}, {cpp_layout(a)}, {tile.tm}, {TN}, {THREADS}>",
        grid=(grid, 1, 1),
        block=(THREADS, 1, 1),
        arguments=(a, plan, "x", "dy", Scratch()),
        shared_bytes=tile.shared_bytes,
        sass=("LDS.128", "FFMA" if tile.sum_bytes == 4 else "DFMA"),
        work=wgrad_work(tile, plan, SHARE),
    )
    return Program(
        (step, sum_splits(a, plan.splits)), workspace_bytes=plan.splits * a.w_size * tile.sum_bytes
    )


def _restriction(problem: Problem) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    if reason := indices_fit_int32(problem) or planes_fit_int32(problem):
        return reason
    if problem.n * problem.p * problem.q * problem.w_size and best_tile(problem) is None:
        return f"the pixels that a filter reaches take more than {MOST_SHARED_BYTES // 1024} KB of a block"
    return None


KERNELS = [
    Kernel(
        "conv2d",
        "wgrad",
        "direct_tiled",
        "cuda",
        ("f32", "f64", "f16", "bf16"),
        source=SOURCE,
        restriction=_restriction,
        program=wgrad,
        nonfinite="padding",
        proved=("emulator",),
        # Edges of tiles of filters, entries, pixels; several splits, chains, images; more taps than entries.
        problems=(
            "conv2d n1c29h5w33 k17r3s3 st1 pd1",
            "conv2d n5c3h7w7 k33r3s3 st1 pd1",
            "conv2d n3c9h17w16 k65r3s3 st2 pd1",
            "conv2d n2c130h9w9 k5r1s1 st1 pd0",
            "conv2d n2c16h13w15 k24r5s3 st3x2 pd2x1",
            "conv2d n1c8h11w12 k40r3s3 st2 pd2 dl2 g2",
            "conv2d n1c2h18w20 k3r17s17 st1 pd8",
            "conv2d n9c4h20w20 k4r3s3 st1 pd1",
        ),
    )
]
