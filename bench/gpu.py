"""``make gpu``: tests, sanitizer and benchmark on a CUDA device, in one command that needs no network.

Stages, each of which can be left out (``--stages``):

``tests``      the battery's lines of CUDA and Numba on the device, and ``tests/test_gpu.py``
``sanitizer``  compute-sanitizer's memcheck and racecheck over a subset of the battery
``bench``      every layer of AlexNet, VGG-16 and ResNet-50, MobileNetV2's depthwise layers and the pools,
               ours against cuDNN through torch (``cudnn.benchmark=True``), dtype and TF32 alike on both sides
``numba``      the Numba kernels, their twins in CUDA C++ and cuDNN, on ResNet-50's layers and the pools
``calls``      microseconds of the host for one call

The result goes to ``bench/results/<device>.json``, with the same as Markdown beside it. It is written anew
after every few measurements, so what was measured survives an interruption. Exits with 1 where a stage
failed, or where there is nothing to run on.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STAGES = ("tests", "sanitizer", "bench", "numba", "calls")
SUITES = ("resnet50", "vgg16", "alexnet", "depthwise", "pools")
#: What both sides compute in: a dtype, or float32 in TF32.
MATHS = ("f32", "bf16", "tf32", "f16", "f64")

#: The closing lines of pytest, of the battery's counts and of compute-sanitizer.
_CLOSING = re.compile(r"\d+ (passed|failed)|battery on|(ERROR|RACECHECK) SUMMARY")
#: A subset that reaches every kernel once, small enough for racecheck.
_SANITIZED = "n2c5h13w11 or n1c3h19w23 or n1c9h17w15 or n1c17h11w33"


def _nothing(why: str) -> int:
    print(f"make gpu: {why} Nothing was run.", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    add("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    add("--maths", nargs="+", choices=MATHS, default=["f32", "bf16", "tf32", "f16"])
    add("--batches", nargs="+", type=int, default=[32, 256], metavar="N")
    add("--layouts", nargs="+", choices=("nchw", "nhwc"), default=["nhwc", "nchw"])
    add("--seconds", type=float, default=0.15, help="time for each pass of a problem (default 0.15)")
    add(
        "--minutes",
        type=float,
        default=60,
        help="the benchmark stops after this long and says what is left out",
    )
    add("--all-kernels", action="store_true", help="every line of the table that can do the problem")
    add("--processes", type=int, default=8, help="processes that share the tests (default 8)")
    add("--out", type=Path, metavar="FILE", help="JSON file (default: bench/results/<device>.json)")
    return parser


# ---- The stages that run other programs --------------------------------------------------------------


def _command(name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Runs a command with its output shown; what is kept of it is the exit status and the closing line."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | (environment or {}),
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    status = process.wait()
    closing = [
        line
        for line in lines
        if re.search(r"\d+ (passed|failed)|ERROR SUMMARY|RACECHECK SUMMARY|battery on", line)
    ]
    return {
        "name": name,
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "summary": closing or lines[-3:],
    }


def _tests(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    shared = ["-n", str(options.processes)] if _has("xdist") else []
    battery = ["tests/test_battery.py", "-k", "on_the_device"]
    yield _command("battery on the device", [*pytest, *shared, *battery])
    yield _command("tests of the device", [*pytest, "tests/test_gpu.py"])


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def _sanitizer() -> Iterator[dict[str, Any]]:
    program = shutil.which("compute-sanitizer")
    if program is None:
        yield {"name": "compute-sanitizer", "status": None, "seconds": 0, "summary": ["not on PATH: not run"]}
        return
    # Some virtual machines do not let it at the device; the tests would then fail one by one.
    least = "import torch; torch.ones(1, device='cuda').sum().item()"
    probe = _command("compute-sanitizer", [program, "--error-exitcode", "9", sys.executable, "-c", least])
    if probe["status"]:
        yield probe | {"status": None, "summary": ["cannot be used here: not run", *probe["summary"]]}
        return
    for tool in ("memcheck", "racecheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "5"]
        command += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_battery.py"]
        command += ["-k", f"on_the_device and ({_SANITIZED})"]
        # The caching allocator would hide an access beyond a tensor in the block that it was cut from.
        yield _command(f"compute-sanitizer {tool}", command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


# ---- The benchmark -----------------------------------------------------------------------------------


def _cases(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """``(math, case)``, the most telling first: a run that is cut short has those."""
    from bench.problems import SHAPES, read_cases

    for batch in options.batches:
        for math in options.maths:
            for suite in options.suites:
                for case in read_cases(SHAPES / f"{suite}.txt"):
                    if math == "tf32" and not str(case.problem).startswith("conv2d"):
                        continue
                    dtype = "f32" if math == "tf32" else math
                    yield math, replace(case, problem=replace(case.problem, n=batch, dtype=dtype))


def _bench(options: argparse.Namespace, result: dict[str, Any], save: Any) -> None:
    import torch

    from bench import machine
    from bench.report import progress
    from bench.run import measure

    torch.backends.cudnn.benchmark = True
    result["ceilings"] = machine.device_ceilings(options.maths)
    cases = list(_cases(options))
    end = time.monotonic() + 60 * options.minutes
    for number, (math, case) in enumerate(cases, start=1):
        if time.monotonic() > end:
            result["left_out"] = [
                f"{math}: {left.problem} {left.pass_}" for math, left in cases[number - 1 :]
            ]
            print(f"out of time: {len(result['left_out'])} of {len(cases)} were not measured", flush=True)
            break
        try:
            with machine.tf32(math == "tf32"):
                row = measure(
                    case,
                    options.layouts,
                    seconds=options.seconds,
                    least_rounds=5,
                    all_kernels=options.all_kernels,
                    device="cuda",
                )
        except (RuntimeError, ValueError) as error:  # out of memory, say: the other problems go on
            why = str(error).splitlines()[0]
            row = {
                "suite": case.suite,
                "problem": str(case.problem),
                "pass": case.pass_,
                "flops": 0,
                "bytes": 0,
            }
            row |= {"sides": [], "errors": {"all": why}, "load": 0.0, "operand_sets": 0, "inner": 0}
            torch.cuda.empty_cache()
        row["math"] = math
        result["rows"].append(row)
        print(f"[{number}/{len(cases)}] {math} {progress(row)}", flush=True)
        if number % 20 == 0:
            save()
    save()


def _numba(options: argparse.Namespace, result: dict[str, Any], save: Any) -> None:
    """In float32 and float16, at the first batch size: rows of their own, since they are of unequal lines."""
    from bench import contenders, machine
    from bench.problems import SHAPES, read_cases
    from bench.report import progress
    from bench.run import measure
    from pyconv import backends

    if reason := backends.unavailable("numba", "cuda"):
        result["stages"].append({"name": "numba", "status": None, "seconds": 0, "summary": [reason]})
        return
    for math in [math for math in options.maths if math in ("f32", "f16")]:
        for suite in [suite for suite in options.suites if suite in ("resnet50", "pools")]:
            for case in read_cases(SHAPES / f"{suite}.txt"):
                case = replace(case, problem=replace(case.problem, n=options.batches[0], dtype=math))
                try:
                    with machine.tf32(False):
                        row = measure(
                            case,
                            options.layouts,
                            seconds=options.seconds,
                            least_rounds=3,
                            device="cuda",
                            also=contenders.numba_and_twins,
                        )
                except (RuntimeError, ValueError) as error:
                    print(f"numba: {case.problem} {case.pass_}: {str(error).splitlines()[0]}", flush=True)
                    continue
                result["numba_rows"].append(row | {"math": math})
                print(f"numba {math} {progress(row)}", flush=True)
            save()


def _calls(result: dict[str, Any]) -> None:
    from bench.problems import SHAPES, read_cases
    from bench.report import progress
    from bench.run import measure

    for case in read_cases(SHAPES / "call_overhead.txt"):
        row = measure(case, ["nchw"], seconds=2.0, least_rounds=7, device="cuda")
        row["math"] = "f32"
        result["rows"].append(row)
        print(progress(row), flush=True)


def run(options: argparse.Namespace) -> int:
    from bench import gpu_report, machine

    device = machine.describe_device()
    slug = re.sub(r"[^a-z0-9]+", "-", device["name"].lower()).strip("-")
    out = options.out or machine.ROOT / "bench" / "results" / f"{slug}.json"
    result: dict[str, Any] = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "device": device,
        "machine": machine.describe(),
        "versions": machine.versions() | machine.device_versions(),
        "settings": {"seconds": options.seconds, "stages": options.stages, "cudnn_benchmark": True},
        "stages": [],
        "ceilings": {},
        "rows": [],
        "numba_rows": [],
        "left_out": [],
    }

    def save() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path, text in (
            (out, gpu_report.dump(result)),
            (out.with_suffix(".md"), gpu_report.markdown(result)),
        ):
            unfinished = path.with_suffix(f".{os.getpid()}.tmp")
            unfinished.write_text(text)
            unfinished.replace(path)

    # The tests first: a kernel that is wrong is not worth a measurement.
    if "tests" in options.stages:
        for stage in _tests(options):
            result["stages"].append(stage)
            save()
    if "bench" in options.stages:
        _bench(options, result, save)
    if "numba" in options.stages:
        _numba(options, result, save)
    if "calls" in options.stages:
        _calls(result)
        save()
    if "sanitizer" in options.stages:
        result["stages"] += list(_sanitizer())
    save()
    print(gpu_report.markdown(result))
    print(f"Written: {out} and {out.with_suffix('.md')}")
    failed = [stage["name"] for stage in result["stages"] if stage["status"]]
    wrong = sum(len(row["errors"]) for row in [*result["rows"], *result["numba_rows"]])
    if failed or wrong:
        print(
            f"make gpu: failed: {', '.join(failed) or 'no stage'}; {wrong} measurements failed",
            file=sys.stderr,
        )
    return 1 if failed or wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        import torch
    except ImportError:
        return _nothing(f"{sys.executable} has no torch; name one that has: make gpu PYTHON=...")
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU only"
        return _nothing(f"torch finds no CUDA device here (torch {torch.__version__}, {build}).")
    from pyconv import backends

    reason = backends.unavailable("cuda", "cuda")
    if reason:
        return _nothing(f"pyconv's CUDA kernels cannot run here: {reason}.")
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
