"""One run: from a configuration to a folder with weights, checkpoints, logs, figures and a report."""

from __future__ import annotations

import csv
import datetime
import io
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from pyconv.data import ImageData, load
from pyconv.data.module import ImageDataModule
from pyconv.errors import Interrupted, RunError
from pyconv.models import build
from pyconv.training import figures, process, report, weights
from pyconv.training.config import TrainConfig
from pyconv.training.evaluation import (
    CHECKPOINTS,
    CONFIG,
    WEIGHTS,
    Evaluation,
    card_for,
    evaluate_network,
    read_checkpoint,
)
from pyconv.training.measure import measure
from pyconv.training.module import HISTORY, Classifier
from pyconv.training.weights import Card

LAST = f"{CHECKPOINTS}/last.ckpt"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its results on the test images."""

    folder: Path
    test: Evaluation
    seconds: float


class _Log(Callback):
    """After each epoch: a row of history, the weights, a line of progress. Times what is between steps."""

    def __init__(self, folder: Path, card: Card, say: Callable[[str], None] | None) -> None:
        self.folder, self.card, self.say = folder, card, say
        self.started = self.epoch_started = self.left = 0.0
        self.inside = self.between = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.epoch_started = self.left = time.perf_counter()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any
    ) -> None:
        now = time.perf_counter()
        self.between += now - self.left
        self.left = now

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any
    ) -> None:
        now = time.perf_counter()
        self.inside += now - self.left
        self.left = now

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        now = time.perf_counter()
        found = trainer.callback_metrics
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "train_loss": float(found["train_loss_epoch"]),
            "train_accuracy": float(found["train_accuracy"]),
            "val_loss": float(found["val_loss"]),
            "val_accuracy": float(found["val_accuracy"]),
            "seconds": pl_module.seconds_before + now - self.started,
        }
        pl_module.history.append(row)
        write_history(self.folder / "history.csv", pl_module.history)
        weights.save(self.folder / WEIGHTS, pl_module.network, self.card)
        if self.say:
            self.say(
                f"epoch {trainer.current_epoch + 1}/{pl_module.config.epochs}: loss {row['train_loss']:.4f}, "
                f"training accuracy {100 * row['train_accuracy']:.2f} %, validation accuracy "
                f"{100 * row['val_accuracy']:.2f} %, {now - self.epoch_started:.1f} s"
            )


class _Checkpoints(ModelCheckpoint):
    """Lightning's checkpoints, in a run folder that may be moved between two sessions."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                **{name: here(state_dict[name]) for name in names},
                "best_k_models": {here(path): score for path, score in state_dict["best_k_models"].items()},
            }
        )


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write ``history.csv`` under a temporary name, then rename it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY)
    writer.writeheader()
    writer.writerows(history)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    temporary.replace(path)


def default_folder(config: TrainConfig) -> Path:
    """``runs/<data>-<model>-<timestamp>``."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    data = Path(config.data).resolve().name if os.sep in config.data else config.data
    return Path("runs") / f"{data}-{config.model}-{stamp}"


def _check_free(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise RunError(
            f"{folder}: exists already; nothing was changed. Choose another --out, or --resume {folder}"
        )


def fit(
    config: TrainConfig,
    out: Path | None = None,
    say: Callable[[str], None] = print,
    stop_after: int | None = None,
) -> Run:
    """Train, and leave a run folder.

    Args:
        config: The run.
        out: The folder to make; ``None`` for :func:`default_folder`. One that is not empty is refused.
        say: Called with one line at a time.
        stop_after: Stop after this many epochs, as an interruption would; the schedule is the whole run's.

    Raises:
        UsageError, DataError: before anything is written.
        RunError: if the folder exists or cannot be written.
        TrainingError: if a loss is not finite; the folder then holds the epochs before.
        Interrupted: on Ctrl-C, likewise.
    """
    config.check()
    folder = out or default_folder(config)
    _check_free(folder)
    data = load(config.data, Path(config.data_dir), config.image_size, say)
    return _run(config, data, folder, None, say, stop_after)


def resume(
    folder: Path, epochs: int | None = None, say: Callable[[str], None] = print, stop_after: int | None = None
) -> Run:
    """Go on with an interrupted run, from its last epoch, in the same folder.

    Args:
        folder: The run folder.
        epochs: A new total; the schedule is laid over it from where the run is.
        say, stop_after: As :func:`fit`.

    Raises:
        RunError: naming the file, if the folder holds no run, or the run is finished.
        TrainingError, Interrupted: as :func:`fit`.
    """
    if not folder.is_dir():
        raise RunError(f"--resume: {folder} is no run folder")
    config = TrainConfig.load(folder / CONFIG)
    if epochs is not None:
        config = TrainConfig(**{**config.__dict__, "epochs": epochs})
    config.check()
    checkpoint = folder / LAST
    if not checkpoint.is_file():
        raise RunError(f"{checkpoint}: no such file: the run ended before its first epoch did; start it anew")
    done = len(read_checkpoint(checkpoint)["history"])
    # One that was interrupted after its last epoch still gets its figures and report.
    if done >= config.epochs and (folder / "report.md").exists():
        raise RunError(f"--resume: {folder} has all of its {done} epochs; a larger --epochs goes on")
    data = load(config.data, Path(config.data_dir), config.image_size, say)
    say(f"resuming {folder} after epoch {done} of {config.epochs}")
    return _run(config, data, folder, checkpoint, say, stop_after)


def _run(
    config: TrainConfig,
    data: ImageData,
    folder: Path,
    checkpoint: Path | None,
    say: Callable[[str], None],
    stop_after: int | None,
) -> Run:
    process.quiet_lightning()
    with process.settings(config.threads):
        torch.manual_seed(config.seed)
        network = build(config.model, data.channels, data.image_size, len(data.classes), config.kernels)
        if config.layout == "nhwc":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module_data = ImageDataModule(data, config.batch_size, config.seed, config.validation, config.workers)
        steps = config.epochs * len(module_data.train_dataloader())
        card = card_for(
            config, data.source, in_channels=data.channels, image_size=data.image_size, classes=data.classes,
            mean=module_data.mean, std=module_data.std, resized=data.resized,
        )  # fmt: skip
        try:
            if checkpoint is None:
                folder.mkdir(parents=True, exist_ok=True)
            config.save(folder / CONFIG)
        except OSError as error:
            raise RunError(f"{folder}: cannot be written ({error.strerror or error})") from None
        say(
            f"training {config.model} on {data.name} with the kernels of {config.kernels}: "
            f"{len(module_data.train_set)} images, {config.epochs} epochs, {steps} steps; run folder {folder}"
        )
        module = Classifier(network, config, len(data.classes), steps)
        log = _train(config, module, module_data, folder, card, checkpoint, say, stop_after)
        done = len(module.history)
        outcome = report.Outcome(
            seconds=module.history[-1]["seconds"],
            steps=int(module.history[-1]["step"]),
            between=log.between / max(log.between + log.inside, 1e-9),
            history=module.history,
        )
        network = network.cpu().eval()
        evaluation = evaluate_network(network, module_data.test_dataloader(), data.classes, config.layout)
        if done == config.epochs:
            _finish(config, data, module_data, network, outcome, evaluation, folder)
            say(f"test accuracy {100 * evaluation.accuracy:.2f} %; report in {folder / 'report.md'}")
    return Run(folder, evaluation, outcome.seconds)


def _train(
    config: TrainConfig,
    module: Classifier,
    module_data: ImageDataModule,
    folder: Path,
    card: Card,
    checkpoint: Path | None,
    say: Callable[[str], None],
    stop_after: int | None,
) -> _Log:
    bar = sys.stdout.isatty()
    log = _Log(folder, card, None if bar else say)
    keep = _Checkpoints(
        dirpath=folder / CHECKPOINTS,
        filename="best",
        monitor="val_accuracy",
        mode="max",
        save_last=True,
        # At the end of the training epoch, after its row of history is made.
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    trainer = lightning.Trainer(
        accelerator="gpu" if config.on_gpu else "cpu",
        devices=1,
        max_epochs=config.epochs if stop_after is None else min(config.epochs, stop_after),
        # A logger folder of its own for each session of a resumed run; history.csv holds the whole.
        logger=[
            CSVLogger(folder / "logs", name="csv"),
            TensorBoardLogger(folder / "logs", name="tensorboard"),
        ],
        callbacks=[log, keep, *([RichProgressBar(leave=True)] if bar else [])],
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=20,
        # On a GPU some of torch's own operators have no deterministic form; they warn.
        deterministic="warn" if config.on_gpu else True,
        default_root_dir=folder,
    )
    try:
        trainer.fit(module, module_data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except SystemExit:  # how Lightning ends after Ctrl-C
        done = len(module.history)
        way = (
            f"`pyconv train --resume {folder}` goes on after epoch {done}"
            if done
            else f"no epoch was whole, so there is nothing to resume in {folder}"
        )
        raise Interrupted(f"interrupted in step {trainer.global_step}; {way}") from None
    return log


def _finish(
    config: TrainConfig,
    data: ImageData,
    module_data: ImageDataModule,
    network: nn.Module,
    outcome: report.Outcome,
    evaluation: Evaluation,
    folder: Path,
) -> None:
    figures.curves(folder / "curves.png", outcome.history)
    figures.confusion(folder / "confusion.png", evaluation)
    figures.filters(folder / "filters.png", network)
    loader = iter(module_data.train_dataloader())
    batches = [batch for batch, _ in zip(loader, range(4), strict=False)]
    example = batches[0][0]
    if config.layout == "nhwc":
        example = example.contiguous(memory_format=torch.channels_last)
    measurement: Any
    rows: Any
    try:
        measurement = measure(config, network, data.channels, data.image_size, len(data.classes), batches)
        rows = report.kernel_rows(network, example) if config.kernels == "pyconv" else []
    except (ImportError, OSError) as error:
        if config.kernels == "pyconv":
            raise
        # With --kernels aten a machine without our native library can train; it cannot compare.
        measurement, rows = f"pyconv's kernels are not available here ({error})", []
    text = report.write(config, data, network, outcome, evaluation, measurement, rows)
    (folder / "report.md").write_text(text, encoding="utf-8")
