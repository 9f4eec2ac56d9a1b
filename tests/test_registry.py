"""The table of kernels, and the selection that reads it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pyconv
from pyconv import Conv2dProblem, backends, parse_problem, registry, selection
from pyconv.backends import cpu
from pyconv.plan import plan_for
from pyconv.problem import Problem
from pyconv.registry import Kernel, every_problem, find, kernels

PROBLEMS: list[Problem] = [
    parse_problem(text)
    for text in (
        "conv2d n2c4h9w9 k8r3s3 st1 pd1 f32 nchw",
        "conv2d n2c4h9w9 k8r3s3 st2 pd1 g2 f64 nhwc",
        "conv2d n2c6h9w9 k6r3s3 st1 pd1 g6 f32 nchw",
        "conv2d n2c6h9w9 k12r3s3 st1 pd1,0,2,1 g6 f32 nhwc",
        "conv2d n0c4h9w9 k8r3s3 f32 nchw",
        "conv2d n1c0h9w9 k8r3s3 f32 nchw",
        "conv2d n1c1h1w1 k1r1s1 f64 nchw",
        "conv2d n1c3h40w40 k5r7s5 st3x2 pd2x1 dl2 f32 nhwc",
        "maxpool2d n2c4h9w9 r3s3 st2 pd1 f32 nchw",
        "maxpool2d n2c4h9w9 r2s3 st2 dl2 ceil f64 nhwc",
        "maxpool2d n2c4h9w9 r3s3 st2 pd3,0,2,1 f32 nchw",
    )
]
OURS = [kernel for kernel in kernels() if kernel.backend != "aten"]


@pytest.fixture(autouse=True)
def no_choice_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about selection's own choices, whatever the environment says."""
    monkeypatch.setattr(selection, "_environment", ())
    monkeypatch.setattr(selection, "_backend", "")


@pytest.fixture
def extra_line() -> Iterator[Kernel]:
    """A line for the length of a test."""
    kernel = dataclasses.replace(find("conv2d.fprop.direct@cpu"), algorithm="spare", backend="numba")
    registry.register(kernel)
    selection.forget()
    yield kernel
    registry.unregister(kernel)
    selection.forget()


def _lines(problem: Problem, pass_: str) -> list[Kernel]:
    return kernels("conv2d" if isinstance(problem, Conv2dProblem) else "maxpool2d", pass_)


def _all_passes(problem: Problem) -> tuple[str, ...]:
    return registry.PASSES["conv2d" if isinstance(problem, Conv2dProblem) else "maxpool2d"]


def _passes(problem: Problem) -> tuple[str, ...]:
    """Those that every device has a line for; pooling by taps is CUDA's own."""
    return tuple(pass_ for pass_ in _all_passes(problem) if not pass_.endswith("_tap"))


# ---- The table and what is built ----


def test_ids_are_unique_and_found() -> None:
    ids = [kernel.id for kernel in kernels()]
    assert len(ids) == len(set(ids))
    assert all(find(kernel.id) is kernel for kernel in kernels())
    assert {kernel.name for kernel in kernels()} == {kernel.id.partition("@")[0] for kernel in kernels()}


def test_every_pass_has_ours_and_torchs() -> None:
    for operation, passes in registry.PASSES.items():
        for pass_ in passes:
            backends_of_pass = [kernel.backend for kernel in kernels(operation, pass_)]
            if pass_.endswith("_tap"):  # ours alone, and no pass that anything cannot do without
                assert "aten" not in backends_of_pass
                assert "cuda" in backends_of_pass, (operation, pass_)
                continue
            assert "aten" in backends_of_pass, (operation, pass_)
            assert "cpu" in backends_of_pass, (operation, pass_)


def _in_every_isa() -> dict[str, set[str]]:
    before = cpu.isa()
    compiled = {}
    try:
        for isa in cpu.isas():
            cpu.set_isa(isa)
            assert cpu.isa() == isa
            compiled[isa] = set(cpu.compiled())
    finally:
        cpu.set_isa(before)
    return compiled


@pytest.mark.parametrize("kernel", [k for k in kernels() if k.backend == "cpu"], ids=lambda k: k.id)
def test_every_cpu_line_is_compiled_for_every_instruction_set(kernel: Kernel) -> None:
    missing = [isa for isa, names in _in_every_isa().items() if kernel.name not in names]
    assert not missing, f"{kernel.id} has no compiled kernel for {', '.join(missing)}"


def test_every_compiled_kernel_has_a_line() -> None:
    table = {kernel.name for kernel in kernels() if kernel.backend == "cpu"}
    for isa, names in _in_every_isa().items():
        assert names <= table, f"{isa}: compiled, but in no line of the table: {sorted(names - table)}"


@pytest.mark.parametrize("kernel", OURS, ids=lambda k: k.id)
def test_every_line_of_ours_names_its_source(kernel: Kernel) -> None:
    root = Path(pyconv.__file__).resolve().parent.parent / "kernels"
    assert kernel.source
    assert (root / kernel.source).is_file(), f"{kernel.id}: kernels/{kernel.source} does not exist"


def test_aten_claims_nothing_of_ours() -> None:
    for kernel in kernels():
        if kernel.backend == "aten":
            assert not kernel.source
            assert not kernel.batch_invariant
            assert not kernel.proved


def test_the_best_instruction_set_is_last_and_unknown_ones_are_refused() -> None:
    assert cpu.isas()[0] == "baseline"
    with pytest.raises(ValueError, match="isa 'mmx' cannot run here; accepted: baseline"):
        cpu.set_isa("mmx")
    for isa in cpu.isas():
        code = "from pyconv.backends import cpu; print(cpu.isa())"
        out = subprocess.run(
            [sys.executable, "-c", code],
            env={**_environ(), "PYCONV_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.strip() == isa


def test_an_unknown_instruction_set_in_the_environment_is_a_reason_not_a_crash() -> None:
    code = "from pyconv.backends import cpu; print(cpu.unavailable('cpu'))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**_environ(), "PYCONV_ISA": "mmx"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "mmx" in out.stdout
    assert "baseline" in out.stdout


def _environ() -> dict[str, str]:
    import os

    return {
        name: value for name, value in os.environ.items() if name not in ("PYCONV_KERNELS", "PYCONV_BACKEND")
    }


# ---- Lines are checked ----


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"operation": "conv3d"}, "operation='conv3d'; accepted: conv2d, maxpool2d"),
        ({"pass_": "gather"}, "pass_='gather'; accepted: fprop, dgrad, wgrad, bgrad"),
        ({"backend": "tpu"}, "backend='tpu'; accepted: cpu, cuda, numba, numba-cpu, aten"),
        ({"nonfinite": "never"}, "nonfinite='never'; accepted: local, padding, tile"),
        ({"dtypes": ("f8",)}, "dtypes=('f8',); accepted: f32, f64, f16, bf16"),
        ({"dtypes": ()}, "dtypes=(); accepted"),
        ({"layouts": ("chwn",)}, "layouts=('chwn',); accepted: nchw, nhwc"),
    ],
)
def test_a_wrong_line_is_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=r"^Kernel ") as error:
        dataclasses.replace(find("conv2d.fprop.direct@cpu"), **changes)  # type: ignore[arg-type]
    assert named in str(error.value)


def test_an_id_is_taken_once(extra_line: Kernel) -> None:
    assert find("conv2d.fprop.spare@numba") is extra_line
    with pytest.raises(ValueError, match=r"conv2d\.fprop\.spare@numba is in the table already"):
        registry.register(extra_line)


def test_an_unknown_id_names_the_nearest() -> None:
    with pytest.raises(KeyError, match=r"conv2d\.fprop\.direct@cpu"):
        find("conv2d.fprop.dirct@cpu")
    with pytest.raises(KeyError, match="nearest: none"):
        find("#")


def test_supports_gives_a_reason() -> None:
    line = dataclasses.replace(
        find("conv2d.fprop.direct@cpu"),
        dtypes=("f32",),
        layouts=("nchw",),
        restriction=lambda p: "odd" if p.n % 2 else None,
    )
    problem = parse_problem("conv2d n2c4h9w9 k8r3s3 f32 nchw")
    assert line.supports(problem) is None
    assert line.supports(dataclasses.replace(problem, dtype="f64")) == "dtype f64 (takes f32)"
    assert line.supports(dataclasses.replace(problem, layout="nhwc")) == "layout nhwc (takes nchw)"
    assert line.supports(dataclasses.replace(problem, n=3)) == "odd"
    assert every_problem(problem) is None


# ---- Selection ----


def _why_not(kernel: Kernel, problem: Problem) -> str | None:
    return backends.unavailable(kernel.backend, "cpu") or kernel.supports(problem)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_aten_is_never_chosen_where_ours_can(problem: Problem) -> None:
    for pass_ in _passes(problem):
        ours = [k.id for k in _lines(problem, pass_) if k.backend == "cpu" and k.supports(problem) is None]
        chosen = selection.select(problem, pass_)
        assert ours, f"no line of ours supports {pass_} of {problem}"
        assert chosen.id in ours


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_16_bits_are_ours_as_32_are(dtype: str) -> None:
    for problem in PROBLEMS:
        for pass_ in _passes(problem):
            chosen = selection.select(dataclasses.replace(problem, dtype=dtype), pass_)
            assert chosen == selection.select(dataclasses.replace(problem, dtype="f32"), pass_)
            assert chosen.backend == "cpu"


def test_selection_does_not_look_at_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    chosen = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            selection.forget()
            chosen.append([selection.select(p, pass_).id for p in PROBLEMS for pass_ in _passes(p)])
    finally:
        torch.set_num_threads(before)
        selection.forget()
    assert chosen[0] == chosen[1] == chosen[2]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_explain_covers_every_line(problem: Problem) -> None:
    explained = pyconv.explain(problem)
    assert tuple(explained) == _all_passes(problem)
    for pass_, lines in explained.items():
        assert [choice.kernel for choice in lines] == _lines(problem, pass_)
        chosen = [selection.select(problem, pass_)] if pass_ in _passes(problem) else []
        assert [choice.kernel for choice in lines if choice.chosen] == chosen
        for choice in lines:
            reason = _why_not(choice.kernel, problem)
            if choice.chosen:
                assert choice.reason.startswith("chosen: ")
            elif reason:
                assert choice.reason == f"not able: {reason}"
            else:
                assert choice.reason.startswith("not chosen: ")


def test_explain_knows_unavailable_backends(extra_line: Kernel) -> None:
    reasons = {choice.kernel.id: choice.reason for choice in pyconv.explain(PROBLEMS[0])["fprop"]}
    assert reasons[extra_line.id] == "not able: runs on cuda, not on cpu"
    on_cuda = {choice.kernel.id: choice for choice in pyconv.explain(PROBLEMS[0], "cuda")["fprop"]}
    assert on_cuda["conv2d.fprop.direct@cpu"].reason == "not able: runs on cpu, not on cuda"
    assert backends.unavailable("cpu", "cpu") is None


def test_a_wrong_pass_is_refused() -> None:
    with pytest.raises(ValueError, match="pass 'gather' is none of fprop, dgrad, wgrad, bgrad"):
        selection.choices(PROBLEMS[0], "gather")


def test_where_nothing_fits_every_reason_is_given() -> None:
    # Padding per side, which torch's pooling cannot do, of a plane whose places are no 32-bit integers.
    problem = dataclasses.replace(PROBLEMS[-1], h=2**16, w=2**16)
    with pytest.raises(RuntimeError, match="no kernel can do fprop of") as error:
        selection.select(problem, "fprop")
    for kernel in kernels("maxpool2d", "fprop"):
        if kernel.backend in ("cpu", "aten"):
            assert f"{kernel.id}: not able: {kernel.supports(problem)}" in str(error.value)


# ---- use ----


@pytest.mark.parametrize(
    "kernel",
    [kernel for kernel in kernels() if not backends.unavailable(kernel.backend, "cpu")],
    ids=lambda k: k.id,
)
def test_use_takes_what_it_is_asked_for(kernel: Kernel) -> None:
    fitting = [
        p for p in PROBLEMS if kernel.pass_ in _passes(p) and kernel in _lines(p, kernel.pass_)
        if kernel.supports(p) is None
    ]  # fmt: skip
    assert fitting, f"no problem of the list fits {kernel.id}"
    with pyconv.use(kernel.id):
        assert all(selection.select(p, kernel.pass_) is kernel for p in fitting)
    with pyconv.use(kernel.name):  # of the backends that have it, the one that is taken otherwise too
        assert all(selection.select(p, kernel.pass_).name == kernel.name for p in fitting)
    with pyconv.use(kernel.backend):
        assert all(selection.select(p, kernel.pass_).backend == kernel.backend for p in fitting)
    with pyconv.use(kernel.algorithm):
        assert all(selection.select(p, kernel.pass_).algorithm == kernel.algorithm for p in fitting)


def test_use_falls_through_where_nothing_fits() -> None:
    ungrouped = PROBLEMS[0]
    usual = selection.select(ungrouped, "fprop")
    with pyconv.use("depthwise"):
        assert selection.select(ungrouped, "fprop") is usual
    with pyconv.use("depthwise", "aten"):
        assert selection.select(ungrouped, "fprop").backend == "aten"
    with pyconv.use("conv2d.fprop.aten"):
        assert selection.select(ungrouped, "fprop").backend == "aten"
        assert selection.select(ungrouped, "dgrad").backend == "cpu"


def test_use_nests_ends_and_survives_exceptions() -> None:
    problem = PROBLEMS[0]
    usual = selection.select(problem, "fprop")
    with pyconv.use("aten"):
        with pyconv.use("direct"):
            assert selection.select(problem, "fprop").algorithm == "direct"
        assert selection.select(problem, "fprop").backend == "aten"
    with pytest.raises(ZeroDivisionError), pyconv.use("aten"):
        raise ZeroDivisionError
    assert selection.select(problem, "fprop") is usual


def test_use_refuses_unknown_names() -> None:
    for name in ("winogard", "conv2d.fprop", "", "cpu@direct"):
        with (
            pytest.raises(ValueError, match="is no algorithm, backend, name or id"),
            pyconv.use("aten", name),
        ):
            pass
    assert selection.forced() == ()


def test_use_is_of_this_thread_only() -> None:
    seen: list[tuple[str, ...]] = []
    with pyconv.use("aten"):
        thread = threading.Thread(target=lambda: seen.append(selection.forced()))
        thread.start()
        thread.join()
        assert selection.forced() == ("aten",)
    assert seen == [()]


def test_use_reaches_the_calls_and_their_backward() -> None:
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, requires_grad=True)
    with pyconv.use("aten"):
        y = pyconv.conv2d(x, w)
        problem = Conv2dProblem(1, 2, 5, 5, 3, 3, 3)
        plan = plan_for(problem, "cpu")
    y.sum().backward()  # outside the block: still what the forward asked for
    assert {pass_: kernel.backend for pass_, kernel in plan.kernels.items()} == {
        "fprop": "aten",
        "dgrad": "aten",
        "wgrad": "aten",
    }


def test_the_environment_chooses_and_use_overrides_it() -> None:
    code = (
        "import pyconv; from pyconv import selection as s;"
        "p = pyconv.parse_problem('conv2d n1c2h5w5 k3r3s3');"
        "print(s.select(p, 'fprop').id, end=' ')\n"
        "with pyconv.use('direct'): print(s.select(p, 'fprop').id)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**_environ(), "PYCONV_KERNELS": "depthwise,aten"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split() == ["conv2d.fprop.aten@aten", "conv2d.fprop.direct@cpu"]


def test_an_unknown_name_in_the_environment_is_refused() -> None:
    code = "import torch, pyconv; pyconv.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**_environ(), "PYCONV_KERNELS": "winogard"},
        capture_output=True,
        text=True,
    )
    assert out.returncode != 0
    assert "winogard" in out.stderr
    out = subprocess.run(
        [sys.executable, "-m", "pyconv", "explain", "conv2d n1c1h5w5 k1r3s3 f32 nchw"],
        env={**_environ(), "PYCONV_KERNELS": "im2col_gem"},
        capture_output=True,
        text=True,
    )
    assert out.returncode == 2
    assert out.stderr.startswith(
        "error: PYCONV_KERNELS: 'im2col_gem' is no algorithm, backend, name or id of the kernel table; "
        "did you mean im2col_gemm"
    )
    assert out.stderr.count("\n") == 1


# ---- What a line states ----


def _line(**claims: object) -> Kernel:
    return Kernel("conv2d", "fprop", "spare", "cuda", ("f32",), **claims)  # type: ignore[arg-type]


def test_a_line_states_its_own_bound_with_the_reason() -> None:
    assert _line().error_bound is None
    assert _line(accuracy="1e-3 (tf32)").error_bound == 1e-3
    assert _line(accuracy="0.5e-5 (points 0, 1, -1)").error_bound == 0.5e-5
    for unclear in ("tf32", "1e-3", "good", "(tf32) 1e-3"):
        with pytest.raises(ValueError, match=r"accuracy=.*accepted: 'standard', or a relative L2 error"):
            _line(accuracy=unclear)
    with pytest.raises(ValueError, match="a bound for one dtype"):
        dataclasses.replace(_line(accuracy="1e-3 (tf32)"), dtypes=("f32", "f64"))


def test_a_line_adds_problems_of_its_own_operation_only() -> None:
    assert _line(problems=("conv2d n1c3h5w5 k2r3s3",)).problems
    with pytest.raises(ValueError, match="'maxpool2d n1c3h5w5 r2s2' is not one of conv2d"):
        _line(problems=("maxpool2d n1c3h5w5 r2s2",))
