"""How the battery lays operands out in memory, and what it fills the rest of the memory with.

:func:`lay_out` turns an array into a torch tensor in a plain or a hostile placement. Every placement lives in
a buffer with margins of NaN, so a kernel that reads beside its operand, or takes a view for a dense tensor,
cannot give the right result. Within :func:`poisoned_memory`, so cannot one that leaves a part of its result
unwritten or reads its workspace too soon.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tests.operands import Array

# ---- Placement -------------------------------------------------------------------------------------------

#: ``dense`` is what the problem's layout says; the others are views that a kernel must not mistake for it.
PLACEMENTS = ("dense", "strided", "sliced", "offset", "transposed")


def dense_strides(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Strides, in elements, of a dense tensor of the layout (one dimension is always contiguous)."""
    order = (0, 2, 3, 1) if layout == "nhwc" and len(shape) == 4 else range(len(shape))
    strides, step = [0] * len(shape), 1
    for axis in reversed(tuple(order)):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


#: Bytes to which a fresh tensor is aligned on a GPU, and a ``dense`` operand of the battery everywhere: a
#: kernel may then take it as it lies, between its margins.
_ALIGNMENT = 256
_MARGIN = 256  # bytes of NaN, at least, before and after


def lay_out(
    array: Array, dtype: torch.dtype, layout: str, placement: str = "dense", device: str = "cpu"
) -> Tensor:
    """A tensor of these values: see :data:`PLACEMENTS`. Everything around them is NaN.

    An array of integers (an argmax) becomes a tensor of them, whatever ``dtype``, among the largest of them.
    """
    if array.dtype in (np.int32, np.uint8):
        dtype = torch.int32 if array.dtype == np.int32 else torch.uint8
    around = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
    if placement == "transposed":
        layout = "nchw" if layout == "nhwc" else "nhwc"
    grown = array.shape
    if placement in ("strided", "sliced"):  # every second element, or the middle, of a larger tensor
        grown = tuple(2 * size + 1 if placement == "strided" else size + 3 for size in array.shape)
    margin = _MARGIN // dtype.itemsize
    slack = _ALIGNMENT // dtype.itemsize
    buffer = torch.full((int(np.prod(grown)) + 2 * margin + slack,), around, dtype=dtype, device=device)
    start = margin + (-buffer.data_ptr() % _ALIGNMENT) // dtype.itemsize
    start += placement == "offset"  # aligned to nothing but its element
    view = buffer.as_strided(grown, dense_strides(grown, layout), start)
    if placement == "strided":
        view = view[tuple(slice(1, None, 2) for _ in array.shape)]
    elif placement == "sliced":
        view = view[tuple(slice(1, 1 + size) for size in array.shape)]
    view.copy_(torch.from_numpy(np.array(array)))
    return view


def placements(count: int) -> list[tuple[str, ...]]:
    """Every hostile placement of every one of ``count`` operands, in as few calls as there are placements."""
    hostile = PLACEMENTS[1:]
    return [
        tuple(hostile[(call + operand) % len(hostile)] for operand in range(count))
        for call in range(len(hostile))
    ]


def storage_bytes(tensor: Tensor) -> bytes:
    """Every byte of the buffer that a tensor is a view of."""
    storage = tensor.untyped_storage().cpu()
    return ctypes.string_at(storage.data_ptr(), storage.nbytes()) if storage.nbytes() else b""


def values(tensor: Tensor) -> Array:
    """The values of a dense tensor, as :mod:`tests.operands` holds them."""
    if tensor.dtype.itemsize == 2:
        tensor = tensor.float()
    return np.ascontiguousarray(tensor.cpu().numpy())


# ---- Poison ----------------------------------------------------------------------------------------------

#: 0xFF is NaN in every floating-point dtype and -1 in every integer, 0x7B a large number in each.
POISONS = (0xFF, 0x7B)

_M_PERTURB = -6  # glibc's mallopt: fill whatever is allocated with the complement of a byte


def _perturb(byte: int | None) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_PERTURB, 0 if byte is None else 0x100 | (byte ^ 0xFF)))


def _fill_cache(byte: int) -> None:
    """Leaves torch's cache of device memory holding blocks of this byte, and no others.

    torch takes what is at most 1 MB from blocks of 2 MB, and keeps larger memory apart; there is some of
    either, more than a launch of the battery asks for.
    """
    torch.cuda.empty_cache()
    blocks = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in [2**20] * 8 + [2**25]]
    for block in blocks:
        block.fill_(byte)
    torch.cuda.synchronize()


@contextmanager
def poisoned_memory(byte: int, device: str = "cpu") -> Iterator[None]:
    """What torch allocates within the block is filled with ``byte`` of :data:`POISONS`: see `can_poison`.

    On a CPU, a block below 1 kB escapes now and then (glibc hands out a cached one as it is), a larger one
    never; the shared list has both for every kernel. On a GPU, what is allocated and freed within the block
    is used again as it was left.
    """
    try:
        if device == "cpu":
            _perturb(byte)
        else:
            _fill_cache(byte)
        yield
    finally:
        if device == "cpu":
            _perturb(None)


@cache
def can_poison(device: str) -> bool:
    """Whether :func:`poisoned_memory` does what it says, here."""
    byte = POISONS[-1]
    with poisoned_memory(byte, device):
        probes = [torch.empty(size, dtype=torch.uint8, device=device) for size in (2000, 70_000, 2**21)]
        return all(bool((probe == byte).all()) for probe in probes)
