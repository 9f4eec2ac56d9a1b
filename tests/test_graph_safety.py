"""A training step of a whole ResNet-18 on backend ``cuda``, as a CUDA graph would capture it, without a GPU.

What stands in for the device launches nothing and writes down what it is asked. ``tests/test_gpu.py``
captures the same network on a device.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import pyconv
from pyconv.backends import cuda
from pyconv.backends.packing import Frame
from pyconv.backends.program import Step
from tests.resnet18 import resnet18

#: What makes the host wait for a device, by the operator that it ends in.
SYNCHRONISING = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::equal",
}


class Recorder:
    """The device of every bound kernel."""

    def __init__(self) -> None:
        self.loaded: list[Step] = []
        self.launched: list[str] = []

    def load(self, step: Step) -> Step:
        self.loaded.append(step)
        return step

    def launch(
        self,
        launches: Sequence[Step],
        frame: Frame,
        tensors: Sequence[Tensor | None],
        workspace: Tensor | None,
    ) -> None:
        given = [tensor.data_ptr() for tensor in tensors if tensor is not None]
        begin = 0 if workspace is None else workspace.data_ptr()
        end = begin + (0 if workspace is None else workspace.numel())
        for pointer in frame.pointers:
            assert not pointer or pointer in given or begin <= pointer <= end, (
                "memory that torch did not give"
            )
        self.launched += [step.kernel for step in launches]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_step_of_a_whole_network_launches_and_does_nothing_else(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(cuda.Bound, "_device", lambda self, device: recorder)
    network = resnet18(10).to(memory_format=layout)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_181_642
    x = torch.randn(2, 3, 32, 32).contiguous(memory_format=layout)
    with cuda.emulated(checked=False), pyconv.use("cuda"):
        for step in range(3):
            with torch.profiler.profile() as profile:
                network(x).square().mean().backward()
            if step == 0:  # what torch asks for before a capture
                loaded, launched = len(recorder.loaded), list(recorder.launched)
            recorder.launched, now = [], recorder.launched
            assert now == launched, "every step launches the same"
    assert len(recorder.loaded) == loaded, "nothing is compiled or loaded after the first step"
    ran = {event.key for event in profile.key_averages()}
    assert not ran & SYNCHRONISING
    ours = {key for key in ran if key.startswith("pyconv:")}
    assert ours
    assert all(key.endswith("@cuda") for key in ours), ours
    passes = {key.split(".")[1] for key in ours}
    assert {"fprop", "dgrad", "wgrad"} <= passes
    assert len(launched) >= 20 + 19 + 20 + 2, (
        "20 convolutions forward and back, the first without dgrad; a pool"
    )
