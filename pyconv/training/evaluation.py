"""Using a run: its accuracy on the test images, and its answer for other images. The run folder is enough."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from pyconv.data import ImageSet, load
from pyconv.data.module import Batches, EpochBatches
from pyconv.errors import RunError, UsageError, unknown
from pyconv.models import KERNELS
from pyconv.training import memory, weights
from pyconv.training.config import TrainConfig
from pyconv.training.weights import Card

WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
CHECKPOINTS = "checkpoints"

#: What every checkpoint of ours has (pyconv/training/checkpoints.py), besides Lightning's own.
_HELD = {"state_dict", "history", "epoch_so_far", "config", "card", "global_step"}


@dataclass(frozen=True)
class Evaluation:
    """Results on labelled images.

    Attributes:
        accuracy: The part that is right, 0..1.
        loss: Mean cross-entropy.
        confusion: int64 ``[true class, predicted class]``.
        classes: Names, in the order of the indices.
    """

    accuracy: float
    loss: float
    confusion: np.ndarray
    classes: tuple[str, ...]

    @property
    def images(self) -> int:
        """How many were looked at."""
        return int(self.confusion.sum())

    def per_class(self) -> list[tuple[str, float]]:
        """The part of each class that is right; NaN for a class without images."""
        totals = self.confusion.sum(1)
        right = np.where(totals > 0, self.confusion.diagonal() / np.maximum(totals, 1), np.nan)
        return list(zip(self.classes, right.tolist(), strict=True))


@dataclass(frozen=True)
class Prediction:
    """The model's answer for one image: class names and probabilities, the likeliest first."""

    path: Path
    ranked: list[tuple[str, float]]


def _channels_last(x: Tensor, layout: str) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if layout == "nhwc" else x


def evaluate_network(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: tuple[str, ...],
    layout: str = "nchw",
) -> Evaluation:
    """Accuracy, loss and confusion matrix of a network over batches of (images, labels)."""
    accuracy = MulticlassAccuracy(len(classes), average="micro")
    confusion = MulticlassConfusionMatrix(len(classes))
    total, count = 0.0, 0
    network.eval()
    with torch.no_grad():
        for x, labels in batches:
            logits = network(_channels_last(x, layout))
            accuracy.update(logits, labels)
            confusion.update(logits, labels)
            total += float(functional.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    return Evaluation(float(accuracy.compute()), total / count, confusion.compute().numpy(), classes)


def card_of(run: Path) -> tuple[dict[str, Tensor], Card]:
    """The weights and card in a run folder.

    Raises:
        RunError: naming the file, if the folder is none or holds no whole weights.
    """
    try:
        if not run.is_dir():
            raise RunError(
                f"{run}: a file; a run folder is needed" if run.exists() else f"{run}: no run folder"
            )
    except OSError as error:
        raise RunError(f"{run}: cannot be read ({error.strerror or error})") from None
    return weights.load(run / WEIGHTS)


def check_kernels(kernels: str, device: str) -> None:
    """Refuse our kernels where none of them can run: each layer would be torch's own, under our name.

    Args:
        kernels: ``pyconv`` or ``aten``.
        device: ``cpu`` or ``cuda``, where the network will run.

    Raises:
        UsageError: if no backend of ours can run here, or ``PYCONV_KERNELS`` or ``PYCONV_BACKEND`` asks for
            what is not there.
    """
    if kernels != "pyconv":
        return
    from pyconv import backends, selection

    selection.check_environment()
    try:
        ours = selection.natives(device)
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from None
    if not ours and not selection.forced():
        reason = backends.unavailable(device, device)
        raise UsageError(f"--kernels: pyconv's cannot run here ({reason}); aten takes torch's own")


def network_of(run: Path, kernels: str | None = None, best: bool = False) -> tuple[nn.Module, Card]:
    """The trained network of a run folder, ready to evaluate, and its card.

    Args:
        run: The folder.
        kernels: ``pyconv`` or ``aten``; ``None`` for what it was trained with.
        best: Take the checkpoint with the best validation accuracy instead of the last epoch's weights.

    Raises:
        RunError: naming the file, if something is missing or does not fit.
    """
    if kernels is not None and kernels not in KERNELS:
        raise unknown("--kernels", kernels, KERNELS)
    tensors, card = card_of(run)
    check_kernels(kernels or card.kernels, "cpu")
    path = run / WEIGHTS
    if best:
        path = run / CHECKPOINTS / "best.ckpt"
        tensors = _checkpoint_weights(path)
    return weights.network(path, tensors, card, kernels), card


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint, read without running any code that it may hold.

    Raises:
        RunError: naming the file, if it is missing, truncated, or no such checkpoint.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on a pickle it is about to refuse
            checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not checkpoint.keys() >= _HELD:
            raise RunError(f"{path}: not a checkpoint of a pyconv run")
        return checkpoint
    except (RunError, KeyboardInterrupt):
        raise
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except Exception as error:  # torch.load raises pickle, zip, end-of-file and runtime errors for bad files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise RunError(f"{path}: not a whole checkpoint ({reason})") from None


def _checkpoint_weights(path: Path) -> dict[str, Tensor]:
    prefix, state = "network.", read_checkpoint(path)["state_dict"]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def evaluate(
    run: Path,
    data_dir: Path | None = None,
    kernels: str | None = None,
    best: bool = False,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Evaluate a run on the test images of its data set.

    Args:
        run: The run folder.
        data_dir: Where the data are looked for first; ``None`` for where the run looked.
        kernels, best: As :func:`network_of`.
        say: Called with a line for each place that is tried.

    Raises:
        RunError, DataError: naming the file, if something is missing or does not fit.
    """
    network, card = network_of(run, kernels, best)
    config = TrainConfig.load(run / CONFIG)
    data = load(card.data, data_dir or Path(config.data_dir), config.image_size, say)
    if (
        data.classes != card.classes
        or data.image_size != card.image_size
        or data.channels != card.in_channels
    ):
        raise RunError(
            f"{run}: trained on {len(card.classes)} classes of {card.in_channels}x{_by(card.image_size)} "
            f"images, but {data.source} has {len(data.classes)} of {data.channels}x{_by(data.image_size)}"
            + ("" if len(data.classes) != len(card.classes) else " or other names")
        )
    keys = EpochBatches(len(data.test), 500, 0, shuffle=False)
    with memory.told(lambda: f"evaluating {card.model}", "it looks at 500 images at a time"):
        batches = Batches(data.test, card.mean, card.std)
        return evaluate_network(network, (batches[key] for key in keys), card.classes, card.layout)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def predict(
    run: Path, images: list[Path], kernels: str | None = None, best: bool = False, resize: bool = False
) -> list[Prediction]:
    """The classes of image files.

    Args:
        run: The run folder.
        images: The files. All are read before any is answered.
        kernels, best: As :func:`network_of`.
        resize: Resize and convert images of another size or kind; without it they are refused, unless the
            run was trained on resized images.

    Raises:
        RunError, DataError: naming the file, if something is missing, broken or does not fit.
    """
    if not images:
        raise UsageError("IMAGE: none given")
    network, card = network_of(run, kernels, best)
    fit = resize or card.resized
    with memory.told(lambda: f"reading {len(images)} images", "fewer at a time need less"):
        return _predict(network, card, images, fit)


def _predict(network: nn.Module, card: Card, images: list[Path], fit: bool) -> list[Prediction]:
    from pyconv.data.folder import decode

    pixels = np.stack([decode(path, card.in_channels, card.image_size, fit) for path in images])
    batches = Batches(ImageSet(pixels, np.zeros(len(pixels), np.int64)), card.mean, card.std)
    answers: list[Prediction] = []
    with torch.no_grad():
        for indices in np.array_split(np.arange(len(images)), -(-len(images) // 500)):
            x, _ = batches[(0, indices)]
            for index, row in zip(indices, network(_channels_last(x, card.layout)).softmax(1), strict=True):
                order = row.argsort(descending=True, stable=True).tolist()
                answers.append(Prediction(images[index], [(card.classes[i], float(row[i])) for i in order]))
    return answers


def card_for(config: TrainConfig, data_source: str, **fields: object) -> Card:
    """The card of a run in training; ``fields`` are those the data set gives."""
    known = {"model": config.model, "kernels": config.kernels, "layout": config.layout, "data": config.data}
    names = {field.name for field in dataclasses.fields(Card)}
    return Card(**{k: v for k, v in {**known, "source": data_source, **fields}.items() if k in names})  # type: ignore[arg-type]
