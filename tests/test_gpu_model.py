"""The model by which selection orders the CUDA lines: its arithmetic, and what it chooses on real layers.

The layers are those of ``bench/shapes``, the device the model's reference.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import pytest
import torch

import pyconv
from bench.problems import SHAPES
from pyconv import gpu_model, registry, selection
from pyconv.backends import gpu
from pyconv.backends.program import Program, Step, Work
from pyconv.gpu_model import GPUS, LAUNCH_SECONDS, NOT_HIDDEN, REFERENCE, estimate, gpu_of, launch_time
from pyconv.problem import Conv2dProblem, parse_problem

PASSES = ("fprop", "dgrad", "wgrad")


@pytest.fixture(autouse=True)
def on_the_reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Selection as on a machine with the reference device, TF32 off; nothing is launched."""
    monkeypatch.setattr(gpu, "missing", lambda: None)
    monkeypatch.setattr(gpu_model, "present_gpu", lambda: REFERENCE)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    selection.forget()
    yield
    torch.backends.cudnn.conv.fp32_precision = before
    selection.forget()


def _layers(*suites: str) -> list[Conv2dProblem]:
    found = []
    for suite in suites:
        for line in (SHAPES / f"{suite}.txt").read_text().splitlines():
            if line and not line.startswith("#"):
                problem = parse_problem(line)
                assert isinstance(problem, Conv2dProblem)
                found.append(dataclasses.replace(problem, n=32))
    return found


NETWORKS = _layers("resnet50", "vgg16", "alexnet")


def _chosen(problem: Conv2dProblem, pass_: str, dtype: str = "f32", layout: str = "nhwc") -> str:
    problem = dataclasses.replace(problem, dtype=dtype, layout=layout)
    return selection.select(problem, pass_, "cuda").algorithm


# ---- What is chosen --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_depthwise_layers_take_depthwise(dtype: str, layout: str) -> None:
    for problem in _layers("depthwise"):
        assert {_chosen(problem, pass_, dtype, layout) for pass_ in PASSES} == {"depthwise"}, problem


def test_first_layers_take_the_stem_kernel() -> None:
    stems = [problem for problem in NETWORKS if problem.c == 3]
    assert len(stems) == 3
    for problem in stems:
        assert {_chosen(problem, pass_) for pass_ in ("fprop", "wgrad")} == {"direct_stem"}, problem


def test_pointwise_layers_take_a_product() -> None:
    layers = [problem for problem in NETWORKS if problem.r == 1 and problem.stride_h == 1]
    assert layers
    for problem in layers:
        for pass_ in ("fprop", "dgrad"):
            assert "gemm" in _chosen(problem, pass_), problem


def test_3x3_layers_of_many_channels_take_winograd_where_it_may_be_taken() -> None:
    layers = [p for p in NETWORKS if (p.r, p.stride_h) == (3, 1) and min(p.c, p.k) >= 128]
    assert len(layers) > 8
    for problem in layers:
        for pass_ in ("fprop", "dgrad"):
            assert _chosen(problem, pass_).startswith("winograd_2x2"), problem
            with pyconv.algorithm_precision("exact"):
                assert "winograd" not in _chosen(problem, pass_)
            with pyconv.algorithm_precision("fast"):
                assert "winograd" in _chosen(problem, pass_)


def test_16_bit_layers_take_tensor_cores() -> None:
    for problem in NETWORKS:
        if problem.c >= 128:
            for pass_ in PASSES:
                name = _chosen(problem, pass_, "bf16")
                line = registry.find(f"conv2d.{pass_}.{name}@cuda")
                assert line.program is not None
                steps = line.program(dataclasses.replace(problem, dtype="bf16", layout="nhwc")).steps
                assert any(gpu_model._unit(step) == "f16" for step in steps), (problem, pass_, name)


def test_the_naive_kernel_is_for_no_layer_of_a_network() -> None:
    for problem in NETWORKS:
        for dtype in ("f32", "f64", "f16"):
            assert "naive" not in _chosen(problem, "fprop", dtype), problem


# ---- What is said ----------------------------------------------------------------------------------------


def test_explain_shows_the_model_of_every_line_that_is_able() -> None:
    explanation = pyconv.explain("conv2d n32c256h14w14 k256r3s3 pd1 f32 nhwc", "cuda")
    shape = re.compile(r"; model: [\d.e-]+ ms, \d+ waves?, (\w+-bound|all launching) \(H100; not measured\)$")
    for pass_ in PASSES:
        lines = [line for line in explanation[pass_] if line.kernel.backend == "cuda"]
        for line in lines:
            assert bool(shape.search(line.reason)) != line.reason.startswith("not able"), line.reason
        seconds = {
            line.kernel: estimate(line.kernel, explanation.problem, REFERENCE).seconds
            for line in lines
            if not line.reason.startswith("not able") and not line.kernel.on_request
        }
        chosen = next(line.kernel for line in lines if line.chosen)
        assert seconds[chosen] == min(seconds.values())
    assert "model" not in str(pyconv.explain("conv2d n1c2h5w5 k3r3s3", "cpu"))


def test_a_choice_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = parse_problem("conv2d n3c40h9w9 k24r3s3 pd1")
    first = selection.select(problem, "fprop", "cuda")

    def no_more(*_: object) -> None:
        raise AssertionError("modelled again")

    monkeypatch.setattr(gpu_model, "launch_time", no_more)
    assert selection.select(problem, "fprop", "cuda") is first
    selection.forget()
    assert selection.select(problem, "fprop", "cuda") is first, "each line's estimate is kept too"


# ---- The arithmetic --------------------------------------------------------------------------------------


def test_the_slowest_of_three_bounds_a_launch() -> None:
    second = {
        "arithmetic": Work(flops=66.9e12 / 2, share=0.5),
        "DRAM": Work(tensor_bytes=3.35e12),
        "L2": Work(cache_bytes=5.5e12),
    }
    for bound, work in second.items():
        time = launch_time(132 * 64, work, False, REFERENCE)
        assert time.bound == bound
        others = 3.35 / 5.5 if bound == "DRAM" else 0  # what comes from DRAM passes the L2 cache
        assert time.seconds == pytest.approx(1 + NOT_HIDDEN * others + LAUNCH_SECONDS)
        assert time.waves == 32


def test_blocks_quantise() -> None:
    work = Work(flops=1e12, tensor_bytes=1e9)
    times = {n: launch_time(n, work, False, REFERENCE).seconds for n in (1, 132, 133, 264)}
    assert times[132] == times[264]
    assert times[133] == pytest.approx(times[132] * 2 * 132 / 133, rel=0.05)
    assert times[1] > 100 * times[132]
    waiting = launch_time(132, dataclasses.replace(work, concurrent=2), False, REFERENCE).seconds
    assert waiting > 1.9 * times[132]
    assert launch_time(0, work, False, REFERENCE).seconds == 0


def test_a_small_workspace_stays_in_the_l2_cache() -> None:
    work = Work(scratch_bytes=1e9)
    stays, crosses = (launch_time(1320, work, stays, REFERENCE) for stays in (True, False))
    assert (stays.bound, crosses.bound) == ("L2", "DRAM")
    assert stays.seconds < crosses.seconds


def test_a_line_that_states_no_work_is_taken_by_its_instructions() -> None:
    problem = parse_problem("conv2d n32c256h28w28 k256r3s3 pd1 f16 nhwc")
    line = registry.find("conv2d.fprop.direct_naive@cuda")

    def seconds(*sass: str) -> float:
        steps = (
            Step("a.cu", "a", (5000, 1, 1), (256, 1, 1), ()),
            Step("a.cu", "b", (5000, 1, 1), (256, 1, 1), (), 0, sass),
        )
        kernel = dataclasses.replace(line, algorithm="spare", program=lambda problem: Program(steps))
        return estimate(kernel, problem, REFERENCE).seconds

    assert seconds("HMMA.16816.F32") < seconds("HMMA.1688.F32.TF32") < seconds("FFMA") < seconds("DFMA")
    assert seconds("LDG.E.128") == seconds("FFMA"), "no arithmetic promised: the ordinary units"


#: Products for one of the definition.
PRODUCTS = {
    "winograd_2x2": 4 / 9,
    "winograd_2x2_fused": 4 / 9,
    "winograd_4x4": 1 / 4,
    "implicit_gemm_3xtf32": 3,
}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_what_lines_state_is_at_least_what_the_problem_asks_for(layout: str) -> None:
    problem = parse_problem(f"conv2d n32c64h56w56 k64r3s3 st1 pd1 f32 {layout}")
    for kernel in registry.kernels("conv2d"):
        if kernel.backend != "cuda" or kernel.pass_ == "bgrad" or kernel.supports(problem):
            continue
        assert kernel.program is not None
        works = [step.work for step in kernel.program(problem).steps]
        if None in works:  # estimated from the problem
            continue
        flops = sum(work.flops for work in works if work)
        least = problem.flops(kernel.pass_) * PRODUCTS.get(kernel.algorithm, 1)
        assert 0.999 * least <= flops <= 2.5 * least, kernel.id  # idle parts of tiles are issued too
        moved = sum(work.tensor_bytes for work in works if work)
        assert 0.98 * problem.bytes(kernel.pass_) <= moved <= 2.1 * problem.bytes(kernel.pass_), kernel.id
        read = sum(work.scratch_bytes for work in works if work)
        assert bool(read) == bool(kernel.program(problem).workspace_bytes), kernel.id


def test_every_cuda_line_of_convolution_can_be_modelled() -> None:
    for text in (
        "conv2d n2c4h9w9 k4r3s3 pd1",
        "conv2d n2c4h9w9 k4r3s3 g4",
        "conv2d n0c4h9w9 k4r3s3",
        "conv2d n1c0h5w5 k4r1s1",
    ):
        for kernel in registry.kernels("conv2d"):
            problem = parse_problem(f"{text} {kernel.dtypes[0]} {kernel.layouts[0]}")
            if kernel.backend == "cuda" and kernel.supports(problem) is None:
                for device in GPUS:
                    assert 0 <= estimate(kernel, problem, device).seconds < 1, (kernel.id, text)


def test_a_device_is_known_by_name_or_by_its_architecture() -> None:
    assert gpu_of("NVIDIA H100 80GB HBM3", (9, 0), 132, 50 << 20) is REFERENCE
    assert gpu_of("NVIDIA A100-SXM4-80GB", (8, 0), 108, 40 << 20).name == "A100"
    pcie = gpu_of("NVIDIA H100 PCIe", (9, 0), 114, 50 << 20)
    assert pcie.teraflops["f32"] == pytest.approx(66.9 * 114 / 132)
    unknown = gpu_of("NVIDIA RTX 3060", (8, 6), 28, 3 << 20)
    assert unknown.teraflops["f16"] == pytest.approx(71 * 28 / 82)
    assert unknown.l2_bytes == 3 << 20
    assert gpu_of("a later one", (12, 0), 132, 1).multiprocessors == 132
