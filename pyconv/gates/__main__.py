"""``python -m pyconv.gates``: see the package."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyconv.gates import cubin, page
from pyconv.gates.architectures import ARCHITECTURES
from pyconv.gates.compiling import Compiled, compiled, compiler
from pyconv.gates.instantiations import Instantiation, ahead_of_time, instantiations


def _selected(only: str) -> dict[str, list[Instantiation]]:
    selected = {}
    for source, found in instantiations().items():
        matching = [each for each in found if only in source or only in each.kernel]
        if matching:
            selected[source] = matching
    return selected


def _check(selected: dict[str, list[Instantiation]], architectures: list[str], write: bool) -> int:
    jobs = list(itertools.product(selected, architectures))

    def run(job: tuple[str, str]) -> Compiled:
        source, architecture = job
        return compiled(selected[source], ARCHITECTURES[architecture])

    faults = 0
    usages = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for job, result in zip(jobs, pool.map(run, jobs), strict=True):
            usages[job] = result.usages
            faults += len(result.faults)
            print(f"{job[0]} on {job[1]}: {len(result.usages)} instantiations", *result.faults, sep="\n  ")
    print(f"{len(selected)} sources for {len(architectures)} architectures, {faults} faults")
    all_compiled = all(len(usages[source, name]) == len(selected[source]) for source, name in jobs)
    if write and all_compiled:
        page.PAGE.write_text(page.render(selected, usages), encoding="utf-8")
        print(f"written: {page.PAGE}")
    return 1 if faults else 0


def _print_sass(selected: dict[str, list[Instantiation]], architectures: list[str]) -> int:
    for (source, found), architecture in itertools.product(selected.items(), architectures):
        for each in found:
            image = compiler().compile(source, each.kernel, architecture)
            print(f"// {source}: {each.kernel} on {architecture}", cubin.disassembly(image), sep="\n")
    return 0


def _write_sources(selected: dict[str, list[Instantiation]], folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        folder / source.replace("/", "_"): ahead_of_time(source, found) for source, found in selected.items()
    }
    for place in folder.glob("*.cu"):
        if place not in texts:
            place.unlink()
    for place, text in texts.items():
        if not place.exists() or place.read_text() != text:  # what is unchanged need not be compiled again
            place.write_text(text)
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pyconv.gates")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="sources or kernels with this in their name"
    )
    parser.add_argument("--arch", action="append", choices=list(ARCHITECTURES), help="default: all")
    parser.add_argument("--write", action="store_true", help="write kernels/RESOURCES.md")
    parser.add_argument(
        "--sass", metavar="TEXT", help="print the machine code of the kernels with this in their name"
    )
    parser.add_argument("--sources", type=Path, metavar="FOLDER", help="write what CMake compiles with nvcc")
    given = parser.parse_args(arguments)
    architectures = given.arch or list(ARCHITECTURES)
    if given.write and (given.only or given.arch):
        parser.error("--write needs every kernel on every architecture")
    selected = _selected(given.sass or given.only)
    if given.sass:
        return _print_sass(selected, architectures)
    if given.sources:
        return _write_sources(selected, given.sources)
    return _check(selected, architectures, given.write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
