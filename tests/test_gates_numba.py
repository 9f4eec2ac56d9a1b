"""Every Numba kernel compiles for real architectures into what it should; and that gate is tested.

All of them for both take minutes, so a run compiles a sample, which every change of a source draws anew, and
the kernels that had been wrong; ``make test-all`` and ``make gates`` compile the rest.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pyconv.backends.program import Program, Step, View
from pyconv.backends.sources import KERNELS
from pyconv.gates import numba_kernels as gate
from pyconv.gates.architectures import ARCHITECTURES
from pyconv.problem import Problem
from pyconv.registry import Kernel

pytestmark = pytest.mark.skipif(gate.missing() is not None, reason=str(gate.missing()))

WANTED = gate.numba_kernels()


def _draw(each: gate.NumbaKernel, sides: int) -> int:
    text = (KERNELS / each.source).read_text() + each.name
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % sides


def _sample() -> list[gate.NumbaKernel]:
    """One kernel of every function."""
    first: dict[tuple[str, str], gate.NumbaKernel] = {}
    for each in sorted(WANTED, key=lambda each: _draw(each, 2**64)):
        first.setdefault((each.source, each.kernel.partition("(")[0]), each)
    return list(first.values())


@pytest.mark.parametrize("wanted", _sample(), ids=lambda each: each.name)
def test_one_of_every_kernel_passes(wanted: gate.NumbaKernel) -> None:
    architecture = list(gate.CAPABILITIES)[_draw(wanted, len(gate.CAPABILITIES))]
    _, faults = gate.check([wanted], ARCHITECTURES[architecture])
    assert not faults, "\n".join(faults)


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", gate.CAPABILITIES)
@pytest.mark.parametrize("source", dict.fromkeys(each.source for each in WANTED))
def test_every_kernel_passes(source: str, architecture: str) -> None:
    wanted = [each for each in WANTED if each.source == source]
    _, faults = gate.check(wanted, ARCHITECTURES[architecture])
    assert not faults, "\n".join(faults)


def test_every_numba_source_is_gated() -> None:
    sources = {str(path.relative_to(KERNELS)) for path in KERNELS.rglob("*_numba.py")}
    imported = {
        f"{module.removeprefix('pyconv.kernels.').replace('.', '/')}.py"
        for source in sources
        for module in gate.numba_rewrite.imports((KERNELS / source).read_text())
    }
    assert sources == {each.source for each in WANTED} | imported


def test_the_page_is_of_these_kernels() -> None:
    listed = [line.split(" | ")[1] for line in gate.PAGE.read_text().splitlines() if line.startswith("| [")]
    assert listed == [f"`{each.name}`" for each in WANTED], "stale: make gates"


# ---- The gate itself -----------------------------------------------------------------------------------

_FAULTY = """
from numba import cuda


def kernels(Sum, FAULT):
    @cuda.jit
    def kernel(x):
        i = cuda.threadIdx.x
        if FAULT == "spills":
            own = cuda.local.array(64, Sum)
            for j in range(64):
                own[j] = x[j]
            x[i] = own[int(x[i])]  # an index that is not known when compiled
        if FAULT == "extent":
            tile = cuda.shared.array(x.shape[0], Sum)
            tile[i] = x[i]
        if FAULT == "type":
            x[i] = "a"
        if FAULT == "atomic":
            cuda.atomic.add(x, 0, x[i])
        x[i] += Sum(1)

    return kernel
"""


@pytest.mark.parametrize(
    ("fault", "sass", "message"),
    [
        ("", (), None),
        ("spills", (), "expected no spills, found 256 bytes of stack"),
        ("extent", (), "does not compile: "),
        ("type", (), "does not compile: "),
        ("atomic", (), "expected no float atomics, found "),
        ("", ("HMMA",), "expected HMMA, found no HMMA"),
    ],
    ids=["right", "spills", "extent", "type", "atomic", "instruction"],
)
def test_what_is_wrong_with_a_kernel_is_said(
    tmp_path: Path, fault: str, sass: tuple[str, ...], message: str | None
) -> None:
    source = tmp_path / "gated_numba.py"
    source.write_text(_FAULTY)
    step = Step(
        str(source),
        f"kernels(float32, {fault!r})",
        (1, 1, 1),
        (64, 1, 1),
        (View("y", "f32", (64,), (1,)),),
        sass=sass,
    )

    def program(problem: Problem) -> Program:
        return Program((step,))

    line = Kernel("conv2d", "fprop", "gated", "numba", ("f32",), program=program)
    (wanted,) = gate.numba_kernels([line])
    _, faults = gate.check([wanted], ARCHITECTURES["sm_80"])
    assert bool(faults) == bool(message), faults
    assert not message or message in faults[0]
