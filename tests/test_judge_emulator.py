"""The judge is judged on the emulator: what the checked build finds must fail the battery, with its place.

A small CUDA kernel is written here, in a file of its own: once right, and once with each of two faults that
show in no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyconv import registry
from pyconv.backends.program import Program, Step, cpp_layout, cpp_type
from pyconv.problem import Problem, parse_problem
from pyconv.registry import Kernel
from tests.battery import judge
from tests.devices import ORDERS, Emulator

_SOURCE = """
// db[k] = sum over n,p,q of dy[n,k,p,q]: a block per k, whose threads add their sums up in shared memory.
#include "common/numbers.h"

namespace pyconv {

template <class T, Layout kLayout, int kThreads>
__global__ void bgrad(Conv2dProblem problem, const T* dy, T* db) {
  PYCONV_SHARED(Accumulator<T>, sums, [kThreads]);
  const int64_t k = blockIdx.x, plane = problem.p() * problem.q(), count = problem.n * plane;
  Accumulator<T> sum = 0;
  for (int64_t i = threadIdx.x; i < LAST; i += kThreads) {
    const int64_t at = kLayout == kNhwc ? i * problem.k + k : (i / plane * problem.k + k) * plane + i % plane;
    sum += widen(dy[at]);  // out of bounds
  }
  sums[threadIdx.x] = sum;  // race
  BARRIER
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads; ++i) sum += sums[i];
    db[k] = narrow<T>(sum);
  }
}

}  // namespace pyconv
"""

PROBLEM = "conv2d n2c1h5w9 k3r1s1 st1 pd0"


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Callable[..., Kernel]]:
    """Makes a table line of the kernel, with a fault or without."""
    added: list[Kernel] = []

    def add(barrier: str = "__syncthreads();", last: str = "count") -> Kernel:
        source = tmp_path / "judged.cu"
        source.write_text(_SOURCE.replace("BARRIER", barrier).replace("LAST", last))

        def program(problem: Problem) -> Program:
            kernel = f"bgrad<{cpp_type(problem)}, {cpp_layout(problem)}, 64>"
            step = Step(str(source), kernel, (problem.k, 1, 1), (64, 1, 1), (problem, "dy", "db"))  # type: ignore[union-attr]
            return Program((step,))

        every = ("f32", "f64", "f16", "bf16")
        added.append(registry.register(Kernel("conv2d", "bgrad", "judged", "cuda", every, program=program)))
        return added[-1]

    yield add
    for kernel in added:
        registry.unregister(kernel)


def _place(comment: str) -> str:
    """Where the line with that comment is."""
    (number,) = [i for i, text in enumerate(_SOURCE.split("\n"), 1) if text.endswith(f"// {comment}")]
    return f"judged.cu:{number}"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", ["f32 nchw", "f64 nhwc", "f16 nhwc", "bf16 nchw"])
def test_an_honest_cuda_kernel_passes(line: Callable[..., Kernel], variant: str, order: str) -> None:
    for in_short in (True, False):
        problem = parse_problem(f"{PROBLEM} {variant}")
        verdict = judge(
            line() if in_short else registry.find("conv2d.bgrad.judged@cuda"),
            problem,
            device=Emulator(order),
            in_short=in_short,
        )
        assert not verdict.failures, "\n".join(verdict.failures)
        assert {"value", "exact_integers", "deterministic", "nonfinite"} <= set(verdict.ran)


@pytest.mark.parametrize("in_short", [False, True], ids=["in full", "in short"])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [({"barrier": "__syncwarp();"}, "race"), ({"last": "count + 1"}, "out of bounds")],
    ids=["race", "out of bounds"],
)
def test_what_the_emulator_finds_fails(
    line: Callable[..., Kernel], fault: dict[str, str], kind: str, in_short: bool
) -> None:
    """In the first check, whatever the numbers are: a kernel with a race has no result."""
    verdict = judge(line(**fault), parse_problem(f"{PROBLEM} f32 nchw"), device=Emulator(), in_short=in_short)
    assert not verdict.ran
    (failure,) = verdict.failures
    assert failure.startswith(f"conv2d.bgrad.judged@cuda fails 'value' on '{PROBLEM} f32 nchw': it raised ")
    assert kind in failure
    assert _place(kind) in failure


def test_a_source_that_does_not_compile_fails(line: Callable[..., Kernel]) -> None:
    verdict = judge(line(barrier="no_such_thing;"), parse_problem(f"{PROBLEM} f32 nchw"), device=Emulator())
    (failure,) = verdict.failures
    assert "no_such_thing" in failure
