"""A patch of the input in shared memory (``patch.cuh``): its shape for a tile of outputs."""

from __future__ import annotations

import ctypes
from collections import Counter

from pyconv.kernels.conv2d.gather import Axis

from pyconv.backends.program import blocks


class Patch(ctypes.Structure):
    """``Patch`` of ``patch.cuh``. Pitches are in elements."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in (
            "images", "row_unit", "column_unit", "column_step",
            "column_pitch", "row_pitch", "image_pitch", "channel_pitch",
        )
    )  # fmt: skip

    images: int
    column_step: int
    column_pitch: int
    row_pitch: int
    image_pitch: int
    channel_pitch: int

    @property
    def places(self) -> int:
        """Elements of one channel."""
        return self.images * self.image_pitch

    def column(self, u: int) -> int:
        """Where column ``u`` lies in its row."""
        return u % self.column_step * self.column_pitch + u // self.column_step


def make_patch(
    rows: Axis, columns: Axis, tile_rows: int, tile_columns: int, images: int, sum_bytes: int
) -> Patch:
    """The patch of ``images`` x ``tile_rows`` x ``tile_columns`` outputs."""
    column_pitch = blocks(columns.patch(tile_columns), columns.in_step)
    row_pitch = column_pitch * columns.in_step
    image_pitch = row_pitch * rows.patch(tile_rows)
    # Lanes on 8 neighbouring channels write to all banks.
    channel_pitch = blocks(images * image_pitch, 32) * 32 + 16 // sum_bytes
    return Patch(
        images, rows.unit, columns.unit, columns.in_step, column_pitch, row_pitch, image_pitch, channel_pitch
    )


def conflicts(places: list[int], pitch: int, banks: int) -> int:
    """How often ``banks`` neighbouring lanes, on neighbouring entries (c, tap), meet in one bank at worst.

    Args:
        places: Of the taps, within a channel.
        pitch: Between channels.
        banks: Of shared memory, for words of the size of a sum.
    """
    taps = len(places)
    worst = 0
    for first in range(0, min(taps, 4) * banks, banks):
        hit = {e // taps * pitch + places[e % taps] for e in range(first, first + banks)}
        worst = max(worst, *Counter(place % banks for place in hit).values())
    return worst


def quiet_pitch(places: tuple[int, ...], least: int, banks: int) -> int:
    """The pitch between channels, at least ``least``, with the fewest bank conflicts."""
    if len(places) > 4 * banks:  # a warp then has one channel, and the pitch does not matter
        return least
    return min(range(least, least + banks, 2), key=lambda pitch: conflicts(list(places), pitch, banks))
