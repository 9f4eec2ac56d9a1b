"""Counter-based random numbers: a draw is a function of (seed, epoch, sample), not of the draws before it.

So a sample's augmentation does not depend on the batch it is in, on the order of the batches, on the number
of worker processes, or on how often a run was interrupted. Philox4x32-10: Salmon, Moraes, Dror and Shaw,
"Parallel random numbers: as easy as 1, 2, 3" (SC 2011); vectorised over samples.
"""

from __future__ import annotations

import numpy as np

# The multipliers and the Weyl constants of the key schedule, from the paper.
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10.

    Args:
        counter: uint64 ``[4, n]`` holding 32-bit words.
        key: Two 32-bit words.

    Returns:
        uint64 ``[4, n]`` holding 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _32) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _32) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def _words(seed: int, epoch: int, samples: np.ndarray, block: int) -> np.ndarray:
    samples = np.asarray(samples, np.uint64)
    counter = np.empty((4, len(samples)), np.uint64)
    counter[0], counter[1] = samples & _LOW, samples >> _32
    counter[2], counter[3] = epoch & 0xFFFFFFFF, block
    return philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))


def integers(seed: int, epoch: int, samples: np.ndarray, highs: list[int]) -> list[np.ndarray]:
    """One draw per sample and entry of ``highs``: int64 ``[n]`` in ``0 .. high-1``.

    The bias of scaling 32 bits is below ``high / 2**32``, nothing at the sizes of images.
    """
    blocks = (len(highs) + 3) // 4
    words = np.concatenate([_words(seed, epoch, samples, block) for block in range(blocks)])
    return [
        ((word * np.uint64(high)) >> _32).astype(np.int64) for word, high in zip(words, highs, strict=False)
    ]


def keys(seed: int, epoch: int, samples: np.ndarray) -> np.ndarray:
    """A random 64-bit sort key per sample, from a block of counters no augmentation uses: uint64 ``[n]``."""
    words = _words(seed, epoch, samples, 0xFFFFFFFF)
    joined: np.ndarray = (words[0] << _32) | words[1]
    return joined


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which epoch ``epoch`` visits ``n`` samples: int64 ``[n]``."""
    order: np.ndarray = np.argsort(keys(seed, epoch, np.arange(n)), kind="stable")
    return order
