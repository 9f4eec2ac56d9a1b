"""Launches and table lines of ``implicit_gemm.cu``: tiles, and why these.

The problem alone decides the tile, and no bit of fprop and dgrad depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pyconv.kernels.conv2d.implicit_gemm_plan import Gather, gathers, patch_plan, wgrad_product
from pyconv.kernels.conv2d.implicit_gemm_problems import PROBLEMS, restriction
from pyconv.kernels.conv2d.implicit_gemm_splits import pixel_splits, with_splits
from pyconv.kernels.conv2d.implicit_gemm_work import gather_work, slowed, wgrad_work
from pyconv.kernels.gemm.gemm_launch import Product, Tile
from pyconv.kernels.gemm.simt_launch import MULTIPROCESSORS
from pyconv.kernels.gemm.tensor_launch import STAGES, TILE_BYTES_OF_K

from pyconv.backends.program import Argument, Program, Step, blocks, cpp_type
from pyconv.problem import DTYPES, Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/implicit_gemm.cu"


@dataclass(frozen=True)
class Shape:
    """A block's tile and warps, blocks that a multiprocessor is to hold, and how fast the FMAs go.

    ``speed``: the share of FMAs in the instructions of the inner loop, the largest tile's as one.
    """

    bm: int
    bn: int
    warps_m: int
    warps_n: int
    blocks: int
    speed: float

    @property
    def threads(self) -> int:
        return self.warps_m * self.warps_n * 32

    def tile(self, dtype: str) -> Tile:
        bk, shared_bytes = (
            TILE_BYTES_OF_K // DTYPES[dtype].itemsize,
            STAGES * (self.bm + self.bn) * TILE_BYTES_OF_K,
        )
        return Tile(self.bm, self.bn, bk, self.threads, shared_bytes)


#: Of the FMAs' peak that the inner loop of the largest tile leaves, as counted in README.md.
SHARE = 0.73
#: Of a tile's instructions, those that copy it: 6 pieces a thread of some 10 instructions, of 1,405.
COPYING = 0.04

#: 8 x 8 sums of float, or 8 x 4 of double, are 64 registers of a thread. What is loaded of a step, where the
#: pixels of the gather lie and what fetches the next tile take more than as many again, and the compiler
#: loads ahead: with 128 or 168 registers it spills. So two blocks of 4 warps, 255 registers a thread, share a
#: multiprocessor; the independent FMAs of a thread hide their latency. A tile of 128 x 64 takes 0.09 bytes of
#: L2 traffic an FMA, 3.1 TB/s at the FMA rate of an H100. The small one is for few filters or pixels.
SHAPES = {
    "f32": (
        Shape(128, 64, 4, 1, 2, 1.0),
        Shape(64, 128, 2, 2, 2, 1.0),
        Shape(64, 64, 2, 2, 3, 0.85),
    ),
    "f64": (Shape(64, 64, 2, 2, 2, 1.0),),
}


def _fastest(dtype: str, blocks_of: Callable[[Shape], int]) -> Shape:
    """The shape with which the multiprocessor that has the most blocks is done first."""

    def time(shape: Shape) -> float:
        return blocks(blocks_of(shape), MULTIPROCESSORS) * shape.bm * shape.bn / shape.speed

    return min(SHAPES[dtype], key=time)


def _numbers(shape: Shape) -> str:
    return ", ".join(map(str, (shape.bm, shape.bn, shape.warps_m, shape.warps_n, STAGES, shape.blocks)))


def _sass(dtype: str, pass_: str) -> tuple[str, ...]:
    vector_stores = ("STG.128",) if pass_ != "fprop" else ()
    return "FFMA" if dtype == "f32" else "DFMA", "LDGSTS.BYPASS.128", "LDS.128", *vector_stores


def _work(product: Product, gathered: int, shape: Shape) -> dict[str, object]:
    size = DTYPES[product.dtype].itemsize
    share = slowed(SHARE * shape.speed, COPYING, product, gathered, size)
    return {"unit": product.dtype, "share": share, "resident": shape.blocks}


def _gather_step(gather: Gather, activation: str, launches: int) -> Step:
    product, dtype = gather.product, gather.problem.dtype

    def grid(shape: Shape) -> int:
        return product.blocks(shape.tile(dtype)) * gather.classes

    shape = _fastest(dtype, grid)
    pass_ = {"fprop": "kFprop", "dgrad": "kDgrad"}[gather.pass_]
    return Step(
        SOURCE,
        f"implicit_gemm<{cpp_type(gather.problem)}, {pass_}, {activation}, {_numbers(shape)}>",
        (grid(shape), 1, 1),
        (shape.threads, 1, 1),
        (gather.plan(), product.a.at, "w", "bias", product.c.at),
        shape.tile(dtype).shared_bytes,
        _sass(dtype, gather.pass_),
        gather_work(gather, shape.tile(dtype), launches, **_work(product, 0, shape)),  # type: ignore[arg-type]
    )


def gather_program(problem: Problem, pass_: str, activation: str = "kLinear") -> Program:
    """fprop or dgrad. ``activation``: ``kLinear`` or, of fprop, ``kRelu``, which no operator asks for yet."""
    assert isinstance(problem, Conv2dProblem)
    launches = gathers(problem, pass_)
    return Program(tuple(_gather_step(each, activation, len(launches)) for each in launches))


def wgrad_program(problem: Problem, pass_: str = "wgrad") -> Program:
    assert isinstance(problem, Conv2dProblem)
    dtype = problem.dtype

    def tiles(shape: Shape) -> int:
        return wgrad_product(problem, "dw", dtype, 1, 1).blocks(shape.tile(dtype))

    def grid(shape: Shape) -> int:
        return tiles(shape) * pixel_splits(problem, tiles(shape))[0]

    shape = _fastest(dtype, grid)
    tile = shape.tile(dtype)

    def step(dw: Argument, result: str, splits: int, split_k: int) -> Step:
        product = wgrad_product(problem, dw, result, splits, split_k)
        return Step(
            SOURCE,
            f"implicit_gemm_wgrad<{cpp_type(problem)}, {_numbers(shape)}>",
            (product.blocks(tile), 1, 1),
            (shape.threads, 1, 1),
            (patch_plan(problem, product, tile), "x", "dy", dw),
            tile.shared_bytes,
            _sass(dtype, pass_),
            wgrad_work(problem, product, tile, **_work(product, 1, shape)),  # type: ignore[arg-type]
        )

    return with_splits(problem, tiles(shape), step)


# ---- Table lines ------------------------------------------------------------------------------------------

PASSES: dict[str, Callable[[Problem, str], Program]] = {
    "fprop": gather_program,
    "dgrad": gather_program,
    "wgrad": wgrad_program,
}

KERNELS = [
    Kernel(
        "conv2d",
        pass_,
        "implicit_gemm",
        "cuda",
        ("f32", "f64"),
        layouts=("nhwc",),
        source=SOURCE,
        restriction=restriction,
        batch_invariant=pass_ != "wgrad",
        nonfinite="padding",
        program=partial(program, pass_=pass_),
        problems=PROBLEMS[pass_],
        proved=("emulator",),
    )
    for pass_, program in PASSES.items()
]
