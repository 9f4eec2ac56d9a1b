"""Switches of the whole process that selection heeds, beside torch's own (its TF32 flags, for one).

They are part of every remembered choice: a call under other switches chooses anew, and the backward of a call
runs under the switches that were in force for its forward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

#: What :func:`set_algorithm_precision` takes, from the strictest on.
PRECISIONS = ("exact", "standard", "fast")
#: The largest error that a line may state to be taken under ``fast``.
FAST_ERROR = 1e-5


class Switches(NamedTuple):
    """What is set now.

    Attributes:
        workspace_limit: Most bytes of scratch memory that a kernel may ask for; ``None`` for any number.
        precision: Of algorithms, one of :data:`PRECISIONS`.
    """

    workspace_limit: int | None = None
    precision: str = "standard"


_now = Switches()
#: What :func:`algorithm_precision` has put in force in this thread.
_precision: ContextVar[str | None] = ContextVar("pyconv_precision", default=None)


def current() -> Switches:
    """The switches in force."""
    precision = _precision.get()
    return _now if precision is None else _now._replace(precision=precision)


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


def set_algorithm_precision(precision: str) -> None:
    """How much an algorithm may trade accuracy for speed, from now on and in every thread.

    Args:
        precision: ``"exact"``: only kernels that multiply the elements themselves: no Winograd, no three
            products of TF32. ``"standard"`` (the default): besides, those whose relative L2 error stays
            within twice torch's own, and one rounding, as Winograd F(2x2, 3x3). ``"fast"``: besides, those
            that state an error of at most 1e-5, as Winograd F(4x4, 3x3).

    Whether TF32 itself may be used is torch's switch alone. No name that :func:`pyconv.use` asks for
    overrides this switch.

    Raises:
        ValueError: for another name.
    """
    global _now
    _now = _now._replace(precision=_checked_precision("set_algorithm_precision", precision))


def get_algorithm_precision() -> str:
    """What :func:`set_algorithm_precision` or :func:`algorithm_precision` has put in force here."""
    return current().precision


@contextlib.contextmanager
def algorithm_precision(precision: str) -> Iterator[None]:
    """Within the block, in this thread, the precision of :func:`set_algorithm_precision`.

    A backward has the precision of its forward, wherever it runs.

    Raises:
        ValueError: for another name than ``"exact"``, ``"standard"`` or ``"fast"``.
    """
    token = _precision.set(_checked_precision("algorithm_precision", precision))
    try:
        yield
    finally:
        _precision.reset(token)


def _checked_precision(where: str, precision: str) -> str:
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(
            f"{where}(): argument 'precision' is {precision!r}; accepted: {', '.join(PRECISIONS)}"
        )
    return precision
