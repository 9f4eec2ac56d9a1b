"""Compiles kernels and the runtime for :mod:`pyconv.backends.emulator`, with a cache on disk.

An entry of the cache is a shared library named by the hash of all that made it: the source, every file that
it includes, the compiler and its flags. It is written under another name and renamed, so that a reader sees
all of it or nothing, and it ends with its own checksum: one that is damaged is built again. Of several
processes that miss the same entry, one compiles and the others wait for it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pyconv.backends.cache import refusal
from pyconv.backends.emulator_findings import MAPPED, EmulatorError, Lines, lines_of_library
from pyconv.backends.sources import KERNELS, digest

# No contraction: a*b + c is one rounding only where a kernel says fused(). No sibling calls: a finding's
# place is the return address of a call. No aliasing rules: vectors are loaded through pointers to elements.
# Stack clash protection: a stack that is too small meets the page that faults below it.
_FLAGS = (
    "-std=c++17", "-g1", "-gdwarf-4", "-fPIC", "-shared", "-nostdlib", "-fvisibility=hidden",
    "-ffp-contract=off", "-fno-strict-aliasing", "-fno-optimize-sibling-calls", "-fno-exceptions",
    "-fno-rtti", "-fstack-clash-protection", "-Wno-unknown-pragmas",
)  # fmt: skip
_PLAIN = ("-O2",)
# The hooks of ThreadSanitizer, which are ours (kernels/emulator/checker.cpp), before each load and store.
_CHECKED = (
    "-O1", "-DPYCONV_EMULATOR_CHECKED", "-fsanitize=thread,bounds,integer-divide-by-zero",
)  # fmt: skip
# A local variable that is not set is -1.7e38, not what happens to be on the stack. g++ 12, Clang 8.
_POISONED_LOCALS = "-ftrivial-auto-var-init=pattern"
# Clang takes the read of `x += 1` for harmless. It has not been tried on much: g++ is preferred.
_CHECKED_BY_CLANG = ("-mllvm", "-tsan-instrument-read-before-write=1")
_RUNTIME = ("-O2", "-g1", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden")


@dataclass(frozen=True)
class Function:
    """A compiled instantiation.

    Attributes:
        kernel: The expression it was made from.
        checked: It has the hooks of the checked build.
        parameter_bytes: The size of each parameter: what a GPU would read at each pointer given to a launch.
        library: Its file in the cache; the ``.cpp`` of the same name is what was compiled.
        handle: Keeps it in memory.
        lines: Finds the lines of the source that the places of findings are on.
    """

    kernel: str
    checked: bool
    parameter_bytes: tuple[int, ...]
    library: Path
    entry: int = field(repr=False)
    signature: int = field(repr=False)
    handle: Any = field(repr=False, compare=False)
    lines: Lines = field(default=lines_of_library, repr=False, compare=False)


class _Signature(ctypes.Structure):
    """``Signature`` of ``kernels/emulator/emulate.h``."""

    _fields_ = (("count", ctypes.c_int), ("bytes", ctypes.c_int * 32))


# ---- the compiler


@cache
def _compiler() -> tuple[str, ...] | str:
    """The command (``CXX`` names another, with flags) and its version, or the reason why there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    for name in names:
        command = shlex.split(name)
        path = shutil.which(command[0])
        if path is None:
            continue
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if version.returncode == 0:
            return path, *command[1:], version.stdout.split("\n")[0]
    return f"no C++ compiler: {', '.join(names)} not found"


def unavailable() -> str | None:
    if platform.system() != "Linux":
        return f"runs on Linux, not on {platform.system()}"
    compiler = _compiler()
    return compiler if isinstance(compiler, str) else None


@cache
def _machine_flags() -> tuple[str, ...]:
    """FMA and AVX2 where the processor has them: without, fma() is a call of the C library."""
    if platform.machine() != "x86_64":
        return ()
    try:
        flags = set(
            re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0].split()
        )
    except (OSError, IndexError):
        return ()
    return ("-march=x86-64-v3",) if {"fma", "avx2", "bmi2", "abm", "movbe"} <= flags else ()


def _checked() -> tuple[str, ...]:
    version = _compiler()[-1]
    flags = _CHECKED + _CHECKED_BY_CLANG if "clang" in version else _CHECKED
    major = re.findall(r"\b(\d+)\.\d+\.\d+", version)[-1:]
    return (*flags, _POISONED_LOCALS) if major and int(major[0]) >= 12 else flags


# ---- the cache


def cache_folder() -> Path:
    """In ``$PYCONV_CACHE``, else ``build`` of a checkout, else ``~/.cache/pyconv``."""
    chosen, checkout = os.environ.get("PYCONV_CACHE"), KERNELS.parent
    if not chosen and (checkout / "pyproject.toml").exists() and os.access(checkout, os.W_OK):
        return checkout / "build" / "emulator"
    return Path(chosen or "~/.cache/pyconv").expanduser() / "emulator"


def _is_whole(path: Path) -> bool:
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data[:-32]).digest() == data[-32:]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    import fcntl  # Windows, where nothing is emulated, has none

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_folder(folder: Path) -> None:
    """Makes a folder for compiled code. Raises :class:`EmulatorError` if it cannot be made or trusted."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What is in a checkout is trusted as the checkout is.
        why = None if folder.is_relative_to(KERNELS.parent) else refusal(folder)
    except OSError as error:
        why = f"cannot be made ({error.strerror or error})"
    if why:
        raise EmulatorError(
            f"the folder for what the emulator compiles, {folder}, {why}; PYCONV_CACHE names another"
        )


def _library(
    name: str, text: str, digests: Iterable[str], flags: tuple[str, ...], libraries: tuple[str, ...] = ()
) -> Path:
    """The entry of what is made of ``text``, a C++ file that includes sources with these digests.

    Raises:
        EmulatorError: if there is no compiler, or it refuses the source.
    """
    compiler = _compiler()
    if isinstance(compiler, str):
        raise EmulatorError(compiler)
    program, *own_flags, version = compiler
    command = [program, *flags, *_machine_flags(), *own_flags]  # the last of two that contradict wins
    made_of = [version, *command, text, *digests, *(Path(library).name for library in libraries)]
    key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:20]
    library = cache_folder() / f"{name}-{key}.so"
    make_folder(library.parent)
    with _lock(library.with_suffix(".lock")):
        if not _is_whole(library):  # another process may have made it by now
            main = library.with_suffix(".cpp")
            main.write_text(text)
            _compile(command, main, library, libraries)
    return library


def _compile(command: list[str], main: Path, library: Path, libraries: tuple[str, ...]) -> None:
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [
        *command, f"-I{KERNELS}", f"-ffile-prefix-map={KERNELS}={MAPPED}", f"-Wl,-soname,{library.name}",
        str(main), "-o", str(unfinished), *libraries,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise EmulatorError(f"{main} does not compile for the emulator:\n{result.stderr}")
    with unfinished.open("r+b") as file:
        checksum = hashlib.sha256(file.read()).digest()
        file.write(checksum)
    unfinished.replace(library)


# ---- what is compiled


@cache
def runtime() -> Path:
    """The runtime library."""
    sources = sorted(f"emulator/{path.name}" for path in (KERNELS / "emulator").glob("*.cpp"))
    text = "".join(f'#include "{source}"\n' for source in sources)
    return _library("runtime", text, map(digest, sources), _RUNTIME)


_MAIN = """\
#define PYCONV_EMULATED
#include "{source}"

namespace pyconv {{
extern "C" __attribute__((visibility("default"))) void pyconv_emulated_run(void** pyconv_given) {{
  emulator::call({kernel}, pyconv_given);
}}
extern "C" __attribute__((visibility("default"))) const emulator::Signature pyconv_emulated_signature;
const emulator::Signature pyconv_emulated_signature = emulator::signature({kernel});
}}  // namespace pyconv
"""


@cache
def function(source: str, kernel: str, checked: bool, defines: tuple[str, ...]) -> Function:
    path = KERNELS / source
    if not path.exists():
        raise EmulatorError(f"no such source: {path}")
    flags = (*_FLAGS, *(_checked() if checked else _PLAIN), *(f"-D{define}" for define in defines))
    name = (re.match(r"\w*", kernel) or [""])[0] + ("-checked" if checked else "")
    text = _MAIN.format(source=source, kernel=kernel)
    # It names the runtime by its soname and finds the one that is loaded, wherever the cache may be by then.
    library = _library(name, text, [digest(source)], flags, (str(runtime()), "-lgcc"))
    handle = ctypes.CDLL(str(library))
    signature = _Signature.in_dll(handle, "pyconv_emulated_signature")
    entry = ctypes.cast(handle.pyconv_emulated_run, ctypes.c_void_p).value
    assert entry is not None
    parameter_bytes = tuple(signature.bytes[: signature.count])
    return Function(kernel, checked, parameter_bytes, library, entry, ctypes.addressof(signature), handle)
