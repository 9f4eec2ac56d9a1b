"""The tensor-core rung of the GEMM ladder (``gemm_tensor.cu``): tiles and instantiations."""

from __future__ import annotations

from pyconv.kernels.gemm.gemm_launch import Product, Rung, Tile, instantiation

from pyconv.problem import DTYPES

#: Of a block. For 16-bit types the L2 cache allows no smaller one: ``gemm_tensor.cu`` has the figures.
BM = BN = 128
#: Of k, in a stage: two steps of mma.sync, so that the fragments of one load while the other is multiplied.
TILE_BYTES_OF_K = 64
#: Two tiles are under way while one is multiplied, which takes two blocks 1,000 cycles on an A100: more than
#: memory's latency. 48 KB, so that two blocks fit the 100 KB of sm_86 and sm_89.
STAGES = 3
#: WM, WN of a warp, and blocks that fit a multiprocessor. 64 x 64 sums of float and 64 x 32 of double are 128
#: registers of a lane.
WARP = {"f16": (64, 64, 2), "bf16": (64, 64, 2), "f32": (64, 64, 2), "f64": (64, 32, 1)}

_MMA = {
    "f16": "HMMA.16816.F32",
    "bf16": "HMMA.16816.F32.BF16",
    "f32": "HMMA.1688.F32.TF32",
    "f64": "DMMA",
}


def _tile(dtype: str) -> Tile:
    wm, wn, _ = WARP[dtype]
    threads = BM // wm * (BN // wn) * 32
    bk = TILE_BYTES_OF_K // DTYPES[dtype].itemsize
    return Tile(BM, BN, bk, threads, STAGES * (BM + BN) * TILE_BYTES_OF_K)


def _kernel(product: Product) -> str:
    wm, wn, blocks = WARP[product.dtype]
    return instantiation("gemm_tensor", product, BM, BN, wm, wn, STAGES, blocks)


def _sass(product: Product) -> tuple[str, ...]:
    majors = {product.a.major, product.b.major}
    size = DTYPES[product.dtype].itemsize
    promised = [_MMA[product.dtype], "LDGSTS.BYPASS.128"]
    if "kKMajor" in majors and size <= 4:
        promised.append("LDSM.M88.4")
    if "kMnMajor" in majors and size == 2:
        promised.append("LDSM.MT88.4")
    return tuple(promised)


#: 16-bit types and double, each in its own precision.
TENSOR_RUNG = Rung("tensor", "gemm/gemm_tensor.cu", ("f16", "bf16", "f64"), _tile, _kernel, _sass)
#: float32 by way of tf32.
TF32_RUNG = Rung("tf32", "gemm/gemm_tensor.cu", ("f32",), _tile, _kernel, _sass)
#: Rounding both operands to 10 fraction bits gives random terms a relative L2 error of 3e-4, however many.
#: What the emulator's tensor cores truncate in 40,000 terms makes it 4e-4.
TF32_ACCURACY = "1e-3 (tf32)"
