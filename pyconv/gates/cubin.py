"""Takes cubins apart: registers, memory, parameters and machine instructions of their kernels.

``cuobjdump`` prints what the compiler wrote about a kernel, ``nvdisasm`` its instructions. Both come from
PyPI and need no driver.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from pyconv.backends.nvrtc import Image
from pyconv.gates.architectures import MOST_THREADS_OF_BLOCK, Architecture

# From there on the compiler's count of a kernel with shared memory has the 1 KB that the system takes.
_SYSTEM_SHARED_COUNTED_FROM = 90
_SYSTEM_SHARED = 1024


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes.

    Attributes:
        registers: Of a thread.
        register_limit: What ``__launch_bounds__`` leaves a thread.
        most_threads: Threads of a block that it may be launched with.
        stack: Bytes of local memory of a thread, which is device memory: spilled registers, and arrays that
            are indexed by what is known only when running.
        shared: Bytes of static shared memory of a block.
        parameters: Bytes of each parameter.
        opcodes: Machine instructions with their modifiers, ``LDG.E.128.CONSTANT``, and how many there are.
    """

    registers: int
    register_limit: int
    most_threads: int
    stack: int
    shared: int
    parameters: tuple[int, ...]
    opcodes: dict[str, int]

    def count(self, pattern: str) -> int:
        """Instructions of a pattern, such as ``LDG.128``, which is in ``LDG.E.128.CONSTANT``.

        The first part must be the same, so ``HMMA`` is not in ``HFMA2.MMA``; the others must follow in order.
        """
        return sum(number for opcode, number in self.opcodes.items() if _is_like(opcode, pattern))


def _is_like(opcode: str, pattern: str) -> bool:
    parts, (first, *rest) = iter(opcode.split(".")), pattern.split(".")
    return next(parts) == first and all(part in parts for part in rest)  # `in` advances the iterator


def read(images: Sequence[Image], architecture: Architecture) -> list[Usage]:
    """What the kernel of each image takes."""
    system_shared = _SYSTEM_SHARED if architecture.number >= _SYSTEM_SHARED_COUNTED_FROM else 0
    usages = []
    for image, opcodes in zip(images, _opcodes(images, architecture), strict=True):
        described = run("cuobjdump", ["-elf", "-res-usage"], image.code)
        (line,) = re.findall(rf"Function {re.escape(image.entry)}:\s+(REG:.*)", described)
        count = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
        attributes = _attributes(described, image.entry)
        usages.append(
            Usage(
                registers=count["REG"],
                register_limit=attributes["MAXREG_COUNT"][0],
                most_threads=attributes.get("MAX_THREADS", [MOST_THREADS_OF_BLOCK])[0],
                stack=count["STACK"] + count["LOCAL"],
                shared=max(0, count["SHARED"] - system_shared),
                parameters=tuple(reversed(attributes.get("KPARAM_INFO", []))),
                opcodes=opcodes,
            )
        )
    return usages


def disassembly(image: Image) -> str:
    """The machine code of an image, for people."""
    return run("nvdisasm", ["-c", "-ndf", "-fun", str(_symbol(image))], image.code)


# ---- The tools ----------------------------------------------------------------------------------------


@cache
def tool(name: str) -> Path:
    """The program ``cuobjdump`` or ``nvdisasm`` of its PyPI package ``nvidia-cuda-<name>``.

    Raises:
        FileNotFoundError: if that package is not installed.
    """
    try:
        files = metadata.files(f"nvidia-cuda-{name}") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name and Path(str(file.locate())).is_file():
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{name} is not installed: pip install nvidia-cuda-{name}")


def run(program: str, options: list[str], content: bytes) -> str:
    """What ``cuobjdump`` or ``nvdisasm`` prints about a file of this content."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        done = subprocess.run([tool(program), *options, file.name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(options)} failed: {done.stderr.strip()}")
    return done.stdout


def _opcodes(images: Sequence[Image], architecture: Architecture) -> list[dict[str, int]]:
    """The instructions of each image's kernel and how often each stands in it.

    nvdisasm takes 0.2 s to start, so the machine code of all is put end to end and given to it at once.
    """
    codes = [_machine_code(image) for image in images]
    name = f"SM{architecture.name.removeprefix('sm_')}"
    text = run("nvdisasm", ["-b", name, "-ndf"], b"".join(codes))
    found = re.findall(
        r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)", text, re.MULTILINE
    )
    counts: list[Counter[str]] = [Counter() for _ in images]
    part, end = 0, len(codes[0])
    for address, opcode in found:
        while int(address, 16) >= end:
            part += 1
            end += len(codes[part])
        counts[part][opcode] += 1
    return [dict(count) for count in counts]


# ---- A cubin is an ELF file ---------------------------------------------------------------------------


def _sections(elf: bytes) -> dict[str, bytes]:
    """The sections of a 64-bit ELF file by name (the specification's figures 1-3 and 1-8)."""
    (headers_at,) = struct.unpack_from("<Q", elf, 40)
    size, count, names_in = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<I20xQQ", elf, headers_at + index * size) for index in range(count)]
    names_at = headers[names_in][1]
    sections = {}
    for name, at, length in headers:
        start = names_at + name
        sections[elf[start : elf.index(b"\0", start)].decode()] = elf[at : at + length]
    return sections


def _machine_code(image: Image) -> bytes:
    return _sections(image.code)[f".text.{image.entry}"]


def _symbol(image: Image) -> int:
    """The number of the kernel in the symbol table, by which nvdisasm wants it named."""
    sections = _sections(image.code)
    symbols, names = sections[".symtab"], sections[".strtab"]
    for index, (name,) in enumerate(struct.iter_unpack("<I20x", symbols)):
        if names[name : names.index(b"\0", name)].decode() == image.entry:
            return index
    raise AssertionError(f"{image.entry} is not in its own image")


def _attributes(described: str, entry: str) -> dict[str, list[int]]:
    """What section ``.nv.info.<entry>`` says in cuobjdump's words: parameters, limits of a launch."""
    (section,) = re.findall(
        rf"^\.nv\.info\.{re.escape(entry)}\n(.*?)(?=^\.|\Z)", described, re.MULTILINE | re.DOTALL
    )
    found: dict[str, list[int]] = {}
    for key, value in re.findall(r"EIATTR_(\w+)\n\s*Format:.*\n\s*Value:\s*(.*)", section):
        if key == "KPARAM_INFO":  # the last parameter comes first
            found.setdefault(key, []).append(int(re.findall(r"Size\s*: (\w+)", value)[0], 16))
        elif key == "MAXREG_COUNT":
            found[key] = [int(value, 16)]
        elif key == "MAX_THREADS":
            x, y, z = (int(extent, 16) for extent in value.split())
            found[key] = [x * y * z]
    return found
