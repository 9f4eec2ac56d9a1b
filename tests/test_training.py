"""A run leaves all it promises, is equal to the bit when repeated or resumed, and stops if it must."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from pyconv.data import load
from pyconv.data.module import ImageDataModule
from pyconv.errors import PyconvError, RunError, TrainingError, UsageError
from pyconv.models import MODELS, build
from pyconv.training import evaluation, measure, run, weights
from pyconv.training.config import RECIPES, TrainConfig, recipe
from pyconv.training.module import Classifier

#: Two short epochs on the digits. Threads are fixed: torch's own sums, outside our kernels, depend on them.
TINY = TrainConfig(model="convnet-tiny", epochs=2, batch_size=128, lr=0.05, threads=1)


def silent(line: str) -> None:
    pass


@pytest.fixture(autouse=True, scope="module")
def short_measurement():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_SECONDS", 0.0)
        patch.setattr(measure, "_LEAST", 2)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, short_measurement) -> run.Run:
    return run.fit(TINY, tmp_path_factory.mktemp("runs") / "run", silent)


def bits(folder: Path) -> bytes:
    tensors, _ = weights.load(folder / "weights.safetensors")
    return b"".join(value.numpy().tobytes() for _, value in sorted(tensors.items()))


# Models


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_models_have_the_same_weights_for_either_kernels(name, channels) -> None:
    smallest = MODELS[name].smallest
    states = []
    for kernels in ("pyconv", "aten"):
        torch.manual_seed(0)
        states.append(build(name, channels, smallest, 7, kernels).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    model = build(name, channels, (smallest + 3, smallest), 7, "aten").eval()
    assert model(torch.zeros(2, channels, smallest + 3, smallest)).shape == (2, 7)
    with pytest.raises(UsageError, match=f"{name} needs images of at least {smallest}x{smallest}"):
        build(name, channels, smallest - 1, 7)


def test_pyconv_models_use_pyconvs_layers() -> None:
    from pyconv.nn import Conv2d, MaxPool2d

    for module in build("convnet-small", 1, 28, 10).modules():
        assert not isinstance(module, nn.Conv2d) or isinstance(module, Conv2d)
        assert not isinstance(module, nn.MaxPool2d) or isinstance(module, MaxPool2d)
    assert not any(
        isinstance(m, Conv2d | MaxPool2d) for m in build("convnet-small", 1, 28, 10, "aten").modules()
    )


# A whole run


def test_a_run_folder_holds_all_it_promises(finished) -> None:
    folder = finished.folder
    for name in ("curves.png", "confusion.png", "filters.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 200
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "weights.safetensors", "config.json"):
        assert (folder / name).is_file()
    assert list(folder.glob("logs/tensorboard/*/events.out.tfevents.*"))
    assert list(folder.glob("logs/csv/*/metrics.csv"))
    with (folder / "history.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert not list(folder.rglob("*.part"))
    report = (folder / "report.md").read_text(encoding="utf-8")
    for words in (
        "Test accuracy",
        "torch's own (`aten`)",
        "## Kernels",
        "## Versions and machine",
        "shifts of up to 1",
    ):
        assert words in report
    assert "nan" not in report


def test_the_network_learns(finished) -> None:
    assert finished.test.accuracy > 0.7
    assert finished.test.images == 359


def test_two_runs_are_equal_to_the_bit(finished, tmp_path) -> None:
    torch.manual_seed(99)  # whatever the process did before
    again = run.fit(TINY, tmp_path / "again", silent)
    assert bits(again.folder) == bits(finished.folder)
    other = run.fit(replace(TINY, seed=1), tmp_path / "other", silent)
    assert bits(other.folder) != bits(finished.folder)


def test_an_interrupted_and_resumed_run_is_equal_to_the_bit(finished, tmp_path) -> None:
    folder = tmp_path / "run"
    run.fit(TINY, folder, silent, stop_after=1)
    assert not (folder / "report.md").exists()
    assert bits(folder) != bits(finished.folder)
    said: list[str] = []
    resumed = run.resume(folder, say=said.append)
    assert any("after epoch 1 of 2" in line for line in said)
    assert bits(folder) == bits(finished.folder)
    assert resumed.test.confusion.tolist() == finished.test.confusion.tolist()
    with (folder / "history.csv").open(encoding="utf-8") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]


def test_a_finished_run_goes_on_only_with_more_epochs(finished, tmp_path) -> None:
    with pytest.raises(RunError, match="has all of its 2 epochs"):
        run.resume(finished.folder, say=silent)


def test_a_run_stopped_after_its_last_epoch_still_gets_its_report(finished, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "report.md").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Lightning's, for checkpoints of another folder
        run.resume(folder, say=silent)
    assert (folder / "report.md").is_file()
    assert bits(folder) == bits(finished.folder)


def test_training_leaves_torchs_settings_alone(tmp_path) -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(), torch.get_rng_state()
    run.fit(replace(TINY, epochs=1, threads=2, kernels="aten"), tmp_path / "run", silent)
    assert (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_nhwc_and_adamw_train_too(tmp_path) -> None:
    config = replace(TINY, layout="nhwc", optimizer="adamw", lr=0.005, schedule="cosine")
    result = run.fit(config, tmp_path / "run", silent)
    assert result.test.accuracy > 0.7
    assert evaluation.evaluate(result.folder, say=silent).confusion.tolist() == result.test.confusion.tolist()


# Using a run


def test_evaluate_from_the_folder_alone(finished) -> None:
    found = evaluation.evaluate(finished.folder, say=silent)
    assert found.confusion.tolist() == finished.test.confusion.tolist()
    aten = evaluation.evaluate(finished.folder, kernels="aten", say=silent)
    assert math.isclose(aten.loss, found.loss, rel_tol=1e-4)
    assert evaluation.evaluate(finished.folder, best=True, say=silent).images == 359


def test_predict_agrees_with_evaluate(finished, tmp_path) -> None:
    data = load("digits", say=silent)
    paths = []
    for i in range(20):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(data.test.images[i, 0]).save(paths[-1])
    answers = evaluation.predict(finished.folder, paths)
    right = sum(a.ranked[0][0] == str(label) for a, label in zip(answers, data.test.labels[:20], strict=True))
    network, card = evaluation.network_of(finished.folder)
    x = torch.from_numpy(data.test.images[:20] / 255 - card.mean[0]).float() / card.std[0]
    assert right == int((network(x).argmax(1).numpy() == data.test.labels[:20]).sum())
    assert all(abs(sum(p for _, p in answer.ranked) - 1) < 1e-5 for answer in answers)


def test_predict_refuses_images_that_do_not_fit(finished, tmp_path) -> None:
    big, colour, text = tmp_path / "big.png", tmp_path / "colour.png", tmp_path / "text.png"
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(big)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(colour)
    text.write_text("no image")
    for path, message in (
        (big, "30x20 pixels, but the model was trained on 8x8; --resize"),
        (colour, "a colour image, but the model was trained on grey"),
        (text, "not a readable image"),
        (tmp_path / "missing.png", "not a readable image"),
    ):
        with pytest.raises(PyconvError, match=message) as caught:
            evaluation.predict(finished.folder, [path])
        assert str(path) in str(caught.value)
    assert len(evaluation.predict(finished.folder, [big, colour], resize=True)) == 2


def test_weights_that_are_none_are_refused(finished, tmp_path) -> None:
    good = (finished.folder / "weights.safetensors").read_bytes()
    path = tmp_path / "weights.safetensors"
    with pytest.raises(RunError, match="no such file; has this run finished an epoch"):
        evaluation.evaluate(tmp_path, say=silent)
    for content in (b"", good[:1000], good[:-1], b"\x80\x04K\x01."):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"weights.safetensors: not a whole safetensors file"):
            evaluation.evaluate(tmp_path, say=silent)
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}))
    with pytest.raises(RunError, match="not the weights of a pyconv run"):
        evaluation.evaluate(tmp_path, say=silent)
    tensors, card = weights.load(finished.folder / "weights.safetensors")
    network = weights.network(path, tensors, card)
    weights.save(path, network, replace(card, model="lenet5", image_size=(12, 12)))
    with pytest.raises(RunError, match="not the weights of lenet5"):
        evaluation.evaluate(tmp_path, say=silent)
    (tmp_path / "checkpoints").mkdir()
    weights.save(path, network, card)
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(RunError, match=r"best.ckpt: not a whole checkpoint"):
        evaluation.network_of(tmp_path, best=True)


# Refusals


def test_an_existing_folder_is_refused_and_untouched(finished, tmp_path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    with pytest.raises(RunError, match="exists already"):
        run.fit(TINY, finished.folder, silent)
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="exists already"):
        run.fit(TINY, tmp_path / "file", silent)


def test_bad_configurations_write_nothing(tmp_path) -> None:
    for change, message in (
        ({"model": "convnet-smal"}, "did you mean convnet-small"),
        ({"kernels": "pyconf"}, "did you mean pyconv"),
        ({"epochs": 0}, "--epochs: 0 given"),
        ({"lr": -1.0}, "--lr: -1.0 given"),
        ({"lr": math.nan}, "--lr: nan given"),
        ({"validation": 0.9}, "--validation: 0.9 given"),
        ({"model": "lenet5"}, "lenet5 needs images of at least 12x12, these are 8x8"),
        ({"data": "digit"}, "did you mean digits"),
    ):
        with pytest.raises(UsageError, match=message):
            run.fit(replace(TINY, **change), tmp_path / "run", silent)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ \(epoch \d+\)"):
        run.fit(replace(TINY, lr=1e30, schedule="constant"), tmp_path / "run", silent)
    assert not (tmp_path / "run" / "report.md").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch) -> None:
    """A last step can spoil the weights after its loss was seen; the checkpoint before must survive."""
    spoil = Classifier.on_validation_epoch_end

    def spoiled(self: Classifier) -> None:
        if self.current_epoch == 1:
            next(self.network.parameters()).data.fill_(math.inf)
        spoil(self)

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", spoiled)
    with pytest.raises(TrainingError, match=r"weight is not finite after step \d+ \(epoch 1\)"):
        run.fit(TINY, tmp_path / "run", silent)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(state["history"]) == 1
    assert all(torch.isfinite(v).all() for v in state["state_dict"].values() if v.is_floating_point())


def test_resuming_what_is_no_run(tmp_path) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        run.resume(tmp_path / "nowhere", say=silent)
    with pytest.raises(RunError, match=r"config.json: cannot be read"):
        run.resume(tmp_path, say=silent)
    (tmp_path / "config.json").write_text('{"colour": 1}')
    with pytest.raises(RunError, match=r"config.json: not the configuration of a run"):
        run.resume(tmp_path, say=silent)
    TINY.save(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"epochs": "many"}')
    with pytest.raises(RunError, match=r"config.json: not the configuration of a run \(epochs is 'many'"):
        run.resume(tmp_path, say=silent)
    TINY.save(tmp_path / "config.json")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"PK")
    with pytest.raises(RunError, match=r"last.ckpt: not a whole checkpoint"):
        run.resume(tmp_path, say=silent)


# Parts


def test_the_schedules() -> None:
    module = Classifier(nn.Linear(1, 2), replace(TINY, warmup=0.25), 2, steps=100)
    rates = [module.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == rates[24] == rates[25] == 1
    assert rates[100] == 0
    assert all(b <= a for a, b in itertools.pairwise(rates[25:]))
    cosine = Classifier(nn.Linear(1, 2), replace(TINY, warmup=0.0, schedule="cosine"), 2, steps=100)
    assert [round(cosine.rate(step), 6) for step in (0, 50, 100)] == [1, 0.5, 0]


def test_every_recipe_is_valid_and_can_be_overridden() -> None:
    for data in RECIPES:
        recipe(data).check()
    assert recipe("digits", epochs=3, lr=None).epochs == 3
    assert recipe("digits").model == RECIPES["digits"]["model"]


def test_a_configuration_survives_its_file(tmp_path) -> None:
    TINY.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == TINY
    assert json.loads((tmp_path / "config.json").read_text())["model"] == "convnet-tiny"


def test_validation_images_are_never_trained_on() -> None:
    data = load("digits", say=silent)
    module = ImageDataModule(data, 64)
    assert len(module.train_set) + len(module.validation_set) == len(data.train)
    held_out = {image.tobytes() for image in module.validation_set.images}
    assert not held_out & {image.tobytes() for image in module.train_set.images}
