"""The emulator finds what is wrong with a kernel, at its line, in every order of threads, and nothing else."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from pyconv.backends import emulator_build
from pyconv.backends.emulator import ORDERS, Buffer, Emulator, EmulatorError, Session, unavailable

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"emulator: {unavailable()}")

SOURCES = Path(__file__).parent / "emulator"
CHECKED = [Emulator(checked=True, order=order, seed=3) for order in ORDERS]
EVERY = [*CHECKED, *(Emulator(order=order, seed=3) for order in ORDERS)]


def packed(*arguments: Any) -> Any:
    """``void*`` to each argument; a tensor stands for its pointer."""
    values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    pointers.values = values  # kept alive
    return pointers


def buffer(name: str, tensor: torch.Tensor, initialised: bool, writable: bool) -> Buffer:
    return Buffer(name, tensor.data_ptr(), tensor.nbytes, initialised, writable)


def read(tensor: torch.Tensor, name: str = "x") -> Buffer:
    return buffer(name, tensor, initialised=True, writable=False)


def written(tensor: torch.Tensor, name: str = "y") -> Buffer:
    return buffer(name, tensor, initialised=False, writable=True)


# ---- what must be found


@cache
def expected(file: str) -> dict[str, dict[str, list[str]]]:
    """kernel -> ``file:line`` -> kinds, from the comments in a source: ``// kernel: kind, kind``."""
    bugs: dict[str, dict[str, list[str]]] = {}
    for number, line in enumerate((SOURCES / file).read_text().splitlines(), 1):
        found = re.search(r"\S.*// (\w+): ([a-z., -]+)$", line)
        if found:
            bugs.setdefault(found[1], {})[f"{SOURCES / file}:{number}"] = found[2].split(", ")
    return bugs


BUGS = [
    (file, kernel)
    for file in ("races.cu", "memory.cu", "barriers.cu", "pipelines.cu")
    for kernel in expected(file)
]


def run_bug(emulator: Emulator, file: str, kernel: str) -> EmulatorError:
    x, y = torch.arange(1024.0), torch.empty(1024)
    function = emulator.function(str(SOURCES / file), kernel)
    with pytest.raises(EmulatorError) as error:
        emulator.launch(function, (4, 1, 1), (64, 1, 1), 252, packed(x, y), [read(x), written(y)])
    assert torch.equal(x, torch.arange(1024.0)), "an input was changed"
    return error.value


@pytest.mark.parametrize(("file", "kernel"), BUGS, ids=[kernel for _, kernel in BUGS])
def test_a_bug_is_found_at_its_line_in_every_order(file: str, kernel: str) -> None:
    lines = expected(file)[kernel]
    main_kind = next(iter(lines.values()))[0]
    for emulator in CHECKED:
        error = run_bug(emulator, file, kernel)
        assert main_kind in {finding.kind for finding in error.findings}, (emulator, str(error))
        for finding in error.findings:
            assert finding.kind in lines.get(finding.where, ()), (emulator, str(finding))
            assert not finding.other or finding.other in lines, (emulator, str(finding))
            assert re.search(r"block \(\d+,0,0\), thread \(\d+,0,0\)", finding.message)
        assert str(error).startswith(f"{kernel}: {len(error.findings)} finding")


def test_there_are_as_many_bugs_as_before() -> None:
    assert len(BUGS) == 40


@pytest.mark.parametrize(
    ("file", "kernel", "kind"),
    [
        ("memory.cu", "wild", "fault"),
        ("memory.cu", "deep_stack", "stack"),
        ("memory.cu", "divides_by_zero", "arithmetic"),
        ("memory.cu", "misaligned_vector", "misaligned"),
        ("memory.cu", "too_much_shared", "shared memory"),
        ("barriers.cu", "early_return", "barrier"),
        ("barriers.cu", "shuffle_in_a_branch", "deadlock"),
        ("barriers.cu", "traps", "failed"),
        ("pipelines.cu", "never_waits", "cp.async"),
    ],
)  # fmt: skip
def test_the_plain_build_finds_what_needs_no_hooks(file: str, kernel: str, kind: str) -> None:
    findings = run_bug(Emulator(), file, kernel).findings
    assert kind in {finding.kind for finding in findings}
    assert all(finding.where in expected(file)[kernel] for finding in findings)


# ---- what must not be found


def function(emulator: Emulator, kernel: str) -> Any:
    return emulator.function(str(SOURCES / "clean.cu"), kernel)


everywhere = pytest.mark.parametrize(
    "emulator", EVERY, ids=[f"{'checked' if e.checked else 'plain'}-{e.order}" for e in EVERY]
)


@everywhere
def test_clean_tile_with_ragged_edges(emulator: Emulator) -> None:
    n = 19
    x, y = torch.randn(n, n), torch.empty(n, n)
    transpose = function(emulator, "transpose<8>")
    emulator.launch(transpose, (3, 3, 1), (8, 8, 1), 0, packed(x, y, ctypes.c_int(n)), [read(x), written(y)])
    assert torch.equal(y, x.T)


@everywhere
def test_clean_shuffles(emulator: Emulator) -> None:
    x, y = torch.randint(-9, 9, (3, 333)).float(), torch.empty(3)
    row_sum = function(emulator, "row_sum<96>")
    emulator.launch(row_sum, (3, 1, 1), (96, 1, 1), 0, packed(x, y, ctypes.c_int(333)), [read(x), written(y)])
    assert torch.equal(y, x.sum(1))


@everywhere
@pytest.mark.parametrize("stages", [2, 3])
def test_clean_pipeline_of_asynchronous_copies(emulator: Emulator, stages: int) -> None:
    n = 1000 - 3  # the last copy is cut short, those after it are empty
    x, y = torch.randint(-9, 9, (n,)).float(), torch.empty(64)
    pipeline = function(emulator, f"pipeline<{stages}>")
    parameters = packed(x, y, ctypes.c_int(n))
    emulator.launch(pipeline, (1, 1, 1), (64, 1, 1), stages * 1024, parameters, [read(x), written(y)])
    tiles = torch.nn.functional.pad(x, (0, 1024 - n)).view(4, 256)
    assert torch.equal(y, tiles.sum(0).flip(0)[:64])
