"""torch's own operator database, with ours in torch's place.

``torch.testing._internal.common_methods_invocations.op_db`` holds the samples and the wrong calls that
torch tests its operators with. The samples of ``nn.functional.conv2d`` and ``nn.functional.max_pool2d`` run
here on pyconv; torch's own answer is the expectation. The counts of run, skipped and unsupported samples
are printed at the end of the run.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import SampleInput

import pyconv
from pyconv.problem import DTYPE_NAMES

# Importing torch's test code forbids the whole process to set torch.backends' flags, as Lightning does.
torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True

OURS: dict[str, Callable[..., Any]] = {
    "nn.functional.conv2d": pyconv.conv2d,
    "nn.functional.max_pool2d": pyconv.max_pool2d,
}
INFOS = {info.name: info for info in op_db if info.name in OURS}
#: (operator, check) -> how many samples were run, skipped (by the stride below), or unsupported.
COUNTS: dict[tuple[str, str], Counter[str]] = {}

#: Gradients cost more than values: every so many samples of an operator with many.
GRADIENT_STRIDE = {"nn.functional.conv2d": 1, "nn.functional.max_pool2d": 24}
SECOND_STRIDE = {"nn.functional.conv2d": 2, "nn.functional.max_pool2d": 96}

both = pytest.mark.parametrize("name", list(OURS))


@pytest.fixture(scope="module", autouse=True)
def report(request: pytest.FixtureRequest) -> Iterator[None]:
    """Prints the counts past pytest's capture, also from a worker's last test."""
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    lines = [
        f"op_db {name}, {check}: "
        + ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("run", "skipped", "unsupported"))
        for (name, check), counts in sorted(COUNTS.items())
    ]
    with capture.global_and_fixture_disabled():
        # A worker of pytest-xdist has no other way to the terminal than its stderr.
        print("\n" + "\n".join(lines), file=sys.stderr, flush=True)


def _count(name: str, check: str) -> Counter[str]:
    return COUNTS.setdefault((name, check), Counter())


@cache
def _samples(name: str, dtype: torch.dtype) -> list[SampleInput]:
    """Made once: making them costs more than running them."""
    return list(INFOS[name].sample_inputs("cpu", dtype, requires_grad=dtype.is_floating_point))


def _leaves(sample: SampleInput) -> tuple[Tensor, ...]:
    operands = (sample.input, *(a for a in sample.args if isinstance(a, Tensor)))
    return tuple(t for t in operands if t.requires_grad)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _called_with(name: str, sample: SampleInput) -> Callable[..., Tensor]:
    """The operator as a function of the tensors that want a gradient, which gradcheck needs."""

    def function(*leaves: Tensor) -> Tensor:
        left = list(leaves)
        input_ = left.pop(0) if sample.input.requires_grad else sample.input
        arguments = [left.pop(0) if isinstance(a, Tensor) and a.requires_grad else a for a in sample.args]
        return _first(OURS[name](input_, *arguments, **sample.kwargs))

    return function


def test_the_database_has_what_this_file_reads() -> None:
    assert set(INFOS) == set(OURS)
    assert len(_samples("nn.functional.conv2d", torch.float64)) > 10
    assert len(_samples("nn.functional.max_pool2d", torch.float64)) > 1000


@both
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64], ids=str
)
def test_values(name: str, dtype: torch.dtype) -> None:
    info, counts = INFOS[name], _count(name, f"values {dtype}")
    if dtype not in info.supported_dtypes("cpu"):
        counts["unsupported"] += 1
        return
    # Pooling has thousands of samples, and is tried with 16 bits at length in test_functional_pool.py.
    stride = 1 if dtype in (torch.float32, torch.float64) or name.endswith("conv2d") else 16
    for index, sample in enumerate(_samples(name, dtype)):
        if index % stride:
            counts["skipped"] += 1
            continue
        with torch.set_grad_enabled(index % 2 == 0):  # pooling has a kernel for each
            ours = OURS[name](sample.input, *sample.args, **sample.kwargs)
        with torch.no_grad():
            torchs = info.op(sample.input, *sample.args, **sample.kwargs)
        assert type(ours) is type(torchs)
        for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (ours, torchs)), strict=True):
            assert_close(a.detach(), b, msg=lambda text, s=sample: f"{text}\n{s}")
            for memory_format in (torch.contiguous_format, torch.channels_last)[: a.dim() - 2]:
                expected = b.is_contiguous(memory_format=memory_format)
                assert a.is_contiguous(memory_format=memory_format) == expected, sample
        counts["run"] += 1
    assert counts["run"] > 0


def test_every_floating_dtype_of_the_database_is_one_of_the_table() -> None:
    for info in INFOS.values():
        floating = {dtype for dtype in info.supported_dtypes("cpu") if dtype.is_floating_point}
        assert floating <= set(DTYPE_NAMES)


@both
def test_noncontiguous_samples(name: str) -> None:
    info, counts = INFOS[name], _count(name, "noncontiguous")
    for index, sample in enumerate(_samples(name, torch.float64)):
        if index % GRADIENT_STRIDE[name]:
            counts["skipped"] += 1
            continue
        hostile = sample.noncontiguous()
        assert not hostile.input.is_contiguous() or hostile.input.numel() < 2
        ours = _first(OURS[name](hostile.input, *hostile.args, **hostile.kwargs))
        torchs = _first(info.op(sample.input, *sample.args, **sample.kwargs))
        assert_close(ours, torchs)
        dy = torch.randn_like(torchs)
        assert_close(
            torch.autograd.grad(ours, _leaves(hostile), dy.mT.contiguous().mT),
            torch.autograd.grad(torchs, _leaves(sample), dy),
        )
        counts["run"] += 1


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_gradients(name: str, dtype: torch.dtype) -> None:
    info, counts = INFOS[name], _count(name, f"gradients {dtype}")
    for index, sample in enumerate(_samples(name, dtype)):
        if index % GRADIENT_STRIDE[name]:
            counts["skipped"] += 1
            continue
        ours = _first(OURS[name](sample.input, *sample.args, **sample.kwargs))
        torchs = _first(info.op(sample.input, *sample.args, **sample.kwargs))
        dy = torch.randn_like(torchs)
        first, expected = (torch.autograd.grad(y, _leaves(sample), dy) for y in (ours, torchs))
        tolerance = max(1e-4, 8 * torch.finfo(dtype).eps)  # torch adds some 16-bit gradients in 16 bits
        assert_close(first, expected, rtol=tolerance, atol=tolerance)
        counts["run"] += 1
    assert counts["run"] > 0


@both
def test_forward_mode(name: str) -> None:
    info, counts = INFOS[name], _count(name, "forward mode")
    for index, sample in enumerate(_samples(name, torch.float64)):
        if index % GRADIENT_STRIDE[name]:
            counts["skipped"] += 1
            continue
        tangents = []
        for function in (OURS[name], info.op):
            with forward_ad.dual_level():
                duals = [
                    forward_ad.make_dual(a.detach(), a.detach().cos()) if isinstance(a, Tensor) else a
                    for a in (sample.input, *sample.args)
                ]
                tangents.append(
                    forward_ad.unpack_dual(_first(function(*duals, **sample.kwargs))).tangent.clone()
                )
        assert_close(*tangents)
        counts["run"] += 1


@both
def test_gradcheck_and_gradgradcheck(name: str) -> None:
    counts = _count(name, "gradcheck, gradgradcheck")
    for index, sample in enumerate(_samples(name, torch.float64)):
        size = sum(leaf.numel() for leaf in _leaves(sample))
        if index % SECOND_STRIDE[name] or size == 0:
            counts["skipped"] += 1
            continue
        function = _called_with(name, sample)
        assert gradcheck(function, _leaves(sample), fast_mode=True, check_forward_ad=True)
        assert gradgradcheck(function, _leaves(sample), fast_mode=True, check_fwd_over_rev=True)
        counts["run"] += 1
    assert counts["run"] > 3


@both
def test_error_inputs(name: str) -> None:
    info, counts = INFOS[name], _count(name, "error inputs")
    for wrong in info.error_inputs("cpu"):
        sample = wrong.sample_input
        with pytest.raises(wrong.error_type) as raised:
            OURS[name](sample.input, *sample.args, **sample.kwargs)
        assert re.search(wrong.error_regex, str(raised.value)), (wrong.error_regex, str(raised.value))
        counts["run"] += 1
    if not counts["run"]:
        pytest.fail(f"the database has no error inputs for {name}")
