"""``python -m bench.winograd_error``: the rounding error of Winograd by channels, beside torch's own.

Relative L2 errors against float64 of fprop and dgrad in float32. Ours are those of the CUDA kernels, on the
device if there is one, else in the emulator, whose arithmetic rounds alike; torch's are those of its two
layouts on this machine's processor. The result is the table in ``kernels/conv2d/README.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pyconv import backends, registry
from pyconv.backends import cuda
from pyconv.problem import Conv2dProblem

CHANNELS = (1, 4, 16, 64, 256, 1024)

CONTENDERS = {"F(2x2)": "winograd_2x2", "F(2x2) fused": "winograd_2x2_fused", "F(4x4)": "winograd_4x4"}

#: What a layer meets: its input is normal, or what a ReLU has left of that.
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {"normal": lambda x: x, "after ReLU": torch.relu}


@contextlib.contextmanager
def _device() -> Iterator[str]:
    if torch.cuda.is_available() and cuda.unavailable("cuda") is None:
        yield "cuda"
        return
    with cuda.emulated(checked=False):
        yield "cpu"


def _errors(channels: int, pass_: str, prepare: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """The errors of each contender; channels of what is summed, 16 of the result."""
    c, k = (channels, 16) if pass_ == "fprop" else (16, channels)
    problem = Conv2dProblem(2, c, 12, 12, k, 3, 3, pad_top=1, pad_bottom=1, pad_left=1, pad_right=1)
    generator = torch.Generator().manual_seed(channels)
    image = torch.randn(problem.x_shape if pass_ == "fprop" else problem.y_shape, generator=generator)
    image = prepare(image)
    w = torch.randn(problem.w_shape, generator=generator) * (2 / (9 * channels)) ** 0.5

    def torchs(image: Tensor, w: Tensor) -> Tensor:
        if pass_ == "fprop":
            return F.conv2d(image, w, padding=1)
        return torch.nn.grad.conv2d_input(problem.x_shape, w, image, padding=1)  # type: ignore[no-any-return]

    want = torchs(image.double(), w.double())

    def error(got: Tensor) -> float:
        return float((got.cpu().double() - want).norm() / want.norm())

    errors = {}
    for layout, memory_format in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        as_laid = (image.contiguous(memory_format=memory_format), w.contiguous(memory_format=memory_format))
        errors[f"torch {layout}"] = error(torchs(*as_laid))
    with _device() as device:
        for name, algorithm in CONTENDERS.items():
            kernel = registry.find(f"conv2d.{pass_}.{algorithm}@cuda")
            operands = (image.to(device), w.to(device), *((None,) if pass_ == "fprop" else ()))
            is_able = kernel.supports(problem) is None
            errors[name] = error(backends.bind(kernel, problem)(*operands)) if is_able else math.nan
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.winograd_error", description=__doc__)
    parser.add_argument("--channels", type=int, nargs="*", default=CHANNELS)
    channels = parser.parse_args().channels
    for number, (pass_, inputs) in enumerate((p, i) for p in ("fprop", "dgrad") for i in INPUTS):
        for count in channels:
            errors = _errors(count, pass_, INPUTS[inputs])
            if number == 0 and count == channels[0]:
                print("| pass | input | channels |", " | ".join(errors), "|")
                print("| --- " * (3 + len(errors)) + "|")
            print(
                f"| {pass_} | {inputs} | {count} |",
                " | ".join("" if math.isnan(e) else f"{e:.1e}" for e in errors.values()),
                "|",
            )


if __name__ == "__main__":
    main()
