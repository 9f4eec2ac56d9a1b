"""Excerpts of the kernels' sources in the documentation, filled in by a command so that they cannot go stale.

In a page an excerpt is a comment that says which lines, and the code block below it::

    <!-- excerpt conv2d/direct_tiled.cu: from "template <int TM" until "^}" -->
    ```cpp
    ...
    ```

From the first line that holds the one text until the next that holds the other, both included; ``^`` is the
start of a line. ``python -m pyconv.excerpts --write`` brings the pages up to date; without ``--write`` it
exits with status 1 if one is stale, which a test checks.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from pyconv.backends.sources import KERNELS

ROOT = Path(__file__).resolve().parent.parent

_EXCERPT = re.compile(
    r'(?P<head><!-- excerpt (?P<source>\S+): from "(?P<first>[^"]+)" until "(?P<last>[^"]+)" -->\n)'
    r"```\w+\n.*?```\n",
    re.DOTALL,
)
_LANGUAGES = {".py": "python", ".cu": "cpp", ".cuh": "cpp", ".h": "cpp", ".cpp": "cpp"}


def excerpt(source: str, first: str, last: str) -> str:
    """The lines of a source under ``kernels/``, without the indentation that they have in common.

    Raises:
        ValueError: if no line, or not exactly one, holds ``first``; or none after it ``last``.
    """
    lines = (KERNELS / source).read_text(encoding="utf-8").splitlines()
    begins = [number for number, line in enumerate(lines) if _holds(line, first)]
    if len(begins) != 1:
        raise ValueError(f"{source}: {len(begins)} lines hold {first!r}, an excerpt begins at one")
    for number in range(begins[0], len(lines)):
        if _holds(lines[number], last) and (number > begins[0] or first == last):
            return textwrap.dedent("\n".join(lines[begins[0] : number + 1]))
    raise ValueError(f"{source}: no line after {first!r} holds {last!r}")


def _holds(line: str, text: str) -> bool:
    return line.startswith(text[1:]) if text.startswith("^") else text in line


def filled(page: str) -> str:
    """The text of a page with every excerpt as the source has it now."""

    def fill(match: re.Match[str]) -> str:
        language = _LANGUAGES[Path(match["source"]).suffix]
        code = excerpt(match["source"], match["first"], match["last"])
        return f"{match['head']}```{language}\n{code}\n```\n"

    return _EXCERPT.sub(fill, page)


def pages() -> list[Path]:
    """Those that have excerpts."""
    every = sorted((ROOT / "docs").glob("*.md"))
    return [path for path in every if "<!-- excerpt " in path.read_text(encoding="utf-8")]


def main(arguments: list[str]) -> int:
    stale = 0
    for path in pages():
        text = path.read_text(encoding="utf-8")
        current = filled(text)
        if current == text:
            continue
        if "--write" in arguments:
            path.write_text(current, encoding="utf-8")
        else:
            print(f"the excerpts of {path.name} are stale: make tables", file=sys.stderr)
            stale += 1
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
