"""``python -m bench.host``: the host's own work for a launch of backend ``cuda``, on a machine without a GPU.

The driver's launch is left out: what is measured is everything that pyconv and torch do before it, on CPU
tensors, whose allocator is torch's caching one on a GPU. With a GPU, ``make gpu`` measures whole calls
against ``torch.nn.functional.conv2d``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import pyconv
from bench import machine
from pyconv import backends
from pyconv.backends import cuda
from pyconv.problem import parse_problem
from pyconv.registry import find

PROBLEM = "conv2d n1c8h8w8 k8r3s3 st1 pd1 f32 nchw"
#: Lines of one launch and of several.
LINES = ("direct_tiled", "im2col_gemm_pipelined", "winograd_2x2")
CALLS, ROUNDS = 200, 50


class Nothing:
    """A device on which a launch is nothing."""

    def load(self, step: Any) -> Any:
        return step

    def launch(self, launches: Any, frame: Any, tensors: Any, workspace: Any) -> None:
        pass


def microseconds(call: Callable[[], object]) -> list[float]:
    """Of a call, in each round."""
    call()
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        for _ in range(CALLS):
            call()
        rounds.append((time.perf_counter_ns() - start) / CALLS / 1e3)
    return rounds


def main() -> None:
    cuda.Bound._device = lambda self, device: Nothing()  # type: ignore[assignment,method-assign,return-value]
    print(f"{machine.describe()['cpu']}, torch {torch.__version__}; us: median (20th to 80th percentile)")
    problem = parse_problem(PROBLEM)
    x, w = torch.randn(1, 8, 8, 8), torch.randn(8, 8, 3, 3)
    rows: dict[str, tuple[Callable[[], object], int]] = {}
    with cuda.emulated(checked=False), pyconv.use("cuda"):
        for name in LINES:
            line = find(f"conv2d.fprop.{name}@cuda")
            assert line.program is not None
            bound = backends.bind(line, problem)
            rows[f"bound {name}"] = (lambda bound=bound: bound(x, w, None)), len(line.program(problem).steps)
        chosen = next(choice.kernel for choice in pyconv.explain(problem)["fprop"] if choice.chosen)
        assert chosen.program is not None
        rows[f"pyconv.conv2d ({chosen.algorithm})"] = (
            lambda: pyconv.conv2d(x, w, padding=1),
            len(chosen.program(problem).steps),
        )
        for name, (call, launches) in rows.items():
            times = sorted(microseconds(call))
            low, high = times[len(times) // 5], times[len(times) * 4 // 5]
            median = statistics.median(times)
            print(f"{name:<40} {median:5.1f} ({low:.1f} to {high:.1f}), {median / launches:.1f} a launch")


if __name__ == "__main__":
    main()
