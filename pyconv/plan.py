"""A plan: one problem on one kind of device, with the chosen kernel of each pass made ready.

All derivatives of a convolution, of every order, are passes over the same problem, so one plan serves them
all. Plans are remembered, since building one costs more than a small convolution.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from pyconv import backends, selection
from pyconv.backends import cuda
from pyconv.problem import Problem
from pyconv.registry import Kernel

#: Plans and choices kept: a backstop against endlessly varying shapes. A plan is about 1 kB.
MOST_REMEMBERED = 4096


_profiler_enabled = torch._C._autograd._profiler_enabled


class Plan:
    """Launches of the passes of ``problem``, chosen and bound when first needed."""

    def __init__(self, problem: Problem, device_type: str, in_force: selection.Settings) -> None:
        self.problem = problem
        self.device_type = device_type
        self._in_force = in_force
        #: torch's switch as it was when the plan was made, where it matters.
        heeds_tf32 = selection.heeds_tf32(problem, device_type, in_force.emulation)
        self.tf32 = in_force.tf32 if heeds_tf32 else None
        self._launches: dict[str, Callable[..., Any]] = {}
        self.kernels: dict[str, Kernel] = {}

    def launch(self, pass_: str, *tensors: Tensor | None) -> Any:
        """Runs one pass. The operands and results are those of :func:`pyconv.backends.bind`."""
        bound = self._launches.get(pass_)
        if bound is None:
            bound = self._bind(pass_)
        if _profiler_enabled():
            with torch.profiler.record_function(f"pyconv:{self.kernels[pass_].id}"):
                return bound(*tensors)
        return bound(*tensors)

    @cached_property
    def argmax_pass(self) -> str:
        """See :func:`pyconv.selection.argmax_pass`."""
        return selection.argmax_pass(self.problem, self.device_type, self._in_force)

    def _bind(self, pass_: str) -> Callable[..., Any]:
        # What was in force for the call that made the plan: a backward outside a `use` block, or in a thread
        # of autograd's, still runs the kernels that its forward asked for.
        kernel = selection._select(self.problem, pass_, self.device_type, self._in_force)
        with cuda.emulating(self._in_force.emulation):
            bound = backends.bind(kernel, self.problem)
            _tell(selection.substitute(kernel, self.device_type, self._in_force))
        self.kernels[pass_] = kernel
        self._launches[pass_] = bound
        return bound


_told = False


def _tell(substitute: str | None) -> None:
    """Says once that another backend runs than the one that should."""
    global _told
    if substitute and not _told:
        _told = True
        warnings.warn(f"pyconv: {substitute}", stacklevel=2)


@lru_cache(maxsize=MOST_REMEMBERED)
def _plan(problem: Problem, device_type: str, in_force: selection.Settings) -> Plan:
    return Plan(problem, device_type, in_force)


def plan_for(problem: Problem, device_type: str) -> Plan:
    """The plan of a problem on a kind of device, under the choices in force now."""
    return _plan(problem, device_type, selection.settings(problem, device_type))


def forget() -> None:
    """Drops every plan."""
    _plan.cache_clear()
    from pyconv import functional

    functional._plans.clear()
