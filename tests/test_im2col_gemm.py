"""Convolution as im2col and GEMM in CUDA: what its programs are made of, and the parts no small problem has.

``tests/test_battery_emulator.py`` has the lines themselves. Small problems make one chunk of images and, on
the pipelined rung, the smallest tile; here both are forced to be otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pyconv.kernels.conv2d import im2col_launch
from pyconv.kernels.conv2d.im2col_launch import chunks
from pyconv.kernels.gemm import simt_launch
from pyconv.kernels.gemm.gemm_launch import MOST, Matrix, Product

from pyconv import backends, registry
from pyconv.backends import cuda, emulator
from pyconv.problem import Conv2dProblem, parse_problem
from tests.battery import judge
from tests.devices import Emulator

needs_emulator = pytest.mark.skipif(
    emulator.unavailable() is not None, reason=f"no emulator: {emulator.unavailable()}"
)

RUNGS = ("tiled", "register", "pipelined", "tensor")


def _problem(text: str) -> Conv2dProblem:
    problem = parse_problem(text)
    assert isinstance(problem, Conv2dProblem)
    return problem


def _judge(name: str, text: str, order: str = "forward") -> None:
    kernel = registry.find(f"conv2d.{name}@cuda")
    verdict = judge(kernel, _problem(text), device=Emulator(order), in_short=True)
    assert not verdict.failures, "\n".join(verdict.failures)
    assert verdict.ran


# ---- Chunks of images ------------------------------------------------------------------------------------


def test_chunks_hold_every_image_once_and_fit_the_workspace() -> None:
    problem = _problem("conv2d n50c64h56w56 k64r3s3 st1 pd1 f32 nhwc")
    parts = chunks(problem, "f32")
    assert [part.first for part in parts] == [sum(p.images for p in parts[:i]) for i in range(len(parts))]
    assert sum(part.images for part in parts) == problem.n
    assert len(parts) > 1
    assert all(part.column_bytes <= im2col_launch.WORKSPACE for part in parts)
    assert parts[0].column_bytes > im2col_launch.WORKSPACE * 0.9


def test_an_image_larger_than_the_workspace_is_a_chunk() -> None:
    problem = _problem("conv2d n3c64h1024w1024 k8r5s5 st1 pd2 f32 nchw")
    assert [part.images for part in chunks(problem, "f32")] == [1, 1, 1]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_indices_within_a_chunk_fit_an_int(layout: str) -> None:
    """Even of tensors of more than 2^31 elements; and what cannot be cut is refused."""
    kernel = registry.find("conv2d.fprop.im2col_gemm_tiled@cuda")
    problem = _problem(f"conv2d n4000c1024h40w40 k64r1s1 f16 {layout}")
    assert problem.x_size > 2**32
    assert kernel.supports(problem) is None
    for part in chunks(problem, "f16"):
        assert part.images * problem.c * problem.h * problem.w < 2**31
    image = _problem(f"conv2d n1c1024h2048w1024 k8r1s1 f16 {layout}")
    assert "one image" in str(kernel.supports(image))


@needs_emulator
@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_several_chunks(monkeypatch: pytest.MonkeyPatch, rung: str, pass_: str, layout: str) -> None:
    """Two images at a time of five: the later ones in their place, and added to dw."""
    dtype = "f32" if rung == "pipelined" else "f16"
    problem = _problem(f"conv2d n5c6h7w8 k9r3s3 st1 pd1 g3 {dtype} {layout}")
    monkeypatch.setattr(
        im2col_launch,
        "WORKSPACE",
        2 * chunks(problem, "f32" if pass_ == "dgrad" else dtype)[0].column_bytes // 5,
    )
    assert len(registry.find(f"conv2d.{pass_}.im2col_gemm_{rung}@cuda").program(problem).steps) >= 6  # type: ignore[misc]
    _judge(f"{pass_}.im2col_gemm_{rung}", str(problem), "random")


# ---- Tiles -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[(2, 2), (1, 2), (2, 1)], ids=lambda sides: f"{sides[0]}x{sides[1]}")
def only_tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simt_launch, "SPEEDS", {request.param: 1.0})


#: gemm_m, gemm_n, gemm_k of fprop (nhwc), with one more and one less than a tile of either dtype.
_EDGES = ("n1c17h1w129 k127r1s1", "n1c31h5w13 k63r1s1", "n1c300h1w63 k66r1s1", "n1c5h11w13 k31r3s3 pd1")


@needs_emulator
@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_every_tile_of_the_pipelined_rung(only_tile: None, pass_: str, dtype: str) -> None:
    for place, sizes in enumerate(_EDGES):
        layout = ("nchw", "nhwc")[place % 2]
        _judge(f"{pass_}.im2col_gemm_pipelined", f"conv2d {sizes} {dtype} {layout}", "reverse")


@needs_emulator
@pytest.mark.parametrize("pass_", ["fprop", "dgrad"])
def test_no_bit_depends_on_the_tile(monkeypatch: pytest.MonkeyPatch, pass_: str) -> None:
    """So none depends on the batch, which decides on the tile. gemm_k is several chains of additions."""
    kernel = registry.find(f"conv2d.{pass_}.im2col_gemm_pipelined@cuda")
    problem = _problem("conv2d n2c520h5w9 k523r1s1 f32 nchw")
    images = torch.randn(problem.x_shape if pass_ == "fprop" else problem.y_shape)
    operands = (images, torch.randn(problem.w_shape), *([None] if pass_ == "fprop" else []))
    results = []
    for sides in ((2, 2), (1, 2), (1, 1)):
        monkeypatch.setattr(simt_launch, "SPEEDS", {sides: 1.0})
        with cuda.emulated(checked=False):
            results.append(backends.bind(kernel, problem)(*operands))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_tile_depends_on_how_many_there_are() -> None:
    def tile(gemm_m: int, gemm_n: int) -> tuple[int, int]:
        a, b, c = Matrix("x", "kKMajor", 8), Matrix("w", "kKMajor", 8), Matrix("y", "kMnMajor", gemm_n)
        chosen = simt_launch.PIPELINED_RUNG.choose(Product("f32", "f32", gemm_m, gemm_n, 8, a, b, c))  # type: ignore[misc]
        return chosen.bm, chosen.bn

    assert tile(4096, 4096) == (128, 128)
    assert tile(64, 100_000) == (64, 128)
    assert tile(100_000, 64) == (128, 64)
    assert tile(512, 512) == (64, 64)


# ---- Operands --------------------------------------------------------------------------------------------


def _alignment(**of_x: int) -> int:
    x = Matrix("x", "kMnMajor", **{"line_stride": 64, **of_x})
    product = Product("f32", "f32", 8, 64, 8, x, x, x)
    return product.copy_elements[1]


@pytest.mark.parametrize(
    ("matrix", "elements"),
    [
        ({}, 4),
        ({"line_stride": 66}, 2),
        ({"offset": 3}, 1),
        ({"batch_stride": 6}, 2),
        ({"segment": 8, "segment_stride": 16}, 4),
        ({"segment": 7, "segment_stride": 16}, 1),
        ({"segment": 8, "segment_stride": 18}, 2),
        ({"segment": 99, "segment_stride": 7}, 4),  # the line is one piece
    ],
)
def test_an_access_is_as_wide_as_everything_allows(matrix: dict[str, int], elements: int) -> None:
    assert _alignment(**matrix) == elements


def test_a_line_in_one_piece_has_no_segments() -> None:
    """Or places past its end, which a kernel masks, would be taken for a second segment, not aligned."""
    x = Matrix("x", "kMnMajor", 63, segment=63, segment_stride=63)
    problem = Product("f32", "f32", 8, 63, 8, x, x, x).to_c()
    assert problem.b.segment == problem.c.segment == MOST
    assert Product("f32", "f32", 8, 64, 8, x, x, x).to_c().b.segment == 63


# ---- Splits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", RUNGS)
def test_splits_of_wgrad_cover_gemm_k_and_come_from_the_problem(rung: str) -> None:
    program: Callable[..., object] = registry.find(f"conv2d.wgrad.im2col_gemm_{rung}@cuda").program  # type: ignore[assignment]
    problem = _problem("conv2d n32c64h56w56 k64r3s3 st1 pd1 f32 nchw")
    _, product, sums = program(problem).steps  # type: ignore[attr-defined]
    gemm = product.arguments[0]
    assert gemm.splits > 1
    assert (gemm.splits - 1) * gemm.split_k < gemm.gemm_k <= gemm.splits * gemm.split_k
    assert gemm.split_k % simt_launch.PIPELINED_BK == 0
    assert sums.arguments[-1].value == gemm.splits
