"""The emulator on Numba kernels: what it must find, at its line, in every order; what it must refuse."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyconv.backends import numba_emulator
from pyconv.backends.emulator import ORDERS, Buffer, Emulator, EmulatorError
from pyconv.backends.program import View
from tests.emulated import SOURCES, read, written

pytestmark = pytest.mark.skipif(
    numba_emulator.unavailable() is not None, reason=str(numba_emulator.unavailable())
)

FAULTY = SOURCES / "faulty_numba.py"


def _run(
    kernel: str,
    x: torch.Tensor,
    y: torch.Tensor,
    emulator: Emulator,
    source: Path = FAULTY,
    buffers: list[Buffer] | None = None,
) -> None:
    names = {torch.float32: "f32", torch.float64: "f64", torch.float16: "f16"}
    views = [View(name, names[t.dtype], (len(t),), (1,)) for name, t in (("x", x), ("y", y))]
    function = numba_emulator.function(str(source), kernel, views, emulator.checked)
    parameters = [(ctypes.c_int64 * 3)(t.data_ptr(), len(t), 1) for t in (x, y)]
    pointers = (ctypes.c_void_p * 2)(*map(ctypes.addressof, parameters))
    emulator.launch(function, (1, 1, 1), (64, 1, 1), 0, pointers, buffers or [read(x), written(y)])


def _fails(kernel: str, order: str = "forward", checked: bool = True) -> list[tuple[str, str]]:
    """Kind and place of every finding."""
    x, y = torch.arange(128.0 if kernel.startswith("reverse") else 64.0), torch.empty(128)
    with pytest.raises(EmulatorError) as error:
        _run(kernel, x, y[: len(x)], Emulator(checked, order, 1))
    return [(finding.kind, finding.where.rpartition("/")[2]) for finding in error.value.findings]


def _line(text: str, nth: int = 0) -> str:
    found = [number for number, line in enumerate(FAULTY.read_text().split("\n"), 1) if text in line]
    return f"faulty_numba.py:{found[nth]}"


@pytest.mark.parametrize("order", ORDERS)
def test_a_right_kernel_is_right_in_every_order(order: str) -> None:
    for dtype, sums in ((torch.float32, "float32"), (torch.float64, "float64"), (torch.float16, "float32")):
        x, y = torch.arange(128, dtype=dtype) / 3, torch.empty(128, dtype=dtype)
        _run(f"reverse({sums}, '')", x, y, Emulator(True, order))
        assert torch.equal(y, x.flip(0))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", ["no barrier", "no second barrier"])
def test_a_dropped_barrier_is_a_race(fault: str, order: str) -> None:
    found = _fails(f"reverse(float32, {fault!r})", order)
    assert "race" in {kind for kind, _ in found}
    assert {place for kind, place in found if kind == "race"} <= {_line("tile[i] ="), _line("tile[63 - i]")}


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_that_not_all_threads_reach_is_found(order: str) -> None:
    assert {kind for kind, _ in _fails("reverse(float32, 'a barrier for some')", order)} & {
        "barrier",
        "divergent barrier",
    }
    found = _fails("branches(float32, 'divergent')", order)
    assert found[0][0] == "divergent barrier"
    assert found[0][1] in (_line("# fault", -1), _line("cuda.syncthreads()", -2))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("fault", "kind", "nth"),
    [
        ("negative index", "out of bounds", 1),
        ("beyond the end", "out of bounds", 2),
        ("beyond a local array", "out of bounds", 3),
        ("a write to an operand", "read-only", 4),
        ("a read of what nobody wrote", "uninitialised", 5),
        ("two owners", "race", 6),
    ],
)
def test_what_no_kernel_may_do_is_found_at_its_line(fault: str, kind: str, nth: int, order: str) -> None:
    assert (kind, _line("# fault", nth)) in _fails(f"shift(float32, {fault!r})", order)


def test_without_checks_indices_are_still_held_to_their_extents() -> None:
    found = _fails("shift(float32, 'negative index')", checked=False)
    assert found == [("out of bounds", _line("# fault", 1))]


def test_a_local_array_that_is_not_set_is_no_number() -> None:
    x, y = torch.arange(64.0), torch.empty(64)
    _run("shift(float32, 'a local that is not set')", x, y, Emulator(True))
    assert y.isnan().all()


def test_half_precision_is_rounded_as_torch_rounds_it() -> None:
    values = torch.tensor([0.0, -0.0, 1 / 3, 65504, 65519.9, 65520, 1e9, 2.0**-24, 2.0**-25, 1.5 * 2.0**-24])
    x = torch.cat([values, -values, torch.tensor([torch.inf, -torch.inf, torch.nan]), torch.randn(41)])
    y = torch.empty(64, dtype=torch.float16)
    _run("shift(float32, '')", x, y, Emulator(True))
    torch.testing.assert_close(y, x.half(), rtol=0, atol=0, equal_nan=True)
    back = torch.empty(64)
    _run("shift(float32, '')", y, back, Emulator(True))
    torch.testing.assert_close(back, y.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("a = cuda.shared.array(4, Sum); b = cuda.shared.array(4, Sum)", "a second shared array on one line"),
        ("cuda.atomic.add(y, 0, Sum(1))", "cuda.atomic.add, which the emulator does not know"),
        ("y[0] = cuda.warpsize", "cuda.warpsize, which the emulator does not know"),
        ("part = x[1:]", "a slice of an array"),
        ("tile = cuda.shared.array(x.shape[0], Sum)", "must be of constants"),
        ("y[0] = x[0, 0]", "does not compile for the emulator"),
    ],
)
def test_what_the_emulator_cannot_do_is_refused(tmp_path: Path, statement: str, message: str) -> None:
    source = tmp_path / "refused_numba.py"
    source.write_text(
        "from numba import cuda\n\n\ndef refused(Sum):\n    @cuda.jit\n    def kernel(x, y):\n"
        f"        {statement}\n\n    return kernel\n"
    )
    x = torch.zeros(64)
    with pytest.raises(EmulatorError, match=message) as error:
        _run("refused(float32)", x, x.clone(), Emulator(True), source)
    assert message == "does not compile for the emulator" or "refused" in str(error.value)


def test_a_kernel_is_compiled_once_per_machine() -> None:
    """The second process finds it on disk: Numba's own statistics say so."""
    code = (
        "import sys, torch; from pyconv.backends.emulator import Emulator\n"
        "from tests import test_numba_emulator as test\n"
        "x = torch.arange(64.0); test._run(\"shift(float32, '')\", x, x.clone(), Emulator(True))\n"
        "(name,) = [name for name in sys.modules if name.startswith('pyconv_emulated_shift')]\n"
        "print(sys.modules[name].entry.cache_hits)"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in "ab"
    )
    assert second.stdout.strip() == "1", first.stderr + second.stderr
