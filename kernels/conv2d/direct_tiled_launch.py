"""Launches and table lines of ``direct_tiled.cu``; ``direct_tile.py`` cuts the tiles."""

from __future__ import annotations

from functools import partial

from pyconv.kernels.conv2d.direct_tile import (
    MOST_SHARED_BYTES,
    THREADS,
    RegisterTile,
    Tile,
    best_tile,
    register_tile,
    tiled_plan,
)
from pyconv.kernels.conv2d.gather import Gather, gather
from pyconv.kernels.conv2d.restrictions import indices_fit_int32, planes_fit_int32

from pyconv.backends.program import Program, Step, Work, cpp_layout, cpp_type, unit_of
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/direct_tiled.cu"


def _known_taps(g: Gather) -> tuple[int, int]:
    """Taps and stride of the instantiation that knows them; doubles have no registers left for it."""
    is_plain = all((axis.classes, axis.in_step, axis.tap_step) == (1, 1, 1) for axis in (g.rows, g.columns))
    return (3, 1) if is_plain and (g.rows.taps, g.columns.taps) == (3, 3) and g.sum_bytes == 4 else (0, 0)


#: FMAs among the instructions of the inner loop, with any taps and with those that are known (README.md).
SHARE, SHARE_OF_KNOWN = 0.79, 0.89


#: One block alone waits for what it stages, half as long as it computes: an estimate.
CONCURRENT = 1.5


def work(tile: Tile, tiles: int, filter_stagings: int, share: float) -> Work:
    """Of that many tiles, one after the other or side by side."""
    g, thread = tile.gather, tile.thread
    problem = g.problem
    # Elements that all blocks stage, of one in channel.
    staged = tiles * tile.patch.places + filter_stagings * g.taps * tile.filters
    return Work(
        flops=2.0 * tiles * g.in_channels * g.taps * THREADS * thread.tm * thread.tn,
        unit=unit_of(problem),
        share=share,
        tensor_bytes=problem.bytes(g.pass_),
        cache_bytes=staged * g.in_channels * problem.element_bytes,
        concurrent=CONCURRENT,
    )


def gather_step(g: Gather, thread: RegisterTile, operands: tuple[str, str, str, str]) -> Step:
    """The launch of one pass with a register tile."""
    tile = best_tile(g, thread)
    assert tile is not None, "refused by the restriction"
    plan, grid = tiled_plan(tile)
    numbers = (thread.tm, thread.tn, THREADS, *_known_taps(g))
    problem = g.problem
    return Step(
        SOURCE,
        kernel=f"direct_tiled<{cpp_type(problem)}, {cpp_layout(problem)}, {', '.join(map(str, numbers))}>",
        grid=(grid, 1, 1),
        block=(THREADS, 1, 1),
        arguments=(problem, plan, *operands),
        shared_bytes=tile.shared_bytes(tile.channels),
        sass=("LDS.128", "FFMA" if g.sum_bytes == 4 else "DFMA"),
        work=work(tile, grid, grid, SHARE_OF_KNOWN if _known_taps(g) != (0, 0) else SHARE),
    )


def _program(problem: Problem, pass_: str, operands: tuple[str, str, str, str]) -> Program:
    assert isinstance(problem, Conv2dProblem)
    g = gather(problem, pass_)
    return Program((gather_step(g, register_tile(g), operands),))


def fprop(problem: Problem) -> Program:
    return _program(problem, "fprop", ("x", "w", "bias", "y"))


def dgrad(problem: Problem) -> Program:
    return _program(problem, "dgrad", ("dy", "w", "bias", "dx"))


def _restriction(problem: Problem, pass_: str) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    if reason := indices_fit_int32(problem) or planes_fit_int32(problem):
        return reason
    g = gather(problem, pass_)
    if best_tile(g, register_tile(g)) is None:
        return f"filters and the pixels they reach take more than {MOST_SHARED_BYTES // 1024} KB of a block"
    return None


#: Edges of tiles: TN and blocks of channels, TM rows, lanes of a warp, images of a tile, chunks, chains.
PROBLEMS = (
    "conv2d n1c3h5w33 k17r3s3 st1 pd1",
    "conv2d n3c17h7w7 k33r3s3 st1 pd1",
    "conv2d n2c33h9w31 k65r3s3 st1 pd1",
    "conv2d n2c40h4w65 k15r1s1 st1 pd0",
    "conv2d n3c9h8w16 k16r3s3 st2 pd1",
    "conv2d n2c16h13w15 k24r5s3 st3x2 pd2x1",
    "conv2d n1c24h11w12 k40r3s3 st2 pd2 dl2",
    "conv2d n2c32h6w5 k32r3s3 st1 pd1 g2",
    "conv2d n1c80h5w5 k88r3s3 st1 pd1",
)

KERNELS = [
    Kernel(
        "conv2d",
        pass_,
        "direct_tiled",
        "cuda",
        ("f32", "f64", "f16", "bf16"),
        source=SOURCE,
        restriction=partial(_restriction, pass_=pass_),
        program=program,
        batch_invariant=True,
        nonfinite="padding",
        proved=("emulator",),
        problems=PROBLEMS,
    )
    for pass_, program in (("fprop", fprop), ("dgrad", dgrad))
]
