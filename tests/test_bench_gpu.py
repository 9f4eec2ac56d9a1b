"""``make gpu``'s bookkeeping, with torch's device calls replaced: what is measured, kept and printed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu, gpu_report, machine, report, run
from bench.problems import SHAPES, read_cases
from pyconv import backends
from pyconv.backends import nvrtc
from pyconv.problem import parse_problem
from pyconv.registry import kernels
from pyconv.timing import wall_turn

DEVICE = {
    "name": "Toy GPU",
    "compute_capability": "9.0",
    "multiprocessors": 1,
    "memory": 1,
    "last_level_cache": 2**20,
    "driver": "1",
}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU in the place of a CUDA device, and problems of its size."""
    monkeypatch.setattr(machine, "describe_device", lambda: DEVICE)
    monkeypatch.setattr(machine, "device_versions", lambda: {"cudnn": "0"})
    monkeypatch.setattr(machine, "device_ceilings", lambda maths: {"copy": 1e12, "fma_f32": 1e12})
    monkeypatch.setattr(run, "_turn_on", lambda device, pass_: wall_turn)
    measure = run.measure

    def on_cpu(case: Any, *rest: Any, device: str, **how: Any) -> Any:
        small = {"n": 1, "h": 9, "w": 9}
        return measure(replace(case, problem=replace(case.problem, **small)), *rest, **how)

    monkeypatch.setattr(run, "measure", on_cpu)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)


def _options(*arguments: str) -> Any:
    return gpu._parser().parse_args(arguments)


def test_the_result_holds_every_case_and_the_page_shows_it(toy: None, tmp_path: Path) -> None:
    out = tmp_path / "toy.json"
    options = _options(
        *("--stages", "bench", "calls", "--suites", "pools", "--maths", "f32", "tf32", "--batches", "8"),
        *("--seconds", "0.001", "--out", str(out)),
    )
    assert gpu.run(options) == 0
    result = json.loads(out.read_text())
    kernels = [row for row in result["rows"] if not row["pass"].startswith("call")]
    # Pools have no TF32; three passes each.
    assert len(kernels) == len(read_cases(SHAPES / "pools.txt"))
    assert {row["math"] for row in kernels} == {"f32"}
    assert all(len(side["ns"]) >= 5 for row in kernels for side in row["sides"])
    assert {"device", "versions", "commit", "date", "ceilings"} <= set(result)
    page = out.with_suffix(".md").read_text()
    for words in ("Toy GPU", "## pools, f32", "## Calls", "## Geometric means", "cuDNN / ours"):
        assert words in page
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_out_of_time_is_said_and_what_was_measured_is_kept(toy: None, tmp_path: Path) -> None:
    out = tmp_path / "toy.json"
    options = _options("--stages", "bench", "--suites", "pools", "--minutes", "0", "--out", str(out))
    assert gpu.run(options) == 0
    result = json.loads(out.read_text())
    assert result["rows"] == []
    assert len(result["left_out"]) == len(list(gpu._cases(options)))
    assert "Left out for lack of time" in out.with_suffix(".md").read_text()


def test_a_failed_stage_fails_the_command(
    toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "_tests", lambda options: iter([gpu._command("toy", ["false"])]))
    assert gpu.run(_options("--stages", "tests", "--out", str(tmp_path / "toy.json"))) == 1
    assert "failed: toy" in capsys.readouterr().err
    assert "failed (1)" in (tmp_path / "toy.md").read_text()


def test_a_command_keeps_its_closing_lines() -> None:
    stage = gpu._command("toy", ["printf", "one\\nbattery on cuda: 3 run\\n2 passed in 1s\\n"])
    assert stage["status"] == 0
    assert stage["summary"] == ["battery on cuda: 3 run", "2 passed in 1s"]


def test_every_layer_is_measured_in_every_math_at_every_batch() -> None:
    cases = list(gpu._cases(_options()))
    assert {case.problem.n for _, case in cases} == {32, 256}
    for math in ("f32", "bf16", "tf32", "f16"):
        of_math = [case.problem for found, case in cases if found == math]
        assert {problem.dtype for problem in of_math} == {"f32" if math == "tf32" else math}
    assert len(cases) == len(set(cases))


@pytest.mark.parametrize(
    ("problem", "bound"),
    [("conv2d n1c1h8w8 k1r1s1 f32 nchw", "bytes"), ("conv2d n64c256h9w9 k256r3s3 pd1 f32 nchw", "flops")],
)
def test_the_share_is_of_the_ceiling_that_binds(problem: str, bound: str) -> None:
    described = parse_problem(problem)
    row = {
        "problem": problem,
        "math": "f32",
        "flops": described.flops("fprop"),
        "bytes": described.bytes("fprop"),
    }
    ceilings = {"copy": 1e12, "fma_f32": 1e13}
    seconds = {"bytes": row["bytes"] / 1e12, "flops": row["flops"] / 1e13}
    assert gpu_report._least_ns(row, ceilings) == pytest.approx(seconds[bound] * 1e9)


def test_the_versions_that_a_comparison_depends_on_are_found_without_a_device_too() -> None:
    versions = machine.device_versions()
    assert {"cuda", "cudnn", "cupy", "nvrtc"} == set(versions)
    compiler = nvrtc.find()
    assert versions["nvrtc"] == (
        "none" if isinstance(compiler, str) else ".".join(map(str, compiler.version))
    )


def test_a_sanitizer_that_cannot_run_is_not_run_rather_than_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name: "false")
    (stage,) = gpu._sanitizer()
    assert stage["status"] is None
    assert stage["summary"][0] == "cannot be used here: not run"


def test_numba_is_measured_beside_its_twins_and_cudnn(
    toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measured(case: Any, layouts: Any, *, also: Any, **how: Any) -> dict[str, Any]:
        operation = str(case.problem).split()[0]
        lines = kernels(operation, case.pass_)
        asked.append({line.id for line in lines if also(line)})
        sides = [
            {"library": "pyconv", "layout": layout, "kernel": line.id, "chosen": False, "ns": [ns]}
            for layout in layouts
            for line, ns in ((line, 2e6 if line.backend == "cuda" else 8e6) for line in lines if also(line))
        ]
        sides += [
            {"library": "torch", "layout": layout, "kernel": "aten", "chosen": True, "ns": [1e6]}
            for layout in layouts
        ]
        return {
            "suite": case.suite,
            "problem": str(case.problem),
            "pass": case.pass_,
            "sides": sides,
            "errors": {},
        }

    monkeypatch.setattr(run, "measure", measured)
    monkeypatch.setattr(report, "progress", lambda row: row["problem"])
    monkeypatch.setattr(backends, "unavailable", lambda backend, device: None)
    out = tmp_path / "toy.json"
    options = _options(
        "--stages", "numba", "--suites", "resnet50", "--maths", "f32", "bf16", "--out", str(out)
    )
    assert gpu.run(options) == 0
    assert len(json.loads(out.read_text())["numba_rows"]) == len(read_cases(SHAPES / "resnet50.txt"))
    twins = {f"conv2d.fprop.{name}" for name in ("direct_naive", "direct_tiled", "im2col_gemm_tiled")}
    assert {f"{name}@{backend}" for name in twins for backend in ("numba", "cuda")} in asked
    page = out.with_suffix(".md").read_text()
    assert re.search(r"\| direct_tiled +\| 8 +\| 2 +\| 1 +\| 0\.25 +\| 0\.12 +\|", page)


def test_numba_that_is_missing_is_said(toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "unavailable", lambda backend, device: "no numba-cuda")
    assert gpu.run(_options("--stages", "numba", "--out", str(tmp_path / "toy.json"))) == 0
    assert "| numba | not run | 0 | no numba-cuda |" in (tmp_path / "toy.md").read_text()
