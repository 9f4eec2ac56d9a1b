"""NVRTC, NVIDIA's compiler as a library: from a kernel's text to machine code for one architecture.

It needs neither a GPU nor a driver. Of a template only the instantiation asked for is compiled; C++ gives it
a mangled name, which NVRTC returns as the *lowered* name to find it by.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from pyconv.backends import sources

#: How every kernel is compiled, besides its architecture. Line numbers are for profilers and sanitizers.
FLAGS = ("--std=c++17", "-lineinfo")

#: Devices whose instructions for their own architecture alone (wgmma, tcgen05) want the name with an ``a``.
_SPECIFIC = {(9, 0), (10, 0)}


@dataclass(frozen=True)
class Image:
    """A compiled instantiation.

    Attributes:
        entry: The lowered name of the kernel.
        code: A cubin; or PTX, ending in a zero byte, for a device newer than this NVRTC.
    """

    entry: str
    code: bytes

    def to_bytes(self) -> bytes:
        return self.entry.encode() + b"\n" + self.code

    @classmethod
    def from_bytes(cls, content: bytes) -> Image:
        entry, _, code = content.partition(b"\n")
        return cls(entry.decode(), code)


def architecture(capability: tuple[int, int], known: Sequence[int]) -> str:
    """What to compile for: ``sm_..`` is machine code, ``compute_..`` is PTX that the driver compiles on.

    Args:
        capability: The device's, such as ``(9, 0)``.
        known: Architectures that the NVRTC at hand knows, such as ``[80, 90, 100]``.

    Raises:
        RuntimeError: if it knows none that runs on the device.
    """
    number = 10 * capability[0] + capability[1]
    if number in known:
        return f"sm_{number}a" if capability in _SPECIFIC else f"sm_{number}"
    older = [each for each in known if each < number]
    if not older:
        raise RuntimeError(
            f"pyconv: this NVRTC compiles for compute capability {min(known) / 10} and newer; the device has "
            f"{capability[0]}.{capability[1]}"
        )
    return f"compute_{max(older)}"


class Nvrtc:
    """One libnvrtc."""

    def __init__(self, path: str) -> None:
        """Raises ``OSError`` if it cannot be loaded."""
        self.path = path
        # It looks for this part of itself on the loader's path only; a loaded one is found wherever it lies.
        for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins*.so*")):
            if ".alt." not in builtins.name:
                ctypes.CDLL(str(builtins))
        self._library = ctypes.CDLL(path)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("Version", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        count = ctypes.c_int()
        self._call("GetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("GetSupportedArchs", numbers)
        self.architectures = sorted(numbers)

    def compile(self, source: str, kernel: str, architecture: str, folder: Path = sources.KERNELS) -> Image:
        """Compiles one instantiation.

        Args:
            source: The file, under ``folder``, which is also where its includes are looked for.
            kernel: A C++ expression inside namespace ``pyconv``, such as ``direct<float, kNchw>``.
            architecture: As :func:`architecture` names them.

        Raises:
            RuntimeError: with the compiler's log, if it does not compile.
        """
        # The name is looked up at the end of the text, where `using` makes everything in it visible.
        text = f'#include "{source}"\nusing namespace pyconv;\n'
        program = ctypes.c_void_p()
        self._call("CreateProgram", ctypes.byref(program), text.encode(), b"pyconv", 0, None, None)
        try:
            self._call("AddNameExpression", program, kernel.encode())
            options = [*FLAGS, f"-I{folder}", f"--gpu-architecture={architecture}"]
            array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self._library.nvrtcCompileProgram(program, len(options), array)
            if status:
                log = self._buffer("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
                raise RuntimeError(
                    f"pyconv: NVRTC {self.version[0]}.{self.version[1]} does not compile {kernel} of "
                    f"{folder / source} for {architecture} ({self._error(status)}):\n{log}"
                )
            entry = ctypes.c_char_p()
            self._call("GetLoweredName", program, kernel.encode(), ctypes.byref(entry))
            assert entry.value is not None
            code = self._buffer("CUBIN" if architecture.startswith("sm_") else "PTX", program)
            return Image(entry.value.decode(), code)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _buffer(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, f"nvrtc{function}")(*arguments)
        if status:
            raise RuntimeError(f"pyconv: nvrtc{function} failed: {self._error(status)}")

    def _error(self, status: int) -> str:
        return str(self._library.nvrtcGetErrorString(status).decode())


# ---- Where it is --------------------------------------------------------------------------------------


def _libraries(folder: Path) -> list[str]:
    """The libnvrtc files of a folder, the newest release first."""

    def release(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path.name)]

    found = [
        path
        for path in folder.glob("libnvrtc*.so*")
        if re.fullmatch(r"libnvrtc(-[0-9a-f]{8})?\.so[.0-9]*", path.name)
    ]
    return [str(path) for path in sorted(found, key=release, reverse=True)]


def _folders() -> Iterator[Path]:
    nvidia = importlib.util.find_spec("nvidia")  # NVIDIA's wheels share this name space
    for root in nvidia.submodule_search_locations or () if nvidia else ():
        yield from sorted(Path(root).glob("cu[0-9]*/lib"), reverse=True)  # CUDA 13
        yield Path(root) / "cuda_nvrtc" / "lib"  # CUDA 12
    yield Path(torch.__file__).parent / "lib"
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name]) / "lib64"
            yield Path(os.environ[name]) / "lib"


def _candidates() -> list[str]:
    """Paths and names to try, best first."""
    chosen = os.environ.get("PYCONV_NVRTC")
    if chosen:
        return [chosen]
    found = [path for folder in _folders() for path in _libraries(folder)]
    found += ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    # A driver runs the code of its own major release and of older ones; torch's CUDA is one that it runs.
    major = (torch.version.cuda or "").partition(".")[0]
    return sorted(found, key=lambda path: f".so.{major}" not in path) if major else found


@cache
def find() -> Nvrtc | str:
    """The NVRTC at hand, or the reason why there is none."""
    candidates = _candidates()
    reasons = []
    for path in candidates:
        try:
            return Nvrtc(path)
        except (OSError, AttributeError, RuntimeError) as error:
            reasons.append(str(error))
    return f"no NVRTC (pip install nvidia-cuda-nvrtc): {reasons[0]}"
