"""The tensor-core GEMM: what small problems do not show of ``im2col_gemm_tensor`` and ``im2col_gemm_tf32``.

``tests/test_battery_emulator.py`` has the lines themselves, and small problems are the smallest tile's. Here
every tile is forced, every width of an access is met, and the bound on the error of TF32 is put to the test.
"""

from __future__ import annotations

import pytest
import torch
from pyconv.kernels.gemm import tensor_launch
from pyconv.kernels.gemm.gemm_launch import Matrix, Product

from pyconv import backends, registry
from pyconv.backends import cuda, emulator
from pyconv.problem import parse_problem
from tests.battery import judge
from tests.devices import Emulator

needs_emulator = pytest.mark.skipif(
    emulator.unavailable() is not None, reason=f"no emulator: {emulator.unavailable()}"
)

SHAPES = {f"{shape.bm}x{shape.bn}": place for place, shape in enumerate(tensor_launch.SHAPES["f16"])}


def _line(pass_: str, dtype: str) -> registry.Kernel:
    rung = "tf32" if dtype == "f32" else "tensor"
    return registry.find(f"conv2d.{pass_}.im2col_gemm_{rung}@cuda")


def _judge(pass_: str, text: str, order: str = "forward") -> None:
    problem = parse_problem(text)
    verdict = judge(_line(pass_, problem.dtype), problem, device=Emulator(order), in_short=True)
    assert not verdict.failures, "\n".join(verdict.failures)
    assert verdict.ran


def _only(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    only = {dtype: shapes[place : place + 1] for dtype, shapes in tensor_launch.SHAPES.items()}
    monkeypatch.setattr(tensor_launch, "SHAPES", only)


@needs_emulator
@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "64x64"])
def test_every_tile(monkeypatch: pytest.MonkeyPatch, shape: str, dtype: str) -> None:
    """Operands along k, and across it; products one less and one more than the tile."""
    _only(monkeypatch, SHAPES[shape])
    _judge("fprop", f"conv2d n1c17h3w43 k127r1s1 {dtype} nhwc", "reverse")
    _judge("fprop", f"conv2d n1c40h3w21 k65r1s1 {dtype} nhwc")
    _judge("dgrad", f"conv2d n3c129h5w13 k31r1s1 {dtype} nchw", "random")
    _judge("dgrad", f"conv2d n1c63h1w127 k72r1s1 {dtype} nchw")


@needs_emulator
@pytest.mark.parametrize("dtype", ["f16", "f64"])
def test_no_bit_depends_on_the_tile(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """So none depends on the batch, which decides on the tile. Sums of f64 are several chains."""
    problem = parse_problem(f"conv2d n2c520h5w9 k70r1s1 {dtype} nchw")
    x = torch.randn(problem.x_shape).to(problem.torch_dtype)
    w = torch.randn(problem.w_shape).to(problem.torch_dtype)
    results = []
    for place in SHAPES.values():
        with monkeypatch.context() as patch, cuda.emulated(checked=False):
            _only(patch, place)
            results.append(backends.bind(_line("fprop", dtype), problem)(x, w, None))
    assert all(torch.equal(result, results[0]) for result in results)


@needs_emulator
@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
def test_every_width_of_an_access(pass_: str) -> None:
    """Lines of x and w that are multiples of 16, 8, 4 and 2 bytes, and lines of y that are not the same."""
    for c, k in ((24, 17), (20, 24), (22, 20), (23, 22)):
        _judge(pass_, f"conv2d n1c{c}h5w9 k{k}r1s1 f16 nhwc")


@needs_emulator
def test_tf32_rounds_its_operands_to_nearest() -> None:
    """Just above the middle of two tf32 numbers an operand counts as the upper one, below it as the lower."""
    problem = parse_problem("conv2d n1c1h1w4 k1r1s1 f32 nchw")
    step = 2.0**-10
    x = torch.tensor([1 + 0.51 * step, 1 + 0.49 * step, -1 - 0.51 * step, 1 + step]).reshape(1, 1, 1, 4)
    with cuda.emulated(checked=False):
        y = backends.bind(_line("fprop", "f32"), problem)(x, torch.ones(1, 1, 1, 1), None)
    assert y.flatten().tolist() == [1 + step, 1.0, -1 - step, 1 + step]


def test_the_tile_depends_on_how_many_there_are() -> None:
    def tile(gemm_m: int, gemm_n: int) -> tuple[int, int]:
        a, b, c = Matrix("x", "kKMajor", 8), Matrix("w", "kKMajor", 8), Matrix("y", "kMnMajor", gemm_n)
        chosen = tensor_launch.TENSOR_RUNG.choose(Product("f16", "f16", gemm_m, gemm_n, 8, a, b, c))  # type: ignore[misc]
        return chosen.bm, chosen.bn

    assert tile(4096, 4096) == (128, 128)
    assert tile(64, 100_000) == (64, 128)
    assert tile(100_000, 64) == (128, 64)
    assert tile(512, 512) == (64, 64)


def test_every_shape_fits_the_smallest_device() -> None:
    """48 KB a block: two of the largest on sm_86 and sm_89."""
    for dtype, shapes in tensor_launch.SHAPES.items():
        for shape in shapes:
            shared = tensor_launch.STAGES * (shape.bm + shape.bn) * tensor_launch.TILE_BYTES_OF_K
            assert shared <= 48 * 1024, (dtype, shape)
            assert shape.threads * 255 <= 65536
