"""Tensors of more than 2^31 elements, on every CPU line: places, offsets and sizes are 64-bit.

Only the first and the last image, or the two ends of a row, hold anything but zeros, so what must come is a
small problem's result. Operands are taken from the system as zeros that occupy no memory until they are
written; a result of float32 takes 8.6 GB. A case for which the machine has not enough free memory is skipped.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyconv import backends, parse_problem, registry
from pyconv.backends import aten
from pyconv.problem import DTYPES, LAYOUTS, Conv2dProblem, Problem
from pyconv.registry import Kernel

pytestmark = pytest.mark.exhaustive

PAST = 2**31 + 2**20
#: Memory that has to be left over.
SPARE_BYTES = 3 * 2**30

#: Line of the table -> one image of the problem; `n` is then such that x or y, the larger one, passes 2^31.
MANY_IMAGES = {
    "direct": "conv2d n1c16h64w64 k2r3s3 st1 pd1",
    "direct of more filters": "conv2d n1c2h64w64 k16r1s1 st1 pd0",
    "im2col_gemm": "conv2d n1c16h64w64 k2r3s3 st2 pd1",
    "im2col_gemm of more filters": "conv2d n1c2h64w64 k16r1s1 st1 pd0",
    "depthwise": "conv2d n1c16h64w64 k16r3s3 st2 pd1 g16",
    "pool": "maxpool2d n1c16h64w64 r2s2 st2 pd0",
}
#: One image whose rows are past 2^31 columns. Pooling has no such: its places are int32 within a plane.
LONG_ROWS = {
    "direct": f"conv2d n1c1h1w{PAST} k1r1s3 st1x64 pd0x1",
    "im2col_gemm": f"conv2d n1c1h1w{PAST} k1r1s3 st1x64 pd0x1",
    "depthwise": f"conv2d n1c1h1w{PAST} k1r1s3 st1x64 pd0x1",
}


def _cases() -> Iterator[object]:
    for line in registry.kernels():
        if line.backend != "cpu":
            continue
        kind = (
            "pool" if line.operation == "maxpool2d" else "direct" if line.pass_ == "bgrad" else line.algorithm
        )
        for texts in (MANY_IMAGES, LONG_ROWS):
            for name, text in texts.items():
                if name.split()[0] != kind:
                    continue
                for layout in LAYOUTS:
                    for dtype in [dtype for dtype in line.dtypes if dtype in ("f32", "bf16")]:
                        problem = parse_problem(f"{text} {dtype} {layout}")
                        if texts is MANY_IMAGES:
                            largest = max(problem.x_size, problem.y_size)
                            problem = replace(problem, n=-(-PAST // largest))
                        if line.supports(problem) is None:
                            yield pytest.param(line, problem, id=f"{line.id}: {problem}")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One such test at a time, whatever the workers."""
    import fcntl

    with (Path(tempfile.gettempdir()) / "pyconv-large.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _zeros(shape: tuple[int, ...], problem: Problem, dtype: torch.dtype | None = None) -> torch.Tensor:
    dtype = dtype or DTYPES[problem.dtype]
    if problem.layout == "nchw" or len(shape) < 4:
        return torch.zeros(shape, dtype=dtype)
    n, c, h, w = shape
    return torch.zeros((n, h, w, c), dtype=dtype).permute(0, 3, 1, 2)


def _shapes(line: Kernel, problem: Problem) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    x, y = problem.x_shape, problem.y_shape
    w = problem.w_shape if isinstance(problem, Conv2dProblem) else ()
    if isinstance(problem, Conv2dProblem):
        operands = {"fprop": [x, w], "dgrad": [y, w], "wgrad": [x, y], "bgrad": [y]}
    else:
        operands = {"fprop": [x], "fprop_argmax": [x], "dgrad": [y, y], "gather": [x, y]}
    results = {"dgrad": x, "wgrad": w, "bgrad": (y[1],)}
    return operands[line.pass_], results.get(line.pass_, y)


def _small(problem: Problem) -> Problem:
    """The problem of what is not zero: two images, or the two ends of the row with zeros between."""
    return replace(problem, n=2) if problem.n > 1 else replace(problem, w=2**10)


def _ends(whole: torch.Tensor, part: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The places of a tensor of the large problem that those of the small one stand for."""
    if whole.shape == part.shape:
        return [(whole, part)]
    if whole.shape[0] != part.shape[0]:
        return [(whole[:1], part[:1]), (whole[-1:], part[-1:])]
    half = part.shape[3] // 2
    return [(whole[..., :half], part[..., :half]), (whole[..., -half:], part[..., -half:])]


@pytest.mark.parametrize(("line", "problem"), _cases())
def test_offsets_past_2_31(line: Kernel, problem: Problem) -> None:
    operand_shapes, result_shape = _shapes(line, problem)
    assert max(math.prod(shape) for shape in (*operand_shapes, result_shape)) > 2**31
    width = DTYPES[problem.dtype].itemsize
    with _alone():
        size = math.prod(result_shape)
        needed = size * (width + 4 * (line.pass_ == "fprop_argmax")) + SPARE_BYTES
        if _free_bytes() < needed:
            pytest.skip(f"takes {needed / 2**30:.1f} GiB of memory, and fewer are free")
        _check(line, problem, operand_shapes)


def _check(line: Kernel, problem: Problem, operand_shapes: list[tuple[int, ...]]) -> None:
    small = _small(problem)
    generator = torch.Generator().manual_seed(0)
    large_operands, small_operands = [], []
    for place, shape in enumerate(operand_shapes):
        part = _zeros(_shapes(line, small)[0][place], small)
        if line.operation == "maxpool2d" and place == 1:  # argmax of a pooling that really took place
            x = torch.randn(small.x_shape, generator=generator)
            part = torch.nn.functional.max_pool2d(x, 2, 2, return_indices=True)[1].int()
            part = part.contiguous(memory_format=small.memory_format)
            whole = _zeros(shape, problem, torch.int32)
        else:
            whole = _zeros(shape, problem)
            values = torch.randint(-4, 5, part.shape, generator=generator).to(part.dtype)
            part.copy_(values)
            if problem.n == 1 and part.dim() == 4 and shape != part.shape:
                # In the long row no window and no column has to do with both ends.
                middle, reach = part.shape[3] // 2, -(-part.shape[3] // 64)
                part[..., middle - reach : middle + reach] = 0
        for end, values_end in _ends(whole, part):
            end.copy_(values_end)
        large_operands.append(whole)
        small_operands.append(part)
    bias = (
        [torch.arange(1.0, problem.k + 1).to(DTYPES[problem.dtype])]
        if line.pass_ == "fprop" and isinstance(problem, Conv2dProblem)
        else []
    )
    got = backends.bind(line, problem)(*large_operands, *bias)
    baseline = replace(line, backend="aten", algorithm="aten")
    # Sums of small integers are exact in float32. A 16-bit result is one rounded once; torch's need not be.
    wide = [t.float() if t.is_floating_point() else t for t in (*small_operands, *bias)]
    want = aten.bind(baseline, replace(small, dtype="f32"))(*wide)
    for whole, part in zip(
        got if isinstance(got, tuple) else (got,), want if isinstance(want, tuple) else (want,), strict=True
    ):
        for end, expected in _ends(whole, part):
            assert torch.equal(end, expected.to(end.dtype)), f"{line.id} on {problem}"
