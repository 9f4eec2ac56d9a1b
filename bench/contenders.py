"""The contenders of one case: what is called and with which operands.

Ours is a line of the kernel table, launched as pyconv launches it; torch's is torch's own operator for just
that pass. Both get the same numbers in the same layout. A new contender is one more function here that
returns a :class:`Contender`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pyconv
from bench.problems import CALL_PASSES
from pyconv import backends, selection
from pyconv.machine import last_level_cache
from pyconv.problem import Conv2dProblem, Layout, Pool2dProblem, Problem
from pyconv.registry import Kernel, kernels

#: More sets than this only warm up slowly: the problem is then so small that it lives in the cache anyway.
_MOST_SETS = 64

Operands = dict[str, Tensor]


@dataclass(frozen=True)
class Contender:
    """``call`` on the operands called ``takes``; an operand that a problem has not is ``None``."""

    library: str
    layout: Layout
    kernel: str
    call: Callable[..., Any]
    takes: tuple[str, ...]
    chosen: bool = True  # False: a line of ours that selection does not pick

    @property
    def name(self) -> str:
        return f"{self.library}:{self.layout}:{self.kernel}"


class OperandSets:
    """Several sets of operands of one case, together larger than the last-level cache, handed out in turn."""

    def __init__(self, problem: Problem, pass_: str, device: str = "cpu") -> None:
        first = _operands(problem, pass_, 0, device)
        size = sum(tensor.nbytes for tensor in first.values())
        # What a call pass measures is the call, so its operands stay in the cache.
        wanted = 1 if pass_ in CALL_PASSES else -(-2 * last_level_cache(device) // max(size, 1))
        seeds = range(1, max(1, min(wanted, _MOST_SETS)))
        self.sets = [first, *(_operands(problem, pass_, seed, device) for seed in seeds)]
        self._turns = itertools.cycle(self.sets)

    def pick(self, takes: tuple[str, ...]) -> Iterator[tuple[Tensor | None, ...]]:
        """Operands of one set after another. All iterators of this object advance together."""
        return (tuple(operands.get(name) for name in takes) for operands in self._turns)

    def first(self, takes: tuple[str, ...]) -> tuple[Tensor | None, ...]:
        return tuple(self.sets[0].get(name) for name in takes)


def _operands(problem: Problem, pass_: str, seed: int, device: str) -> Operands:
    generator = torch.Generator(device).manual_seed(seed)

    def random(shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float32, device=device)
        return values.to(problem.torch_dtype).contiguous(memory_format=problem.memory_format)

    shapes: dict[str, tuple[int, ...]] = {"x": problem.x_shape, "dy": problem.y_shape}
    if isinstance(problem, Conv2dProblem):
        shapes["w"] = problem.w_shape
        needed = {"fprop": "x w", "dgrad": "dy w", "wgrad": "x dy", "bgrad": "dy"}.get(pass_, "x w dy")
        operands = {name: random(shapes[name]) for name in needed.split()}
    else:
        operands = {"x": random(shapes["x"])}
        if pass_ in ("dgrad", "call_step"):
            operands["dy"] = random(shapes["dy"])
        if pass_ == "dgrad":  # torch's argmax is 64 bits wide, ours 32
            argmax = F.max_pool2d(operands["x"], *_pool_arguments(problem), return_indices=True)[1]
            operands["argmax64"] = argmax.contiguous(memory_format=problem.memory_format)
            operands["argmax32"] = operands["argmax64"].to(torch.int32)
    if pass_ in ("call_grad", "call_step"):
        for name in ("x", "w"):
            if name in operands:
                operands[name].requires_grad_()
    return operands


def _symmetric_padding(problem: Problem) -> tuple[int, int]:
    top, bottom, left, right = problem.padding
    if (top, left) != (bottom, right):
        raise ValueError(
            f"'{problem}': torch has no padding per side, so there is nothing to measure against"
        )
    return top, left


def _conv_arguments(problem: Conv2dProblem) -> tuple[Any, ...]:
    stride, dilation = (problem.stride_h, problem.stride_w), (problem.dilation_h, problem.dilation_w)
    return stride, _symmetric_padding(problem), dilation, problem.groups


def _pool_arguments(problem: Pool2dProblem) -> tuple[Any, ...]:
    window, stride = (problem.r, problem.s), (problem.stride_h, problem.stride_w)
    dilation = (problem.dilation_h, problem.dilation_w)
    return window, stride, _symmetric_padding(problem), dilation, problem.ceil_mode


# ---- The public call ---------------------------------------------------------------------------------------


def _public(library: str, problem: Problem, pass_: str) -> Contender:
    takes: tuple[str, ...]
    if isinstance(problem, Conv2dProblem):
        conv = pyconv.conv2d if library == "pyconv" else F.conv2d
        stride, padding, dilation, groups = _conv_arguments(problem)
        takes = ("x", "w")

        def forward(x: Tensor, w: Tensor) -> Tensor:
            return conv(x, w, None, stride, padding, dilation, groups)

        def step(dy: Tensor, x: Tensor, w: Tensor) -> object:
            return torch.autograd.grad(conv(x, w, None, stride, padding, dilation, groups), (x, w), dy)

    else:
        pool = pyconv.max_pool2d if library == "pyconv" else F.max_pool2d
        window, stride, padding, dilation, ceil_mode = _pool_arguments(problem)
        takes = ("x",)

        def forward(x: Tensor) -> Tensor:  # type: ignore[misc]
            return pool(x, window, stride, padding, dilation, ceil_mode)

        def step(dy: Tensor, x: Tensor) -> object:  # type: ignore[misc]
            return torch.autograd.grad(pool(x, window, stride, padding, dilation, ceil_mode), (x,), dy)

    if pass_ == "call_step":
        return Contender(library, problem.layout, "public call", step, ("dy", *takes))
    return Contender(library, problem.layout, "public call", forward, takes)


# ---- torch's own kernels -----------------------------------------------------------------------------------


def torch_contender(problem: Problem, pass_: str, device: str = "cpu") -> Contender:
    """torch's operator for one pass. Raises ``ValueError`` where torch has none."""
    if pass_ in CALL_PASSES:
        return _public("torch", problem, pass_)
    if isinstance(problem, Conv2dProblem):
        call, takes = _torch_conv2d(problem, pass_, device)
    else:
        call, takes = _torch_max_pool2d(problem, pass_, device)
    return Contender("torch", problem.layout, "aten", call, takes)


def _torch_conv2d(
    problem: Conv2dProblem, pass_: str, device: str
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    stride, padding, dilation, groups = _conv_arguments(problem)
    rest = (stride, padding, dilation, False, (0, 0), groups)
    backward = torch.ops.aten.convolution_backward.default

    # A single gradient needs of the third tensor only its shape and layout.
    def like(shape: tuple[int, ...]) -> Tensor:
        return torch.empty(
            shape, dtype=problem.torch_dtype, memory_format=problem.memory_format, device=device
        )

    x, w = like(problem.x_shape), like(problem.w_shape)
    calls: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
        "fprop": (lambda x, w: F.conv2d(x, w, None, stride, padding, dilation, groups), ("x", "w")),
        "dgrad": (
            lambda dy, w: backward(dy, x, w, None, *rest, (True, False, False))[0],
            ("dy", "w"),
        ),
        "wgrad": (
            lambda x, dy: backward(dy, x, w, None, *rest, (False, True, False))[1],
            ("x", "dy"),
        ),
        "bgrad": (lambda dy: dy.sum((0, 2, 3)), ("dy",)),
    }
    return calls[pass_]


def _torch_max_pool2d(
    problem: Pool2dProblem, pass_: str, device: str
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    rest = _pool_arguments(problem)
    backward = torch.ops.aten.max_pool2d_with_indices_backward.default
    x = torch.empty(
        problem.x_shape, dtype=problem.torch_dtype, memory_format=problem.memory_format, device=device
    )
    calls: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
        "fprop": (lambda x: F.max_pool2d(x, *rest), ("x",)),
        "fprop_argmax": (lambda x: F.max_pool2d(x, *rest, return_indices=True), ("x",)),
        "dgrad": (lambda dy, argmax: backward(dy, x, *rest, argmax), ("dy", "argmax64")),
    }
    return calls[pass_]


# ---- ours --------------------------------------------------------------------------------------------------

_TAKES: dict[str, dict[str, tuple[str, ...]]] = {
    "conv2d": {"fprop": ("x", "w", "bias"), "dgrad": ("dy", "w"), "wgrad": ("x", "dy"), "bgrad": ("dy",)},
    "maxpool2d": {"fprop": ("x",), "fprop_argmax": ("x",), "dgrad": ("dy", "argmax32")},
}


def our_contender(problem: Problem, pass_: str, device: str = "cpu") -> Contender:
    """What pyconv runs: the kernel that selection picks (``pyconv.use`` is obeyed), or the public call."""
    if pass_ in CALL_PASSES:
        return _public("pyconv", problem, pass_)
    return _line(selection.select(problem, pass_, device), problem)


def numba_and_twins(kernel: Kernel) -> bool:
    """Whether a line is one of Numba's, or has its name: the same algorithm in CUDA C++."""
    return any(other.backend == "numba" and other.name == kernel.name for other in kernels(kernel.operation))


def other_lines(
    problem: Problem,
    pass_: str,
    device: str = "cpu",
    wanted: Callable[[Kernel], bool] = lambda kernel: True,
) -> list[Contender]:
    """The wanted lines of ours that can do the problem and are not what selection picks."""
    if pass_ in CALL_PASSES:
        return []
    chosen = selection.select(problem, pass_, device)
    operation = "conv2d" if isinstance(problem, Conv2dProblem) else "maxpool2d"
    return [
        replace(_line(kernel, problem), chosen=False)
        for kernel in kernels(operation, pass_)
        if kernel.backend != "aten"
        and kernel != chosen
        and wanted(kernel)
        and backends.unavailable(kernel.backend, device) is None
        and kernel.supports(problem) is None
    ]


def _line(kernel: Kernel, problem: Problem) -> Contender:
    bound = backends.bind(kernel, problem)
    return Contender("pyconv", problem.layout, kernel.id, bound, _TAKES[kernel.operation][kernel.pass_])


# ---- Do they compute the same? -----------------------------------------------------------------------------

#: Largest relative L2 difference from torch that is still the same function. This guards a benchmark against
#: measuring nonsense; what accuracy a kernel owes is the battery's business.
_SAME = {"f64": 1e-9, "f32": 1e-3, "f16": 3e-2, "bf16": 2e-1}


def difference(ours: Any, reference: Any) -> float:
    """Relative L2 difference of two results of a pass: the largest one, where it returns several tensors."""
    pairs = zip(
        *(result if isinstance(result, tuple) else (result,) for result in (ours, reference)), strict=True
    )
    differences = []
    for a, b in pairs:
        if a.shape != b.shape:
            return float("inf")
        a, b = a.detach().double(), b.detach().double()
        differences.append(float((a - b).norm() / b.norm().clamp(min=1e-300)))
    # Not max(), which would let a NaN pass where it does not come first.
    return sum(differences) if any(value != value for value in differences) else max(differences)


def check_same(problem: Problem, error: float) -> None:
    """Raises ``RuntimeError`` if the difference says that another function was computed."""
    if not error <= _SAME[problem.dtype]:  # written so that NaN fails
        raise RuntimeError(f"wrong result: relative L2 difference from torch {error:.2e}")


@cache
def in_layout(problem: Problem, layout: Layout) -> Problem:
    return replace(problem, layout=layout)
