"""Builds the native CPU library with CMake; everything else about the package is in pyproject.toml.

Where it cannot be built, the package is installed without it, and Numba's kernels take its place (backend
``numba-cpu``). With ``PYCONV_REQUIRE_NATIVE=1`` in the environment that is an error instead, which the tests
ask for.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def torch_path() -> Path:
    # Found without importing torch, which takes seconds.
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit("pyconv: torch >= 2.11 must be installed before the native library can be built")
    return Path(spec.origin).parent


class NotBuilt(Exception):
    """Why the library cannot be built here."""


def tool(name: str) -> str:
    """The command from this environment's packages, else from PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise NotBuilt(f"{name} is needed for it (pip install {name})")
    return found


class BuildLibrary(build_ext):
    """Runs CMake; the result is a plain shared library, not a Python extension module."""

    def run(self) -> None:
        inplace = self.inplace or self.editable_mode
        output = ROOT / "pyconv" / "lib" if inplace else Path(self.build_lib).resolve() / "pyconv" / "lib"
        try:
            self.build(inplace, output)
        except (NotBuilt, OSError, subprocess.CalledProcessError) as error:
            # One of older sources would run in its place, unnoticed.
            (output / "libpyconv_cpu.so").unlink(missing_ok=True)
            if os.environ.get("PYCONV_REQUIRE_NATIVE", "0") not in ("", "0"):
                sys.exit(f"pyconv: the native CPU library was not built: {error}")
            print(
                f"warning: pyconv's native CPU library was not built: {error}\n"
                "warning: pyconv works without it, through its Numba kernels, which are slower; for the "
                "native ones install a C++17 compiler (Debian: apt install g++) and set pyconv up again",
                file=sys.stderr,
            )

    def build(self, inplace: bool, output: Path) -> None:
        """Raises ``NotBuilt``, or what CMake's failure raises."""
        build = ROOT / "build" / "native" if inplace else Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DTORCH_PATH={torch_path()}",
            f"-DPYCONV_OUTPUT_DIR={output}",
        ]  # fmt: skip
        environment = {**os.environ, "CLICOLOR_FORCE": "0"}
        subprocess.run(configure, check=True, env=environment)
        subprocess.run([tool("cmake"), "--build", str(build)], check=True, env=environment)

    def get_outputs(self) -> list[str]:
        return []


setup(
    ext_modules=[Extension("pyconv.lib.libpyconv_cpu", sources=[])],
    cmdclass={"build_ext": BuildLibrary},
)
