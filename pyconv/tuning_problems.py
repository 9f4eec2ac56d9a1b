"""What ``pyconv tune`` is to measure: a problem, a file of them, or those that a model's layers pose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from pyconv.errors import UsageError, unknown
from pyconv.problem import DTYPES, LAYOUTS, Layout, Problem, parse_problem
from pyconv.registry import PASSES
from pyconv.shapes import read_shapes

_WHERE = "MODEL_OR_SHAPES"


def problems_of(
    target: str,
    layouts: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    batch_size: int | None = None,
    image_size: int | None = None,
    in_channels: int | None = None,
) -> list[Problem]:
    """The problems that are meant, each once.

    Args:
        target: A problem in its text form, the name of a model, or a file of :mod:`pyconv.shapes`.
        layouts, dtypes: In place of those of the problems; for a model, nchw and f32 if not given.
        batch_size, image_size, in_channels: What a model is given; 32, 32 and 3 if left out.

    Raises:
        UsageError: naming the argument.
    """
    from pyconv.models import MODELS

    for option, given, accepted in (("--layouts", layouts, LAYOUTS), ("--dtypes", dtypes, DTYPES)):
        for name in given:
            if name not in accepted:
                raise unknown(option, name, accepted)
    sizes = {"--batch-size": batch_size, "--image-size": image_size, "--in-channels": in_channels}
    for option, size in sizes.items():
        if size is not None and size < 1:
            raise UsageError(f"{option}: {size} given; 1 or more is needed")
        if size is not None and target not in MODELS:
            raise UsageError(f"{option}: only with a model ({', '.join(MODELS)})")
    if target in MODELS:
        found = [
            problem
            for layout in layouts or ("nchw",)
            for problem in problems_of_model(
                target, batch_size or 32, image_size or 32, in_channels or 3, layout
            )
        ]
    else:
        found = [
            replace(problem, layout=cast(Layout, layout))
            for problem in _written(target, tuple(MODELS))
            for layout in layouts or (problem.layout,)
        ]
    return list(
        dict.fromkeys(
            replace(problem, dtype=dtype) for problem in found for dtype in dtypes or (problem.dtype,)
        )
    )


def _written(target: str, models: Sequence[str]) -> list[Problem]:
    path = Path(target)
    try:
        if target.split(" ")[0] in PASSES:
            return [parse_problem(target)]
        if path.is_file():
            problems = read_shapes(path)[0]
            if not problems:
                raise UsageError(f"{_WHERE}: {target} holds no problem")
            return problems
    except ValueError as error:
        raise UsageError(f"{_WHERE}: {error}") from None
    if path.suffix or len(path.parts) > 1:
        raise UsageError(f"{_WHERE}: no file {target}")
    raise unknown(_WHERE, target, models)


def problems_of_model(
    name: str, batch_size: int, image_size: int, in_channels: int, layout: str
) -> list[Problem]:
    """The problems that the layers of a model pose, in float32: it is run once on the CPU, to see them."""
    from pyconv.models import build
    from pyconv.tables import kernels_of

    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    with torch.random.fork_rng(devices=[]):
        model = build(name, in_channels, image_size, classes=10).to(memory_format=memory_format)  # type: ignore[call-overload]
    images = torch.zeros(batch_size, in_channels, image_size, image_size)
    rows = kernels_of(model, images.contiguous(memory_format=memory_format))
    return list(dict.fromkeys(parse_problem(row.problem) for row in rows))
