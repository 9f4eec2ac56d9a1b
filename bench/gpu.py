"""``make gpu``: what there is to test and measure on a CUDA device. Exits with 1 where that is nothing."""

from __future__ import annotations

import sys


def _nothing(why: str) -> int:
    print(f"make gpu: {why} Nothing was run.", file=sys.stderr)
    return 1


def main() -> int:
    try:
        import torch
    except ImportError:
        return _nothing(f"{sys.executable} has no torch; name one that has: make gpu PYTHON=...")
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU only"
        return _nothing(f"torch finds no CUDA device here (torch {torch.__version__}, {build}).")
    from pyconv import backends
    from pyconv.registry import kernels

    device = torch.cuda.get_device_name()
    ours = [k for k in kernels() if k.backend != "aten" and not backends.unavailable(k.backend, "cuda")]
    if not ours:
        return _nothing(
            f"the kernel table has no line of ours that runs on {device}: the first set is for CPUs."
        )
    return _nothing(f"{len(ours)} kernels run on {device}, but the battery and the benchmark know only CPUs.")


if __name__ == "__main__":
    sys.exit(main())
