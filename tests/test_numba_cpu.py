"""Backend numba-cpu: its threads, forks, and cache on disk.

What could end or hang a process runs in one of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pyconv.kernels.common.numba_cpu import kernel
from pyconv.kernels.maxpool2d import dgrad_numba_cpu

from pyconv import parse_problem, registry
from pyconv.backends import bind, numba_cpu_cache
from pyconv.problem import DTYPES
from pyconv.registry import Kernel
from tests.test_threads import _operands

ROOT = Path(__file__).resolve().parent.parent
LINES = [line for line in registry.kernels() if line.backend == "numba-cpu"]

#: A forward and a backward, small; on two threads if told so, however little there is to do.
STEP = """
import os, sys, threading, warnings
import torch, pyconv
from pyconv.backends import numba_cpu
torch.set_num_threads(2)
numba_cpu.WORK_OF_A_THREAD = 1
g = torch.Generator().manual_seed(0)
X, W, B = (torch.randn(s, generator=g) for s in ((4, 8, 17, 15), (16, 8, 3, 3), (16,)))
def forward(x=X, w=W, b=B):
    return pyconv.max_pool2d(pyconv.conv2d(x, w, b, padding=1), 3, 2, 1)
def step():
    leaves = [t.clone().requires_grad_() for t in (X, W, B)]
    y = forward(*leaves)
    y.square().sum().backward()
    return [y.detach(), *(t.grad for t in leaves)]
def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
EXPECTED = step()
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYCONV_")}
    chosen = {"PYCONV_CACHE": str(numba_cpu_cache.folder().parents[1]), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**clean, **chosen}
    )


def run(code: str, **environment: str) -> str:
    done = python(code, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _run_numba(code: str, **environment: str) -> str:
    return run(code, PYCONV_BACKEND="numba-cpu", **environment)


# ---- Threads ----


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.id)
def test_bits_do_not_depend_on_the_number_of_threads(line: Kernel, threads: Callable[[int], None]) -> None:
    """On problems of more work than one thread is given."""
    texts = ["n4c8h33w31 k16r3s3 st1 pd1 f32 nchw", "n3c8h33w31 k16r3s3 st2 pd1 g2 f32 nhwc"]
    if line.operation == "maxpool2d":
        texts = ["n4c32h65w63 r3s3 st1 pd1 f32 nchw", "n4c32h65w63 r3s3 st2 pd1 f32 nhwc"]
    for text in texts:
        problem = parse_problem(f"{line.operation} {text}")
        operands, launch = _operands(line, str(problem)), bind(line, problem)
        results = []
        for count in (1, 2, 3, 1):
            threads(count)
            result = launch(*operands)
            results.append(result if isinstance(result, tuple) else (result,))
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True)), str(problem)


def test_calls_and_backwards_from_several_python_threads_at_once() -> None:
    """Numba's workqueue ends the process if two enter it at once. What the program set for itself stays."""
    code = STEP + (
        "import numba, re\n"
        "numba.set_num_threads(1)\n"
        "wrong = []\n"
        "def work():\n"
        "    for _ in range(25):\n"
        "        if not same(step(), EXPECTED): wrong.append(1)\n"
        "workers = [threading.Thread(target=work) for _ in range(4)]\n"
        "[w.start() for w in workers]; step(); [w.join() for w in workers]\n"
        "maps = open('/proc/self/maps').read()\n"
        "runtimes = {os.path.realpath(path) for path in re.findall(r'\\S*/lib[gi]*omp\\S*', maps)}\n"
        "settings = numba.config.THREADING_LAYER, numba.get_num_threads()\n"
        "print(len(wrong), numba_cpu.threading_layer(), *settings, len(runtimes))"
    )
    wrong, layer, setting, own, runtimes = _run_numba(code).split()
    assert wrong == "0"
    assert layer in ("workqueue", "tbb")
    assert (setting, own) == ("default", "1")
    assert runtimes == "1", "a second OpenMP beside torch's"


def test_without_taking_turns_the_process_would_end() -> None:
    """That the test above can fail: the same without our lock."""
    code = STEP + (
        "if numba_cpu.threading_layer() != 'workqueue': sys.exit(250)\n"
        "import contextlib\n"
        "numba_cpu._threads.turn = contextlib.nullcontext()\n"
        "workers = [threading.Thread(target=lambda: [step() for _ in range(400)]) for _ in range(4)]\n"
        "[w.start() for w in workers]; [w.join() for w in workers]"
    )
    done = python(code, PYCONV_BACKEND="numba-cpu")
    if done.returncode == 250:
        pytest.skip("the threads here are TBB's, which need no turns")
    assert done.returncode < 0
    assert "Concurrent access" in done.stderr


# ---- Forks ----


def test_forks_after_use_and_while_another_thread_computes() -> None:
    """Workers of a DataLoader; then children forked beside a computing thread, which a fork waits for."""
    code = STEP + (
        "from torch.utils.data import DataLoader, Dataset\n"
        "class Data(Dataset):\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, i): return forward(X[i % 4])\n"
        "expected = torch.stack([forward(X[i % 4]) for i in range(8)])\n"
        "loader = DataLoader(Data(), 2, num_workers=2, multiprocessing_context='fork', timeout=120)\n"
        "assert torch.equal(torch.cat(list(loader)), expected)\n"
        "assert same(step(), EXPECTED)\n"  # the parent still has its threads
        "stop = threading.Event()\n"
        "def work():\n"
        "    while not stop.is_set(): assert same(step(), EXPECTED)\n"
        "worker = threading.Thread(target=work); worker.start()\n"
        "with torch.no_grad(): y = forward()\n"
        "warnings.simplefilter('ignore')\n"
        "for _ in range(20):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        with torch.no_grad(): os._exit(0 if torch.equal(forward(), y) else 3)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "stop.set(); worker.join()\n"
        "assert same(step(), EXPECTED); print(numba_cpu.threading_layer())"
    )
    assert _run_numba(code).strip() in ("workqueue", "tbb")


def test_a_child_of_a_parent_that_never_computed_has_threads_of_its_own() -> None:
    """And they are those that the user asked for."""
    code = STEP.replace("EXPECTED = step()", "") + (
        "child = os.fork()\n"
        "if child == 0:\n"
        "    with torch.no_grad(): forward(); forward()\n"
        "    os._exit(0 if numba_cpu.threading_layer() == 'workqueue' else 3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert _run_numba(code, NUMBA_THREADING_LAYER="workqueue").strip() == "0"


# ---- The cache ----


def _gather(dtype: str = "f32") -> str:
    """Runs the smallest kernel as if for the first time. Was its machine code read, or made?"""
    fresh = kernel(dgrad_numba_cpu.gather.serial.py_func)
    x = torch.arange(16, dtype=DTYPES[dtype]).view(1, 1, 4, 4)
    argmax = torch.tensor([[[[0, 3], [-1, 15]]]], dtype=torch.int32)
    problem = parse_problem(f"maxpool2d n1c1h4w4 r2s2 st2 {dtype} nchw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dgrad_numba_cpu, "gather", fresh)
        y = bind(registry.find("maxpool2d.gather.direct@numba-cpu"), problem)(x, argmax)
    assert y.flatten().tolist() == [0, 3, 0, 15]
    return "made" if fresh.serial.stats.cache_misses or not fresh.serial.stats.cache_hits else "read"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYCONV_CACHE", str(tmp_path))
    return tmp_path


def test_machine_code_is_kept_and_read_again(place: Path) -> None:
    assert [_gather(), _gather(), _gather("f64"), _gather("f64")] == ["made", "read", "made", "read"]


def test_a_damaged_entry_is_made_anew(place: Path) -> None:
    _gather()
    (entry,) = (place / "numba-cpu").rglob("*.nbc")
    entry.write_bytes(entry.read_bytes()[:100])
    with pytest.warns(UserWarning, match="they are made anew"):
        assert _gather() == "made"
    assert _gather() == "read"


def test_several_processes_fill_one_folder(place: Path) -> None:
    """Each makes what the others have not made yet, and none takes another's entry for its own."""
    code = "from tests.test_numba_cpu import _gather; print(_gather({!r}))"
    environment = {**os.environ, "PYCONV_CACHE": str(place)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(dtype)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for dtype in ("f32", "f64", "f32")
    ]
    said = [process.communicate(timeout=300)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sorted(said) == ["made", "made", "read"]
    assert [_gather(), _gather("f64")] == ["read", "read"]


def test_a_folder_that_cannot_be_written_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCONV_CACHE", "/dev/null/nowhere")
    numba_cpu_cache._disk.cache_clear()
    with pytest.warns(UserWarning, match=r"cannot be made .*PYCONV_CACHE names another folder"):
        assert _gather() == "made"


def test_the_folder_is_named_after_every_source() -> None:
    root = ROOT / "kernels"
    sources = sorted(root.rglob("*numba_cpu.py"))
    assert root / "common" / "numba_cpu.py" in sources
    assert {root / line.source for line in LINES} <= set(sources)
