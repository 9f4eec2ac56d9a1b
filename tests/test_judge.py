"""The judge is judged: kernels broken in every way we know must fail the battery, each at the right check.

A test-only backend runs kernels written here. An honest one, made of the reference, passes everything; each
broken one is the honest one with one fault.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyconv import backends, registry
from pyconv.backends import cuda
from pyconv.problem import Problem, parse_problem
from pyconv.registry import Kernel
from tests import accuracy
from tests.battery import CHECKS, Verdict, judge
from tests.conftest import pytest_terminal_summary
from tests.devices import Cpu, Emulator
from tests.memory import dense_strides, values
from tests.operands import expected
from tests.problems import CONV2D_CORE, DTYPES, DTYPES_16_BIT, MAXPOOL2D_CORE, variants
from tests.test_battery import report

Launch = Callable[..., Any]
#: A fault: from the problem and the honest launch to a broken one.
Fault = Callable[[Problem, Launch], Launch]

CONV = "conv2d n3c5h9w17 k7r3s3 st1 pd1 f32 nchw"
POOL = "maxpool2d n3c5h9w17 r3s3 st2 pd1 f32 nhwc"


def _tensor(array: Any, problem: Problem) -> Tensor:
    dtypes = {np.dtype(np.int32): torch.int32, np.dtype(np.uint8): torch.uint8}  # an argmax
    dtype = dtypes.get(array.dtype, problem.torch_dtype)
    result = torch.empty_strided(array.shape, dense_strides(array.shape, problem.layout), dtype=dtype)
    return result.copy_(torch.from_numpy(array))


def honest(kernel: Kernel, problem: Problem) -> Launch:
    """The reference as a kernel."""

    def launch(*tensors: Tensor | None) -> Any:
        # Dense arrays: numpy adds in an order that depends on the strides.
        arrays = tuple(None if tensor is None else values(tensor) for tensor in tensors)
        with np.errstate(invalid="ignore"):
            results = [_tensor(part, problem) for part in expected(problem, kernel.pass_, arrays)]
        return results[0] if len(results) == 1 else tuple(results)

    return launch


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Kernel]]:
    """Adds a line to the table, for the length of a test, that a backend of this file launches."""
    added: list[Kernel] = []
    faults: dict[str, Fault] = {}

    def bind(kernel: Kernel, problem: Problem) -> Launch:
        return faults[kernel.id](problem, honest(kernel, problem))

    module = SimpleNamespace(unavailable=lambda device_type: None, bind=bind)
    monkeypatch.setattr(registry, "BACKENDS", (*registry.BACKENDS, "judged"))
    monkeypatch.setitem(backends._MODULES, "judged", module)

    def add(operation: str, pass_: str, fault: Fault, **claims: Any) -> Kernel:
        claims = {
            "dtypes": (*DTYPES, *DTYPES_16_BIT),
            "batch_invariant": pass_ not in ("wgrad", "bgrad"),
            **claims,
        }
        kernel = registry.register(Kernel(operation, pass_, "judged", "judged", **claims))
        added.append(kernel)
        faults[kernel.id] = fault
        return kernel

    yield add
    for kernel in added:
        registry.unregister(kernel)


def _failed(kernel: Kernel, text: str, in_short: bool = False) -> dict[str, str]:
    """The checks that failed, and what they said."""
    failures = judge(kernel, parse_problem(text), in_short=in_short).failures
    return {failure.split("'")[1]: failure for failure in failures}


@pytest.mark.parametrize(
    ("operation", "pass_"),
    [(operation, pass_) for operation, passes in registry.PASSES.items() for pass_ in passes],
)
@pytest.mark.parametrize("in_short", [False, True], ids=["in full", "in short"])
def test_an_honest_kernel_passes(line: Any, operation: str, pass_: str, in_short: bool) -> None:
    kernel = line(operation, pass_, lambda problem, launch: launch)
    checks = set(CHECKS) - ({"poison", "views"} if in_short else set())
    for text in CONV2D_CORE[:4] if operation == "conv2d" else MAXPOOL2D_CORE:
        for problem in variants(text, (*DTYPES, *DTYPES_16_BIT)):
            verdict = judge(kernel, problem, in_short=in_short)
            assert not verdict.failures, "\n".join(verdict.failures)
            assert not verdict.skipped
            assert set(verdict.ran) | {check for check, _ in verdict.unsupported} == checks


# ---- The faults ------------------------------------------------------------------------------------------


def stale(problem: Problem, launch: Launch) -> Launch:
    """Computes, and returns memory it has not written."""
    return lambda *tensors: torch.empty_like(launch(*tensors))


def zeros(problem: Problem, launch: Launch) -> Launch:
    return lambda *tensors: torch.zeros_like(launch(*tensors))


def nan(problem: Problem, launch: Launch) -> Launch:
    return lambda *tensors: torch.full_like(launch(*tensors), float("nan"))


def writes_input(problem: Problem, launch: Launch) -> Launch:
    def broken(x: Tensor, *rest: Any) -> Any:
        result = launch(x, *rest)
        x.view(-1)[-1:].mul_(2)
        return result

    return broken


def writes_beside_input(problem: Problem, launch: Launch) -> Launch:
    def broken(x: Tensor, *rest: Any) -> Any:
        result = launch(x, *rest)
        x.as_strided((1,), (1,), x.storage_offset() + x.numel())[0] = 0.0
        return result

    return broken


def skips_last_row(problem: Problem, launch: Launch) -> Launch:
    def broken(*tensors: Any) -> Any:
        whole = launch(*tensors)
        result = torch.empty_like(whole)
        result[:, :, :-1] = whole[:, :, :-1]
        return result

    return broken


def depends_on_batch(problem: Problem, launch: Launch) -> Launch:
    """As a kernel that adds in another order for a large batch."""

    def broken(*tensors: Any) -> Any:
        result = launch(*tensors)
        return result.nextafter(result + 1) if problem.n > 1 else result

    return broken


def not_deterministic(problem: Problem, launch: Launch) -> Launch:
    """As a kernel with atomics: every second run is a last bit off."""

    def broken(*tensors: Any) -> Any:
        result = launch(*tensors)
        return result.nextafter(result + 1) if next(_runs) % 2 else result

    return broken


def depends_on_threads(problem: Problem, launch: Launch) -> Launch:
    def broken(*tensors: Any) -> Any:
        result = launch(*tensors)
        return result.nextafter(result + 1) if torch.get_num_threads() == 3 else result

    return broken


def cached_result(problem: Problem, launch: Launch) -> Launch:
    """Remembers its first result of every problem."""
    return lambda *tensors: _cache.setdefault(problem, launch(*tensors)).clone()


def ignores_strides(problem: Problem, launch: Launch) -> Launch:
    def broken(x: Tensor, *rest: Any) -> Any:
        return launch(x.as_strided(x.shape, dense_strides(tuple(x.shape), problem.layout)), *rest)

    return broken


def wrong_layout(problem: Problem, launch: Launch) -> Launch:
    return lambda *tensors: launch(*tensors).contiguous(
        memory_format=torch.channels_last if problem.layout == "nchw" else torch.contiguous_format
    )


def returns_a_view(problem: Problem, launch: Launch) -> Launch:
    return lambda x, *rest: x.view(-1)[:1].expand(launch(x, *rest).shape)


def drops_nan(problem: Problem, launch: Launch) -> Launch:
    return lambda *tensors: launch(*(t if t is None else t.nan_to_num(0.0) for t in tensors))


def multiplies_padding(problem: Problem, launch: Launch) -> Launch:
    """Claims ``local``, but multiplies a zero of the padding with an infinite weight."""

    def broken(x: Tensor, w: Tensor, bias: Any) -> Any:
        result = launch(x, w, bias)
        result[:, :, 0] += (w[w.isinf()] * 0).sum()
        return result

    return broken


def small_integers_rounded(problem: Problem, launch: Launch) -> Launch:
    """As a Winograd: within tolerance, but not exact."""
    return lambda *tensors: launch(*tensors) * (1 + 2.0**-23)


_runs = itertools.count()
_cache: dict[Problem, Tensor] = {}

FAULTS: list[tuple[Fault, str, str]] = [
    (stale, "poison", "not overwritten, or read too soon"),
    (zeros, "value", "relative L2 error 1,"),
    (nan, "value", "relative L2 error nan"),
    (writes_input, "value", "wrote to its input x"),
    (writes_beside_input, "value", "wrote to its input x or beside it"),
    (skips_last_row, "poison", "result[0, 0, 8, 0] is"),
    (depends_on_batch, "batch_invariant", "sample 0 alone differs"),
    (not_deterministic, "deterministic", "1 thread again differs from 1 thread: result[0, 0, 0, 0]"),
    (depends_on_threads, "deterministic", "3 threads differs from 1 thread"),
    (cached_result, "value", "of draw 1 is"),
    (ignores_strides, "views", "operands placed strided, sliced, offset"),
    (wrong_layout, "value", "its result has strides"),
    (returns_a_view, "value", "its result has strides (0, 0, 0, 0)"),
    (drops_nan, "nonfinite", "x[0, 0, 0, 0] = nan"),
    (multiplies_padding, "nonfinite", "w[6, 4, 2, 2] = inf"),
    (small_integers_rounded, "exact_integers", "on small integers: result"),
]


@pytest.mark.parametrize(("fault", "check", "words"), FAULTS, ids=[fault.__name__ for fault, _, _ in FAULTS])
def test_a_broken_convolution_fails(line: Any, fault: Fault, check: str, words: str) -> None:
    _cache.clear()
    failed = _failed(line("conv2d", "fprop", fault), CONV)
    assert check in failed, f"passed '{check}'; failed {list(failed)}"
    message = failed[check]
    assert words in message
    assert message.startswith(f"conv2d.fprop.judged@judged fails '{check}' on '{CONV}': ")


#: Each launch of a short battery serves several checks: which one fails does not matter, but that one does.
@pytest.mark.parametrize(
    "fault",
    [fault for fault, _, _ in FAULTS if fault is not depends_on_threads],
    ids=lambda fault: fault.__name__,
)
def test_a_broken_convolution_fails_in_short(line: Any, fault: Fault) -> None:
    _cache.clear()
    failed = _failed(line("conv2d", "fprop", fault), CONV, in_short=True)
    assert failed
    assert all("latest launch: operands placed" in message for message in failed.values())


@pytest.mark.parametrize("in_short", [False, True], ids=["in full", "in short"])
def test_a_result_that_depends_on_the_order_of_threads_fails_on_the_emulator(
    line: Any, in_short: bool
) -> None:
    def fault(problem: Problem, launch: Launch) -> Launch:
        def broken(*tensors: Any) -> Any:
            result = launch(*tensors)
            return result.nextafter(result + 1) if cuda.emulation().order == "reverse" else result

        return broken

    kernel, problem = line("conv2d", "fprop", fault), parse_problem(CONV)
    (failure,) = judge(kernel, problem, device=Emulator("forward"), in_short=in_short).failures
    assert "fails 'deterministic'" in failure
    assert "reverse differs from forward: result[0, 0, 0, 0]" in failure


@pytest.mark.parametrize(
    "fault", [not_deterministic, depends_on_threads, depends_on_batch, small_integers_rounded]
)
def test_what_is_not_claimed_is_unsupported_and_never_passed(line: Any, fault: Fault) -> None:
    claims = {"deterministic": False, "batch_invariant": False, "exact_integers": False, "nonfinite": "tile"}
    verdict = judge(line("conv2d", "fprop", fault, **claims), parse_problem(CONV))
    assert not verdict.failures
    unsupported = dict(verdict.unsupported)
    assert set(unsupported) == {"deterministic", "batch_invariant", "exact_integers", "nonfinite"}
    assert all("claim" in reason for reason in unsupported.values())
    assert not set(unsupported) & set(verdict.ran)


@pytest.mark.parametrize(("factor", "passes"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
def test_the_tolerance_is_where_it_says(line: Any, pass_: str, factor: float, passes: bool) -> None:
    """An error a tenth above what is allowed fails, a tenth below passes."""
    text = "conv2d n2c67h9w8 k17r3s3 st1 pd1 f32 nchw"
    allowed = accuracy.standard(parse_problem(text), pass_)
    assert 2**-23 < allowed < 1e-5

    def off(problem: Problem, launch: Launch) -> Launch:
        # Half the elements up, half down; float32's own rounding adds less than 2^-24.
        def broken(*tensors: Any) -> Any:
            result = launch(*tensors).double()
            signs = 1 - 2.0 * (torch.arange(result.numel()) % 2).view(result.shape)
            return (result * (1 + signs * factor * allowed)).float()

        return broken

    failed = _failed(line("conv2d", pass_, off), text)
    assert ("value" not in failed) == passes
    if not passes:
        assert f"allowed {allowed:.3g} (twice torch's own, and one rounding)" in failed["value"]


# ---- Accuracy of 16-bit and tf32 kernels -----------------------------------------------------------------


def adds_in_16_bits(problem: Problem, launch: Launch) -> Launch:
    """Channel after channel, each partial sum rounded."""

    def broken(x: Tensor, w: Tensor, bias: Any) -> Any:
        total = launch(torch.zeros_like(x), w, bias)
        for c in range(problem.c):
            channel = torch.zeros_like(x)
            channel[:, c] = x[:, c]
            total += launch(channel, w, None)
        return total

    return broken


def rounds_before_the_bias(problem: Problem, launch: Launch) -> Launch:
    def broken(x: Tensor, w: Tensor, bias: Any) -> Any:
        result = launch(x, w, None)
        return result if bias is None else result + bias[:, None, None]

    return broken


def truncates(problem: Problem, launch: Launch) -> Launch:
    """Drops the bits of the sum that the result has no room for, as a cast by shifting does."""

    def broken(*tensors: Any) -> Any:
        arrays = tuple(None if tensor is None else values(tensor) for tensor in tensors)
        sums = expected(problem, "fprop", arrays)[0].astype(np.float32)
        dropped = {"f16": 13, "bf16": 16}[problem.dtype]
        return _tensor((sums.view(np.int32) >> dropped << dropped).view(np.float32), problem)

    return broken


@pytest.mark.parametrize("in_short", [False, True], ids=["in full", "in short"])
@pytest.mark.parametrize("dtype", DTYPES_16_BIT)
@pytest.mark.parametrize("fault", [adds_in_16_bits, rounds_before_the_bias, truncates])
def test_a_careless_16_bit_kernel_fails(line: Any, fault: Fault, dtype: str, in_short: bool) -> None:
    kernel = line("conv2d", "fprop", fault, nonfinite="tile")
    for text in (CONV, "conv2d n1c67h5w7 k37r3s3 st1 pd1 f32 nchw"):
        failed = _failed(kernel, text.replace("f32", dtype), in_short)
        assert "on small integers: result" in failed["exact_integers"]


def test_sixteen_bit_sums_that_drift_fail(line: Any) -> None:
    """A long sum in 16 bits is beyond the tolerance too."""
    kernel = line("conv2d", "fprop", adds_in_16_bits, exact_integers=False)
    failed = _failed(kernel, "conv2d n1c67h5w7 k37r3s3 st1 pd1 bf16 nchw")
    assert "(twice torch's own, and one rounding)" in failed["value"]


def rounds_to_tf32(problem: Problem, launch: Launch) -> Launch:
    """As a tensor core does with float32: 11 bits of each operand, sums in float32."""

    def narrowed(tensor: Tensor) -> Tensor:
        bits = tensor.contiguous().view(torch.int32)
        return ((bits + 0x1000) >> 13 << 13).view(torch.float32)

    return lambda x, w, bias: launch(narrowed(x), narrowed(w), bias)


@pytest.mark.parametrize("in_short", [False, True], ids=["in full", "in short"])
@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        ("standard", "(twice torch's own, and one rounding)"),
        ("1e-3 (tf32)", None),
        ("1e-5 (tf32)", "allowed 1e-05 (the line's own bound)"),
    ],
)
def test_tf32_passes_for_what_it_is_only(line: Any, accuracy: str, words: str | None, in_short: bool) -> None:
    kernel = line("conv2d", "fprop", rounds_to_tf32, accuracy=accuracy, nonfinite="tile", dtypes=("f32",))
    failed = _failed(kernel, CONV, in_short)
    assert list(failed) == ([] if words is None else ["value"])
    assert words is None or words in failed["value"]


# ---- Pooling ---------------------------------------------------------------------------------------------


def test_a_wrong_tie_fails(line: Any) -> None:
    """The last of equal values instead of the first."""

    def last_of_ties(problem: Problem, launch: Launch) -> Launch:
        def broken(x: Tensor) -> Any:
            y, _ = launch(x)
            _, mirrored = launch(x.flip(2, 3))  # the windows tile the image, so they are mirrored too
            argmax = (problem.h * problem.w - 1 - mirrored).flip(2, 3)
            return y, _tensor(argmax.numpy(), problem)

        return broken

    text = "maxpool2d n1c2h8w6 r2s2 st2 pd0 f32 nchw"
    failed = _failed(line("maxpool2d", "fprop_argmax", last_of_ties), text)
    assert "on integers values: argmax[" in failed["value"]
    assert "wrong)" in failed["value"]


def test_a_number_that_beats_nan_fails(line: Any) -> None:
    def fault(problem: Problem, launch: Launch) -> Launch:
        return lambda x: launch(x.nan_to_num(float("-inf"), neginf=float("-inf")))

    failed = _failed(line("maxpool2d", "fprop", fault), POOL)
    assert "on special values: result[" in failed["value"]
    assert "expected nan" in failed["value"]
    assert "nonfinite" in failed


def test_a_scatter_that_overwrites_fails(line: Any) -> None:
    """``dx[argmax] = dy`` instead of ``+=``: seen where windows overlap."""

    def fault(problem: Problem, launch: Launch) -> Launch:
        def broken(dy: Tensor, argmax: Tensor) -> Any:
            dx = torch.zeros(problem.n, problem.c, problem.h * problem.w)
            dx.scatter_(2, argmax.flatten(2).long(), dy.flatten(2))
            return _tensor(dx.view(problem.x_shape).numpy(), problem)

        return broken

    failed = _failed(line("maxpool2d", "dgrad", fault), POOL)
    assert {"value", "exact_integers"} <= set(failed)


# ---- The table -------------------------------------------------------------------------------------------


@pytest.fixture
def uncompiled() -> Iterator[Kernel]:
    kernel = registry.register(
        Kernel("conv2d", "fprop", "never_written", "cpu", ("f32", "f64"), proved=("cpu",))
    )
    yield kernel
    registry.unregister(kernel)


def test_a_line_with_no_compiled_kernel_fails(uncompiled: Kernel) -> None:
    failed = _failed(uncompiled, CONV)
    assert "'conv2d.fprop.never_written' is not in the CPU library" in failed["value"]


def test_a_proved_backend_that_is_missing_fails(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unavailable backend is skipped with its reason, but not where the line says it is proved."""
    kernel = line("conv2d", "fprop", lambda problem, launch: launch)
    proved = line("conv2d", "dgrad", lambda problem, launch: launch, proved=("cpu",))
    monkeypatch.setattr(backends._MODULES["judged"], "unavailable", lambda device_type: "no such device")
    verdict = judge(kernel, parse_problem(CONV))
    assert not verdict.ran
    assert {reason for _, reason in verdict.skipped} == {"no such device"}
    verdict = judge(proved, parse_problem(CONV))
    assert not verdict.skipped
    assert "proved on cpu" in verdict.failures[0]
    assert "no such device" in verdict.failures[0]
    # A proof in one place promises nothing of another.
    verdict = judge(proved, parse_problem(CONV), device=Emulator())
    assert {reason for _, reason in verdict.skipped} == {"no such device"}
    emulated = line("conv2d", "wgrad", lambda problem, launch: launch, proved=("emulator",))
    assert "proved on emulator" in judge(emulated, parse_problem(CONV), device=Emulator()).failures[0]


def test_a_claim_with_no_meaning_fails(line: Any) -> None:
    kernel = line("conv2d", "wgrad", lambda problem, launch: launch, batch_invariant=True)
    assert "is a sum over the batch" in _failed(kernel, CONV)["batch_invariant"]


def test_the_summary_counts_each_device_apart(line: Any) -> None:
    """What did not run is never among what did, and the emulator's runs are not the processor's."""
    kernel = line("conv2d", "fprop", lambda problem, launch: launch)
    reports, written = [], []

    def record(name: str, value: Any) -> None:
        reports.append(SimpleNamespace(when="call", user_properties=[(name, value)]))

    two_ran = Verdict(["value", "views"], [("batch_invariant", "no claim")], [("poison", "no glibc")], [])
    report(kernel, Cpu(), [two_ran, two_ran], record)
    with pytest.raises(pytest.fail.Exception, match="it is wrong"):
        report(kernel, Emulator(), [Verdict(["value"], failures=["it is wrong"])], record)
    pytest_terminal_summary(
        SimpleNamespace(stats={"passed": reports}, section=written.append, write_line=written.append)
    )
    assert written[1:] == [
        "battery on cpu: 4 run, 0 failed, 2 unsupported, 2 skipped",
        "battery on emulator: 1 run, 1 failed, 0 unsupported, 0 skipped",
        f"  skipped      2  {kernel.id}: no glibc",
        f"  unsupported      2  {kernel.id}: no claim",
    ]
