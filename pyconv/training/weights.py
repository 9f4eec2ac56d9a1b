"""Weights as safetensors, with all that is needed to use them: model, classes, normalisation."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pyconv.errors import PyconvError, RunError
from pyconv.models import build
from pyconv.training import files
from pyconv.training.config import LAYOUTS

#: The one metadata entry; safetensors maps strings to strings.
_KEY = "pyconv"


@dataclass(frozen=True)
class Card:
    """What the weights are of, stored in the same file.

    Attributes:
        model, in_channels, image_size, classes: What :func:`pyconv.models.build` takes; class names.
        kernels, layout: What they were trained with.
        mean, std: Normalisation of each channel, on the scale 0 to 1.
        data, source: The data set and where it was found.
        resized: True if the data set resized its images.
    """

    model: str
    in_channels: int
    image_size: tuple[int, int]
    classes: tuple[str, ...]
    kernels: str
    layout: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str
    source: str
    resized: bool

    def is_sound(self) -> bool:
        """Whether each field is of its kind: a file may say anything."""
        words = (self.model, self.kernels, self.layout, self.data, self.source, *self.classes)
        sizes = (self.in_channels, *self.image_size)
        numbers = (*self.mean, *self.std)
        return (
            all(isinstance(word, str) for word in words)
            and all(type(size) is int and size > 0 for size in sizes)
            and all(type(number) in (int, float) for number in numbers)
            and len(self.image_size) == 2
            and len(self.mean) == len(self.std) == self.in_channels
            and self.layout in LAYOUTS
            and isinstance(self.resized, bool)
        )


def save(path: Path, network: nn.Module, card: Card) -> None:
    """Write weights and card.

    Raises:
        RunError: naming the file, if it cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    files.write(path, safetensors.torch.save(tensors, {_KEY: json.dumps(dataclasses.asdict(card))}))


def load(path: Path) -> tuple[dict[str, Tensor], Card]:
    """Weights and card of a file that :func:`save` wrote. Nothing in a safetensors file can run.

    Raises:
        RunError: naming the file, if it is missing, truncated, of another format, or has no card.
    """
    try:
        path.open("rb").close()  # safetensors says of any file that it may not read that there is none
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        fields = json.loads(metadata[_KEY])
        for name in ("image_size", "classes", "mean", "std"):
            fields[name] = tuple(fields[name])
        card = Card(**fields)
        if not card.is_sound():
            raise ValueError
        return tensors, card
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; has this run finished an epoch?") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from None
    except safetensors.SafetensorError as error:
        raise RunError(f"{path}: not a whole safetensors file ({error})") from None
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{path}: safetensors, but not the weights of a pyconv run") from None


def network(path: Path, tensors: dict[str, Tensor], card: Card, kernels: str | None = None) -> nn.Module:
    """The model of a card with the weights in it, ready to evaluate.

    Raises:
        RunError: naming the file, if the weights are not that model's.
    """
    try:
        # Without memory for weights of its own, which a card could ask any amount of.
        with torch.device("meta"):
            model = build(
                card.model, card.in_channels, card.image_size, len(card.classes), kernels or card.kernels
            )
        for name, value in model.state_dict().items():
            if name in tensors and tensors[name].dtype != value.dtype:
                raise RuntimeError(f"{name} is {tensors[name].dtype}, the model's is {value.dtype}")
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise RunError(
            f"{path}: not the weights of {card.model} ({str(error).splitlines()[-1].strip()})"
        ) from None
    except PyconvError as error:
        raise RunError(f"{path}: {error}") from None
    if card.layout == "nhwc":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval()
