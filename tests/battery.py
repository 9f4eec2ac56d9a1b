"""The battery: what every line of the kernel table has to pass, on every problem of the shared list.

:data:`CHECKS` are functions of a line and a problem. Each either returns ``None``, having run; or returns
:class:`Unclaimed`, which is counted as unsupported, or :class:`CannotRun`, counted as skipped; or raises
:class:`Failure`, whose text names the kernel, the problem, the first wrong index, what was expected and what
came. Kernels are called only through :func:`pyconv.backends.bind`, so any backend can be judged, on any
:class:`tests.devices.Device`; every call, whatever it is for, also proves that the inputs are untouched and
that the result has the shape, dtype and layout of the problem (:meth:`tests.case.Case.launch`).

Where a launch is slow, the battery is asked for in short: the same checks in a third of the launches, each of
which then serves several of them (:class:`tests.case.Short`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from pyconv.problem import Problem
from pyconv.registry import Kernel
from tests import accuracy, memory
from tests.case import CannotRun, Case, Crash, Failure, Outcome, Short, Unclaimed, first_wrong
from tests.devices import Device, device_of
from tests.operands import OPERANDS, Array, expected, is_sum, operands

# ---- Values --------------------------------------------------------------------------------------------


def check_value(case: Case) -> Outcome:
    """Sums: relative L2 error within what the line is allowed. Selections (max, gather): equal to the bit."""
    kernel, problem = case.kernel, case.problem
    if not is_sum(problem, kernel.pass_):
        for kind in ("normal", "integers", "special"):
            arrays = operands(problem, kernel.pass_, kind)
            want = expected(problem, kernel.pass_, arrays)
            _same_selection(case, case.launch(arrays), want, f"on {kind} values")
        return None
    if problem.dtype == "f64" and not accuracy.HAS_LONGDOUBLE:
        return CannotRun("no type more precise than float64 here; judged by exact integers alone")
    got, want = [], []
    for draw in range(accuracy.draws(problem, kernel.pass_, case.short is not None)):
        got += case.launch(operands(problem, kernel.pass_, "normal", draw)) if draw else case.normal_result()
        want += accuracy.exact(problem, kernel.pass_, draw)
    error, allowed = accuracy.relative_error(got, want), accuracy.allowed(kernel, problem)
    if not error <= allowed:  # a NaN is an error too
        which = (
            "twice torch's own, and one rounding" if kernel.error_bound is None else "the line's own bound"
        )
        raise case.fail(
            f"relative L2 error {error:.3g}, allowed {allowed:.3g} ({which}); worst: {_worst(got, want)}"
        )
    return None


def _worst(got: list[Array], want: list[Array]) -> str:
    """Where the largest error of all draws is."""
    with np.errstate(invalid="ignore"):
        distances = [np.nan_to_num(np.abs(a - b), nan=np.inf) for a, b in zip(got, want, strict=True)]
    draw = int(np.argmax([distance.max(initial=0) for distance in distances]))
    index = np.unravel_index(int(distances[draw].argmax()), distances[draw].shape)
    return (
        f"result{[int(i) for i in index]} of draw {draw} is {got[draw][index]!s}, "
        f"expected {float(want[draw][index])!s}"
    )


def _same_selection(case: Case, got: list[Array], want: tuple[Array, ...], note: str) -> None:
    for part, (new, old) in enumerate(zip(got, want, strict=True)):
        # Which of several NaNs is returned shows in the argmax; their bits are not compared.
        wrong = (new != old) | (np.signbit(new) != np.signbit(old))
        wrong &= ~(np.isnan(new) & np.isnan(old))
        if wrong.any():
            raise case.fail(f"{note}: {first_wrong(wrong, part, old, new)}")


def check_exact_integers(case: Case) -> Outcome:
    """Exact where every product and partial sum is a small integer, whatever the order of the sums.

    A 16-bit result is the exact sum rounded once: the integers of :func:`tests.operands.integer_limits` make
    every step that was taken in 16 bits, and any other rounding, show.
    """
    kernel, problem = case.kernel, case.problem
    if not kernel.exact_integers:
        return Unclaimed("does not claim exact_integers")
    arrays = operands(problem, kernel.pass_, "integers")
    without_bias = [(*arrays[:2], None)] if (kernel.operation, kernel.pass_) == ("conv2d", "fprop") else []
    for given in (arrays, *without_bias):
        want = accuracy.exact_integers(problem, kernel.pass_, given)
        for part, (new, old) in enumerate(zip(case.launch(given), want, strict=True)):
            if (new != old).any():
                raise case.fail(f"on small integers: {first_wrong(new != old, part, old, new)}")
    return None


# ---- Memory --------------------------------------------------------------------------------------------


_NO_POISON = "memory cannot be poisoned here (needs glibc's M_PERTURB)"


def _repeatable(case: Case) -> tuple[Array, ...]:
    """Operands on which two runs may be compared: integers, if the order of the sums may vary."""
    return operands(case.problem, case.kernel.pass_, "normal" if case.kernel.deterministic else "integers")


def check_poison(case: Case) -> Outcome:
    """Results and workspace come filled with NaN, then with a large number, and none of it may show."""
    if not memory.can_poison(case.device.tensors):
        return CannotRun(_NO_POISON)
    arrays = _repeatable(case)
    want = case.launch(arrays)
    for byte in memory.POISONS:
        note = f"memory was filled with {byte:#x} and shows (not overwritten, or read too soon)"
        case.agrees(case.launch(arrays, poison=byte), want, note)
    return None


def check_views(case: Case) -> Outcome:
    """Strided, sliced, misaligned and other-layout operands, among NaN, give what dense ones give."""
    arrays = _repeatable(case)
    want = case.launch(arrays)
    for placement in memory.placements(len(arrays)):
        note = f"operands placed {', '.join(placement)}"
        case.agrees(case.launch(arrays, placement, note=f"{note}: "), want, note)
    return None


# ---- Claims --------------------------------------------------------------------------------------------


def check_deterministic(case: Case) -> Outcome:
    """Equal to the bit from run to run, and for any number of threads, or order of them."""
    if not case.kernel.deterministic:
        return Unclaimed("does not claim deterministic")
    arrays = operands(case.problem, case.kernel.pass_, "normal")
    want = case.normal_result()
    first, *others = case.device.ways[:2] if case.short else case.device.ways
    for way in others:
        case.same_bits(case.launch(arrays, way=way), want, f"{way} differs from {first}")
    return None


def check_batch_invariant(case: Case) -> Outcome:
    """A sample alone gives the bits it gives in a batch, wherever it stands there."""
    kernel, problem = case.kernel, case.problem
    if not kernel.batch_invariant:
        return Unclaimed("does not claim batch_invariant")
    if kernel.operation == "conv2d" and kernel.pass_ in ("wgrad", "bgrad"):
        raise case.fail("claims batch_invariant, but its result is a sum over the batch")
    batched = replace(problem, n=max(problem.n, 2 if case.short else 3))
    arrays = operands(batched, kernel.pass_, "normal")
    whole = case.normal_result() if batched == problem else case.launch(arrays, problem=batched)
    alone = replace(problem, n=1)
    batch_names = [name for name in OPERANDS[kernel.operation, kernel.pass_] if name not in ("w", "bias")]
    for sample in (batched.n - 1,) if case.short else (0, batched.n - 1):
        given = tuple(
            array[sample : sample + 1] if name in batch_names else array
            for name, array in zip(OPERANDS[kernel.operation, kernel.pass_], arrays, strict=True)
        )
        want = [part[sample : sample + 1] for part in whole]
        note = f"sample {sample} alone differs from sample {sample} of a batch of {batched.n}"
        case.same_bits(case.launch(given, problem=alone), [np.ascontiguousarray(part) for part in want], note)
    return None


def check_nonfinite(case: Case) -> Outcome:
    """One NaN or infinity in one operand reaches exactly the results that the line's claim allows.

    In short, a NaN in one operand and an infinity in the next.
    """
    kernel, problem = case.kernel, case.problem
    if kernel.nonfinite == "tile":
        return Unclaimed("claims no more than nonfinite=tile")
    arrays = operands(problem, kernel.pass_, "normal")
    clean = case.normal_result()
    names = OPERANDS[kernel.operation, kernel.pass_]
    able = [i for i, name in enumerate(names) if name != "argmax" and arrays[i].size]
    touches = [[(i, 0, np.nan)] for i in able] + [[(i, -1, np.inf)] for i in able]
    if case.short and able:
        first = case.short.launches % len(able)
        touches = [[(able[first], 0, np.nan), (able[(first + 1) % len(able)], -1, np.inf)]]
    for touch in touches:
        given, notes = list(arrays), []
        for operand, place, value in touch:
            given[operand] = given[operand].copy()
            given[operand].flat[place] = value
            index = np.unravel_index(place % arrays[operand].size, arrays[operand].shape)
            notes.append(f"{names[operand]}{[int(i) for i in index]} = {value}")
        _check_reach(case, tuple(given), clean, ", ".join(notes))
    return None


def _check_reach(case: Case, given: tuple[Array, ...], clean: list[Array], note: str) -> None:
    kernel, problem = case.kernel, case.problem
    got = case.launch(given)[0]
    with np.errstate(invalid="ignore"):
        allowed = [expected(problem, kernel.pass_, given)[0]]
        if kernel.nonfinite == "padding" and kernel.pass_ != "bgrad":
            allowed.append(expected(problem, kernel.pass_, given, padding_multiplied=True)[0])
    is_right = np.zeros(got.shape, bool)
    for want in allowed:
        is_right |= (np.isnan(got) & np.isnan(want)) | (np.isinf(want) & (got == want))
        # Where the element takes no part, the result is what it was without it.
        is_right |= np.isfinite(want) & (np.isfinite(got) if not kernel.deterministic else got == clean[0])
    selects = not is_sum(problem, kernel.pass_)
    if selects:  # a maximum may change to another finite value
        is_right |= got == allowed[0]
    if not is_right.all():
        shown = np.where(np.isfinite(allowed[0]) & (not selects), clean[0], allowed[0])
        raise case.fail(f"nonfinite={kernel.nonfinite}, with {note}: {first_wrong(~is_right, 0, shown, got)}")


CHECKS: dict[str, Callable[[Case], Outcome]] = {
    "value": check_value,
    "exact_integers": check_exact_integers,
    "poison": check_poison,
    "views": check_views,
    "deterministic": check_deterministic,
    "batch_invariant": check_batch_invariant,
    "nonfinite": check_nonfinite,
}


#: Those that a short battery makes; the others are part of every launch of it.
_IN_SHORT = tuple(check for check in CHECKS if check not in ("poison", "views"))


@dataclass
class Verdict:
    """What the battery found of one line on one problem."""

    ran: list[str] = field(default_factory=list)
    unsupported: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def judge(
    kernel: Kernel,
    problem: Problem,
    checks: tuple[str, ...] = tuple(CHECKS),
    device: Device | None = None,
    in_short: bool = False,
) -> Verdict:
    """Every check of the battery on one line and one problem.

    Args:
        checks: Names of :data:`CHECKS`.
        device: Where; else where the line's backend is judged (:func:`tests.devices.device_of`).
        in_short: In few launches (:class:`tests.case.Short`).
    """
    device, verdict = device or device_of(kernel), Verdict()
    short = Short() if in_short else None
    if in_short:
        checks = tuple(check for check in checks if check in _IN_SHORT)
    reason = device.unavailable(kernel.backend)
    if reason and device.name in kernel.proved:
        what = f"it is proved on {device.name}, but its backend is not available: {reason}"
        verdict.failures = [str(Case("available", kernel, problem, device).fail(what))]
        return verdict
    if reason:
        verdict.skipped = [(check, reason) for check in checks]
        return verdict
    reason = kernel.supports(problem)
    if reason:
        verdict.unsupported = [(check, reason) for check in checks]
        return verdict
    if in_short and not memory.can_poison(device.tensors):
        verdict.skipped.append(("poison", _NO_POISON))
    for check in checks:
        try:
            why_not = CHECKS[check](Case(check, kernel, problem, device, short))
        except Failure as failure:
            verdict.failures.append(str(failure))
            if isinstance(failure, Crash):
                break
            continue
        if why_not is None:
            verdict.ran.append(check)
        elif isinstance(why_not, Unclaimed):
            verdict.unsupported.append((check, str(why_not)))
        else:
            verdict.skipped.append((check, str(why_not)))
    return verdict
