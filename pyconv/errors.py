"""The errors a user can cause: each is one line that names the argument or file, and has an exit status."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PyconvError(Exception):
    """Something the user can put right. ``str(error)`` is one line; the command line prints it and stops."""

    exit_status = 1


class UsageError(PyconvError):
    """An argument that cannot be meant: an unknown name, a value out of range, two that exclude others."""

    exit_status = 2


class UnknownKernel(UsageError, ValueError):
    """A name that no line of the table of kernels has; a ``ValueError`` too, for callers of the library."""


class DataError(PyconvError):
    """A data file or image that is missing, truncated, corrupt or does not fit the others."""


class RunError(PyconvError):
    """A run folder that exists already, is incomplete, or does not fit what is asked of it."""


class TuningError(PyconvError):
    """Kernels cannot be measured, or the file of their times cannot be used."""


class TrainingError(PyconvError):
    """Training cannot go on, for example because the loss is not finite."""


class Interrupted(PyconvError):
    """Training was stopped by Ctrl-C or SIGTERM; the message says how to go on.

    Args:
        message: The line.
        exit_status: 128 and the signal's number, as shells have it.
    """

    exit_status = 130

    def __init__(self, message: str, exit_status: int = 130) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def unknown(what: str, given: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not known, with the nearest names first.

    Args:
        what: The argument, as the user writes it (``--model``).
        given: What was given.
        known: Every name that would be accepted.
    """
    names = list(known)
    nearest = difflib.get_close_matches(given.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    return UsageError(f"{what}: unknown name {given!r}; {hint}(known: {', '.join(names)})")
