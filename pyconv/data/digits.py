"""scikit-learn's digits: 1797 handwritten digits of 8x8 pixels that come inside its wheel (UCI Optdigits)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyconv.data.images import Augmentation, ImageData, ImageSet, stratified_split

#: Pixels are counts 0..16; this maps them to 0..255 and loses none of the 17 levels.
_LEVELS = 16
_TEST_FRACTION = 0.2


def load(say: Callable[[str], None]) -> ImageData:
    """The digits, with a fixed stratified split: 80 % to train, 20 % to test. No file is needed."""
    from sklearn.datasets import load_digits

    say("digits: from the scikit-learn package")
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / _LEVELS)).astype(np.uint8)[:, None]
    everything = ImageSet(images, bunch.target.astype(np.int64))
    train, test = stratified_split(everything.labels, _TEST_FRACTION)
    return ImageData(
        name="digits",
        train=everything.take(train),
        test=everything.take(test),
        classes=tuple(str(digit) for digit in range(10)),
        source="scikit-learn's package; fixed stratified split, 80 % to train and 20 % to test",
        augmentation=Augmentation(shift=1),  # of 8 pixels; a mirrored digit is none
    )
