"""The rungs of the GEMM ladder on the ordinary arithmetic units: their tiles, and why these.

``gemm_tiled.cu``, ``gemm_register.cu`` and ``gemm_pipelined.cu`` take the numbers as template arguments.
"""

from __future__ import annotations

from pyconv.kernels.gemm.gemm_launch import Product, Rung, Tile, instantiation

from pyconv.problem import DTYPES

# ---- tiled -----------------------------------------------------------------------------------------------

#: 32 x 32 outputs: a warp's lanes are one row, and 1024 threads are what a block may have at most.
TILED = 32


def _tiled_tile(dtype: str) -> Tile:
    return Tile(TILED, TILED, TILED, threads=TILED * TILED)


def _tiled(product: Product) -> str:
    return instantiation("gemm_tiled", product, TILED)


# ---- register --------------------------------------------------------------------------------------------


def _register_tile(dtype: str) -> Tile:
    """256 threads with 8 x 8 sums: 64 of the 128 registers that a thread may have with two blocks in place.

    Of doubles, which take two, 4 x 4. BK = 8 is the least that fills a sector of 32 bytes along k.
    """
    return Tile(64, 64, 8, threads=256) if dtype == "f64" else Tile(128, 128, 8, threads=256)


def _register(product: Product) -> str:
    tile = _register_tile(product.dtype)
    side = tile.bm // 16  # 16 x 16 threads
    return instantiation("gemm_register", product, tile.bm, tile.bn, tile.bk, side, side)


# ---- pipelined -------------------------------------------------------------------------------------------

#: Tiles in shared memory: one is computed, the next has a whole tile's time (16 * 64 FMAs of 16 warps, some
#: 4000 cycles) to arrive, and the third is where the copies go that are started meanwhile. More would only
#: take room.
STAGES = 3


def _pipelined_tile(dtype: str) -> Tile:
    """32 vectors of 16 bytes each way (``gemm_pipelined.cu`` says how lanes share them), 16 terms at a time.

    Larger BK would save barriers, but 3 stages of it would leave room for one block only; with 8, loop and
    barrier would be a tenth of the instructions.
    """
    vector = 16 // DTYPES[dtype].itemsize
    bm = bn = 32 * vector
    bk = 16
    padding = vector  # of a line, if it is transposed while copied; always counted
    shared_bytes = STAGES * bk * (bm + bn + 2 * padding) * DTYPES[dtype].itemsize
    return Tile(bm, bn, bk, threads=256, shared_bytes=shared_bytes)


def _copies(product: Product) -> tuple[int, int]:
    """Elements of one copy of A and of B: 16 bytes where the lines run along m or n and all are aligned."""
    vector = 16 // DTYPES[product.dtype].itemsize
    a, b, _ = product.copy_elements
    return (
        vector if product.a.major == "kMnMajor" and a == vector else 1,
        vector if product.b.major == "kMnMajor" and b == vector else 1,
    )


def _pipelined(product: Product) -> str:
    tile = _pipelined_tile(product.dtype)
    return instantiation("gemm_pipelined", product, *_copies(product), tile.bm, tile.bn, tile.bk, STAGES)


def _pipelined_sass(product: Product) -> tuple[str, ...]:
    copies = "LDGSTS.E.BYPASS.128" if max(_copies(product)) > 1 else "LDGSTS.E"
    return copies, "LDS.128", "STG.E.128", "DFMA" if product.dtype == "f64" else "FFMA"


EVERY_DTYPE = ("f32", "f64", "f16", "bf16")

TILED_RUNG = Rung("tiled", "gemm/gemm_tiled.cu", EVERY_DTYPE, _tiled_tile, _tiled)
REGISTER_RUNG = Rung("register", "gemm/gemm_register.cu", EVERY_DTYPE, _register_tile, _register)
PIPELINED_RUNG = Rung(
    "pipelined", "gemm/gemm_pipelined.cu", ("f32", "f64"), _pipelined_tile, _pipelined, _pipelined_sass
)
