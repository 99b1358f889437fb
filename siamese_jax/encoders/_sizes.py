"""The least size of images that an encoder can take, and the refusal of smaller ones."""

import jax.numpy as jnp
from jaxtyping import Array

from siamese_jax._checks import check_floating


def least_input(size: int, *, kernel: int = 1, stride: int = 1, window: int = 1) -> int:
    """Returns the least height or width of which convolution and pooling leave `size`.

    A valid convolution leaves (n - kernel) // stride + 1 of n pixels, and pooling one of
    each window.

    >>> least_input(1, kernel=3, window=2)
    4
    """
    return (size * window - 1) * stride + kernel


def check_images(name: str, images: Array, least: tuple[int, int]) -> None:
    """Refuses what an encoder cannot take, when it is traced.

    Args:
      name: Name of the encoder in error messages.
      images: Images.
      least: Least height and width.

    Raises:
      ValueError: If the images are not [n, height, width, channels], or are too small.
      TypeError: If the images are not floating-point.

    >>> check_images("KochConv", jnp.zeros((1, 28, 28, 1)), (65, 65))
    Traceback (most recent call last):
    ValueError: KochConv needs images of at least 65 x 65; got 28 x 28
    """
    if jnp.ndim(images) != 4:
        raise ValueError(
            f"{name} needs images [n, height, width, channels]; got shape "
            f"{jnp.shape(images)}"
        )
    check_floating("images", images)
    height, width = images.shape[1:3]
    if height < least[0] or width < least[1]:
        raise ValueError(
            f"{name} needs images of at least {least[0]} x {least[1]}; got "
            f"{height} x {width}"
        )
