"""Launches and table line of ``direct_tiled_wgrad.cu``: tiles of dw, tiles of pixels, splits of the sum."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from pyconv.kernels.conv2d.gather import Axis, gather
from pyconv.kernels.conv2d.patch import Patch, make_patch, quiet_pitch
from pyconv.kernels.conv2d.restrictions import indices_fit_int32
from pyconv.kernels.conv2d.wgrad_sum_launch import sum_splits

from pyconv.backends.program import Program, Scratch, Step, blocks, cpp_layout, cpp_type
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/direct_tiled_wgrad.cu"

#: Threads of a block, and the filters and entries of a thread: as in ``direct_tiled_launch.py``.
THREADS = 256
TM, TN = 16, 4
TM_DOUBLE = 8
#: Groups of TM filters of a block; the 256 / groups threads of a group share them and differ in entries.
GROUPS = (1, 2, 4, 8)
#: Shared memory of a block: two then fit into the 100 KB of an sm_86.
SHARED_BYTES = 48 * 1024 - 256
#: What a block may take where one pixel of large filters needs more: one then fits an sm_86.
MOST_SHARED_BYTES = 96 * 1024
#: Pixels whose products are added in one chain, by the bytes of a sum (see ``direct_tiled_launch.CHAIN``).
CHAIN = {4: 256, 8: 128}
#: Blocks wanted: twice what the 132 multiprocessors of an H100 hold at once.
BLOCKS = 528
#: Least pixels of a split: fewer are not worth a copy of dw.
SPLIT_PIXELS = 256
#: Most bytes of all copies of dw.
WORKSPACE_BYTES = 64 << 20


class WgradAxis(ctypes.Structure):
    """``WgradAxis`` of ``direct_tiled_wgrad.cu``."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("outputs", "in_step", "tap_step", "tile", "tiles"))


class WgradPlan(ctypes.Structure):
    """``WgradPlan`` of ``direct_tiled_wgrad.cu``."""

    _fields_ = (
        ("rows", WgradAxis),
        ("columns", WgradAxis),
        ("patch", Patch),
        *(
            (name, ctypes.c_int32)
            for name in (
                "group_c", "group_k", "group_entries", "image_tiles", "filters", "filter_blocks", "entries",
                "entry_blocks", "channels", "splits", "split_tiles", "chain_tiles", "dy_pitch", "dy_size",
                "patch_size",
            )
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """A tile of dw and a tile of pixels."""

    problem: Conv2dProblem
    groups: int  # of TM filters
    columns: int
    rows: int
    images: int

    @property
    def sum_bytes(self) -> int:
        return 8 if self.problem.dtype == "f64" else 4

    @property
    def tm(self) -> int:
        return TM_DOUBLE if self.sum_bytes == 8 else TM

    @property
    def filters(self) -> int:
        return self.groups * self.tm

    @property
    def taps(self) -> int:
        return self.problem.r * self.problem.s

    @property
    def entries(self) -> int:
        """Whole channels, unless one has more taps than a block has entries."""
        most = THREADS // self.groups * TN
        return most // self.taps * self.taps or most

    @property
    def channels(self) -> int:
        """That the entries of a block touch."""
        return min(self.problem.group_c, self.entries // self.taps or 2)

    @property
    def pixels(self) -> int:
        return self.images * self.rows * self.columns

    @cached_property
    def axes(self) -> tuple[Axis, Axis]:
        g = gather(self.problem, "fprop")
        return g.rows, g.columns

    @cached_property
    def patch(self) -> Patch:
        """With the largest pitch between channels that :func:`quiet_pitch` may give."""
        patch = make_patch(*self.axes, self.rows, self.columns, self.images, self.sum_bytes)
        patch.channel_pitch = blocks(patch.places, 4) * 4 + 128 // self.sum_bytes
        return patch

    @property
    def quiet_patch(self) -> Patch:
        """With the pitch between channels that has the fewest bank conflicts."""
        rows, columns = self.axes
        patch = make_patch(rows, columns, self.rows, self.columns, self.images, self.sum_bytes)
        places = tuple(
            r * rows.tap_step * patch.row_pitch + patch.column(s * columns.tap_step)
            for r in range(self.problem.r)
            for s in range(self.problem.s)
        )
        patch.channel_pitch = quiet_pitch(places, blocks(patch.places, 4) * 4, 128 // self.sum_bytes)
        return patch

    @property
    def dy_pitch(self) -> int:
        """An odd multiple of 8: four rows of eight lanes then write to all banks."""
        return self.filters + (8 if self.filters % 16 == 0 else 0)

    @property
    def patch_size(self) -> int:
        return blocks(self.channels * self.patch.channel_pitch, 4) * 4

    @property
    def shared_bytes(self) -> int:
        elements = self.pixels * self.dy_pitch + self.patch_size
        return elements * self.sum_bytes + self.patch.places * 8

    @property
    def tiles(self) -> tuple[int, int, int]:
        """Of images, rows and columns."""
        a = self.problem
        return blocks(a.n, self.images), blocks(a.p, self.rows), blocks(a.q, self.columns)

    @property
    def cost(self) -> float:
        """Modelled instructions of a thread, over all blocks."""
        a, (images, rows, columns) = self.problem, self.tiles
        products = a.n * a.p * a.q * self.tm * TN * 1.25
        staged = (self.patch.places * self.channels + self.pixels * self.filters) * 8 / THREADS
        sources = self.patch.places * 80 / THREADS
        tiles = images * rows * columns
        dw_blocks = blocks(a.group_k, self.filters) * blocks(a.group_c * self.taps, self.entries)
        return dw_blocks * (products + tiles * (staged + sources + 400))


def _tiles(problem: Conv2dProblem) -> Iterator[Tile]:
    most = CHAIN[8 if problem.dtype == "f64" else 4]
    for groups in GROUPS:
        for columns in sorted({blocks(problem.q, parts) for parts in range(1, 9)} | {1, 4, 8, 16, 32}):
            for rows in (1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16):
                if columns > problem.q or rows > problem.p or columns * rows > most:
                    continue
                is_whole = (rows, columns) == (problem.p, problem.q)
                for images in (1, 2, 4, 8, 16) if is_whole else (1,):
                    yield Tile(problem, groups, columns, rows, images)


@lru_cache(maxsize=4096)
def best_tile(problem: Conv2dProblem) -> Tile | None:
    """The cheapest tile, or ``None`` if none fits shared memory."""
    tiles = [tile for tile in _tiles(problem) if tile.shared_bytes <= MOST_SHARED_BYTES]
    small = [tile for tile in tiles if tile.shared_bytes <= SHARED_BYTES]
    return min(small or tiles, key=lambda tile: tile.cost, default=None)


def _tiled(axis: Axis, tile: int) -> WgradAxis:
    return WgradAxis(axis.outputs, axis.in_step, axis.tap_step, tile, blocks(axis.outputs, tile))


def wgrad(problem: Problem) -> Program:
    assert isinstance(problem, Conv2dProblem)
    a = problem
    splits, steps = 0, ()
    if a.n * a.p * a.q and a.w_size:  # else dw is an empty sum
        tile = best_tile(a)
        assert tile is not None, "refused by the restriction"
        splits, steps = _products(a, tile)
    sum_bytes = 8 if a.dtype == "f64" else 4
    return Program((*steps, sum_splits(a, splits)), workspace_bytes=splits * a.w_size * sum_bytes)


def _products(a: Conv2dProblem, tile: Tile) -> tuple[int, tuple[Step, ...]]:
    """The number of splits, and the step that makes their partial sums."""
    image_tiles, row_tiles, column_tiles = tile.tiles
    tiles = image_tiles * row_tiles * column_tiles
    group_entries = a.group_c * tile.taps
    filter_blocks, entry_blocks = blocks(a.group_k, tile.filters), blocks(group_entries, tile.entries)
    dw_blocks = a.groups * filter_blocks * entry_blocks
    most_splits = min(blocks(BLOCKS, dw_blocks), max(1, WORKSPACE_BYTES // (a.w_size * tile.sum_bytes)))
    split_tiles = max(blocks(tiles, most_splits), blocks(SPLIT_PIXELS, tile.pixels))
    splits = blocks(tiles, split_tiles)
    rows, columns = tile.axes
    plan = WgradPlan(
        _tiled(rows, tile.rows), _tiled(columns, tile.columns), tile.quiet_patch, a.group_c, a.group_k,
        group_entries, image_tiles, tile.filters, filter_blocks, tile.entries, entry_blocks, tile.channels,
        splits, split_tiles, max(1, CHAIN[tile.sum_bytes] // tile.pixels), tile.dy_pitch,
        tile.pixels * tile.dy_pitch, tile.patch_size,
    )  # fmt: skip
    step = Step(
        SOURCE,
        kernel=f"direct_tiled_wgrad<{cpp_type(a)}, {cpp_layout(a)}, {tile.tm}, {TN}, {THREADS}>",
        grid=(dw_blocks * splits, 1, 1),
        block=(THREADS, 1, 1),
        arguments=(a, plan, "x", "dy", Scratch()),
        shared_bytes=tile.shared_bytes,
        sass=("LDS.128", "FFMA" if tile.sum_bytes == 4 else "DFMA"),
    )
    return splits, (step,)


def _restriction(problem: Problem) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    if reason := indices_fit_int32(problem):
        return reason
    if problem.n * problem.p * problem.q and problem.w_size and best_tile(problem) is None:
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
