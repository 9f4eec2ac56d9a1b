"""Every CUDA kernel compiles for every architecture into what it should; and the gates themselves are tested.

All of them for all would take most of a quarter of an hour, so a run compiles a sample, which every change of
a source draws anew. ``make test-all`` compiles the rest, and so does ``make gates``, which has to be run
after a change of a kernel for the page to be current.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from pyconv.backends import nvrtc, sources
from pyconv.backends.program import Program, Step
from pyconv.gates import __main__ as command
from pyconv.gates import compiling, cubin, page
from pyconv.gates.architectures import ARCHITECTURES
from pyconv.gates.compiling import Compiled, compiled
from pyconv.gates.instantiations import Instantiation, ahead_of_time, instantiations
from pyconv.problem import Problem, parse_problem
from pyconv.registry import Kernel, kernels
from tests import problems

GATED = instantiations()
FOLDER = Path(__file__).resolve().parent / "gates"
PROBLEM = parse_problem("conv2d n1c1h1w1 k1r1s1 st1 pd0 f32 nchw")


def _missing() -> str | None:
    found = nvrtc.find()
    if isinstance(found, str):
        return found
    try:
        cubin.tool("cuobjdump"), cubin.tool("nvdisasm")
    except FileNotFoundError as error:
        return str(error)
    return None


#: Compiles for about a minute, on one core.
SAMPLE_ONE_IN = 3

#: What is compiled in every run, and what in the exhaustive one only.
EACH_ARCHITECTURE = [
    pytest.param(name, marks=() if name in page.DETAILED else pytest.mark.exhaustive)
    for name in ARCHITECTURES
]

pytestmark = pytest.mark.skipif(_missing() is not None, reason=str(_missing()))


# ---- The kernels --------------------------------------------------------------------------------------


def _check(wanted: list[Instantiation], architecture: str) -> None:
    found = compiled(wanted, ARCHITECTURES[architecture])
    assert not found.faults, "\n".join(found.faults)
    if page.parse(page.PAGE.read_text())[0] != compiling.version():
        pytest.skip(f"{page.PAGE.name} was made by another NVRTC than {compiling.version()}")
    stale = page.stale(wanted, {architecture: found.usages})
    assert not stale, "\n".join(["stale, make gates:", *stale])


def _sample(source: str) -> tuple[str, list[Instantiation]]:
    """An architecture and a third of the source's instantiations, drawn by its text; one of every kernel."""

    def draw(sides: int, word: str = "") -> int:
        text = sources.digest(source) + word
        return int(hashlib.sha256(text.encode()).hexdigest(), 16) % sides

    first = {each.kernel.partition("<")[0]: each for each in reversed(GATED[source])}
    chosen = [
        each for each in GATED[source] if each in first.values() or draw(SAMPLE_ONE_IN, each.kernel) == 0
    ]
    return list(ARCHITECTURES)[draw(len(ARCHITECTURES))], chosen


@pytest.mark.parametrize("source", GATED)
def test_a_sample_of_the_kernels_passes_and_the_page_is_current(source: str) -> None:
    architecture, chosen = _sample(source)
    _check(chosen, architecture)


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", GATED)
def test_every_kernel_passes_and_the_page_is_current(source: str, architecture: str) -> None:
    _check(GATED[source], architecture)


def test_the_page_has_every_kernel_and_no_other() -> None:
    on_page = {source: list(rows) for source, rows in page.parse(page.PAGE.read_text())[1].items()}
    wanted = {source: [f"`{each.kernel}`" for each in found] for source, found in GATED.items()}
    assert on_page == wanted, "stale: make gates"


@pytest.mark.parametrize(
    "line", [line for line in kernels() if line.backend == "cuda"], ids=lambda line: line.id
)
def test_every_instantiation_that_the_battery_runs_is_gated(line: Kernel) -> None:
    gated = {(each.source, each.kernel) for found in GATED.values() for each in found}
    texts = {"conv2d": problems.CONV2D, "maxpool2d": problems.MAXPOOL2D}[line.operation]
    run: dict[tuple[str, str], Problem] = {}
    for text in [*texts, *line.problems]:
        for dtype in line.dtypes:
            for layout in line.layouts:
                problem = parse_problem(f"{text} {dtype} {layout}")
                if line.supports(problem) is None:
                    for step in line.program(problem).steps:
                        run.setdefault((step.source, step.kernel), problem)
    lacking = [f"{kernel} of {source}: {run[source, kernel]}" for source, kernel in run.keys() - gated]
    assert not lacking, "\n".join(
        ["pyconv/gates/problems.py needs a problem that leads to", *sorted(lacking)]
    )


# ---- The gates ----------------------------------------------------------------------------------------


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sources of ``tests/gates``, and an empty memory of what was compiled."""
    monkeypatch.setattr(compiling, "CACHE", tmp_path / "cache")
    return Path(shutil.copytree(FOLDER, tmp_path / "kernels"))


def _gate(
    folder: Path,
    kernel: str,
    parameters: tuple[int, ...],
    *,
    source: str = "faulty.cu",
    launch: tuple[int, int] = (128, 0),
    sass: set[str] | None = None,
    architecture: str = "sm_80",
) -> Compiled:
    wanted = Instantiation(source, kernel, PROBLEM, parameters, {launch}, sass or set(), {"a line"})
    return compiled([wanted], ARCHITECTURES[architecture], folder)


def _fault(*arguments: object, architecture: str = "sm_80", **more: object) -> str:
    found = _gate(*arguments, architecture=architecture, **more)  # type: ignore[arg-type]
    (fault,) = found.faults
    kernel = arguments[1]
    assert f"{kernel} on {architecture}: " in fault
    return fault


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
@pytest.mark.parametrize(
    ("kernel", "launch"),
    [("indexes_locally<24>", (128, 0)), ("spills", (1024, 0))],
    ids=["indexed", "spilled"],
)
def test_local_memory_is_refused(
    faulty: Path, kernel: str, launch: tuple[int, int], architecture: str
) -> None:
    parameters = (8, 8) if "indexes" in kernel else (8, 8, 4)
    fault = _fault(faulty, kernel, parameters, launch=launch, architecture=architecture)
    assert "expected no spills, found " in fault
    assert "bytes of stack" in fault
    assert "faulty.cu" in fault


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
@pytest.mark.parametrize(
    ("kernel", "found"),
    [("adds_atomically", ".ADD.F32."), ("adds_by_swaps", "ATOMS.CAS")],
    ids=["add", "swap"],
)
def test_float_atomics_are_refused(faulty: Path, kernel: str, found: str, architecture: str) -> None:
    fault = _fault(faulty, kernel, (8, 8), architecture=architecture)
    assert "expected no float atomics, found " in fault
    assert found in fault


def test_integer_atomics_are_not(faulty: Path) -> None:
    assert _gate(faulty, "counts_atomically", (8,)).faults == ()


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_an_instruction_that_a_step_promises_must_be_there(faulty: Path, architecture: str) -> None:
    sass = {"HMMA.16816.F32"}
    given = {"launch": (32, 0), "sass": sass, "architecture": architecture}
    assert _gate(faulty, "multiplies<true>", (8, 8, 8), **given).faults == ()  # type: ignore[arg-type]
    fault = _fault(faulty, "multiplies<false>", (8, 8, 8), **given)
    assert "expected HMMA.16816.F32, found no HMMA" in fault
    given = {"sass": {"LDG.128", "STG.128"}, "architecture": architecture}
    assert _gate(faulty, "copies<4>", (8, 8), **given).faults == ()  # type: ignore[arg-type]
    first, second = _gate(faulty, "copies<2>", (8, 8), **given).faults  # type: ignore[arg-type]
    assert "copies<2>" in first
    assert "expected LDG.128, found LDG.E.64" in first
    assert "expected STG.128, found STG.E.64" in second


@pytest.mark.parametrize("architecture", page.DETAILED)
def test_one_that_does_not_compile_is_named_and_the_others_are_read(faulty: Path, architecture: str) -> None:
    wanted = [
        Instantiation("broken.cu", f"tile<{rows}>", PROBLEM, (8,), {(32, 0)}, set(), {"a line"})
        for rows in (8, 16)
    ]
    found = compiled(wanted, ARCHITECTURES[architecture], faulty)
    (fault,) = found.faults
    assert fault.startswith(f"broken.cu: tile<8> on {architecture}: does not compile: ")
    assert "the tensor cores take 16 rows" in fault
    assert list(found.usages) == ["tile<16>"]


def test_a_launch_must_be_possible(faulty: Path) -> None:
    def fault(threads: int, shared: int, architecture: str) -> str:
        return _fault(faulty, "copies<4>", (8, 8), launch=(threads, shared), architecture=architecture)

    assert "expected a launch of at most 128 threads, found 256" in fault(256, 0, "sm_80")
    too_much = "expected at most 101376 bytes of shared memory, found 102400"
    assert too_much in fault(128, 100 * 1024, "sm_86")
    assert _gate(faulty, "copies<4>", (8, 8), launch=(128, 100 * 1024)).faults == ()


def test_a_step_must_pass_what_the_kernel_takes(faulty: Path) -> None:
    fault = _fault(faulty, "takes_a_long", (8, 4))
    assert "expected parameters of (8, 4) bytes, as its step passes, found (8, 8) in the kernel" in fault
    assert _gate(faulty, "takes_a_long", (8, 8)).faults == ()


# ---- What is known is remembered ----------------------------------------------------------------------


def test_unchanged_sources_are_not_compiled_again(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = []
    compile_one = nvrtc.Nvrtc.compile

    def counted(self: nvrtc.Nvrtc, source: str, kernel: str, *more: object) -> object:
        compilations.append(kernel)
        return compile_one(self, source, kernel, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(nvrtc.Nvrtc, "compile", counted)
    first = _gate(faulty, "copies<4>", (8, 8))
    assert _gate(faulty, "copies<4>", (8, 8)) == first
    assert compilations == ["copies<4>"]
    _gate(faulty, "copies<4>", (8, 8), architecture="sm_90a")
    assert len(compilations) == 2
    # A fault is found in what is remembered, too.
    assert "expected HMMA" in _gate(faulty, "copies<4>", (8, 8), sass={"HMMA"}).faults[0]
    assert len(compilations) == 2
    source = faulty / "faulty.cu"
    source.write_text(source.read_text() + "// changed\n")
    sources.digest.cache_clear()
    _gate(faulty, "copies<4>", (8, 8))
    assert len(compilations) == 3


# ---- The parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_what_is_read_of_a_cubin_is_what_was_written(faulty: Path, architecture: str) -> None:
    found = _gate(faulty, "spills", (8, 8, 4), launch=(1024, 0), architecture=architecture)
    usage = found.usages["spills"]
    assert (usage.most_threads, usage.parameters, usage.shared) == (1024, (8, 8, 4), 0)
    # Two blocks of 1024 threads share 65536 registers where a multiprocessor takes 2048 threads.
    assert usage.register_limit == (32 if ARCHITECTURES[architecture].threads == 2048 else 64)
    found = _gate(faulty, "adds_by_swaps", (8, 8), architecture=architecture)
    assert found.usages["adds_by_swaps"].shared == 8


def test_patterns_of_instructions() -> None:
    usage = cubin.Usage(
        1, 1, 1, 0, 0, (), {"HFMA2.MMA": 1, "HMMA.16816.F32.BF16": 2, "LDG.E.128.CONSTANT": 3}
    )
    assert usage.count("HMMA") == usage.count("HMMA.F32") == usage.count("HMMA.16816.F32.BF16") == 2
    assert usage.count("HMMA.F16") == usage.count("MMA") == usage.count("LDG.CONSTANT.128") == 0
    assert usage.count("LDG.128") == usage.count("LDG") == 3


# As NVIDIA's cuda_occupancy.h (CUDA 13.0) computes it, which agreed on 20,000 other launches.
@pytest.mark.parametrize(
    ("name", "threads", "registers", "shared", "blocks"),
    [
        ("sm_80", 316, 61, 3526, 3),
        ("sm_80", 154, 39, 13333, 9),
        ("sm_80", 1024, 65, 0, 0),
        ("sm_86", 256, 40, 0, 6),
        ("sm_86", 32, 16, 0, 16),
        ("sm_89", 32, 16, 0, 24),
        ("sm_90a", 256, 32, 32 * 1024, 6),
        ("sm_100", 128, 168, 227 * 1024, 1),
        ("sm_100", 128, 168, 227 * 1024 + 1, 0),
    ],
)
def test_resident_blocks(name: str, threads: int, registers: int, shared: int, blocks: int) -> None:
    assert ARCHITECTURES[name].blocks_of(threads, registers, shared) == blocks


def test_a_line_that_no_listed_problem_reaches_is_refused() -> None:
    def program(problem: Problem) -> Program:
        return Program(
            (Step("faulty.cu", "copies<4>", (1, 1, 1), (128, 1, 1), ("x", "y"), sass=("LDG.128",)),)
        )

    line = Kernel("conv2d", "fprop", "odd", "cuda", ("f32",), program=program)
    (each,) = instantiations([line])["faulty.cu"]
    assert (each.parameters, each.launches, each.sass) == ((8, 8), {(128, 0)}, {"LDG.128"})
    nothing = Kernel(
        "conv2d", "fprop", "no", "cuda", ("f32",), program=program, restriction=lambda _: "never"
    )
    with pytest.raises(ValueError, match=r"no problem of .* leads to a launch of conv2d\.fprop\.no@cuda"):
        instantiations([nothing])


def test_a_stale_page_is_found(faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        Instantiation("faulty.cu", "copies<4>", PROBLEM, (8, 8), {(128, 2048)}, {"LDG.128"}, {"a line"})
    ]
    usages = {name: compiled(wanted, each, faulty).usages for name, each in ARCHITECTURES.items()}
    text = page.render({"faulty.cu": wanted}, {("faulty.cu", name): usages[name] for name in usages})
    assert page.parse(text)[0] == compiling.version()
    assert list(page.parse(text)[1]) == ["faulty.cu"]
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    page.PAGE.write_text(text)
    assert page.stale(wanted, usages) == []
    assert page.stale(wanted, {"sm_90a": usages["sm_90a"]}) == []
    page.PAGE.write_text(text.replace("LDG.128 1", "LDG.128 2"))
    first, *_ = page.stale(wanted, {"sm_80": usages["sm_80"]})
    assert first.startswith("faulty.cu: `copies<4>`: instructions on sm_80: ")
    page.PAGE.write_text(text.replace("copies<4>", "copies<8>"))
    assert "faulty.cu: `copies<4>`: kernel: missing, now `copies<4>`" in page.stale(wanted, usages)


def test_the_command_writes_what_cmake_compiles(tmp_path: Path) -> None:
    (tmp_path / "of_a_kernel_that_is_no_more.cu").touch()
    assert command.main(["--sources", str(tmp_path), "--only", "direct_naive"]) == 0
    (place,) = tmp_path.iterdir()
    assert place.name == "conv2d_direct_naive.cu"
    assert place.read_text() == ahead_of_time("conv2d/direct_naive.cu", GATED["conv2d/direct_naive.cu"])
    assert all(f"&{each.kernel})" in place.read_text() for each in GATED["conv2d/direct_naive.cu"])


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_nvcc_compiles_what_is_written_for_it(tmp_path: Path) -> None:
    wanted = [Instantiation("broken.cu", f"tile<{rows}>", PROBLEM, (8,)) for rows in (16, 32)]
    (tmp_path / "all.cu").write_text(ahead_of_time("broken.cu", wanted))
    nvcc = ["nvcc", "-std=c++17", "-arch=sm_80", "-c", "all.cu", "-o", "all.o", f"-I{FOLDER}"]
    subprocess.run(nvcc, cwd=tmp_path, check=True)
    names = cubin.run("cuobjdump", ["-res-usage"], (tmp_path / "all.o").read_bytes())
    assert names.count("Function") == 2


def test_the_command_prints_machine_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--sass", "direct_naive_fprop<float, kNchw", "--arch", "sm_80"]) == 0
    code = capsys.readouterr().out
    assert "FFMA" in code
    assert code.count("// conv2d/direct_naive.cu: direct_naive_fprop<float, kNchw, 256> on sm_80") == 1
    assert "direct_naive_dgrad" not in code
