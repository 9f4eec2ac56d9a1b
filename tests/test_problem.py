"""The problem descriptors: validation, text form, sizes, work and traffic, and the C twins."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import conv_flop_count

from pyconv import Conv2dProblem, Pool2dProblem, parse_problem
from pyconv.backends import cpu
from pyconv.problem import CONV2D_PASSES, DTYPES, LAYOUTS, POOL2D_PASSES, Problem

CONV = Conv2dProblem(2, 4, 6, 7, 8, 3, 2, groups=2)
POOL = Pool2dProblem(2, 4, 6, 7, 3, 2)

_size = st.integers(0, 300)
_positive = st.integers(1, 40)


@st.composite
def conv2d_problems(draw: st.DrawFn) -> Conv2dProblem:
    groups = draw(st.integers(1, 5))
    n, h, w, group_c, group_k = (draw(_size) for _ in range(5))
    r, s, stride_h, stride_w = (draw(_positive) for _ in range(4))
    pads = [draw(st.integers(0, 9)) for _ in range(4)]
    return Conv2dProblem(
        n, group_c * groups, h, w, group_k * groups, r, s, stride_h, stride_w, *pads,
        draw(st.integers(1, 4)), draw(st.integers(1, 4)), groups,
        draw(st.sampled_from(list(DTYPES))), draw(st.sampled_from(LAYOUTS)),
    )  # fmt: skip


@st.composite
def pool2d_problems(draw: st.DrawFn) -> Pool2dProblem:
    n, c, h, w = (draw(_size) for _ in range(4))
    r, s, stride_h, stride_w = (draw(_positive) for _ in range(4))
    pads = [draw(st.integers(0, 9)) for _ in range(4)]
    return Pool2dProblem(
        n, c, h, w, r, s, stride_h, stride_w, *pads, draw(st.integers(1, 4)), draw(st.integers(1, 4)),
        draw(st.booleans()), draw(st.sampled_from(list(DTYPES))), draw(st.sampled_from(LAYOUTS)),
    )  # fmt: skip


# ---- Text ----


@settings(deadline=None)
@given(st.one_of(conv2d_problems(), pool2d_problems()))
def test_text_parses_back(problem: Problem) -> None:
    assert parse_problem(str(problem)) == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "conv2d n8c64h56w56 k64r3s3 st1 pd1 f32 nhwc",
            Conv2dProblem(8, 64, 56, 56, 64, 3, 3, 1, 1, 1, 1, 1, 1, layout="nhwc"),
        ),
        (
            "conv2d n8c96h56w56 k96r3s3 st2 pd1 g96 f32 nchw",
            Conv2dProblem(8, 96, 56, 56, 96, 3, 3, 2, 2, 1, 1, 1, 1, groups=96),
        ),
        (
            "conv2d n1c3h9w7 k4r5s3 st2x1 pd1,2,0,3 dl1x2 f64 nchw",
            Conv2dProblem(1, 3, 9, 7, 4, 5, 3, 2, 1, 1, 2, 0, 3, 1, 2, dtype="f64"),
        ),
        (
            "conv2d n1c1h5w5 k1r3s3 st1 pd1x0 f32 nchw",
            Conv2dProblem(1, 1, 5, 5, 1, 3, 3, pad_top=1, pad_bottom=1),
        ),
        (
            "maxpool2d n8c64h112w112 r3s3 st2 pd1 ceil f32 nchw",
            Pool2dProblem(8, 64, 112, 112, 3, 3, 2, 2, 1, 1, 1, 1, ceil_mode=True),
        ),
    ],
)
def test_text_of_known_problems(text: str, problem: Problem) -> None:
    assert str(problem) == text
    assert parse_problem(text) == problem


def test_text_defaults_and_order() -> None:
    short = parse_problem("conv2d k8r3s3 n1c4h5w6")
    assert short == Conv2dProblem(1, 4, 5, 6, 8, 3, 3)
    assert parse_problem("maxpool2d n1c4h5w6 r2s2") == Pool2dProblem(1, 4, 5, 6, 2, 2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "starts with ''"),
        ("conv3d n1c1h1w1 k1r1s1", "'conv3d'"),
        ("conv2d n1c1h1w1 k1r1", "no s"),
        ("conv2d c1h1w1 k1s1", "no n, r"),
        ("maxpool2d n1c1h1w1 r1", "no s"),
        ("conv2d n1c1h1w1 k1r1s1 pd1,2", "'pd1,2'"),
        ("conv2d n1c1h1w1 k1r1s1 pd1,2,3,4,5", "'pd1,2,3,4,5'"),
        ("conv2d n1c1h1w1 k1r1s1 st", "'st'"),
        ("conv2d n1c1h1w1 k1r1s1 stx2", "'stx2'"),
        ("conv2d n1c1h1w1 k1r1s1 f8", "'f8'"),
        ("conv2d n1c1h1w1 k1r1s1 ceil", "'ceil'"),
        ("maxpool2d n1c1h1w1 r1s1 g2", "'g2'"),
        ("maxpool2d n1c1h1w1 k1r1s1", "'k1r1s1'"),
        ("conv2d n1c1h1w1 k1r1s1 n2", "gives n a second time"),
        ("conv2d n1c1h1w1 k1r1s1 st1 st2", "gives stride_h a second time"),
        ("conv2d n1c1h1w1 k1r1s1 f32 f64", "gives dtype a second time"),
        ("conv2d n1c1h1w1 k1r0s1", "r must be an integer >= 1"),
        ("conv2d n1c1h1w1 k1r1s1 st0", "stride_h must be an integer >= 1"),
        ("conv2d n1c3h1w1 k4r1s1 g2", "c=3 is not divisible by groups=2"),
    ],
)
def test_text_errors_name_the_word(text: str, named: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are compared below)
        parse_problem(text)
    assert named in str(error.value)


# ---- Validation ----


@pytest.mark.parametrize("problem", [CONV, POOL], ids=["conv2d", "maxpool2d"])
def test_every_field_is_validated_and_named(problem: Problem) -> None:
    at_least_one = {"r", "s", "stride_h", "stride_w", "dilation_h", "dilation_w", "groups"}
    names = [name for name in vars(problem) if name not in ("dtype", "layout", "ceil_mode")]
    assert len(names) >= 14
    for name in names:
        least = 1 if name in at_least_one else 0
        wrong: list[Any] = [least - 1, 1.0, True, None, "1"]
        for value in wrong:
            with pytest.raises(ValueError, match=rf"{name} must be an integer >= {least}, got "):
                replace(problem, **{name: value})
    with pytest.raises(ValueError, match="dtype must be one of f32, f64, f16, bf16, got 'f8'"):
        replace(problem, dtype="f8")
    with pytest.raises(ValueError, match="layout must be one of nchw, nhwc, got 'chwn'"):
        replace(problem, layout="chwn")  # type: ignore[arg-type]


def test_groups_divide_both_channels() -> None:
    with pytest.raises(ValueError, match="c=5 is not divisible by groups=2"):
        replace(CONV, c=5)
    with pytest.raises(ValueError, match="k=5 is not divisible by groups=2"):
        replace(CONV, k=5)


@pytest.mark.parametrize(
    ("base", "changes", "volume"),
    [
        (CONV, {"h": 2**31, "w": 2**31, "r": 1, "s": 1, "stride_h": 2**20, "c": 2}, "x"),
        (CONV, {"k": 2**61, "n": 0}, "w"),
        (CONV, {"pad_top": 2**31, "pad_left": 2**31}, "y"),
        (POOL, {"h": 2**31, "w": 2**31}, "x"),
        (POOL, {"pad_top": 2**31, "pad_left": 2**31}, "y"),
    ],
)
def test_volumes_past_int64_are_refused(base: Problem, changes: dict[str, int], volume: str) -> None:
    with pytest.raises(ValueError, match=rf"{volume} would have \d+ elements, more than 2\^63 - 1 bytes"):
        replace(base, **changes)


def test_descriptors_are_values() -> None:
    assert hash(replace(CONV)) == hash(CONV)
    assert replace(CONV) == CONV
    assert replace(CONV, pad_top=1) != CONV
    with pytest.raises(AttributeError):
        CONV.n = 3  # type: ignore[misc]


# ---- Sizes, work, traffic ----

#: Computed by hand from the published layers: problem, p, {pass: (flops, bytes)}.
KNOWN = [
    (
        "conv2d n4c64h224w224 k64r3s3 st1 pd1 f32 nchw",  # VGG-16, second layer
        224,
        {
            "fprop": (14_797_504_512, 102_907_904),
            "dgrad": (14_797_504_512, 102_907_904),
            "wgrad": (14_797_504_512, 102_907_904),
            "bgrad": (12_845_056, 51_380_480),
        },
    ),
    (
        "conv2d n8c3h224w224 k64r7s7 st2 pd3 f32 nhwc",  # ResNet, first layer
        112,
        {"fprop": (1_888_223_232, 30_544_640), "bgrad": (6_422_528, 25_690_368)},
    ),
    (
        "conv2d n8c96h56w56 k96r3s3 st1 pd1 g96 f64 nchw",  # depthwise
        56,
        {"fprop": (43_352_064, 38_542_080), "wgrad": (43_352_064, 38_542_080)},
    ),
    (
        "maxpool2d n8c64h112w112 r3s3 st2 pd1 f32 nchw",  # ResNet, its pool
        56,
        {
            "fprop": (14_450_688, 32_112_640),
            "fprop_argmax": (14_450_688, 38_535_168),
            "dgrad": (1_605_632, 38_535_168),
            "gather": (0, 19_267_584),
        },
    ),
]


@pytest.mark.parametrize(("text", "extent", "passes"), KNOWN)
def test_work_of_known_layers(text: str, extent: int, passes: dict[str, tuple[int, int]]) -> None:
    problem = parse_problem(text)
    assert problem.p == problem.q == extent
    assert {name: (problem.flops(name), problem.bytes(name)) for name in passes} == passes


@settings(deadline=None)
@given(conv2d_problems())
def test_flops_agree_with_torch_and_with_the_gemm(problem: Conv2dProblem) -> None:
    expected = conv_flop_count(problem.x_shape, problem.w_shape, problem.y_shape)
    for pass_ in ("fprop", "dgrad", "wgrad"):
        assert problem.flops(pass_) == expected
    for pass_ in ("fprop", "wgrad"):
        m, n, k = problem.gemm(pass_)
        assert 2 * m * n * k * problem.groups == expected
    nhw = problem.n * problem.h * problem.w
    assert problem.gemm("dgrad") == (nhw, problem.group_c, problem.group_k * problem.r * problem.s)


def test_unknown_pass_is_refused() -> None:
    for problem in (CONV, POOL):
        for method in (problem.flops, problem.bytes):
            # bgrad's flops are a special case, so a wrong name must not fall through to a formula.
            with pytest.raises((KeyError, ValueError)):
                method("backward")


def _random_problems(count: int) -> list[Problem]:
    """Reproducible problems, a third of them degenerate: no output, no channels, filters beyond the image."""
    draw = random.Random(20240229)
    problems: list[Problem] = []
    for index in range(count):
        tiny = index % 3 == 0
        size = (lambda: draw.choice((0, 0, 1, 2))) if tiny else (lambda: draw.randint(1, 70))
        groups = draw.choice((1, 1, 2, 3, 7))
        n, h, w, group_c, group_k = (size() for _ in range(5))
        spatial = [draw.randint(1, 9), draw.randint(1, 9), draw.randint(1, 5), draw.randint(1, 5)]
        spatial += [draw.randint(0, 4) for _ in range(4)] + [draw.randint(1, 3), draw.randint(1, 3)]
        kind = (draw.choice(list(DTYPES)), draw.choice(LAYOUTS))
        problems.append(Conv2dProblem(n, groups * group_c, h, w, groups * group_k, *spatial, groups, *kind))
        problems.append(Pool2dProblem(n, group_c, h, w, *spatial, draw.random() < 0.5, *kind))
    # Past 2^31 elements, where a 32-bit size anywhere would show.
    problems.append(Conv2dProblem(2**12, 2**10, 2**10, 2**10, 2**10, 3, 3, layout="nhwc"))
    problems.append(Pool2dProblem(2**12, 2**10, 2**10, 2**10, 2, 2, 2, 2))
    problems.append(Conv2dProblem(1, 1, 2**33, 1, 1, 1, 1, stride_h=2**32, pad_top=2**32))
    return problems


def test_c_and_python_agree() -> None:
    problems = _random_problems(400)
    degenerate = sum(problem.y_size == 0 for problem in problems)
    assert 100 < degenerate < 700, "the list must hold both kinds"
    for problem in problems:
        sizes = cpu.c_sizes(problem)
        assert sizes["struct_bytes"] == sizes["struct_bytes_python"], problem
        python = {"p": problem.p, "q": problem.q, "x_size": problem.x_size, "y_size": problem.y_size}
        python["w_size"] = problem.w_size if isinstance(problem, Conv2dProblem) else 0
        assert {name: sizes[name] for name in python} == python, problem


@pytest.mark.parametrize("problem", [CONV, POOL], ids=["conv2d", "maxpool2d"])
def test_c_struct_keeps_each_field(problem: Problem) -> None:
    # Distinct values, so that two swapped fields cannot agree by chance.
    names = [name for name in vars(problem) if name not in ("dtype", "layout", "ceil_mode", "groups")]
    distinct = {name: 12 + 2 * place for place, name in enumerate(names)}
    twin = replace(problem, **distinct, dtype="bf16", layout="nhwc")
    struct = twin.to_c()
    assert [name for name, _ in struct._fields_] == list(vars(problem))
    assert all(getattr(struct, name) == value for name, value in distinct.items())
    assert (struct.dtype, struct.layout) == (3, 1)


def test_output_extents_agree_with_torch() -> None:
    checked = 0
    for problem in _random_problems(150):
        x = torch.empty(problem.x_shape, device="meta")
        stride = (problem.stride_h, problem.stride_w)
        dilation = (problem.dilation_h, problem.dilation_w)
        padding = (problem.pad_top, problem.pad_left)
        if isinstance(problem, Conv2dProblem):
            if problem.y_size == 0 or problem.x_size == 0 or problem.n > 1000:
                continue
            padded = replace(problem, pad_bottom=problem.pad_top, pad_right=problem.pad_left)
            if padded.y_size == 0:
                continue
            w = torch.empty(problem.w_shape, device="meta")
            y = F.conv2d(x, w, None, stride, padding, dilation, problem.groups)
        else:
            padding = (min(problem.pad_top, problem.r // 2), min(problem.pad_left, problem.s // 2))
            top, left = padding
            padded = replace(problem, pad_top=top, pad_bottom=top, pad_left=left, pad_right=left)
            if padded.y_size == 0 or problem.x_size == 0:
                continue
            window = (problem.r, problem.s)
            y = F.max_pool2d(x, window, stride, padding, dilation, problem.ceil_mode)
        assert tuple(y.shape) == padded.y_shape, padded
        checked += 1
    assert checked > 100


def test_every_pass_has_its_figures() -> None:
    for problem, passes in ((CONV, CONV2D_PASSES), (POOL, POOL2D_PASSES)):
        for pass_ in passes:
            assert problem.flops(pass_) >= 0
            assert problem.bytes(pass_) > 0
        assert replace(problem, dtype="f64").bytes(passes[0]) == 2 * problem.bytes(passes[0])
        assert replace(problem, dtype="bf16").bytes(passes[0]) * 2 == problem.bytes(passes[0])
