"""How a weight gradient is cut into tiles of dw, tiles of pixels and splits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from pyconv.kernels.conv2d.gather import Axis, gather
from pyconv.kernels.conv2d.patch import Patch, make_patch, quiet_pitch

from pyconv.backends.program import Work, blocks, unit_of
from pyconv.problem import Conv2dProblem

#: Threads of a block: with the 128 registers that 64 sums need, two blocks fill a multiprocessor's registers.
THREADS = 256
#: Shared memory of a block: two then fit into the 100 KB of an sm_86.
SHARED_BYTES = 48 * 1024 - 256
#: What a block may take where one pixel of large filters needs more: one then fits an sm_86.
MOST_SHARED_BYTES = 96 * 1024
#: Pixels whose products are added in one chain, by the bytes of a sum (see ``CHAIN`` in ``direct_tile.py``).
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

    splits: int
    filter_blocks: int
    entry_blocks: int


@dataclass(frozen=True)
class WgradTile:
    """A tile of pixels, for the tile of dw that a subclass says."""

    problem: Conv2dProblem
    columns: int
    rows: int
    images: int

    @property
    def filters(self) -> int:
        """Of a block."""
        raise NotImplementedError

    @property
    def entries(self) -> int:
        """(c, r, s) of a block."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """That the entries of a block touch."""
        raise NotImplementedError

    @property
    def copies(self) -> int:
        """Of dw that one split makes."""
        return 1

    @property
    def cost(self) -> float:
        """Modelled instructions of a thread, over all blocks."""
        raise NotImplementedError

    @property
    def sum_bytes(self) -> int:
        return 8 if self.problem.dtype == "f64" else 4

    @property
    def taps(self) -> int:
        return self.problem.r * self.problem.s

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
        return elements * self.sum_bytes + self.patch.places * 4

    @property
    def tiles(self) -> tuple[int, int, int]:
        """Of images, rows and columns."""
        a = self.problem
        return blocks(a.n, self.images), blocks(a.p, self.rows), blocks(a.q, self.columns)

    @property
    def staging_cost(self) -> float:
        """Modelled instructions of a thread that stage all tiles of pixels, barriers included."""
        images, rows, columns = self.tiles
        staged = (self.patch.places * self.channels + self.pixels * self.filters) * 8 / THREADS
        sources = self.patch.places * 40 / THREADS
        return images * rows * columns * (staged + sources + 400)


AnyTile = TypeVar("AnyTile", bound=WgradTile)


def pixel_tiles(problem: Conv2dProblem) -> Iterator[tuple[int, int, int]]:
    """Columns, rows and images of the tiles of pixels that are worth considering."""
    most = CHAIN[8 if problem.dtype == "f64" else 4]
    for columns in sorted({blocks(problem.q, parts) for parts in range(1, 9)} | {1, 4, 8, 16, 32}):
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16):
            if columns > problem.q or rows > problem.p or columns * rows > most:
                continue
            is_whole = (rows, columns) == (problem.p, problem.q)
            for images in (1, 2, 4, 8, 16) if is_whole else (1,):
                yield columns, rows, images


def cheapest(candidates: Iterable[AnyTile]) -> AnyTile | None:
    """Of the tiles that let two blocks share a multiprocessor, or of those that fit at all, if any does."""
    tiles = [tile for tile in candidates if tile.shared_bytes <= MOST_SHARED_BYTES]
    small = [tile for tile in tiles if tile.shared_bytes <= SHARED_BYTES]
    cost: Callable[[AnyTile], float] = lambda tile: tile.cost  # noqa: E731
    return min(small or tiles, key=cost, default=None)


def _tiled(axis: Axis, tile: int) -> WgradAxis:
    return WgradAxis(axis.outputs, axis.in_step, axis.tap_step, tile, blocks(axis.outputs, tile))


def wgrad_plan(tile: WgradTile) -> tuple[WgradPlan, int]:
    """The plan for a tile, and the number of blocks."""
    a = tile.problem
    image_tiles, row_tiles, column_tiles = tile.tiles
    tiles = image_tiles * row_tiles * column_tiles
    group_entries = a.group_c * tile.taps
    filter_blocks, entry_blocks = blocks(a.group_k, tile.filters), blocks(group_entries, tile.entries)
    dw_blocks = a.groups * filter_blocks * entry_blocks
    copy_bytes = a.w_size * tile.sum_bytes * tile.copies
    # Where warps of a block have copies of their own, copies are many: one round of blocks has to do.
    wanted = BLOCKS // (2 if tile.copies > 1 else 1)
    most_splits = min(blocks(wanted, dw_blocks), max(1, WORKSPACE_BYTES // copy_bytes))
    split_tiles = max(blocks(tiles, most_splits), blocks(SPLIT_PIXELS * tile.copies, tile.pixels))
    splits = blocks(tiles, split_tiles)
    rows, columns = tile.axes
    plan = WgradPlan(
        _tiled(rows, tile.rows), _tiled(columns, tile.columns), tile.quiet_patch, a.group_c, a.group_k,
        group_entries, image_tiles, tile.filters, filter_blocks, tile.entries, entry_blocks, tile.channels,
        splits, split_tiles, max(1, CHAIN[tile.sum_bytes] * tile.copies // tile.pixels), tile.dy_pitch,
        tile.pixels * tile.dy_pitch, tile.patch_size,
    )  # fmt: skip
    return plan, dw_blocks * splits


def wgrad_work(tile: WgradTile, plan: WgradPlan, share: float) -> Work:
    """Of the launch that makes the copies of dw."""
    a = tile.problem
    image_tiles, row_tiles, column_tiles = tile.tiles
    staged = image_tiles * row_tiles * column_tiles * a.groups * plan.filter_blocks * plan.entry_blocks
    elements = tile.patch.places * tile.channels + tile.pixels * tile.filters  # that a block stages at a time
    return Work(
        flops=2.0 * staged * tile.pixels * tile.filters * tile.entries,
        unit=unit_of(a),
        share=share,
        tensor_bytes=(a.x_size + a.y_size) * a.element_bytes,
        scratch_bytes=plan.splits * tile.copies * a.w_size * tile.sum_bytes,
        cache_bytes=staged * elements * a.element_bytes,
        concurrent=1.5,  # as in direct_tiled_launch.py
    )
