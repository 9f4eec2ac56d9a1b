"""The switch of algorithm precision: which lines it lets selection take, and where it holds."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import pytest
import torch

import pyconv
from pyconv import registry, selection, switches
from pyconv.backends import cuda, emulator, gpu
from pyconv.plan import plan_for
from pyconv.problem import parse_problem
from pyconv.registry import Kernel

LAYER = "conv2d n8c64h56w56 k64r3s3 st1 pd1 f32 nhwc"


@pytest.fixture(autouse=True)
def _default_after() -> Iterator[None]:
    yield
    pyconv.set_algorithm_precision("standard")


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Selection as on a machine with a GPU, TF32 off; nothing is launched."""
    monkeypatch.setattr(gpu, "missing", lambda: None)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    selection.forget()
    yield
    torch.backends.cudnn.conv.fp32_precision = before
    selection.forget()


def _able(precision: str, pass_: str = "fprop") -> set[str]:
    with pyconv.algorithm_precision(precision):
        lines = selection.choices(parse_problem(LAYER), pass_, "cuda")
    return {line.kernel.algorithm for line in lines if not line.reason.startswith("not able")}


@pytest.mark.parametrize("pass_", ["fprop", "dgrad"])
def test_each_precision_adds_to_the_one_before(on_a_gpu: None, pass_: str) -> None:
    exact, standard, fast = (_able(precision, pass_) for precision in switches.PRECISIONS)
    assert standard - exact == {"winograd_2x2", "winograd_2x2_fused", "implicit_gemm_3xtf32"}
    assert fast - standard == {"winograd_4x4"}
    assert exact < standard < fast
    assert not any("tf32" in name and "3xtf32" not in name for name in fast), (
        "TF32 is torch's switch, not this one"
    )


def test_a_line_of_a_bound_is_never_chosen_by_default(on_a_gpu: None) -> None:
    for kernel in registry.kernels("conv2d"):
        if kernel.error_bound is None or "tf32" in kernel.accuracy:
            continue
        with pyconv.use(kernel.id):
            assert selection.select(parse_problem(LAYER), kernel.pass_, "cuda") is not kernel
            with pyconv.algorithm_precision("fast"):
                assert selection.select(parse_problem(LAYER), kernel.pass_, "cuda") is kernel


def test_every_stated_bound_is_one_that_fast_takes() -> None:
    for kernel in registry.kernels():
        if kernel.error_bound is not None and "tf32" not in kernel.accuracy:
            assert kernel.error_bound <= switches.FAST_ERROR, kernel.id


def test_explain_says_what_the_switch_decides(on_a_gpu: None) -> None:
    def reason(algorithm: str) -> str:
        lines = pyconv.explain(LAYER, "cuda")["fprop"]
        return next(line.reason for line in lines if line.kernel.algorithm == algorithm)

    assert "'standard', and its error may be 3e-06: takes 'fast'" in reason("winograd_4x4")
    pyconv.set_algorithm_precision("exact")
    for algorithm in ("winograd_2x2", "winograd_2x2_fused", "winograd_4x4"):
        assert "'exact', and this is winograd" in reason(algorithm)


def test_three_products_of_tf32_are_for_those_who_ask(on_a_gpu: None) -> None:
    name, problem = "conv2d.fprop.implicit_gemm_3xtf32@cuda", parse_problem(LAYER)
    reasons = {line.kernel.id: line.reason for line in pyconv.explain(LAYER, "cuda")["fprop"]}
    assert reasons[name].startswith("not chosen: taken only when asked for")
    with pyconv.use("implicit_gemm_3xtf32"):
        assert selection.select(problem, "fprop", "cuda").id == name
        with pyconv.algorithm_precision("exact"):
            assert selection.select(problem, "fprop", "cuda").id != name


def test_a_worse_bound_is_beyond_fast(on_a_gpu: None) -> None:
    line = registry.find("conv2d.fprop.winograd_4x4@cuda")
    worse = dataclasses.replace(line, algorithm="spare", accuracy="2e-5 (test)")
    registry.register(worse)
    try:
        with pyconv.algorithm_precision("fast"):
            reasons = {c.kernel: c.reason for c in selection.choices(parse_problem(LAYER), "fprop", "cuda")}
        assert "'fast', and its error may be 2e-05, above 1e-05" in reasons[worse]
    finally:
        registry.unregister(worse)
        selection.forget()


def test_the_switch_is_global_and_the_block_of_its_thread() -> None:
    assert pyconv.get_algorithm_precision() == "standard"
    pyconv.set_algorithm_precision("fast")
    seen: list[str] = []
    with pyconv.algorithm_precision("exact"):
        pyconv.set_algorithm_precision("standard")
        assert pyconv.get_algorithm_precision() == "exact", "the block wins until it ends"
        thread = threading.Thread(target=lambda: seen.append(pyconv.get_algorithm_precision()))
        thread.start()
        thread.join()
    assert seen == ["standard"]
    assert pyconv.get_algorithm_precision() == "standard"
    with pytest.raises(ZeroDivisionError), pyconv.algorithm_precision("fast"):
        raise ZeroDivisionError
    assert pyconv.get_algorithm_precision() == "standard"


@pytest.mark.parametrize("wrong", ["high", "", None, 1, ["fast"]])
def test_another_name_is_refused(wrong: object) -> None:
    with pytest.raises(
        ValueError, match=r"set_algorithm_precision\(\): argument 'precision' is .*; accepted: exact"
    ):
        pyconv.set_algorithm_precision(wrong)  # type: ignore[arg-type]
    with (
        pytest.raises(ValueError, match=r"algorithm_precision\(\): argument"),
        pyconv.algorithm_precision(wrong),
    ):  # type: ignore[arg-type]
        pass
    assert pyconv.get_algorithm_precision() == "standard"


def test_the_switch_is_no_part_of_what_does_not_heed_it() -> None:
    pool, convolution = parse_problem("maxpool2d n1c2h4w4 r2s2"), parse_problem("conv2d n1c2h4w4 k2r3s3")
    before = plan_for(pool, "cpu"), plan_for(convolution, "cpu")
    with pyconv.algorithm_precision("exact"):
        assert plan_for(pool, "cpu") is before[0]
        assert plan_for(convolution, "cpu") is not before[1]


@pytest.mark.skipif(emulator.unavailable() is not None, reason=f"no emulator: {emulator.unavailable()}")
def test_calls_and_their_backward_obey_the_switch() -> None:
    x, w = torch.randn(1, 4, 6, 6, requires_grad=True), torch.randn(4, 4, 3, 3, requires_grad=True)
    problem = parse_problem("conv2d n1c4h6w6 k4r3s3 pd1")
    ran: dict[str, dict[str, Kernel]] = {}
    with cuda.emulated(checked=False), pyconv.use("winograd_4x4", "winograd_2x2", "direct_naive"):
        for precision in ("fast", "standard", "exact", "fast"):  # also after another was remembered
            with pyconv.algorithm_precision(precision):
                y = pyconv.conv2d(x, w, padding=1)
                plan = plan_for(problem, "cpu")
            y.sum().backward()  # outside the block: the precision of the forward
            ran[precision] = plan.kernels
    assert [ran[precision]["fprop"].algorithm for precision in ("fast", "standard", "exact")] == [
        "winograd_4x4",
        "winograd_2x2",
        "direct_naive",
    ]
    for kernels in ran.values():
        assert kernels["dgrad"].algorithm == kernels["fprop"].algorithm
