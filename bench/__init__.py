"""Benchmarks: ``python -m bench.run`` from the checkout's root; see ``docs/benchmarks.md``."""
