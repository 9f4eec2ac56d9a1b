"""What is chosen of backend cuda: TF32, an argmax of one byte, named kernels. On the emulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import pyconv
from pyconv import ops, parse_problem, registry, selection
from pyconv.backends import cuda, gpu
from pyconv.backends.program import Program
from pyconv.plan import plan_for
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel, find
from tests.probes import CONV, step


@pytest.fixture
def emulated() -> Any:
    with cuda.emulated(checked=False):
        yield


# ---- An argmax of one byte ----


def _argmax_of(x: torch.Tensor, window: int = 3, pad: int = 1) -> torch.dtype:
    y = pyconv.max_pool2d(x, window, 2, pad)
    (argmax,) = y.grad_fn.saved_tensors  # type: ignore[union-attr]
    return argmax.dtype  # type: ignore[no-any-return]


def test_a_pooling_to_be_differentiated_keeps_a_byte_a_window_where_that_is_asked_for(emulated: None) -> None:
    x = torch.randn(2, 3, 9, 8, requires_grad=True)
    assert _argmax_of(x) == torch.int32, "the CPU's kernels keep places"
    with pyconv.use("cuda"):
        assert _argmax_of(x) == torch.uint8
        assert _argmax_of(x, 20, 10) == torch.int32, "a window of more than 255 taps"
    for name in ("aten", "maxpool2d.fprop_argmax.direct@cuda"):
        with pyconv.use(name):
            assert _argmax_of(x) == torch.int32, name
    with pyconv.use("cuda"):
        y, places = pyconv.max_pool2d(x, 3, 2, 1, return_indices=True)
    want = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert torch.equal(y, want[0])
    assert torch.equal(places, want[1])


@pytest.mark.parametrize("dilation", [1, 2])
def test_derivatives_by_tap_of_every_order(emulated: None, dilation: int) -> None:
    x = torch.randn(2, 2, 7, 6, dtype=torch.float64, requires_grad=True)

    def pool(x: torch.Tensor) -> torch.Tensor:
        return pyconv.max_pool2d(x, 3, (2, 1), 1, dilation)  # type: ignore[no-any-return]

    with pyconv.use("cuda"):
        assert pool(x).grad_fn.saved_tensors[0].dtype == torch.uint8  # type: ignore[union-attr]
        # Batched gradients come in disguise, and go to the registered operators, which know places only.
        assert torch.autograd.gradcheck(pool, x, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(pool, x)


# ---- torch's TF32 switch ----


@pytest.fixture
def tf32_line() -> Iterator[Kernel]:
    naive = find("conv2d.fprop.direct_naive@cuda")
    line = dataclasses.replace(
        naive, algorithm="im2col_gemm_tf32", dtypes=("f32",), accuracy="1e-3 (tf32)", program=_in_tf32
    )
    registry.kernels()  # reads the tables
    before = dict(registry._table)
    registry._table[line.id] = line
    selection.forget()
    yield line
    registry._table.clear()  # with every line at its place: the order says which of two equals is taken
    registry._table.update(before)
    selection.forget()


def _in_tf32(problem: Problem) -> Program:
    """Not a convolution: what shows that this line ran."""
    return Program((step("probe_bias", ("bias", "y"), threads=problem.y_size),))


@pytest.fixture
def switch() -> Iterator[Any]:
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    yield conv
    conv.fp32_precision = before


def test_tf32_is_used_where_torch_would_use_it(emulated: None, tf32_line: Kernel, switch: Any) -> None:
    # Five channels: not a first layer, which keeps to float32.
    x, w, bias = torch.randn(1, 5, 3, 3), torch.randn(2, 5, 3, 3), torch.full((2,), 5.0)
    exact = F.conv2d(x, w, bias, padding=1)
    with pyconv.use("cuda"):
        for precision in ("tf32", "ieee", "tf32", "none"):
            switch.fp32_precision = precision
            used = torch.equal(pyconv.conv2d(x, w, bias, padding=1), torch.full_like(exact, 5.0))
            assert used == (precision == "tf32"), precision
            choice = {c.kernel.id: c for c in pyconv.explain("conv2d n1c5h3w3 k2r3s3 pd1 f32 nchw")["fprop"]}
            reason = choice[tf32_line.id].reason
            assert reason.startswith("chosen" if used else "not able: torch's switch for TF32"), reason


def test_the_switch_of_a_forward_holds_for_its_backward(
    emulated: None, tf32_line: Kernel, switch: Any
) -> None:
    problem = parse_problem("conv2d n1c5h3w3 k2r3s3 pd1 f32 nchw")
    switch.fp32_precision = "tf32"
    with pyconv.use("cuda"):
        plan = plan_for(problem, "cpu")
        switch.fp32_precision = "ieee"
        assert plan_for(problem, "cpu") is not plan
    plan.launch("fprop", torch.ones(1, 5, 3, 3), torch.ones(2, 5, 3, 3), torch.ones(2))
    assert plan.kernels["fprop"] is tf32_line


def test_the_switch_is_no_part_of_what_does_not_heed_it(switch: Any) -> None:
    for text, device in (("conv2d n1c2h3w3 k2r3s3 f64 nchw", "cuda"), ("conv2d n1c2h3w3 k2r3s3", "cpu")):
        plans = []
        for precision in ("tf32", "ieee"):
            switch.fp32_precision = precision
            plans.append(plan_for(parse_problem(text), device))
        assert plans[0] is plans[1]


# ---- Selection on a GPU ----


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Selection as on a machine with a GPU; nothing is launched."""
    monkeypatch.setattr(gpu, "missing", lambda: None)
    selection.forget()
    yield
    selection.forget()


def test_ours_is_preferred_on_a_gpu_and_torchs_is_the_last_resort(on_a_gpu: None) -> None:
    for text in ("conv2d n2c16h9w9 k8r3s3 pd1", "conv2d n2c8h9w9 k8r3s3 g8", "conv2d n2c3h9w9 k8r7s7 st2"):
        for dtype in ("f32", "f64", "f16", "bf16"):
            for pass_ in ("fprop", "dgrad", "wgrad"):
                chosen = selection.select(parse_problem(f"{text} {dtype} nchw"), pass_, "cuda")
                assert chosen.backend == "cuda", (text, dtype, pass_)
    lines = selection.choices(parse_problem("conv2d n2c8h9w9 k8r3s3 g8"), "fprop", "cuda")
    assert next(c for c in lines if c.chosen).kernel.algorithm == "depthwise"
    with pyconv.use("aten"):
        assert selection.select(CONV, "fprop", "cuda").backend == "aten"
    with pyconv.use("direct_naive"):
        assert selection.select(CONV, "fprop", "cuda").id == "conv2d.fprop.direct_naive@cuda"


def test_the_order_of_preference_names_each_algorithm_once() -> None:
    problem = parse_problem("conv2d n2c16h9w9 k8r3s3")
    assert isinstance(problem, Conv2dProblem)
    able = [k for k in registry.kernels("conv2d", "fprop") if k.backend == "cuda" and not k.supports(problem)]
    names = [name for name, _ in selection._cuda_preference(problem, able)]
    assert sorted(names) == sorted(kernel.algorithm for kernel in able)
    assert len(names) == len(set(names)) > 5


# ---- The registered operators ----


def test_an_operator_runs_the_kernel_it_names(emulated: None) -> None:
    x, w = torch.randn(2, 4, 6, 5), torch.randn(3, 4, 3, 3)
    where = ((1, 1), (1, 1, 1, 1), (1, 1), 1, True)
    fprop, dgrad = ops._named("conv2d_fprop", "cuda"), ops._named("conv2d_dgrad", "cuda")
    y = fprop(x, w, None, *where, "conv2d.fprop.direct_naive")
    torch.testing.assert_close(y, F.conv2d(x, w, padding=1))
    assert y.is_contiguous(memory_format=torch.channels_last)
    dx = dgrad(y, w, (6, 5), *where, "conv2d.dgrad.direct_naive")
    torch.testing.assert_close(dx, torch.nn.grad.conv2d_input(x.shape, w, y, padding=1))
    for name, message in (
        ("conv2d.fprop.none", "no conv2d.fprop kernel 'conv2d.fprop.none' of backend cuda"),
        ("conv2d.dgrad.direct_naive", "no conv2d.fprop kernel 'conv2d.dgrad.direct_naive'"),
        ("conv2d.fprop.depthwise", "conv2d.fprop.depthwise@cuda cannot do 'conv2d .*': .*not depthwise"),
    ):
        with pytest.raises(RuntimeError, match=message):
            fprop(x, w, None, *where, name)


def test_every_operator_is_registered_for_cuda() -> None:
    for name in ops.SCHEMAS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pyconv::{name}", "CUDA")
