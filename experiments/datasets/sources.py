"""Labelled images that are read one by one, each when it is needed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from siamese_jax.images import ImageFile, LabelledImages, Preparation, read_prepared


class ImageSource(NamedTuple):
    """Images that need not fit into memory, and their labels.

    Attributes:
      read: `read(number) -> image`, uint8 of `image_shape`. Several threads may call it.
      labels: The label of each image.
      image_shape: Height, width and number of channels of all images.
    """

    read: Callable[[int], np.ndarray]
    labels: np.ndarray
    image_shape: tuple[int, int, int]

    def only(self, rows: np.ndarray) -> "ImageSource":
        """Selects images by their positions or by a boolean mask, without reading them.

        >>> source = ImageSource(lambda number: np.full((1, 1, 1), number), np.arange(9), (1, 1, 1))
        >>> even = source.only(source.labels % 2 == 0)
        >>> even.labels.tolist(), even.read(3).item()
        ([0, 2, 4, 6, 8], 6)
        """  # noqa: E501
        numbers = np.arange(len(self.labels))[rows]
        return self._replace(
            read=lambda number: self.read(int(numbers[number])), labels=self.labels[rows]
        )


def of_files(
    files: Sequence[ImageFile], labels: np.ndarray, preparation: Preparation
) -> ImageSource:
    """Image files of any sizes, which are prepared when they are read.

    Reading a file that is no image raises `UserError`, which names the file.
    """
    return ImageSource(
        lambda number: read_prepared([files[number]], preparation)[0],
        labels,
        preparation.image_shape,
    )


def in_memory(images: LabelledImages) -> ImageSource:
    """Images that are in memory already."""
    shape = (images.images.shape[1], images.images.shape[2], images.images.shape[3])
    return ImageSource(images.images.__getitem__, images.labels, shape)


def joined(*several: ImageSource) -> ImageSource:
    """Several sources as one, in their order.

    Raises:
      ValueError: If their images have several shapes.

    >>> one = ImageSource(lambda i: np.full((1, 1, 1), i), np.arange(3), (1, 1, 1))
    >>> two = joined(one, one)
    >>> two.labels.tolist(), two.read(4).item()
    ([0, 1, 2, 0, 1, 2], 1)
    """
    shapes = {source.image_shape for source in several}
    if len(shapes) != 1:
        raise ValueError(f"sources must have images of one shape; got {sorted(shapes)}")
    ends = np.cumsum([len(source.labels) for source in several])

    def read(number: int) -> np.ndarray:
        which = int(np.searchsorted(ends, number, side="right"))
        return several[which].read(int(number - (ends[which - 1] if which else 0)))

    labels = np.concatenate([source.labels for source in several])
    return ImageSource(read, labels, shapes.pop())


def load(source: ImageSource) -> LabelledImages:
    """Reads all images."""
    images = np.empty((len(source.labels), *source.image_shape), np.uint8)
    for number in range(len(images)):
        images[number] = source.read(number)
    return LabelledImages(images, source.labels)
