"""What people read is true: the README's table and example, the environment variables, the layer table."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import pyconv
from pyconv import tables
from pyconv.registry import kernels

ROOT = Path(__file__).resolve().parent.parent


def test_the_readmes_kernel_table_is_current() -> None:
    assert tables.main([]) == 0, "stale: make tables"
    assert all(f"`{kernel.name}`" in (ROOT / "README.md").read_text() for kernel in kernels())


def test_the_readmes_example_runs(capsys) -> None:  # type: ignore[no-untyped-def]
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    y = names["y"]
    assert isinstance(y, torch.Tensor)
    assert y.shape == (1, 1, 4, 4)
    assert "* conv2d.fprop." in capsys.readouterr().out


def test_every_environment_variable_is_on_its_page() -> None:
    page = (ROOT / "docs" / "environment.md").read_text()
    sources = [ROOT / "setup.py", *ROOT.glob("pyconv/**/*.py"), *ROOT.glob("kernels/**/*.cpp")]
    read = {
        name
        for source in sources
        for name in re.findall(r"(?:environ\.get|environ|getenv)[\[(]\"(PYCONV_\w+)\"", source.read_text())
    }
    assert read == set(re.findall(r"^\| `(PYCONV_\w+)` \|", page, re.MULTILINE))
    assert "PYCONV_KERNELS" in read


def test_kernels_of_lists_each_pass_of_each_layer_and_leaves_the_model_alone() -> None:
    model = torch.nn.Sequential(
        pyconv.nn.Conv2d(1, 4, 3, padding=1, bias=False), torch.nn.Dropout(), pyconv.nn.MaxPool2d(2)
    )
    rows = tables.kernels_of(model, torch.randn(2, 1, 8, 8))
    assert [(row.layer, row.pass_) for row in rows] == [
        ("0", "fprop"), ("0", "dgrad"), ("0", "wgrad"), ("2", "fprop_argmax"), ("2", "dgrad"),
    ]  # fmt: skip
    assert rows[0].problem == "conv2d n2c1h8w8 k4r3s3 st1 pd1 f32 nchw"
    assert all(row.kernel.endswith("@cpu") for row in rows)
    assert model.training
    assert not model[0]._forward_hooks
    with pyconv.use("aten"):
        assert all(row.kernel.endswith("@aten") for row in tables.kernels_of(model, torch.randn(2, 1, 8, 8)))


def test_an_explanation_takes_text_and_reads_as_a_page() -> None:
    text = "maxpool2d n1c1h4w4 r2s2 st2 pd0 f32 nchw"
    explanation = pyconv.explain(text)
    assert str(explanation).startswith(text)
    assert explanation == pyconv.explain(pyconv.parse_problem(text))
    assert str(explanation).count("\n  * ") == 4  # one choice for each pass
