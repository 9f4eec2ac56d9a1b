"""The cases of ``bench/shapes/*.txt`` (:mod:`pyconv.shapes` has the format).

Where a file names no passes, a convolution is measured in fprop, dgrad and wgrad and a pooling
in fprop, fprop_argmax and dgrad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyconv.problem import Conv2dProblem, Problem
from pyconv.shapes import read_shapes

SHAPES = Path(__file__).resolve().parent / "shapes"

#: The public call, without gradients, with them, and with backward: Python, autograd and kernel together.
CALL_PASSES = ("call_no_grad", "call_grad", "call_step")
_CONV2D = ("fprop", "dgrad", "wgrad")
_POOL2D = ("fprop", "fprop_argmax", "dgrad")
#: Every pass that can be measured. (``gather`` belongs to second derivatives; torch has no kernel for it.)
PASSES = (*_CONV2D, "bgrad", "fprop_argmax", *CALL_PASSES)


@dataclass(frozen=True)
class Case:
    """One pass of one problem, and the shapes file it comes from."""

    suite: str
    problem: Problem
    pass_: str


def applies(problem: Problem, pass_: str) -> bool:
    """Whether this kind of problem has that pass."""
    own = (*_CONV2D, "bgrad") if isinstance(problem, Conv2dProblem) else _POOL2D
    return pass_ in own or pass_ in CALL_PASSES


def read_cases(path: Path, passes: Sequence[str] = ()) -> list[Case]:
    """The cases of a shapes file, in its order; ``passes`` stands for those that the file names.

    Raises:
        ValueError: naming file and line, for a line or a pass that is not understood.
    """
    problems, named = read_shapes(path, check_passes)
    cases = []
    for problem in problems:
        usual = _CONV2D if isinstance(problem, Conv2dProblem) else _POOL2D
        for pass_ in passes or named or usual:
            if applies(problem, pass_):
                cases.append(Case(path.stem, problem, pass_))
    return cases


def check_passes(passes: Sequence[str]) -> None:
    """Raises ``ValueError`` for a pass that does not exist."""
    unknown = [pass_ for pass_ in passes if pass_ not in PASSES]
    if unknown:
        raise ValueError(f"pass {', '.join(unknown)} is none of {', '.join(PASSES)}")
