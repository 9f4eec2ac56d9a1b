"""Compiles instantiations for one architecture and reads what came out; what is known is kept on disk.

A result is kept under ``build/gates`` by the content of everything that it depends on, so unchanged sources
cost nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pyconv.backends import nvrtc, sources
from pyconv.gates import cubin
from pyconv.gates.architectures import Architecture
from pyconv.gates.cubin import Usage
from pyconv.gates.instantiations import Instantiation
from pyconv.gates.rules import faults

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / "build" / "gates"


@dataclass(frozen=True)
class Compiled:
    """What came of one source on one architecture.

    Attributes:
        usages: By kernel expression; one that does not compile is missing.
        faults: One line each; empty if all is well.
    """

    usages: dict[str, Usage]
    faults: tuple[str, ...]


def compiler() -> nvrtc.Nvrtc:
    """The NVRTC at hand. Raises ``RuntimeError`` saying why there is none."""
    found = nvrtc.find()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def version() -> str:
    """Of the compiler."""
    return "{}.{}".format(*compiler().version)


def compiled(
    wanted: Sequence[Instantiation], architecture: Architecture, folder: Path = sources.KERNELS
) -> Compiled:
    """Compiles the wanted instantiations as the backend does, or remembers them, and holds them to the rules.

    Args:
        folder: Where the sources are.
    """
    usages: dict[str, Usage] = {}
    found: list[str] = []
    images: dict[str, nvrtc.Image] = {}
    places = {each.kernel: CACHE / f"{_key(each, architecture, folder)}.json" for each in wanted}
    for each in wanted:
        if places[each.kernel].exists():
            usages[each.kernel] = _load(places[each.kernel])
            continue
        try:
            images[each.kernel] = compiler().compile(each.source, each.kernel, architecture.name, folder)
        except RuntimeError as error:
            found.append(f"{each.source}: {each.kernel} on {architecture.name}: does not compile: {error}")
    if images:
        for kernel, usage in zip(images, cubin.read(list(images.values()), architecture), strict=True):
            usages[kernel] = usage
            _save(places[kernel], usage)
    for each in wanted:
        if each.kernel in usages:
            found += faults(each, usages[each.kernel], architecture)
    return Compiled(usages, tuple(found))


def _key(instantiation: Instantiation, architecture: Architecture, folder: Path) -> str:
    parts = [
        sources.digest(instantiation.source, folder),
        instantiation.kernel,
        architecture.name,
        version(),
        *nvrtc.FLAGS,
        Path(cubin.__file__).read_text(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def _load(place: Path) -> Usage:
    fields = json.loads(place.read_text())
    return Usage(**{**fields, "parameters": tuple(fields["parameters"])})


def _save(place: Path, usage: Usage) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    # Written elsewhere and moved, so that no other process reads half of it.
    with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as file:
        json.dump(asdict(usage), file)
    os.replace(file.name, place)
