"""The figures of a run folder, as PNG."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from pyconv.training import files
from pyconv.training.evaluation import Evaluation


def _write(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)  # no display, and no global state as pyplot has
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    files.write(path, buffer.getbuffer())


def curves(path: Path, history: list[dict[str, float]]) -> None:
    """Loss and accuracy against the epoch, on training and validation images."""
    figure = Figure((10, 4), layout="constrained")
    epochs = [row["epoch"] + 1 for row in history]
    loss, accuracy = figure.subplots(1, 2)
    marker = "." if len(epochs) < 60 else ""
    for part, label in (("train", "training (augmented)"), ("val", "validation")):
        loss.plot(epochs, [row[f"{part}_loss"] for row in history], marker=marker, label=label)
        accuracy.plot(epochs, [100 * row[f"{part}_accuracy"] for row in history], marker=marker, label=label)
    loss.set(xlabel="epoch", ylabel="cross-entropy", title="loss")
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)", title="accuracy")
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    _write(figure, path)


def confusion(path: Path, evaluation: Evaluation) -> None:
    """The confusion matrix, in percent of each true class; counts stand in the cells of small ones."""
    n = len(evaluation.classes)
    counts = evaluation.confusion
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(5.0, min(0.6 * n + 2, 20.0))
    figure = Figure((side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    if n <= 50:
        axes.set_xticks(range(n), evaluation.classes, rotation=45, ha="right")
        axes.set_yticks(range(n), evaluation.classes)
    if n <= 20:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if share[row, column] > 50 else "black"
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8
            )
    axes.set(
        xlabel="predicted",
        ylabel="true",
        title=f"{100 * evaluation.accuracy:.2f} % of {evaluation.images} images",
    )
    _write(figure, path)


def filters(path: Path, network: nn.Module) -> None:
    """The filters ``w[k, c, r, s]`` of the first convolution: in colour if c is 3, else the first channel."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    w = first.weight.detach().float().cpu().numpy()
    limit = float(np.abs(w).max()) or 1.0
    count = min(len(w), 64)
    columns = min(8, count)
    rows = math.ceil(count / columns)
    figure = Figure((columns + 0.5, rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for k, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if k < count:
            if w.shape[1] == 3:
                axes.imshow((w[k].transpose(1, 2, 0) / limit + 1) / 2, interpolation="nearest")
            else:
                axes.imshow(w[k, 0], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    figure.suptitle(
        f"first layer: {count} of {len(w)} filters, {w.shape[2]}x{w.shape[3]}, range +-{limit:.2g}"
    )
    _write(figure, path)
