"""Drawings of stripes in the form of Omniglot, for tests of systems and evaluations."""

import numpy as np

from experiments.datasets.omniglot import Characters


def drawings(part):
    """Returns five alphabets of 21 characters with five drawings each."""
    rng = np.random.default_rng(len(part))
    labels = np.repeat(np.arange(105), 5)
    rows, columns = np.mgrid[:105, :105]
    angle, width = labels * 0.7, 0.1 + 0.01 * (labels % 21)
    phase = (
        np.cos(angle)[:, None, None] * rows + np.sin(angle)[:, None, None] * columns
    ) * width[:, None, None] + rng.normal(scale=0.3, size=(525, 1, 1))
    images = np.where(np.sin(phase) > 0.8, 0, 255).astype(np.uint8)[..., None]
    return Characters(images, labels, np.array(list("abcde"))[labels // 21])
