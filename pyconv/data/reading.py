"""Reading files whose headers may lie: memory grows with what is there, never with what a header says."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO

_CHUNK = 1 << 20


def read_at_most(file: IO[bytes] | io.BufferedIOBase, limit: int) -> bytes:
    """Up to ``limit`` bytes, fewer only at the end of the file.

    ``file.read(limit)`` would allocate ``limit`` bytes before it looks.
    """
    data = bytearray()
    while len(data) < limit:
        chunk = file.read(min(_CHUNK, limit - len(data)))
        if not chunk:
            break
        data += chunk
    return bytes(data)


class Limited(io.RawIOBase):
    """A file that ends in an error after ``limit`` bytes: what is compressed may be a thousand times larger.

    Args:
        file: The file read from.
        limit: Bytes that may be read.
        too_much: Makes the error.
    """

    def __init__(
        self, file: IO[bytes] | io.BufferedIOBase, limit: int, too_much: Callable[[], Exception]
    ) -> None:
        self.file, self.left, self.too_much = file, limit, too_much

    def readable(self) -> bool:
        """It is only read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; all that are left for -1."""
        data = read_at_most(self.file, self.left + 1 if size < 0 else min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise self.too_much()
        return data
