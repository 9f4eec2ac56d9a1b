"""When a run saves itself, and all that it needs to go on to the same bits.

``last.ckpt`` is written after each epoch, every ``checkpoint_every`` steps, and at a step's end after
Ctrl-C; ``best.ckpt`` after an epoch with a new best validation accuracy. A checkpoint holds the weights and
statistics, the optimiser's and the schedule's state, the position (epoch, batch), and the sums of the epoch's
metrics so far. It holds no random state: order, augmentation and dropout are functions of (seed, epoch,
sample) and (seed, step).
"""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from pyconv.errors import Interrupted, RunError
from pyconv.training import files
from pyconv.training.config import TrainConfig
from pyconv.training.evaluation import CHECKPOINTS, read_checkpoint
from pyconv.training.module import Classifier
from pyconv.training.process import StopRequest
from pyconv.training.weights import Card

LAST = f"{CHECKPOINTS}/last.ckpt"
BEST = f"{CHECKPOINTS}/best.ckpt"

#: What a resumed run may have otherwise than before: where things are and how fast it goes, and its end.
_FREE = ("epochs", "data_dir", "workers", "threads", "device", "checkpoint_every")


class SyncedIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written by :func:`pyconv.training.files.write`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one; in memory first, where torch.save cannot meet a full disk."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        files.make_folder(Path(path).parent)
        files.write(Path(path), buffer.getbuffer())


class Checkpoints(Callback):
    """Saves the run, and ends it between two steps when it is asked to.

    Args:
        folder: The run folder.
        every: Steps between two saves within an epoch; ``None`` for none.
        card: What the weights are of.
        stop: Where Ctrl-C is noted.
    """

    def __init__(self, folder: Path, every: int | None, card: Card, stop: StopRequest) -> None:
        self.folder, self.every, self.card, self.stop = folder, every, card, stop
        self.best = -math.inf

    def state_dict(self) -> dict[str, Any]:
        """The best validation accuracy so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.best = state_dict["best"]

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say what was trained on what, so that no other run's checkpoint is mistaken for this one's."""
        assert isinstance(pl_module, Classifier)
        checkpoint["config"] = dataclasses.asdict(pl_module.config)
        checkpoint["card"] = dataclasses.asdict(self.card)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Hear Ctrl-C and SIGTERM from here on; Lightning's own handler of SIGTERM saves nothing."""
        self.stop.listen()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save within the epoch. After its last batch the epoch's end saves, when it has been validated."""
        if batch_idx + 1 == trainer.num_training_batches:
            return
        due = self.every is not None and trainer.global_step % self.every == 0
        if due or self.stop.signal is not None:
            self._save(trainer, pl_module, LAST)
        self._obey(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the epoch. ``last.ckpt`` comes last: without it, all of the epoch is made again."""
        assert isinstance(pl_module, Classifier)
        accuracy = pl_module.history[-1]["val_accuracy"]
        if accuracy > self.best:
            self.best = accuracy
            self._save(trainer, pl_module, BEST)
        self._save(trainer, pl_module, LAST)
        self._obey(trainer)

    def _save(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, name: str) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.check_finite()
        trainer.save_checkpoint(self.folder / name)
        pl_module.saved = trainer.global_step

    def _obey(self, trainer: lightning.Trainer) -> None:
        if self.stop.signal is not None:
            raise Interrupted(
                f"interrupted after step {trainer.global_step}, which was saved; "
                f"`pyconv train --resume {self.folder}` goes on from there",
                128 + self.stop.signal,
            )


def position(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """(epoch, batch) that a run goes on with."""
    return len(checkpoint["history"]), checkpoint["epoch_so_far"]["batches"]


def read_last(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The checkpoint a run goes on from, or ``None`` if it was stopped before the first.

    Raises:
        RunError: naming the file, if it is broken, or was saved by a run of another configuration.
    """
    path = folder / LAST
    if not path.exists():
        return None
    checkpoint = read_checkpoint(path)
    saved, wanted = checkpoint["config"], dataclasses.asdict(config)
    for name in wanted:
        if name not in _FREE and saved.get(name) != wanted[name]:
            raise RunError(
                f"{path}: not a checkpoint of this run: its {name} is {saved.get(name)!r}, "
                f"and {wanted[name]!r} in the configuration beside it"
            )
    return checkpoint


def check_fits(path: Path, checkpoint: dict[str, Any], module: Classifier, card: Card) -> None:
    """Refuse to go on with weights of another model, or on other data than before.

    Raises:
        RunError: naming the file and what differs.
    """
    saved = checkpoint["card"]
    for name, given in dataclasses.asdict(card).items():
        if name in ("in_channels", "image_size", "classes", "mean", "std") and saved.get(name) != given:
            raise RunError(
                f"{path}: trained on other data than there is now: {name} was {saved.get(name)}, is {given}"
            )
    found, wanted = checkpoint["state_dict"], module.state_dict()
    for name in sorted(found.keys() ^ wanted.keys()):
        has, lacks = ("lacks", "has") if name in wanted else ("has", "lacks")
        raise RunError(f"{path}: not the weights of {card.model}: it {has} {name}, which the model {lacks}")
    for name, value in wanted.items():
        if tuple(found[name].shape) != tuple(value.shape):
            raise RunError(
                f"{path}: not the weights of {card.model}: {name} has shape {tuple(found[name].shape)}, "
                f"the model's has {tuple(value.shape)}"
            )
