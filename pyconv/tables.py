"""The kernel table as people read it: in the terminal, and as Markdown in README.md.

``python -m pyconv.tables --write`` brings the generated tables in the documentation up to date; without
``--write`` it exits with status 1 if one is stale, which a test checks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pyconv.problem import Problem
from pyconv.registry import Kernel, kernels
from pyconv.selection import explain

ROOT = Path(__file__).resolve().parent.parent
HEADER = ("kernel", "backend", "dtypes", "layouts", "promises", "NaN/Inf", "accuracy", "proved on", "source")


def row(kernel: Kernel) -> tuple[str, ...]:
    """One line of the table as words, in the order of ``HEADER``."""
    promises = [
        word
        for word, claimed in (
            ("deterministic", kernel.deterministic),
            ("batch invariant", kernel.batch_invariant),
            ("exact on integers", kernel.exact_integers),
        )
        if claimed
    ]
    return (
        kernel.name,
        kernel.backend,
        ", ".join(kernel.dtypes),
        ", ".join(kernel.layouts),
        ", ".join(promises) or "none",
        kernel.nonfinite,
        kernel.accuracy,
        ", ".join(kernel.proved) or "baseline",
        kernel.source or "torch",
    )


def markdown() -> str:
    """The whole table in Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    for kernel in kernels():
        words = list(row(kernel))
        words[0] = f"`{words[0]}`"
        if kernel.source:
            words[-1] = f"[{kernel.source}](kernels/{kernel.source})"
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines) + "\n"


def explanation(problem: Problem, device_type: str = "cpu") -> str:
    """What selection says about every line of the table, pass by pass."""
    lines = [str(problem)]
    for pass_, choices in explain(problem, device_type).items():
        gflop, megabytes = problem.flops(pass_) / 1e9, problem.bytes(pass_) / 1e6
        lines.append(f"{pass_}: {gflop:.4g} Gflop, at least {megabytes:.4g} MB of traffic")
        lines += [
            f"  {'*' if choice.chosen else ' '} {choice.kernel.id:<36} {choice.reason}" for choice in choices
        ]
    return "\n".join(lines)


def _with_table(text: str, name: str, table: str) -> str:
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"no '{begin.strip()}' ... '{end}' in the page")
    return before + begin + table + end + after


def main(arguments: list[str]) -> int:
    page = ROOT / "README.md"
    text = page.read_text(encoding="utf-8")
    current = _with_table(text, "kernel table", markdown())
    if current == text:
        return 0
    if "--write" not in arguments:
        print("the kernel table of README.md is stale: make tables", file=sys.stderr)
        return 1
    page.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
