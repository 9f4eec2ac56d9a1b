"""The tensor-core rung of the GEMM ladder (``gemm_tensor.cu``): tiles and instantiations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyconv.kernels.gemm.gemm_launch import Product, Rung, Tile, instantiation
from pyconv.kernels.gemm.simt_launch import MULTIPROCESSORS

from pyconv.backends.program import blocks
from pyconv.problem import DTYPES


@dataclass(frozen=True)
class Shape:
    """A block's tile of C, its warps' tiles, and how many such blocks a multiprocessor is to hold.

    ``speed``: relative to the largest, as far as shared memory lets the tensor cores go: it has to read the
    fragments and to take the stages. Modelled from the figures in ``gemm_tensor.cu``.
    """

    bm: int
    bn: int
    wm: int
    wn: int
    blocks: int
    speed: float

    @property
    def threads(self) -> int:
        return self.bm // self.wm * (self.bn // self.wn) * 32


#: The largest first: 64 x 64 sums of float, or 64 x 32 of double, are 128 registers of a lane, half of what
#: it can have. The others are for few filters or few pixels, for which large tiles are padding, or too few.
_SHAPES_16_BIT = (
    Shape(128, 128, 64, 64, 2, 1.0),
    Shape(64, 128, 32, 64, 3, 0.85),
    Shape(128, 64, 64, 32, 3, 0.85),
    Shape(64, 64, 32, 32, 4, 0.65),
)
SHAPES = {
    "f16": _SHAPES_16_BIT,
    "bf16": _SHAPES_16_BIT,
    "f32": (  # rounding to tf32 takes registers: a block less
        Shape(128, 128, 64, 64, 2, 1.0),
        Shape(64, 128, 32, 64, 2, 0.85),
        Shape(128, 64, 64, 32, 2, 0.85),
        Shape(64, 64, 32, 32, 3, 0.65),
    ),
    "f64": (
        Shape(128, 128, 64, 32, 1, 1.0),
        Shape(64, 128, 32, 64, 2, 0.85),
        Shape(128, 64, 64, 32, 2, 0.85),
        Shape(64, 64, 32, 32, 3, 0.65),
    ),
}
#: Of k, in a stage: two steps of mma.sync, so that the fragments of one load while the other is multiplied.
TILE_BYTES_OF_K = 64
#: Two tiles are under way while one is multiplied, which takes two blocks 1,000 cycles on an A100: more than
#: memory's latency. 48 KB at most, so that two blocks fit the 100 KB of sm_86 and sm_89.
STAGES = 3

#: The instruction of a dtype.
MMA = {
    "f16": "HMMA.16816.F32",
    "bf16": "HMMA.16816.F32.BF16",
    "f32": "HMMA.1688.F32.TF32",
    "f64": "DMMA",
}


def tile_of(shape: Shape, dtype: str) -> Tile:
    """The tile of a block of that shape."""
    bk = TILE_BYTES_OF_K // DTYPES[dtype].itemsize
    shared_bytes = STAGES * (shape.bm + shape.bn) * TILE_BYTES_OF_K
    return Tile(shape.bm, shape.bn, bk, shape.threads, shared_bytes)


def fastest(shapes: tuple[Shape, ...], blocks_of: Callable[[Shape], int]) -> Shape:
    """The shape with which the multiprocessor that has the most blocks is done first."""

    def time(shape: Shape) -> float:
        return blocks(blocks_of(shape), MULTIPROCESSORS) * shape.bm * shape.bn / shape.speed

    return min(shapes, key=time)


def _shape(product: Product) -> Shape:
    return fastest(SHAPES[product.dtype], lambda shape: product.blocks(tile_of(shape, product.dtype)))


def _kernel(product: Product) -> str:
    shape = _shape(product)
    return instantiation("gemm_tensor", product, shape.bm, shape.bn, shape.wm, shape.wn, STAGES, shape.blocks)


def _sass(product: Product) -> tuple[str, ...]:
    majors = {product.a.major, product.b.major}
    size = DTYPES[product.dtype].itemsize
    promised = [MMA[product.dtype], "LDGSTS.BYPASS.128"]
    if "kKMajor" in majors and size <= 4:
        promised.append("LDSM.M88.4")
    if "kMnMajor" in majors and size == 2:
        promised.append("LDSM.MT88.4")
    return tuple(promised)


#: Of the tensor cores' peak that ``mma.sync`` reaches with the largest shape, as far as its 64 of some 250
#: instructions and shared memory let it: on an H100, whose peak is that of ``wgmma``, about half.
SHARE = 0.5


def _rung(name: str, *dtypes: str) -> Rung:
    return Rung(
        name,
        "gemm/gemm_tensor.cu",
        dtypes,
        lambda dtype: tile_of(SHAPES[dtype][0], dtype),
        _kernel,
        _sass,
        lambda product: tile_of(_shape(product), product.dtype),
        unit=lambda dtype: {"f32": "tf32", "f64": "f64 tensor"}.get(dtype, "f16"),
        share=lambda product, tile: SHARE * _shape(product).speed,
        resident=lambda product, tile: _shape(product).blocks,
    )


#: 16-bit types and double, each in its own precision.
TENSOR_RUNG = _rung("tensor", "f16", "bf16", "f64")
#: float32 by way of tf32.
TF32_RUNG = _rung("tf32", "f32")
#: Rounding both operands to 10 fraction bits gives random terms a relative L2 error of 3e-4, however many.
#: What the emulator's tensor cores truncate in 40,000 terms makes it 4e-4.
TF32_ACCURACY = "1e-3 (tf32)"
