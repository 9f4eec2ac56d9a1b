"""Launches and table lines of ``direct_tiled_numba.py``; ``direct_tile.py`` cuts its tiles too."""

from __future__ import annotations

from collections import namedtuple
from functools import lru_cache, partial

from pyconv.kernels.conv2d import direct_tile
from pyconv.kernels.conv2d.direct_tile import SHARED_BYTES, THREADS, RegisterTile, Tile, tiled_plan, tiles
from pyconv.kernels.conv2d.direct_tiled_launch import PROBLEMS
from pyconv.kernels.conv2d.gather import Gather, gather
from pyconv.kernels.conv2d.restrictions import indices_fit_int32, planes_fit_int32

from pyconv.backends.numba_program import SUMS, flattened, tensor
from pyconv.backends.program import Program, Step, View
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/direct_tiled_numba.py"

#: Rows and out channels of a thread by the bytes of a sum: half the sums of direct_tiled.cu, since indices of
#: 64 bits take registers.
REGISTER_TILES = {4: RegisterTile(4, 8), 8: RegisterTile(4, 4)}
#: Neighbouring threads that read neighbouring channels of one pixel, where those lie side by side.
CHANNEL_LANES = 8

#: ``TiledPlan`` of ``direct_tiled_stage.cuh`` as a kernel in Numba has it: ``plan.rows_tile``.
TiledPlan = namedtuple("TiledPlan", [*flattened(direct_tile.TiledPlan()), "lanes"])  # type: ignore[misc]


@lru_cache(maxsize=4096)
def best_tile(g: Gather) -> Tile | None:
    """The cheapest tile that fits the shared memory that Numba gives a kernel, or ``None``."""
    fitting = (tile for tile in tiles(g, REGISTER_TILES[g.sum_bytes]) if tile.channels > 0)
    fitting = (tile for tile in fitting if tile.shared_bytes(tile.channels) <= SHARED_BYTES)
    return min(fitting, key=lambda tile: tile.cost, default=None)


def _filters(problem: Conv2dProblem, pass_: str) -> View:
    """w as ``filter[group, out channel, in channel, r, s]``."""
    w = tensor("w", problem)
    k_stride, c_stride, r_stride, s_stride = w.strides
    sizes, strides = (problem.group_k, problem.group_c), (k_stride, c_stride)
    if pass_ == "dgrad":
        sizes, strides = sizes[::-1], strides[::-1]
    shape = (problem.groups, *sizes, problem.r, problem.s)
    return View("w", problem.dtype, shape, (problem.group_k * k_stride, *strides, r_stride, s_stride))


def _program(problem: Problem, pass_: str, input_: str, output: str) -> Program:
    assert isinstance(problem, Conv2dProblem)
    g = gather(problem, pass_)
    tile = best_tile(g)
    assert tile is not None, "refused by the restriction"
    plan, grid = tiled_plan(tile)
    tm, tn = tile.thread.tm, tile.thread.tn
    lanes = CHANNEL_LANES if problem.layout == "nhwc" else 1
    sums = SUMS[problem.dtype]
    no_bias = View("bias", problem.dtype, (problem.k if pass_ == "fprop" else 0,), (1,))
    step = Step(
        SOURCE,
        kernel=f"direct_tiled({sums}, {tm}, {tn}, {THREADS}, {SHARED_BYTES // g.sum_bytes})",
        grid=(grid, 1, 1),
        block=(THREADS, 1, 1),
        arguments=(
            problem,
            TiledPlan(**flattened(plan), lanes=lanes),
            tensor(input_, problem),
            _filters(problem, pass_),
            no_bias,
            tensor(output, problem),
        ),
        sass=("LDS", "FFMA" if g.sum_bytes == 4 else "DFMA"),
    )
    return Program((step,))


def _restriction(problem: Problem, pass_: str) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    if reason := indices_fit_int32(problem) or planes_fit_int32(problem):
        return reason
    if best_tile(gather(problem, pass_)) is None:
        return f"filters and the pixels they reach take more than {SHARED_BYTES // 1024} KB of a block"
    return None


KERNELS = [
    Kernel(
        "conv2d",
        pass_,
        "direct_tiled",
        "numba",
        ("f32", "f64", "f16"),
        source=SOURCE,
        restriction=partial(_restriction, pass_=pass_),
        program=partial(_program, pass_=pass_, input_=input_, output=output),
        batch_invariant=True,
        nonfinite="padding",
        proved=("emulator",),
        problems=PROBLEMS,
    )
    for pass_, input_, output in (("fprop", "x", "y"), ("dgrad", "dy", "dx"))
]
