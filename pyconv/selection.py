"""The one place that chooses a kernel: an explicit choice, else a heuristic from the problem.

Selection never looks at the number of threads or at the data, so the same problem gets the same kernel and
the same bits. ``aten`` (torch's own kernel) is the last resort: it is chosen only where no line of ours
supports the problem, or where it is asked for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

from pyconv import backends
from pyconv.problem import Conv2dProblem, Pool2dProblem, Problem, parse_problem
from pyconv.registry import BACKENDS, PASSES, Kernel, kernels


@dataclass(frozen=True)
class Choice:
    """One line of ``explain``: a kernel, and what selection said about it."""

    kernel: Kernel
    chosen: bool
    reason: str


#: The environment's choice, read once.
_environment = tuple(os.environ.get("PYCONV_KERNELS", "").replace(",", " ").split())


_forced: ContextVar[tuple[str, ...]] = ContextVar("pyconv_forced", default=_environment)

#: What :func:`use` or ``PYCONV_KERNELS`` asks for now: algorithms, backends, names or ids.
forced = _forced.get


@contextlib.contextmanager
def use(*names: str) -> Iterator[None]:
    """Within the block, take kernels matching ``names`` wherever one of them supports the problem.

    Args:
        names: An algorithm (``direct``), a backend (``aten``), a kernel's name
            (``conv2d.fprop.direct``) or id (``conv2d.fprop.direct@cpu``); the first that fits wins. Where
            none fits, selection goes on as usual.

    Raises:
        ValueError: if a name matches no line of the table.
    """
    _check_names("use", names)
    token = _forced.set(names)
    try:
        yield
    finally:
        _forced.reset(token)


def _check_names(where: str, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in BACKENDS and not any(_matches(kernel, name) for kernel in kernels()):
            raise ValueError(
                f"{where}: {name!r} is no algorithm, backend, name or id of the kernel table; "
                "see `pyconv kernels`"
            )


def _matches(kernel: Kernel, name: str) -> bool:
    return name in (kernel.algorithm, kernel.backend, kernel.name, kernel.id)


def _preference(problem: Problem, pass_: str) -> list[tuple[str, str]]:
    """Our algorithms in the order of expected speed, each with the reason. Measured by ``make bench``."""
    if isinstance(problem, Pool2dProblem) or pass_ == "bgrad":
        return [("direct", "the only algorithm of ours")]
    direct = ("direct", "the fastest of ours in the geometric mean of the layers measured")
    if problem.groups > 1 and problem.groups == problem.c == problem.k:
        if problem.layout == "nchw" and pass_ != "wgrad":
            return [("direct", "depthwise in nchw: pixels fill the lanes, which suits the direct tile")]
        return [("depthwise", "depthwise: one channel a lane, no sums across channels"), direct]
    return [direct, ("im2col_gemm", "second choice")]


def choices(
    problem: Problem, pass_: str, device_type: str = "cpu", names: tuple[str, ...] | None = None
) -> list[Choice]:
    """Every line of the table for this operation and pass, with what selection says about it.

    ``names`` stands for what :func:`use` asks for; ``None`` is what it asks for now.
    """
    operation = "conv2d" if isinstance(problem, Conv2dProblem) else "maxpool2d"
    if pass_ not in PASSES[operation]:
        raise ValueError(f"pass {pass_!r} is none of {', '.join(PASSES[operation])}")
    lines = kernels(operation, pass_)
    why_not = {
        kernel.id: backends.unavailable(kernel.backend, device_type) or kernel.supports(problem)
        for kernel in lines
    }
    able = [kernel for kernel in lines if why_not[kernel.id] is None]
    if names is None or names == _environment:
        _check_names("PYCONV_KERNELS", _environment)
    chosen, reason = _choose(problem, pass_, able, forced() if names is None else names)
    return [
        Choice(kernel, True, f"chosen: {reason}")
        if kernel is chosen
        else Choice(kernel, False, f"not able: {why_not[kernel.id]}")
        if why_not[kernel.id]
        else Choice(kernel, False, _why_not_chosen(kernel, chosen))
        for kernel in lines
    ]


def _choose(
    problem: Problem, pass_: str, able: list[Kernel], names: tuple[str, ...]
) -> tuple[Kernel | None, str]:
    for name in names:
        for kernel in able:
            if _matches(kernel, name):
                return kernel, f"asked for by {name!r}"
    for algorithm, reason in _preference(problem, pass_):
        for kernel in able:
            if kernel.algorithm == algorithm and kernel.backend != "aten":
                return kernel, reason
    for kernel in able:
        if kernel.backend == "aten":
            return kernel, "last resort: no kernel of ours supports the problem"
    return None, "nothing supports the problem"


def _why_not_chosen(kernel: Kernel, chosen: Kernel | None) -> str:
    if kernel.backend == "aten":
        return "not chosen: torch's own kernel, the last resort"
    return f"not chosen: {chosen.algorithm if chosen else 'nothing'} is expected to be faster"


@lru_cache(maxsize=4096)
def _select(problem: Problem, pass_: str, device_type: str, names: tuple[str, ...]) -> Kernel:
    lines = choices(problem, pass_, device_type, names)
    for choice in lines:
        if choice.chosen:
            return choice.kernel
    reasons = "; ".join(f"{choice.kernel.id}: {choice.reason}" for choice in lines)
    raise RuntimeError(f"pyconv: no kernel can do {pass_} of '{problem}' on {device_type}: {reasons}")


def select(problem: Problem, pass_: str, device_type: str = "cpu") -> Kernel:
    """The kernel for one pass of a problem on a kind of device.

    Raises:
        RuntimeError: with every line's reason, if none can do it.
    """
    return _select(problem, pass_, device_type, forced())


def forget() -> None:
    """Drops remembered choices, after the table or the environment has changed."""
    _select.cache_clear()
    from pyconv import plan

    plan.forget()


class Explanation(dict[str, list[Choice]]):
    """For each pass, every line of the table and what selection says of it; ``str()`` is for reading."""

    def __init__(self, problem: Problem, choices_by_pass: dict[str, list[Choice]]) -> None:
        super().__init__(choices_by_pass)
        self.problem = problem

    def __str__(self) -> str:
        lines = [str(self.problem)]
        for pass_, lines_of_table in self.items():
            gflop, megabytes = self.problem.flops(pass_) / 1e9, self.problem.bytes(pass_) / 1e6
            lines.append(f"{pass_}: {gflop:.4g} Gflop, at least {megabytes:.4g} MB of traffic")
            lines += [
                f"  {'*' if choice.chosen else ' '} {choice.kernel.id:<36} {choice.reason}"
                for choice in lines_of_table
            ]
        return "\n".join(lines)


def explain(problem: Problem | str, device_type: str = "cpu") -> Explanation:
    """Which kernel runs each pass of a problem, and why each of the others does not.

    Args:
        problem: A descriptor or its text form. ``print(pyconv.explain("conv2d ..."))`` shows the whole table.

    Raises:
        ValueError: if the text form is not understood.
    """
    if isinstance(problem, str):
        problem = parse_problem(problem)
    operation = "conv2d" if isinstance(problem, Conv2dProblem) else "maxpool2d"
    return Explanation(problem, {pass_: choices(problem, pass_, device_type) for pass_ in PASSES[operation]})
