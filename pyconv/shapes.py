"""Reads a file of problems: one a line, in the descriptor's text form.

Lines starting with ``#`` are comments, and one of them may say ``# passes: fprop dgrad``: the passes that
this file is there to measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pyconv.problem import Problem, parse_problem


def read_shapes(
    path: Path, check_passes: Callable[[Sequence[str]], None] = lambda _: None
) -> tuple[list[Problem], list[str]]:
    """The problems of a file, and the passes it names, in its order.

    Args:
        check_passes: Raises ``ValueError`` for a pass that the caller does not know.

    Raises:
        ValueError: naming file and line, for a line or a pass that is not understood.
    """
    problems: list[Problem] = []
    passes: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        text = line.strip()
        try:
            if text.startswith("# passes:"):
                passes += text.removeprefix("# passes:").split()
                check_passes(passes)
            elif text and not text.startswith("#"):
                problems.append(parse_problem(text))
        except ValueError as error:
            raise ValueError(f"{path.name}:{number}: {error}") from None
    return problems, passes
