"""A plan: one problem on one kind of device, with the chosen kernel of each pass made ready.

All derivatives of a convolution, of every order, are passes over the same problem, so one plan serves them
all. Plans are remembered, since building one costs more than a small convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pyconv import backends, selection
from pyconv.problem import Problem
from pyconv.registry import Kernel

#: Plans and choices kept: a backstop against endlessly varying shapes. A plan is about 1 kB.
MOST_REMEMBERED = 4096


_profiler_enabled = torch._C._autograd._profiler_enabled


class Plan:
    """Launches of the passes of ``problem``, chosen and bound when first needed."""

    def __init__(self, problem: Problem, device_type: str, names: tuple[str, ...]) -> None:
        self.problem = problem
        self.device_type = device_type
        self._names = names
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

    def _bind(self, pass_: str) -> Callable[..., Any]:
        # The names are those of the call that made the plan: a backward outside a `use` block still
        # runs the kernels that its forward asked for.
        kernel = selection._select(self.problem, pass_, self.device_type, self._names)
        bound = backends.bind(kernel, self.problem)
        self.kernels[pass_] = kernel
        self._launches[pass_] = bound
        return bound


@lru_cache(maxsize=MOST_REMEMBERED)
def _plan(problem: Problem, device_type: str, names: tuple[str, ...]) -> Plan:
    return Plan(problem, device_type, names)


def plan_for(problem: Problem, device_type: str) -> Plan:
    """The plan of a problem on a kind of device, under the choices in force now."""
    return _plan(problem, device_type, selection.forced())


def forget() -> None:
    """Drops every plan."""
    _plan.cache_clear()
    from pyconv import functional

    functional._plans.clear()
