"""Memory does not grow: not over calls, not over shapes, not when a backward is cut short.

Calls are counted in the public functions: a forward and its backward are one call. Memory is what the process
holds (RSS) and the number of Python's own blocks; the first calls, which fill what is bounded, do not count.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyconv
from pyconv import functional, plan, selection
from pyconv.backends import cpu

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")

_MB = 2**20


def _resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _growth(call: Callable[[], Any], calls: int, first: int) -> tuple[int, int]:
    """What ``calls`` calls, after the ``first`` ones, add to RSS and to Python's blocks."""
    for _ in range(first):
        call()
    gc.collect()
    resident, blocks = _resident(), sys.getallocatedblocks()
    for _ in range(calls):
        call()
    gc.collect()
    return _resident() - resident, sys.getallocatedblocks() - blocks


def _conv(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return pyconv.conv2d(x, w, bias, padding=1)


def _pool(x: Tensor, *_: Tensor) -> Tensor:
    return pyconv.max_pool2d(x, 3, 2, 1)


def _leaves(h: int = 8, w: int = 9) -> tuple[Tensor, ...]:
    shapes = ((2, 3, h, w), (4, 3, 3, 3), (4,))
    return tuple(torch.randn(shape, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("function", [_conv, _pool], ids=["conv2d", "max_pool2d"])
def test_one_shape(function: Callable[..., Tensor]) -> None:
    leaves = _leaves()

    def call() -> None:
        function(*leaves).sum().backward()

    resident, blocks = _growth(call, 10_000, 500)
    assert resident < 2 * _MB, f"{resident} bytes over 10,000 calls"
    assert blocks < 3000, f"{blocks} blocks of Python's over 10,000 calls"


def _shapes(count: int) -> Iterator[tuple[int, int]]:
    """``count`` sizes of images, none twice, small and large ones mixed."""
    sizes = list(itertools.product(range(1, 200), range(1, 200)))[:: 199 * 199 // count][:count]
    random.Random(0).shuffle(sizes)
    return iter(sizes)


def _call_on(shapes: Iterator[tuple[int, int]]) -> Callable[[], None]:
    functions = itertools.cycle((_conv, _pool))
    return lambda: next(functions)(*_leaves(*next(shapes))).sum().backward()


def test_some_shapes_again_and_again() -> None:
    """As in training on images of several sizes: what is remembered is used again."""
    shapes = [(h, w) for h in range(6, 21) for w in range(6, 21)]
    resident, blocks = _growth(_call_on(itertools.cycle(shapes)), 10_000, 2 * len(shapes))
    assert resident < 2 * _MB, f"{resident} bytes over 10,000 calls"
    assert blocks < 3000, f"{blocks} blocks of Python's over 10,000 calls"


def _check_new_shapes(limit: int, calls: int) -> None:
    selection.forget()
    # Until every memory of plans and choices is full, and then so many more.
    resident, _ = _growth(_call_on(_shapes(calls + 3 * limit)), calls, 3 * limit)
    assert len(functional._plans) <= limit
    assert plan._plan.cache_info().currsize == limit
    assert selection._select.cache_info().currsize <= limit
    assert cpu.bound() <= 4 * 2 * limit  # four passes of each plan, remembered in one place or the other
    assert resident < 4 * _MB, f"{resident} bytes over {calls} shapes"
    selection.forget()
    gc.collect()
    assert cpu.bound() == 0


def test_ever_new_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With smaller memories, which are full sooner."""
    selection.forget()
    limit = 64
    monkeypatch.setattr(functional, "MOST_REMEMBERED", limit)
    for module, name in ((plan, "_plan"), (selection, "_select")):
        monkeypatch.setattr(module, name, lru_cache(limit)(getattr(module, name).__wrapped__))
    _check_new_shapes(limit, 2000)


@pytest.mark.exhaustive
def test_ever_new_shapes_exhaustive() -> None:
    assert plan.MOST_REMEMBERED == selection._select.cache_info().maxsize == 4096
    _check_new_shapes(plan.MOST_REMEMBERED, 10_000)


class _Stop(Exception):
    """Raised in the middle of a backward."""


def _raise(_: Any) -> None:
    raise _Stop


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What goes, goes by its count of references: no cycle keeps a tensor until the collector runs."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _cut_short(where: str) -> list[weakref.ref[Tensor]]:
    """A step whose backward (or backward of a backward) raises; weak references to all its tensors."""
    x, w, bias = leaves = _leaves()
    y = _conv(x, w, bias)
    z = _pool(y)
    tensors = [*leaves, y, z]
    if where == "before conv2d":  # max_pool2d's backward is done
        y.register_hook(_raise)
    elif where == "after conv2d":
        w.register_hook(_raise)
    elif where == "before max_pool2d":
        z.register_hook(_raise)
    else:
        (dx,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
        tensors.append(dx)
        z.register_hook(_raise)
        with pytest.raises(_Stop):
            dx.square().sum().backward()
        return [weakref.ref(tensor) for tensor in tensors]
    with pytest.raises(_Stop):
        z.sum().backward()
    return [weakref.ref(tensor) for tensor in tensors]


@pytest.mark.parametrize(
    "where", ["before max_pool2d", "before conv2d", "after conv2d", "in the second backward"]
)
def test_a_backward_cut_short_keeps_nothing(where: str, no_collector: None) -> None:
    alive: list[weakref.ref[Tensor]] = []

    def call() -> None:
        alive.extend(_cut_short(where))
        alive[:] = [ref for ref in alive if ref() is not None]

    resident, _ = _growth(call, 1000, 200)
    assert resident < 2 * _MB, f"{resident} bytes over 1,000 backwards that raised"
    # The next backward is whole; torch's engine may keep a tensor of the last one until then.
    x, w, bias = _leaves()
    _pool(_conv(x, w, bias)).sum().backward()
    assert x.grad is not None
    alive = [ref for ref in alive if ref() is not None]
    assert not alive, f"{len(alive)} tensors live on"


def test_calls_that_are_refused_keep_nothing(no_collector: None) -> None:
    x, w, _ = _leaves()
    refused: list[weakref.ref[Tensor]] = []

    def call() -> None:
        operand = x.detach().clone()
        refused.append(weakref.ref(operand))
        with pytest.raises(RuntimeError):
            pyconv.conv2d(operand, w, groups=2)
        with pytest.raises(RuntimeError):
            torch.ops.pyconv.conv2d_fprop(
                operand, w, None, [1, 1], [0] * 4, [1, 1], 1, False, "no.such.kernel"
            )
        with pytest.raises(RuntimeError):
            pyconv.max_pool2d(operand, 3, padding=2)

    resident, _ = _growth(call, 1000, 200)
    assert all(ref() is None for ref in refused)
    assert resident < 2 * _MB, f"{resident} bytes over 1,000 calls that raised"
