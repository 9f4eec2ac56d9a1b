"""Batches for Lightning: in memory, augmented a batch at a time, reproducible whatever the workers do."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pyconv.data import rng
from pyconv.data.images import Augmentation, ImageData, ImageSet, statistics, stratified_split

#: What names a batch: the epoch, and the samples in it. It is all that a batch depends on.
Key = tuple[int, np.ndarray]


class EpochBatches(Sampler[Key]):
    """The batches of one epoch, as (epoch, sample indices).

    An epoch visits each sample once, in an order drawn from (seed, epoch). The batches differ in size by at
    most one, so none is a small rest that would upset batch normalisation.

    Args:
        samples, batch_size: How many there are, and how many a batch may have.
        seed: With the epoch, the source of the order.
        shuffle: False for the samples' own order.
        start: (epoch, batch) that a resumed run goes on with. Known from the beginning, because processes
            that make batches ask for some before Lightning says which epoch it is.
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int, shuffle: bool, start: tuple[int, int] = (0, 0)
    ) -> None:
        self.samples, self.batch_size, self.seed, self.shuffle = samples, batch_size, seed, shuffle
        self.start, self.epoch = start, start[0]

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Key]:
        order = np.arange(self.samples)
        if self.shuffle:
            order = rng.permutation(self.seed, self.epoch, self.samples)
        done = self.start[1] if self.epoch == self.start[0] else 0
        for indices in np.array_split(order, len(self))[done:]:
            yield self.epoch, indices


class Batches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Maps a batch's key to its tensors.

    Args:
        images: The samples.
        mean, std: Of each channel, on the scale 0 to 1.
        augmentation: What is done to an image; ``None`` for nothing.
        seed: With the epoch and the sample's index, the source of each draw.
    """

    def __init__(
        self,
        images: ImageSet,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.labels, self.seed = images.labels, seed
        self.augmentation = augmentation or Augmentation()
        margin = self.augmentation.shift
        self.size = images.images.shape[2:]
        # Padded once, here, so that a shift is no more than another place to read from.
        self.padded = images.images
        if margin:
            widths = ((0, 0), (0, 0), (margin, margin), (margin, margin))
            mode = "constant" if self.augmentation.fill == "zero" else "reflect"
            self.padded = np.pad(images.images, widths, mode=mode)  # type: ignore[call-overload]
        shape = (1, -1, 1, 1)
        self.offset = 255 * torch.tensor(mean, dtype=torch.float64).reshape(shape)
        self.scale = 1 / (255 * torch.tensor(std, dtype=torch.float64).reshape(shape))

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 ``[n, c, h, w]``, normalised, and int64 ``[n]``."""
        epoch, indices = key
        pixels = torch.from_numpy(self.augmented(epoch, indices)).float()
        x = pixels.sub_(self.offset.float()).mul_(self.scale.float())
        return x, torch.from_numpy(self.labels[indices])

    def augmented(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """The samples as epoch ``epoch`` sees them: uint8 ``[n, c, h, w]``."""
        how, (h, w) = self.augmentation, self.size
        if not (how.shift or how.flip or how.erase):
            taken: np.ndarray = self.padded[indices]
            return taken
        draws = rng.integers(self.seed, epoch, indices, [2 * how.shift + 1, 2 * how.shift + 1, 2, h, w])
        down, right, mirrored, centre_h, centre_w = (draw[:, None] for draw in draws)
        rows, columns = np.arange(h)[None], np.arange(w)[None]
        if how.flip:
            columns = np.where(mirrored, columns[:, ::-1], columns)
        channels = np.arange(self.padded.shape[1])[None, :, None, None]
        pixels: np.ndarray = self.padded[
            indices[:, None, None, None],
            channels,
            (rows + down)[:, None, :, None],
            (columns + right)[:, None, None, :],
        ]
        if how.erase:
            in_h = np.abs(2 * (np.arange(h) - centre_h)) < how.erase
            in_w = np.abs(2 * (np.arange(w) - centre_w)) < how.erase
            pixels[(in_h[:, None, :, None] & in_w[:, None, None, :]).repeat(pixels.shape[1], 1)] = 0
        return pixels


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal, but the step it interrupts still needs its batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class ImageDataModule(lightning.LightningDataModule):
    """A data set in batches: training (augmented), validation (a fixed part of the training images), test.

    Validation images are never trained on and choose the best checkpoint; test images choose nothing.

    Args:
        data: The data set.
        batch_size: Of training; evaluation uses batches of 500.
        seed: Of order and augmentation.
        validation: The part of the training images held out.
        workers: Processes that make batches; 0 makes them in the training process, which is fast enough
            for images in memory.
        start: (epoch, batch) that training goes on with.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        seed: int = 0,
        validation: float = 0.1,
        workers: int = 0,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.data, self.batch_size, self.seed, self.workers = data, batch_size, seed, workers
        self.start = start
        train, held_out = stratified_split(data.train.labels, validation)
        self.train_set, self.validation_set = data.train.take(train), data.train.take(held_out)
        self.mean, self.std = statistics(self.train_set.images)

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        """Augmented batches, in a new order each epoch."""
        batches = Batches(self.train_set, self.mean, self.std, self.data.augmentation, self.seed)
        sampler = EpochBatches(
            len(self.train_set), self.batch_size, self.seed, shuffle=True, start=self.start
        )
        return self._loader(batches, sampler)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        """The held-out images, as they are."""
        return self._evaluation(self.validation_set)

    def test_dataloader(self) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        """The test images, as they are."""
        return self._evaluation(self.data.test)

    def _evaluation(self, images: ImageSet) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        batches = Batches(images, self.mean, self.std)
        return self._loader(batches, EpochBatches(len(images), 500, self.seed, shuffle=False))

    def _loader(
        self, batches: Batches, sampler: EpochBatches
    ) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        # A generator of its own: starting an iterator must not move the global random state.
        return DataLoader(
            batches,
            sampler=sampler,
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=_leave_signals_to_the_trainer,
            generator=torch.Generator().manual_seed(self.seed & 0x7FFFFFFF),
        )
