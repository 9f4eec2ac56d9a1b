"""Which backend runs on the CPU: the one chosen for the process, and what stands in for a missing library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyconv
from pyconv import backends, parse_problem, selection
from pyconv.backends import numba_cpu
from tests.test_numba_cpu import run

CONV = parse_problem("conv2d n2c4h9w9 k8r3s3 st1 pd1 f32 nchw")
POOL = parse_problem("maxpool2d n2c4h9w9 r3s3 st2 pd1 f32 nchw")

# ---- Selection ----


@pytest.fixture
def chosen_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def choose(name: str) -> None:
        monkeypatch.setattr(selection, "_backend", name)
        selection.forget()

    monkeypatch.setattr(selection, "_environment", ())
    choose("")
    yield choose
    monkeypatch.undo()
    selection.forget()


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, chosen_backend: object) -> None:
    monkeypatch.setattr(backends.cpu, "load", lambda: "the library was not built")


def test_the_backend_is_chosen_for_the_process(chosen_backend: Callable[[str], None]) -> None:
    chosen_backend("numba-cpu")
    for problem, passes in ((CONV, ("fprop", "dgrad", "wgrad", "bgrad")), (POOL, ("fprop_argmax", "dgrad"))):
        for pass_ in passes:
            line = next(each for each in selection.choices(problem, pass_) if each.chosen)
            assert (line.kernel.backend, line.reason) == ("numba-cpu", "chosen: PYCONV_BACKEND is numba-cpu")
    reasons = {line.kernel.id: line.reason for line in selection.choices(CONV, "fprop")}
    assert reasons["conv2d.fprop.direct@cpu"] == "not chosen: PYCONV_BACKEND is numba-cpu"
    with pyconv.use("direct"):  # an algorithm by name: this backend's
        assert selection.select(CONV, "fprop").backend == "numba-cpu"
    with pyconv.use("im2col_gemm"):
        assert selection.select(CONV, "fprop").id == "conv2d.fprop.im2col_gemm@cpu"
    half = parse_problem("conv2d n2c4h9w9 k8r3s3 st1 pd1 f16 nchw")
    assert selection.select(half, "fprop").backend == "cpu", "which it has no kernel for"


def test_torchs_own_kernels_can_be_chosen_for_the_process(chosen_backend: Callable[[str], None]) -> None:
    chosen_backend("aten")
    assert selection.select(CONV, "fprop").backend == "aten"
    with_sides = parse_problem("maxpool2d n1c3h8w9 r3s3 st2 pd0,1,0,1 f32 nchw")
    assert selection.select(with_sides, "fprop").backend == "cpu", "which torch cannot do"
    chosen_backend("cuda")  # on tensors of the CPU: as usual
    assert selection.select(CONV, "fprop").backend == "cpu"


def test_a_backend_that_is_not_there_is_an_error(
    chosen_backend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_cpu, "_missing", lambda: "numba is not installed (pip install numba)")
    chosen_backend("numba-cpu")
    with pytest.raises(
        RuntimeError, match="PYCONV_BACKEND=numba-cpu is not available: numba is not installed"
    ):
        selection.select(CONV, "fprop")
    chosen_backend("opencl")
    with pytest.raises(
        ValueError, match="PYCONV_BACKEND is 'opencl'; accepted: cpu, cuda, numba, numba-cpu, aten"
    ):
        selection.select(CONV, "fprop")


def test_the_environment_is_read() -> None:
    code = "import pyconv; print(pyconv.explain('conv2d n1c2h5w5 k3r3s3'))"
    assert "* conv2d.fprop.direct@numba-cpu        chosen" in run(code, PYCONV_BACKEND="numba-cpu")


def test_it_waits_behind_the_library(chosen_backend: object) -> None:
    reasons = {line.kernel.id: line.reason for line in selection.choices(CONV, "fprop")}
    assert reasons["conv2d.fprop.direct@numba-cpu"] == (
        "not chosen: backend numba-cpu is taken only when asked for, or where backend cpu is not available, "
        "on cpu"
    )


def test_what_a_user_is_told(no_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = selection.settings(CONV, "cpu")
    line = selection.select(CONV, "fprop")
    assert line.backend == "numba-cpu"
    assert selection.substitute(line, "cpu", settings) == (
        "backend numba-cpu takes the place of backend cpu: the library was not built"
    )
    asked = settings._replace(names=("numba-cpu",))
    assert selection.substitute(line, "cpu", asked) is None
    half = parse_problem("conv2d n2c4h9w9 k8r3s3 st1 pd1 f16 nchw")
    assert selection.substitute(selection.select(half, "fprop"), "cpu", settings) == (
        "torch's own kernels run: the library was not built"
    )
    monkeypatch.setattr(numba_cpu, "_missing", lambda: "numba is not installed")
    selection.forget()
    line = selection.select(CONV, "fprop")
    assert line.backend == "aten"
    assert selection.substitute(line, "cpu", settings) == (
        "torch's own kernels run: the library was not built; numba is not installed"
    )


# ---- pyconv without the C++ library ----

#: Before anything of pyconv is imported, the library cannot be found.
NO_LIBRARY = """
import pathlib, warnings
exists = pathlib.Path.exists
pathlib.Path.exists = lambda self, **more: self.name != "libpyconv_cpu.so" and exists(self, **more)
import torch
torch.set_num_threads(1)
"""


def test_everything_works_without_the_library() -> None:
    code = NO_LIBRARY + (
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    import pyconv, sys\n"
        "    assert 'numba' not in sys.modules\n"
        "    net = torch.nn.Sequential(pyconv.nn.Conv2d(3, 8, 3, padding=1), pyconv.nn.MaxPool2d(2))\n"
        "    x = torch.randn(2, 3, 8, 8, requires_grad=True)\n"
        "    assert not said\n"
        "    for _ in range(2): net(x).sum().backward()\n"
        "(warning,) = [w for w in said if 'pyconv' in str(w.message)]\n"
        "print(warning.message)\n"
        "like = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.MaxPool2d(2))\n"
        "like.load_state_dict(net.state_dict())\n"
        "torch.testing.assert_close(net(x), like(x))\n"
        "compiled = torch.compile(net, fullgraph=True, backend='aot_eager')\n"
        "assert torch.equal(compiled(x), net(x))\n"
        "grad = lambda f: torch.autograd.grad(f(x).square().sum(), x)[0]\n"
        "torch.testing.assert_close(grad(compiled), grad(like))\n"
        "(g,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)\n"
        "(gg,) = torch.autograd.grad(g.square().sum(), x)\n"
        "(h,) = torch.autograd.grad(like(x).square().sum(), x, create_graph=True)\n"
        "torch.testing.assert_close(gg, torch.autograd.grad(h.square().sum(), x)[0])\n"
        "y = torch.ops.pyconv.conv2d_bgrad(torch.ones(2, 3, 4, 4), False, 'conv2d.bgrad.direct')\n"
        "assert y.tolist() == [32, 32, 32]\n"
        "try: torch.ops.pyconv.conv2d_bgrad(torch.ones(2, 3, 4, 4), False, 'conv2d.bgrad.mine')\n"
        "except RuntimeError as error: print(error)\n"
    )
    told, refused = run(code).splitlines()
    assert told.startswith(
        "pyconv: backend numba-cpu takes the place of backend cpu: libpyconv_cpu.so was not"
    )
    assert refused == "pyconv: no conv2d.bgrad kernel 'conv2d.bgrad.mine' of backend numba-cpu in the table"


def test_without_library_and_numba_torch_computes_and_it_is_said() -> None:
    code = NO_LIBRARY + (
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'numba' else find(name, *more)\n"
        "import pyconv\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(2): pyconv.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))\n"
        "print(*(w.message for w in said), sep='\\n')"
    )
    (line,) = run(code).splitlines()
    assert line.startswith("pyconv: torch's own kernels run: libpyconv_cpu.so was not built")
    assert line.endswith("numba is not installed (pip install numba)")


# ---- Set-up without a compiler ----


@pytest.mark.skipif(
    not (Path(sys.executable).parent / "cmake").exists(), reason="cmake is not in this environment"
)
def test_setup_goes_on_without_a_compiler(tmp_path: Path) -> None:
    root = Path(pyconv.__file__).resolve().parent.parent
    library = tmp_path / "pyconv" / "lib" / "libpyconv_cpu.so"
    for folder in ("pyconv/lib", "kernels"):
        (tmp_path / folder).mkdir(parents=True)
    for name in (
        "setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "pyconv/__init__.py",
        "pyconv/_version.py",
    ):  # fmt: skip
        (tmp_path / name).write_bytes((root / name).read_bytes())
    (tmp_path / "empty").mkdir()
    library.write_text("of older sources")
    bare = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    bare["PATH"] = str(tmp_path / "empty")

    def set_up(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        return subprocess.run(command, cwd=tmp_path, env={**bare, **more}, capture_output=True, text=True)

    done = set_up()
    assert done.returncode == 0, done.stderr
    assert "warning: pyconv's native CPU library was not built" in done.stderr
    assert "Numba kernels" in done.stderr
    assert not library.exists(), "one of older sources is left"
    assert set_up(PYCONV_REQUIRE_NATIVE="1").returncode != 0
