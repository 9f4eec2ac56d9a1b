"""What is too large: sizes past 64 bits are refused, exhausted memory is named, a workspace limit is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import pyconv
from pyconv import backends, parse_problem, registry
from pyconv.backends import cpu, cuda
from pyconv.problem import LAYOUTS
from tests.problems import CONV2D, MAXPOOL2D

X, W = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)

# ---- Sizes past 64 bits ----


def _huge(*shape: int) -> torch.Tensor:
    """A tensor of that shape over one element."""
    return torch.ones(()).expand(shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pyconv.conv2d(X, W, padding=2**46), "h and padding are 140737488355332 long"),
        (lambda: pyconv.conv2d(X, W, padding=2**62), "h and padding are"),
        (lambda: pyconv.conv2d(X, W, padding=2**40), r"y would have \d+ elements, more than 2\^63 - 1 bytes"),
        (lambda: pyconv.conv2d(X, _huge(2**60, 1, 1, 1)), "y would have"),
        (lambda: pyconv.conv2d(X, W, stride=2**64), "'stride' = 18446744073709551616 does not fit 64 bits"),
        (lambda: pyconv.conv2d(_huge(2**21, 1, 2**20, 2**20), W, padding=1), "x would have"),
        (lambda: pyconv.max_pool2d(_huge(2**20, 2**10, 2**20, 2**12), 2), "x would have"),
        (lambda: pyconv.max_pool2d(X, 2**49, padding=2**48), "h and padding are"),
    ],
)
def test_sizes_past_64_bits_are_refused_by_name(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("padding", "stride", "dilation"),
    [(2**62, 1, 1), (2**62, 2**62, 1), (1, 1, 2**62), (1, 2**62, 1), (2**40, 1, 1)],
)
def test_the_registered_operators_refuse_them_too(padding: int, stride: int, dilation: int) -> None:
    where = ([stride] * 2, [padding] * 4, [dilation] * 2)
    with pytest.raises(RuntimeError, match=r"2\^47|2\^63"):
        torch.ops.pyconv.conv2d_fprop(X, W, None, *where, 1, False, "conv2d.fprop.direct")
    with pytest.raises(RuntimeError, match=r"2\^47|2\^63"):
        torch.ops.pyconv.max_pool2d(X, [2, 2], *where, False, False, "maxpool2d.fprop.direct")


@pytest.mark.parametrize("stride", [4, 7, 2**31, 2**62])
@pytest.mark.parametrize("padding", [0, 1])
def test_strides_beyond_the_image_are_strides_to_its_end(stride: int, padding: int) -> None:
    x, w = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(4, 3, 2, 2, requires_grad=True)
    dy = torch.randn(F.conv2d(x, w, stride=stride, padding=padding).shape)
    ours, want = (
        torch.autograd.grad(conv2d(x, w, stride=stride, padding=padding), (x, w), dy)
        for conv2d in (pyconv.conv2d, F.conv2d)
    )
    torch.testing.assert_close(ours, want)
    for ceil_mode in (False, True):
        got = pyconv.max_pool2d(x, 2, stride, padding, ceil_mode=ceil_mode)
        # torch's pooling takes no stride beyond 32 bits
        assert torch.equal(got, F.max_pool2d(x, 2, min(stride, 7), padding, ceil_mode=ceil_mode))


# ---- Memory exhausted ----


def test_memory_that_there_is_not_is_named() -> None:
    with pytest.raises(
        RuntimeError, match=r"tried to allocate 17592219598864 bytes for the result of conv2d"
    ) as e:
        pyconv.conv2d(X, W, padding=2**20)
    assert "[1, 1, 2097154, 2097154]" in str(e.value)
    with pytest.raises(
        RuntimeError, match=r"bytes for the workspace of conv2d.fprop.direct.*set_workspace_limit"
    ):
        pyconv.conv2d(X, W, padding=2**40, dilation=2**40)
    with pytest.raises(RuntimeError, match="bytes for a dense copy of an operand"):
        pyconv.max_pool2d(_huge(1, 2**26, 2**10, 2**10), 2**10)


def test_what_failed_can_be_tried_again_with_less() -> None:
    """No half-made plan is left behind, and a workspace limit makes the call possible."""
    for _ in range(2):
        with pytest.raises(RuntimeError, match="can't allocate"):
            pyconv.conv2d(X, W, padding=2**40, dilation=2**40)
    pyconv.set_workspace_limit(10**9)
    try:
        y = pyconv.conv2d(X, W, padding=2**40, dilation=2**40)
    finally:
        pyconv.set_workspace_limit(None)
    assert torch.equal(y, F.conv2d(X, W, padding=2**40, dilation=2**40))


# ---- The workspace limit ----


@pytest.fixture
def unlimited() -> Iterator[None]:
    assert pyconv.get_workspace_limit() is None
    yield
    pyconv.set_workspace_limit(None)


@pytest.mark.parametrize("limit", [0, 1000, 100_000, 10**7])
def test_selection_stays_below_the_limit(unlimited: None, limit: int) -> None:
    texts = [f"{text} f32 {layout}" for text in CONV2D + MAXPOOL2D for layout in LAYOUTS]
    with cuda.emulated(checked=False):
        for text in texts[::7]:
            problem = parse_problem(text)
            unrestricted = pyconv.explain(problem)
            pyconv.set_workspace_limit(limit)
            limited = pyconv.explain(problem)
            pyconv.set_workspace_limit(None)
            for pass_, choices in limited.items():
                for choice, before in zip(choices, unrestricted[pass_], strict=True):
                    if before.reason.startswith("not able"):
                        continue
                    needed = backends.workspace_bytes(choice.kernel, problem)
                    is_ruled_out = "pyconv.set_workspace_limit is" in choice.reason
                    assert is_ruled_out == (needed > limit), f"{choice.kernel.id} on {text}: {choice.reason}"
                    assert not (is_ruled_out and choice.chosen)
                # Where torch refuses a problem (an empty sum), the limit may leave nothing.
                # Those that are taken without being asked for; where torch refuses an empty sum, maybe none.
                natural = [choice for choice in choices if choice.kernel.backend in ("cpu", "aten")]
                is_possible = any(not choice.reason.startswith("not able") for choice in natural)
                assert any(choice.chosen for choice in choices) == is_possible, f"{pass_} of {text}"


def test_a_call_and_its_backward_heed_the_limit_in_force_at_the_forward(unlimited: None) -> None:
    problem = parse_problem("conv2d n2c16h12w12 k24r3s3 st1 pd1 f32 nchw")
    assert backends.workspace_bytes(registry.find("conv2d.fprop.direct@cpu"), problem) > 0

    def kernels_of(backward: Callable[[torch.Tensor], None]) -> set[str]:
        x, w = torch.randn(2, 16, 12, 12, requires_grad=True), torch.randn(24, 16, 3, 3, requires_grad=True)
        with torch.profiler.profile() as profile:
            backward(pyconv.conv2d(x, w, padding=1).sum())
        return {event.key for event in profile.key_averages() if event.key.startswith("pyconv:")}

    def late(loss: torch.Tensor) -> None:
        pyconv.set_workspace_limit(None)
        loss.backward()

    free = kernels_of(lambda loss: loss.backward())
    assert "pyconv:conv2d.fprop.direct@cpu" in free
    assert kernels_of(lambda loss: loss.backward()) == free
    pyconv.set_workspace_limit(0)
    bound = kernels_of(lambda loss: loss.backward())
    assert bound == kernels_of(late)
    assert bound == {f"pyconv:conv2d.{pass_}.aten@aten" for pass_ in ("fprop", "dgrad", "wgrad")}


def test_no_kernel_asks_for_more_than_it_says(unlimited: None) -> None:
    """What torch's allocator sees is the result and the workspace; a further thread takes no more again."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for line in registry.kernels():
        if (
            line.backend != "cpu"
            or line.pass_ not in ("fprop", "dgrad", "wgrad")
            or line.operation != "conv2d"
        ):
            continue
        problem = parse_problem("conv2d n2c24h20w20 k24r3s3 st1 pd1 f32 nchw")
        if line.supports(problem):
            problem = parse_problem("conv2d n2c24h20w20 k24r3s3 st1 pd1 g24 f32 nchw")
        needed = backends.workspace_bytes(line, problem)
        assert cpu.workspace_bytes(line, problem, threads=3) <= 3 * needed
        shapes = {"x": problem.x_shape, "w": problem.w_shape, "y": problem.y_shape}  # type: ignore[union-attr]
        names = {"fprop": ("x", "w", "y"), "dgrad": ("y", "w", "x"), "wgrad": ("x", "y", "w")}[line.pass_]
        operands = [torch.ones(shapes[name]) for name in names[:2]]
        launch = backends.bind(line, problem)
        with torch.profiler.profile(profile_memory=True) as profile:
            launch(*operands, *([None] if line.pass_ == "fprop" else []))
        allocated = sum(max(event.cpu_memory_usage, 0) for event in profile.events())
        result = 4 * torch.Size(shapes[names[2]]).numel()
        assert result <= allocated <= result + needed + 64, line.id  # 64: to align it
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (-1, ValueError, "argument 'limit' must be at least 0, got -1"),
        (1e9, TypeError, "argument 'limit' must be int or None, not float"),
        (True, TypeError, "argument 'limit' must be int or None, not bool"),
        ("1GB", TypeError, "argument 'limit' must be int or None, not str"),
    ],
)
def test_a_limit_that_is_none(unlimited: None, limit: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pyconv.set_workspace_limit(limit)
    assert pyconv.get_workspace_limit() is None


# ---- Zero padding and infinite weights ----


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 16])
def test_padding_is_never_multiplied_by_what_is_chosen_on_a_cpu(
    layout: torch.memory_format, channels: int
) -> None:
    """As torch's blocked kernels. (Its others multiply, and give NaN, where the input has one channel.)"""
    x = torch.randn(2, channels, 6, 6).contiguous(memory_format=layout)
    w = torch.randn(8, channels, 3, 3)
    w[0, 0, 0, 0], w[1, 0, 2, 2] = float("inf"), float("nan")
    y = pyconv.conv2d(x, w, padding=1)
    over_padding = [y[:, 0, 0, :], y[:, 0, :, 0], y[:, 1, -1, :], y[:, 1, :, -1]]
    assert all(part.isfinite().all() for part in over_padding)
    assert not y[:, 0, 1:, 1:].isfinite().any()
    assert y[:, 1, :-1, :-1].isnan().all()
    if channels == 16:
        torch.testing.assert_close(y, F.conv2d(x, w, padding=1), equal_nan=True, rtol=1e-5, atol=1e-5)
