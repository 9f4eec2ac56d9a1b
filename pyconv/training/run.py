"""One run: from a configuration to a folder with weights, checkpoints, logs, figures and a report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from pyconv.data import ImageData, load
from pyconv.data.module import ImageDataModule
from pyconv.errors import Interrupted, RunError
from pyconv.models import build
from pyconv.training import figures, files, memory, process, report
from pyconv.training.checkpoints import LAST, Checkpoints, SyncedIO, check_fits, position, read_last
from pyconv.training.config import TrainConfig
from pyconv.training.evaluation import (
    CHECKPOINTS,
    CONFIG,
    Evaluation,
    card_for,
    check_kernels,
    evaluate_network,
)
from pyconv.training.log import Log
from pyconv.training.measure import measure
from pyconv.training.module import Classifier
from pyconv.training.weights import Card

REPORT = "report.md"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its results on the test images."""

    folder: Path
    test: Evaluation
    seconds: float


def default_folder(config: TrainConfig) -> Path:
    """``runs/<data>-<model>-<timestamp>``."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    data = Path(config.data).resolve().name if os.sep in config.data else config.data
    return Path("runs") / f"{data}-{config.model}-{stamp}"


def _check_free(folder: Path) -> None:
    """A folder with nothing but what a killed process left has nothing in it."""
    try:
        if folder.is_dir() and all(map(files.is_leftover, folder.iterdir())):
            return
        taken = folder.exists()
    except OSError as error:
        raise RunError(f"{folder}: cannot be read ({error.strerror or error})") from None
    if taken:
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
        TrainingError: if a loss is not finite, or memory runs out; the folder holds what was saved before.
        Interrupted: on Ctrl-C, likewise.
    """
    config.check()
    if config.threads is None:
        config = dataclasses.replace(config, threads=torch.get_num_threads())
    check_kernels(config.kernels, "cuda" if config.on_gpu else "cpu")
    folder = out or default_folder(config)
    _check_free(folder)
    data = _load(config, say)
    is_ours = not folder.exists()
    files.make_folder(folder)
    try:
        with files.locked(folder):
            _check_free(folder)
            files.remove_leftovers(folder)
            return _run(config, data, folder, None, say, stop_after)
    except BaseException:
        if is_ours:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which fails, as it should, once there is something in it
        raise


def resume(
    folder: Path,
    epochs: int | None = None,
    say: Callable[[str], None] = print,
    stop_after: int | None = None,
    checkpoint_every: int | None = None,
) -> Run:
    """Go on with an interrupted run, from its last checkpoint, in the same folder.

    However often a run was interrupted, and by whatever, it ends with the same weights, history and report,
    to the bit (but for times), as one that never was; on the same machine.

    Args:
        folder: The run folder.
        epochs: A new total; the schedule is laid over it from where the run is.
        say, stop_after: As :func:`fit`.
        checkpoint_every: A new distance between checkpoints.

    Raises:
        RunError: naming the file, if the folder holds no run, or the run is finished.
        TrainingError, Interrupted: as :func:`fit`.
    """
    try:
        is_run = folder.is_dir()
    except OSError as error:
        raise RunError(f"--resume: {folder}: cannot be read ({error.strerror or error})") from None
    if not is_run:
        raise RunError(f"--resume: {folder} is no run folder")
    with files.locked(folder):
        config = TrainConfig.load(folder / CONFIG)
        changes = {"epochs": epochs, "checkpoint_every": checkpoint_every}
        config = dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
        config.check()
        check_kernels(config.kernels, "cuda" if config.on_gpu else "cpu")
        checkpoint = read_last(folder, config)
        done, batches = position(checkpoint) if checkpoint else (0, 0)
        # One that was interrupted after its last epoch still gets its figures and report.
        if done >= config.epochs and (folder / REPORT).exists():
            raise RunError(f"--resume: {folder} has all of its {done} epochs; a larger --epochs goes on")
        data = _load(config, say)
        files.remove_leftovers(folder, folder / CHECKPOINTS)
        within = f" and {batches} steps" if batches else ""
        say(
            f"resuming {folder} after epoch {done} of {config.epochs}{within}"
            if checkpoint
            else f"resuming {folder} from the beginning: it was interrupted before its first checkpoint"
        )
        return _run(config, data, folder, checkpoint, say, stop_after)


def _load(config: TrainConfig, say: Callable[[str], None]) -> ImageData:
    with memory.told(
        lambda: f"reading {config.data}", "images are held in memory: a smaller --image-size needs less"
    ):
        return load(config.data, Path(config.data_dir), config.image_size, say)


def _run(
    config: TrainConfig,
    data: ImageData,
    folder: Path,
    checkpoint: dict[str, Any] | None,
    say: Callable[[str], None],
    stop_after: int | None,
) -> Run:
    process.quiet_lightning()
    process.quiet_tensorboard()
    doing = f"preparing to train {config.model}"
    h, w = data.image_size

    def task() -> str:
        return f"{doing} with batches of {config.batch_size} images of {data.channels}x{h}x{w}"

    advice = "a lower --batch-size or a smaller model needs less"
    with process.settings(config.threads), memory.told(task, advice):
        torch.manual_seed(config.seed)
        network = build(config.model, data.channels, data.image_size, len(data.classes), config.kernels)
        if config.layout == "nhwc":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        start = position(checkpoint) if checkpoint else (0, 0)
        module_data = ImageDataModule(
            data, config.batch_size, config.seed, config.validation, config.workers, start
        )
        steps = config.epochs * len(module_data.train_dataloader())
        card = card_for(
            config, data.source, in_channels=data.channels, image_size=data.image_size, classes=data.classes,
            mean=module_data.mean, std=module_data.std, resized=data.resized,
        )  # fmt: skip
        module = Classifier(network, config, len(data.classes), steps)
        if checkpoint:
            check_fits(folder / LAST, checkpoint, module, card)
        config.save(folder / CONFIG)
        say(
            f"training {config.model} on {data.name} with the kernels of {config.kernels}: "
            f"{len(module_data.train_set)} images, {config.epochs} epochs, {steps} steps; run folder {folder}"
        )
        doing = f"training {config.model}"
        log = _train(config, module, module_data, folder, card, checkpoint is not None, say, stop_after)
        done = len(module.history)
        outcome = report.Outcome(
            seconds=log.seconds,
            steps=int(module.history[-1]["step"]),
            between=log.between / max(log.between + log.inside, 1e-9),
            history=module.history,
        )
        network = network.cpu().eval()
        doing = f"evaluating {config.model}"
        evaluation = evaluate_network(network, module_data.test_dataloader(), data.classes, config.layout)
        if done == config.epochs:
            doing = f"measuring {config.model} for the report"
            _finish(config, data, module_data, network, outcome, evaluation, folder)
            say(f"test accuracy {100 * evaluation.accuracy:.2f} %; report in {folder / REPORT}")
    return Run(folder, evaluation, outcome.seconds)


def _train(
    config: TrainConfig,
    module: Classifier,
    module_data: ImageDataModule,
    folder: Path,
    card: Card,
    resuming: bool,
    say: Callable[[str], None],
    stop_after: int | None,
) -> Log:
    bar = sys.stdout.isatty()
    log = Log(folder, card, None if bar else say)
    with process.StopRequest() as stop:
        checkpoints = Checkpoints(folder, config.checkpoint_every, card, stop)
        trainer = lightning.Trainer(
            accelerator="gpu" if config.on_gpu else "cpu",
            devices=1,
            max_epochs=config.epochs if stop_after is None else min(config.epochs, stop_after),
            # A logger folder of its own for each session of a resumed run; history.csv holds the whole.
            logger=[
                CSVLogger(folder / "logs", name="csv"),
                TensorBoardLogger(folder / "logs", name="tensorboard"),
            ],
            # In this order: the row of an epoch is made before the epoch is saved.
            callbacks=[log, checkpoints, *([RichProgressBar(leave=True)] if bar else [])],
            plugins=[SyncedIO()],
            enable_checkpointing=False,  # Lightning's own
            enable_progress_bar=bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=20,
            # On a GPU some of torch's own operators have no deterministic form; they warn.
            deterministic="warn" if config.on_gpu else True,
            default_root_dir=folder,
        )
        try:
            last = folder / LAST if resuming else None
            trainer.fit(module, module_data, ckpt_path=last, weights_only=True if resuming else None)
        except SystemExit:  # how Lightning ends after a second Ctrl-C
            kept = (
                "from the beginning" if module.saved is None else f"after step {module.saved}, the last saved"
            )
            raise Interrupted(
                f"interrupted in step {trainer.global_step}, unsaved; "
                f"`pyconv train --resume {folder}` goes on {kept}"
            ) from None
        except OSError as error:
            if memory.wanted(error):
                raise
            raise files.cannot_write(folder, error) from None
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
    module_data.start = (0, 0)  # the same batches whether the run was resumed or not
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
    files.write(folder / REPORT, text)
