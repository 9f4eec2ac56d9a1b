"""The command line: what works says so on standard output; what cannot is one line on standard error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyconv import cli
from pyconv.training import measure
from tests.test_data import fake_fashion

TINY = ["--epochs", "1", "--batch-size", "256"]


@pytest.fixture(autouse=True, scope="module")
def short_measurement():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_SECONDS", 0.0)
        patch.setattr(measure, "_LEAST", 2)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, short_measurement) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["train", *TINY, "--out", str(folder)]) == 0
    return folder


def test_train_evaluate_predict(trained, tmp_path, capsys) -> None:
    assert (trained / "report.md").is_file()
    assert cli.main(["evaluate", str(trained)]) == 0
    assert "% of 359 images" in capsys.readouterr().out
    image = tmp_path / "seven.png"
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(image)
    assert cli.main(["predict", str(trained), str(image), str(image), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{image}: ")
    assert lines[0].count("%") == 2


def test_train_on_files_of_fashion_mnists_format(tmp_path, capsys) -> None:
    data = fake_fashion(tmp_path / "data")
    arguments = ["--data", "fashion-mnist", "--data-dir", str(data), "--kernels", "aten", *TINY]
    assert cli.main(["train", *arguments, "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert f"found in {data}" in out
    assert "epoch 1/1" in out
    assert cli.main(["evaluate", str(tmp_path / "run"), "--kernels", "pyconv"]) == 0
    os.remove(data / "t10k-images-idx3-ubyte.gz")
    (data / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err == (
        f"error: {data / 't10k-images-idx3-ubyte'}: truncated: 4 bytes are too few for an IDX header\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "--data", "fashion"], 2, "--data: unknown name 'fashion'; did you mean fashion-mnist?"),
        (["train", "--model", "lenet"], 2, "--model: unknown name 'lenet'; did you mean lenet5?"),
        (["train", "--kernels", "ours"], 2, "--kernels: unknown name 'ours'; (known: pyconv, aten)"),
        (["train", "--device", "tpu"], 2, "(known: auto, cpu, cuda, gpu)"),
        (["train", "--epochs", "0"], 2, "--epochs: 0 given; 1 or more is needed"),
        (["train", "--epochs", "many"], 2, "--epochs"),
        (["train", "--no-such-option"], 2, "--no-such-option"),
        (["train", "--image-size", "32"], 2, "--image-size: digits has images of one size"),
        (["train", "--data", "no/such/folder"], 1, "no folder no/such/folder"),
        (["train", "--out", "{tmp}"], 1, "{tmp}: exists already"),
        (["train", "--resume", "{tmp}/none"], 1, "--resume: {tmp}/none is no run folder"),
        (["train", "--resume", "{tmp}", "--lr", "1"], 2, "--lr: not with --resume"),
        (["train", "--resume", "{tmp}", "--checkpoint-every", "0"], 1, "{tmp}/config.json: cannot be read"),
        (["train", "--checkpoint-every", "0"], 2, "--checkpoint-every: 0 given; 1 or more is needed"),
        (
            ["train", "--out", "{tmp}/something/run"],
            1,
            "{tmp}/something/run: cannot be written (Not a directory)",
        ),
        (["evaluate", "{run}", "--kernels", "atn"], 2, "--kernels: unknown name 'atn'; did you mean aten?"),
        (["evaluate", "{tmp}/something"], 1, "{tmp}/something: a file; a run folder is needed"),
        (["kernels", "conv3d"], 2, "OPERATION: unknown name 'conv3d'; did you mean conv2d?"),
        (["explain", "conv2d n8"], 2, "PROBLEM: problem 'conv2d n8': no c, h, k, r, s, w"),
        (
            ["explain", "conv2d n1c1h5w5 k1r3s3 f32 nchw", "--device", "tpu"],
            2,
            "--device: unknown name 'tpu'",
        ),
        (["predict", "{run}", "{run}/curves.png"], 1, "{run}/curves.png: 480x1200 pixels, but the model was"),
        (["predict", "{run}", "{run}"], 1, "{run}: not a readable image (Is a directory)"),
        (["evaluate", "{tmp}/none"], 1, "{tmp}/none: no run folder"),
        (["evaluate", "{tmp}"], 1, "{tmp}/weights.safetensors: no such file"),
        (["evaluate"], 2, "RUN"),
        (["predict", "{run}", "{tmp}/none.png"], 1, "{tmp}/none.png: not a readable image (No such file"),
        (["predict", "{run}"], 2, "IMAGE"),
        (["predict", "{run}", "{tmp}/none.png", "--top", "0"], 2, "--top: 0 given"),
        (["no-such-command"], 2, "no-such-command"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(
    trained, tmp_path, capsys, arguments, status, message
) -> None:
    (tmp_path / "something").write_text("in the way")
    places = {"tmp": tmp_path, "run": trained}
    assert cli.main([word.format(**places) for word in arguments]) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message.format(**places) in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["something"]


def test_a_wild_learning_rate_is_one_line(tmp_path, capsys) -> None:
    assert cli.main(["train", "--lr", "1e30", "--epochs", "2", "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "error: the loss is" in error
    assert "at step" in error
    assert "Traceback" not in error


def test_kernels_that_cannot_run_are_refused_and_not_replaced(trained, tmp_path, monkeypatch, capsys) -> None:
    """Torch's own kernels under our name would make every figure of the report a false one."""
    monkeypatch.setattr("pyconv.backends.unavailable", lambda backend, device: "not built")
    new = str(tmp_path / "run")
    for arguments in (
        ["train", "--out", new],
        ["train", "--resume", str(trained)],
        ["evaluate", str(trained)],
    ):
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err == (
            "error: --kernels: pyconv's cannot run here (not built); aten takes torch's own\n"
        )
    assert not (tmp_path / "run").exists()


def test_as_a_program() -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pyconv", *arguments], capture_output=True, text=True, check=False
        )

    helped = call("--help")
    assert helped.returncode == 0
    assert all(command in helped.stdout for command in ("train", "evaluate", "predict"))
    failed = call("evaluate", "no-such-run")
    assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", "error: no-such-run: no run folder\n")


def test_ctrl_c_says_how_to_go_on(tmp_path) -> None:
    folder = tmp_path / "run"
    options = ["--epochs", "1000", "--threads", "1", "--out", str(folder)]
    command = [sys.executable, "-m", "pyconv", "train", *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=hear_ctrl_c) as program:
        assert program.stdout is not None
        for line in program.stdout:
            if line.startswith("epoch 2/"):
                program.send_signal(signal.SIGINT)
                break
        _, error = program.communicate(timeout=120)
    assert program.returncode == 130
    assert "Traceback" not in error
    assert error.strip().splitlines()[-1].startswith("interrupted after step")
    assert f", which was saved; `pyconv train --resume {folder}` goes on from there" in error


def hear_ctrl_c() -> None:
    """A test runner in the background ignores Ctrl-C, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no CUDA device")
def test_a_gpu_that_is_not_there_is_one_line(tmp_path, capsys) -> None:
    for device in ("cuda", "gpu"):
        assert cli.main(["train", "--device", device, "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(
            f"error: --device: {device} given; torch {torch.__version__} finds no CUDA device"
        )
