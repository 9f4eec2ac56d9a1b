"""The benchmark's bookkeeping: what it reads, calls and counts. No test here asserts a speed."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import contenders, report, run
from bench.bars import BARS
from bench.problems import CALL_PASSES, PASSES, SHAPES, Case, applies, read_cases
from pyconv import parse_problem, timing
from pyconv.machine import last_level_cache
from pyconv.problem import Conv2dProblem, Pool2dProblem

CONV = parse_problem("conv2d n2c4h9w8 k6r3s3 st2 pd1 f32 nchw")
POOL = parse_problem("maxpool2d n2c5h9w8 r3s3 st2 pd1 f32 nchw")

# N, C, H=W, K, R, stride, pad, groups; and N, C, H=W, R, stride, pad.
BAR_CONVOLUTIONS = [
    (16, 3, 224, 64, 11, 4, 2, 1),
    (4, 64, 224, 64, 3, 1, 1, 1),
    (4, 128, 112, 128, 3, 1, 1, 1),
    (4, 256, 56, 256, 3, 1, 1, 1),
    (4, 512, 14, 512, 3, 1, 1, 1),
    (8, 3, 224, 64, 7, 2, 3, 1),
    (8, 64, 56, 256, 1, 1, 0, 1),
    (8, 256, 56, 64, 1, 1, 0, 1),
    (8, 128, 56, 128, 3, 2, 1, 1),
    (8, 256, 56, 512, 1, 2, 0, 1),
    (128, 16, 32, 16, 3, 1, 1, 1),
    (128, 64, 8, 64, 3, 1, 1, 1),
    (256, 1, 28, 6, 5, 1, 2, 1),
    (8, 96, 56, 96, 3, 1, 1, 96),
]
BAR_POOLS = [(8, 64, 112, 3, 2, 1), (8, 64, 224, 2, 2, 0), (128, 64, 32, 2, 2, 0), (8, 256, 28, 3, 1, 1)]


# ---- Shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(SHAPES.glob("*.txt")), ids=lambda path: path.stem)
def test_every_shapes_file_reads_and_its_lines_are_canonical(path: Path) -> None:
    cases = read_cases(path)
    assert cases
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert list(dict.fromkeys(str(case.problem) for case in cases)) == lines
    assert len(set(cases)) == len(cases)


def test_the_bars_are_over_the_shapes_they_name() -> None:
    convolutions = {
        (p.n, p.c, p.h, p.k, p.r, p.stride_h, p.pad_top, p.groups)
        for case in read_cases(SHAPES / "first_bar_conv.txt")
        if isinstance(p := case.problem, Conv2dProblem) and p == _square(p)
    }
    assert convolutions == set(BAR_CONVOLUTIONS)
    pools = {
        (p.n, p.c, p.h, p.r, p.stride_h, p.pad_top)
        for case in read_cases(SHAPES / "first_bar_pool.txt")
        if isinstance(p := case.problem, Pool2dProblem) and p == _square(p)
    }
    assert pools == set(BAR_POOLS)
    for bar in BARS:
        assert bar.pass_ in {case.pass_ for case in read_cases(SHAPES / f"{bar.suite}.txt")}, bar.name


def _square(problem: Any) -> Any:
    pad = dict.fromkeys(("pad_top", "pad_bottom", "pad_left", "pad_right"), problem.pad_top)
    return replace(problem, w=problem.h, s=problem.r, stride_w=problem.stride_h, **pad)


def test_passes_come_from_the_file_the_caller_or_the_kind_of_problem(tmp_path: Path) -> None:
    path = tmp_path / "shapes.txt"
    path.write_text(f"# a comment\n{CONV}\n\n{POOL}\n")
    assert [case.pass_ for case in read_cases(path)] == [
        *("fprop", "dgrad", "wgrad"),
        *("fprop", "fprop_argmax", "dgrad"),
    ]
    assert [case.pass_ for case in read_cases(path, ["wgrad", "dgrad"])] == ["wgrad", "dgrad", "dgrad"]
    path.write_text(f"# passes: bgrad call_step\n{CONV}\n")
    assert [case.pass_ for case in read_cases(path)] == ["bgrad", "call_step"]


@pytest.mark.parametrize("line", ["conv2d n1c1", "# passes: forward"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(f"{CONV}\n{line}\n")
    with pytest.raises(ValueError, match=r"^bad\.txt:2: "):
        read_cases(path)


# ---- Timing, on a clock of its own -------------------------------------------------------------------------


class Clock:
    """Stands for the ``time`` module; only the sides move it."""

    def __init__(self) -> None:
        self.now = 0

    def perf_counter_ns(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now * 1e-9

    def side(self, name: str, cost: int, calls: list[str] | None = None) -> timing.Side:
        def call() -> None:
            self.now += cost
            if calls is not None:
                calls.append(name)

        return timing.Side(name, call, repeat(()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_times_are_those_of_one_call_and_ratios_follow(clock: Clock) -> None:
    timings = timing.interleave([clock.side("a", 6_000_000), clock.side("b", 3_000_000)], seconds=0.9)
    assert timings.inner == 1
    assert timings.ns == {"a": [6e6] * 100, "b": [3e6] * 100}  # 0.9 s of rounds of 9 ms
    assert timing.spread(timing.ratios(timings.ns["a"], timings.ns["b"])) == (2, 2, 2)


def test_short_calls_are_repeated_and_long_ones_still_get_their_rounds(clock: Clock) -> None:
    tiny = timing.interleave([clock.side("a", 500), clock.side("b", 700)], seconds=0.1)
    assert tiny.inner * 500 >= 1_000_000
    assert set(tiny.ns["a"]) == {500}
    assert set(tiny.ns["b"]) == {700}
    long = timing.interleave([clock.side("a", 10**10)], seconds=0.1, least_rounds=4)
    assert long.ns == {"a": [1e10] * 4}


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_side_is_first_equally_often(count: int) -> None:
    orders = [timing._order(count, turn) for turn in range(2 * count)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert sorted(order[0] for order in orders) == sorted(list(range(count)) * 2)
    assert sorted(order[-1] for order in orders) == sorted(list(range(count)) * 2)


def test_the_sides_take_turns_within_a_round(clock: Clock) -> None:
    calls: list[str] = []
    sides = [clock.side(name, 2_000_000, calls) for name in "ab"]
    timing.interleave(sides, seconds=0, least_rounds=4)
    assert "".join(calls[-8:]) == "abbabaab"


def test_spread_is_percentiles() -> None:
    assert timing.spread([5, 1, 4, 2, 3, 6]) == (2, 3.5, 5)
    assert timing.spread([7]) == (7, 7, 7)
    with pytest.raises(ValueError, match="no values"):
        timing.spread([])
    with pytest.raises(ValueError, match="names of their own"):
        timing.interleave([timing.Side("a", print, repeat(()))] * 2, seconds=0)


def test_a_side_against_itself() -> None:
    x = torch.randn(64, 64)
    sides = [timing.Side(name, torch.mm, repeat((x, x))) for name in "ab"]
    timings = timing.interleave(sides, seconds=0.2)
    # Wide: a busy machine must not fail this. It guards units and which side is which divisor.
    assert 0.1 < timing.spread(timing.ratios(timings.ns["a"], timings.ns["b"])).median < 10


# ---- Contenders --------------------------------------------------------------------------------------------


def test_operand_sets_rotate_beyond_the_cache() -> None:
    problem = parse_problem("conv2d n8c16h64w64 k16r3s3 st1 pd1 f32 nhwc")
    operands = contenders.OperandSets(problem, "dgrad")
    assert sum(t.nbytes for each in operands.sets for t in each.values()) >= min(
        2 * last_level_cache(), 64 * problem.y_size * 4
    )
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in operands.sets[0].values())
    one, other = operands.pick(("dy", "w")), operands.pick(("dy",))
    # Two sides that share the sets never get the same one in succession.
    assert next(one)[0] is operands.sets[0]["dy"]
    assert next(other)[0] is operands.sets[1]["dy"]
    assert next(one)[0] is operands.sets[2 % len(operands.sets)]["dy"]
    assert len(contenders.OperandSets(problem, "call_step").sets) == 1


@pytest.mark.parametrize(
    ("problem", "pass_"),
    [(problem, pass_) for problem in (CONV, POOL) for pass_ in PASSES if applies(problem, pass_)],
    ids=str,
)
def test_every_pass_is_measured_in_both_layouts_with_every_kernel(problem: Any, pass_: str) -> None:
    row = run.measure(
        Case("test", problem, pass_), ("nchw", "nhwc"), seconds=0.01, least_rounds=2, all_kernels=True
    )
    assert row["errors"] == {}
    assert {(side["library"], side["layout"]) for side in row["sides"]} == {
        (library, layout) for library in ("pyconv", "torch") for layout in ("nchw", "nhwc")
    }
    for layout in ("nchw", "nhwc"):
        ours = [
            s for s in row["sides"] if (s["library"], s["layout"], s["chosen"]) == ("pyconv", layout, True)
        ]
        assert len(ours) == 1
        assert pass_ in CALL_PASSES or not ours[0]["kernel"].endswith("@aten")
    assert all(len(side["ns"]) >= 2 and min(side["ns"]) > 0 for side in row["sides"])
    assert (row["flops"] > 0) == (pass_ not in CALL_PASSES)


@pytest.mark.parametrize("wrong", [torch.zeros_like, lambda y: y * float("nan"), lambda y: y[:1]])
def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    def broken(problem: Any, pass_: str, device: str) -> contenders.Contender:
        right = contenders.torch_contender(problem, pass_)
        return replace(right, library="pyconv", kernel="broken", call=lambda *o: wrong(right.call(*o)))

    monkeypatch.setattr(run, "our_contender", broken)
    row = run.measure(Case("test", CONV, "fprop"), ("nchw",), seconds=0.01, least_rounds=2)
    assert [side["library"] for side in row["sides"]] == ["torch"]
    assert row["errors"]["pyconv:nchw:broken"].startswith("wrong result: relative L2 difference from torch")
    assert "FAILED" in report.progress(row)


def test_a_difference_hides_no_nan() -> None:
    one, nan = torch.ones(2), torch.full((2,), float("nan"))
    for results in ((one, nan), (nan, one)):
        with pytest.raises(RuntimeError, match="nan"):
            contenders.check_same(CONV, contenders.difference(results, (one, one)))


@pytest.mark.parametrize(("pass_", "mask"), [("dgrad", (1, 0, 0)), ("wgrad", (0, 1, 0))])
def test_torch_computes_only_the_gradient_that_is_compared(pass_: str, mask: tuple[int, ...]) -> None:
    masks = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.convolution_backward.default:
                masks.append(tuple(args[-1]))
            return function(*args, **(kwargs or {}))

    contender = contenders.torch_contender(CONV, pass_)
    operands = contenders.OperandSets(CONV, pass_).first(contender.takes)
    with Recorder():
        contender.call(*operands)
    assert masks == [mask]


def test_padding_per_side_has_no_baseline() -> None:
    problem = parse_problem("conv2d n1c1h9w9 k1r3s3 st1 pd1,0,1,0 f32 nchw")
    with pytest.raises(ValueError, match="torch has no padding per side"):
        contenders.torch_contender(problem, "fprop")
