"""However often a run is interrupted, and by whatever, it ends as one that never was: equal to the bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyconv.errors import Interrupted, RunError, TrainingError
from pyconv.training import checkpoints, files, measure, run, weights
from pyconv.training.checkpoints import Checkpoints
from pyconv.training.config import TrainConfig
from pyconv.training.module import Classifier
from tests import trainer

#: Four steps an epoch, with augmentation, dropout, batch normalisation and momentum; a save after each.
TINY = TrainConfig(model="convnet-tiny", epochs=2, batch_size=350, lr=0.05, threads=1, checkpoint_every=1)
OTHER = replace(
    TINY, optimizer="adamw", lr=0.005, schedule="cosine", layout="nhwc", workers=1, checkpoint_every=3, seed=3
)


def silent(line: str) -> None:
    pass


@pytest.fixture(autouse=True, scope="module")
def short_measurement():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_SECONDS", 0.0)
        patch.setattr(measure, "_LEAST", 2)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, short_measurement) -> Path:
    return run.fit(TINY, tmp_path_factory.mktemp("runs") / "run", silent).folder


def results(folder: Path) -> dict[str, object]:
    """All that must be equal: everything a run leaves but times and what is logged session by session."""
    report = (folder / "report.md").read_text(encoding="utf-8")
    times = report[report.index("## Time") : report.index("## Kernels")]
    found: dict[str, object] = {
        "report": report.replace(times, ""),
        "history": (folder / "history.csv").read_bytes(),
        "config": json.loads((folder / "config.json").read_text()),
        "weights": (folder / "weights.safetensors").read_bytes(),
    }
    for name in ("last", "best"):
        state = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        tensors = [*state["state_dict"].values()]
        for moments in state["optimizer_states"][0]["state"].values():
            tensors += [value for value in moments.values() if isinstance(value, torch.Tensor)]
        found[name] = [value.numpy().tobytes() for value in tensors]
        found[f"{name}'s rate"] = state["lr_schedulers"], state["global_step"]
    found["figures"] = [(folder / f"{name}.png").read_bytes() for name in ("curves", "confusion", "filters")]
    return found


def assert_equal(folder: Path, whole: Path) -> None:
    found, wanted = results(folder), results(whole)
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert trainer.leftovers(folder) == []


def interrupted_in(
    folder: Path,
    config: TrainConfig,
    step: int,
    patch: pytest.MonkeyPatch,
    number: signal.Signals = signal.SIGINT,
) -> str:
    """Begin or go on, and press Ctrl-C (or send another signal) in this step; the message."""

    def press(self: Checkpoints, pl_trainer, module, batch, index) -> None:
        if pl_trainer.global_step == step:
            os.kill(os.getpid(), number)

    with patch.context() as within:
        within.setattr(Checkpoints, "on_train_batch_start", press)
        resume, fit = (lambda: run.resume(folder, say=silent)), (lambda: run.fit(config, folder, silent))
        with pytest.raises(Interrupted) as caught:
            resume() if folder.exists() else fit()
    assert caught.value.exit_status == 128 + number
    return str(caught.value)


# Ctrl-C


@pytest.fixture
def ctrl_c():
    """Heard also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_several_steps_changes_nothing(ctrl_c, whole, tmp_path, monkeypatch) -> None:
    """In the middle of an epoch, in its last step, and in the last step of all."""
    folder, config = tmp_path / "run", replace(TINY, checkpoint_every=None)
    for step, number in ((1, signal.SIGINT), (3, signal.SIGTERM), (7, signal.SIGINT)):
        message = interrupted_in(folder, config, step, monkeypatch, number)
        assert message.startswith(
            f"interrupted after step {step + 1}, which was saved; `pyconv train --resume"
        )
    said: list[str] = []
    # How often it is saved is no part of the result.
    run.resume(folder, say=said.append, checkpoint_every=1)
    assert said[1] == f"resuming {folder} after epoch 2 of 2"
    assert_equal(folder, whole)


@pytest.mark.exhaustive
@pytest.mark.parametrize("config", [TINY, OTHER], ids=["sgd", "adamw-nhwc-worker"])
def test_ctrl_c_in_any_step_changes_nothing(ctrl_c, config, tmp_path, monkeypatch) -> None:
    run.fit(config, tmp_path / "whole", silent)
    for step in range(8):
        folder = tmp_path / str(step)
        interrupted_in(folder, config, step, monkeypatch)
        run.resume(folder, say=silent)
        assert_equal(folder, tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once_and_loses_only_steps(ctrl_c, whole, tmp_path, monkeypatch) -> None:
    def twice(self: Classifier, batch, index) -> torch.Tensor:
        if self.global_step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, index)

    step = Classifier.training_step
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", twice)
        with pytest.raises(
            Interrupted, match=r"interrupted in step 5, unsaved; .* after step 5, the last saved"
        ):
            run.fit(TINY, tmp_path / "run", silent)
    run.resume(tmp_path / "run", say=silent)
    assert_equal(tmp_path / "run", whole)


# SIGKILL


def _killed_at_random(config: TrainConfig, folder: Path, kills: int, seed: int, longest: float) -> int:
    """Kill sessions at random moments, ``kills`` times, then let one end; how many died inside a save."""
    draw, in_save = random.Random(seed), 0
    for number in range(kills):
        process = trainer.start(trainer.session, config, folder, number, None)
        # From the first file on: what is before it is the same as not having started.
        while not (folder / "config.json").exists() and process.is_alive():
            time.sleep(0.005)
        time.sleep(longest * draw.random())
        process.kill()
        process.join()
        in_save += bool(trainer.leftovers(folder))
        if (folder / checkpoints.LAST).exists():
            torch.load(folder / checkpoints.LAST, weights_only=True)  # always whole
        if (folder / "report.md").exists():
            break
    while not (folder / "report.md").exists():
        process = trainer.start(trainer.session, config, folder, kills, None)
        process.join(300)
        assert process.exitcode == 0
    return in_save


def test_sigkill_at_random_moments_changes_nothing(whole, tmp_path) -> None:
    _killed_at_random(TINY, tmp_path / "run", 3, seed=1, longest=1.0)
    assert_equal(tmp_path / "run", whole)


@pytest.mark.exhaustive
@pytest.mark.parametrize("config", [replace(TINY, epochs=6), replace(OTHER, epochs=6)], ids=["sgd", "adamw"])
def test_sigkill_at_twenty_random_moments_changes_nothing(config, tmp_path) -> None:
    run.fit(config, tmp_path / "whole", silent)
    in_save = 0
    for number in range(4):
        folder = tmp_path / str(number)
        in_save += _killed_at_random(config, folder, 5, seed=number, longest=0.8)
        assert_equal(folder, tmp_path / "whole")
    assert in_save > 0


def _killed_in_save(folder: Path, stage: int) -> None:
    process = trainer.start(trainer.session, TINY, folder, 0, stage)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def test_sigkill_inside_saves_changes_nothing(whole, tmp_path) -> None:
    """Before a checkpoint is synced, before it is renamed, and before its folder is synced."""
    folder = tmp_path / "run"
    left = set()
    for stage in (1, 7, 8, 12):
        _killed_in_save(folder, stage)
        left.add(len(trainer.leftovers(folder)))
    assert left == {0, 1}
    run.resume(folder, say=silent)
    assert_equal(folder, whole)


@pytest.mark.exhaustive
def test_sigkill_at_twenty_stages_of_saves_changes_nothing(whole, tmp_path) -> None:
    for stage in random.Random(0).sample(range(1, 54), 20):  # a run of TINY has 18 saves or more
        folder = tmp_path / str(stage)
        _killed_in_save(folder, stage)
        trainer.start(trainer.session, TINY, folder, 0, 10**6).join(300)
        assert_equal(folder, whole)


def test_leftovers_are_removed_and_nothing_else_is(whole, tmp_path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "report.md").unlink()
    for name in ("checkpoints/last.ckpt.123.part", "history.csv.99.part", "mine.part"):
        (folder / name).write_text("half")
    run.resume(folder, say=silent)
    assert [path.name for path in folder.rglob("*.part")] == ["mine.part"]
    empty = tmp_path / "killed"  # before it had written anything
    empty.mkdir()
    (empty / "config.json.123.part").write_text("{")
    with pytest.raises(RunError, match=r"config.json: cannot be read"):
        run.resume(empty, say=silent)
    run._check_free(empty)


# What a save meets


def test_a_disk_that_is_full_is_one_line_and_the_last_checkpoint_survives(whole, tmp_path) -> None:
    """A limit on the size of a file, as any user can set it: it meets the checkpoint, the largest file."""
    folder, errors = tmp_path / "run", tmp_path / "errors"
    process = trainer.start(trainer.session, TINY, folder, 0, 8)  # there is one checkpoint
    process.join(300)
    before = (folder / checkpoints.LAST).read_bytes()
    arguments = ["train", "--resume", str(folder)]
    status, error = trainer.call(arguments, errors, _no_large_files)
    assert (status, error) == (
        1,
        f"error: {folder / checkpoints.LAST}: cannot be written (File too large); what was saved before is "
        "unchanged\n",
    )
    assert (folder / checkpoints.LAST).read_bytes() == before
    assert trainer.leftovers(folder) == []
    run.resume(folder, say=silent)
    assert_equal(folder, whole)


def _no_large_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


@pytest.fixture
def small_disk():
    """Mounts a file system of so many KiB. Not below pytest's folders, which another pytest may clean up."""
    place = Path(tempfile.mkdtemp(prefix="pyconv-disk-"))
    mounted = False

    def mount(kib: int) -> Path:
        nonlocal mounted
        options = ["-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
        result = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"cannot mount a small file system here: {result.stderr.strip()}")
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)
    place.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("kib", [4, 1200])
def test_a_full_disk_is_one_line(small_disk, tmp_path, kib) -> None:
    """4 KiB hold not even the logs; 1200 hold the checkpoint of the first epoch and no other beside it."""
    folder = small_disk(kib) / "run"
    options = ["--epochs", "2", "--batch-size", "350", "--checkpoint-every", "1", "--threads", "1"]
    status, error = trainer.call(["train", *options, "--out", str(folder)], tmp_path / "errors")
    assert (status, error.count("\n")) == (1, 1), error
    assert error.startswith(f"error: {folder}")
    assert "cannot be written (No space left on device); what was saved before is unchanged" in error
    if kib > 1000:
        assert torch.load(folder / checkpoints.LAST, weights_only=True)["global_step"] >= 1
        assert not trainer.leftovers(folder)


# Refusals


def test_a_checkpoint_of_another_run_is_refused(whole, tmp_path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "report.md").unlink()
    last = folder / checkpoints.LAST
    good = torch.load(last, weights_only=True)

    def refused(message: str) -> None:
        with pytest.raises(RunError, match=message) as caught:
            run.resume(folder, say=silent)
        assert str(last) in str(caught.value)

    replace(TINY, optimizer="adamw").save(folder / "config.json")
    refused(
        "not a checkpoint of this run: its optimizer is 'sgd', and 'adamw' in the configuration beside it"
    )
    TINY.save(folder / "config.json")
    torch.save({**good, "card": {**good["card"], "classes": ("a", "b")}}, last)
    refused("trained on other data than there is now: classes was")
    state = dict(good["state_dict"])
    name, value = next(iter(state.items()))
    torch.save({**good, "state_dict": {**state, name: value[:1]}}, last)
    refused(f"not the weights of convnet-tiny: {name} has shape")
    del state[name]
    torch.save({**good, "state_dict": state}, last)
    refused(f"not the weights of convnet-tiny: it lacks {name}, which the model has")
    last.write_bytes(b"\x80\x04cposix\nsystem\nX\x04\x00\x00\x00true\x85R.")  # it would run a command
    refused("not a whole checkpoint")


def test_two_processes_do_not_train_in_one_folder(whole, tmp_path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "report.md").unlink()
    refused = pytest.raises(RunError, match=f"{folder}: another process is training in it")
    with files.locked(folder):
        with refused:
            run.resume(folder, say=silent)
        # As one that makes batches, and outlives a trainer that is killed.
        context = multiprocessing.get_context("fork")
        runs = context.Event()
        child = context.Process(target=lambda: (runs.set(), time.sleep(60)))
        child.start()
        assert runs.wait(30)
    with files.locked(folder):
        child.kill()
    child.join()


def test_a_loss_that_is_not_finite_keeps_the_newest_checkpoint(tmp_path, monkeypatch) -> None:
    step = Classifier.training_step

    def spoiled(self: Classifier, batch, index) -> torch.Tensor:
        if self.global_step == 5:
            batch = (batch[0] * float("nan"), batch[1])
        return step(self, batch, index)

    monkeypatch.setattr(Classifier, "training_step", spoiled)
    with pytest.raises(
        TrainingError,
        match=r"the loss is nan at step 5 \(epoch 1\); training stopped; the checkpoint after step 5 is kept",
    ):
        run.fit(TINY, tmp_path / "run", silent)
    state = torch.load(tmp_path / "run" / checkpoints.LAST, weights_only=True)
    assert state["global_step"] == 5
    assert all(torch.isfinite(v).all() for v in state["state_dict"].values() if v.is_floating_point())
    tensors, _ = weights.load(tmp_path / "run" / "weights.safetensors")
    assert all(torch.isfinite(v).all() for v in tensors.values() if v.is_floating_point())
