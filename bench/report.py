"""Turns a result (JSON, the truth) into Markdown, and compares two results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from bench.bars import BARS, judge
from bench.problems import CALL_PASSES
from bench.rows import (
    Row,
    Side,
    extra_ns,
    geometric_mean,
    layouts,
    rate,
    share_of_ceiling,
    side,
    speedup,
    speedup_over_best,
    time_ns,
)
from pyconv.timing import Spread

Result = dict[str, Any]


def dump(result: Result) -> str:
    """The result as JSON, with the lists of raw numbers on one line each."""
    text = json.dumps(result, indent=1)
    return re.sub(r"\[[-\d.,\se+]+\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads well in a terminal too."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def _ratio(value: Spread | None) -> str:
    return f"{value.median:.2f} [{value.p20:.2f}, {value.p80:.2f}]" if value else "-"


def _ms(each: Side | None) -> str:
    return f"{time_ns(each).median * 1e-6:.3g}" if each else "-"


def _us(value: Spread | None, sign: str = "") -> str:
    if value is None:
        return "-"
    low, median, high = (format(v * 1e-3, f"{sign}.1f") for v in value)
    return f"{median} [{low}, {high}]"


def _algorithm(kernel: str) -> str:
    """``conv2d.fprop.direct@cpu`` -> ``direct@cpu``."""
    return kernel.rsplit(".", 1)[-1]


def progress(row: Row) -> str:
    """One line about a row just measured."""
    parts = [f"{row['problem']} {row['pass']}:"]
    for layout in layouts(row):
        ours = side(row, "pyconv", layout)
        if ours:
            gain = speedup(row, ours, layout)
            parts.append(f"{layout} {_algorithm(ours['kernel'])} {_ms(ours)} ms, torch/ours {_ratio(gain)};")
    parts += [f"{name} FAILED: {why};" for name, why in row["errors"].items()]
    return " ".join(parts).rstrip(";")


# ---- The parts of the page ---------------------------------------------------------------------------------


def bars_table(result: Result) -> str:
    verdicts = [judge(bar, result) for bar in BARS]
    return table(
        ("bar", "required", "measured", "met?"),
        [(verdict.bar.name, verdict.bar.required, verdict.measured, verdict.met) for verdict in verdicts],
    )


def _means_table(rows: Sequence[Row]) -> str:
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in rows:
        for layout in layouts(row):
            ours = side(row, "pyconv", layout)
            gain = speedup(row, ours, layout) if ours else None
            if ours and gain:
                pair = gain.median, speedup_over_best(row, ours).median
                groups.setdefault((row["suite"], row["pass"], layout), []).append(pair)
    return table(
        ("shapes", "pass", "layout", "problems", "torch same layout / ours", "torch best layout / ours"),
        [
            (*key, str(len(pairs)), *(f"{geometric_mean(column):.2f}" for column in zip(*pairs, strict=True)))
            for key, pairs in groups.items()
        ],
    )


def _kernel_lines(result: Result, suite: str) -> list[Sequence[str]]:
    lines: list[Sequence[str]] = []
    for row in result["rows"]:
        if row["suite"] != suite or row["pass"] in CALL_PASSES:
            continue
        for ours in row["sides"]:
            if ours["library"] != "pyconv":
                continue
            share = share_of_ceiling(row, ours, result["ceilings"])
            ms = time_ns(ours)
            lines.append(
                (
                    row["problem"].removesuffix(" nchw").removesuffix(" nhwc"),
                    row["pass"],
                    ours["layout"],
                    _algorithm(ours["kernel"]) + ("" if ours["chosen"] else " (not chosen)"),
                    f"{_ms(ours)} [{ms.p20 * 1e-6:.3g}, {ms.p80 * 1e-6:.3g}]",
                    _ms(side(row, "torch", "nchw")),
                    _ms(side(row, "torch", "nhwc")),
                    _ratio(speedup(row, ours, ours["layout"])),
                    rate(row, ours),
                    "-" if share is None else f"{100 * share:.0f} %" + (" (!)" if share > 1 else ""),
                )
            )
    return lines


def _calls_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        layout = layouts(row)[0]
        ours, torch = side(row, "pyconv", layout), side(row, "torch", layout)
        if ours and torch:
            lines.append(
                (
                    row["problem"],
                    row["pass"],
                    _us(time_ns(ours)),
                    _us(time_ns(torch)),
                    _us(extra_ns(row, layout), "+"),
                    _ratio(speedup(row, ours, layout)),
                )
            )
    return table(("problem", "pass", "ours, us", "torch, us", "ours - torch, us", "torch / ours"), lines)


def _preamble(result: Result) -> str:
    versions, settings, allocator = result["versions"], result["settings"], result["allocator"]
    ceilings = ", ".join(
        f"{1e-9 * value:.0f} " + ("GB/s copy" if name == "copy" else f"GFLOP/s {name.removeprefix('fma_')}")
        for name, value in result["ceilings"].items()
    )
    loads = [row["load"] for row in result["rows"]]
    faults = max((each["faults_per_call"] for row in result["rows"] for each in row["sides"]), default=0)
    setting = " ".join(f"{name}={value or '(unset)'}" for name, value in allocator["settings"].items())
    lines = [
        f"- {result['date']}, commit {result['commit']}; {settings['seconds']:g} s a pass"
        + (", **a rough look (--quick)**" if settings["quick"] else ""),
        f"- {result['machine']['cpu']}, {settings['threads']} threads of {result['machine']['cores']} cores; "
        + ", ".join(f"{name} {value}" for name, value in versions.items()),
        f"- allocator, the same for every side: {allocator['libc']} {setting}"
        + (f" under {', '.join(allocator['preload'])}" if allocator["preload"] else "")
        + f"; at most {faults:g} page faults a call",
        f"- measured ceilings: {ceilings} (the first by a 2048^3 matrix product of torch, a proxy for the "
        "multiply-add peak)",
        f"- load average while measuring: {min(loads):.1f} to {max(loads):.1f}",
    ]
    if settings["forced_kernels"]:
        lines.append(f"- **kernels forced**: {', '.join(settings['forced_kernels'])}")
    return "\n".join(lines)


def markdown(result: Result) -> str:
    """The whole page."""
    kernel_rows = [row for row in result["rows"] if row["pass"] not in CALL_PASSES]
    call_rows = [row for row in result["rows"] if row["pass"] in CALL_PASSES]
    parts = ["# Benchmark", _preamble(result), "## Bars", bars_table(result)]
    if call_rows:
        parts += ["## Calls", _calls_table(call_rows)]
    if kernel_rows:
        parts += ["## Geometric means", _means_table(kernel_rows)]
    header = ["problem", "pass", "layout", "kernel", "ours, ms", "torch NCHW, ms", "torch NHWC, ms"]
    header += ["torch same layout / ours", "rate", "of ceiling"]
    for suite in dict.fromkeys(row["suite"] for row in kernel_rows):
        parts += [f"## {suite}", table(header, _kernel_lines(result, suite))]
    failed = [
        f"- {row['problem']} {row['pass']}: {name}: {why}"
        for row in result["rows"]
        for name, why in row["errors"].items()
    ]
    if failed:
        parts += ["## Failed", "\n".join(failed)]
    parts.append(
        "Times are medians [20th, 80th percentile]; ratios are taken round by round. `(!)`: faster than the "
        "measured ceilings allow: they were measured on a busy machine, the operands fit the cache, or the "
        "measurement is wrong."
    )
    return "\n\n".join(parts) + "\n"


# ---- Two results -------------------------------------------------------------------------------------------


def compare(first: Result, second: Result, names: Sequence[str]) -> str:
    """What both results measured: our times, and the ratios to torch, which cancel the machine."""
    parts = []
    for key in ("machine", "versions", "allocator"):
        if first[key] != second[key]:
            different = [name for name in first[key] if first[key][name] != second[key].get(name)]
            parts.append(f"Not the same {key}: {', '.join(different)}.")
    if first["settings"]["threads"] != second["settings"]["threads"]:
        parts.append("Not the same number of threads.")
    others = {(row["problem"], row["pass"]): row for row in second["rows"]}
    lines: list[Sequence[str]] = []
    gains: dict[str, list[float]] = {}
    for row in first["rows"]:
        other = others.get((row["problem"], row["pass"]))
        if other is None:
            continue
        for layout in layouts(row):
            a, b = side(row, "pyconv", layout), side(other, "pyconv", layout)
            before = speedup(row, a, layout) if a else None
            after = speedup(other, b, layout) if b else None
            if not (a and b and before and after):
                continue
            gain = time_ns(a).median / time_ns(b).median
            gains.setdefault(row["pass"], []).append(gain)
            kernels = list(dict.fromkeys(_algorithm(each["kernel"]) for each in (a, b)))
            lines.append(
                (row["problem"], row["pass"], layout, " -> ".join(kernels), _ms(a), _ms(b), f"{gain:.2f}")
                + (f"{before.median:.2f}", f"{after.median:.2f}")
            )
    if not lines:
        return "\n".join([*parts, "The two results have no problem and pass in common."])
    a_name, b_name = names
    header = ["problem", "pass", "layout", "kernel", f"{a_name}, ms", f"{b_name}, ms", f"{a_name} / {b_name}"]
    header += [f"torch/ours in {a_name}", f"torch/ours in {b_name}"]
    parts.append(table(header, lines))
    parts.append(
        table(
            ("pass", "problems", f"{a_name} / {b_name}, geometric mean"),
            [(name, str(len(values)), f"{geometric_mean(values):.2f}") for name, values in gains.items()],
        )
    )
    return "\n\n".join(parts)
