"""Switches of the whole process that selection heeds, beside torch's own (its TF32 flags, for one).

They are part of every remembered choice: a call under other switches chooses anew, and the backward of a call
runs under the switches that were in force for its forward.
"""

from __future__ import annotations

from typing import NamedTuple


class Switches(NamedTuple):
    """What is set now.

    Attributes:
        workspace_limit: Most bytes of scratch memory that a kernel may ask for; ``None`` for any number.
    """

    workspace_limit: int | None = None


_now = Switches()


def current() -> Switches:
    """The switches in force."""
    return _now


def set_workspace_limit(limit: int | None) -> None:
    """Lets selection choose only kernels whose workspace has at most ``limit`` bytes.

    A kernel's workspace is counted as for one thread, so that the choice, and with it the bits of a result,
    does not depend on the number of threads. On a CPU each further thread may take packed tiles of its own on
    top of that, never more than the first. Where no kernel of ours stays below the limit, torch's own runs,
    whose scratch memory is not known and not counted. ``explain`` says which kernels a limit rules out.

    Args:
        limit: Bytes, or ``None`` for no limit, which is the default.

    Raises:
        TypeError: if ``limit`` is no integer.
        ValueError: if it is negative.
    """
    global _now
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(
                f"set_workspace_limit(): argument 'limit' must be int or None, not {type(limit).__name__}"
            )
        if limit < 0:
            raise ValueError(f"set_workspace_limit(): argument 'limit' must be at least 0, got {limit}")
    _now = _now._replace(workspace_limit=limit)


def get_workspace_limit() -> int | None:
    """The limit of :func:`set_workspace_limit`, in bytes, or ``None``."""
    return _now.workspace_limit
