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

import pyconv
from pyconv import parse_problem, registry
from pyconv.backends import bind, numba_cpu_cache
from pyconv.registry import Kernel
from tests.test_threads import _operands

LINES = [kernel for kernel in registry.kernels() if kernel.backend == "numba-cpu"]

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


# ---- Threads ----


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("kernel", LINES, ids=lambda k: k.id)
def test_bits_do_not_depend_on_the_number_of_threads(kernel: Kernel, threads: Callable[[int], None]) -> None:
    """On problems of more work than one thread is given."""
    texts = ["n4c8h33w31 k16r3s3 st1 pd1 f32 nchw", "n3c8h33w31 k16r3s3 st2 pd1 g2 f32 nhwc"]
    if kernel.operation == "maxpool2d":
        texts = ["n4c32h65w63 r3s3 st1 pd1 f32 nchw", "n4c32h65w63 r3s3 st2 pd1 f32 nhwc"]
    for text in texts:
        problem = parse_problem(f"{kernel.operation} {text}")
        operands, launch = _operands(kernel, str(problem)), bind(kernel, problem)
        results = []
        for count in (1, 2, 3, 1):
            threads(count)
            result = launch(*operands)
            results.append(result if isinstance(result, tuple) else (result,))
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True)), str(problem)


def test_the_threads_are_ones_that_survive_beside_torchs() -> None:
    code = STEP + (
        "import numba, re; print(numba_cpu.threading_layer(), numba.config.THREADING_LAYER)\n"
        "maps = open('/proc/self/maps').read()\n"
        "print(len({os.path.realpath(path) for path in re.findall(r'\\S*/lib[gi]*omp\\S*', maps)}))"
    )
    layer, setting, runtimes = run(code, PYCONV_BACKEND="numba-cpu").split()
    assert layer in ("workqueue", "tbb")
    assert setting == "default", "the program's own setting is left as it was"
    assert runtimes == "1", "a second OpenMP beside torch's"


def test_a_layer_that_the_user_chose_is_kept() -> None:
    code = STEP + "print(numba_cpu.threading_layer())"
    out = run(code, PYCONV_BACKEND="numba-cpu", NUMBA_THREADING_LAYER="workqueue")
    assert out.strip() == "workqueue"


def test_the_users_own_number_of_threads_is_left_alone() -> None:
    code = STEP + "import numba; numba.set_num_threads(1); step(); print(numba.get_num_threads())"
    assert run(code, PYCONV_BACKEND="numba-cpu", NUMBA_NUM_THREADS="2").strip() == "1"


def test_calls_and_backwards_from_several_python_threads_at_once() -> None:
    """Numba's workqueue ends the process if two enter it at once."""
    code = STEP + (
        "wrong = []\n"
        "def work():\n"
        "    for _ in range(25):\n"
        "        if not same(step(), EXPECTED): wrong.append(1)\n"
        "workers = [threading.Thread(target=work) for _ in range(4)]\n"
        "[w.start() for w in workers]; [w.join() for w in workers]\n"
        "print(len(wrong), numba_cpu.threading_layer())"
    )
    assert run(code, PYCONV_BACKEND="numba-cpu").split()[0] == "0"


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


def test_dataloader_workers_forked_after_use() -> None:
    code = STEP + (
        "class Data(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, i): return forward(X[i % 4])\n"
        "expected = torch.stack([forward(X[i % 4]) for i in range(8)])\n"
        "from torch.utils.data import DataLoader\n"
        "loader = DataLoader(Data(), 2, num_workers=2, multiprocessing_context='fork', timeout=120)\n"
        "assert torch.equal(torch.cat(list(loader)), expected)\n"
        "assert torch.equal(torch.cat(list(loader)), expected)\n"
        "assert same(step(), EXPECTED)\n"  # the parent still has its threads
        "print(numba_cpu.threading_layer())"
    )
    assert run(code, PYCONV_BACKEND="numba-cpu").strip() in ("workqueue", "tbb")


def test_forks_while_another_thread_computes() -> None:
    """A fork waits for the call that is running. The children compute, and so does the parent."""
    code = STEP + (
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
        "assert same(step(), EXPECTED); print('done')"
    )
    assert run(code, PYCONV_BACKEND="numba-cpu").strip() == "done"


def test_a_child_of_a_parent_that_never_computed_has_threads_of_its_own() -> None:
    code = STEP.replace("EXPECTED = step()", "") + (
        "child = os.fork()\n"
        "if child == 0:\n"
        "    with torch.no_grad(): forward(); forward()\n"
        "    os._exit(0 if numba_cpu.threading_layer() else 3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert run(code, PYCONV_BACKEND="numba-cpu").strip() == "0"


# ---- The cache ----

#: The smallest kernel; tells whether its machine code was read or made.
GATHER = """
import torch, pyconv, warnings
from pyconv.backends import bind, numba_cpu_cache
from pyconv.registry import find
torch.set_num_threads(1)
x, argmax = torch.arange(16.).view(1, 1, 4, 4), torch.tensor([[[[0, 3], [-1, 15]]]], dtype=torch.int32)
kernel = find("maxpool2d.gather.direct@numba-cpu")
y = bind(kernel, pyconv.parse_problem("maxpool2d n1c1h4w4 r2s2 st2 f32 nchw"))(x, argmax)
assert y.flatten().tolist() == [0, 3, 0, 15], y
from pyconv.kernels.maxpool2d.dgrad_numba_cpu import gather
stats = gather.serial.stats
print("read" if stats.cache_hits and not stats.cache_misses else "made")
"""


def test_machine_code_is_kept_and_read_by_the_next_process(tmp_path: Path) -> None:
    assert run(GATHER, PYCONV_CACHE=str(tmp_path)).strip() == "made"
    assert run(GATHER, PYCONV_CACHE=str(tmp_path)).strip() == "read"
    (entry,) = (tmp_path / "numba-cpu").rglob("*.nbc")
    entry.write_bytes(entry.read_bytes()[:100])  # damaged
    done = python(GATHER, PYCONV_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "they are made anew" in done.stderr
    assert run(GATHER, PYCONV_CACHE=str(tmp_path)).strip() == "read"


def test_several_processes_fill_one_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYCONV_CACHE": str(tmp_path)}
    codes = [GATHER, GATHER.replace("f32", "f64").replace("4, 4),", "4, 4).double(),")] * 2
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for code in codes
    ]
    said = [process.communicate(timeout=300)[0].strip() for process in running]
    assert all(process.returncode == 0 for process in running)
    assert sorted(said) == ["made", "made", "read", "read"]
    assert [run(code, PYCONV_CACHE=str(tmp_path)).strip() for code in codes[:2]] == ["read", "read"]


def test_a_folder_that_cannot_be_written_is_no_obstacle() -> None:
    done = python(GATHER, PYCONV_CACHE="/dev/null/nowhere")
    assert (done.returncode, done.stdout.strip()) == (0, "made"), done.stderr
    assert "cannot be made" in done.stderr
    assert "PYCONV_CACHE names another folder" in done.stderr


def test_the_folder_is_named_after_every_source() -> None:
    root = Path(pyconv.__file__).resolve().parent.parent / "kernels"
    sources = sorted(root.rglob("*numba_cpu.py"))
    assert root / "common" / "numba_cpu.py" in sources
    assert {root / kernel.source for kernel in LINES} <= set(sources)
