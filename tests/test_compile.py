"""torch.compile, export, tracing, opcheck, fake and meta tensors, autocast, checkpointing."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import pyconv
import pyconv.nn
from pyconv import ops, selection

F32, F64 = torch.float32, torch.float64


def _operands(dtype: torch.dtype = F64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 7, 7), (6, 2, 3, 3), (6,))
    x, w, b = (torch.randn(s, dtype=dtype, generator=generator) for s in shapes)
    return x.requires_grad_(), w.requires_grad_(), b.requires_grad_()


def _network(conv: Callable[..., Any], pool: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda x, w, b: pool(conv(x, w, b, 2, 1, 1, 2).sin(), 3, 2, 1).square().sum()


OURS, TORCHS = _network(pyconv.conv2d, pyconv.max_pool2d), _network(F.conv2d, F.max_pool2d)


# ---- torch.compile ----


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_whole_graph_forward_and_backward(backend: str) -> None:
    torch._dynamo.reset()
    operands = _operands()
    compiled = torch.compile(OURS, fullgraph=True, backend=backend)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = operands[0].detach().to(memory_format=memory_format).requires_grad_()
        leaves = (x, *operands[1:])
        value, expected = compiled(*leaves), TORCHS(*leaves)
        assert_close(value, expected)
        assert_close(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves))
    with torch.no_grad():
        assert_close(compiled(*operands), TORCHS(*operands))


def test_compile_with_dynamic_shapes_does_not_recompile() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(OURS, fullgraph=True, backend=counter, dynamic=True)
    _, w, b = _operands()  # first sizes all different: Dynamo takes equal ones for the same symbol
    for n, h, width in ((7, 11, 9), (5, 8, 7), (8, 12, 10), (9, 15, 20)):
        x = torch.randn(n, 4, h, width, dtype=F64, requires_grad=True)
        value, expected = compiled(x, w, b), TORCHS(x, w, b)
        assert_close(value, expected)
        assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))
    assert counter.frame_count == 1


def test_compile_of_every_padding_and_ceil_mode() -> None:
    torch._dynamo.reset()

    def network(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        y = pyconv.conv2d(x, w, padding="same")
        y = pyconv.conv2d(y, w, padding=(1, 0, 2, 1))
        p, places = pyconv.max_pool2d(y[0], 2, ceil_mode=True, return_indices=True)
        return y, p, places

    x, w = torch.randn(1, 3, 7, 6), torch.randn(3, 3, 3, 3)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x, w), network(x, w), strict=True):
        assert_close(a, b)
        assert a.stride() == b.stride()


def test_a_compiled_module_trains() -> None:
    torch._dynamo.reset()
    module = torch.nn.Sequential(pyconv.nn.Conv2d(4, 3, 3), pyconv.nn.MaxPool2d(2)).double()
    twin = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = _operands()[0].detach()
    compiled(x).square().sum().backward()
    twin(x).square().sum().backward()
    for a, b in zip(module.parameters(), twin.parameters(), strict=True):
        assert_close(a.grad, b.grad)


# ---- export, trace ----


def _module() -> torch.nn.Module:
    layers = (pyconv.nn.Conv2d(4, 6, 3, padding=(1, 2, 0, 1)), torch.nn.ReLU(), pyconv.nn.MaxPool2d(2))
    return torch.nn.Sequential(*layers)


def test_export_with_a_dynamic_batch_and_run() -> None:
    module = _module()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(module, (torch.randn(3, 4, 7, 7),), dynamic_shapes=({0: batch},))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    # No kernel's name in the graph: the choice belongs to the machine that runs it.
    assert "pyconv.conv2d_fprop.auto" in targets
    assert "pyconv.max_pool2d.auto" in targets
    for n in (2, 5):
        x = torch.randn(n, 4, 7, 7)
        assert torch.equal(program.module()(x), module(x))


def test_exported_programs_survive_saving(tmp_path: Any) -> None:
    module, x = _module(), torch.randn(1, 4, 7, 7)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "module.pt2")
    assert torch.equal(torch.export.load(tmp_path / "module.pt2").module()(x), module(x))


def test_jit_trace() -> None:
    module, x = _module().eval(), torch.randn(2, 4, 7, 7)
    module(x)  # a remembered plan must not bake its result into the trace
    traced = torch.jit.trace(module, (x,))
    assert "pyconv::conv2d_fprop" in str(traced.inlined_graph)
    other = torch.randn(2, 4, 7, 7)
    assert_close(traced(other), module(other))


def test_make_fx_sees_the_operators() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    operands = tuple(t.detach() for t in _operands())
    graph = make_fx(lambda *leaves: torch.func.grad(OURS, (0, 1, 2))(*leaves))(*operands)
    targets = {str(node.target) for node in graph.graph.nodes}
    for name in ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad", "conv2d_bgrad", "max_pool2d_dgrad"):
        assert f"pyconv.{name}.auto" in targets
    assert_close(graph(*operands), torch.func.grad(TORCHS, (0, 1, 2))(*operands))


# ---- the operators themselves ----


def _operator_calls(dtype: torch.dtype, channels_last: bool) -> dict[str, tuple[str, tuple[Any, ...]]]:
    x, w, b = _operands(dtype)
    dy = F.conv2d(x, w, b, 2, 1, 1, 2).detach().requires_grad_()
    conv = ((2, 2), (1, 1, 1, 1), (1, 1), 2, channels_last)
    pool = ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), True, channels_last)
    y, argmax = ops.overloads("max_pool2d_argmax")[1](x.detach(), *pool)
    dp = y.clone().requires_grad_()
    return {
        "conv2d_fprop": ("fprop", (x, w, b, *conv)),
        "conv2d_dgrad": ("dgrad", (dy, w, (7, 7), *conv)),
        "conv2d_wgrad": ("wgrad", (x, dy, (3, 3), *conv)),
        "conv2d_bgrad": ("bgrad", (dy, channels_last)),
        "max_pool2d": ("fprop", (x, *pool)),
        "max_pool2d_argmax": ("fprop_argmax", (x, *pool)),
        "max_pool2d_dgrad": ("dgrad", (dp, argmax, (7, 7), *pool)),
        "max_pool2d_gather": ("gather", (x, argmax, *pool)),
    }


def _kernel_name(operator: str, pass_: str, dtype: torch.dtype, channels_last: bool) -> str:
    """The default overload needs a kernel of the CPU library, whatever PYCONV_KERNELS prefers."""
    operation = "conv2d" if operator.startswith("conv2d") else "maxpool2d"
    sizes = "k6r3s3 st2 pd1 g2" if operation == "conv2d" else "r3s3 st2 pd1 ceil"
    name, layout = ops.DTYPE_NAMES[dtype], "nhwc" if channels_last else "nchw"
    problem = pyconv.parse_problem(f"{operation} n2c4h7w7 {sizes} {name} {layout}")
    with pyconv.use("cpu"):
        return selection.select(problem, pass_).name


@pytest.mark.parametrize("operator", list(ops.SCHEMAS))
@pytest.mark.parametrize("overload", ["auto", "default"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [F32, F64, torch.bfloat16], ids=str)
def test_opcheck(operator: str, overload: str, channels_last: bool, dtype: torch.dtype) -> None:
    pass_, arguments = _operator_calls(dtype, channels_last)[operator]
    default, auto = ops.overloads(operator)
    if overload == "auto":
        opcheck(auto, arguments)
    else:
        opcheck(default, (*arguments, _kernel_name(operator, pass_, dtype, channels_last)))


def test_every_operator_has_a_schema_without_aliasing() -> None:
    for name in ops.SCHEMAS:
        for overload in ops.overloads(name):
            assert not overload._schema.is_mutable
            assert all(argument.alias_info is None for argument in overload._schema.arguments)


@pytest.mark.parametrize(
    "shape", [(2, 4, 5, 6), (0, 4, 5, 6), (1, 1, 5, 6), (2, 1, 1, 1), (1, 4, 5, 1)], ids=str
)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    "formats", itertools.product([torch.contiguous_format, torch.channels_last], repeat=2), ids=str
)
def test_fake_and_meta_strides_are_the_real_ones(
    shape: tuple[int, ...], k: int, formats: tuple[Any, Any]
) -> None:
    x = torch.randn(shape).to(memory_format=formats[0])
    w = torch.randn(k, shape[1], 3, 3).to(memory_format=formats[1])

    def results(x: Tensor, w: Tensor) -> list[Tensor]:
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        y = pyconv.conv2d(x, w, padding=1)
        p, places = pyconv.max_pool2d(x, 3, 1, 1, return_indices=True)
        grads = torch.autograd.grad((y.sum(), p.sum()), (x, w))
        return [y, p, places, *grads, pyconv.conv2d(x[0], w, padding=1) if len(x) else y]

    real = results(x, w)
    mode = FakeTensorMode()
    fake = mode.from_tensor(x), mode.from_tensor(w)
    with mode:
        faked = results(*fake)
    for other in (faked, results(x.to("meta"), w.to("meta"))):
        for a, r in zip(other, real, strict=True):
            assert (a.shape, a.dtype, a.stride()) == (r.shape, r.dtype, r.stride())


@pytest.mark.parametrize("channels_last", [False, True])
def test_operators_refuse_what_would_leave_their_memory(channels_last: bool) -> None:
    """Straight on the operators, past functional's checks."""
    calls = _operator_calls(F32, channels_last)
    x = torch.randn(2, 4, 7, 7)
    wrong: list[tuple[str, tuple[Any, ...]]] = [
        ("conv2d_fprop", (x, torch.randn(6, 3, 3, 3), *calls["conv2d_fprop"][1][2:])),
        ("conv2d_fprop", (*calls["conv2d_fprop"][1][:2], torch.randn(5), *calls["conv2d_fprop"][1][3:])),
        ("conv2d_fprop", (x, torch.randn(6, 2, 3, 3).double(), None, *calls["conv2d_fprop"][1][3:])),
        ("conv2d_dgrad", (torch.randn(2, 6, 9, 9), *calls["conv2d_dgrad"][1][1:])),
        ("conv2d_wgrad", (x, torch.randn(3, 6, 4, 4), *calls["conv2d_wgrad"][1][2:])),
        ("max_pool2d_dgrad", (torch.randn(2, 4, 2, 2), *calls["max_pool2d_dgrad"][1][1:])),
        (
            "max_pool2d_dgrad",
            (torch.randn(2, 4, 4, 4), torch.zeros(2, 4, 4, 4), *calls["max_pool2d_dgrad"][1][2:]),
        ),
        ("max_pool2d_gather", (torch.randn(1, 4, 7, 7), *calls["max_pool2d_gather"][1][1:])),
    ]
    for operator, arguments in wrong:
        name = _kernel_name(operator, calls[operator][0], F32, channels_last)
        with pytest.raises(RuntimeError, match="pyconv: "):
            ops.overloads(operator)[0](*arguments, name)
    with pytest.raises(RuntimeError, match=r"kernel 'conv2d\.fprop\.none' is not in the CPU library"):
        ops.overloads("conv2d_fprop")[0](*calls["conv2d_fprop"][1], "conv2d.fprop.none")


# ---- autocast, checkpoint ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_as_torch(dtype: torch.dtype) -> None:
    operands = _operands(F32)
    mixed = (operands[0], operands[1].detach().to(dtype).requires_grad_(), operands[2])
    for leaves in (operands, mixed):
        results = []
        for conv, pool in ((pyconv.conv2d, pyconv.max_pool2d), (F.conv2d, F.max_pool2d)):
            for _ in range(2):  # the second call could find a plan
                with torch.autocast("cpu", dtype):
                    y = conv(*leaves, 2, 1, 1, 2)
                    p = pool(y, 3, 2, 1)
                    assert pool(leaves[0], 2).dtype == F32
            grads = torch.autograd.grad(p.float().sum(), leaves)
            results.append([y, p, *grads])
        for ours, torchs in zip(*results, strict=True):
            assert ours.dtype == torchs.dtype
            assert_close(ours, torchs, rtol=2e-2, atol=2e-2)
    assert y.dtype == dtype


def test_autocast_leaves_float64_alone_and_can_be_disabled() -> None:
    operands = _operands(F64)
    with torch.autocast("cpu", torch.bfloat16):
        assert pyconv.conv2d(*operands, 2, 1, 1, 2).dtype == F.conv2d(*operands, 2, 1, 1, 2).dtype == F64
        with torch.autocast("cpu", enabled=False):
            assert pyconv.conv2d(*_operands(F32), 2, 1, 1, 2).dtype == F32


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant: bool) -> None:
    leaves = _operands()
    expected = torch.autograd.grad(OURS(*leaves), leaves)
    value = checkpoint(OURS, *leaves, use_reentrant=use_reentrant)
    value.backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, gradient)
