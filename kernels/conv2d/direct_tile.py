"""How a gather is cut into the tiles of ``direct_tiled.cu``, and the plan that tells the kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from pyconv.kernels.conv2d.gather import Axis, Gather
from pyconv.kernels.conv2d.patch import Patch, make_patch

from pyconv.backends.program import blocks

#: Threads of a block: with the 128 registers that 64 sums need, two blocks fill a multiprocessor's registers.
THREADS = 256
#: Rows and out channels of a thread: 4 x 16 sums take 4 + 4 accesses to shared memory for 64 FMAs. The FMAs
#: of a warp take 16 cycles of an H100's multiprocessor (32 of an A100's), the accesses 8.
TM, TN = 4, 16
#: A double takes two registers; its FMAs take twice the cycles, so 4 + 4 accesses of 2 cycles still hide.
TN_DOUBLE = 8


@dataclass(frozen=True)
class RegisterTile:
    """Rows and out channels of a thread."""

    tm: int
    tn: int


def register_tile(g: Gather) -> RegisterTile:
    return RegisterTile(TM, TN_DOUBLE if g.sum_bytes == 8 else TN)


#: Groups of TN out channels of a block; the 256 / groups threads of a group share them and differ in pixels.
GROUPS = (1, 2, 4)
#: Blocks that an H100's 132 multiprocessors hold at once.
RESIDENT_BLOCKS = 264
#: Shared memory of a block: two then fit into the 100 KB of an sm_86.
SHARED_BYTES = 48 * 1024 - 256
#: What a block may take where one channel of large filters or strides needs more: one then fits an sm_86.
MOST_SHARED_BYTES = 96 * 1024
#: In channels of a chunk, at most: beyond, a barrier costs little against the products between two of them.
MOST_CHANNELS = 32
#: Products that are added in one chain, by the bytes of a sum; then the sums go to the output and begin anew.
#: The rounding error of a chain grows with the root of its length, and this keeps it below twice torch's own.
#: Going through the output costs one instruction in 60. Results of 16 bits are rounded far more coarsely:
#: there all products are one chain.
CHAIN = {4: 256, 8: 128}


class TiledAxis(ctypes.Structure):
    """``TiledAxis`` of ``direct_tiled_stage.cuh``."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in (
            "in_extent", "out_extent", "classes", "period", "in_step", "tap_step", "tile", "tiles",
        )
    )  # fmt: skip


class TiledPlan(ctypes.Structure):
    """``TiledPlan`` of ``direct_tiled_stage.cuh``."""

    _fields_ = (
        ("rows", TiledAxis),
        ("columns", TiledAxis),
        ("patch", Patch),
        *(
            (name, ctypes.c_int32)
            for name in (
                "pass", "in_channels", "out_channels", "image_tiles", "filters", "filter_blocks",
                "channels", "chain", "filter_pitch", "filters_size", "patch_size",
            )
        ),
        ("w_in_stride", ctypes.c_int64),
        ("w_out_stride", ctypes.c_int64),
    )  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """A way to cut a gather up, and what it takes of shared memory."""

    gather: Gather
    thread: RegisterTile
    groups: int  # of TN out channels
    columns: int
    rows: int
    images: int

    @property
    def filters(self) -> int:
        return self.groups * self.thread.tn

    @cached_property
    def patch(self) -> Patch:
        g = self.gather
        return make_patch(g.rows, g.columns, self.rows, self.columns, self.images, g.sum_bytes)

    @property
    def filter_pitch(self) -> int:
        """In elements: an odd multiple of 8: four rows of eight lanes then write to all banks."""
        return self.filters + (8 if self.filters % 16 == 0 else 0)

    def shared_bytes(self, channels: int) -> int:
        channel = self.patch.channel_pitch + self.gather.taps * self.filter_pitch
        return channels * channel * self.gather.sum_bytes + self.patch.places * 4

    @property
    def channels(self) -> int:
        """In channels of a chunk; 0 if not even one fits."""
        sources = self.shared_bytes(0)
        fitting = (SHARED_BYTES - sources) // (self.shared_bytes(1) - sources)
        if fitting < 1:
            return int(self.shared_bytes(1) <= MOST_SHARED_BYTES)
        fitting = min(fitting, MOST_CHANNELS, max(1, CHAIN[self.gather.sum_bytes] // self.gather.taps))
        if fitting >= self.gather.in_channels:
            return max(1, self.gather.in_channels)
        return fitting // 8 * 8 or fitting

    @property
    def chain(self) -> int:
        """In channels whose products are added in one chain."""
        if self.gather.problem.element_bytes == 2:
            return max(1, self.gather.in_channels)
        products = self.channels * self.gather.taps
        return self.channels * max(1, CHAIN[self.gather.sum_bytes] // products)

    @property
    def cost(self) -> float:
        """Modelled instructions of a thread for one in channel, times the rounds of blocks and a half.

        It is the cost of a batch of 32 whatever n is: a sample then has the same bits in any batch.
        """
        g = self.gather
        tiles = blocks(g.rows.outputs, self.rows) * blocks(g.columns.outputs, self.columns)
        classes = g.rows.classes * g.columns.classes * g.problem.groups
        grid = blocks(32, self.images) * tiles * classes * blocks(g.out_channels, self.filters)
        products = g.taps * self.thread.tm * self.thread.tn * 1.2
        staged = (self.patch.places + g.taps * self.filters) * 8 / THREADS
        barriers = 300 / self.channels
        return (grid / RESIDENT_BLOCKS + 0.5) * (products + staged + barriers)


def tiles(g: Gather, thread: RegisterTile) -> Iterator[Tile]:
    """Tiles worth considering: equal parts of rows and columns, as many of both as there are lanes."""
    outputs, all_runs = max(1, g.columns.outputs), max(1, blocks(g.rows.outputs, thread.tm))
    for groups in GROUPS:
        lanes = THREADS // groups
        fewest = blocks(outputs, lanes)
        equal_parts = {blocks(outputs, parts) for parts in range(fewest, fewest + 8)}
        for columns in sorted({width for width in equal_parts | {8, 16, 32, 64} if width <= lanes}):
            fewest = blocks(all_runs, lanes // columns)
            for runs in sorted({blocks(all_runs, parts) for parts in range(fewest, fewest + 3)}):
                is_whole = columns >= outputs and runs == all_runs
                yield Tile(
                    g, thread, groups, columns, runs * thread.tm, lanes // (columns * runs) if is_whole else 1
                )


@lru_cache(maxsize=4096)
def best_tile(g: Gather, thread: RegisterTile) -> Tile | None:
    """The cheapest tile, or ``None`` if none fits shared memory."""
    return min((tile for tile in tiles(g, thread) if tile.channels), key=lambda tile: tile.cost, default=None)


def _tiled(axis: Axis, tile: int) -> TiledAxis:
    return TiledAxis(
        axis.in_extent, axis.out_extent, axis.classes, axis.period, axis.in_step, axis.tap_step, tile,
        blocks(axis.outputs, tile),
    )  # fmt: skip


def tiled_plan(tile: Tile) -> tuple[TiledPlan, int]:
    """The plan for a tile, and the number of blocks."""
    g, problem = tile.gather, tile.gather.problem
    rows, columns = _tiled(g.rows, tile.rows), _tiled(g.columns, tile.columns)
    image_tiles, filter_blocks = blocks(problem.n, tile.images), blocks(g.out_channels, tile.filters)
    plan = TiledPlan(
        rows, columns, tile.patch, ("fprop", "dgrad").index(g.pass_), g.in_channels, g.out_channels,
        image_tiles, tile.filters, filter_blocks, tile.channels, tile.chain, tile.filter_pitch,
        tile.channels * g.taps * tile.filter_pitch, tile.channels * tile.patch.channel_pitch, *g.w_strides,
    )  # fmt: skip
    tiles = problem.groups * rows.classes * columns.classes * image_tiles * rows.tiles * columns.tiles
    return plan, tiles * filter_blocks
