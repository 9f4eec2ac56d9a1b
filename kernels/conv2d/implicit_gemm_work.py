"""What a launch of implicit GEMM does, for the model by which selection orders the lines."""

from __future__ import annotations

from pyconv.kernels.conv2d.implicit_gemm_plan import Gather
from pyconv.kernels.gemm.gemm_launch import Product, Tile

from pyconv.backends.program import Scratch, Work, blocks
from pyconv.problem import DTYPES, Conv2dProblem


def slowed(share: float, copying: float, product: Product, operand: int, element_bytes: int) -> float:
    """The share that the inner loop leaves where pieces of A (0) or B (1) are copied in narrower parts.

    ``copying``: of the loop's instructions, those that copy whole 16 bytes.
    """
    parts = 16 / (product.copy_elements[operand] * element_bytes)
    return share / (1 + copying * (parts - 1))


def gather_work(gather: Gather, tile: Tile, launches: int, *, products: int = 1, **of_kernel: object) -> Work:
    """Of a launch of fprop or dgrad, one of ``launches``.

    ``products`` of the unit stand for one of the problem. ``of_kernel`` are ``unit``, ``share`` and
    ``resident`` of :class:`~pyconv.backends.program.Work`.
    """
    product, a = gather.product, gather.problem
    channels = a.group_c if gather.pass_ == "fprop" else a.group_k
    of_a_class = product.blocks(tile)  # of the largest; the grid has as many for each
    terms = sum(
        blocks(rows.taps * columns.taps * channels, tile.bk) * tile.bk
        for rows in gather.rows.classes
        for columns in gather.columns.classes
    )
    return Work(
        flops=products * 2 * of_a_class * tile.bm * tile.bn * terms,
        tensor_bytes=a.bytes(gather.pass_) // launches,
        cache_bytes=of_a_class * (tile.bm + tile.bn) * terms * a.element_bytes,
        **of_kernel,  # type: ignore[arg-type]
    )


def wgrad_work(
    problem: Conv2dProblem, product: Product, tile: Tile, *, products: int = 1, **of_kernel: object
) -> Work:
    """Of the launch of wgrad that multiplies; as :func:`gather_work`."""
    a, ends = problem, product.blocks(tile)
    terms = blocks(min(product.gemm_k, product.split_k), tile.bk) * tile.bk  # of a block
    is_partial = isinstance(product.c.at, Scratch)
    written = product.splits * a.w_size * DTYPES[product.result].itemsize
    return Work(
        flops=products * 2 * ends * tile.bm * tile.bn * terms,
        tensor_bytes=(a.x_size + a.y_size) * a.element_bytes + (0 if is_partial else written),
        scratch_bytes=written if is_partial else 0,
        cache_bytes=ends * (tile.bm + tile.bn) * terms * a.element_bytes,
        **of_kernel,  # type: ignore[arg-type]
    )
