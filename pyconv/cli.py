"""The command line. What a command does is elsewhere, and imported when it runs."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="pyconv",
    help="Convolution and max-pooling written by hand, and ConvNets trained with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Kernels = Annotated[str | None, typer.Option(help="pyconv for our kernels, aten for torch's own.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Where data files are looked for first, and downloaded to.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Best = Annotated[bool, typer.Option("--best", help="The best epoch on validation images, not the last.")]


def _say(line: str) -> None:
    print(line, flush=True)


@app.command()
def train(
    data: Annotated[
        str | None, typer.Option(help="digits, fashion-mnist, cifar10 or a folder of class folders. [digits]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model's name; an unknown one lists them all.")] = None,
    kernels: Kernels = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adamw.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option(help="SGD's momentum, AdamW's first beta.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of filters and matrices.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="0 for none.")] = None,
    schedule: Annotated[str | None, typer.Option(help="one-cycle, cosine or constant.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Part of all steps in which the rate rises.")] = None,
    validation: Annotated[float | None, typer.Option(help="Part of the training images held out.")] = None,
    layout: Annotated[str | None, typer.Option(help="nchw or nhwc.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side a folder's images are resized to. [64]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order, augmentation and dropout. [0]")] = None,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. [runs/<data>-<model>-<time>]")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that make batches. [0]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch's pool.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. [auto]")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints within an epoch. [only at each epoch's end]")
    ] = None,
) -> None:
    """Train a ConvNet. What is not given comes from the data set's recipe."""
    given: dict[str, Any] = {
        "model": model, "kernels": kernels, "epochs": epochs, "batch_size": batch_size,
        "optimizer": optimizer, "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "schedule": schedule, "warmup": warmup, "validation": validation, "layout": layout,
        "image_size": image_size, "seed": seed, "data_dir": str(data_dir) if data_dir else None,
        "workers": workers, "threads": threads, "device": device,
        "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    from pyconv.errors import UsageError
    from pyconv.training import run
    from pyconv.training.config import recipe

    if resume is None:
        run.fit(recipe(data or "digits", **given), out, _say)
        return
    also = {name for name, value in {**given, "data": data, "out": out}.items() if value is not None}
    for name in sorted(also - {"epochs", "checkpoint_every"}):
        option = "--" + name.replace("_", "-")
        raise UsageError(
            f"{option}: not with --resume, which goes on with the run's own settings (but --epochs and "
            "--checkpoint-every)"
        )
    run.resume(resume, epochs, _say, checkpoint_every=checkpoint_every)


@app.command()
def evaluate(run: RunFolder, data_dir: DataDir = None, kernels: Kernels = None, best: Best = False) -> None:
    """Accuracy of a run on the test images of its data set."""
    from pyconv.training.evaluation import evaluate as evaluate_run

    result = evaluate_run(run, data_dir, kernels, best, _say)
    for name, accuracy in result.per_class():
        _say(f"  {name}: " + ("no images" if math.isnan(accuracy) else f"{100 * accuracy:.1f} %"))
    _say(f"test accuracy {100 * result.accuracy:.2f} % of {result.images} images, loss {result.loss:.4f}")


@app.command()
def predict(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    kernels: Kernels = None,
    best: Best = False,
    resize: Annotated[
        bool, typer.Option("--resize", help="Make images of another size or kind fit.")
    ] = False,
    top: Annotated[int, typer.Option(help="Classes to show.")] = 3,
) -> None:
    """The classes of images, by a trained run."""
    from pyconv.errors import UsageError
    from pyconv.training.evaluation import predict as predict_images

    if top < 1:
        raise UsageError(f"--top: {top} given; 1 or more is needed")
    for answer in predict_images(run, images, kernels, best, resize):
        ranked = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in answer.ranked[:top])
        _say(f"{answer.path}: {ranked}")


@app.command("kernels")
def list_kernels(
    operation: Annotated[str | None, typer.Argument(help="conv2d or maxpool2d; all if left out.")] = None,
) -> None:
    """The table of kernels: what each computes, for what, and what it promises."""
    from rich.console import Console
    from rich.table import Table

    from pyconv.errors import unknown
    from pyconv.registry import PASSES, kernels
    from pyconv.tables import HEADER, row

    if operation not in (None, *PASSES):
        raise unknown("OPERATION", str(operation), PASSES)
    table = Table(*HEADER, box=None, pad_edge=False)
    for kernel in kernels(operation):
        table.add_row(*row(kernel))
    # A pipe or file gets whole lines whatever the width of the terminal.
    console = Console(width=None if sys.stdout.isatty() else 240)
    console.print(table)


@app.command()
def explain(
    problem: Annotated[str, typer.Argument(help="Such as 'conv2d n8c64h56w56 k64r3s3 st1 pd1 f32 nchw'.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Which kernel runs each pass of a problem, and why each of the others does not."""
    from pyconv.errors import UsageError, unknown
    from pyconv.selection import explain as explain_selection

    if device not in ("cpu", "cuda"):
        raise unknown("--device", device, ("cpu", "cuda"))
    try:
        explanation = explain_selection(problem, device)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"PROBLEM: {error}") from None
    _say(str(explanation))


@app.command()
def tune(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL_OR_SHAPES",
            help="A model's name, a file with a problem a line, or one problem in its text form.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    layouts: Annotated[str, typer.Option(help="Such as nchw,nhwc; left out, those of the problems.")] = "",
    dtypes: Annotated[str, typer.Option(help="Such as f32,bf16; left out, those of the problems.")] = "",
    batch_size: Annotated[int | None, typer.Option(help="Images a step, for a model. [32]")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of an image, for a model. [32]")] = None,
    in_channels: Annotated[int | None, typer.Option(help="Of an image, for a model. [3]")] = None,
    seconds: Annotated[float, typer.Option(help="Of measuring, for each problem.")] = 4.0,
    include_aten: Annotated[
        bool, typer.Option("--include-aten", help="Let torch's own kernels win where they are faster.")
    ] = False,
    precision: Annotated[
        str, typer.Option(help="Algorithm precision to tune for: exact, standard or fast.")
    ] = "standard",
    workspace_limit: Annotated[int | None, typer.Option(help="Bytes, to tune for such a limit.")] = None,
    tf32: Annotated[
        bool | None, typer.Option("--tf32/--no-tf32", help="To tune for; left out, as torch has it.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="List what was measured.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Delete what was measured.")] = False,
    export: Annotated[Path | None, typer.Option(metavar="FILE", help="Copy it to a new file.")] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Add that of an exported file.")
    ] = None,
) -> None:
    """Measure which kernel is the fastest for each problem; from then on, selection takes that one."""
    from pyconv.errors import UsageError, unknown

    asked = {
        "MODEL_OR_SHAPES": target, "--show": show, "--clear": clear, "--export": export, "--import": import_,
    }  # fmt: skip
    if len(given := [name for name, value in asked.items() if value not in (None, False)]) != 1:
        raise UsageError(f"one of {', '.join(asked)} is needed; given: {', '.join(given) or 'none'}")
    from pyconv import tuning, tuning_store
    from pyconv.switches import PRECISIONS

    path = tuning.location()
    if path is None:
        raise UsageError("PYCONV_TUNING is off; unset, or the name of a file, is needed to tune")
    if show:
        _say(tuning_store.listing())
    elif clear:
        path, count = tuning_store.clear()
        _say(f"{path}: {count} measurements deleted")
    elif export:
        _say(f"{export}: {tuning_store.export(export)} measurements")
    elif import_:
        _say(f"{path}: {tuning_store.take(import_)} measurements of {import_} added")
    if target is None:
        return
    if device not in ("cpu", "cuda"):
        raise unknown("--device", device, ("cpu", "cuda"))
    if tuning.device(device) is None:
        raise UsageError(f"--device: {device} given, and torch finds no such device here")
    if not 0 <= seconds < math.inf:
        raise UsageError(f"--seconds: {seconds} given; 0 or more is needed")
    if precision not in PRECISIONS:
        raise unknown("--precision", precision, PRECISIONS)
    if workspace_limit is not None and workspace_limit < 0:
        raise UsageError(f"--workspace-limit: {workspace_limit} given; 0 or more is needed")
    from pyconv import tune as tuner
    from pyconv.tuning_problems import problems_of

    problems = problems_of(target, _words(layouts), _words(dtypes), batch_size, image_size, in_channels)
    with tuner.switched(precision, workspace_limit, tf32):
        outcomes = tuner.tune(problems, device, seconds, include_aten, _say)
    _say(f"{path}: {sum(outcome.entry is not None for outcome in outcomes)} measurements kept")


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C.

    What the user can put right is one line on standard error, without a traceback.
    """
    from pyconv.errors import Interrupted, PyconvError

    try:
        status = app(
            list(sys.argv[1:] if arguments is None else arguments), prog_name="pyconv", standalone_mode=False
        )
        if status == Interrupted.exit_status:  # Ctrl-C anywhere but in training
            print("interrupted", file=sys.stderr)
        return status if isinstance(status, int) else 0
    except Interrupted as stop:
        print(" ".join(str(stop).split()), file=sys.stderr)
        return stop.exit_status
    except PyconvError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return 1
    except Exception as error:
        # Typer's own usage errors: wrong options and values.
        if not hasattr(error, "format_message"):
            raise
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)
        return int(getattr(error, "exit_code", 2))
