"""What a kernel did wrong in the emulator, in terms of its source."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

#: What ``kernels/`` is called in debug information: what is compiled must not tell where the sources are.
MAPPED = "/kernels"

#: For a kernel's library and places in it: ``file:line`` of each, followed by the lines into which it was
#: inlined.
Lines = Callable[[Path, set[str]], dict[str, list[str]]]


@dataclass(frozen=True)
class Finding:
    """One thing that a kernel did wrong.

    Attributes:
        kind: ``race``, ``out of bounds``, ``uninitialised``, ... (``kernels/emulator/README.md`` lists them).
        where: ``file:line`` in the kernel, empty for what has no place in it.
        other: For a race, ``file:line`` of the earlier access; else mostly empty.
        message: What happened, with block and thread.
    """

    kind: str
    where: str
    other: str
    message: str

    def __str__(self) -> str:
        return (
            f"{self.kind} at {self.where}: {self.message}" if self.where else f"{self.kind}: {self.message}"
        )


class EmulatorError(RuntimeError):
    """A kernel that does not compile, or what its launch did wrong (``findings``)."""

    def __init__(self, message: str, findings: Iterable[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


def raise_findings(kernel: str, library: Path, text: str, find_lines: Lines) -> None:
    """Raises what the runtime reports (``kernels/emulator/findings.cpp``)."""
    records = [line.split("\t", 3) for line in text.splitlines()]
    lines = find_lines(
        library, {place for record in records for field in record[1:3] for place in field.split()}
    )
    findings: dict[Finding, None] = {}
    for kind, places, other_places, message in records:
        where, other = (_author_line(lines, field.split()) for field in (places, other_places))
        if kind == "divergent barrier" and where == other:
            continue  # one barrier that the compiler has copied
        message = message.replace("%W", other or "an unknown place")
        findings[Finding(kind, where, other, message)] = None
    if findings:
        if any(finding.kind == "interrupted" for finding in findings):
            raise KeyboardInterrupt(f"{kernel}: {next(iter(findings))}")
        listed = "".join(f"\n  {finding}" for finding in findings)
        count = f"{len(findings)} finding{'s' * (len(findings) > 1)}"
        raise EmulatorError(f"{kernel}: {count}{listed}", findings)


def _author_line(lines: dict[str, list[str]], places: list[str]) -> str:
    """The innermost line that is the kernel author's: where a primitive is used, not where it stands."""
    known = [line for place in places for line in lines[place]]
    own = [line for line in known if not line.startswith(("common/", "emulator/"))]
    return (own or known or [""])[0]


def lines_of_library(library: Path, places: set[str]) -> dict[str, list[str]]:
    """:data:`Lines` of a library with debug information."""
    wanted = sorted(places)
    lines = {place: [f"{library.name}+0x{place}"] for place in wanted}
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    if not wanted or tool is None:
        return lines
    # A return address is after the call; one byte less is in it.
    before = [hex(int(place, 16) - 1) for place in wanted]
    command = [tool, "-a", "-i", "-e", str(library), *before]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    for place, answer in zip(wanted, re.split(r"^0x[0-9a-f]+\n", result.stdout, flags=re.M)[1:], strict=True):
        known = [line for line in answer.splitlines() if re.search(r":[1-9]\d*\b", line)]
        known = [line.split(" (")[0].removeprefix(f"{MAPPED}/") for line in known]
        known = [line for line in known if not line.startswith(f"{library.with_suffix('.cpp')}:")]
        lines[place] = known or lines[place]
    return lines
