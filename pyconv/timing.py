"""Timing of two or more sides against each other, in one process.

On a GPU a turn is timed by two events on the stream, so that it is the device's time that counts; where the
call itself is measured it is the wall clock on every device.

The sides take turns within a round, and the order changes from round to round, so that what disturbs the
machine disturbs all of them; ratios are taken round by round and summed up as a median with the 20th and
80th percentile. Calls that are too short for the clock are repeated within a round.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

#: A side's turn lasts at least this long: 10^4 ticks of a 100 ns clock.
_LEAST_TURN_NS = 1_000_000
_MOST_ROUNDS = 400
#: Time for the host to queue a turn, in cycles of about 2 GHz: a tenth of a millisecond, and 50 microseconds
#: for each call, which can be three launches by way of Python.
_SLEEP_CYCLES, _SLEEP_CYCLES_OF_CALL = 200_000, 100_000


class Spread(NamedTuple):
    """20th percentile, median and 80th percentile."""

    p20: float
    median: float
    p80: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of measured values. Raises ``ValueError`` where there are none."""
    if not values:
        raise ValueError("spread: no values")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return Spread(cuts[0], statistics.median(values), cuts[3])


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Quotients, round by round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


@dataclass(frozen=True)
class Side:
    """One contender: what is called, and endlessly many operands for it.

    Sides may share one iterator; then no side finds in the cache what the side before it has just used.
    """

    name: str
    call: Callable[..., Any]
    operands: Iterator[tuple[Any, ...]]


@dataclass(frozen=True)
class Timings:
    """What was measured: per side the nanoseconds of one call in each round.

    ``faults`` is the number of page faults per call: above zero, the side pays for memory that the allocator
    gave back, and the comparison is of allocators, not of kernels.
    """

    ns: dict[str, list[float]]
    faults: dict[str, float]
    inner: int
    load: float


#: Times ``inner`` calls of a side: nanoseconds and page faults.
Turn = Callable[[Side, int], tuple[int, int]]


def wall_turn(side: Side, inner: int) -> tuple[int, int]:
    """Wall-clock nanoseconds and page faults of ``inner`` calls. Each result is freed before the next."""
    operands = [next(side.operands) for _ in range(inner)]
    call = side.call
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    start = time.perf_counter_ns()
    for each in operands:
        call(*each)
    elapsed = time.perf_counter_ns() - start
    return elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


def device_turn(side: Side, inner: int) -> tuple[int, int]:
    """As :func:`wall_turn`, by events on torch's current CUDA stream: the device's nanoseconds."""
    operands = [next(side.operands) for _ in range(inner)]
    call = side.call
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    # The calls of a turn are queued behind this sleep, so that the device never waits for the host.
    torch.cuda._sleep(_SLEEP_CYCLES + inner * _SLEEP_CYCLES_OF_CALL)
    start.record()
    for each in operands:
        call(*each)
    end.record()
    end.synchronize()
    return int(start.elapsed_time(end) * 1e6), 0


def waiting_turn(side: Side, inner: int) -> tuple[int, int]:
    """As :func:`wall_turn`, for calls on a CUDA device so small that the host's time is what counts."""
    torch.cuda.synchronize()
    elapsed, faults = wall_turn(side, inner)
    torch.cuda.synchronize()
    return elapsed, faults


def _order(count: int, turn: int) -> list[int]:
    """The order of the sides in a round: forward and backward in turn, each side first equally often."""
    first = (turn // 2) % count
    order = [(first + i) % count for i in range(count)]
    return order[::-1] if turn % 2 else order


def interleave(
    sides: Sequence[Side], *, seconds: float, least_rounds: int = 5, turn: Turn = wall_turn
) -> Timings:
    """Times the sides in turn for about ``seconds`` in all, and for ``least_rounds`` rounds at least.

    Args:
        turn: How a turn is timed: by the wall clock, :func:`device_turn` or :func:`waiting_turn`.
    """
    names = [side.name for side in sides]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"interleave: the sides need names of their own, got {names}")
    for side in sides:  # the first call pays for choosing, binding and allocating; it is never counted
        turn(side, 2)
    inner = 1
    while inner < 10_000:
        fastest = min(turn(side, inner)[0] for side in sides)
        if fastest >= _LEAST_TURN_NS:
            break
        inner = min(10_000, max(2 * inner, int(inner * 1.2 * _LEAST_TURN_NS / max(fastest, 1))))
    ns: dict[str, list[float]] = {name: [] for name in names}
    faults = dict.fromkeys(names, 0)
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.monotonic() + seconds
        rounds = 0
        while rounds < least_rounds or (time.monotonic() < end and rounds < _MOST_ROUNDS):
            for index in _order(len(sides), rounds):
                elapsed, missed = turn(sides[index], inner)
                ns[names[index]].append(elapsed / inner)
                faults[names[index]] += missed
            rounds += 1
    finally:
        if collecting:
            gc.enable()
    per_call = {name: count / (rounds * inner) for name, count in faults.items()}
    return Timings(ns, per_call, inner, os.getloadavg()[0])
