"""The kernel table as people read it: in the terminal, and as Markdown in README.md.

``python -m pyconv.tables --write`` brings the generated tables in the documentation up to date; without
``--write`` it exits with status 1 if one is stale, which a test checks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyconv import functional, nn
from pyconv.plan import plan_for
from pyconv.problem import Problem
from pyconv.registry import Kernel, kernels
from pyconv.selection import select

ROOT = Path(__file__).resolve().parent.parent
HEADER = ("kernel", "backend", "dtypes", "layouts", "promises", "NaN/Inf", "accuracy", "proved on", "source")


def row(kernel: Kernel) -> tuple[str, ...]:
    """One line of the table as words, in the order of ``HEADER``."""
    promises = [
        word
        for word, claimed in (
            ("deterministic", kernel.deterministic),
            ("batch invariant", kernel.batch_invariant),
            ("exact on integers", kernel.exact_integers),
        )
        if claimed
    ]
    return (
        kernel.name,
        kernel.backend,
        ", ".join(kernel.dtypes),
        ", ".join(kernel.layouts),
        ", ".join(promises) or "none",
        kernel.nonfinite,
        kernel.accuracy,
        ", ".join(kernel.proved) or "baseline",
        kernel.source or "torch",
    )


def markdown() -> str:
    """The whole table in Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    for kernel in kernels():
        words = list(row(kernel))
        words[0] = f"`{words[0]}`"
        if kernel.source:
            words[-1] = f"[{kernel.source}](kernels/{kernel.source})"
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class LayerKernel:
    """The kernel of one pass of one layer; the names of the fields head the columns of a report."""

    layer: str
    problem: str
    pass_: str
    kernel: str


def kernels_of(module: torch.nn.Module, example: Tensor) -> list[LayerKernel]:
    """Which kernel each pass of each layer of ours takes for an input like ``example``.

    Args:
        module: Run once, without gradients, to see what its layers are given.
        example: As the module takes it; its batch size counts, since selection may look at it.
    """
    rows: list[LayerKernel] = []
    handles = []

    def hook(name: str) -> Callable[..., None]:
        def record(layer: torch.nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
            x = inputs[0]
            problem: Problem
            if isinstance(layer, nn.Conv2d):
                problem, passes = functional.conv2d_problem(layer, x), ["fprop", "dgrad", "wgrad"]
                passes += ["bgrad"] if layer.bias is not None else []
            else:
                assert isinstance(layer, nn.MaxPool2d)
                problem = functional.max_pool2d_problem(layer, x)
                forward = plan_for(problem, x.device.type).argmax_pass
                passes = [forward, "dgrad_tap" if forward == "fprop_tap" else "dgrad"]
            for pass_ in passes:
                kernel = select(problem, pass_, x.device.type)
                rows.append(LayerKernel(name, str(problem), pass_, kernel.id))

        return record

    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            handles.append(layer.register_forward_hook(hook(name)))
    was_training = module.training
    try:
        with torch.no_grad():
            module.eval()(example)
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    return rows


def _with_table(text: str, name: str, table: str) -> str:
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"no '{begin.strip()}' ... '{end}' in the page")
    return before + begin + table + end + after


def main(arguments: list[str]) -> int:
    page = ROOT / "README.md"
    text = page.read_text(encoding="utf-8")
    current = _with_table(text, "kernel table", markdown())
    if current == text:
        return 0
    if "--write" not in arguments:
        print("the kernel table of README.md is stale: make tables", file=sys.stderr)
        return 1
    page.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
