"""What a training step costs: our kernels against the rest, and against the same step with torch's own.

Both sides run in one process, interleaved, on the same batches and from the same weights, so that whatever
else the machine does falls on both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyconv.models import build
from pyconv.training.config import TrainConfig

#: Events of torch's profiler that are convolution or pooling, for each side. None contains another.
#: ``pyconv:<kernel>@<backend>`` is one launch of a line of the table (pyconv/plan.py).
_ATEN = (
    "aten::convolution", "aten::convolution_backward",
    "aten::max_pool2d_with_indices", "aten::max_pool2d_with_indices_backward",
)  # fmt: skip
COUNTED: dict[str, Callable[[str], bool]] = {
    "pyconv": lambda event: event.startswith("pyconv:") and "@" in event and not event.endswith("@aten"),
    "aten": lambda event: event in _ATEN,
}

#: Long enough for steady percentiles, short beside a training run.
_SECONDS = 12.0
_WARMUP, _LEAST, _MOST, _PROFILED = 3, 10, 100, 5


@dataclass(frozen=True)
class Timing:
    """Milliseconds a step: median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


@dataclass(frozen=True)
class Measurement:
    """What :func:`measure` found.

    Attributes:
        batch: Images a step.
        rounds: Steps timed on each side.
        steps: For ``pyconv`` and ``aten``, the time of a whole step.
        kernels: For each side, profiler event -> milliseconds of the median step. Empty on a GPU.
    """

    batch: int
    rounds: int
    steps: dict[str, Timing]
    kernels: dict[str, dict[str, float]]

    @property
    def ratio(self) -> float:
        """Torch's median step over ours: above 1, ours is faster."""
        return self.steps["aten"].median / self.steps["pyconv"].median


def measure(
    config: TrainConfig,
    network: nn.Module,
    in_channels: int,
    image_size: tuple[int, int],
    classes: int,
    batches: list[tuple[Tensor, Tensor]],
) -> Measurement:
    """Time whole training steps (forward, loss, backward, optimiser) with our kernels and with torch's.

    Args:
        config: Model, layout and optimiser.
        network: Weights to start both sides from; it is not changed.
        in_channels, image_size, classes: What :func:`pyconv.models.build` takes.
        batches: float32 ``[n, c, h, w]`` and int64 ``[n]``, taken in turn.

    It is measured where the run trains: on the GPU, with an empty queue before and after each step.
    """
    from pyconv.training.module import Classifier

    device = torch.device("cuda" if config.on_gpu else "cpu")
    batches = [(x.to(device), labels.to(device)) for x, labels in batches]
    finish = torch.cuda.synchronize if config.on_gpu else lambda: None
    sides: dict[str, Callable[[int], None]] = {}
    for kernels in ("pyconv", "aten"):
        model = build(config.model, in_channels, image_size, classes, kernels)
        model.load_state_dict(network.state_dict())
        model = model.to(device)
        if config.layout == "nhwc":
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module = Classifier(model.train(), config, classes, steps=1)
        sides[kernels] = _step(module, batches)
    times: dict[str, list[float]] = {kernels: [] for kernels in sides}
    for number in range(_WARMUP):
        for step in sides.values():
            step(number)
    started = time.perf_counter()
    rounds = 0
    while rounds < _LEAST or (rounds < _MOST and time.perf_counter() - started < _SECONDS):
        # Each side goes first every second time.
        for kernels in list(sides)[:: 1 if rounds % 2 else -1]:
            finish()
            before = time.perf_counter()
            sides[kernels](rounds)
            finish()
            times[kernels].append(1e3 * (time.perf_counter() - before))
        rounds += 1
    timings = {
        kernels: Timing(*(float(np.percentile(found, q)) for q in (50, 20, 80)))
        for kernels, found in times.items()
    }
    events: dict[str, dict[str, float]] = {kernels: {} for kernels in sides}
    if not config.on_gpu:  # there the host's profiler sees launches, not what they take
        for kernels, step in sides.items():
            shares = _profile(step, COUNTED[kernels])
            events[kernels] = {name: share * timings[kernels].median for name, share in shares.items()}
    return Measurement(len(batches[0][1]), rounds, timings, events)


def _step(module: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Callable[[int], None]:
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[operator]
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the same work, and weights that stay where they are

    def step(number: int) -> None:
        x, labels = batches[number % len(batches)]
        optimizer.zero_grad()
        functional.cross_entropy(module(x), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _profile(step: Callable[[int], None], is_counted: Callable[[str], bool]) -> dict[str, float]:
    """The share of a step that each counted event takes, 0..1.

    Shares, because profiling slows a step a little, and the machine may be busier now than it was before.
    """
    # Kineto writes a line to standard error at each start and stop, unless told not to before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # The profiler without Kineto sees all that runs on a CPU, and starts faster.
    with torch.autograd.profiler.profile(use_kineto=False) as profiler:
        started = time.perf_counter()
        for number in range(_PROFILED):
            step(number)
        microseconds = 1e6 * (time.perf_counter() - started)
    return {
        event.key: event.cpu_time_total / microseconds
        for event in profiler.key_averages()
        if is_counted(event.key)
    }
