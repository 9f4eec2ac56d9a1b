"""How the CUDA kernels of max-pooling number their work: ``items.cuh`` and ``items.py``."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyconv.kernels.maxpool2d import items
from pyconv.kernels.maxpool2d.items import Divider, Items

from pyconv import backends, reference
from pyconv.autograd import Pool2dRegistered
from pyconv.backends import cuda
from pyconv.problem import Pool2dProblem, parse_problem
from pyconv.registry import find, kernels
from tests.memory import lay_out, values
from tests.operands import expected, operands

LINES = [kernel for kernel in kernels("maxpool2d") if kernel.backend == "cuda"]


@given(st.integers(1, 2**31 - 1), st.data())
def test_division_by_multiplication_is_exact(divisor: int, data: st.DataObject) -> None:
    """As ``quotient`` of items.cuh does it, and in 32 bits."""
    by = Divider.of(divisor)
    near = data.draw(st.integers(0, (2**31 - 1) // divisor)) * divisor
    for numerator in {max(near - 1, 0), near, min(near + divisor - 1, 2**31 - 1), 2**31 - 1}:
        total = (numerator * by.multiplier >> 32) + numerator
        assert total < 2**32
        assert total >> by.shift == numerator // divisor


def _pool(text: str) -> Pool2dProblem:
    problem = parse_problem(text)
    assert isinstance(problem, Pool2dProblem)
    return problem


def _launches(text: str, pass_: str) -> list[Items]:
    program = find(f"maxpool2d.{pass_}.direct@cuda").program
    assert program is not None
    return [step.arguments[-1] for step in program(_pool(text)).steps]  # type: ignore[misc]


def test_more_items_than_32_bits_number_take_several_launches() -> None:
    text = "maxpool2d n1000c64h400w400 r1s1 st1 pd0 f32 nchw"  # 10 G elements
    parts = _launches(text, "fprop")
    assert len(parts) == 10
    assert sum(part.count for part in parts) == _pool(text).y_size
    at = 0
    for part in parts:
        assert part.count <= items.MOST_ITEMS
        assert part.count % 400 == 0
        image, row = divmod(at // 400, 400)
        assert (part.first_image, part.first_group) == (image, row)
        at += part.count


@pytest.mark.parametrize("kernel", LINES, ids=lambda kernel: kernel.id)
@pytest.mark.parametrize(
    "text",
    [
        f"maxpool2d n5c8h11w7 {window} f32 {layout}"
        for window, layout in itertools.product(("r3s3 st2 pd1", "r2s3 st1 pd1"), ("nchw", "nhwc"))
    ],
)
def test_a_launch_continues_where_the_one_before_ended(
    monkeypatch: pytest.MonkeyPatch, kernel: object, text: str
) -> None:
    kernel, problem = find(kernel.id), _pool(text)  # type: ignore[attr-defined]
    arrays = operands(problem, kernel.pass_, "integers")
    monkeypatch.setattr(items, "MOST_ITEMS", 61)
    assert kernel.program is not None
    assert len(kernel.program(problem).steps) > 1
    with cuda.emulated(checked=False):
        result = backends.bind(kernel, problem)(
            *(lay_out(array, problem.torch_dtype, problem.layout) for array in arrays)
        )
    got = result if isinstance(result, tuple) else (result,)
    for new, old in zip(got, expected(problem, kernel.pass_, arrays), strict=True):
        assert (values(new) == old).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"maxpool2d n1c1h1w{2**29} r1s1 st1 pd0 f32 nchw", "w spans"),
        (f"maxpool2d n1c{2**20}h1w{2**10} r1s1 st1 pd0 f32 nhwc", "a row of x spans"),
        (f"maxpool2d n1c1h{2**17}w{2**17} r1s1 st1 pd0 f32 nhwc", "exceeds 32-bit places"),
        ("maxpool2d n1c1h20w20 r16s16 st1 pd0 f32 nhwc", "a window of 256 places"),
    ],
)
def test_what_cannot_be_counted_is_refused(text: str, reason: str) -> None:
    problem = _pool(text)
    refused = {kernel.pass_: kernel.supports(problem) for kernel in LINES}
    for pass_, why_not in refused.items():
        by_place, by_tap = pass_ in ("fprop_argmax", "dgrad", "gather"), pass_.endswith("_tap")
        concerned = by_place if "places" in reason and "32" in reason else by_tap if "256" in reason else True
        assert (reason in (why_not or "")) == concerned, (pass_, why_not)


def test_taps_become_places() -> None:
    """Where the registered operators, which know places, go on for a pooling by taps."""
    problem = _pool("maxpool2d n1c2h420w19 r3s3 st1 pd1 dl200x9 f32 nchw")  # a byte times 200
    x = operands(problem, "fprop_tap", "special")[0]
    form = Pool2dRegistered(
        [problem.h, problem.w],
        ((3, 3), (1, 1), problem.padding, (200, 9), problem.ceil_mode, False),
    )
    places = form._places(torch.from_numpy(reference.maxpool2d_fprop_tap(problem, x)[1]))
    assert (places.numpy() == reference.maxpool2d_fprop_argmax(problem, x)[1]).all()
