"""Launches and table lines of ``implicit_gemm_tensor.cu``: tiles, and why these.

Tiles and stages are those of the matrix product on tensor cores (``tensor_launch.py``): the loop is shared.
The problem alone decides them, and no bit of fprop and dgrad depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pyconv.kernels.conv2d.implicit_gemm_plan import Gather, gathers, patch_plan, wgrad_product
from pyconv.kernels.conv2d.implicit_gemm_problems import PROBLEMS, restriction, three_products
from pyconv.kernels.conv2d.implicit_gemm_splits import pixel_splits, with_splits
from pyconv.kernels.conv2d.implicit_gemm_work import gather_work, slowed, wgrad_work
from pyconv.kernels.gemm.gemm_launch import Product
from pyconv.kernels.gemm.tensor_launch import (
    MMA,
    SHAPES,
    SHARE,
    STAGES,
    TF32_ACCURACY,
    Shape,
    fastest,
    tile_of,
)

from pyconv.backends.program import CPP_TYPES, Argument, Program, Step, cpp_type
from pyconv.problem import DTYPES, Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/implicit_gemm_tensor.cu"

#: float in three products of tf32: with a warp's 64 x 32 sums, 64 registers of a lane, 24 hold what is loaded
#: and 24 the parts that it is split into; 64 x 64 would leave none for addresses. The block of 8 warps has
#: its multiprocessor to itself, as that of double.
SHAPES_OF_THREE = (
    Shape(128, 128, 64, 32, 1, 1.0),
    Shape(64, 128, 32, 64, 2, 0.9),
    Shape(128, 64, 64, 32, 2, 0.9),
    Shape(64, 64, 32, 32, 3, 0.75),
)


#: Of a tile's instructions, those that copy it: 8 pieces a thread of some 10 instructions, of 283.
COPYING = 0.28


@dataclass(frozen=True)
class Precision:
    """How the elements of a dtype are multiplied."""

    arithmetic: str
    shapes: dict[str, tuple[Shape, ...]]
    products: int  # of the tensor core, for one of the problem

    def work(self, product: Product, gathered: int, shape: Shape) -> dict[str, object]:
        """What the model of selection is told of the kernel; operand 0 or 1 of the product is gathered."""
        size = DTYPES[product.dtype].itemsize
        share = slowed(SHARE * shape.speed, COPYING, product, gathered, size)
        unit = "tf32" if product.dtype == "f32" else "f16"
        return {"products": self.products, "unit": unit, "share": share, "resident": shape.blocks}


OWN = Precision("kOneProduct", SHAPES, 1)
THREE = Precision("kThreeTf32", {"f32": SHAPES_OF_THREE}, 3)


def _numbers(shape: Shape) -> str:
    return ", ".join(map(str, (shape.bm, shape.bn, shape.wm, shape.wn, STAGES, shape.blocks)))


def _sass(dtype: str, pass_: str, stored: str) -> tuple[str, ...]:
    size = DTYPES[dtype].itemsize
    promised = [MMA[dtype], "LDGSTS.BYPASS.128"]
    if size <= 4 and pass_ != "wgrad":
        promised.append("LDSM.M88.4")
    if size == 2 and pass_ != "fprop":
        promised.append("LDSM.MT88.4")
    if DTYPES[stored].itemsize <= 4:
        promised.append("STG.128")
    return tuple(promised)


def _gather_step(gather: Gather, precision: Precision, activation: str, launches: int) -> Step:
    product, dtype = gather.product, gather.problem.dtype

    def grid(shape: Shape) -> int:
        return product.blocks(tile_of(shape, dtype)) * gather.classes

    shape = fastest(precision.shapes[dtype], grid)
    tile = tile_of(shape, dtype)
    pass_ = {"fprop": "kFprop", "dgrad": "kDgrad"}[gather.pass_]
    types = f"{CPP_TYPES[dtype]}, {pass_}, {precision.arithmetic}, {activation}"
    return Step(
        SOURCE,
        f"implicit_gemm_tensor<{types}, {_numbers(shape)}>",
        (grid(shape), 1, 1),
        (tile.threads, 1, 1),
        (gather.plan(), product.a.at, "w", "bias", product.c.at),
        tile.shared_bytes,
        _sass(dtype, gather.pass_, dtype),
        gather_work(gather, tile, launches, **precision.work(product, 0, shape)),  # type: ignore[arg-type]
    )


def gather_program(
    problem: Problem, pass_: str, precision: Precision, activation: str = "kLinear"
) -> Program:
    """fprop or dgrad. ``activation``: ``kLinear`` or, of fprop, ``kRelu``, which no operator asks for yet."""
    assert isinstance(problem, Conv2dProblem)
    launches = gathers(problem, pass_)
    return Program(tuple(_gather_step(each, precision, activation, len(launches)) for each in launches))


def wgrad_program(problem: Problem, pass_: str, precision: Precision) -> Program:
    assert isinstance(problem, Conv2dProblem)
    dtype = problem.dtype

    def tiles(shape: Shape) -> int:
        whole = wgrad_product(problem, "dw", dtype, 1, 1)
        return whole.blocks(tile_of(shape, dtype))

    def grid(shape: Shape) -> int:
        return tiles(shape) * pixel_splits(problem, tiles(shape))[0]

    shape = fastest(precision.shapes[dtype], grid)
    tile = tile_of(shape, dtype)

    def step(dw: Argument, result: str, splits: int, split_k: int) -> Step:
        product = wgrad_product(problem, dw, result, splits, split_k)
        types = f"{cpp_type(problem)}, {CPP_TYPES[result]}, {precision.arithmetic}"
        return Step(
            SOURCE,
            f"implicit_gemm_tensor_wgrad<{types}, {_numbers(shape)}>",
            (product.blocks(tile), 1, 1),
            (tile.threads, 1, 1),
            (patch_plan(problem, product, tile), "x", "dy", dw),
            tile.shared_bytes,
            _sass(dtype, "wgrad", result),
            wgrad_work(problem, product, tile, **precision.work(product, 1, shape)),  # type: ignore[arg-type]
        )

    return with_splits(problem, tiles(shape), step)


# ---- Table lines ------------------------------------------------------------------------------------------

PASSES: dict[str, Callable[[Problem, str, Precision], Program]] = {
    "fprop": gather_program,
    "dgrad": gather_program,
    "wgrad": wgrad_program,
}


def _lines(name: str, dtypes: tuple[str, ...], precision: Precision, **claims: object) -> list[Kernel]:
    claims = {"nonfinite": "padding", **claims}
    return [
        Kernel(
            "conv2d",
            pass_,
            f"implicit_gemm_{name}",
            "cuda",
            dtypes,
            layouts=("nhwc",),
            source=SOURCE,
            restriction=partial(three_products, pass_=pass_) if precision is THREE else restriction,
            batch_invariant=pass_ != "wgrad",
            program=partial(program, pass_=pass_, precision=precision),
            problems=PROBLEMS[pass_],
            proved=("emulator",),
            **claims,  # type: ignore[arg-type]
        )
        for pass_, program in PASSES.items()
    ]


KERNELS = [
    *_lines("tensor", ("f16", "bf16"), OWN),
    *_lines("tf32", ("f32",), OWN, accuracy=TF32_ACCURACY),
    # An infinite operand gives NaN where it should give infinity (gemm_tensor_fragment.h).
    # On request until a device has shown that it is as accurate as its model.
    *_lines("3xtf32", ("f32",), THREE, nonfinite="tile", algebra="split", on_request=True),
]
