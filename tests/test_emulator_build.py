"""What the emulator compiles is kept, shared and checked; in processes that have nothing loaded yet."""

from __future__ import annotations

import ctypes
import multiprocessing
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from pyconv.backends import emulator, emulator_build, sources
from pyconv.backends.emulator import ORDERS, Emulator, EmulatorError, unavailable
from tests.emulated import SOURCES, packed, read, written

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"emulator: {unavailable()}")


def _forget_what_is_loaded() -> None:
    for remembered in (
        emulator._runtime, emulator_build._compiler, emulator_build.runtime, emulator_build.function,
        sources.digest,
    ):  # fmt: skip
        remembered.cache_clear()


def _run_row_sum(source: str, checked: bool) -> str:
    x, y = torch.randint(-9, 9, (3, 333)).float(), torch.empty(3)
    for order in ORDERS:
        how = Emulator(checked=checked, order=order)
        row_sum = how.function(source, "row_sum<96>")
        parameters = packed(x, y, ctypes.c_int(333))
        how.launch(row_sum, (3, 1, 1), (96, 1, 1), 0, parameters, [read(x), written(y)])
        assert torch.equal(y, x.sum(1))
    return str(row_sum.library)


class Elsewhere:
    """Processes with an empty cache, whose compiler writes a line for each file that it compiles."""

    def __init__(self, folder: Path, compiler: str) -> None:
        self.log, command = folder / "log", folder / "compiler"
        command.write_text(
            f'#!/bin/sh\ncase "$*" in *" -o "*) echo "$*" >> {self.log};; esac\nexec {compiler} "$@"\n'
        )
        command.chmod(0o755)
        self.environment = {"PYCONV_CACHE": str(folder / "cache"), "CXX": str(command)}

    def run(self, source: Path = SOURCES / "clean.cu", checked: bool = False, times: int = 1) -> Path:
        """The kernel's library, the same in each of some processes that start at once."""
        context = multiprocessing.get_context("fork")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            with ProcessPoolExecutor(times, context, _forget_what_is_loaded) as pool:
                runs = [pool.submit(_run_row_sum, str(source), checked) for _ in range(times)]
                paths = {run.result(timeout=300) for run in runs}
        assert len(paths) == 1
        return Path(paths.pop())

    def compiled(self) -> list[str]:
        """The files compiled since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [re.findall(r"/(\w+)-[0-9a-f]+\.cpp", line)[0] for line in lines]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Elsewhere:
    compiler = emulator_build._compiler()
    assert not isinstance(compiler, str)
    return Elsewhere(tmp_path, compiler[0])


def test_what_is_compiled_is_kept_and_checked(elsewhere: Elsewhere, tmp_path: Path) -> None:
    for name in ("clean.cu", "kernel.h"):
        (tmp_path / name).write_text(f'#include "kernel.h"\n{(SOURCES / "clean.cu").read_text()}')
    (tmp_path / "kernel.h").write_text("// an included file\n")
    source = tmp_path / "clean.cu"

    library = elsewhere.run(source, times=3)
    assert sorted(elsewhere.compiled()) == ["row_sum", "runtime"], "three processes at once compile once"
    assert elsewhere.run(source) == library
    assert elsewhere.compiled() == []

    whole = library.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:5000] + b"?" + whole[5001:]):
        library.unlink()  # not overwritten in place: other processes have it mapped
        library.write_bytes(damaged)
        assert elsewhere.run(source) == library
        assert elsewhere.compiled() == ["row_sum"]
        assert library.read_bytes() == whole

    (tmp_path / "kernel.h").write_text("// an included file, changed\n")
    assert elsewhere.run(source) != library
    assert elsewhere.compiled() == ["row_sum"]
    assert not [path for path in library.parent.iterdir() if path.suffix not in (".so", ".cpp", ".lock")]


def test_switching_stacks_without_assembly(elsewhere: Elsewhere) -> None:
    elsewhere.environment["CXX"] += " -DPYCONV_EMULATOR_UCONTEXT"
    elsewhere.run(checked=True)
    assert all("-DPYCONV_EMULATOR_UCONTEXT" in line for line in elsewhere.log.read_text().splitlines())


@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++")
@pytest.mark.parametrize("checked", [False, True])
def test_clang_compiles_too(tmp_path: Path, checked: bool) -> None:
    Elsewhere(tmp_path, "clang++").run(checked=checked)


def test_no_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O9")
    emulator_build._compiler.cache_clear()
    try:
        assert unavailable() == "no C++ compiler: no-such-compiler -O9 not found"
        with pytest.raises(EmulatorError, match="no C\\+\\+ compiler"):
            Emulator().function(str(SOURCES / "clean.cu"), "row_sum<32>")
    finally:
        emulator_build._compiler.cache_clear()


def test_a_source_that_does_not_compile_says_so(tmp_path: Path) -> None:
    with pytest.raises(EmulatorError, match=r"no such source: .*/conv2d/none.cu"):
        Emulator().function("conv2d/none.cu", "none")
    with pytest.raises(EmulatorError, match=r"does not compile .*(\n.*)*row_summ"):
        Emulator().function(str(SOURCES / "clean.cu"), "row_summ<96>")
    # A float atomic would add in an order of chance.
    (tmp_path / "floats.cu").write_text(
        '#include "common/cuda.h"\nnamespace pyconv { void __global__ f(float* y) { atomicAdd(y, 1.0f); } }\n'
    )
    with pytest.raises(EmulatorError, match="atomics on 32-bit and 64-bit integers only"):
        Emulator().function(str(tmp_path / "floats.cu"), "f")
