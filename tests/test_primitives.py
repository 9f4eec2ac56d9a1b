"""The CUDA primitives of ``kernels/common``: on the emulator against the PTX ISA, and as machine code.

The kernels in ``tests/primitives`` take and give registers; which element of a matrix a register holds is
written here once more, from the ISA's formulas for fragments and not from the comments of the headers.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pyconv.backends import nvrtc
from pyconv.backends.emulator import ORDERS, Buffer, Emulator, unavailable
from pyconv.gates import cubin
from pyconv.gates.architectures import ARCHITECTURES

Array = npt.NDArray[np.generic]
SOURCES = Path(__file__).resolve().parent / "primitives"
RNG = np.random.default_rng(3)
LANES = np.arange(32)
GROUP, MEMBER = LANES // 4, LANES % 4  # groupID and threadID_in_group of the ISA

needs_emulator = pytest.mark.skipif(unavailable() is not None, reason=f"no emulator: {unavailable()}")


def launch(source: str, kernel: str, threads: int, *arguments: Array | int, writes: int = 1) -> None:
    """One block of the kernel on numpy's memory, checked and in every order of its threads.

    The orders must give the same bits in the array that is argument number ``writes``.
    """
    before, results = arguments[writes], []
    assert isinstance(before, np.ndarray)
    for order in ORDERS:
        emulator = Emulator(checked=True, order=order)
        given = [each.copy() if isinstance(each, np.ndarray) else each for each in arguments]
        buffers = [
            Buffer(f"argument {i}", each.ctypes.data, each.nbytes, initialised=True, writable=i == writes)
            for i, each in enumerate(given)
            if isinstance(each, np.ndarray)
        ]
        values = [
            ctypes.c_void_p(each.ctypes.data) if isinstance(each, np.ndarray) else ctypes.c_int(each)
            for each in given
        ]
        parameters = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        function = emulator.function(str(SOURCES / source), kernel)
        emulator.launch(function, (1, 1, 1), (threads, 1, 1), 0, parameters, buffers)
        results.append(given[writes])
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0], err_msg="depends on the order of threads")
    before[...] = results[0]


# ---- cp.async ----------------------------------------------------------------------------------------------


@needs_emulator
@pytest.mark.parametrize("piece", [4, 8, 16])
def test_cp_async_fills_with_zeros(piece: int) -> None:
    threads = 32
    x = RNG.integers(1, 256, threads * piece, dtype=np.uint8)
    for valid in (0, 1, piece - 1, piece, piece + 1, 5 * piece + 3, x.size - 1, x.size):
        y = np.empty_like(x)
        launch("cp_async.cu", f"cp_async_ragged<{piece}, {threads}>", threads, x, y, valid)
        np.testing.assert_array_equal(y, np.where(np.arange(x.size) < valid, x, 0), err_msg=f"{valid=}")


@needs_emulator
@pytest.mark.parametrize("tiles", [1, 2, 3, 7])
def test_cp_async_groups_arrive_in_order(tiles: int) -> None:
    threads = 64
    x = RNG.standard_normal((tiles, threads)).astype(np.float32)
    y = np.empty_like(x)
    launch("cp_async.cu", f"cp_async_ring<{threads}>", threads, x, y, tiles)
    np.testing.assert_array_equal(y, x[:, ::-1])


# ---- ldmatrix ----------------------------------------------------------------------------------------------


@needs_emulator
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count: int, transposed: bool) -> None:
    matrices = RNG.permutation(count * 64).astype(np.uint16).reshape(count, 8, 8)
    registers = np.empty((32, count), np.uint32)
    kernel = f"ldmatrix_registers<{count}, {str(transposed).lower()}>"
    launch("ldmatrix.cu", kernel, 32, matrices, registers)
    # ISA: lane i receives elements 2*(i%4) and 2*(i%4)+1 of row i/4; with .trans, of column i/4.
    seen = matrices.transpose(0, 2, 1) if transposed else matrices
    want = np.empty((32, count, 2), np.uint16)
    for half in range(2):
        want[:, :, half] = seen[:, GROUP, 2 * MEMBER + half].T
    np.testing.assert_array_equal(registers.view(np.uint16).reshape(32, count, 2), want)


# ---- mma.sync ----------------------------------------------------------------------------------------------


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Of floats that are bfloat16 already."""
    bits = values.view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def rounded_to(values: Array, fraction_bits: int) -> npt.NDArray[np.float32]:
    """To the nearest number of so many fraction bits, ties away from zero, by arithmetic in float64."""
    wide = values.astype(np.float64)
    _, exponent = np.frexp(wide)
    unit = np.ldexp(1.0, np.maximum(exponent, -125) - fraction_bits - 1)  # subnormals share one unit
    return (np.sign(wide) * np.floor(np.abs(wide) / unit + 0.5) * unit).astype(np.float32)


@needs_emulator
def test_tf32_is_the_nearest() -> None:
    scales = np.exp2(RNG.integers(-126, 126, 4096)).astype(np.float32)
    x = (RNG.standard_normal(4096).astype(np.float32) * scales).astype(np.float32)
    ties = (x.view(np.uint32) & 0xFFFFE000 | 0x1000).view(np.float32)
    x = np.concatenate([x, ties, -ties, np.float32([0.0, -0.0, np.inf, -np.inf, 1e-40])])
    y = np.empty(x.size, np.uint32)
    launch("mma.cu", "tf32_of_float", 32, x, y, x.size)
    finite = np.isfinite(x)
    np.testing.assert_array_equal(y.view(np.float32)[finite], rounded_to(x[finite], 10))
    np.testing.assert_array_equal(y.view(np.float32)[~finite], x[~finite])
    assert not (y & 0x1FFF).any()

    nan = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32)
    y = np.empty(nan.size, np.uint32)
    launch("mma.cu", "tf32_of_float", 32, nan.view(np.float32), y, nan.size)
    assert np.isnan(y.view(np.float32)).all()


#: ISA, "matrix fragments": register by register, (row, column) of each lane's element. Elements a0.. of 16
#: bits are in order, two a register.
FRAGMENTS = {
    "m16n8k16": {
        "a": [
            (GROUP + (0 if i < 2 or 4 <= i < 6 else 8), MEMBER * 2 + (i & 1) + (0 if i < 4 else 8))
            for i in range(8)
        ],
        "b": [(MEMBER * 2 + (i & 1) + (0 if i < 2 else 8), GROUP) for i in range(4)],
        "c": [(GROUP + (0 if i < 2 else 8), MEMBER * 2 + (i & 1)) for i in range(4)],
    },
    "m16n8k8": {
        "a": [(GROUP + (0 if i in (0, 2) else 8), MEMBER + (0 if i in (0, 1) else 4)) for i in range(4)],
        "b": [(MEMBER + (0 if i == 0 else 4), GROUP) for i in range(2)],
        "c": [(GROUP + (0 if i < 2 else 8), MEMBER * 2 + (i & 1)) for i in range(4)],
    },
    "m8n8k4": {
        "a": [(LANES >> 2, LANES % 4)],
        "b": [(LANES % 4, LANES >> 2)],
        "c": [(LANES >> 2, MEMBER * 2 + (i & 1)) for i in range(2)],
    },
}


def deal(matrix: Array, shape: str, operand: str) -> Array:
    """The matrix as the lanes' registers: ``[lane][element]``."""
    return np.ascontiguousarray(
        np.stack([matrix[row, column] for row, column in FRAGMENTS[shape][operand]], 1)
    )


def collect(registers: Array, shape: str, size: tuple[int, int]) -> Array:
    """The matrix that the sums in the registers are."""
    matrix = np.full(size, np.nan, registers.dtype)
    for i, (row, column) in enumerate(FRAGMENTS[shape]["c"]):
        matrix[row, column] = registers[:, i]
    return matrix


#: name -> shape, (m, n, k), elements as floats -> registers, kernel
MMAS = {
    "f16": ("m16n8k16", (16, 8, 16), "mma_16_bit<false>"),
    "bf16": ("m16n8k16", (16, 8, 16), "mma_16_bit<true>"),
    "tf32": ("m16n8k8", (16, 8, 8), "mma_tf32"),
    "f64": ("m8n8k4", (8, 8, 4), "mma_f64"),
}


def elements(name: str, values: Array) -> Array:
    """Values that the type can hold, near `values`; as float64, or float32 for tf32."""
    if name == "f64":
        return values.astype(np.float64)
    if name == "f16":
        return values.astype(np.float16).astype(np.float32)
    return rounded_to(values, 10 if name == "tf32" else 7)


def as_operand(name: str, values: Array) -> Array:
    if name == "f16":
        return values.astype(np.float16)
    return bfloat16_bits(values.astype(np.float32)) if name == "bf16" else values


def multiply(name: str, a: Array, b: Array, c: Array) -> Array:
    """``a @ b + c`` by one mma.sync."""
    shape, (m, n, _), kernel = MMAS[name]
    sums = deal(c, shape, "c")
    launch(
        "mma.cu",
        kernel,
        32,
        *(deal(as_operand(name, x), shape, y) for x, y in ((a, "a"), (b, "b"))),
        sums,
        writes=2,
    )
    return collect(sums, shape, (m, n))


def sum_type(name: str) -> type[np.floating]:
    return np.float64 if name == "f64" else np.float32


@needs_emulator
@pytest.mark.parametrize("name", MMAS)
def test_mma_is_exact_on_integers(name: str) -> None:
    m, n, k = MMAS[name][1]
    a, b = RNG.integers(-100, 100, (m, k)), RNG.integers(-100, 100, (k, n))
    c = RNG.integers(-1000, 1000, (m, n))
    got = multiply(name, elements(name, a), elements(name, b), c.astype(sum_type(name)))
    np.testing.assert_array_equal(got, a @ b + c)


@needs_emulator
@pytest.mark.parametrize("name", MMAS)
def test_mma_is_near_on_random_values(name: str) -> None:
    m, n, k = MMAS[name][1]
    for scale in (1.0, 1e-6, 1e3):
        a, b = (elements(name, RNG.standard_normal(size) * scale) for size in ((m, k), (k, n)))
        c = (RNG.standard_normal((m, n)) * scale).astype(sum_type(name))
        exact = a.astype(np.longdouble) @ b.astype(np.longdouble) + c
        magnitude = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)) + np.abs(c)
        # Products are exact; each addition to the sum may truncate, an ulp of what it has come to at most.
        error = np.abs(multiply(name, a, b, c) - exact)
        assert (error <= k * np.finfo(sum_type(name)).eps * magnitude).all()


@needs_emulator
@pytest.mark.parametrize("name", MMAS)
def test_mma_keeps_nan_and_infinity_in_their_row_and_column(name: str) -> None:
    m, n, k = MMAS[name][1]
    a, b = elements(name, RNG.standard_normal((m, k))), elements(name, RNG.standard_normal((k, n)))
    c = np.zeros((m, n), sum_type(name))
    a[3, k - 1], b[1, 5] = np.nan, np.inf
    got = multiply(name, a, b, c)
    rows, columns = np.arange(m)[:, None], np.arange(n)[None, :]
    np.testing.assert_array_equal(np.isnan(got), np.broadcast_to(rows == 3, got.shape))
    np.testing.assert_array_equal(np.isinf(got), (columns == 5) & (rows != 3))


# ---- Warps -------------------------------------------------------------------------------------------------


@needs_emulator
@pytest.mark.parametrize("lanes", [32, 8, 1])
@pytest.mark.parametrize(("name", "dtype"), [("float", np.float32), ("double", np.float64)])
def test_warp_sum_has_one_order(name: str, dtype: type[np.floating], lanes: int) -> None:
    x = RNG.standard_normal(32).astype(dtype)
    y = np.empty_like(x)
    launch("warp.cu", f"warp_sums<{name}, {lanes}>", 32, x, y)
    want = x.reshape(-1, lanes)
    while want.shape[1] > 1:  # the upper half onto the lower half
        want = want[:, : want.shape[1] // 2] + want[:, want.shape[1] // 2 :]
    np.testing.assert_array_equal(y.reshape(-1, lanes), np.repeat(want, lanes, 1))


@needs_emulator
def test_warp_votes() -> None:
    for x in (RNG.standard_normal(32), -np.ones(32), np.ones(32)):
        y = np.empty((32, 2), np.uint32)
        launch("warp.cu", "warp_votes", 32, x.astype(np.float32), y)
        positive = sum(1 << int(lane) for lane in np.flatnonzero(x > 0))
        np.testing.assert_array_equal(y, np.broadcast_to(np.uint32([positive, positive != 0]), y.shape))


# ---- Machine code ------------------------------------------------------------------------------------------

#: Kernel -> the instruction that its primitive has to become.
INSTRUCTIONS = {
    "cp_async.cu": {
        "cp_async_ragged<4, 32>": "LDGSTS.ZFILL",
        "cp_async_ragged<8, 32>": "LDGSTS.64.ZFILL",
        "cp_async_ragged<16, 32>": "LDGSTS.BYPASS.128.ZFILL",
    },
    "ldmatrix.cu": {
        "ldmatrix_registers<1, false>": "LDSM.M88",
        "ldmatrix_registers<2, false>": "LDSM.M88.2",
        "ldmatrix_registers<4, false>": "LDSM.M88.4",
        "ldmatrix_registers<1, true>": "LDSM.MT88",
        "ldmatrix_registers<2, true>": "LDSM.MT88.2",
        "ldmatrix_registers<4, true>": "LDSM.MT88.4",
    },
    "mma.cu": {
        "mma_16_bit<false>": "HMMA.16816.F32",
        "mma_16_bit<true>": "HMMA.16816.F32.BF16",
        "mma_tf32": "HMMA.1688.F32.TF32",
        "mma_f64": "DMMA",
    },
    "warp.cu": {"warp_sums<float, 32>": "SHFL.BFLY", "warp_votes": "VOTE"},
}


def no_compiler() -> str | None:
    try:
        cubin.tool("cuobjdump"), cubin.tool("nvdisasm")
    except FileNotFoundError as error:
        return str(error)
    found = nvrtc.find()
    return found if isinstance(found, str) else None


@pytest.mark.skipif(no_compiler() is not None, reason=f"no machine code: {no_compiler()}")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("source", INSTRUCTIONS)
def test_a_primitive_is_one_instruction(source: str, architecture: str) -> None:
    compiler = nvrtc.find()
    assert not isinstance(compiler, str)
    kernels = INSTRUCTIONS[source]
    images = [compiler.compile(str(SOURCES / source), kernel, architecture) for kernel in kernels]
    usages = cubin.read(images, ARCHITECTURES[architecture])
    for (kernel, instruction), usage in zip(kernels.items(), usages, strict=True):
        # A butterfly has five steps; the votes are compiled as they come.
        expected = {"SHFL.BFLY": {5}, "VOTE": {1, 2}}.get(instruction, {1})
        assert usage.count(instruction) in expected, f"{kernel} on {architecture}: {usage.opcodes}"
