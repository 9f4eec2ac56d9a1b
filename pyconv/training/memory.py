"""Running out of memory, told in a line: what wanted how much, and what to lower."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator

import torch

from pyconv.errors import TrainingError

#: How torch's and numpy's allocators, and the C++ library, say it. The size is theirs, where they give one.
_SAYINGS = (
    re.compile(
        r"tried to allocate (?P<size>[\d.]+ ?(?:bytes|[KMGT]iB))(?: for (?P<purpose>[^\[;]+))?", re.IGNORECASE
    ),
    re.compile(r"Unable to allocate (?P<size>[\d.]+ ?(?:bytes|[KMGT]iB))"),
    re.compile(
        r"std::bad_alloc|out of memory|Cannot allocate memory|not enough memory|can't start new thread"
        r"|worker .* is killed by signal: Killed"  # how the kernel ends a DataLoader's process
    ),
)


def wanted(error: BaseException) -> str | None:
    """How much was wanted and for what, in words, where it is known; ``None`` for another kind of error."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    )
    if not known and not isinstance(error, RuntimeError):
        return None
    for saying in _SAYINGS:
        if found := saying.search(str(error)):
            named = found.groupdict()
            if not named.get("size"):
                return "an unknown amount"
            purpose = f" for {named['purpose'].strip()}" if named.get("purpose") else ""
            return _readable(named["size"]) + purpose
    return "an unknown amount" if known else None


def _readable(size: str) -> str:
    number, unit = re.fullmatch(r"([\d.]+) ?(\w+)", size).groups()  # type: ignore[union-attr]
    if unit != "bytes":
        return f"{number} {unit}"
    power = min(max(int(float(number)).bit_length() - 1, 0) // 10, 4)
    return f"{float(number) / 1024**power:.4g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


@contextlib.contextmanager
def told(doing: Callable[[], str], advice: str) -> Iterator[None]:
    """Turn running out of memory into one line.

    Args:
        doing: What was being done, as a phrase after "while"; asked only when it is needed.
        advice: What to change.

    Raises:
        TrainingError: that line.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        size = wanted(error)
        if size is None:
            raise
        raise TrainingError(f"out of memory while {doing()} ({size} could not be had); {advice}") from None
