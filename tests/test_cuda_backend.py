"""Backend cuda without a GPU: arguments, operands, threads and errors, on the emulator."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import pyconv
from pyconv import backends, ops, parse_problem, registry, selection
from pyconv.backends import cuda, gpu
from pyconv.backends.emulator import EmulatorError
from pyconv.backends.packing import Packing
from pyconv.backends.program import Program, Scratch, Step
from pyconv.backends.signature import signature
from pyconv.plan import plan_for
from pyconv.problem import Problem
from pyconv.registry import Kernel, find

PROBE = str(Path(__file__).parent / "backend" / "probe.cu")
THREADS = 64

#: A pooling whose y is as large as its x.
SAME = parse_problem("maxpool2d n2c5h4w3 r1s1 st1 pd0 f32 nchw")
CONV = parse_problem("conv2d n2c4h6w5 k3r3s3 st1 pd1 f32 nchw")


def _line(program: Any, pass_: str = "fprop", operation: str = "maxpool2d") -> Kernel:
    return Kernel(operation, pass_, "probe", "cuda", ("f32", "f64"), source=PROBE, program=program)  # type: ignore[arg-type]


def _step(
    kernel: str, arguments: tuple[Any, ...], blocks: int = 1, threads: int = THREADS, **more: Any
) -> Step:
    return Step(PROBE, kernel, (blocks, 1, 1), (threads, 1, 1), arguments, **more)


def _two_steps(problem: Problem) -> Program:
    """y = 2 * x + 1 + n."""
    element = "double" if problem.dtype == "f64" else "float"
    blocks = -(-problem.y_size // THREADS)
    middle = Scratch(256)
    return Program(
        (
            _step("probe_overrun", ("y", ctypes.c_int64(0)), blocks=0),  # an empty grid: not launched
            _step(
                f"probe_scale<{element}>",
                ("x", middle, ctypes.c_int64(problem.y_size), ctypes.c_double(2), ctypes.c_int32(1)),
                blocks,
            ),
            _step(f"probe_add<{element}>", (problem, middle, "y"), blocks, shared_bytes=8 * THREADS),
        ),
        workspace_bytes=256 + 8 * problem.y_size,
    )


@pytest.fixture
def emulated() -> Any:
    with cuda.emulated(checked=False):
        yield


# ---- Packed arguments ----


def _pointer(frame: Any, step: int, argument: int) -> int:
    parameters = ctypes.cast(frame.parameters[step], ctypes.POINTER(ctypes.c_void_p))
    return int(parameters[argument] or 0)


def _value(frame: Any, step: int, argument: int, of: Any) -> Any:
    return of.from_address(_pointer(frame, step, argument))


def test_arguments_are_packed_once_and_only_pointers_change() -> None:
    packing = Packing(_two_steps(SAME), ("x", "y"))
    assert [step.kernel for step in packing.steps] == ["probe_scale<float>", "probe_add<float>"]
    assert packing.workspace_bytes == 256 + 8 * SAME.y_size
    for x, y, workspace in ((0x1000, 0x2000, 0x4000), (0x5000, 2**63 + 16, 0x7000)):
        frame = packing.take([x, y], workspace)
        assert _value(frame, 0, 0, ctypes.c_uint64).value == x
        assert _value(frame, 0, 1, ctypes.c_uint64).value == workspace + 256
        assert _value(frame, 0, 2, ctypes.c_int64).value == SAME.y_size
        assert _value(frame, 0, 3, ctypes.c_double).value == 2
        assert _value(frame, 0, 4, ctypes.c_int32).value == 1
        assert bytes(_value(frame, 1, 0, type(SAME.to_c()))) == bytes(SAME.to_c())
        assert _value(frame, 1, 1, ctypes.c_uint64).value == workspace + 256
        assert _value(frame, 1, 2, ctypes.c_uint64).value == y
        packing.give(frame)
    assert packing.take([0, 0], 0) is frame, "a frame is used again"
    assert packing.take([0, 0], 0) is not frame, "but not by two calls at once"
    assert packing.argument_bytes(packing.steps[0]) == (8, 8, 8, 8, 4)


def test_a_pass_without_a_bias_gives_null() -> None:
    packing = Packing(Program((_step("k", ("bias", "db")),)), ("dy", "db"))
    assert _value(packing.take([8, 16], 0), 0, 0, ctypes.c_uint64).value == 0


def test_a_struct_of_the_program_is_copied() -> None:
    class Pair(ctypes.Structure):
        _fields_ = (("a", ctypes.c_int32), ("b", ctypes.c_int32))

    pair = Pair(1, 2)
    packing = Packing(Program((_step("k", ("x", pair)),)), ("x",))
    pair.a = 9
    frame = packing.take([8], 0)
    assert (_value(frame, 0, 1, Pair).a, _value(frame, 0, 1, Pair).b) == (1, 2)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (_step("k", ("z",)), "k: 'z' is no argument; there are x, y"),
        (_step("k", (3,)), "k: 3 is no argument"),
        (
            _step("k", (Scratch(8),)),
            r"k: Scratch\(offset=8\) is no multiple of 16 within a workspace of 64 bytes",
        ),
        (_step("k", (Scratch(80),)), "within a workspace of 64 bytes"),
        (_step("k", (), threads=1025), "k: .1025, 1, 1. threads a block"),
        (_step("k", (), threads=0), "threads a block"),
        (
            dataclasses.replace(_step("k", ()), grid=(1, 65536, 1)),
            "k: a grid of .1, 65536, 1. blocks; at most",
        ),
        (_step("k", (), blocks=-1), "a grid of"),
    ],
)
def test_what_no_device_can_launch_is_refused(step: Step, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Packing(Program((step,), workspace_bytes=64), ("x", "y"))


# ---- Signatures ----


@pytest.mark.parametrize("pass_", registry.PASSES["conv2d"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_signature_of_conv2d(pass_: str, layout: str) -> None:
    problem = dataclasses.replace(CONV, layout=layout)
    value = {v.name: v for v in (*signature(problem, pass_).operands, *signature(problem, pass_).results)}
    shapes = {
        "x": (2, 4, 6, 5), "dx": (2, 4, 6, 5), "w": (3, 4, 3, 3), "dw": (3, 4, 3, 3), "y": (2, 3, 6, 5),
        "dy": (2, 3, 6, 5), "bias": (3,), "db": (3,),
    }  # fmt: skip
    for name, each in value.items():
        assert each.shape == shapes[name]
        assert each.dtype == torch.float32
        dense = torch.empty(each.shape)
        if dense.dim() == 4:
            dense = torch.empty(each.shape, memory_format=problem.memory_format)
        assert each.empty(torch.device("cpu")).stride() == dense.stride()
        assert each.bytes == dense.numel() * 4


def test_signature_of_pooling_by_place_and_by_tap() -> None:
    for pass_, dtype in (("fprop_argmax", torch.int32), ("fprop_tap", torch.uint8)):
        assert [(v.name, v.dtype) for v in signature(SAME, pass_).results] == [
            ("y", torch.float32),
            ("argmax", dtype),
        ]
    assert [v.name for v in signature(SAME, "dgrad_tap").operands] == ["dy", "argmax"]
    assert signature(SAME, "dgrad_tap").operands[1].dtype == torch.uint8
    assert signature(SAME, "gather").operands[1].dtype == torch.int32


def test_operands_that_are_not_the_problems_are_refused(emulated: None) -> None:
    bound = backends.bind(find("conv2d.fprop.direct_naive@cuda"), CONV)
    x, w, bias = torch.zeros(2, 4, 6, 5), torch.zeros(3, 4, 3, 3), torch.zeros(3)
    for operands, message in (
        (
            (x[:1], w, bias),
            r"x must be torch.float32 of shape \[2, 4, 6, 5\], got torch.float32 of shape \[1, 4",
        ),
        ((x, w.double(), bias), r"w must be torch.float32 of shape .*, got torch.float64"),
        ((x, w, bias[:2]), r"bias must be"),
        ((x, w.to("meta"), bias), r"Expected all tensors to be on the same device, .* cpu and meta!"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bound(*operands)
    with pytest.raises(TypeError, match="takes x, w, bias, got 2"):
        bound(x, w)


# ---- Bound kernels ----


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_several_steps_share_a_workspace(emulated: None, dtype: str, layout: str) -> None:
    problem = dataclasses.replace(SAME, dtype=dtype, layout=layout)
    bound = backends.bind(_line(_two_steps), problem)
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
        y = backends.bind(_line(_two_steps), SAME)(given)
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

    y = backends.bind(_line(no_program), problem)(torch.empty(problem.x_shape))
    assert y.shape == problem.y_shape


def test_a_bias_is_optional(emulated: None) -> None:
    problem = parse_problem("conv2d n1c1h1w1 k1r1s1 f32 nchw")
    program = Program((_step("probe_bias", ("bias", "y"), threads=1),))
    bound = backends.bind(_line(lambda _: program, "fprop", "conv2d"), problem)
    x, w = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert bound(x, w, torch.full((1,), 7.0)).item() == 7
    assert bound(x, w, None).item() == -1


def test_threads_share_a_bound_kernel(emulated: None) -> None:
    bound = backends.bind(_line(_two_steps), SAME)
    barrier = threading.Barrier(8)

    def call(number: int) -> bool:
        x = torch.full(SAME.x_shape, float(number))
        barrier.wait()
        return all(bool((bound(x) == 2 * number + 1 + SAME.n).all()) for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(8)))


def test_a_launch_with_wrong_arguments_is_refused(emulated: None) -> None:
    program = Program((_step("probe_overrun", ("y", ctypes.c_int32(1))),))
    with pytest.raises(
        RuntimeError, match=r"probe_overrun .* parameters of \(8, 8\) bytes, its launch gives \(8, 4\)"
    ):
        backends.bind(_line(lambda _: program), SAME)(torch.zeros(SAME.x_shape))


# ---- Emulation ----


def test_the_checked_emulator_finds_what_is_wrong_and_the_kernel_goes_on() -> None:
    size = ctypes.c_int64(SAME.y_size)
    with cuda.emulated():
        overruns = backends.bind(
            _line(lambda _: Program((_step("probe_overrun", ("y", size), threads=1),))), SAME
        )
        right = backends.bind(_line(_two_steps), SAME)
    x = torch.randn(SAME.x_shape)
    for _ in range(2):
        with pytest.raises(EmulatorError, match=r"probe\.cu:\d+"):
            overruns(x)
        assert torch.equal(right(x), x * 2 + 1 + SAME.n)
    assert len(overruns.packing._frames) <= 1


def test_backend_cuda_is_not_for_cpu_tensors_outside_the_block() -> None:
    assert backends.unavailable("cuda", "cpu") == "runs on cuda, not on cpu"
    bound = backends.bind(_line(_two_steps), SAME)
    with pytest.raises(RuntimeError, match="backend cuda runs on cuda, not on cpu"):
        bound(torch.zeros(SAME.x_shape))
    with cuda.emulated(checked=False):
        assert backends.unavailable("cuda", "cpu") is None
        assert backends.unavailable("cuda", "meta") == "runs on cuda, not on meta"
        inside = backends.bind(_line(_two_steps), SAME)
    assert backends.unavailable("cuda", "cpu") == "runs on cuda, not on cpu"
    assert inside(torch.zeros(SAME.x_shape)).sum() == 3 * SAME.y_size


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="'sideways'"), cuda.emulated(order="sideways"):
        pass


def test_selection_forgets_nothing_and_keeps_nothing() -> None:
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
        naive, algorithm="im2col_gemm_tensor", dtypes=("f32",), accuracy="1e-3 (tf32)", program=_in_tf32
    )
    taken = next((kernel for kernel in registry.kernels() if kernel.id == line.id), None)
    if taken is not None:
        registry.unregister(taken)
    registry.register(line)
    selection.forget()
    yield line
    registry.unregister(line)
    if taken is not None:
        registry.register(taken)
    selection.forget()


def _in_tf32(problem: Problem) -> Program:
    """Not a convolution: what shows that this line ran."""
    return Program((_step("probe_bias", ("bias", "y"), threads=problem.y_size),))


@pytest.fixture
def switch() -> Iterator[Any]:
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    yield conv
    conv.fp32_precision = before


def test_tf32_is_used_where_torch_would_use_it(emulated: None, tf32_line: Kernel, switch: Any) -> None:
    x, w, bias = torch.randn(1, 2, 3, 3), torch.randn(2, 2, 3, 3), torch.full((2,), 5.0)
    exact = F.conv2d(x, w, bias, padding=1)
    with pyconv.use("cuda"):
        for precision in ("tf32", "ieee", "tf32", "none"):
            switch.fp32_precision = precision
            used = torch.equal(pyconv.conv2d(x, w, bias, padding=1), torch.full_like(exact, 5.0))
            assert used == (precision == "tf32"), precision
            choice = {c.kernel.id: c for c in pyconv.explain("conv2d n1c2h3w3 k2r3s3 pd1 f32 nchw")["fprop"]}
            reason = choice[tf32_line.id].reason
            assert reason.startswith("chosen" if used else "not able: torch's switch for TF32"), reason


def test_the_switch_of_a_forward_holds_for_its_backward(
    emulated: None, tf32_line: Kernel, switch: Any
) -> None:
    problem = parse_problem("conv2d n1c2h3w3 k2r3s3 pd1 f32 nchw")
    switch.fp32_precision = "tf32"
    with pyconv.use("cuda"):
        plan = plan_for(problem, "cpu")
        switch.fp32_precision = "ieee"
        assert plan_for(problem, "cpu") is not plan
    plan.launch("fprop", torch.ones(1, 2, 3, 3), torch.ones(2, 2, 3, 3), torch.ones(2))
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


# ---- The registered operators ----


def test_an_operator_runs_the_kernel_it_names(emulated: None) -> None:
    x, w = torch.randn(2, 4, 6, 5), torch.randn(3, 4, 3, 3)
    where = ((1, 1), (1, 1, 1, 1), (1, 1), 1, True)
    fprop, dgrad = ops._on_cuda("conv2d_fprop"), ops._on_cuda("conv2d_dgrad")
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
