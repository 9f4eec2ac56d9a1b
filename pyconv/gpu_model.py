"""The modelled time of a CUDA line on a problem, by which selection orders the lines. Nothing is measured.

A line's program says for each launch its blocks and its :class:`~pyconv.backends.program.Work`. A launch
takes as long as the slowest of three, and the launches of a program follow each other:

* **arithmetic**: the multiprocessor with the most blocks is done last. It has ``ceil(blocks /
  multiprocessors)`` of them, and works at its part of the unit's peak, times the share that the inner loop
  leaves; fewer blocks than hide each other's waiting take as long as those;
* **L2 cache**: what blocks read, each for itself, and the workspace as far as it stays there; as uneven;
* **DRAM**: operands and results once, and the workspace, unless that is at most half of the L2 cache: what
  one launch has written is then still there for the next. A third of the multiprocessors are enough for it.

To the longest come :data:`NOT_HIDDEN` of the two others, and :data:`LAUNCH_SECONDS`. Left out: barriers,
clocks below the boost, other work on the device.

The figures are those of :data:`REFERENCE`, or of the device that is present: constants, and never a timing,
so the same problem gets the same line on every machine with that device.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from pyconv.backends.program import Step, Work, unit_of
from pyconv.problem import Problem
from pyconv.registry import Kernel

#: A launch that waits for the one before it: the gap on the stream, and blocks that start and end.
LAUNCH_SECONDS = 2.5e-6

#: What remains of the times that the longest one hides, since no overlap is perfect. It also decides between
#: lines that one bound makes equal.
NOT_HIDDEN = 0.1

#: Of a line that states no work: of the unit's peak. Those of pyconv's own FMA and tensor-core loops.
UNSTATED_SHARE = {"f32": 0.8, "f64": 0.8, "f16": 0.5, "tf32": 0.5, "f64 tensor": 0.5}


@dataclass(frozen=True)
class Gpu:
    """What the model knows of a device.

    Attributes:
        teraflops: By unit of :class:`~pyconv.backends.program.Work`, at the boost clock, without sparsity.
        dram, l2: Terabytes a second. Of l2 NVIDIA publishes nothing: two thirds of 64 bytes a clock for each
            multiprocessor, rounded, is an estimate.
        l2_bytes: Of the L2 cache.
    """

    name: str
    multiprocessors: int
    teraflops: dict[str, float]
    dram: float
    l2: float
    l2_bytes: int

    def __hash__(self) -> int:
        return hash((self.name, self.multiprocessors))


def _gpu(
    name: str, multiprocessors: int, units: tuple[float, ...], dram: float, l2: float, l2_mib: int
) -> Gpu:
    teraflops = dict(zip(("f32", "f64", "f16", "tf32", "f64 tensor"), units, strict=True))
    return Gpu(name, multiprocessors, teraflops, dram, l2, l2_mib * 2**20)


#: From NVIDIA's data sheets and architecture papers; 16-bit products have sums in float32. A device without
#: tensor cores for float64 does those products on its ordinary units.
GPUS = (
    _gpu("H100", 132, (66.9, 33.5, 989, 494, 66.9), 3.35, 5.5, 50),
    _gpu("H200", 132, (66.9, 33.5, 989, 494, 66.9), 4.8, 5.5, 50),
    _gpu("A100", 108, (19.5, 9.7, 312, 156, 19.5), 2.04, 4.0, 40),
    _gpu("B200", 148, (75, 37, 2250, 1125, 37), 8.0, 7.0, 126),
    _gpu("RTX 3090", 82, (35.6, 0.56, 71, 35.6, 0.56), 0.936, 2.5, 6),
    _gpu("RTX 4090", 128, (82.6, 1.29, 165, 82.6, 1.29), 1.008, 4.5, 72),
    _gpu("L4", 58, (30.3, 0.47, 121, 60, 0.47), 0.3, 2.0, 48),
)

#: Where no device is present.
REFERENCE = GPUS[0]

#: Compute capability -> the device whose figures another one of it has, scaled by its multiprocessors.
_LIKE = {(8, 0): "A100", (8, 6): "RTX 3090", (8, 9): "RTX 4090", (9, 0): "H100", (10, 0): "B200"}


def gpu_of(name: str, capability: tuple[int, int], multiprocessors: int, l2_bytes: int) -> Gpu:
    """The figures of a device, by its name, else by those of its architecture."""
    for known in GPUS:
        # H100 also comes with fewer multiprocessors and slower memory; the name alone does not tell.
        if re.search(rf"\b{known.name}\b", name) and multiprocessors == known.multiprocessors:
            return known
    like = next(known for known in GPUS if known.name == _LIKE.get(capability, REFERENCE.name))
    scale = multiprocessors / like.multiprocessors
    teraflops = {unit: flops * scale for unit, flops in like.teraflops.items()}
    return Gpu(name, multiprocessors, teraflops, like.dram * scale, like.l2 * scale, l2_bytes)


@cache
def present_gpu() -> Gpu:
    """The first device here, or :data:`REFERENCE`."""
    if not torch.cuda.is_available():
        return REFERENCE
    found = torch.cuda.get_device_properties(0)
    return gpu_of(found.name, (found.major, found.minor), found.multi_processor_count, found.L2_cache_size)


@dataclass(frozen=True)
class Estimate:
    """Seconds of a launch or a program; what bounds it, and its waves of blocks: of the longest launch."""

    seconds: float
    bound: str
    waves: int
    gpu: str

    def __str__(self) -> str:
        waves = "1 wave" if self.waves == 1 else f"{self.waves} waves"
        bound = "all launching" if self.bound == "launch" else f"{self.bound}-bound"
        milliseconds = f"{self.seconds * 1e3:.3g}"
        return f"model: {milliseconds} ms, {waves}, {bound} ({self.gpu}; not measured)"


def launch_time(blocks: int, work: Work, scratch_stays: bool, gpu: Gpu) -> Estimate:
    """Of one launch."""
    if blocks == 0:
        return Estimate(0, "launch", 0, gpu.name)
    busiest = -(-blocks // gpu.multiprocessors)
    uneven = busiest * gpu.multiprocessors / blocks  # the busiest over the mean of all
    alone = max(1, work.concurrent / busiest)
    from_dram = work.tensor_bytes + (0 if scratch_stays else work.scratch_bytes)
    from_l2 = max(work.cache_bytes, work.tensor_bytes + work.scratch_bytes)
    times = {
        "arithmetic": work.flops * uneven * alone / (gpu.teraflops[work.unit] * 1e12 * work.share),
        "L2": from_l2 * uneven / (gpu.l2 * 1e12),
        "DRAM": from_dram * max(1, uneven / 3) / (gpu.dram * 1e12),
    }
    bound = max(times, key=lambda name: times[name])
    hidden = sum(times.values()) - times[bound]
    seconds = times[bound] + NOT_HIDDEN * hidden + LAUNCH_SECONDS
    waves = -(-blocks // (gpu.multiprocessors * work.resident))
    return Estimate(seconds, bound if times[bound] > LAUNCH_SECONDS else "launch", waves, gpu.name)


def _as_selected(problem: Problem) -> Problem:
    """The problem whose time is modelled: the one place where a choice depends on n."""
    return problem


@lru_cache(maxsize=16384)
def estimate(kernel: Kernel, problem: Problem, gpu: Gpu) -> Estimate:
    """Of a CUDA line on a problem that it supports."""
    assert kernel.program is not None, kernel.id
    problem = _as_selected(problem)
    program = kernel.program(problem)
    scratch_stays = program.workspace_bytes <= gpu.l2_bytes // 2
    launches = [
        launch_time(step.grid[0] * step.grid[1] * step.grid[2], work, scratch_stays, gpu)
        for step, work in zip(program.steps, _works(program.steps, problem, kernel.pass_), strict=True)
    ]
    longest = max(launches, key=lambda each: each.seconds, default=Estimate(0, "launch", 0, gpu.name))
    return Estimate(sum(each.seconds for each in launches), longest.bound, longest.waves, gpu.name)


def _works(steps: Sequence[Step], problem: Problem, pass_: str) -> list[Work]:
    """Of each step. The first that promises arithmetic and states no work is taken to do all of it."""
    unstated = [step for step in steps if step.work is None]
    main = next((step for step in unstated if _unit(step)), unstated[0] if unstated else None)
    return [step.work or (_whole(step, problem, pass_) if step is main else Work()) for step in steps]


def _unit(step: Step) -> str | None:
    """The unit that a step's machine instructions use."""
    for opcode in step.sass:
        name, *modifiers = opcode.split(".")
        if name in ("HMMA", "HGMMA", "UTCHMMA"):
            return "tf32" if "TF32" in modifiers else "f16"
        if name in ("DMMA", "DFMA", "FFMA"):
            return {"DMMA": "f64 tensor", "DFMA": "f64", "FFMA": "f32"}[name]
    return None


def _whole(step: Step, problem: Problem, pass_: str) -> Work:
    unit = _unit(step) or unit_of(problem)
    return Work(
        problem.flops(pass_), unit, UNSTATED_SHARE[unit], problem.bytes(pass_), problem.bytes(pass_), 0
    )
