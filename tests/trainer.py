"""Training in a process of its own, for tests that kill it: forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pyconv import cli
from pyconv.training import files, measure, run
from pyconv.training.config import TrainConfig


@contextlib.contextmanager
def _every_call(function: Callable[[], None]) -> Iterator[None]:
    """Call ``function`` at each stage of a save: before the sync, the rename, and the folder's sync."""
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        function()
        sync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        function()
        return replace(self, target)

    os.fsync, Path.replace = synced, replaced  # type: ignore[method-assign]
    try:
        yield
    finally:
        os.fsync, Path.replace = sync, replace  # type: ignore[method-assign]


def session(config: TrainConfig, folder: Path, seed: int, die_at: int | None) -> None:
    """Begin the run in ``folder``, or go on with it.

    Args:
        seed: Of the pauses that make a save as long as a step, so that a kill hits either.
        die_at: The stage of a save, counted from the session's first, at which the process kills itself.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    measure._SECONDS, measure._LEAST = 0.0, 2
    draw, calls = random.Random(seed), 0

    def stage() -> None:
        nonlocal calls
        calls += 1
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if die_at is None:
            time.sleep(0.01 * draw.random())

    try:
        with _every_call(stage):
            if (folder / "config.json").exists():
                run.resume(folder, say=lambda line: None)
            else:
                run.fit(config, folder, lambda line: None)
    except run.Interrupted as stop:
        sys.exit(stop.exit_status)


def command(arguments: list[str], errors: Path, prepare: Callable[[], None] | None) -> None:
    """The command line, its standard error in a file."""
    measure._SECONDS, measure._LEAST = 0.0, 2
    with errors.open("w") as file, open(os.devnull, "w") as nowhere:
        os.dup2(file.fileno(), 2)
        os.dup2(nowhere.fileno(), 1)
        if prepare:
            prepare()
        sys.exit(cli.main(arguments))


def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """The process that calls a function of this module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainer", "matplotlib.backends.backend_agg", "sklearn.datasets"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def call(arguments: list[str], errors: Path, prepare: Callable[[], None] | None = None) -> tuple[int, str]:
    """Run the command line in a process of its own; its exit status and standard error.

    Args:
        prepare: Called there first, to limit or change what it may use.
    """
    process = start(command, arguments, errors, prepare)
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode, errors.read_text()


def leftovers(folder: Path) -> list[Path]:
    """What a kill inside a save left."""
    return [path for path in folder.rglob("*.part") if files.is_leftover(path)]
