"""The gates of the Numba kernels: compiled for real architectures on a machine without a GPU.

Numba's simulator and the emulator accept kernels that compilation for a GPU rejects. Every kernel of the
table's Numba lines is compiled by Numba and NVVM to PTX and from there by nvJitLink, which has ptxas in it,
to a cubin; that is read and held to the rules that hold for CUDA C++ (:mod:`pyconv.gates.rules`): no spills,
no sums by float atomics, a launch that fits, and the instructions that its step promises.

::

    python -m pyconv.gates.numba_kernels                    check all, and write kernels/RESOURCES_NUMBA.md
    python -m pyconv.gates.numba_kernels --only gemm        check some

Needs numba, numba-cuda, nvidia-nvvm, nvidia-nvjitlink and cuda-bindings besides what the other gates need.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pyconv.backends import numba_gpu, numba_program, numba_rewrite
from pyconv.backends.nvrtc import Image
from pyconv.backends.program import Argument, Step, View
from pyconv.backends.sources import KERNELS
from pyconv.gates import compiling, cubin
from pyconv.gates.architectures import ARCHITECTURES, Architecture
from pyconv.gates.cubin import Usage
from pyconv.gates.instantiations import Instantiation
from pyconv.gates.rules import faults
from pyconv.problem import Conv2dProblem, Pool2dProblem, Problem, parse_problem
from pyconv.registry import Kernel, kernels

#: Architecture -> compute capability.
CAPABILITIES = {"sm_80": (8, 0), "sm_90a": (9, 0)}

#: One for each way that a kernel can be launched; the kinds of its arguments are what it is compiled for.
PROBLEMS = {
    "conv2d": ("conv2d n32c64h56w56 k64r3s3 st1 pd1", "conv2d n32c256h56w56 k64r1s1 st1 pd0"),
    "maxpool2d": ("maxpool2d n32c64h112w112 r3s3 st2 pd1",),
}

PAGE = KERNELS / "RESOURCES_NUMBA.md"

_PACKAGES = ("numba", "numba-cuda", "nvidia-nvvm", "nvidia-nvjitlink")


@dataclass(frozen=True)
class NumbaKernel:
    """A kernel for arguments of certain kinds, and one step that launches it.

    Attributes:
        kinds: Of its arguments: ``f32 4C`` is an array of float32 with four indices and no gaps, ``f32 4A``
        one
            with any strides.
    """

    step: Step = field(compare=False)
    kinds: tuple[str, ...]
    source: str
    kernel: str
    line: str = field(compare=False)
    problem: Problem = field(compare=False)

    @property
    def name(self) -> str:
        return f"{self.kernel}: {', '.join(kind for kind in self.kinds if ' ' in kind)}"


def missing() -> str | None:
    """What there is not on this machine to compile Numba kernels with, or ``None``."""
    for module in ("numba", "numba_cuda", "cuda.bindings"):
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(module) is not None:
                continue
        return f"no {module}"
    for package in _PACKAGES:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            return f"no {package} (pip install {package})"
    try:
        cubin.tool("cuobjdump"), cubin.tool("nvdisasm")
    except FileNotFoundError as error:
        return str(error)
    return None


def numba_kernels(lines: Iterable[Kernel] | None = None) -> list[NumbaKernel]:
    """What the Numba lines of the table launch, each kernel once for each kind of arguments."""
    found: dict[NumbaKernel, None] = {}
    for line in [line for line in kernels() if line.backend == "numba"] if lines is None else lines:
        assert line.program is not None, f"{line.id} has no program"
        for text in PROBLEMS[line.operation]:
            for dtype in line.dtypes:
                for layout in line.layouts:
                    problem = parse_problem(f"{text} {dtype} {layout}")
                    steps = line.program(problem).steps if line.supports(problem) is None else ()
                    for step in steps:
                        kinds = tuple(map(_kind, step.arguments))
                        found.setdefault(
                            NumbaKernel(step, kinds, step.source, step.kernel, line.name, problem)
                        )
    return list(found)


def _kind(argument: Argument) -> str:
    if isinstance(argument, View):
        is_dense = argument.strides == numba_program.dense(argument.shape, range(len(argument.shape)))
        return f"{argument.dtype} {len(argument.shape)}{'C' if is_dense else 'A'}"
    if isinstance(argument, (Conv2dProblem, Pool2dProblem)):
        argument = numba_program.numbers(argument)
    return type(argument).__name__


# ---- Compiling


def _type(argument: Argument) -> Any:
    from numba import types

    array: Any = types.Array
    if isinstance(argument, View):
        element = {"f32": types.float32, "f64": types.float64, "f16": types.float16, "i32": types.int32}
        return array(element[argument.dtype], len(argument.shape), _kind(argument)[-1])
    if isinstance(argument, (Conv2dProblem, Pool2dProblem)):
        argument = numba_program.numbers(argument)
    if isinstance(argument, tuple):
        return types.NamedUniTuple(types.int64, len(argument), type(argument))
    return types.int64


@contextlib.contextmanager
def _assumed(capability: tuple[int, int]) -> Iterator[None]:
    """Within the block this is the current device's: Numba asks one when it types a device function."""
    dispatcher: Any = importlib.import_module("numba.cuda.dispatcher")
    before = dispatcher.get_current_device
    device = type("Device", (), {"compute_capability": capability})
    dispatcher.get_current_device = lambda: device
    try:
        yield
    finally:
        dispatcher.get_current_device = before


def ptx(wanted: NumbaKernel, capability: tuple[int, int]) -> str:
    """The kernel as PTX. Raises Numba's error if it does not compile."""
    from numba import void

    cuda: Any = importlib.import_module("numba.cuda")
    kernel = numba_gpu.kernel_of(wanted.source, wanted.kernel)
    signature = void(*map(_type, wanted.step.arguments))
    with _assumed(capability):
        text, _ = cuda.compile_ptx(kernel.py_func, signature, cc=capability)
    return str(text)


def assembled(text: str, capability: tuple[int, int]) -> Image:
    """The machine code of PTX with one kernel."""
    from cuda.bindings import nvjitlink

    options = [f"-arch=sm_{10 * capability[0] + capability[1]}"]
    linker = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(linker, nvjitlink.InputType.PTX, text.encode(), len(text.encode()), "kernel")
        nvjitlink.complete(linker)
        code = bytearray(nvjitlink.get_linked_cubin_size(linker))
        nvjitlink.get_linked_cubin(linker, code)
    finally:
        nvjitlink.destroy(linker)
    (entry,) = re.findall(r"\.entry\s+(\w+)", text)
    return Image(entry, bytes(code))


@cache
def version() -> str:
    """Of everything that compiles."""
    return ", ".join(f"{package} {metadata.version(package)}" for package in _PACKAGES)


def _texts(source: str) -> Iterator[str]:
    """Of a source and of those that it imports from."""
    text = (KERNELS / source).read_text()
    yield text
    for module in numba_rewrite.imports(text):
        yield from _texts(f"{module.removeprefix('pyconv.kernels.').replace('.', '/')}.py")


def _place(wanted: NumbaKernel, architecture: Architecture) -> Path:
    own = [Path(cubin.__file__).read_text(), Path(__file__).read_text()]
    parts = [*_texts(wanted.source), wanted.kernel, *wanted.kinds, architecture.name, version(), *own]
    return compiling.CACHE / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:40]}.json"


def usage_of(wanted: NumbaKernel, architecture: Architecture) -> Usage:
    """What the kernel takes on an architecture; what is known is kept on disk."""
    place = _place(wanted, architecture)
    if not place.exists():
        capability = CAPABILITIES[architecture.name]
        (usage,) = cubin.read([assembled(ptx(wanted, capability), capability)], architecture)
        compiling._save(place, usage)
    return compiling._load(place)


def check(wanted: Sequence[NumbaKernel], architecture: Architecture) -> tuple[dict[str, Usage], list[str]]:
    """What each kernel takes, by its name, and what is wrong with them."""
    usages: dict[str, Usage] = {}
    found: list[str] = []
    for each in wanted:
        try:
            usage = usages[each.name] = usage_of(each, architecture)
        except Exception as error:  # of Numba, NVVM or nvJitLink
            found.append(f"{each.source}: {each.name} on {architecture.name}: does not compile: {error}")
            continue
        instantiation = Instantiation(each.source, each.name, each.problem, usage.parameters)
        threads = each.step.block[0] * each.step.block[1] * each.step.block[2]
        instantiation.launches.add((threads, each.step.shared_bytes))
        instantiation.sass.update(each.step.sass)
        found += faults(instantiation, usage, architecture)
    return usages, found


# ---- The page

_HEAD = """# What the Numba kernels take

Generated by `make gates`; do not edit. Compiled by {version}.

A cell of an architecture reads *registers of a thread · blocks that a multiprocessor holds (occupancy:
resident warps over possible ones)*. `f32 4A` is an array of float32 with four indices and any strides, `4C`
one without gaps.

| source | kernel | threads | shared | {names} |
| --- | --- | --- | --- |{rules}
"""


def render(wanted: Sequence[NumbaKernel], usages: dict[str, dict[str, Usage]]) -> str:
    """The page; ``usages`` by architecture, then by name."""
    rules = " --- |" * len(CAPABILITIES)
    lines = [_HEAD.format(version=version(), names=" | ".join(CAPABILITIES), rules=rules).rstrip()]
    for each in wanted:
        threads = each.step.block[0]
        shared = next(iter(usages.values()))[each.name].shared
        cells = [f"[{each.source}]({each.source})", f"`{each.name}`", str(threads)]
        cells.append(f"{shared / 1024:.4g} KB" if shared else "")
        for name, of in usages.items():
            usage, architecture = of[each.name], ARCHITECTURES[name]
            taken = (threads, usage.registers, usage.shared)
            blocks, occupancy = architecture.blocks_of(*taken), architecture.occupancy(*taken)
            cells.append(f"{usage.registers} · {blocks} ({occupancy:.0%})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pyconv.gates.numba_kernels")
    parser.add_argument("--only", default="", metavar="TEXT", help="sources or kernels with it in their name")
    given = parser.parse_args(arguments)
    if reason := missing():
        print(f"Numba kernels cannot be compiled here: {reason}", file=sys.stderr)
        return 1
    wanted = [each for each in numba_kernels() if given.only in each.source or given.only in each.name]
    usages, wrong = {}, 0
    for name in CAPABILITIES:
        usages[name], found = check(wanted, ARCHITECTURES[name])
        print(f"Numba on {name}: {len(usages[name])} kernels", *found, sep="\n  ")
        wrong += len(found)
    if not given.only and not wrong:
        PAGE.write_text(render(wanted, usages), encoding="utf-8")
        print(f"written: {PAGE}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
