"""The Lightning module: loss, optimiser, schedule, metrics, and a stop at a loss that is not finite."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from pyconv.errors import TrainingError
from pyconv.training.config import TrainConfig

#: The columns of ``history.csv``, one row an epoch.
HISTORY = ("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")


_NOTHING_YET = {"batches": 0, "images": 0, "loss": 0.0, "right": 0.0}


class Classifier(lightning.LightningModule):
    """A network that learns to tell classes of images apart.

    Args:
        network: Maps ``[n, c, h, w]`` to logits ``[n, classes]``.
        config: The run's configuration.
        classes: How many there are.
        steps: Optimiser steps in the whole run, which the schedule is laid over.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, classes: int, steps: int) -> None:
        super().__init__()
        self.network, self.config, self.steps = network, config, steps
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        #: One row an epoch; part of the checkpoint, so a resumed run has its whole past.
        self.history: list[dict[str, float]] = []
        #: This epoch's batches so far. Sums of our own, because Lightning's do not survive a resume.
        self.epoch_so_far: dict[str, Any] = dict(_NOTHING_YET)
        #: The step of the newest checkpoint, if there is one.
        self.saved: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of images ``[n, c, h, w]``."""
        if self.config.layout == "nhwc":
            x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(x)
        return logits

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Derive this step's random state (dropout) from the seed and the step, whatever came before."""
        torch.manual_seed(self.config.seed * 0x9E3779B1 + self.global_step)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, a scalar.

        Raises:
            TrainingError: naming the step, if it is not finite.
        """
        x, labels = batch
        logits = self(x)
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        right = (logits.argmax(1) == labels).sum()
        value, count = torch.stack([loss.detach().double(), right.double()]).tolist()  # one wait for a GPU
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.global_step} (epoch {self.current_epoch}); "
                f"{self._stopped()}"
            )
        self.epoch_so_far["batches"] += 1
        self.epoch_so_far["images"] += len(labels)
        self.epoch_so_far["loss"] += value * len(labels)
        self.epoch_so_far["right"] += count
        self.log("train_loss_step", value, batch_size=len(labels), prog_bar=True)
        return loss

    def end_epoch(self, epoch: int, rate: float, val_loss: float, val_accuracy: float) -> dict[str, float]:
        """Add the row of an epoch that is over to the history, and start the sums of the next."""
        row = {
            "epoch": epoch,
            "step": self.global_step,
            "lr": rate,
            "train_loss": self.epoch_so_far["loss"] / self.epoch_so_far["images"],
            "train_accuracy": self.epoch_so_far["right"] / self.epoch_so_far["images"],
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
        }
        self.history.append(row)
        self.epoch_so_far = dict(_NOTHING_YET)
        return row

    def on_train_epoch_end(self) -> None:
        """Log the row; callbacks have made it by now."""
        for name in ("train_loss", "train_accuracy"):
            self.log(name, self.history[-1][name])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on held-out images."""
        x, labels = batch
        logits = self(x)
        self.val_accuracy(logits, labels)
        loss = functional.cross_entropy(logits, labels)
        self.log("val_loss", loss, batch_size=len(labels))
        self.log("val_accuracy", self.val_accuracy, batch_size=len(labels), prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Refuse weights that are not finite before they are saved in any form."""
        self.check_finite()

    def check_finite(self) -> None:
        """A last step can spoil the weights after its loss was seen; no checkpoint of them may be written.

        Raises:
            TrainingError: naming the step, if a weight or statistic is not finite.
        """
        for name, value in self.network.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise TrainingError(
                    f"{name} is not finite after step {self.global_step - 1} (epoch {self.current_epoch}); "
                    f"{self._stopped()}"
                )

    def _stopped(self) -> str:
        kept = (
            "there is no checkpoint"
            if self.saved is None
            else f"the checkpoint after step {self.saved} is kept"
        )
        return f"training stopped; {kept}; a lower --lr than {self.config.lr:g} may help"

    def configure_optimizers(self) -> Any:
        """The optimiser, and the schedule stepped with it."""
        config = self.config
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        spared = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, config.lr, config.momentum, nesterov=config.momentum > 0)
        else:
            optimizer = torch.optim.AdamW(groups, config.lr, (config.momentum, 0.999))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate(self, step: int) -> float:
        """The learning rate of a step as a part of ``config.lr``, in 0..1."""
        up = self.config.warmup * self.steps
        if step < up:
            return (step + 1) / math.ceil(up)
        if self.config.schedule == "constant":
            return 1.0
        left = max(0.0, (self.steps - step) / max(self.steps - up, 1.0))
        return left if self.config.schedule == "one-cycle" else 0.5 - 0.5 * math.cos(math.pi * left)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the past with the weights."""
        checkpoint["history"] = self.history
        checkpoint["epoch_so_far"] = self.epoch_so_far

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self.history = [dict(row) for row in checkpoint["history"]]
        self.epoch_so_far = dict(checkpoint["epoch_so_far"])
        self.saved = checkpoint["global_step"]
