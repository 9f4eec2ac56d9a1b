"""Kernels bound by backend cuda, without a GPU: operands, threads, errors, on the emulator."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import pyconv
from pyconv import backends, parse_problem
from pyconv.backends import cuda
from pyconv.backends.emulator import EmulatorError
from pyconv.backends.program import Program
from pyconv.backends.signature import signature
from pyconv.problem import Problem
from tests.probes import CONV, SAME, line, step, two_steps


@pytest.fixture
def emulated() -> Any:
    with cuda.emulated(checked=False):
        yield


# ---- Bound kernels ----


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_several_steps_share_a_workspace(emulated: None, dtype: str, layout: str) -> None:
    problem = dataclasses.replace(SAME, dtype=dtype, layout=layout)
    bound = backends.bind(line(two_steps), problem)
    for _ in range(3):
        x = (
            torch.randn(problem.x_shape)
            .to(problem.torch_dtype)
            .contiguous(memory_format=problem.memory_format)
        )
        y = bound(x)
        assert torch.equal(y, x * 2 + 1 + problem.n)
        assert y.is_contiguous(memory_format=problem.memory_format)


def _views(x: torch.Tensor) -> dict[str, torch.Tensor]:
    room = torch.full((x.numel() + 3,), float("nan"))
    shifted = room[1 : 1 + x.numel()].view(x.shape)
    shifted.copy_(x)
    wide = torch.full((*x.shape[:3], 2 * x.shape[3]), float("nan"))
    wide[..., ::2] = x
    return {
        "misaligned": shifted,
        "strided": wide[..., ::2],
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "negative": torch._neg_view(-x),
        "zeros without data": torch._efficientzerotensor(x.shape),
        "of a parameter": torch.nn.Parameter(x.clone()),
    }


@pytest.mark.parametrize("name", list(_views(torch.zeros(1, 1, 1, 1))))
def test_operands_are_made_dense_and_aligned(emulated: None, name: str) -> None:
    x = torch.randn(SAME.x_shape)
    given = _views(x)[name]
    want = torch.zeros_like(x) if name == "zeros without data" else x
    with torch.no_grad():
        y = backends.bind(line(two_steps), SAME)(given)
    assert torch.equal(y, want * 2 + 1 + SAME.n)
    ready = signature(SAME, "fprop").ready((given.detach(),), x.device)[0]
    assert ready is not None
    assert ready.data_ptr() % 16 == 0
    assert ready.is_contiguous()


def test_a_dense_operand_is_not_copied() -> None:
    x = torch.randn(SAME.x_shape)
    assert signature(SAME, "fprop").ready((x,), x.device)[0] is x


def test_an_empty_result_needs_no_launch_and_no_kernel(emulated: None) -> None:
    problem = dataclasses.replace(SAME, n=0)

    def no_program(_: Problem) -> Program:
        raise ZeroDivisionError

    y = backends.bind(line(no_program), problem)(torch.empty(problem.x_shape))
    assert y.shape == problem.y_shape


def test_a_bias_is_optional(emulated: None) -> None:
    problem = parse_problem("conv2d n1c1h1w1 k1r1s1 f32 nchw")
    program = Program((step("probe_bias", ("bias", "y"), threads=1),))
    bound = backends.bind(line(lambda _: program, "fprop", "conv2d"), problem)
    x, w = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert bound(x, w, torch.full((1,), 7.0)).item() == 7
    assert bound(x, w, None).item() == -1


def test_threads_share_a_bound_kernel(emulated: None) -> None:
    bound = backends.bind(line(two_steps), SAME)
    barrier = threading.Barrier(8)

    def call(number: int) -> bool:
        x = torch.full(SAME.x_shape, float(number))
        barrier.wait()
        return all(bool((bound(x) == 2 * number + 1 + SAME.n).all()) for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(8)))


def test_a_launch_with_wrong_arguments_is_refused(emulated: None) -> None:
    program = Program((step("probe_overrun", ("y", ctypes.c_int32(1))),))
    with pytest.raises(
        RuntimeError, match=r"probe_overrun .* parameters of \(8, 8\) bytes, its launch gives \(8, 4\)"
    ):
        backends.bind(line(lambda _: program), SAME)(torch.zeros(SAME.x_shape))


# ---- Emulation ----


def test_the_checked_emulator_finds_what_is_wrong_and_the_kernel_goes_on() -> None:
    size = ctypes.c_int64(SAME.y_size)
    with cuda.emulated():
        overruns = backends.bind(
            line(lambda _: Program((step("probe_overrun", ("y", size), threads=1),))), SAME
        )
        right = backends.bind(line(two_steps), SAME)
    x = torch.randn(SAME.x_shape)
    for _ in range(2):
        with pytest.raises(EmulatorError, match=r"probe\.cu:\d+"):
            overruns(x)
        assert torch.equal(right(x), x * 2 + 1 + SAME.n)
    assert len(overruns.packing._frames) <= 1


def test_backend_cuda_is_not_for_cpu_tensors_outside_the_block() -> None:
    assert backends.unavailable("cuda", "cpu") == "runs on cuda, not on cpu"
    bound = backends.bind(line(two_steps), SAME)
    with pytest.raises(RuntimeError, match="backend cuda runs on cuda, not on cpu"):
        bound(torch.zeros(SAME.x_shape))
    with cuda.emulated(checked=False):
        assert backends.unavailable("cuda", "cpu") is None
        assert backends.unavailable("cuda", "meta") == "runs on cuda, not on meta"
        inside = backends.bind(line(two_steps), SAME)
    assert backends.unavailable("cuda", "cpu") == "runs on cuda, not on cpu"
    assert inside(torch.zeros(SAME.x_shape)).sum() == 3 * SAME.y_size


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="'sideways'"), cuda.emulated(order="sideways"):
        pass


def test_selection_forgets_nothing_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x, w = torch.randn(CONV.x_shape, requires_grad=True), torch.randn(3, 4, 3, 3, requires_grad=True)

    def kernels_of() -> set[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            pyconv.conv2d(x, w, padding=1).sum().backward()
        events = {event.key for event in profile.key_averages()}
        return {key.partition("@")[2] for key in events if key.startswith("pyconv:") and "@" in key}

    want = F.conv2d(x, w, padding=1)
    for _ in range(2):
        assert kernels_of() == {"cpu"}
        with cuda.emulated(checked=False):
            assert kernels_of() == {"cpu"}, "available, not preferred"
            with pyconv.use("cuda"):
                assert kernels_of() == {"cuda"}
                y = pyconv.conv2d(x, w, padding=1)
        with pyconv.use("cuda"):
            assert kernels_of() == {"cpu"}
        torch.testing.assert_close(y, want)
        y.sum().backward()  # outside the block, on the emulator still


def test_explain_shows_what_is_missing_and_what_can_run(emulated: None) -> None:
    with pyconv.use("cuda"):
        lines = {choice.kernel.id: choice for choice in pyconv.explain(CONV)["fprop"]}
    assert lines["conv2d.fprop.direct@cpu"].reason.startswith("not chosen: ")
    chosen = next(choice for choice in lines.values() if choice.chosen)
    assert (chosen.kernel.backend, chosen.reason) == ("cuda", "chosen: asked for by 'cuda'")


def test_the_environment_asks_for_emulation() -> None:
    def run(value: str) -> str:
        code = (
            "import torch, pyconv; from pyconv import backends; print(backends.unavailable('cuda', 'cpu')); "
            "from pyconv.backends import cuda; print(cuda.emulation())"
        )
        environment = {**os.environ, "PYCONV_EMULATE": value}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert run("plain").startswith("None\nEmulator(checked=False")
    assert run("checked").startswith("None\nEmulator(checked=True")
    assert run("") == "runs on cuda, not on cpu\nNone\n"
    assert run("yes") == "PYCONV_EMULATE is 'yes'; accepted: checked, plain\nNone\n"
