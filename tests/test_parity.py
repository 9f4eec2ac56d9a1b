"""Training with our kernels is training: the losses are torch's own, up to rounding, and always the same.

A small ConvNet (5x5 and 3x3 filters, stride, padding, overlapping and plain pooling) takes ten steps of SGD
on the digits. Everything but convolution and pooling is torch's on either side; weights and batches are
the same.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from pyconv.data import load
from pyconv.models import layers

STEPS = 10
BATCH = 32
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
#: Enough trajectories that their median says something about kernels, not about luck.
SEEDS = range(7)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    train = load("digits", say=lambda line: None).train
    # Twice the size: with 8x8 images all of torch's sums are too short for its layouts to differ.
    images = train.images.repeat(2, axis=2).repeat(2, axis=3)
    return torch.from_numpy(images), torch.from_numpy(train.labels)


def network(kernels: str) -> nn.Module:
    ours = layers(kernels)
    return nn.Sequential(
        ours.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        ours.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        ours.MaxPool2d(3, stride=2, padding=1),
        ours.Conv2d(24, 32, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        ours.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def losses(
    digits: tuple[torch.Tensor, torch.Tensor], kernels: str, dtype: torch.dtype, layout: str, seed: int = 0
) -> torch.Tensor:
    """Ten training losses, float64 ``[10]``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = network(kernels).to(dtype)
        order = torch.randperm(len(digits[1]))[: STEPS * BATCH].reshape(STEPS, BATCH)
    net = net.to(memory_format=LAYOUTS[layout])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    found = []
    for batch in order:
        x = (digits[0][batch].to(dtype) / 128 - 1).contiguous(memory_format=LAYOUTS[layout])
        loss = functional.cross_entropy(net(x), digits[1][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ten_float64_losses_agree_with_aten(digits, layout) -> None:
    ours = losses(digits, "pyconv", torch.float64, layout)
    aten = losses(digits, "aten", torch.float64, "nchw")
    assert ours[-1] < ours[0], "the net does not learn, so its losses prove nothing"
    torch.testing.assert_close(ours, aten, rtol=1e-9, atol=0)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean square over the steps, its median over the seeds.

    One seed in ten, whatever the kernels, has two values so close that rounding decides which side of a ReLU
    or which place of a window they fall on: from there on it is another trajectory, some ten times further
    away. A mean over the seeds would measure that chance.
    """
    return float((a - b).square().mean(dim=1).sqrt().median())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ten_float32_losses_differ_no_more_than_atens_layouts(digits, layout) -> None:
    """At most twice the difference between torch's own two layouts, measured here and now.

    A loss is itself rounded to float32, so no difference below one unit in its last place means anything;
    that unit is the floor. It is all that is left where both of torch's layouts end in the same blocked
    kernel and agree to the bit. So, also: from the losses of float64, ours are at most twice as far as
    torch's.
    """
    other_layout = next(name for name in LAYOUTS if name != layout)
    ours, aten, other, exact = (
        torch.stack([losses(digits, kernels, dtype, how, seed) for seed in SEEDS])
        for kernels, dtype, how in (
            ("pyconv", torch.float32, layout),
            ("aten", torch.float32, layout),
            ("aten", torch.float32, other_layout),
            ("aten", torch.float64, layout),
        )
    )
    ulp = torch.finfo(torch.float32).eps * 2 ** math.floor(math.log2(float(aten.max())))
    bound = 2 * distance(aten, other) + ulp
    assert distance(ours, aten) <= bound, f"{distance(ours, aten):.3g} apart; {bound:.3g} allowed"
    bound = 2 * distance(aten, exact)
    assert distance(ours, exact) <= bound, f"{distance(ours, exact):.3g} from float64; {bound:.3g} allowed"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_runs_agree_to_the_bit(digits, dtype, layout) -> None:
    assert torch.equal(
        losses(digits, "pyconv", dtype, layout, seed=3), losses(digits, "pyconv", dtype, layout, seed=3)
    )
