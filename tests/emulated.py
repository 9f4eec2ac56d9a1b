"""Launches on the emulator, for its own tests: each on tensors of the CPU."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

from pyconv.backends.emulator import ORDERS, Buffer, Emulator, Function

SOURCES = Path(__file__).parent / "emulator"
CHECKED = [Emulator(checked=True, order=order, seed=3) for order in ORDERS]
EVERY = [*CHECKED, *(Emulator(order=order, seed=3) for order in ORDERS)]


def packed(*arguments: Any) -> Any:
    """``void*`` to each argument; a tensor stands for its pointer."""
    values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    pointers.values = values  # kept alive
    return pointers


def buffer(name: str, tensor: torch.Tensor, initialised: bool, writable: bool) -> Buffer:
    return Buffer(name, tensor.data_ptr(), tensor.nbytes, initialised, writable)


def read(tensor: torch.Tensor, name: str = "x") -> Buffer:
    return buffer(name, tensor, initialised=True, writable=False)


def written(tensor: torch.Tensor, name: str = "y") -> Buffer:
    return buffer(name, tensor, initialised=False, writable=True)


#: A test in both builds and every order.
everywhere = pytest.mark.parametrize(
    "emulator", EVERY, ids=[f"{'checked' if e.checked else 'plain'}-{e.order}" for e in EVERY]
)


def function(emulator: Emulator, kernel: str) -> Function:
    """A kernel of ``emulator/clean.cu``."""
    return emulator.function(str(SOURCES / "clean.cu"), kernel)
