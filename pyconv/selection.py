"""The one place that chooses a kernel: an explicit choice, else the fastest where it was measured
(:mod:`pyconv.tuning`), else a heuristic from the problem.

Selection never looks at the number of threads or at the data, so the same problem gets the same kernel and
the same bits. ``aten`` (torch's own kernel) is the last resort: it is chosen only where no line of ours
supports the problem, or where it is asked for.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from pyconv import backends, gpu_model, switches, tuning
from pyconv.backends import cuda
from pyconv.backends.emulator import Emulator
from pyconv.errors import UnknownKernel
from pyconv.problem import Conv2dProblem, Pool2dProblem, Problem, parse_problem
from pyconv.registry import BACKENDS, PASSES, Kernel, kernels
from pyconv.tuning_file import Entry


@dataclass(frozen=True)
class Choice:
    """One line of ``explain``: a kernel, and what selection said about it."""

    kernel: Kernel
    chosen: bool
    reason: str
    able: bool = True


#: The environment's choices, read once: kernels to take where they can, and the backend to take them from.
_environment = tuple(os.environ.get("PYCONV_KERNELS", "").replace(",", " ").split())
_backend = os.environ.get("PYCONV_BACKEND", "").strip()


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
            known = {*BACKENDS, *(word for kernel in kernels() for word in _names(kernel))}
            nearest = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
            raise UnknownKernel(
                f"{where}: {name!r} is no algorithm, backend, name or id of the kernel table{hint} "
                "(`pyconv kernels` lists them)"
            )


def check_environment() -> None:
    """Raise :class:`pyconv.errors.UnknownKernel` if ``PYCONV_KERNELS`` names no kernel."""
    _check_names("PYCONV_KERNELS", _environment)


def _names(kernel: Kernel) -> tuple[str, ...]:
    return kernel.algorithm, kernel.backend, kernel.name, kernel.id


def _matches(kernel: Kernel, name: str) -> bool:
    return name in _names(kernel)


# ---- What is in force -------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """What a choice depends on besides the problem and the kind of device."""

    names: tuple[str, ...] = ()
    emulation: Emulator | None = None
    tf32: bool = False
    workspace_limit: int | None = None
    precision: str = "standard"


def tf32() -> bool:
    """Whether torch would compute convolutions of float32 tensors on a GPU in TF32."""
    return bool(_fp32_precision("cuda", "conv") == "tf32")


# What torch.backends.cudnn.conv.fp32_precision and allow_tf32 set, as torch's own convolution reads it.
_fp32_precision = torch._C._get_fp32_precision_getter


def heeds_tf32(problem: Problem, device_type: str, emulation: Emulator | None) -> bool:
    """Whether a choice for this problem depends on :func:`tf32`."""
    if problem.dtype != "f32" or not isinstance(problem, Conv2dProblem):
        return False
    return device_type == "cuda" or emulation is not None


def settings(problem: Problem, device_type: str) -> Settings:
    """What is in force now, as far as it matters to this problem."""
    emulation = cuda.emulation()
    in_tf32 = heeds_tf32(problem, device_type, emulation) and tf32()
    now = switches.current()
    precision = now.precision if isinstance(problem, Conv2dProblem) else "standard"
    return Settings(forced(), emulation, in_tf32, now.workspace_limit, precision)


# ---- Choosing ---------------------------------------------------------------------------------------------

#: Kind of device -> the backends that are taken without being asked for; the next where one is not available.
_NATIVE = {"cpu": ("cpu", "numba-cpu"), "cuda": ("cuda",)}

#: Backend -> the kind of device that it is made for; where it is chosen for the process, it must work there.
_MADE_FOR = {"cpu": "cpu", "numba-cpu": "cpu", "cuda": "cuda", "numba": "cuda"}


def natives(device_type: str) -> list[str]:
    """The backends that are taken without being asked for by name, in this order: ``PYCONV_BACKEND`` if it
    runs on this kind of device, and the first of ours that does.

        Raises:
            ValueError: if ``PYCONV_BACKEND`` is the name of no backend.
            RuntimeError: if it names one that is made for this kind of device and is not available here.
    """
    order = [
        each for each in _NATIVE.get(device_type, ()) if backends.unavailable(each, device_type) is None
    ][:1]
    if not _backend:
        return order
    if _backend not in BACKENDS:
        raise ValueError(f"PYCONV_BACKEND is {_backend!r}; accepted: {', '.join(BACKENDS)}")
    reason = backends.unavailable(_backend, device_type)
    if reason is None:
        return list(dict.fromkeys([_backend, *order]))
    if _MADE_FOR.get(_backend) == device_type:
        raise RuntimeError(f"pyconv: PYCONV_BACKEND={_backend} is not available: {reason}")
    return order


def substitute(kernel: Kernel, device_type: str, in_force: Settings) -> str | None:
    """What a user should know of a kernel that is taken because the backend made for the CPU is missing."""
    if device_type != "cpu" or kernel.backend in ("cpu", _backend):
        return None
    if any(_matches(kernel, name) for name in in_force.names):
        return None
    reasons = [backends.unavailable(each, device_type) for each in _NATIVE["cpu"]]
    if reasons[0] is None:
        return None
    if kernel.backend == "aten":  # Numba is missing too, or has no such dtype
        return f"torch's own kernels run: {'; '.join(filter(None, reasons))}"
    return f"backend {kernel.backend} takes the place of backend cpu: {reasons[0]}"


Preference = list[tuple[str, str]]

_ASKED = "asked for by"

#: Of the twins of CUDA kernels that share what they load, then those that do not; not measured yet.
_NUMBA_PREFERENCE = [
    ("direct_tiled", "tiles in shared memory (not measured)"),
    ("im2col_gemm_tiled", "tiles in shared memory, after im2col (not measured)"),
    ("direct_naive", "takes every problem"),
]


def _preference(problem: Problem, pass_: str, backend: str, able: list[Kernel]) -> Preference:
    """A backend's algorithms in the order of expected speed, each with the reason; ``able`` are its lines."""
    if isinstance(problem, Pool2dProblem) or pass_ == "bgrad" or backend == "numba-cpu":
        return [("direct", "the only algorithm of ours")]
    if backend == "numba":
        return _NUMBA_PREFERENCE
    return _cuda_preference(problem, able) if backend == "cuda" else _cpu_preference(problem, pass_)


def _cpu_preference(problem: Conv2dProblem, pass_: str) -> Preference:
    # Measured by `make bench`.
    direct = ("direct", "the fastest of ours in the geometric mean of the layers measured")
    if problem.groups > 1 and problem.groups == problem.c == problem.k:
        if problem.layout == "nchw" and pass_ != "wgrad":
            return [("direct", "depthwise in nchw: pixels fill the lanes, which suits the direct tile")]
        return [("depthwise", "depthwise: one channel a lane, no sums across channels"), direct]
    return [direct, ("im2col_gemm", "second choice")]


def _cuda_preference(problem: Conv2dProblem, able: list[Kernel]) -> Preference:
    # Not measured yet. Equals stay in the order of the table.
    ordered = sorted(able, key=lambda kernel: (kernel.on_request, _modelled(kernel, problem).seconds))
    return [(kernel.algorithm, "the least time by the model") for kernel in ordered]


def _modelled(kernel: Kernel, problem: Problem) -> gpu_model.Estimate:
    return gpu_model.estimate(kernel, problem, gpu_model.present_gpu())


def choices(
    problem: Problem,
    pass_: str,
    device_type: str = "cpu",
    in_force: Settings | None = None,
    *,
    tuned: bool = True,
) -> list[Choice]:
    """Every line of the table for this operation and pass, with what selection says about it.

    ``in_force`` stands for :func:`settings`; without ``tuned``, nothing that was measured is heeded.
    """
    operation = "conv2d" if isinstance(problem, Conv2dProblem) else "maxpool2d"
    if pass_ not in PASSES[operation]:
        raise ValueError(f"pass {pass_!r} is none of {', '.join(PASSES[operation])}")
    lines = kernels(operation, pass_)
    in_force = in_force or settings(problem, device_type)
    if in_force.names == _environment:
        check_environment()
    why_not = {kernel.id: _why_not(kernel, problem, device_type, in_force) for kernel in lines}
    able = [kernel for kernel in lines if why_not[kernel.id] is None]
    with cuda.emulating(in_force.emulation):
        taken = natives(device_type)
    entry = tuning.lookup(problem, pass_, device_type, in_force) if tuned else None
    chosen, reason = _choose(problem, pass_, taken, able, in_force, entry)

    def said(kernel: Kernel) -> str:
        if why_not[kernel.id]:
            return f"not able: {why_not[kernel.id]}"
        text = (
            f"chosen: {reason}"
            if kernel is chosen
            else _why_not_chosen(kernel, chosen, reason, taken, device_type, entry)
        )
        is_modelled = kernel.backend == device_type == "cuda" and operation == "conv2d" and pass_ != "bgrad"
        return f"{text}; {_modelled(kernel, problem)}" if is_modelled else text

    return [Choice(kernel, kernel is chosen, said(kernel), why_not[kernel.id] is None) for kernel in lines]


def _why_not(kernel: Kernel, problem: Problem, device_type: str, in_force: Settings) -> str | None:
    with cuda.emulating(in_force.emulation):
        reason = backends.unavailable(kernel.backend, device_type) or kernel.supports(problem)
    if reason is None and problem.dtype == "f32" and "tf32" in kernel.accuracy and not in_force.tf32:
        return "torch's switch for TF32 in convolutions is off (torch.backends.cudnn.conv.fp32_precision)"
    limit = in_force.workspace_limit
    if reason is None and limit is not None and (needed := backends.workspace_bytes(kernel, problem)) > limit:
        return f"{needed:,} bytes of workspace, and pyconv.set_workspace_limit is {limit:,}"
    return reason or _too_imprecise(kernel, in_force.precision)


def _too_imprecise(kernel: Kernel, precision: str) -> str | None:
    """Why a line may not be taken under a precision."""
    switch = f"the algorithm precision is {precision!r}, and"
    if precision == "exact" and kernel.algebra != "direct":
        return f"{switch} this is {kernel.algebra} (pyconv.set_algorithm_precision)"
    error = kernel.error_bound
    if error is None or "tf32" in kernel.accuracy or (precision == "fast" and error <= switches.FAST_ERROR):
        return None
    if precision == "fast":
        return f"{switch} its error may be {error:g}, above {switches.FAST_ERROR:g}"
    return f"{switch} its error may be {error:g}: takes 'fast' (pyconv.set_algorithm_precision)"


def _choose(
    problem: Problem,
    pass_: str,
    taken: list[str],
    able: list[Kernel],
    in_force: Settings,
    entry: Entry | None,
) -> tuple[Kernel | None, str]:
    reasons = {
        (backend, algorithm): (rank, reason)
        for backend in dict.fromkeys(kernel.backend for kernel in able if kernel.backend != "aten")
        for rank, (algorithm, reason) in enumerate(
            _preference(problem, pass_, backend, [kernel for kernel in able if kernel.backend == backend])
        )
    }
    unranked = (len(reasons), "no other of ours supports the problem")

    def rank(kernel: Kernel) -> tuple[int, int]:
        place = taken.index(kernel.backend) if kernel.backend in taken else len(taken)
        return place, reasons.get((kernel.backend, kernel.algorithm), unranked)[0]

    ordered = sorted(able, key=rank)  # lines of the same rank stay in the order of the table
    for name in in_force.names:
        for kernel in ordered:
            if _matches(kernel, name):
                return kernel, f"{_ASKED} {name!r}"
    if entry and (fastest := _fastest(entry, able)):
        return fastest, str(entry)
    for kernel in ordered:
        if kernel.backend == _backend:
            return kernel, f"PYCONV_BACKEND is {_backend}"
        if kernel.backend in taken:
            return kernel, reasons.get((kernel.backend, kernel.algorithm), unranked)[1]
    for kernel in able:
        if kernel.backend == "aten":
            return kernel, "last resort: no kernel of ours supports the problem"
    return None, "nothing supports the problem"


def _fastest(entry: Entry, able: list[Kernel]) -> Kernel | None:
    """The line that was measured to be the fastest, if it is able; PYCONV_BACKEND is an explicit choice."""
    lines = [kernel for kernel in able if kernel.backend == _backend] or able
    return next((kernel for kernel in lines if kernel.id == entry.kernel and not kernel.on_request), None)


def _why_not_chosen(
    kernel: Kernel,
    chosen: Kernel | None,
    reason: str,
    taken: list[str],
    device_type: str,
    entry: Entry | None,
) -> str:
    if chosen is not None and reason.startswith(_ASKED):
        return f"not chosen: {chosen.id} is {reason}"
    tuned = entry if reason.startswith(tuning.TUNED) else None
    if tuned and kernel.id in tuned.milliseconds:
        return f"not chosen: {tuned.milliseconds[kernel.id]:.3g} ms when measured"
    if kernel.backend == "aten" != _backend:
        return "not chosen: torch's own kernel, the last resort"
    if tuned and chosen is not None and not kernel.on_request:
        return f"not chosen: {chosen.id} was measured to be the fastest"
    if chosen is not None and kernel.backend != chosen.backend == _backend:
        return f"not chosen: PYCONV_BACKEND is {_backend}"
    if kernel.backend not in taken:
        when = "when asked for"
        if taken and kernel.backend in _NATIVE.get(device_type, ()):
            when = f"when asked for, or where backend {taken[0]} is not available,"
        return f"not chosen: backend {kernel.backend} is taken only {when} on {device_type}"
    if kernel.on_request:
        return "not chosen: taken only when asked for, until it is measured on a device"
    return f"not chosen: {chosen.algorithm if chosen else 'nothing'} is expected to be faster"


@lru_cache(maxsize=4096)
def _select(problem: Problem, pass_: str, device_type: str, in_force: Settings) -> Kernel:
    lines = choices(problem, pass_, device_type, in_force)
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
    return _select(problem, pass_, device_type, settings(problem, device_type))


def argmax_pass(problem: Problem, device_type: str, in_force: Settings) -> str:
    """The forward pass of a max-pooling that is to be differentiated.

    ``fprop_tap``, whose argmax is one byte instead of four, where that pass and its derivatives are chosen as
    ``fprop_argmax`` is: from the same backend, and by name if that is.
    """

    def choice(pass_: str) -> tuple[str, bool] | None:
        lines = choices(problem, pass_, device_type, in_force)
        chosen = next((each for each in lines if each.chosen), None)
        return (chosen.kernel.backend, _ASKED in chosen.reason) if chosen else None

    by_tap = {choice(pass_) for pass_ in ("fprop_tap", "dgrad_tap", "gather_tap")}
    return "fprop_tap" if by_tap == {choice("fprop_argmax")} != {None} else "fprop_argmax"


def forget() -> None:
    """Drops remembered choices, after the table or the environment has changed."""
    _select.cache_clear()
    tuning.refresh()
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
