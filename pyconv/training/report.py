"""``report.md``: what was trained, how good it is, and where the time of a step goes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pyconv.data import ImageData
from pyconv.training.config import TrainConfig
from pyconv.training.evaluation import Evaluation
from pyconv.training.measure import COUNTED, Measurement, Timing
from pyconv.training.process import machine, versions


@dataclass(frozen=True)
class Outcome:
    """What training left besides its weights.

    Attributes:
        seconds: Of all epochs, validation and the sessions before a resume included.
        steps: Optimiser steps.
        between: The part of the training time spent outside steps: making batches, and the loop itself.
        history: One row an epoch.
    """

    seconds: float
    steps: int
    between: float
    history: list[dict[str, float]]


def kernel_rows(network: nn.Module, example: Tensor) -> list[dict[str, Any]]:
    """The kernel chosen for each layer and pass, a mapping a row."""
    from pyconv.tables import kernels_of

    return [dataclasses.asdict(row) for row in kernels_of(network, example)]


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    names = list(header)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]


def _timing(timing: Timing) -> str:
    return f"{timing.median:.2f} ({timing.p20:.2f} to {timing.p80:.2f})"


def write(
    config: TrainConfig,
    data: ImageData,
    network: nn.Module,
    outcome: Outcome,
    evaluation: Evaluation,
    measurement: Measurement | str,
    rows: list[dict[str, Any]] | str,
) -> str:
    """The report as Markdown.

    Args:
        measurement, rows: What was found, or in words why it was not.
    """
    h, w = data.image_size
    parameters = sum(p.numel() for p in network.parameters())
    last = outcome.history[-1]
    right = round(evaluation.accuracy * evaluation.images)
    lines = [
        f"# {config.model} on {data.name}",
        "",
        f"**Test accuracy {100 * evaluation.accuracy:.2f} %** ({right} of {evaluation.images} images), "
        f"with the last epoch's weights, after {config.epochs} epochs with the kernels of "
        f"`{config.kernels}`. Test images took no part in training or in choosing anything.",
        "",
        "## Data and model",
        "",
        *_table(
            ("", ""),
            [
                ("data", f"{data.name}, {data.source}"),
                ("images", f"{len(data.train)} to train (of which {100 * config.validation:g} % are held out "
                 f"to validate), {len(data.test)} to test; {data.channels}x{h}x{w}, {len(data.classes)} "
                 "classes"),
                ("augmentation", data.augmentation),
                ("model", f"{config.model}, {parameters:,} parameters"),
                ("optimiser", f"{config.optimizer}, learning rate {config.lr:g} ({config.schedule}, "
                 f"{100 * config.warmup:g} % warm-up), momentum {config.momentum:g}, weight decay "
                 f"{config.weight_decay:g}, label smoothing {config.label_smoothing:g}"),
                ("steps", f"{outcome.steps} of {config.batch_size} images; {config.epochs} epochs; seed "
                 f"{config.seed}; {config.layout}"),
            ],
        ),
        "",
        "## Result",
        "",
        *_table(
            ("", "loss", "accuracy"),
            [
                ("training (augmented, last epoch)", f"{last['train_loss']:.4f} (with label smoothing)",
                 f"{100 * last['train_accuracy']:.2f} %"),
                ("validation", f"{last['val_loss']:.4f}", f"{100 * last['val_accuracy']:.2f} %"),
                ("test", f"{evaluation.loss:.4f}", f"{100 * evaluation.accuracy:.2f} %"),
            ],
        ),
        "",
        *_table(
            ("class", "test accuracy"),
            [
                (name, "no images" if math.isnan(value) else f"{100 * value:.1f} %")
                for name, value in evaluation.per_class()
            ],
        ),
        "",
        "![curves](curves.png)",
        "",
        "![confusion matrix](confusion.png)",
        "",
        "![first-layer filters](filters.png)",
        "",
        "## Time",
        "",
        f"Training took {outcome.seconds:.1f} s, {1e3 * outcome.seconds / outcome.steps:.2f} ms a step with "
        f"validation and all else; {100 * outcome.between:.1f} % of it went between steps (making batches, "
        "the training loop).",
        "",
        *_times(measurement),
        "",
        "## Kernels",
        "",
        *_kernels(rows),
        "",
        "## Versions and machine",
        "",
        *_table(("", ""), [*versions().items(), ("machine", machine())]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _times(measurement: Measurement | str) -> list[str]:
    if isinstance(measurement, str):
        return [f"Steps were not measured: {measurement}"]
    table = []
    for side, label in (("pyconv", "pyconv's kernels"), ("aten", "torch's own (`aten`)")):
        step, kernels = measurement.steps[side], sum(measurement.kernels[side].values())
        rest = step.median - kernels
        table.append(
            (label, _timing(step), f"{kernels:.2f}", f"{rest:.2f}", f"{100 * kernels / step.median:.0f} %")
        )
    ratio = f"The step with torch's own kernels takes {measurement.ratio:.2f} times as long as with pyconv's."
    if not any(measurement.kernels.values()):
        return [
            f"A step (forward, loss, backward, optimiser) of {measurement.batch} images on the GPU, in ms: "
            f"median (20th to 80th percentile) of {measurement.rounds} steps a side, both sides interleaved "
            "in this process.",
            "",
            *_table(("", "step"), [row[:2] for row in table]),
            "",
            ratio,
        ]
    events = [
        (f"`{name}`", f"{milliseconds:.3f}")
        for side in COUNTED
        for name, milliseconds in sorted(measurement.kernels[side].items(), key=lambda item: -item[1])
    ]
    return [
        f"A step (forward, loss, backward, optimiser) of {measurement.batch} images, in ms: median (20th to "
        f"80th percentile) of {measurement.rounds} steps a side, both sides interleaved in this process. The "
        "share of convolution and pooling is from torch's profiler, over more such steps; the rest is the "
        "difference.",
        "",
        *_table(("", "step", "convolution and pooling", "rest", "share"), table),
        "",
        ratio,
        "",
        *_table(("event", "ms a step"), events),
    ]


def _kernels(rows: list[dict[str, Any]] | str) -> list[str]:
    if isinstance(rows, str):
        return [rows]
    if not rows:
        return ["No layer of this model uses pyconv's kernels."]
    return _table(rows[0], [row.values() for row in rows])
