"""Launches and table lines of the first layer: ``direct_stem.cu`` and ``direct_stem_wgrad.cu``.

dgrad has as few out channels as fprop has in channels: it is ``direct_tiled.cu`` with another register tile.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache

from pyconv.kernels.conv2d.direct_tile import (
    RESIDENT_BLOCKS,
    RegisterTile,
    Tile,
    best_tile,
    register_tile,
    tiled_plan,
    tiles,
)
from pyconv.kernels.conv2d.direct_tiled_launch import SHARE_OF_KNOWN, gather_step, work
from pyconv.kernels.conv2d.direct_wgrad_tile import (
    THREADS,
    WgradPlan,
    WgradTile,
    cheapest,
    pixel_tiles,
    wgrad_plan,
    wgrad_work,
)
from pyconv.kernels.conv2d.gather import Gather, gather
from pyconv.kernels.conv2d.restrictions import indices_fit_int32, planes_fit_int32
from pyconv.kernels.conv2d.wgrad_sum_launch import sum_splits

from pyconv.backends.program import Program, Scratch, Step, blocks, cpp_layout, cpp_type
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/direct_stem.cu"
WGRAD_SOURCE = "conv2d/direct_stem_wgrad.cu"

#: More in channels, and the sum is long enough for chunks of channels and dw large enough for whole tiles:
#: ``direct_tiled`` is then as good, and needs less shared memory.
MOST_CHANNELS = 4
#: Taps and strides that are known when compiled: ResNet's, AlexNet's and VGG's first layers.
KNOWN = ((7, 2), (11, 4), (3, 1), (3, 2))
#: Shared memory of a block whose filters stay: two then fit into the 164 KB of an sm_80.
SHARED_BYTES = 80 * 1024
#: What a block may take that stages its filters channel by channel: one then fits an sm_86.
MOST_SHARED_BYTES = 96 * 1024

#: dgrad: rows and out channels of a thread. 8 + 1 accesses to shared memory for 32 FMAs are as many as a
#: multiprocessor of an H100 does meanwhile, and at most one out channel of four is idle at c = 3.
DGRAD_TILE = RegisterTile(8, 4)

#: wgrad: filters and entries of a lane; 8 lanes have 64 filters (32 in double), 4 lanes 28 entries. 3x3 taps
#: of 3 channels are one warp's, 7x7 six warps', 11x11 thirteen's, with an eighth of the entries idle at most.
WGRAD_TM, WGRAD_TN = 8, 7
WGRAD_TM_DOUBLE = 4
WARPS = THREADS // 32

#: FMAs among the instructions of the inner loops (README.md). 3x3 taps at stride 1 have ``direct_tiled``'s.
SHARE, WGRAD_SHARE = 0.86, 0.78


@dataclass(frozen=True)
class StemTile(Tile):
    """All in channels in one chunk if that fits, else one. No sources are kept: few channels need them."""

    def shared_bytes(self, channels: int) -> int:
        channel = self.patch.channel_pitch + self.gather.taps * self.filter_pitch
        return channels * channel * self.gather.sum_bytes

    @property
    def channels(self) -> int:
        if self.shared_bytes(self.gather.in_channels) <= SHARED_BYTES:
            return self.gather.in_channels
        return int(self.shared_bytes(1) <= MOST_SHARED_BYTES)


@lru_cache(maxsize=4096)
def _fprop_tile(g: Gather) -> StemTile | None:
    candidates = (
        StemTile(tile.gather, tile.thread, tile.groups, tile.columns, tile.rows, tile.images)
        for tile in tiles(g, register_tile(g))
    )
    return min((tile for tile in candidates if tile.channels), key=lambda tile: tile.cost, default=None)


def _known_taps(g: Gather) -> tuple[int, int]:
    taps = {(axis.taps, axis.in_step, axis.tap_step) for axis in (g.rows, g.columns)}
    known = [(size, stride) for size, stride in KNOWN if taps == {(size, stride, 1)}]
    return known[0] if known and g.sum_bytes == 4 else (0, 0)


def fprop(problem: Problem) -> Program:
    assert isinstance(problem, Conv2dProblem)
    g = gather(problem, "fprop")
    tile = _fprop_tile(g)
    assert tile is not None, "refused by the restriction"
    plan, total = tiled_plan(tile)
    # As many blocks as an H100 holds, each with equally many tiles, and with the same filters in all of them.
    rounds = max(1, blocks(total, RESIDENT_BLOCKS))
    grid = min(total, blocks(blocks(total, rounds), max(1, plan.filter_blocks)) * plan.filter_blocks)
    known = _known_taps(g)
    numbers = (tile.thread.tm, tile.thread.tn, THREADS, *known)
    step = Step(
        SOURCE,
        kernel=f"direct_stem<{cpp_type(problem)}, {cpp_layout(problem)}, {', '.join(map(str, numbers))}>",
        grid=(grid, 1, 1),
        block=(THREADS, 1, 1),
        arguments=(problem, plan, ctypes.c_int32(total), "x", "w", "bias", "y"),
        shared_bytes=tile.shared_bytes(tile.channels),
        sass=("LDS.128", "FFMA" if g.sum_bytes == 4 else "DFMA"),
        work=work(tile, total, grid, SHARE_OF_KNOWN if known == (3, 1) else SHARE),
    )
    return Program((step,))


def dgrad(problem: Problem) -> Program:
    assert isinstance(problem, Conv2dProblem)
    return Program((gather_step(gather(problem, "dgrad"), DGRAD_TILE, ("dy", "w", "bias", "dx")),))


# ---- wgrad ---------------------------------------------------------------------------------------------


class StemWgradPlan(ctypes.Structure):
    """``StemWgradPlan`` of ``direct_stem_wgrad.cu``."""

    _fields_ = (("tiles", WgradPlan), ("entry_warps", ctypes.c_int32), ("pixel_warps", ctypes.c_int32))


@dataclass(frozen=True)
class StemWgradTile(WgradTile):
    """A tile of dw for each warp; warps that are left over share the pixels."""

    @property
    def tm(self) -> int:
        return WGRAD_TM_DOUBLE if self.sum_bytes == 8 else WGRAD_TM

    @property
    def filters(self) -> int:
        return 8 * self.tm

    @property
    def entry_warps(self) -> int:
        """Of a block: all entries if they fit its warps, else equally many in each of several blocks."""
        warps = blocks(self.problem.c * self.taps, 4 * WGRAD_TN)
        return blocks(warps, blocks(warps, WARPS))

    @property
    def entries(self) -> int:
        return self.entry_warps * 4 * WGRAD_TN

    @property
    def channels(self) -> int:
        return self.problem.c

    @property
    def copies(self) -> int:
        return WARPS // self.entry_warps

    @property
    def cost(self) -> float:
        a = self.problem
        _, rows, columns = self.tiles
        # Rows that do not share out among the warps leave some idle.
        lines = a.n * rows * blocks(self.rows, self.copies)
        return lines * columns * self.columns * self.tm * WGRAD_TN * 1.3 + self.staging_cost


@lru_cache(maxsize=4096)
def _wgrad_tile(problem: Conv2dProblem) -> StemWgradTile | None:
    return cheapest(StemWgradTile(problem, *pixels) for pixels in pixel_tiles(problem))


def wgrad(problem: Problem) -> Program:
    assert isinstance(problem, Conv2dProblem)
    a = problem
    if not a.n * a.p * a.q * a.w_size:  # an empty sum, or nothing to sum
        return Program((sum_splits(a, 0),))
    tile = _wgrad_tile(a)
    assert tile is not None, "refused by the restriction"
    plan, grid = wgrad_plan(tile)
    step = Step(
        WGRAD_SOURCE,
        kernel=f"direct_stem_wgrad<{cpp_type(a)}, {cpp_layout(a)}, {tile.tm}, {WGRAD_TN}, {THREADS}>",
        grid=(grid, 1, 1),
        block=(THREADS, 1, 1),
        arguments=(a, StemWgradPlan(plan, tile.entry_warps, tile.copies), "x", "dy", Scratch()),
        shared_bytes=tile.shared_bytes,
        sass=("LDS.128", "FFMA" if tile.sum_bytes == 4 else "DFMA"),
        work=wgrad_work(tile, plan, WGRAD_SHARE),
    )
    copies = plan.splits * tile.copies
    return Program((step, sum_splits(a, copies)), workspace_bytes=copies * a.w_size * tile.sum_bytes)


# ---- Lines ---------------------------------------------------------------------------------------------


def stems_only(problem: Problem) -> str | None:
    """The restriction of all three passes."""
    assert isinstance(problem, Conv2dProblem)
    if problem.groups > 1 or not 1 <= problem.c <= MOST_CHANNELS:
        return f"not a first layer (takes one group of 1 to {MOST_CHANNELS} input channels)"
    return indices_fit_int32(problem) or planes_fit_int32(problem)


def _no_tile(tile: object) -> str | None:
    if tile is None:
        return f"filters and the pixels they reach take more than {MOST_SHARED_BYTES // 1024} KB of a block"
    return None


def _fprop_restriction(problem: Problem) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    return stems_only(problem) or _no_tile(_fprop_tile(gather(problem, "fprop")))


def _dgrad_restriction(problem: Problem) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    return stems_only(problem) or _no_tile(best_tile(gather(problem, "dgrad"), DGRAD_TILE))


def _wgrad_restriction(problem: Problem) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    is_empty = not problem.n * problem.p * problem.q * problem.w_size
    return stems_only(problem) or (None if is_empty else _no_tile(_wgrad_tile(problem)))


#: Every known filter and one that is not; one channel to four; several images in a tile.
PROBLEMS = (
    "conv2d n2c3h37w41 k20r7s7 st2 pd3",
    "conv2d n1c3h43w47 k18r11s11 st4 pd2",
    "conv2d n2c3h18w33 k65r3s3 st1 pd1",
    "conv2d n2c4h19w20 k16r3s3 st2 pd1",
    "conv2d n9c1h9w9 k5r5s5 st1 pd2",
    "conv2d n1c2h14w17 k33r4s6 st3x2 pd2x1 dl1x2",
    "conv2d n3c3h40w69 k3r3s3 st1 pd1",
)

KERNELS = [
    Kernel(
        "conv2d",
        pass_,
        "direct_stem",
        "cuda",
        ("f32", "f64", "f16", "bf16"),
        source=source,
        restriction=restriction,
        program=program,
        batch_invariant=pass_ != "wgrad",
        nonfinite="padding",
        proved=("emulator",),
        # In fprop one with more tiles than there are blocks.
        problems=(*PROBLEMS, "conv2d n1c1h1w34100 k17r1s1 st1 pd0") if pass_ == "fprop" else PROBLEMS,
    )
    for pass_, source, restriction, program in (
        ("fprop", SOURCE, _fprop_restriction, fprop),
        ("dgrad", "conv2d/direct_tiled.cu", _dgrad_restriction, dgrad),
        ("wgrad", WGRAD_SOURCE, _wgrad_restriction, wgrad),
    )
]
