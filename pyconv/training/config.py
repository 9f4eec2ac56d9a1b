"""What defines a run, and the recipe that each data set has by default."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyconv.errors import RunError, UsageError, unknown
from pyconv.training import files

LAYOUTS = ("nchw", "nhwc")
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("one-cycle", "cosine", "constant")
DEVICES = ("auto", "cpu", "cuda", "gpu")


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on besides the code: the same configuration gives the same bits.

    Attributes:
        data: ``digits``, ``fashion-mnist``, ``cifar10`` or a folder of class folders.
        data_dir: Where its files are looked for first.
        image_size: The side a folder's images are resized to; ``None`` for 64.
        model, kernels: What :func:`pyconv.models.build` takes.
        layout: Memory layout of activations and filters: ``nchw`` or ``nhwc``.
        epochs, batch_size, optimizer, lr, momentum, weight_decay, label_smoothing: As the field has them;
            ``momentum`` is AdamW's first beta too. Weight decay spares biases and normalisation.
        schedule: ``one-cycle`` (linear up, linear down to 0), ``cosine`` (linear up, cosine down to 0) or
            ``constant`` (linear up).
        warmup: The part of all steps spent going up.
        validation: The part of the training images held out.
        seed: Of weights, order, augmentation and dropout.
        workers, threads: Processes that make batches; threads of torch's pool, ``None`` for torch's default.
            A run takes that default down, because torch's sums depend on it.
        device: ``cpu``, ``cuda`` (or ``gpu``), or ``auto``: a CUDA GPU where torch finds one.
        checkpoint_every: Steps between two checkpoints within an epoch; ``None`` for one at each epoch's end.
    """

    data: str = "digits"
    data_dir: str = "data"
    image_size: int | None = None
    model: str = "convnet-small"
    kernels: str = "pyconv"
    layout: str = "nchw"
    epochs: int = 20
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    schedule: str = "one-cycle"
    warmup: float = 0.2
    validation: float = 0.1
    seed: int = 0
    workers: int = 0
    threads: int | None = None
    device: str = "auto"
    checkpoint_every: int | None = None

    def check(self) -> None:
        """Raise :class:`UsageError` for a value out of range, naming its option."""
        from pyconv.models import KERNELS, MODELS

        for option, given, known in (
            ("--model", self.model, tuple(MODELS)),
            ("--kernels", self.kernels, KERNELS),
            ("--layout", self.layout, LAYOUTS),
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--schedule", self.schedule, SCHEDULES),
            ("--device", self.device, DEVICES),
        ):
            if given not in known:
                raise unknown(option, given, known)
        for option, number, least in (
            ("--epochs", self.epochs, 1),
            ("--batch-size", self.batch_size, 1),
            ("--workers", self.workers, 0),
            ("--threads", 1 if self.threads is None else self.threads, 1),
            ("--checkpoint-every", 1 if self.checkpoint_every is None else self.checkpoint_every, 1),
            ("--seed", self.seed, 0),
        ):
            if number < least:
                raise UsageError(f"{option}: {number} given; {least} or more is needed")
        for option, value, low, high in (
            ("--lr", self.lr, 0.0, float("inf")),
            ("--momentum", self.momentum, 0.0, 1.0),
            ("--weight-decay", self.weight_decay, 0.0, float("inf")),
            ("--label-smoothing", self.label_smoothing, 0.0, 1.0),
            ("--warmup", self.warmup, 0.0, 1.0),
            ("--validation", self.validation, 0.0, 0.5),
        ):
            if not low <= value <= high:
                raise UsageError(f"{option}: {value} given; {low:g} to {high:g} is needed")
        if self.on_gpu and not torch.cuda.is_available():
            raise UsageError(
                f"--device: {self.device} given; torch {torch.__version__} finds no CUDA device here"
            )
        if self.seed >= 2**32:  # numpy's legacy seeding, which Lightning does too, takes 32 bits
            raise UsageError(f"--seed: {self.seed} given; it must be below 2**32")

    @property
    def on_gpu(self) -> bool:
        """Whether this machine trains it on a GPU."""
        return self.device in ("cuda", "gpu") or (self.device == "auto" and torch.cuda.is_available())

    def save(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            RunError: naming the file, if it cannot be written.
        """
        files.write(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read what :meth:`save` wrote.

        Raises:
            RunError: naming the file, if it is missing or not such a file.
        """
        try:
            fields: Any = json.loads(path.read_text(encoding="utf-8"))
            config = cls(**fields)
            for name, kind in typing.get_type_hints(cls).items():
                value = getattr(config, name)
                if isinstance(value, bool) or not isinstance(value, kind | int if kind is float else kind):
                    raise TypeError(f"{name} is {value!r}")
            return config
        except OSError as error:
            raise RunError(
                f"{path}: cannot be read ({error.strerror or error}); is this a run folder?"
            ) from None
        except (ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{path}: not the configuration of a run ({error})") from None


#: What differs from :class:`TrainConfig`'s own defaults, for each kind of data. Chosen on validation images.
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"model": "convnet-tiny", "epochs": 20, "batch_size": 64},
    "fashion-mnist": {"model": "convnet-small", "epochs": 12, "layout": "nhwc", "validation": 0.05},
    "cifar10": {"model": "convnet-medium", "epochs": 20, "lr": 0.2, "validation": 0.05},
    "folder": {"model": "convnet-medium", "epochs": 30, "batch_size": 64},
}


def recipe(data: str, **given: Any) -> TrainConfig:
    """The configuration for a data set: its recipe, and over it whatever is given and not ``None``.

    Raises:
        UsageError: for a value out of range.
    """
    from pyconv.data import key

    chosen = {name: value for name, value in given.items() if value is not None}
    config = TrainConfig(**{"data": data, **RECIPES[key(data)], **chosen})
    config.check()
    return config
