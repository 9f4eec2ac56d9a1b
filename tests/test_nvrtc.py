"""NVRTC: found, and compiling the kernels as backend cuda does. It needs no GPU."""

from __future__ import annotations

import importlib
import threading
import types
from pathlib import Path

import pytest
import torch

from pyconv import parse_problem
from pyconv.backends import nvrtc, sources
from pyconv.backends.nvrtc import Image, Nvrtc, architecture
from pyconv.registry import find

PROBE = str(Path(__file__).parent / "backend" / "probe.cu")
CONV = parse_problem("conv2d n2c4h6w5 k3r3s3 st1 pd1 f32 nchw")
NAIVE = find("conv2d.fprop.direct_naive@cuda")


@pytest.fixture(scope="module")
def compiler() -> Nvrtc:
    found = nvrtc.find()
    assert isinstance(found, Nvrtc), found
    return found


# ---- NVRTC ----


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "compute_90"])
def test_an_instantiation_is_compiled_for_an_architecture(compiler: Nvrtc, target: str) -> None:
    assert NAIVE.program is not None
    step = NAIVE.program(CONV).steps[0]
    image = compiler.compile(step.source, step.kernel, target)
    assert image.entry.startswith("_ZN6pyconv")
    assert "direct_naive_fprop" in image.entry
    if target.startswith("sm_"):
        assert image.code.startswith(b"\x7fELF")
        assert image.entry.encode() in image.code
    else:
        assert f".target {target.replace('compute', 'sm')}".encode() in image.code
        assert image.code.endswith(b"\0"), "the driver takes PTX as a C string"
    assert Image.from_bytes(image.to_bytes()) == image


def test_what_does_not_compile_is_told_with_the_file_and_the_log(compiler: Nvrtc, tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text("namespace pyconv {\n__global__ void wrong() { undeclared = 1; }\n}\n")
    with pytest.raises(RuntimeError) as error:
        compiler.compile("wrong.cu", "wrong", "sm_80", tmp_path)
    text = str(error.value)
    assert f"does not compile wrong of {tmp_path / 'wrong.cu'} for sm_80" in text
    assert 'wrong.cu(2): error: identifier "undeclared" is undefined' in text
    with pytest.raises(RuntimeError, match="probe_scale<int>"):
        compiler.compile(PROBE, "probe_scale<int>", "sm_80")
    with pytest.raises(RuntimeError, match=r"cannot open source file \"none.cu\""):
        compiler.compile("none.cu", "none", "sm_80")
    with pytest.raises(RuntimeError, match="sm_10"):
        compiler.compile(PROBE, "probe_bias", "sm_10")


def test_compilers_work_side_by_side(compiler: Nvrtc) -> None:
    kernels = [
        f"probe_{name}<{element}>" for name in ("scale", "add") for element in ("float", "double", "Half")
    ]
    images: dict[str, Image] = {}

    def compile_(kernel: str) -> None:
        images[kernel] = compiler.compile(PROBE, kernel, "sm_80")

    threads = [threading.Thread(target=compile_, args=(kernel,)) for kernel in kernels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {kernel: compiler.compile(PROBE, kernel, "sm_80") for kernel in kernels} == images


def test_the_architecture_is_the_devices_own() -> None:
    known = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121]
    for capability, target in (
        ((8, 0), "sm_80"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90a"),
        ((10, 0), "sm_100a"),
        ((10, 3), "sm_103"),
        ((12, 0), "sm_120"),
        ((13, 0), "compute_121"),  # newer than this NVRTC: the driver compiles the rest of the way
        ((10, 1), "compute_100"),
    ):
        assert architecture(capability, known) == target
    with pytest.raises(RuntimeError, match=r"compute capability 7\.5 and newer; the device has 7\.0"):
        architecture((7, 0), known)


def test_nvrtc_is_looked_for_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nvrtc, "find", nvrtc.find.__wrapped__)
    monkeypatch.setenv("PYCONV_NVRTC", str(tmp_path / "libnvrtc.so.13"))
    reason = nvrtc.find()
    assert isinstance(reason, str)
    assert reason.startswith("no NVRTC (pip install nvidia-cuda-nvrtc): ")
    assert str(tmp_path) in reason


def test_every_place_is_searched_and_torchs_release_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for place, name in (
        ("nvidia/cu13/lib", "libnvrtc.so.13"),
        ("nvidia/cu13/lib", "libnvrtc.alt.so.13"),
        ("nvidia/cu13/lib", "libnvrtc-builtins.so.13.0"),
        ("nvidia/cuda_nvrtc/lib", "libnvrtc.so.12"),
        ("home/lib64", "libnvrtc.so.13.0.88"),
        ("torch/lib", "libnvrtc-36e31c53.so.12"),
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / name).touch()
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.delenv("PYCONV_NVRTC", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))

    def found(release: str | None) -> list[str]:
        monkeypatch.setattr(torch.version, "cuda", release)
        return [path.removeprefix(f"{tmp_path}/") for path in nvrtc._candidates()]

    in_order = [
        "nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
        "torch/lib/libnvrtc-36e31c53.so.12", "home/lib64/libnvrtc.so.13.0.88",
        "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so",
    ]  # fmt: skip
    assert found(None) == in_order
    assert found("12.8")[:3] == [in_order[1], in_order[2], "libnvrtc.so.12"]
    assert found("13.0")[:3] == [in_order[0], in_order[3], "libnvrtc.so.13"]


# ---- Sources ----


def test_a_change_of_any_header_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "op").mkdir()
    files = {
        "op/a.cu": '#include "common/b.h"\n  #  include "c.h"  // beside\n#include <x>\n#include "gone.h"\n',
        "common/b.h": '#ifdef NEVER\n#include "d.h"\n#endif\n#include "op/a.cu"\n',
        "op/c.h": "",
        "common/d.h": "",
        "op/unrelated.h": "",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert sources.included("op/a.cu", tmp_path) == ["common/b.h", "common/d.h", "op/a.cu", "op/c.h"]
    digest = sources.digest.__wrapped__
    before = digest("op/a.cu", tmp_path)
    (tmp_path / "op/unrelated.h").write_text("//")
    assert digest("op/a.cu", tmp_path) == before
    (tmp_path / "common/d.h").write_text("//")
    assert digest("op/a.cu", tmp_path) != before
