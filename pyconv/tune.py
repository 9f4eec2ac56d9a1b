"""Measures the lines of the table on problems, for ``pyconv tune``, and keeps which is the fastest.

Every line that selection could take under the switches in force is timed, in turns
(:mod:`pyconv.timing`), on operands that rotate through more memory than the last-level cache. torch's own
kernels are timed beside them where that is asked for: only then may one win.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from pyconv import backends, selection, switches, tuning
from pyconv.backends.signature import Value, signature
from pyconv.errors import TuningError
from pyconv.machine import last_level_cache
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import PASSES, Kernel
from pyconv.timing import Side, Turn, device_turn, interleave, spread, wall_turn
from pyconv.tuning_file import Entry
from pyconv.tuning_store import keep

#: Turns that a line gets to show what it can, and how many times the shortest one's it may take to get more.
_TRIES, _HOPELESS = 3, 4.0
#: More sets than this only warm up slowly: the problem is then so small that it lives in the cache anyway.
_MOST_SETS = 64
#: A pass -> the one that makes its argmax.
_PRODUCERS = {
    "dgrad": "fprop_argmax",
    "gather": "fprop_argmax",
    "dgrad_tap": "fprop_tap",
    "gather_tap": "fprop_tap",
}


@dataclass(frozen=True)
class Outcome:
    """What came of one pass of one problem.

    Attributes:
        entry: ``None`` where nothing was measured.
        note: Why not; or the lines that were left out, each with the reason.
        failed: It should have been measured, and could not be.
    """

    problem: Problem
    pass_: str
    entry: Entry | None
    note: str = ""
    failed: bool = False

    def __str__(self) -> str:
        if self.entry is None:
            return f"{self.pass_}: {'not measured: ' if self.failed else ''}{self.note}"
        times = sorted(self.entry.milliseconds.items(), key=lambda item: item[1])
        rest = "".join(f"; {kernel_id} {time:.3g} ms" for kernel_id, time in times[1:])
        note = f"; {self.note}" if self.note else ""
        return f"{self.pass_}: {self.entry.kernel} {self.entry}{rest}{note}"


def tune(
    problems: Iterable[Problem],
    device_type: str = "cpu",
    seconds: float = 4.0,
    include_aten: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Measures every pass of each problem; keeps and from now on heeds what was the fastest.

    Args:
        device_type: ``cpu`` or ``cuda``, the first device there.
        seconds: For one problem, shared by its passes. Each takes five rounds at least.
        include_aten: Whether torch's own kernels may win.
        say: Gets a line for each problem and pass.

    Raises:
        TuningError: after all that can be done, if a pass could not be measured or times not be kept.
    """
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 1.5 * cores:
        say(f"this machine is busy (load {load:.1f} on {cores} cores): what is measured now may mislead")
    outcomes: list[Outcome] = []
    not_kept: str | None = None
    for problem in problems:
        say(str(problem))
        passes = PASSES["conv2d" if isinstance(problem, Conv2dProblem) else "maxpool2d"]
        here = []
        for pass_ in passes:
            here.append(measure(problem, pass_, device_type, seconds / len(passes), include_aten))
            if here[-1].entry or here[-1].note:
                say(f"  {here[-1]}")
        outcomes += here
        try:
            if measured := [outcome.entry for outcome in here if outcome.entry]:
                keep(measured)
        except TuningError as error:
            if not_kept is None:
                warnings.warn(f"pyconv: {error}; measuring goes on", stacklevel=2)
            not_kept = str(error)
    if not_kept:
        raise TuningError(f"what was measured is not kept: {not_kept}")
    if failed := [outcome for outcome in outcomes if outcome.failed]:
        first = failed[0]
        more = f" (and {len(failed) - 1} more)" if failed[1:] else ""
        raise TuningError(f"{first.pass_} of '{first.problem}' could not be measured{more}: {first.note}")
    return outcomes


def measure(problem: Problem, pass_: str, device_type: str, seconds: float, include_aten: bool) -> Outcome:
    """Times the lines that can do one pass of a problem, under the switches in force."""
    in_force = selection.settings(problem, device_type)._replace(names=(), emulation=None)
    lines = selection.choices(problem, pass_, device_type, in_force, tuned=False)
    able = [line.kernel for line in lines if line.able]
    untuned = next((line.kernel for line in lines if line.chosen), None)
    candidates = [
        kernel for kernel in able if not kernel.on_request and (include_aten or kernel.backend != "aten")
    ]
    if untuned is None or not candidates:
        return Outcome(problem, pass_, None)
    if len(candidates) == 1:
        return Outcome(problem, pass_, None, f"{candidates[0].id} is the only line")
    turn = first_device_turn if device_type == "cuda" else wall_turn
    try:
        sets = operand_sets(problem, pass_, device_type)
        sides, left_out = _worth_timing(candidates, problem, sets, turn, keep=untuned)
        timings = interleave(sides, seconds=seconds, turn=turn)
    except RuntimeError as error:  # no memory, for one
        return Outcome(problem, pass_, None, " ".join(str(error).split()), failed=True)
    times = {name: float(f"{spread(ns).median * 1e-6:.5g}") for name, ns in timings.ns.items()}
    key = tuning.key_of(problem, pass_, device_type, in_force)
    assert key is not None, device_type
    entry = Entry(
        key,
        min(times, key=lambda name: times[name]),
        untuned.id,
        times,
        torch.get_num_threads(),
        datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    return Outcome(problem, pass_, entry, "; ".join(left_out))


def first_device_turn(side: Side, inner: int) -> tuple[int, int]:
    """A turn on the device that is measured, whichever is the current one."""
    with torch.cuda.device(0):
        return device_turn(side, inner)


def _worth_timing(
    candidates: Sequence[Kernel], problem: Problem, sets: Iterator[tuple[Any, ...]], turn: Turn, keep: Kernel
) -> tuple[list[Side], list[str]]:
    """The candidates that run and are not hopelessly slow, and what is said of each of the others.

    Raises:
        RuntimeError: if none of them runs.
    """
    tried: dict[str, tuple[Side, int]] = {}
    left_out = []
    for kernel in candidates:
        try:
            side = Side(kernel.id, backends.bind(kernel, problem), sets)
            turn(side, 1)  # compiles, allocates
            tried[kernel.id] = side, min(turn(side, 1)[0] for _ in range(_TRIES))
        except Exception as error:  # of whatever kind: another line may do it
            left_out.append(f"{kernel.id} fails: {' '.join(str(error).split())}")
    if not tried:
        raise RuntimeError("; ".join(left_out))
    most = _HOPELESS * min(time for _, time in tried.values())
    left_out += [
        f"{name} about {time * 1e-6:.3g} ms"
        for name, (_, time) in tried.items()
        if time > most and name != keep.id
    ]
    return [side for name, (side, time) in tried.items() if time <= most or name == keep.id], left_out


def operand_sets(problem: Problem, pass_: str, device_type: str) -> Iterator[tuple[Tensor | None, ...]]:
    """Endlessly many operands of a pass: sets of equal content, together twice the last-level cache."""
    device = torch.device(device_type, 0) if device_type == "cuda" else torch.device(device_type)
    generator = torch.Generator(device).manual_seed(0)

    def make(value: Value) -> Tensor | None:
        if value.name == "bias":
            return None
        if value.name == "argmax":
            producer = _PRODUCERS[pass_]
            bound = backends.bind(selection.select(problem, producer, device_type), problem)
            argmax: Tensor = bound(make(signature(problem, producer).operands[0]))[1]
            return argmax
        numbers = torch.randn(value.shape, generator=generator, device=device)
        return numbers.to(value.dtype).contiguous(memory_format=value.memory_format)

    first = [make(value) for value in signature(problem, pass_).operands]
    size = sum(tensor.nbytes for tensor in first if tensor is not None)
    count = min(_MOST_SETS, max(1, math.ceil(2 * last_level_cache(device_type) / max(size, 1))))
    copies = [[None if each is None else each.clone() for each in first] for _ in range(count - 1)]
    return itertools.cycle(tuple(each) for each in (first, *copies))


@contextlib.contextmanager
def switched(
    precision: str | None = None, workspace_limit: int | None = None, tf32: bool | None = None
) -> Iterator[None]:
    """Within the block, these switches are in force in the whole process; those left out stay as they are."""
    limit = switches.get_workspace_limit()
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    try:
        if workspace_limit is not None:
            switches.set_workspace_limit(workspace_limit)
        if tf32 is not None:
            conv.fp32_precision = "tf32" if tf32 else "ieee"
        with switches.algorithm_precision(precision or switches.get_algorithm_precision()):
            yield
    finally:
        switches.set_workspace_limit(limit)
        conv.fp32_precision = before
