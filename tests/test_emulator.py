"""The emulator finds what is wrong with a kernel at its line, in every order of threads, and nothing else."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from pyconv.backends import emulator_build
from pyconv.backends.emulator import Emulator, EmulatorError, unavailable
from tests.emulated import CHECKED, SOURCES, everywhere, function, packed, read, written

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"emulator: {unavailable()}")


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
    for how in CHECKED:
        error = run_bug(how, file, kernel)
        assert main_kind in {finding.kind for finding in error.findings}, (how, str(error))
        for finding in error.findings:
            assert finding.kind in lines.get(finding.where, ()), (how, str(finding))
            assert not finding.other or finding.other in lines, (how, str(finding))
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


def test_ctrl_c_tells_where_a_kernel_hangs(tmp_path: Path) -> None:
    (tmp_path / "hangs.cu").write_text(
        '#include "common/cuda.h"\nnamespace pyconv {\n__global__ void hangs(volatile int* y) {\n'
        "  y[0] = 0;\n  while (y[0] == 0)\n    ;\n}\n}\n"
    )
    y = torch.empty(1, dtype=torch.int32)
    hangs = Emulator().function(str(tmp_path / "hangs.cu"), "hangs")
    alarm = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    alarm.start()
    with pytest.raises(
        KeyboardInterrupt, match=r"hangs: interrupted at .*/hangs.cu:[56]: the kernel was running"
    ):
        Emulator().launch(hangs, (1, 1, 1), (32, 1, 1), 0, packed(y), [written(y)])
    alarm.join()


def test_tensors_side_by_side_are_told_apart() -> None:
    storage = torch.arange(2048.0)
    x, y = storage[:1024], storage[1024:]
    reads = CHECKED[0].function(str(SOURCES / "memory.cu"), "reads_past_the_input")
    with pytest.raises(EmulatorError, match="read of 4 bytes at `x` \\+4096, which has 4096 bytes"):
        CHECKED[0].launch(reads, (4, 1, 1), (64, 1, 1), 0, packed(x, y), [read(x), written(y)])


@everywhere
def test_the_emulator_is_usable_after_an_error(emulator: Emulator) -> None:
    x, y = torch.randint(-9, 9, (1, 333)).float(), torch.empty(1)
    row_sum = function(emulator, "row_sum<96>")
    for kernel in ("traps", "early_return", "shuffle_in_a_branch"):
        run_bug(emulator, "barriers.cu", kernel)
        y.zero_()
        parameters = packed(x, y, ctypes.c_int(333))
        emulator.launch(row_sum, (1, 1, 1), (96, 1, 1), 0, parameters, [read(x), written(y)])
        assert y.item() == x.sum().item()


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "message"),
    [
        (
            (1, 1, 1),
            (1025, 1, 1),
            0,
            r"launch: block \(1025,1,1\): it has 1 to 1024 threads, at most 64 along z",
        ),
        ((1, 1, 1), (8, 8, 65), 0, "launch: block"),
        ((1, 1, 1), (0, 1, 1), 0, "launch: block"),
        ((1, 65536, 1), (32, 1, 1), 0, r"launch: grid \(1,65536,1\)"),
        ((0, 1, 1), (32, 1, 1), 0, "launch: grid"),
        ((1, 1, 1), (64, 1, 1), 227 * 1024 + 1, "shared memory: 232449 bytes dynamic: a block has 232448"),
        ((1, 1, 1), (64, 1, 1), 227 * 1024, "shared memory: 256 bytes of arrays and 232448 bytes dynamic"),
    ],
)
def test_a_launch_that_no_gpu_would_take(grid: Any, block: Any, shared_bytes: int, message: str) -> None:
    x, y = torch.arange(1024.0), torch.empty(1024)
    kernel = Emulator().function(str(SOURCES / "memory.cu"), "past_a_shared_array")
    with pytest.raises(EmulatorError, match=message):
        Emulator().launch(kernel, grid, block, shared_bytes, packed(x, y), [read(x), written(y)])


def test_an_order_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="order 'sideways'; accepted: forward, reverse, odd, random"):
        Emulator(order="sideways")


def test_a_local_variable_that_is_not_set_is_no_number_in_use() -> None:
    x, y = torch.arange(1024.0), torch.empty(1024)
    unset = CHECKED[0].function(str(SOURCES / "memory.cu"), "unset_local")
    if "-ftrivial-auto-var-init=pattern" not in emulator_build._checked():
        pytest.skip("this compiler cannot set them")
    CHECKED[0].launch(unset, (4, 1, 1), (64, 1, 1), 0, packed(x, y), [read(x), written(y)])
    assert ((y[:256].abs() > 1e30) | y[:256].isnan()).all()


def test_sessions_do_not_nest() -> None:
    outer, inner = Emulator().session([]), Emulator().session([])
    with outer, pytest.raises(RuntimeError, match="a session within a session"), inner:
        pass
    with inner:
        pass
