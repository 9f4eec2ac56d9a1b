"""Settings of the process that training runs in, and a description of it for reports."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import logging
import os
import platform
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from pyconv.machine import processor

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of returning it to the kernel; true if it could be told.

    Activations of some MB are otherwise mapped anew for every layer of every step, and the page faults cost
    more than the kernels. It holds for the whole process, so for our kernels and torch's alike.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


@contextlib.contextmanager
def settings(threads: int | None) -> Iterator[None]:
    """Threads and determinism as a run wants them; torch's own settings are put back after it."""
    keep_freed_memory()
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    state = torch.get_rng_state()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # It would write every new tensor once more than needed; no operator here reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        torch.utils.deterministic.fill_uninitialized_memory = before[3]  # type: ignore[attr-defined]
        torch.set_rng_state(state)


class StopRequest:
    """Ctrl-C and SIGTERM, noted, to be obeyed between two steps. A second one stops at once.

    Used as ``with StopRequest() as stop:``, which puts the old handlers back. It hears only what is not
    ignored (a job in the background ignores Ctrl-C), and only in the main thread, as Python does.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        #: The signal that came, if one did.
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.getsignal(number) for number in self._SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                if handler is not None:  # not one that Python did not set
                    signal.signal(number, handler)

    def listen(self) -> None:
        """Note signals from here on."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                if handler is not None and handler is not signal.SIG_IGN:
                    signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


def quiet_lightning() -> None:
    """Drop Lightning's notes on what it found; its warnings stay, but for those that do not apply here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are made from memory; the report shows what that costs
        ".*number of training batches.*smaller than the logging interval.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # ours is
        ".*isinstance.*LeafSpec.*",
        ".*The `srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", message)


def quiet_tensorboard() -> None:
    """Let a full disk be told once: TensorBoard's thread prints the error that its next call raises too."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        ours = type(arguments.thread).__module__.startswith("tensorboard")
        if not (ours and isinstance(arguments.exc_value, OSError)):
            before(arguments)

    if getattr(before, "__qualname__", "") != hook.__qualname__:
        threading.excepthook = hook


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("pyconv", "torch", "lightning", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def machine() -> str:
    """Processor, cores, threads and system, in a line."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{gpu}{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, {platform.system()} {platform.release()}"
    )
