"""Finds ``pyconv.kernels`` in a checkout that is not installed: there ``kernels/`` is beside ``pyconv/``."""

from pathlib import Path

import pyconv

_package = Path(__file__).resolve().parent
if not (_package / "kernels").exists() and (_package.parent / "kernels" / "__init__.py").exists():
    pyconv.__path__.append(str(_package.parent))
