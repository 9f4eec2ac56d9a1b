"""Where the battery runs a kernel: on this machine's processor, on the emulator of CUDA, or on a CUDA device.

A line's backend decides (:func:`device_of`). The emulator takes tensors of the CPU and runs the checked
build: what it finds (a race, an access out of bounds, a read of what nobody wrote) is raised by the launch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pyconv import backends
from pyconv.backends import numba_cpu
from pyconv.problem import Problem
from pyconv.registry import Kernel

#: Backends for GPUs, whose kernels run on the emulator too.
EMULATED = ("cuda", "numba")

#: The orders in which the emulator can run blocks and threads.
ORDERS = ("forward", "reverse", "odd", "random")


class Device:
    """A place to run kernels.

    Attributes:
        name: As in ``proved`` of a line, and in the summary of the battery.
        tensors: The kind of device that the tensors are on.
        ways: What must not change a bit of a result that claims to be deterministic, for :meth:`running`. The
            others are compared with the first.
    """

    name: str
    tensors: str
    ways: tuple[str, ...]

    def unavailable(self, backend: str) -> str | None:
        """Why the backend cannot run here, or ``None``."""
        with self.running():
            return backends.unavailable(backend, self.tensors)

    @contextlib.contextmanager
    def running(self, way: str | None = None) -> Iterator[None]:
        """Within the block a kernel is bound and launched here, in one of :attr:`ways` or as it comes."""
        yield

    def bind(self, kernel: Kernel, problem: Problem) -> Callable[..., Any]:
        """See :func:`pyconv.backends.bind`."""
        return backends.bind(kernel, problem)


class Cpu(Device):
    name = "cpu"
    tensors = "cpu"
    ways = ("1 thread", "1 thread again", "2 threads", "3 threads", "8 threads")

    @contextlib.contextmanager
    def running(self, way: str | None = None) -> Iterator[None]:
        before, work = torch.get_num_threads(), numba_cpu.WORK_OF_A_THREAD
        if way:
            torch.set_num_threads(int(way.split()[0]))
            numba_cpu.WORK_OF_A_THREAD = 1  # however small the problem
        try:
            yield
        finally:
            torch.set_num_threads(before)
            numba_cpu.WORK_OF_A_THREAD = work


@dataclass
class Emulator(Device):
    """``order`` is that of every launch which asks for no other; ``seed`` that of the random one."""

    order: str = "forward"
    seed: int = 0
    checked: bool = True
    name = "emulator"
    tensors = "cpu"

    @property
    def ways(self) -> tuple[str, ...]:  # type: ignore[override]
        first = ORDERS.index(self.order)
        return ORDERS[first:] + ORDERS[:first]

    @contextlib.contextmanager
    def running(self, way: str | None = None) -> Iterator[None]:
        from pyconv.backends import cuda

        with cuda.emulated(self.checked, order=way or self.order, seed=self.seed):
            yield


class Cuda(Device):
    name = "cuda"
    tensors = "cuda"
    ways = ("a first run", "a second run", "a third run")

    @contextlib.contextmanager
    def running(self, way: str | None = None) -> Iterator[None]:
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a launch that fails must fail here


def device_of(kernel: Kernel) -> Device:
    """Where a line is judged: one of CUDA or Numba on the device if there is one, else on the emulator."""
    if kernel.backend not in EMULATED:
        return Cpu()
    has_device = torch.cuda.is_available() and backends.unavailable(kernel.backend, "cuda") is None
    return Cuda() if has_device else Emulator()
