"""Turns the result of ``make gpu`` (JSON, the truth) into Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.problems import CALL_PASSES
from bench.report import dump, table
from bench.rows import Row, Side, geometric_mean, layouts, side, speedup, speedup_over_best, time_ns
from pyconv.timing import spread

Result = dict[str, Any]


def _least_ns(row: Row, ceilings: dict[str, float]) -> float | None:
    """The least time that the measured ceilings allow for the direct algorithm."""
    if not row["bytes"] or not ceilings:
        return None
    least = row["bytes"] / ceilings["copy"]
    if row["problem"].startswith("conv2d") and f"fma_{row['math']}" in ceilings:
        least = max(least, row["flops"] / ceilings[f"fma_{row['math']}"])
    return float(least * 1e9)


def _rate(row: Row, each: Side) -> str:
    ns = time_ns(each).median
    if row["problem"].startswith("conv2d"):
        return f"{row['flops'] / ns * 1e-3:.3g} TFLOP/s"
    return f"{row['bytes'] / ns:.0f} GB/s"


def _ms(each: Side | None) -> str:
    return f"{time_ns(each).median * 1e-6:.3g}" if each else "-"


def _lines(rows: Sequence[Row], ceilings: dict[str, float]) -> list[Sequence[str]]:
    lines: list[Sequence[str]] = []
    for row in rows:
        for ours in row["sides"]:
            if ours["library"] != "pyconv":
                continue
            gain, least = speedup(row, ours, ours["layout"]), _least_ns(row, ceilings)
            share = "-" if least is None else f"{100 * least / time_ns(ours).median:.0f} %"
            lines.append(
                (
                    " ".join(row["problem"].split()[:-2]),
                    row["pass"],
                    ours["layout"],
                    ours["kernel"].split(".")[-1].removesuffix("@cuda")
                    + ("" if ours["chosen"] else " (not chosen)"),
                    _ms(ours),
                    _ms(side(row, "torch", ours["layout"])),
                    "-" if gain is None else f"{gain.median:.2f} [{gain.p20:.2f}, {gain.p80:.2f}]",
                    _rate(row, ours),
                    share,
                )
            )
    return lines


def _means(rows: Sequence[Row]) -> str:
    groups: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in rows:
        for layout in layouts(row):
            ours = side(row, "pyconv", layout)
            gain = speedup(row, ours, layout) if ours else None
            if ours and gain:
                key = (row["suite"], row["math"], row["pass"], layout)
                groups.setdefault(key, []).append((gain.median, speedup_over_best(row, ours).median))
    return table(
        (
            "shapes",
            "math",
            "pass",
            "layout",
            "problems",
            "cuDNN same layout / ours",
            "cuDNN best layout / ours",
        ),
        [
            (*key, str(len(pairs)), *(f"{geometric_mean(column):.2f}" for column in zip(*pairs, strict=True)))
            for key, pairs in sorted(groups.items())
        ],
    )


def _numba(rows: Sequence[Row]) -> str:
    """Each Numba line against its twin in CUDA C++ and against cuDNN in the same layout."""
    lines: list[Sequence[str]] = []
    for row in rows:
        for ours in row["sides"]:
            name, _, backend = ours["kernel"].partition("@")
            if backend != "numba":
                continue
            twins = [each for each in row["sides"] if each["kernel"] == f"{name}@cuda"]
            twin = next((each for each in twins if each["layout"] == ours["layout"]), None)
            cudnn, time = side(row, "torch", ours["layout"]), time_ns(ours).median
            lines.append(
                (
                    " ".join(row["problem"].split()[:-1]),
                    row["pass"],
                    ours["layout"],
                    name.split(".")[-1],
                    _ms(ours),
                    _ms(twin),
                    _ms(cudnn),
                    f"{time_ns(twin).median / time:.2f}" if twin else "-",
                    f"{time_ns(cudnn).median / time:.2f}" if cudnn else "-",
                )
            )
    header = ("problem", "pass", "layout", "algorithm", "Numba, ms", "CUDA C++, ms", "cuDNN, ms")
    return table((*header, "CUDA C++ / Numba", "cuDNN / Numba"), lines)


def _calls(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        ours, theirs = side(row, "pyconv", "nchw"), side(row, "torch", "nchw")
        if ours and theirs:
            a, b = spread(ours["ns"]), spread(theirs["ns"])
            lines.append((row["problem"], row["pass"], f"{a.median * 1e-3:.1f}", f"{b.median * 1e-3:.1f}"))
    return table(("problem", "pass", "ours, us", "torch, us"), lines)


def markdown(result: Result) -> str:
    """The whole page."""
    device, versions = result["device"], result["versions"]
    ceilings = ", ".join(
        f"{value * 1e-12:.3g} " + ("TB/s copy" if name == "copy" else f"TFLOP/s {name.removeprefix('fma_')}")
        for name, value in result["ceilings"].items()
    )
    parts = [
        f"# {device['name']}",
        "\n".join(
            [
                f"- {result['date']}, commit {result['commit']}; {result['settings']['seconds']:g} s a pass",
                f"- {device['name']}, compute capability {device['compute_capability']}, "
                f"{device['multiprocessors']} multiprocessors, driver {device['driver']}",
                "- " + ", ".join(f"{name} {value}" for name, value in versions.items()),
                f"- measured ceilings: {ceilings or 'not measured'}",
            ]
        ),
    ]
    if result["stages"]:
        rows = [
            (
                stage["name"],
                {None: "not run", 0: "passed"}.get(stage["status"], f"failed ({stage['status']})"),
                f"{stage['seconds']:g}",
                " / ".join(stage["summary"]).replace("|", " "),
            )
            for stage in result["stages"]
        ]
        parts += ["## Tests", table(("stage", "outcome", "s", "closing lines"), rows)]
    calls = [row for row in result["rows"] if row["pass"] in CALL_PASSES]
    kernels = [row for row in result["rows"] if row["pass"] not in CALL_PASSES]
    if calls:
        parts += ["## Calls", _calls(calls)]
    if kernels:
        parts += ["## Geometric means", _means(kernels)]
    header = [
        "problem",
        "pass",
        "layout",
        "kernel",
        "ours, ms",
        "cuDNN, ms",
        "cuDNN / ours",
        "rate",
        "of ceiling",
    ]
    for suite, math in dict.fromkeys((row["suite"], row["math"]) for row in kernels):
        rows = [row for row in kernels if (row["suite"], row["math"]) == (suite, math)]
        parts += [f"## {suite}, {math}", table(header, _lines(rows, result["ceilings"]))]
    if result.get("numba_rows"):
        parts += ["## Numba", _numba(result["numba_rows"])]
    failed = [
        f"- {row['math']} {row['problem']} {row['pass']}: {name}: {why}"
        for row in [*result["rows"], *result.get("numba_rows", [])]
        for name, why in row["errors"].items()
    ]
    if failed:
        parts += ["## Failed", "\n".join(failed)]
    if result["left_out"]:
        parts += ["## Left out for lack of time", "\n".join(f"- {line}" for line in result["left_out"])]
    parts.append(
        "Times are medians on the device's clock; ratios are taken round by round, median [20th, 80th "
        "percentile]. Both sides have the same dtype, layout and TF32 setting; torch runs with "
        "`cudnn.benchmark=True`. The share is the least time that the measured ceilings allow for the direct "
        "algorithm over the time taken."
    )
    return "\n\n".join(parts) + "\n"


__all__ = ["dump", "markdown"]
