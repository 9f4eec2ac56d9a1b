"""Threads, processes, the profiler, and what importing pyconv costs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset

import pyconv
from pyconv import registry, selection
from pyconv.backends import bind, cpu
from pyconv.registry import Kernel

_generator = torch.Generator().manual_seed(0)  # the same in a spawned worker
X, W, B = (torch.randn(s, generator=_generator) for s in ((4, 8, 33, 31), (16, 8, 3, 3), (16,)))
PROBLEMS = [
    "conv2d n4c8h33w31 k16r3s3 st1 pd1 f32 nchw",
    "conv2d n3c8h33w31 k16r3s3 st2 pd1 g2 f64 nhwc",
    "conv2d n4c24h33w31 k24r3s3 st1 pd1 g24 f32 nchw",
    "maxpool2d n4c8h33w31 r3s3 st2 pd1 f32 nchw",
    "maxpool2d n4c8h33w31 r2s2 st1 f64 nhwc",
]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _step(x: Tensor = X, w: Tensor = W, b: Tensor = B) -> list[Tensor]:
    """A forward and a backward through both operators."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, w, b)]
    y = pyconv.max_pool2d(pyconv.conv2d(*leaves, padding=1), 3, 2, 1)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


def _operands(kernel: Kernel, text: str) -> tuple[Tensor | None, ...]:
    problem = pyconv.parse_problem(text)
    generator = torch.Generator().manual_seed(1)

    def randn(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=problem.torch_dtype, generator=generator)

    x, y = randn(problem.x_shape), randn(problem.y_shape)
    if isinstance(problem, pyconv.Conv2dProblem):
        w = randn(problem.w_shape)
        operands = {"fprop": (x, w, None), "dgrad": (y, w), "wgrad": (x, y), "bgrad": (y,)}
    else:
        (chosen,) = [k for k in registry.kernels("maxpool2d", "fprop_argmax") if k.backend == "aten"]
        argmax = bind(chosen, problem)(x)[1]
        operands = {"fprop": (x,), "fprop_argmax": (x,), "dgrad": (y, argmax), "gather": (x, argmax)}
    return operands[kernel.pass_]


# ---- Threads ----


@pytest.mark.parametrize(
    "kernel", [k for k in registry.kernels() if k.backend == "cpu" and k.deterministic], ids=lambda k: k.id
)
def test_bits_do_not_depend_on_the_number_of_threads(kernel: Kernel, threads: Callable[[int], None]) -> None:
    tried = 0
    for text in PROBLEMS:
        problem = pyconv.parse_problem(text)
        if not text.startswith(kernel.operation) or kernel.supports(problem) is not None:
            continue
        operands, launch = _operands(kernel, text), bind(kernel, problem)
        results = []
        for count in (1, 2, 3, 7, 1):
            threads(count)
            results.append(launch(*operands))
        for result in results[1:]:
            pairs = zip(*((r if isinstance(r, tuple) else (r,)) for r in (result, results[0])), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), (kernel.id, text)
        tried += 1
    assert tried > 0, f"no problem of the list fits {kernel.id}"


def test_a_step_does_not_depend_on_the_number_of_threads(threads: Callable[[int], None]) -> None:
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(_step())
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def _threads_used(count: int) -> int:
    """The threads that ran on the processor during convolutions under ``torch.set_num_threads(count)``."""
    code = f"""
import glob, torch, pyconv
torch.set_num_threads({count})
x, w = torch.randn(8, 32, 64, 64), torch.randn(32, 32, 3, 3)
def busy():
    times = {{}}
    for path in glob.glob('/proc/self/task/*/stat'):
        fields = open(path).read().rsplit(')', 1)[1].split()
        times[path] = int(fields[11]) + int(fields[12])
    return times
before = busy()
for _ in range(60):
    pyconv.conv2d(x, w, padding=1)
after = busy()
print(sum(after[path] - before.get(path, 0) > 2 for path in after))
"""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return int(out.stdout)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_set_num_threads_is_obeyed() -> None:
    assert _threads_used(1) == 1
    assert _threads_used(2) == 2


def test_calls_from_several_python_threads_at_once(threads: Callable[[int], None]) -> None:
    threads(2)
    expected = _step()
    wrong: list[str] = []

    def work() -> None:
        try:
            for _ in range(10):
                if not all(torch.equal(a, b) for a, b in zip(_step(), expected, strict=True)):
                    wrong.append("other bits")
        except Exception as error:
            wrong.append(repr(error))

    pyconv.functional._plans.clear()  # they also race to make the plans
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert not any(worker.is_alive() for worker in workers)
    assert wrong == []


def test_choices_are_of_one_thread(threads: Callable[[int], None]) -> None:
    names: dict[str, str] = {}
    meet = threading.Barrier(2, timeout=60)

    def work(name: str) -> None:
        with pyconv.use(name):
            meet.wait()
            names[name] = selection.select(pyconv.parse_problem(PROBLEMS[0]), "fprop").backend
            meet.wait()

    workers = [threading.Thread(target=work, args=(name,)) for name in ("aten", "cpu")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert names == {"aten": "aten", "cpu": "cpu"}


# ---- Processes ----


class _Convolved(Dataset[Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return pyconv.max_pool2d(pyconv.conv2d(X[index % 4], W, B, 1, 1), 2)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dataloader_workers_after_a_parallel_parent(context: str, threads: Callable[[int], None]) -> None:
    threads(3)
    _step()  # the parent's pool is up before the fork
    expected = torch.stack([_Convolved()[i] for i in range(8)])
    loader = DataLoader(_Convolved(), 2, num_workers=2, timeout=120, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), expected)
    assert all(torch.equal(a, b) for a, b in zip(_step(), _step(), strict=True))  # the parent still works


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_convolves(threads: Callable[[int], None]) -> None:
    """After the parent ran parallel; the child stays on one thread, as torch's own operators need it."""
    threads(2)
    expected = _step()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            status = 0 if all(torch.equal(a, b) for a, b in zip(_forward(), _forward(), strict=True)) else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert all(torch.equal(a, b) for a, b in zip(_step(), expected, strict=True))


def _forward() -> list[Tensor]:
    with torch.no_grad():
        y = pyconv.conv2d(X, W, B, padding=1)
        return [y, pyconv.max_pool2d(y, 2)]


def test_one_openmp_runtime() -> None:
    """The library shares torch's OpenMP: a second one would ignore ``set_num_threads``."""
    code = (
        "import pyconv, torch; pyconv.conv2d(torch.ones(2, 4, 32, 32), torch.ones(4, 4, 3, 3));"
        "print(open('/proc/self/maps').read())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mapped = set(re.findall(r"\S*/lib[gi]*omp\S*", out.stdout))
    assert len({os.path.realpath(path) for path in mapped}) == 1, mapped
    assert cpu.LIBRARY.name in out.stdout


# ---- The profiler ----


def test_the_profiler_names_every_kernel() -> None:
    _step()
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        _step()
        with torch.no_grad():
            pyconv.max_pool2d(X, 3, 2, 1)
    # "pyconv::" begins the registered operators' own events.
    names = [event.name for event in prof.events() if re.match("pyconv:[^:]", event.name)]
    conv = pyconv.parse_problem("conv2d n4c8h33w31 k16r3s3 st1 pd1 f32 nchw")
    pool = pyconv.parse_problem("maxpool2d n4c16h33w31 r3s3 st2 pd1 f32 nchw")
    expected = [f"pyconv:{selection.select(conv, p).id}" for p in ("fprop", "dgrad", "wgrad", "bgrad")]
    expected += [f"pyconv:{selection.select(pool, p).id}" for p in ("fprop_argmax", "dgrad", "fprop")]
    assert sorted(names) == sorted(expected)


@pytest.mark.parametrize("algorithm", ["direct", "im2col_gemm", "aten"])
def test_the_profiler_names_the_algorithm_in_use(algorithm: str) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as prof, pyconv.use(algorithm), torch.no_grad():
        pyconv.conv2d(X, W)
    backend = "aten" if algorithm == "aten" else "cpu"
    names = {event.name for event in prof.events()}
    assert f"pyconv:conv2d.fprop.{algorithm}@{backend}" in names


def test_no_profiler_no_record() -> None:
    pyconv.conv2d(X, W)
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        torch.ones(1) + 1
    assert not [event.name for event in prof.events() if event.name.startswith("pyconv")]


# ---- Importing ----


def test_importing_pyconv_is_light() -> None:
    """It brings nothing beyond torch, and takes a fraction of the time that torch itself takes."""
    code = """
import sys, time
t0 = time.process_time(); import torch, torch.nn, torch.library; t1 = time.process_time()
before = set(sys.modules)
import pyconv; t2 = time.process_time()
new = {name.partition('.')[0] for name in set(sys.modules) - before}
unwanted = 'lightning matplotlib torchmetrics tensorboard sklearn typer PIL numba cupy'.split()
heavy = new & set(unwanted)
print(sorted(heavy), t2 - t1, t1 - t0)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, ours, torchs = re.fullmatch(r"(\[.*\]) (\S+) (\S+)\n", out.stdout).groups()  # type: ignore[union-attr]
    assert heavy == "[]"
    assert float(ours) < max(0.5 * float(torchs), 1.0), f"pyconv {ours} s, torch {torchs} s of processor time"


def test_the_registered_operators_work_after_import_alone() -> None:
    code = (
        "import torch, pyconv; op = torch.ops.pyconv.conv2d_bgrad;"
        "print(op(torch.ones(2, 3, 4, 4), False, 'conv2d.bgrad.direct').tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[32.0, 32.0, 32.0]"
