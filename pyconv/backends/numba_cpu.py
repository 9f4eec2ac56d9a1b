"""Backend ``numba-cpu``: the Numba kernels on the CPU, which need no compiler but the one that Numba brings.

They take the place of backend ``cpu`` where the C++ library could not be built. A kernel is compiled when it
is first called with a dtype (:mod:`pyconv.backends.numba_cpu_cache`), once for Numba's threads and once for
the calling thread alone, and kept on disk.

Threads. Up to ``torch.get_num_threads()`` of Numba's threads take part in a call, of the
``NUMBA_NUM_THREADS`` that it started, and fewer where there is little to do; no bit depends on how many.
Which threads those are is for Numba to say (its *threading layer*), once for the whole process. Unless the
environment or the program has chosen already, we ask for ``forksafe``: TBB where it is installed, else
Numba's own ``workqueue``, and never an OpenMP beside torch's. Workqueue dies of two calls at once, so ours
take turns. Threads do not survive a fork: a child that is forked after they were started, as the workers of a
DataLoader are, computes on the calling thread alone, and a fork waits for the call that is running.

Nothing here imports Numba before a kernel is launched.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import sys
import threading
from collections import namedtuple
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyconv.backends import numba_cpu_cache
from pyconv.backends.signature import Signature, signature
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

_CPU = torch.device("cpu")

#: A thread is asked to help for every so many products or comparisons: some 20 us of work, as long as waking
#: it.
WORK_OF_A_THREAD = 1 << 17

# ---- What a kernel is told of its problem ------------------------------------------------------------------

_WHERE = "stride_h stride_w pad_top pad_bottom pad_left pad_right dilation_h dilation_w p q"
#: The ``problem`` of the convolution kernels. A named tuple is what Numba takes for a struct.
_CONV2D = f"n c h w k r s groups group_c group_k nhwc {_WHERE}".split()
Conv2dSizes: Any = namedtuple("Conv2dSizes", _CONV2D)  # type: ignore[misc]
#: The ``problem`` of the pooling kernels. ``images`` is n in nhwc; in nchw it is n*c, each plane by itself.
_POOL2D = f"n c h w r s nhwc images {_WHERE}".split()
Pool2dSizes: Any = namedtuple("Pool2dSizes", _POOL2D)  # type: ignore[misc]


def sizes_of(problem: Problem) -> Any:
    """The integers of a problem, as the kernels take them."""
    nhwc = problem.layout == "nhwc"
    more = {"nhwc": int(nhwc), "images": problem.n if nhwc else problem.n * problem.c}
    names, sizes = (_CONV2D, Conv2dSizes) if isinstance(problem, Conv2dProblem) else (_POOL2D, Pool2dSizes)
    return sizes(*[more[name] if name in more else getattr(problem, name) for name in names])


# ---- Whether there is Numba --------------------------------------------------------------------------------


@cache
def _missing() -> str | None:
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed (pip install numba)"
    return None


def unavailable(device_type: str) -> str | None:
    if device_type != "cpu":
        return f"runs on cpu, not on {device_type}"
    return _missing()


# ---- Threads -----------------------------------------------------------------------------------------------


class _Threads:
    """Numba's threads: whether there are any to use, and whose turn it is."""

    def __init__(self) -> None:
        self.turn = threading.RLock()
        self._lost = False

    def started(self) -> bool:
        """Starts them if nobody has. False if a fork has left them behind."""
        if self._lost:
            return False
        numba = importlib.import_module("numba")

        with self.turn:
            chosen = numba.config.THREADING_LAYER
            if chosen == "default":
                numba.config.THREADING_LAYER = "forksafe"
            try:
                numba.get_num_threads()
            finally:
                numba.config.THREADING_LAYER = chosen
        return True

    def forked(self) -> None:
        """In a new child: another thread may have held the lock, and no thread but this one lives on."""
        self.turn = threading.RLock()
        numba = sys.modules.get("numba")
        if numba is not None:
            with contextlib.suppress(ValueError, AttributeError):  # none were started; half imported
                numba.threading_layer()
                self._lost = True


_threads = _Threads()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _threads.turn.acquire(),
        after_in_parent=lambda: _threads.turn.release(),
        after_in_child=_threads.forked,
    )


def threading_layer() -> str:
    """Numba's threads in use: ``workqueue``, ``tbb`` or ``omp``; starts them. RuntimeError after a fork."""
    if not _threads.started():
        raise RuntimeError("pyconv: this process was forked from one with Numba's threads, and has none")
    numba = importlib.import_module("numba")
    return str(numba.threading_layer())


# ---- Launching ---------------------------------------------------------------------------------------------


def workspace_bytes(kernel: Kernel, problem: Problem) -> int:
    """What a kernel turns once a call (``filters_last`` and its like); rows of sums are small beside it."""
    if not isinstance(problem, Conv2dProblem):
        return 0
    turned = {"fprop": problem.w_size, "dgrad": problem.w_size, "wgrad": problem.y_size}
    in_place = kernel.pass_ == "wgrad" and problem.layout == "nhwc"
    return 0 if in_place else turned.get(kernel.pass_, 0) * problem.element_bytes


def bind(kernel: Kernel, problem: Problem) -> Callable[..., Any]:
    return Bound(kernel, problem)


class Bound:
    """A kernel and a problem: a function of the tensors alone."""

    def __init__(self, kernel: Kernel, problem: Problem) -> None:
        self.signature: Signature = signature(problem, kernel.pass_)
        self._kernel = kernel
        self._problem = problem
        self._sizes = sizes_of(problem)
        self._work = problem.flops(kernel.pass_) // 2 + 1
        self._is_empty = 0 in self.signature.results[0].shape
        self._parallel: Callable[..., None] | None = None
        self._serial: Callable[..., None] | None = None

    def __call__(self, *operands: Tensor | None) -> Any:
        tensors = self.signature.ready(operands, _CPU)
        results = [value.empty(_CPU) for value in self.signature.results]
        if not self._is_empty:
            self._launch([_flat(tensor, self._problem) for tensor in (*tensors, *results)])
        return results[0] if len(results) == 1 else tuple(results)

    def _launch(self, arrays: list[Any]) -> None:
        threads = min(torch.get_num_threads(), math.ceil(self._work / WORK_OF_A_THREAD))
        if threads == 1 or not _threads.started():
            if self._serial is None:
                self._serial = numba_cpu_cache.compiled(self._kernel, False, self._sizes, arrays)
            self._serial(self._sizes, *arrays)
            return
        numba = importlib.import_module("numba")

        if self._parallel is None:
            self._parallel = numba_cpu_cache.compiled(self._kernel, True, self._sizes, arrays)
        with _threads.turn:
            before = numba.get_num_threads()  # this thread's, and so the caller's
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            try:
                self._parallel(self._sizes, *arrays)
            finally:
                numba.set_num_threads(before)


def _flat(tensor: Tensor | None, problem: Problem) -> Any:
    """A dense tensor's elements in the order of memory, as a NumPy array on the same data."""
    if tensor is None:  # no bias
        tensor = torch.empty(0, dtype=problem.torch_dtype)
    return tensor.detach().as_strided((tensor.numel(),), (1,)).numpy()
