"""Launches and table lines of ``winograd_fused.cu``: the filters' transform, then everything else at once."""

from __future__ import annotations

from functools import partial

from pyconv.kernels.conv2d import winograd_launch
from pyconv.kernels.conv2d.winograd_launch import filter_bytes, filter_step, plan, tiles_of

from pyconv.backends.program import Program, Scratch, Step, Work, blocks, cpp_layout
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/winograd_fused.cu"

#: Tiles, filters and channels of a block (``kFusedTiles`` and so on), and its threads.
TILES, FILTERS, CHANNELS, THREADS = 32, 32, 8, 256
#: Products that are added in one chain: as many as in the product of matrices (``kChain``). With more, DRAM
#: no longer bounds ``winograd.cu``.
MOST_CHANNELS = 256
#: FMAs among the instructions of the loop over channels (sm_90a).
SHARE = 0.69
#: Floats that a block reads of x for a channel: 4 rows of 32 tiles side by side.
INPUTS = 4 * (2 * TILES + 2)


def program(problem: Problem, pass_: str) -> Program:
    assert isinstance(problem, Conv2dProblem)
    tile_rows, tile_columns = tiles_of(problem, pass_, 2)
    whole = plan(problem, pass_, 2, 0, problem.n * tile_rows * tile_columns)
    grid = whole.groups * blocks(whole.out_channels, FILTERS) * blocks(whole.tiles, TILES)
    channels = blocks(whole.in_channels, CHANNELS) * CHANNELS
    names = ("x", "y") if pass_ == "fprop" else ("dy", "dx")
    fused = Step(
        SOURCE,
        f"winograd_fused<{cpp_layout(problem)}>",
        (grid, 1, 1),
        (THREADS, 1, 1),
        (whole, names[0], Scratch(0), "bias", names[1]),
        sass=("LDGSTS.E.BYPASS.128", "LDS.128", "STS.128", "FFMA"),
        work=Work(
            flops=2 * grid * 16 * TILES * FILTERS * channels,
            share=SHARE,
            tensor_bytes=4 * (problem.x_size + problem.y_size),
            scratch_bytes=4 * problem.w_size * 16 / 9,
            cache_bytes=4 * grid * channels * (INPUTS + 16 * FILTERS),
            concurrent=2,  # one multiplies while the other waits for its stage
        ),
    )
    return Program((filter_step(whole, problem, pass_, 2), fused), filter_bytes(whole, 2))


def restriction(problem: Problem, pass_: str) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    if reason := winograd_launch.restriction(problem, pass_, 2):
        return reason
    channels = problem.group_c if pass_ == "fprop" else problem.group_k
    if channels > MOST_CHANNELS:
        return f"a sum over {channels} channels, in one chain (takes up to {MOST_CHANNELS})"
    tile_rows, tile_columns = tiles_of(problem, pass_, 2)
    filters = problem.groups * blocks(max(problem.group_c, problem.group_k), FILTERS)
    if filters * blocks(problem.n * tile_rows * tile_columns, TILES) >= 2**31:
        return "too many tiles and filters for one grid of blocks"
    return None


#: Tiles, filters and channels around those of a block; the longest chain; groups; padding per side; ragged
#: tiles.
PROBLEMS = (
    "conv2d n1c7h16w8 k31r3s3 st1 pd1",
    "conv2d n1c8h11w12 k32r3s3 st1 pd0",
    "conv2d n3c9h6w7 k33r3s3 st1 pd1",
    "conv2d n1c256h3w4 k17r3s3 st1 pd1",
    "conv2d n1c33h4w66 k256r3s3 st1 pd1",
    "conv2d n2c18h5w9 k22r3s3 st1 pd2,0,1,3 g2",
    "conv2d n1c4h3w4 k3r3s3 st1 pd4,3,5,6",
)

KERNELS = [
    Kernel(
        "conv2d",
        pass_,
        "winograd_2x2_fused",
        "cuda",
        ("f32",),
        source=SOURCE,
        restriction=partial(restriction, pass_=pass_),
        program=partial(program, pass_=pass_),
        batch_invariant=True,
        nonfinite="tile",
        algebra="winograd",
        proved=("emulator",),
        problems=PROBLEMS,
    )
    for pass_ in ("fprop", "dgrad")
]
