"""What the machine is: the names and sizes that the system tells."""

from __future__ import annotations

import contextlib
import platform
import re
from functools import cache
from pathlib import Path

import torch


@cache
def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def last_level_cache(device: str = "cpu") -> int:
    """Bytes of the last-level cache; 32 MiB where the system does not say."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties().L2_cache_size)
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip())
        if match:
            sizes.append(int(match[1]) * 1024 ** " KMG".index(match[2] or " "))
    return max(sizes) or 32 * 1024**2
