"""The lines of CUDA and Numba through the battery on the emulator.

Every launch is in the checked build, so each also proves that there is no race, no access out of bounds and
no read of what nobody wrote, and the threads run in an order that changes from problem to problem.
"""

from __future__ import annotations

import pytest

from pyconv import registry
from pyconv.problem import Problem, parse_problem
from pyconv.registry import Kernel
from tests.battery import judge
from tests.devices import EMULATED, ORDERS, Emulator
from tests.problems import CONV2D, MAXPOOL2D, variants
from tests.problems_cuda import CONV2D_CUDA, TILES, every_problem_of, pairs, problems_of, shares
from tests.test_battery import Record, report

LINES = [kernel for kernel in registry.kernels() if kernel.backend in EMULATED]


def _judge_all(kernel: Kernel, problems: list[Problem], record_property: Record, in_short: bool) -> None:
    verdicts = (
        # Not turn % 4: that would tie an order to a dtype wherever four take turns.
        judge(kernel, problem, device=Emulator(ORDERS[(turn + turn // 4) % 4], turn), in_short=in_short)
        for turn, problem in enumerate(problems)
    )
    report(kernel, Emulator(), verdicts, record_property)


@pytest.mark.parametrize(
    ("kernel", "pair"),
    [
        pytest.param(kernel, pair, id=f"{kernel.id}: {' '.join(pair)}")
        for kernel in LINES
        for pair in pairs(kernel)
    ],
)
def test_battery_in_short(kernel: Kernel, pair: tuple[str, str], record_property: Record) -> None:
    """All problems of one instantiation in one test: to compile it costs the most."""
    _judge_all(kernel, shares(kernel)[pair], record_property, in_short=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kernel", "text"),
    [
        pytest.param(kernel, text, id=f"{kernel.id}: {text}")
        for kernel in LINES
        for shared in [CONV2D if kernel.operation == "conv2d" else MAXPOOL2D]
        for text in dict.fromkeys([*every_problem_of(kernel), *problems_of(kernel), *shared])
    ],
)
def test_battery_exhaustive(kernel: Kernel, text: str, record_property: Record) -> None:
    """Every dtype and layout, every check by itself, determinism in every order of threads."""
    _judge_all(kernel, variants(text, kernel.dtypes), record_property, in_short=False)


# ---- The problems ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
def test_the_problems_cross_the_edges_of_every_tile(pass_: str) -> None:
    gemms = [parse_problem(text).gemm(pass_) for text in CONV2D_CUDA]  # type: ignore[union-attr]
    for dimension, name in enumerate(("gemm_m", "gemm_n", "gemm_k")):
        sizes = {gemm[dimension] for gemm in gemms}
        edges = {tile + step for tile in TILES for step in (-1, 0, 1)}
        assert edges <= sizes, f"{name} of {pass_} is never {sorted(edges - sizes)}"


@pytest.mark.parametrize("kernel", LINES, ids=lambda kernel: kernel.id)
def test_every_problem_of_a_line_is_dealt_out_once(kernel: Kernel) -> None:
    dealt = [str(problem).rsplit(" ", 2)[0] for share in shares(kernel).values() for problem in share]
    assert sorted(dealt) == sorted(str(parse_problem(text)).rsplit(" ", 2)[0] for text in problems_of(kernel))


@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
def test_every_problem_of_a_family_is_dealt_out_once(pass_: str) -> None:
    family = [
        kernel for kernel in LINES if kernel.pass_ == pass_ and kernel.algorithm.startswith("implicit_gemm")
    ]
    dealt = [text for kernel in family for text in problems_of(kernel)]
    assert sorted(dealt) == sorted(every_problem_of(family[0]))
    assert all(every_problem_of(kernel) == every_problem_of(family[0]) for kernel in family)


@pytest.mark.parametrize("kernel", LINES, ids=lambda kernel: kernel.id)
def test_every_pair_of_a_line_has_a_problem_it_supports(kernel: Kernel) -> None:
    for pair, problems in shares(kernel).items():
        assert [p for p in problems if kernel.supports(p) is None], f"{kernel.id} is not judged in {pair}"
