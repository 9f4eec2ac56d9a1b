"""The benchmark's results: bars, pages, comparisons and the command. No test here asserts a speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import report, run
from bench.bars import BARS, judge
from bench.machine import ALLOCATOR, ROOT
from bench.problems import SHAPES, Case, read_cases
from pyconv import parse_problem

CONV = parse_problem("conv2d n2c4h9w8 k6r3s3 st2 pd1 f32 nchw")
POOL = parse_problem("maxpool2d n2c5h9w8 r3s3 st2 pd1 f32 nchw")

# ---- Bars and reports --------------------------------------------------------------------------------------


QUIET = {"settings": {"threads": 2}}


def _row(case: Case, ours_ns: float, torch_ns: float, kernel: str = "x.y.direct@cpu") -> dict[str, Any]:
    def side(library: str, kernel: str, ns: float) -> dict[str, Any]:
        same = {"layout": "nchw", "chosen": True, "faults_per_call": 0.0}
        return {"library": library, "kernel": kernel, "ns": [ns] * 3, **same}

    sides = [side("torch", "aten", torch_ns), side("pyconv", kernel, ours_ns)]
    row = {"suite": case.suite, "problem": str(case.problem), "pass": case.pass_, "sides": sides}
    return {**row, "flops": 10**9, "bytes": 10**6, "load": 0.5, "errors": {}}


def _rows(bar: Any, **how: Any) -> Iterator[dict[str, Any]]:
    for case in read_cases(SHAPES / f"{bar.suite}.txt", [bar.pass_]):
        yield _row(case, **how)


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.name)
def test_a_bar_is_met_exactly_from_its_bound_on(bar: Any) -> None:
    just, torch_ns = {
        "speedup": (1000.0, 1000.0 * bar.bound),
        "extra_us": (1000.0 + 1000.0 * bar.bound, 1000.0),
        "relative": (1000.0 * bar.bound, 1000.0),
    }[bar.kind]
    for ours_ns, met in ((just * 0.99, "yes"), (just * 1.01, "no")):
        rows = list(_rows(bar, ours_ns=ours_ns, torch_ns=torch_ns))
        assert judge(bar, {"rows": rows, **QUIET}).met == met
    assert judge(bar, {"rows": [], **QUIET}).met == "not measured"


def test_a_bar_is_not_met_by_part_of_its_problems_or_by_kernels_of_torch() -> None:
    bar = BARS[0]
    rows = list(_rows(bar, ours_ns=1.0, torch_ns=100.0))
    assert judge(bar, {"rows": rows[1:], **QUIET}).met == "cannot say: 13 of 14 problems measured"
    rows[3]["sides"][1]["kernel"] = "conv2d.fprop.aten@aten"
    assert judge(bar, {"rows": rows, **QUIET}).met == "no: torch's own kernel was chosen for 1 of 14"


def test_a_busy_machine_shows_in_the_verdict() -> None:
    rows = list(_rows(BARS[0], ours_ns=1.0, torch_ns=100.0))
    rows[5]["load"] = 3.0
    assert judge(BARS[0], {"rows": rows, **QUIET}).met == "yes"
    rows[5]["load"] = 3.1
    assert judge(BARS[0], {"rows": rows, **QUIET}).met == "yes, but on a busy machine (load 3.1)"


def _result(ours_ns: float) -> dict[str, Any]:
    return {
        "date": "2000-01-01T00:00:00+00:00",
        "commit": "0",
        "machine": {"cpu": "none", "cores": 1},
        "versions": {"torch": "0"},
        "allocator": {"libc": "none", "settings": {}, "preload": []},
        "settings": {"seconds": 1.0, "quick": False, "threads": 1, "forced_kernels": []},
        "ceilings": {"fma_f32": 2e11, "copy": 1e10},
        "rows": list(_rows(BARS[0], ours_ns=ours_ns, torch_ns=1e7)),
    }


def test_the_page_shows_the_share_of_the_ceiling_and_marks_the_impossible() -> None:
    # 1 GFLOP at 200 GFLOP/s takes 5 ms.
    page = report.markdown(_result(ours_ns=1e7))
    assert "| 100 GFLOP/s | 50 %" in page
    assert "(!) |" not in page
    assert "| convolution fprop " in page
    assert "125 % (!)" in report.markdown(_result(ours_ns=4e6))


def test_compare_takes_times_and_ratios_to_torch() -> None:
    text = report.compare(_result(ours_ns=2e7), _result(ours_ns=1e7), ["before", "after"])
    assert text.count("| 2.00 ") == 14 + 1  # every problem, and the geometric mean
    assert "before, ms" in text
    other = {**_result(1e7), "versions": {"torch": "1"}, "rows": []}
    assert report.compare(_result(1e7), other, ["a", "b"]).splitlines() == [
        "Not the same versions: torch.",
        "The two results have no problem and pass in common.",
    ]


def test_json_keeps_everything_with_numbers_on_one_line() -> None:
    result = _result(ours_ns=1.25e-7)
    text = report.dump(result)
    assert json.loads(text) == result
    assert '"ns": [ 1.25e-07, 1.25e-07, 1.25e-07 ]' in text


# ---- The command -------------------------------------------------------------------------------------------


def _command(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("bench")
    shapes, out = folder / "tiny.txt", folder / "out" / "tiny.json"
    shapes.write_text(f"# passes: fprop dgrad call_step\n{CONV}\n{POOL}\n")
    ran = _command(
        "bench.run", "--shapes", shapes, "--quick", "--seconds", 0.01, "--threads", 1, "--out", out
    )
    assert ran.returncode == 0, ran.stderr
    return SimpleNamespace(path=out, result=json.loads(out.read_text()), stdout=ran.stdout)


def test_the_command_writes_json_and_markdown(written: SimpleNamespace) -> None:
    result = written.result
    assert [(row["problem"], row["pass"]) for row in result["rows"]] == [
        (str(problem), pass_) for problem in (CONV, POOL) for pass_ in ("fprop", "dgrad", "call_step")
    ]
    assert result["settings"]["threads"] == 1
    assert result["versions"]["torch"] == torch.__version__
    assert result["ceilings"].keys() == {"fma_f32", "copy"}
    page = written.path.with_suffix(".md").read_text()
    assert page == report.markdown(result)
    assert page in written.stdout


def test_the_command_starts_itself_under_the_allocator_setting(written: SimpleNamespace) -> None:
    assert written.result["allocator"]["settings"] == ALLOCATOR


def test_the_command_compares_two_results(written: SimpleNamespace) -> None:
    ran = _command("bench.run", "--compare", written.path, written.path)
    assert ran.returncode == 0, ran.stderr
    compared = [line for line in ran.stdout.splitlines() if line.startswith(("| conv2d", "| maxpool2d"))]
    assert len(compared) == 2 * 2 * 2 + 2  # two passes in two layouts, and the call in one
    assert all("| 1.00 " in line for line in compared)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--shapes", "nowhere"],
            "no file 'nowhere'; there are alexnet, call_overhead, depthwise, first_bar_conv",
        ),
        (["--passes", "forward"], "invalid choice: 'forward'"),
        (["--shapes", "first_bar_pool", "--passes", "wgrad"], "nothing to measure"),
        (["--shapes", "call_overhead", "--quick", "--kernels", "cudnn"], "'cudnn' is no algorithm"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.machine, "ceilings", lambda *_: {"fma_f32": 1.0, "copy": 1.0})
    with pytest.raises(SystemExit, match="2"):
        run.run(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no CUDA device")
def test_without_a_cuda_device_make_gpu_says_so() -> None:
    ran = _command("bench.gpu")
    assert ran.returncode == 1
    assert "torch finds no CUDA device here" in ran.stderr
