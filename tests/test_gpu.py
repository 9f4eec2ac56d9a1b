"""What only a CUDA device can show: graphs, streams, derivatives on it, tensors beyond 2^31 elements.

The battery judges every CUDA line on the device too, where there is one (``tests/test_battery.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pyconv
from pyconv import backends
from pyconv.problem import LAYOUTS, parse_problem
from pyconv.registry import Kernel, kernels
from tests.resnet18 import resnet18

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
CUDA_LINES = [kernel for kernel in kernels() if kernel.backend == "cuda"]


def _random(*shape: int, dtype: torch.dtype = torch.float32, layout: str = "nchw") -> Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype).contiguous(memory_format=FORMATS[layout])


@pytest.fixture(autouse=True)
def _no_tf32() -> Any:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gradcheck_on_the_device(layout: str, groups: int) -> None:
    x = _random(2, 4, 6, 7, dtype=torch.float64, layout=layout).requires_grad_()
    w = _random(4, 4 // groups, 3, 2, dtype=torch.float64, layout=layout).requires_grad_()
    bias = _random(4, dtype=torch.float64).requires_grad_()

    def layer(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return pyconv.max_pool2d(pyconv.conv2d(x, w, bias, 2, (1, 0, 2, 1), 1, groups), 2, 1)

    assert torch.autograd.gradcheck(layer, (x, w, bias))
    assert torch.autograd.gradgradcheck(layer, (x, w, bias))


# ---- CUDA graphs and streams ---------------------------------------------------------------------------


def _network(x: Tensor, w: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    y = pyconv.max_pool2d(torch.relu(pyconv.conv2d(x, w, bias, 1, 1)), 3, 2, 1)
    return y, *torch.autograd.grad(y.square().sum(), (x, w, bias))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_captured_graph_replays_to_the_bit(layout: str, dtype: torch.dtype) -> None:
    x, w = (
        _random(4, 16, 19, 23, dtype=dtype, layout=layout),
        _random(24, 16, 3, 3, dtype=dtype, layout=layout),
    )
    bias = _random(24, dtype=dtype)
    leaves = [tensor.requires_grad_() for tensor in (x, w, bias)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # modules are loaded before the capture
        _network(x, w, bias)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _network(x, w, bias)
    for _ in range(3):
        with torch.no_grad():
            for leaf in leaves:
                leaf.copy_(torch.randn_like(leaf))
        graph.replay()
        torch.cuda.synchronize()
        for got, want in zip(captured, _network(x, w, bias), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_whole_resnet18_step_is_one_graph(layout: str, dtype: torch.dtype) -> None:
    """Forward and backward; without a device, ``tests/test_graph_safety.py``."""
    network = resnet18(10).to("cuda", dtype).to(memory_format=FORMATS[layout])  # type: ignore[call-overload]
    x = _random(8, 3, 64, 64, dtype=dtype, layout=layout)

    def step() -> Tensor:
        network.zero_grad(set_to_none=False)
        loss: Tensor = network(x).float().square().mean()
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    replayed = [captured.clone(), *(parameter.grad.clone() for parameter in network.parameters())]
    want = [step(), *(parameter.grad for parameter in network.parameters())]
    for got, expected in zip(replayed, want, strict=True):
        torch.testing.assert_close(got, expected)  # torch's own batch norm and linear layer are in it too


def test_two_streams_at_once_give_the_same_bits() -> None:
    x, w, bias = (t.requires_grad_() for t in (_random(8, 32, 28, 28), _random(64, 32, 3, 3), _random(64)))
    want = [part.clone() for part in _network(x, w, bias)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(_network(x, w, bias))
    torch.cuda.synchronize()
    for result in results:
        for got, expected in zip(result, want, strict=True):
            assert torch.equal(got, expected)


def test_nothing_synchronises() -> None:
    x, w, bias = (t.requires_grad_() for t in (_random(4, 8, 12, 12), _random(8, 8, 3, 3), _random(8)))
    _network(x, w, bias)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _network(x, w, bias)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_each_device_runs_its_own() -> None:
    results = []
    for device in range(2):
        generator = torch.Generator().manual_seed(0)
        x, w, bias = (
            torch.randn(shape, generator=generator).to(f"cuda:{device}").requires_grad_()
            for shape in ((2, 4, 9, 9), (6, 4, 3, 3), (6,))
        )
        results.append([part.cpu() for part in _network(x, w, bias)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="device"):
        pyconv.conv2d(torch.ones(1, 1, 3, 3, device="cuda:0"), torch.ones(1, 1, 1, 1, device="cuda:1"))


# ---- Beyond 2^31 elements ----------------------------------------------------------------------------------

# 2^31 elements and some in x, y or both; filters and channels so few that the work is small.
HUGE = {
    "conv2d": "conv2d n3c2h19000w19500 k2r3s3 st1 pd1 f16 {layout}",
    "conv2d depthwise": "conv2d n3c2h19000w19500 k2r3s3 st1 pd1 g2 f16 {layout}",
    "maxpool2d": "maxpool2d n3c2h19000w19500 r2s2 st1 pd0 f16 {layout}",
}


def _huge(kernel: Kernel) -> str:
    return "conv2d depthwise" if kernel.algorithm == "depthwise" else kernel.operation


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", CUDA_LINES, ids=lambda kernel: kernel.id)
def test_more_than_two_to_the_31_elements(kernel: Kernel, layout: str) -> None:
    problem = parse_problem(HUGE[_huge(kernel)].format(layout=layout))
    if kernel.supports(problem):
        pytest.skip(f"{kernel.id}: {kernel.supports(problem)}")
    if kernel.pass_ not in ("fprop", "dgrad"):
        pytest.skip(f"{kernel.pass_}: its result is a sum over all, or judged with these passes")
    if torch.cuda.mem_get_info()[0] < 12 * problem.x_size:
        pytest.skip("not enough device memory")
    if kernel.operation == "maxpool2d" and kernel.pass_ == "dgrad":
        pytest.skip("takes an argmax of as many places: judged with fprop_argmax on what fits")
    x = torch.randint(-2, 3, problem.x_shape, device="cuda", dtype=torch.int8).to(torch.float16)
    x = x.contiguous(memory_format=FORMATS[layout])
    launch: Callable[..., Any] = backends.bind(kernel, problem)
    # The last image lies wholly beyond element 2^31; alone it has small offsets.
    alone = parse_problem(str(problem).replace("n3", "n1"))
    if kernel.operation == "conv2d":
        w = torch.randint(-2, 3, problem.w_shape, device="cuda").to(torch.float16)  # type: ignore[union-attr]
        w = w.contiguous(memory_format=FORMATS[layout])
        rest: tuple[Any, ...] = (w, None) if kernel.pass_ == "fprop" else (w,)
    else:
        rest = ()
    want = backends.bind(kernel, alone)(x[2:], *rest)
    got = launch(x, *rest)
    assert torch.equal(got[2:], want)
    assert got[2:].any()
