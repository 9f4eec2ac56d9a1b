"""The bars: what has to be reached, and whether a result reaches it. One line of :data:`BARS` is one bar."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from bench.problems import SHAPES, read_cases
from bench.rows import extra_ns, geometric_mean, side, speedup


@dataclass(frozen=True)
class Bar:
    """A bar over every problem of one shapes file in one pass.

    ``speedup``: geometric mean of torch's NCHW time over ours, at least ``bound``. ``extra_us``: our time
    minus torch's, at most ``bound`` microseconds. ``relative``: our time over torch's, at most ``bound``. The
    last two are for the worst problem of the file.
    """

    name: str
    suite: str
    pass_: str
    kind: Literal["speedup", "extra_us", "relative"]
    bound: float

    @property
    def required(self) -> str:
        return {
            "speedup": f">= {self.bound:g}x torch NCHW (geometric mean)",
            "extra_us": f"<= torch + {self.bound:g} us",
            "relative": f"<= {self.bound:g}x torch's time",
        }[self.kind]


BARS = (
    Bar("convolution fprop", "first_bar_conv", "fprop", "speedup", 0.8),
    Bar("convolution dgrad", "first_bar_conv", "dgrad", "speedup", 0.8),
    Bar("convolution wgrad", "first_bar_conv", "wgrad", "speedup", 0.8),
    Bar("max-pool forward", "first_bar_pool", "fprop", "speedup", 5.0),
    Bar("call without gradients", "call_overhead", "call_no_grad", "extra_us", 3.0),
    Bar("call with gradients, forward", "call_overhead", "call_grad", "extra_us", 8.0),
    Bar("call forward + backward", "call_overhead", "call_step", "relative", 1.0),
)


@dataclass(frozen=True)
class Verdict:
    """``met`` is yes, no, or why it cannot be said; on a busy machine it says so."""

    bar: Bar
    measured: str
    met: str


@cache
def _problems(suite: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(case.problem) for case in read_cases(SHAPES / f"{suite}.txt")))


def judge(bar: Bar, result: dict[str, Any]) -> Verdict:
    """Holds a bar against a result. It is met only if every problem was measured, on kernels of ours."""
    wanted = _problems(bar.suite)
    rows = {row["problem"]: row for row in result["rows"] if row["pass"] == bar.pass_}
    values, borrowed = [], 0
    for problem in wanted:
        row = rows.get(problem)
        ours = side(row, "pyconv", "nchw") if row else None
        if row is None or ours is None:
            continue
        borrowed += ours["kernel"].endswith("@aten")
        gain, extra = speedup(row, ours, "nchw"), extra_ns(row, "nchw")
        if gain is None or extra is None:
            continue
        values.append(
            {"speedup": gain.median, "extra_us": extra.median / 1000, "relative": 1 / gain.median}[bar.kind]
        )
    if not values:
        return Verdict(bar, "-", "not measured")
    if bar.kind == "speedup":
        value = geometric_mean(values)
        measured, reached = f"{value:.2f}x", value >= bar.bound
    else:
        value = max(values)
        measured = f"torch {value:+.1f} us" if bar.kind == "extra_us" else f"{value:.2f}x"
        reached = value <= bar.bound
    if len(values) < len(wanted):
        return Verdict(bar, measured, f"cannot say: {len(values)} of {len(wanted)} problems measured")
    if borrowed:
        return Verdict(bar, measured, f"no: torch's own kernel was chosen for {borrowed} of {len(wanted)}")
    met = "yes" if reached else "no"
    # The benchmark itself is a load of one for each thread; more than one beyond that is somebody else.
    load = max(rows[problem]["load"] for problem in wanted)
    if load > result["settings"]["threads"] + 1:
        met += f", but on a busy machine (load {load:.1f})"
    return Verdict(bar, measured, met)
