"""What a run writes after each epoch: a row of history, the weights, a line of progress. Its times."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from pyconv.training import files, weights
from pyconv.training.evaluation import WEIGHTS
from pyconv.training.module import HISTORY, Classifier
from pyconv.training.weights import Card


class Log(Callback):
    """Writes and says what an epoch gave, and times what is in steps and between them.

    Times are the only thing in a run that differs when it is repeated: they are kept apart from the history.

    Args:
        folder: The run folder.
        card: What the weights are of.
        say: Called with a line an epoch; ``None`` where a progress bar is shown.
    """

    def __init__(self, folder: Path, card: Card, say: Callable[[str], None] | None) -> None:
        self.folder, self.card, self.say = folder, card, say
        self.epoch_started = self.left = self.session_started = time.perf_counter()
        self.inside = self.between = 0.0
        self._seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Spent training, sessions before a resume included."""
        return self._seconds_before + time.perf_counter() - self.session_started

    def state_dict(self) -> dict[str, float]:
        """The times so far."""
        return {"seconds": self.seconds, "inside": self.inside, "between": self.between}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Take them up again."""
        self._seconds_before = state_dict["seconds"]
        self.inside, self.between = state_dict["inside"], state_dict["between"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clocks. A resume within an epoch has no start of an epoch."""
        self.session_started = self.epoch_started = self.left = time.perf_counter()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the epoch's clocks."""
        self.epoch_started = self.left = time.perf_counter()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any
    ) -> None:
        """What was before this is between steps."""
        now = time.perf_counter()
        self.between += now - self.left
        self.left = now

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any
    ) -> None:
        """What was before this is in a step."""
        now = time.perf_counter()
        self.inside += now - self.left
        self.left = now

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write and say what the epoch gave. The checkpoint of it is written after this."""
        assert isinstance(pl_module, Classifier)
        found = trainer.callback_metrics
        row = pl_module.end_epoch(
            trainer.current_epoch,
            float(trainer.optimizers[0].param_groups[0]["lr"]),
            float(found["val_loss"]),
            float(found["val_accuracy"]),
        )
        write_history(self.folder / "history.csv", pl_module.history)
        weights.save(self.folder / WEIGHTS, pl_module.network, self.card)
        if self.say:
            self.say(
                f"epoch {trainer.current_epoch + 1}/{pl_module.config.epochs}: loss {row['train_loss']:.4f}, "
                f"training accuracy {100 * row['train_accuracy']:.2f} %, validation accuracy "
                f"{100 * row['val_accuracy']:.2f} %, {time.perf_counter() - self.epoch_started:.1f} s"
            )


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write ``history.csv``.

    Raises:
        RunError: naming the file, if it cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY)
    writer.writeheader()
    writer.writerows(history)
    files.write(path, text.getvalue())
