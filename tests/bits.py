"""Prints the bits of every CPU line's results, for :mod:`tests.test_determinism` to compare processes.

python -m tests.bits THREADS [REPETITIONS]    # THREADS: 1,2,3,8 or "as they come"
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator

import torch

from pyconv import backends, registry
from pyconv.backends import cpu
from pyconv.problem import Problem
from pyconv.registry import Kernel
from tests.memory import lay_out, values
from tests.operands import operands
from tests.problems import CONV2D_MANY_UNITS, MAXPOOL2D_MANY_UNITS, variants


def lines() -> list[Kernel]:
    return [kernel for kernel in registry.kernels() if kernel.backend == "cpu" and kernel.deterministic]


def with_many_units(kernel: Kernel) -> list[Problem]:
    """Problems that threads share: depthwise for kernels of nothing else, without groups for the others."""
    if kernel.operation == "maxpool2d":
        texts = MAXPOOL2D_MANY_UNITS
    else:
        texts = CONV2D_MANY_UNITS[:1] if kernel.algorithm == "depthwise" else CONV2D_MANY_UNITS[1:]
    return [problem for text in texts for problem in variants(text, kernel.dtypes)]


def digest(kernel: Kernel, problem: Problem) -> str:
    """The bits of what a line returns for one draw of normal operands."""
    tensors = (
        lay_out(array, problem.torch_dtype, problem.layout)
        for array in operands(problem, kernel.pass_, "normal")
    )
    results = backends.bind(kernel, problem)(*tensors)
    parts = results if isinstance(results, tuple) else (results,)
    return hashlib.sha256(b"".join(values(part).tobytes() for part in parts)).hexdigest()[:16]


def every() -> Iterator[tuple[str, str, str]]:
    for kernel in lines():
        for problem in with_many_units(kernel):
            yield kernel.id, str(problem), digest(kernel, problem)


def main(threads: str, repetitions: str = "1") -> None:
    """One line of output per kernel and problem; every number of threads and repetition must agree."""
    counts = [int(count) for count in threads.split(",")] if threads[0].isdigit() else [None]
    first: list[tuple[str, str, str]] = []
    for count in counts * int(repetitions):
        if count is not None:
            torch.set_num_threads(count)
        again = list(every())
        for one, other in zip(first or again, again, strict=True):
            if one != other:
                sys.exit(f"{other[0]} on '{other[1]}' has other bits with {count} threads")
        first = again
    print(f"# {cpu.isa()}, {torch.get_num_threads()} threads")
    for item in first:
        print(" | ".join(item))


if __name__ == "__main__":
    main(*sys.argv[1:])
