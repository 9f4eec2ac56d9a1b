"""Benchmarks: ``python -m bench.run`` from the checkout's root; see ``docs/benchmarks.md``."""

import os

# Figures are those of the choices that everybody gets, unless a file of tuned ones is named.
os.environ.setdefault("PYCONV_TUNING", "off")
