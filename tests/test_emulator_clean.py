"""Correct kernels run right on the emulator, and nothing is found, in both builds and every order."""

from __future__ import annotations

import ctypes
import threading

import pytest
import torch

from pyconv.backends.emulator import Emulator, EmulatorError, unavailable
from tests.emulated import EVERY, buffer, everywhere, function, packed, read, written

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"emulator: {unavailable()}")


@everywhere
def test_clean_tile_with_ragged_edges(emulator: Emulator) -> None:
    n = 19
    x, y = torch.randn(n, n), torch.empty(n, n)
    transpose = function(emulator, "transpose<8>")
    emulator.launch(transpose, (3, 3, 1), (8, 8, 1), 0, packed(x, y, ctypes.c_int(n)), [read(x), written(y)])
    assert torch.equal(y, x.T)


@everywhere
def test_clean_shuffles(emulator: Emulator) -> None:
    x, y = torch.randint(-9, 9, (3, 333)).float(), torch.empty(3)
    row_sum = function(emulator, "row_sum<96>")
    emulator.launch(row_sum, (3, 1, 1), (96, 1, 1), 0, packed(x, y, ctypes.c_int(333)), [read(x), written(y)])
    assert torch.equal(y, x.sum(1))


@everywhere
@pytest.mark.parametrize("stages", [2, 3])
def test_clean_pipeline_of_asynchronous_copies(emulator: Emulator, stages: int) -> None:
    n = 1000 - 3  # the last copy is cut short, those after it are empty
    x, y = torch.randint(-9, 9, (n,)).float(), torch.empty(64)
    pipeline = function(emulator, f"pipeline<{stages}>")
    parameters = packed(x, y, ctypes.c_int(n))
    emulator.launch(pipeline, (1, 1, 1), (64, 1, 1), stages * 1024, parameters, [read(x), written(y)])
    tiles = torch.nn.functional.pad(x, (0, 1024 - n)).view(4, 256)
    assert torch.equal(y, tiles.sum(0).flip(0)[:64])


@everywhere
def test_clean_warps_on_their_own(emulator: Emulator) -> None:
    x, y = torch.randn(128), torch.empty(128)
    warps = function(emulator, "warps_on_their_own")
    emulator.launch(warps, (1, 1, 1), (128, 1, 1), 0, packed(x, y), [read(x), written(y)])
    tile = (x.view(4, 32).flip(1) + 1 + 1).flip(1).flip(1)
    neighbour = tile.view(4, 16, 2).flip(2).view(4, 32)
    assert torch.equal(y.view(4, 32), neighbour + tile.roll(-7, 1))


@everywhere
def test_clean_neighbours_of_every_width(emulator: Emulator) -> None:
    x = torch.randint(0, 255, (128,), dtype=torch.uint8)
    bytes_, halves, vectors = (
        torch.empty(size, dtype=dtype)
        for size, dtype in ((128, torch.uint8), (128, torch.int16), (512, torch.float32))
    )
    outputs = [written(bytes_, "bytes"), written(halves, "halves"), written(vectors, "vectors")]
    parameters = packed(x, bytes_, halves, vectors)
    neighbours = function(emulator, "neighbours")
    emulator.launch(neighbours, (2, 1, 1), (64, 1, 1), 0, parameters, [read(x), *outputs])
    assert torch.equal(bytes_, x.view(2, 64).flip(1).reshape(-1))
    assert torch.equal(halves, bytes_.short() * 2)
    wanted = torch.tensor([1.0, 2.0, 5.0, 0.0]).repeat(128, 1)
    wanted[:, 3] = halves
    assert torch.equal(vectors.view(128, 4), wanted)


@everywhere
def test_clean_integer_atomics(emulator: Emulator) -> None:
    x, counts = torch.randint(0, 16, (300,), dtype=torch.int32), torch.zeros(16, dtype=torch.int32)
    buffers = [read(x), buffer("counts", counts, initialised=True, writable=True)]
    histogram = function(emulator, "histogram")
    emulator.launch(histogram, (5, 1, 1), (64, 1, 1), 0, packed(x, counts, ctypes.c_int(300)), buffers)
    assert torch.equal(counts.long(), x.bincount(minlength=16))


@everywhere
def test_clean_parameters_and_local_memory(emulator: Emulator) -> None:
    class Affine(ctypes.Structure):
        _fields_ = (("scale", ctypes.c_int64), ("offset", ctypes.c_int32))

    x, y = torch.randint(-99, 99, (96,), dtype=torch.int32), torch.empty(96, dtype=torch.int32)
    parameters = function(emulator, "parameters")
    assert parameters.parameter_bytes == (16, 8, 8, 8)
    arguments = packed(Affine(7, -3), x, ctypes.c_void_p(None), y)
    emulator.launch(parameters, (2, 1, 1), (48, 1, 1), 0, arguments, [read(x), written(y)])
    table, thread = torch.tensor([3, 1, 4, 1], dtype=torch.int32), torch.arange(48).repeat(2)
    value = x * 7 - 3 + table[((x & 3) - thread) % 4]
    assert torch.equal(y, value.view(-1, 2).flip(1).reshape(-1))


# ---- sessions


@everywhere
def test_the_steps_of_a_session_share_memory(emulator: Emulator) -> None:
    x = torch.randint(-9, 9, (1000,), dtype=torch.float64)
    workspace, y = torch.empty(8, dtype=torch.float64), torch.empty(1, dtype=torch.float64)
    first, second = function(emulator, "partial_sums"), function(emulator, "sum_of_sums")
    buffers = [read(x), written(workspace, "workspace"), written(y)]
    one = (1, 1, 1)
    for _ in range(2):
        with emulator.session(buffers) as session:
            session.launch(first, (8, 1, 1), one, 0, packed(x, workspace, ctypes.c_int(1000)))
            session.launch(second, one, one, 0, packed(workspace, y, ctypes.c_int(8)))
        assert y.item() == x.sum().item()

    # Another session finds the workspace as unwritten as the first did.
    parameters = packed(workspace, y, ctypes.c_int(8))
    if not emulator.checked:
        emulator.launch(second, one, one, 0, parameters, buffers)
        assert y.isnan().all(), "what a program has not written must not look like a number"
        return
    with pytest.raises(EmulatorError, match=r"uninitialised at .*clean.cu:\d+: .* `workspace` \+ 0"):
        emulator.launch(second, one, one, 0, parameters, buffers)


def test_threads_of_python_take_turns() -> None:
    results: list[torch.Tensor] = []

    def work(emulator: Emulator) -> None:
        for _ in range(20):
            x, y = torch.randint(-9, 9, (2, 333)).float(), torch.empty(2)
            row_sum = function(emulator, "row_sum<96>")
            parameters = packed(x, y, ctypes.c_int(333))
            emulator.launch(row_sum, (2, 1, 1), (96, 1, 1), 0, parameters, [read(x), written(y)])
            results.append(torch.equal(y, x.sum(1)))

    workers = [threading.Thread(target=work, args=(emulator,)) for emulator in EVERY]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [True] * 20 * len(EVERY)
