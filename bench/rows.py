"""What can be read off one row of a result: times, ratios, shares. The row itself holds nanoseconds only."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from pyconv.problem import parse_problem
from pyconv.timing import Spread, ratios, spread

Row = dict[str, Any]
Side = dict[str, Any]


def side(row: Row, library: str, layout: str) -> Side | None:
    """torch's side in a layout, or ours as selection picks it; ``None`` if it was not measured."""
    for each in row["sides"]:
        if (each["library"], each["layout"]) == (library, layout) and each["chosen"]:
            return each  # type: ignore[no-any-return]
    return None


def layouts(row: Row) -> list[str]:
    """The layouts measured, in order."""
    return list(dict.fromkeys(each["layout"] for each in row["sides"]))


def time_ns(each: Side) -> Spread:
    return spread(each["ns"])


def speedup(row: Row, ours: Side, layout: str) -> Spread | None:
    """torch's time in a layout over ours, round by round: above 1 ours is faster."""
    torch = side(row, "torch", layout)
    return spread(ratios(torch["ns"], ours["ns"])) if torch else None


def speedup_over_best(row: Row, ours: Side) -> Spread:
    """The time of torch's faster layout (by its median) over ours."""
    torch = [each for each in row["sides"] if each["library"] == "torch"]
    best = min(torch, key=lambda each: time_ns(each).median)
    return spread(ratios(best["ns"], ours["ns"]))


def extra_ns(row: Row, layout: str) -> Spread | None:
    """Our time minus torch's, round by round."""
    ours, torch = side(row, "pyconv", layout), side(row, "torch", layout)
    if not ours or not torch:
        return None
    return spread([a - b for a, b in zip(ours["ns"], torch["ns"], strict=True)])


def rate(row: Row, each: Side) -> str:
    """``GFLOP/s`` of a convolution pass, ``GB/s`` of a pooling or a bias gradient."""
    ns = time_ns(each).median
    if row["problem"].startswith("conv2d") and row["pass"] != "bgrad":
        return (
            f"{row['flops'] / ns:.0f} GFLOP/s"
            if row["flops"] >= 10 * ns
            else f"{row['flops'] / ns:.2g} GFLOP/s"
        )
    return f"{row['bytes'] / ns:.1f} GB/s"


def share_of_ceiling(row: Row, each: Side, ceilings: dict[str, float]) -> float | None:
    """The least time that the measured ceilings allow over the time taken.

    The least time is that of the operations at the multiply-add ceiling or of the bytes at the copy ceiling,
    whichever is longer. A maximum is no multiply-add, so a pooling has the copy ceiling only.
    """
    if not row["bytes"]:
        return None
    least: float = row["bytes"] / ceilings["copy"]
    if row["problem"].startswith("conv2d"):
        least = max(least, row["flops"] / ceilings[f"fma_{parse_problem(row['problem']).dtype}"])
    return least * 1e9 / time_ns(each).median


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean. Raises ``statistics.StatisticsError`` where there are no values."""
    return statistics.geometric_mean(values)
