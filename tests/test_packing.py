"""Packed arguments of launches, and the tensors that passes take and return."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import pytest
import torch

from pyconv import backends, registry
from pyconv.backends import cuda
from pyconv.backends.packing import Packing
from pyconv.backends.program import Program, Scratch, Step
from pyconv.backends.signature import signature
from pyconv.registry import find
from tests.probes import CONV, SAME, step, two_steps


@pytest.fixture
def emulated() -> Any:
    with cuda.emulated(checked=False):
        yield


# ---- Packed arguments ----


def _pointer(frame: Any, step: int, argument: int) -> int:
    parameters = ctypes.cast(frame.parameters[step], ctypes.POINTER(ctypes.c_void_p))
    return int(parameters[argument] or 0)


def _value(frame: Any, step: int, argument: int, of: Any) -> Any:
    return of.from_address(_pointer(frame, step, argument))


def test_arguments_are_packed_once_and_only_pointers_change() -> None:
    packing = Packing(two_steps(SAME), ("x", "y"))
    assert [step.kernel for step in packing.steps] == ["probe_scale<float>", "probe_add<float>"]
    assert packing.workspace_bytes == 256 + 8 * SAME.y_size
    for x, y, workspace in ((0x1000, 0x2000, 0x4000), (0x5000, 2**63 + 16, 0x7000)):
        frame = packing.take([x, y], workspace)
        assert _value(frame, 0, 0, ctypes.c_uint64).value == x
        assert _value(frame, 0, 1, ctypes.c_uint64).value == workspace + 256
        assert _value(frame, 0, 2, ctypes.c_int64).value == SAME.y_size
        assert _value(frame, 0, 3, ctypes.c_double).value == 2
        assert _value(frame, 0, 4, ctypes.c_int32).value == 1
        assert bytes(_value(frame, 1, 0, type(SAME.to_c()))) == bytes(SAME.to_c())
        assert _value(frame, 1, 1, ctypes.c_uint64).value == workspace + 256
        assert _value(frame, 1, 2, ctypes.c_uint64).value == y
        packing.give(frame)
    assert packing.take([0, 0], 0) is frame, "a frame is used again"
    assert packing.take([0, 0], 0) is not frame, "but not by two calls at once"
    assert packing.argument_bytes(packing.steps[0]) == (8, 8, 8, 8, 4)


def test_a_pass_without_a_bias_gives_null() -> None:
    packing = Packing(Program((step("k", ("bias", "db")),)), ("dy", "db"))
    assert _value(packing.take([8, 16], 0), 0, 0, ctypes.c_uint64).value == 0


def test_a_struct_of_the_program_is_copied() -> None:
    class Pair(ctypes.Structure):
        _fields_ = (("a", ctypes.c_int32), ("b", ctypes.c_int32))

    pair = Pair(1, 2)
    packing = Packing(Program((step("k", ("x", pair)),)), ("x",))
    pair.a = 9
    frame = packing.take([8], 0)
    assert (_value(frame, 0, 1, Pair).a, _value(frame, 0, 1, Pair).b) == (1, 2)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (step("k", ("z",)), "k: 'z' is no argument; there are x, y"),
        (step("k", (3,)), "k: 3 is no argument"),
        (
            step("k", (Scratch(8),)),
            r"k: Scratch\(offset=8\) is no multiple of 16 within a workspace of 64 bytes",
        ),
        (step("k", (Scratch(80),)), "within a workspace of 64 bytes"),
        (step("k", (), threads=1025), "k: .1025, 1, 1. threads a block"),
        (step("k", (), threads=0), "threads a block"),
        (
            dataclasses.replace(step("k", ()), grid=(1, 65536, 1)),
            "k: a grid of .1, 65536, 1. blocks; at most",
        ),
        (step("k", (), blocks=-1), "a grid of"),
    ],
)
def test_what_no_device_can_launch_is_refused(step: Step, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Packing(Program((step,), workspace_bytes=64), ("x", "y"))


# ---- Signatures ----


@pytest.mark.parametrize("pass_", registry.PASSES["conv2d"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_signature_of_conv2d(pass_: str, layout: str) -> None:
    problem = dataclasses.replace(CONV, layout=layout)
    value = {v.name: v for v in (*signature(problem, pass_).operands, *signature(problem, pass_).results)}
    shapes = {
        "x": (2, 4, 6, 5), "dx": (2, 4, 6, 5), "w": (3, 4, 3, 3), "dw": (3, 4, 3, 3), "y": (2, 3, 6, 5),
        "dy": (2, 3, 6, 5), "bias": (3,), "db": (3,),
    }  # fmt: skip
    for name, each in value.items():
        assert each.shape == shapes[name]
        assert each.dtype == torch.float32
        dense = torch.empty(each.shape)
        if dense.dim() == 4:
            dense = torch.empty(each.shape, memory_format=problem.memory_format)
        assert each.empty(torch.device("cpu")).stride() == dense.stride()
        assert each.bytes == dense.numel() * 4


def test_signature_of_pooling_by_place_and_by_tap() -> None:
    for pass_, dtype in (("fprop_argmax", torch.int32), ("fprop_tap", torch.uint8)):
        assert [(v.name, v.dtype) for v in signature(SAME, pass_).results] == [
            ("y", torch.float32),
            ("argmax", dtype),
        ]
    assert [v.name for v in signature(SAME, "dgrad_tap").operands] == ["dy", "argmax"]
    assert signature(SAME, "dgrad_tap").operands[1].dtype == torch.uint8
    assert signature(SAME, "gather").operands[1].dtype == torch.int32


def test_operands_that_are_not_the_problems_are_refused(emulated: None) -> None:
    bound = backends.bind(find("conv2d.fprop.direct_naive@cuda"), CONV)
    x, w, bias = torch.zeros(2, 4, 6, 5), torch.zeros(3, 4, 3, 3), torch.zeros(3)
    for operands, message in (
        (
            (x[:1], w, bias),
            r"x must be torch.float32 of shape \[2, 4, 6, 5\], got torch.float32 of shape \[1, 4",
        ),
        ((x, w.double(), bias), r"w must be torch.float32 of shape .*, got torch.float64"),
        ((x, w, bias[:2]), r"bias must be"),
        ((x, w.to("meta"), bias), r"Expected all tensors to be on the same device, .* cpu and meta!"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bound(*operands)
    with pytest.raises(TypeError, match="takes x, w, bias, got 2"):
        bound(x, w)
