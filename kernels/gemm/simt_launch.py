"""The rungs of the GEMM ladder on the ordinary arithmetic units: their tiles, and why these.

``gemm_tiled.cu``, ``gemm_register.cu`` and ``gemm_pipelined.cu`` take the numbers as template arguments.
"""

from __future__ import annotations

from pyconv.kernels.gemm.gemm_launch import Product, Rung, Tile, instantiation

from pyconv.backends.program import blocks
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


#: Multiprocessors of an H100, among which the choice of a tile shares out the blocks.
MULTIPROCESSORS = 132

#: Tiles, as multiples of 16 vectors of 16 bytes each way (``gemm_pipelined.cu`` says how lanes share them),
#: and how fast a thread's FMAs go with each: their share of the instructions of the inner loop, the largest
#: tile's as one.
SPEEDS = {(2, 2): 1.0, (1, 2): 0.9, (2, 1): 0.9, (1, 1): 0.75}

#: Terms of a tile. With 8, loop and barrier would be a tenth of the instructions; 3 stages of 32 would leave
#: room for one block on a multiprocessor.
PIPELINED_BK = 16


def _pipelined_tiles(dtype: str, majors: tuple[str, str]) -> dict[Tile, float]:
    """Every tile and its speed, the largest first."""
    size = DTYPES[dtype].itemsize
    vector, tiles = 16 // size, {}
    padding = majors.count("kKMajor") * vector  # of lines that are transposed while they are copied
    for (rows, columns), speed in SPEEDS.items():
        bm, bn = rows * 16 * vector, columns * 16 * vector
        shared_bytes = STAGES * PIPELINED_BK * (bm + bn + padding) * size
        tiles[Tile(bm, bn, PIPELINED_BK, 256, shared_bytes)] = speed
    return tiles


def _pipelined_tile(product: Product) -> Tile:
    """The tile with which the multiprocessor that has the most blocks is done first."""
    tiles = _pipelined_tiles(product.dtype, (product.a.major, product.b.major))

    def time(tile: Tile) -> float:
        return blocks(product.blocks(tile), MULTIPROCESSORS) * tile.bm * tile.bn / tiles[tile]

    return min(tiles, key=time)


def _largest_pipelined_tile(dtype: str) -> Tile:
    return next(iter(_pipelined_tiles(dtype, ("kKMajor", "kKMajor"))))


def _copies(product: Product) -> tuple[int, int]:
    """Elements of one copy of A and of B: 16 bytes where the lines run along m or n and all are aligned."""
    vector = 16 // DTYPES[product.dtype].itemsize
    a, b, _ = product.copy_elements
    return (
        vector if product.a.major == "kMnMajor" and a == vector else 1,
        vector if product.b.major == "kMnMajor" and b == vector else 1,
    )


def _pipelined(product: Product) -> str:
    tile = _pipelined_tile(product)
    return instantiation("gemm_pipelined", product, *_copies(product), tile.bm, tile.bn, tile.bk, STAGES)


def _pipelined_sass(product: Product) -> tuple[str, ...]:
    copies = "LDGSTS.E.BYPASS.128" if max(_copies(product)) > 1 else "LDGSTS.E"
    return copies, "LDS.128", "STG.E.128", "DFMA" if product.dtype == "f64" else "FFMA"


EVERY_DTYPE = ("f32", "f64", "f16", "bf16")

#: Of the FMAs' peak that the inner loops leave: the ladder of README.md.
TILED_SHARE, REGISTER_SHARE, PIPELINED_SHARE = 0.12, 0.43, 0.85


def _pipelined_share(product: Product, tile: Tile) -> float:
    return PIPELINED_SHARE * _pipelined_tiles(product.dtype, (product.a.major, product.b.major))[tile]


TILED_RUNG = Rung(
    "tiled",
    "gemm/gemm_tiled.cu",
    EVERY_DTYPE,
    _tiled_tile,
    _tiled,
    share=lambda product, tile: TILED_SHARE,
    concurrent=2,
)
REGISTER_RUNG = Rung(
    "register",
    "gemm/gemm_register.cu",
    EVERY_DTYPE,
    _register_tile,
    _register,
    share=lambda product, tile: REGISTER_SHARE,
    concurrent=2,
)
PIPELINED_RUNG = Rung(
    "pipelined",
    "gemm/gemm_pipelined.cu",
    ("f32", "f64"),
    _largest_pipelined_tile,
    _pipelined,
    _pipelined_sass,
    _pipelined_tile,
    share=_pipelined_share,
)
