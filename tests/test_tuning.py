"""What was measured is kept, found by other processes, taken where it holds, and never where it does not.

No test reads a clock: each line of the table takes the time that the test says.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyconv
from pyconv import backends, cli, functional, models, selection, tune, tuning, tuning_file, tuning_store
from pyconv.backends import gpu
from pyconv.errors import TuningError, UsageError
from pyconv.plan import plan_for
from pyconv.problem import Conv2dProblem
from pyconv.registry import PASSES, find
from pyconv.timing import Side
from pyconv.tuning_file import Entry, Key
from pyconv.tuning_problems import problems_of, problems_of_model

CONV = pyconv.parse_problem("conv2d n2c5h9w8 k6r3s3 st1 pd1 f32 nchw")
DIRECT, GEMM, NUMBA, ATEN = (
    f"conv2d.fprop.{name}" for name in ("direct@cpu", "im2col_gemm@cpu", "direct@numba-cpu", "aten@aten")
)
#: Milliseconds by algorithm and backend, of any pass.
COSTS = {"direct@cpu": 3.0, "im2col_gemm@cpu": 1.0, "direct@numba-cpu": 50.0, "aten@aten": 0.5}


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, in use."""
    monkeypatch.setenv("PYCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYCONV_TUNING")
    monkeypatch.setattr(selection, "_backend", "")
    selection.forget()
    yield tmp_path / "cache" / "tuning" / "measured.jsonl"
    monkeypatch.undo()
    selection.forget()


@pytest.fixture(autouse=True)
def costs(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The stopwatch: every line of native code is called once, and takes what stands here."""
    costs = dict(COSTS)

    def turn(side: Side, inner: int) -> tuple[int, int]:
        if "numba" not in side.name:  # which would be compiled in each test's empty cache
            side.call(*next(side.operands))
        return int(costs[side.name.rpartition(".")[2]] * 1e6) * inner, 0

    monkeypatch.setattr(tune, "wall_turn", turn)
    monkeypatch.setattr(tune, "last_level_cache", lambda device: 1000)
    return costs


def chosen(problem: Any = CONV, pass_: str = "fprop") -> str:
    return selection.select(problem, pass_).id


def entry_of(kernel: str = GEMM, measured: str = "2026-01-02T03:04:05Z", **key: str) -> Entry:
    here = tuning.key_of(CONV, "fprop", "cpu", selection.settings(CONV, "cpu"))
    assert here is not None
    return Entry(here._replace(**key), kernel, DIRECT, {kernel: 1.0, DIRECT: 3.0}, 1, measured)


# ---- Taken where it holds ----


def test_the_fastest_is_kept_taken_and_explained(cache: Path) -> None:
    assert chosen() == DIRECT
    outcomes = tune.tune([CONV], seconds=0)
    assert [outcome.pass_ for outcome in outcomes] == ["fprop", "dgrad", "wgrad", "bgrad"]
    assert chosen() == GEMM
    lines = {line.kernel.id: line.reason for line in selection.choices(CONV, "fprop")}
    date = outcomes[0].entry.measured[:10]  # type: ignore[union-attr]
    assert (
        lines[GEMM]
        == f"chosen: tuned: 1 ms, 3.00x as fast as the untuned choice direct, measured {date} with 1 thread"
    )
    assert lines[DIRECT] == "not chosen: 3 ms when measured"
    assert lines[NUMBA] == f"not chosen: {GEMM} was measured to be the fastest", "too slow to go on with"
    assert lines[ATEN] == "not chosen: torch's own kernel, the last resort"
    said = subprocess.run(
        [sys.executable, "-m", "pyconv", "explain", str(CONV)], capture_output=True, text=True, check=True
    ).stdout
    assert f"* {GEMM}" in " ".join(said.split()), "another process finds it"
    assert chosen(dataclasses.replace(CONV, n=3)) == DIRECT, "another problem was not measured"
    with pyconv.use("direct"):
        assert chosen() == DIRECT, "what is asked for comes first"


def test_results_and_gradients_are_those_of_the_line_asked_for_by_name(cache: Path) -> None:
    tune.tune([CONV], seconds=0)
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=generator) for shape in (CONV.x_shape, CONV.w_shape))  # type: ignore[union-attr]

    def step() -> list[torch.Tensor]:
        operands = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        y = pyconv.conv2d(*operands, padding=1)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), operands)]

    tuned = step()
    assert {p: k.algorithm for p, k in plan_for(CONV, "cpu").kernels.items()} == dict.fromkeys(
        ("fprop", "dgrad", "wgrad"), "im2col_gemm"
    )
    with pyconv.use("im2col_gemm"):
        assert all(map(torch.equal, tuned, step()))


def test_calls_ask_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    lookup = tuning.lookup
    monkeypatch.setattr(tuning, "lookup", lambda *given: (asked.append(given[1]), lookup(*given))[1])
    x, w = torch.ones(CONV.x_shape), torch.ones(CONV.w_shape)  # type: ignore[union-attr]
    for _ in range(3):
        pyconv.conv2d(x, w, padding=1)
    assert asked == ["fprop"]


def test_the_number_of_threads_chooses_nothing(cache: Path) -> None:
    tune.tune([CONV], seconds=0)
    torch.set_num_threads(2)
    selection.forget()
    assert chosen() == GEMM


def test_other_switches_are_other_measurements(cache: Path) -> None:
    tune.tune([CONV], seconds=0)
    with pyconv.algorithm_precision("exact"):
        assert chosen() == DIRECT
    with tune.switched(workspace_limit=2**30):
        assert chosen() == DIRECT
        tune.tune([CONV], seconds=0)
        assert chosen() == GEMM
    limit = backends.workspace_bytes(find(GEMM), CONV) - 1
    assert backends.workspace_bytes(find(DIRECT), CONV) <= limit
    with tune.switched(workspace_limit=limit):
        tune.tune([CONV], seconds=0)
        assert chosen() == DIRECT
        assert list(tuning.entries())[-4].settings.endswith(f"workspace_limit={limit} precision=standard")
    assert chosen() == GEMM


def test_switched_puts_back_what_was(cache: Path) -> None:
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision, pyconv.get_workspace_limit(), pyconv.get_algorithm_precision()
    for tf32, name in ((True, "tf32"), (False, "ieee"), (None, before[0])):
        with tune.switched("fast", 7, tf32):
            assert (conv.fp32_precision, selection.tf32()) == (name, name == "tf32")
            assert (pyconv.get_workspace_limit(), pyconv.get_algorithm_precision()) == (7, "fast")
        assert before == (
            conv.fp32_precision, pyconv.get_workspace_limit(), pyconv.get_algorithm_precision()
        )  # fmt: skip


WINOGRAD = pyconv.parse_problem("conv2d n8c64h56w56 k64r3s3 st1 pd1 f32 nhwc")


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Selection as on a GPU where Winograd is fast, and three products of tf32 faster still."""
    monkeypatch.setattr(gpu, "missing", lambda: None)
    monkeypatch.setattr(tuning, "device", lambda device_type: f"{device_type}: Toy")
    monkeypatch.setattr(tune, "operand_sets", lambda *_: itertools.repeat(()))

    def turn(side: Side, inner: int) -> tuple[int, int]:
        known = {"winograd_4x4": 1, "winograd_2x2": 2, "im2col_gemm_tf32": 3, "implicit_gemm_3xtf32": 0.5}
        return int(1e6 * known.get(side.name.split("@")[0].rpartition(".")[2], 4)) * inner, 0

    monkeypatch.setattr(tune, "first_device_turn", turn)


@pytest.mark.parametrize("tf32", [False, True])
def test_no_tuned_choice_breaks_what_a_switch_promises(on_a_gpu: None, cache: Path, tf32: bool) -> None:
    def chosen_on_gpu() -> str:
        return selection.select(WINOGRAD, "fprop", "cuda").algorithm

    with tune.switched(tf32=tf32):
        got = {}
        for precision in ("fast", "standard", "exact"):
            with tune.switched(precision):
                tune.tune([WINOGRAD], "cuda", seconds=0)
        for precision in ("fast", "standard", "exact"):
            with tune.switched(precision):
                got[precision] = chosen_on_gpu()
                lines = selection.choices(WINOGRAD, "fprop", "cuda")
                reason = next(line.reason for line in lines if line.chosen)
                assert reason.startswith("chosen: tuned: ")
                assert "model: " in reason
    assert (got["fast"], got["standard"]) == ("winograd_4x4", "winograd_2x2")
    if tf32:
        assert got["exact"] == "im2col_gemm_tf32", "direct algebra, and torch's own switch allows it"
    else:
        assert "winograd" not in got["exact"]
        assert "tf32" not in got["exact"]


def test_a_file_that_says_otherwise_breaks_no_promise_either(on_a_gpu: None, cache: Path) -> None:
    """An entry is taken from the lines that are able, whoever wrote it."""
    with tune.switched("exact", tf32=False):
        key = tuning.key_of(WINOGRAD, "fprop", "cuda", selection.settings(WINOGRAD, "cuda"))
        assert key is not None
        untuned = selection.select(WINOGRAD, "fprop", "cuda").id
        for name in ("winograd_2x2", "im2col_gemm_tf32", "implicit_gemm_3xtf32", "direct_gone"):
            kernel = f"conv2d.fprop.{name}@cuda"
            tuning_store.keep([Entry(key, kernel, untuned, {kernel: 1.0}, 1, "2026-01-02T03:04:05Z")])
            assert tuning.entries()[key].kernel == kernel
            assert selection.select(WINOGRAD, "fprop", "cuda").id == untuned
    kernel = "conv2d.fprop.implicit_gemm_3xtf32@cuda"  # able, and for those who ask
    key = tuning.key_of(WINOGRAD, "fprop", "cuda", selection.settings(WINOGRAD, "cuda"))
    assert key is not None
    tuning_store.keep([Entry(key, kernel, untuned, {kernel: 1.0}, 1, "2026-01-02T03:04:05Z")])
    lines = {line.kernel.id: line for line in selection.choices(WINOGRAD, "fprop", "cuda")}
    assert lines[kernel].able
    assert not lines[kernel].chosen
    assert "tuned" not in next(line.reason for line in lines.values() if line.chosen)


@pytest.mark.parametrize("field", Key._fields)
def test_all_that_a_time_depends_on_must_be_as_it_was(cache: Path, field: str) -> None:
    tuning_store.keep([entry_of()])
    assert chosen() == GEMM
    tuning_store.clear()
    assert chosen() == DIRECT
    tuning_store.keep([entry_of(**{field: "another"})])
    assert chosen() == DIRECT


@pytest.mark.parametrize("name", ["conv2d.fprop.gone@cpu", "conv2d.fprop.depthwise@cpu", "nonsense"])
def test_a_line_that_is_gone_or_cannot_do_the_problem_is_passed_over(cache: Path, name: str) -> None:
    tuning_store.keep([entry_of(name)])
    assert tuning.lookup(CONV, "fprop", "cpu", selection.settings(CONV, "cpu")) is not None
    assert chosen() == DIRECT


def test_the_backend_of_the_environment_comes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning_store.keep([entry_of(ATEN)])
    assert chosen() == ATEN
    monkeypatch.setattr(selection, "_backend", "cpu")
    selection.forget()
    assert chosen() == DIRECT


# ---- Measuring ----


def test_torchs_own_kernels_win_only_where_that_is_asked_for(cache: Path) -> None:
    pool = pyconv.parse_problem("maxpool2d n2c3h8w8 r2s2 st2 pd0 f32 nchw")
    for include, backend in ((False, "cpu"), (True, "aten"), (False, "cpu")):
        outcomes = tune.tune([CONV, pool], seconds=0, include_aten=include)
        measured = [outcome.entry for outcome in outcomes if outcome.entry]
        assert len(measured) == 8, "bgrad and the pools have the line of backend numba-cpu too"
        assert {entry.kernel.split("@")[1] for entry in measured} == {backend}
        assert selection.select(CONV, "fprop").backend == backend
    taps = [outcome for outcome in outcomes if outcome.pass_.endswith("_tap")]
    assert len(taps) == sum(pass_.endswith("_tap") for pass_ in PASSES["maxpool2d"])
    assert all(outcome.entry is None and not outcome.failed for outcome in taps), "no line does it on a CPU"


def test_operands_are_those_of_the_pass_and_outgrow_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pyconv.parse_problem("maxpool2d n1c2h6w6 r2s2 st2 pd0 f32 nhwc")
    monkeypatch.setattr(tune, "last_level_cache", lambda device: 2 * 144)  # and a set has 144 bytes
    sets = tune.operand_sets(pool, "dgrad", "cpu")
    given = [next(sets) for _ in range(5)]
    dy, argmax = given[0]
    assert dy.shape == argmax.shape == (1, 2, 3, 3)  # type: ignore[union-attr]
    assert dy.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    assert 0 <= argmax.min() <= argmax.max() < 36  # type: ignore[union-attr]
    addresses = [each[0].data_ptr() for each in given]  # type: ignore[union-attr]
    assert len(set(addresses[:4])) == 4
    assert addresses[4] == addresses[0]


def test_a_line_that_fails_is_left_out_and_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bind = tune.backends.bind

    def broken(kernel: Any, problem: Any) -> Any:
        if kernel.algorithm in broken_algorithms:
            raise MemoryError("no\nmemory")
        return bind(kernel, problem)

    monkeypatch.setattr(tune.backends, "bind", broken)
    broken_algorithms = ["im2col_gemm"]
    outcome = tune.measure(CONV, "fprop", "cpu", 0, False)
    assert (outcome.entry.kernel, outcome.failed) == (DIRECT, False)  # type: ignore[union-attr]
    assert f"{GEMM} fails: no memory; {NUMBA} about 50 ms" in str(outcome)
    broken_algorithms = ["im2col_gemm", "direct"]
    with pytest.raises(
        TuningError, match=r"^fprop of 'conv2d .*' could not be measured \(and 3 more\): conv"
    ):
        tune.tune([CONV], seconds=0)
    assert not cache.exists()


# ---- What is measured ----


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", models.MODELS)
def test_a_models_problems_are_those_of_its_calls(
    name: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = problems_of_model(name, 2, 16, 3, layout)
    called: list[Any] = []

    def record(problem: Any, device_type: str) -> Any:
        called.append(problem)
        return plan_for(problem, device_type)

    monkeypatch.setattr(functional, "plan_for", record)
    functional._plans.clear()
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    model = models.build(name, 3, 16, 10).to(memory_format=memory_format)  # type: ignore[call-overload]
    model(torch.randn(2, 3, 16, 16).contiguous(memory_format=memory_format))
    assert found == list(dict.fromkeys(called))
    assert {problem.layout for problem in found} == {layout}


def test_what_to_measure_is_a_problem_a_file_or_a_model(tmp_path: Path) -> None:
    path = tmp_path / "layers.txt"
    pool = "maxpool2d n2c3h8w8 r2s2 st2 pd0 f32 nhwc"
    path.write_text(f"# passes: call_grad\n\n{CONV}\n# again\n{CONV}\n{pool}\n")
    assert problems_of(str(CONV)) == [CONV]
    assert list(map(str, problems_of(str(path)))) == [str(CONV), pool]
    both = problems_of(str(path), ["nhwc", "nchw"], ["f32", "bf16"])
    assert len(both) == len(set(both)) == 8
    assert {(problem.layout, problem.dtype) for problem in both} == {
        (layout, dtype) for layout in ("nhwc", "nchw") for dtype in ("f32", "bf16")
    }
    before = torch.random.get_rng_state()
    of_model = problems_of("lenet5", dtypes=["f64"], batch_size=5, image_size=20, in_channels=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert isinstance(of_model[0], Conv2dProblem)
    assert str(of_model[0]).startswith("conv2d n5c1h20w20 ")
    assert {problem.dtype for problem in of_model} == {"f64"}
    path.write_text(f"{CONV}\nconv2d n2\n")
    with pytest.raises(UsageError, match=r"^MODEL_OR_SHAPES: layers\.txt:2: problem 'conv2d n2': no "):
        problems_of(str(path))


# ---- The file ----


def _add(path: Path, first: int, barrier: Any) -> None:
    for number in range(first, first + 20):
        barrier.wait()
        tuning_file.merge(path, [entry_of(problem=f"problem {number}")])


def test_processes_that_write_at_once_lose_nothing(cache: Path) -> None:
    path = tuning_store.writable_location()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_add, args=(path, 100 * each, barrier)) for each in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(tuning_file.read(path)) == 60
    assert sorted(each.name for each in path.parent.iterdir()) == [".measured.jsonl.lock", path.name]


HEAD = '{"format": "pyconv tuning", "version": 1}\n'


@given(data=st.data())
def test_any_bytes_are_measurements_or_one_line(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "file"
    tuning_file.write(path, {entry.key: entry for entry in (entry_of(), entry_of(pass_="dgrad"))})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        more = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\\ud800", b"NaN", b'"', b"\\u001b[2J", b"\n"])
        )
        content[place : place + data.draw(st.integers(0, 4))] = more
    path.write_bytes(content)
    entries: tuning_file.Entries = {}
    refusal = f"{path}: "
    try:
        entries = tuning_file.read(path)
    except TuningError as error:
        refusal = str(error)
    assert refusal.startswith(f"{path}: ")
    assert refusal.isprintable()
    for entry in entries.values():
        assert f"{entry.key} {entry}".isprintable()
        str(entry).encode()
    tuning_file.write(path, entries)
    assert tuning_file.read(path) == entries


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no file of measured kernels"),
        (b"\xff\xd8\xff\xe0", "no file of measured kernels"),
        (b"[" * 100_000, "no file of measured kernels"),
        (b"layers: 3\n", "no file of measured kernels"),
        (HEAD.replace("1", "2").encode(), "a format of version 2; this pyconv reads version 1"),
        (f"{HEAD}{{".encode(), "damaged, line 2 is no measurement"),
        (f"{HEAD}{'[' * 100_000}".encode(), "damaged, line 2 is no measurement"),
        (f"{HEAD}{{}}\n".encode(), "damaged, line 2 is no measurement"),
        ("unknown", "damaged, line 2"),
        ("threads", "damaged, line 2"),
        ("milliseconds", "damaged, line 2"),
        ("measured", "damaged, line 2"),
        ("kernel", "damaged, line 2"),
        (f"{HEAD}\n".encode(), "damaged, line 2"),
    ],
)
def test_a_file_of_something_else_is_told_once_and_never_replaced(
    cache: Path, content: bytes | str, message: str
) -> None:
    tuning_store.keep([entry_of()])
    if isinstance(content, str):  # a field of another type, or one that there is not
        fields = json.loads(cache.read_text().splitlines()[1]) | {content: {"x": "y"}}
        content = f"{HEAD}{json.dumps(fields)}\n".encode()
    cache.write_bytes(content)
    selection.forget()
    with pytest.warns(UserWarning, match="selection goes on without what was measured") as told:
        assert [chosen(), chosen(pass_="dgrad")] == [DIRECT, DIRECT.replace("fprop", "dgrad")]
    (warning,) = told
    assert f"{cache}: " in str(warning.message)
    assert message in str(warning.message)
    for call in (lambda: tuning_store.keep([entry_of()]), tuning_store.listing):
        with pytest.raises(TuningError, match=message):
            call()
    assert cache.read_bytes() == content
    tuning_store.clear()  # what is in the cache may be deleted
    assert chosen() == DIRECT


def test_the_environment_names_another_file_or_none(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning_store.keep([entry_of()])
    monkeypatch.setenv("PYCONV_TUNING", "off")
    selection.forget()
    assert chosen() == DIRECT
    with pytest.raises(TuningError, match="PYCONV_TUNING is off"):
        tuning_store.keep([entry_of()])
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"\x89PNG")
    monkeypatch.setenv("PYCONV_TUNING", str(photo))
    for call in (lambda: tuning_store.keep([entry_of()]), tuning_store.clear):
        with pytest.raises(TuningError, match=f"{photo}: no file of measured kernels"):
            call()  # type: ignore[no-untyped-call]
    assert photo.read_bytes() == b"\x89PNG"
    mine = tmp_path / "mine.jsonl"
    link = tmp_path / "link.jsonl"
    link.symlink_to(mine)
    monkeypatch.setenv("PYCONV_TUNING", str(link))
    selection.forget()
    tuning_store.keep([entry_of()])
    assert chosen() == GEMM
    assert link.is_symlink()
    assert len(tuning_file.read(mine)) == 1


def test_a_folder_that_others_can_fill_is_not_used(cache: Path) -> None:
    tuning_store.keep([entry_of()])
    cache.parent.chmod(0o777)
    selection.forget()
    with pytest.warns(UserWarning, match=f"{cache}: not used, since {cache.parent} can be written by every"):
        assert chosen() == DIRECT
    with pytest.raises(TuningError, match="can be written by everybody"):
        tuning_store.keep([entry_of()])


def test_who_has_no_place_to_keep_it_computes_in_peace(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name, value in (("PYCONV_CACHE", "/dev/null/nowhere"), ("PYCONV_CACHE", "~/cache")):
        monkeypatch.setenv(name, value)
        if "~" in value:
            monkeypatch.setattr(Path, "expanduser", homeless)
        selection.forget()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert chosen() == DIRECT
    assert cli.main(["tune", str(CONV)]) == 1
    assert capsys.readouterr().err == (
        "error: no place for what is measured (Could not determine home directory.); PYCONV_TUNING or "
        "PYCONV_CACHE names one\n"
    )


def test_the_newest_measurement_stays(cache: Path) -> None:
    old, new = (entry_of(kernel, f"2026-01-0{day}T00:00:00Z") for kernel, day in ((GEMM, 1), (DIRECT, 2)))
    for order in ([old, new], [new, old]):
        assert list(tuning_file.newest({}, order).values()) == [new]
        tuning_store.keep(order[:1])
        tuning_store.keep(order[1:])
        assert list(tuning.entries().values()) == [new]


# ---- The command ----


def test_the_command_measures_lists_copies_and_deletes(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*arguments: str) -> list[str]:
        assert cli.main(["tune", *arguments]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out.splitlines()

    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    lines = said(str(CONV), "--seconds", "0", "--layouts", "nhwc, nchw")
    assert lines[0] == str(CONV).replace("nchw", "nhwc")
    assert lines[6].startswith(f"  fprop: {GEMM} tuned: 1 ms, 3.00x as fast as the untuned choice direct, me")
    assert lines[6].endswith(f"; {DIRECT} 3 ms; {NUMBA} about 50 ms")
    assert lines[-1] == f"{cache}: 8 measurements kept"
    lines = said("--show")
    assert sum(line.startswith("  fprop: ") for line in lines) == 2
    assert lines[-1] == f"{cache}: 8 measurements for this machine and these versions, 0 for others"
    copy = tmp_path / "copy.jsonl"
    assert said("--export", str(copy)) == [f"{copy}: 8 measurements"]
    assert said("--clear") == [f"{cache}: 8 measurements deleted"]
    assert chosen() == DIRECT
    assert said("--import", str(copy)) == [f"{cache}: 8 measurements of {copy} added"]
    assert chosen() == GEMM
    assert copy.read_bytes() == cache.read_bytes()
    said(str(CONV), "--seconds", "0", "--precision", "exact", "--workspace-limit", "5", "--no-tf32")
    assert (pyconv.get_workspace_limit(), pyconv.get_algorithm_precision()) == (None, "standard")
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 0.0, 0.0))
    assert said(str(CONV), "--seconds", "0")[0].startswith("this machine is busy (load 1000000.0 on ")


def test_what_cannot_be_kept_is_measured_and_told(
    monkeypatch: pytest.MonkeyPatch, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYCONV_CACHE", "/dev/null/nowhere")
    selection.forget()
    with pytest.warns(UserWarning, match="measuring goes on") as told:
        assert cli.main(["tune", str(CONV), "--seconds", "0", "--layouts", "nchw,nhwc"]) == 1
    assert len(told) == 1
    captured = capsys.readouterr()
    assert captured.out.count(f"  fprop: {GEMM} tuned: 1 ms") == 2
    assert captured.err == (
        "error: what was measured is not kept: /dev/null/nowhere/tuning/measured.jsonl: cannot be written "
        "(Not a directory)\n"
    )


def test_a_full_disk_leaves_the_old_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning_store.keep([entry_of()])
    before = cache.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TuningError, match=r"cannot be written \(No space left on device\)"):
        tuning_store.keep([entry_of(problem="another")])
    assert cache.read_bytes() == before
    assert sorted(each.name for each in cache.parent.iterdir()) == [".measured.jsonl.lock", cache.name]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "one of MODEL_OR_SHAPES, --show, --clear, --export, --import is needed; given: none"),
        (["lenet5", "--show"], 2, "is needed; given: MODEL_OR_SHAPES, --show"),
        (["lenet"], 2, "MODEL_OR_SHAPES: unknown name 'lenet'; did you mean lenet5? (known: convnet-tiny"),
        (["no/such/file"], 2, "MODEL_OR_SHAPES: no file no/such/file"),
        (["shapes.txt"], 2, "MODEL_OR_SHAPES: no file shapes.txt"),
        (["{tmp}"], 2, "MODEL_OR_SHAPES: no file {tmp}"),
        (["{tmp}/empty.txt"], 2, "MODEL_OR_SHAPES: {tmp}/empty.txt holds no problem"),
        (["conv2d n8"], 2, "MODEL_OR_SHAPES: problem 'conv2d n8': no c, h, k, r, s, w"),
        (["lenet5", "--device", "gpu"], 2, "--device: unknown name 'gpu'"),
        (["lenet5", "--layouts", "nchw,ncwh"], 2, "--layouts: unknown name 'ncwh'; did you mean nchw"),
        (["lenet5", "--dtypes", "fp32"], 2, "--dtypes: unknown name 'fp32'; did you mean f32"),
        (["lenet5", "--batch-size", "0"], 2, "--batch-size: 0 given; 1 or more is needed"),
        (["lenet5", "--image-size", "4"], 2, "--model: lenet5 needs images of at least 12x12"),
        ([str(CONV), "--image-size", "4"], 2, "--image-size: only with a model (convnet-tiny"),
        (["lenet5", "--seconds", "-1"], 2, "--seconds: -1.0 given; 0 or more is needed"),
        (["lenet5", "--seconds", "nan"], 2, "--seconds: nan given; 0 or more is needed"),
        (["lenet5", "--precision", "fats"], 2, "--precision: unknown name 'fats'; did you mean fast"),
        (["lenet5", "--workspace-limit", "-1"], 2, "--workspace-limit: -1 given; 0 or more is needed"),
        (["--import", "{tmp}/none"], 1, "{tmp}/none: no such file"),
        (["--import", "{tmp}/empty.txt"], 1, "{tmp}/empty.txt: no file of measured kernels"),
        (["--import", "{tmp}"], 1, "{tmp}: cannot be read (Is a directory)"),
        (["--export", "{tmp}/empty.txt"], 1, "{tmp}/empty.txt: exists already"),
        (
            ["--export", "{tmp}/none/file"],
            1,
            "{tmp}/none/file: cannot be written (No such file or directory)",
        ),
    ],
)
def test_what_the_user_can_put_right_is_one_line(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], status: int, message: str,
) -> None:  # fmt: skip
    (tmp_path / "empty.txt").write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.main(["tune", *(word.format(tmp=tmp_path) for word in arguments)]) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message.format(tmp=tmp_path) in error
    assert not cache.exists()


def test_tuning_that_is_off_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["lenet5"], ["--show"], ["--clear"]):
        assert cli.main(["tune", *arguments]) == 2
        assert capsys.readouterr().err.startswith("error: PYCONV_TUNING is off; unset, or the name of a file")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no CUDA device")
def test_a_gpu_that_is_not_there_is_one_line(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "lenet5", "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: --device: cuda given, and torch finds no such device here\n"
