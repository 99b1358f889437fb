"""Augmentation of drawings: where the ink is, and how thick its strokes are.

Ink is bright: invert dark-on-light drawings first (`1 - image`).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from siamese_jax.augment._checks import check_image, check_probability
from siamese_jax.augment.geometry import affine_coordinates, warp


def ink_offsets(
    image: Float[Array, "height width channels"], *, threshold: float
) -> Float[Array, "2"]:
    """Returns (row, column) from the middle of the image to the middle of the ink.

    The unit is a pixel. The middle of the ink is the middle of the smallest box around all
    pixels that are brighter than `threshold` in any channel. An image without ink gives
    (0, 0). Added to the coordinates of a `warp`, the offsets centre the ink without another
    interpolation. The result is float32 or wider.

    Args:
      image: Bright ink on a dark ground; give `1 - image` for a dark drawing.
      threshold: Largest value that is not ink.

    Raises:
      ValueError: If `image` is not `[height, width, channels]`.
      TypeError: If `image` is not floating-point.

    >>> print(ink_offsets(jnp.zeros((5, 5, 1)).at[0, 3].set(1.0), threshold=0.5))
    [-2.  1.]
    """
    check_image(image)
    ink = jnp.any(image > threshold, axis=2)
    offsets = [_middle(jnp.any(ink, axis=1)), _middle(jnp.any(ink, axis=0))]
    return jnp.stack(offsets).astype(jnp.promote_types(image.dtype, jnp.float32))


def center(
    image: Float[Array, "height width channels"], *, threshold: float, fill: float = 0.0
) -> Float[Array, "height width channels"]:
    """Moves the ink so that its middle, by `ink_offsets`, is the middle of the image.

    Where the sides of the image and of the box around the ink differ by an odd number of
    pixels, this moves the ink by half a pixel, which blurs it.

    Args:
      image: Bright ink on a dark ground; give `1 - image` for a dark drawing.
      threshold: Largest value that is not ink.
      fill: Value of what comes from outside the image.

    Raises:
      ValueError: If `image` is not `[height, width, channels]`.
      TypeError: If `image` is not floating-point.

    >>> corner = jnp.zeros((3, 3, 1)).at[0, 0].set(1.0)
    >>> print(center(corner, threshold=0.5)[:, :, 0])
    [[0. 0. 0.]
     [0. 1. 0.]
     [0. 0. 0.]]
    """
    offsets = ink_offsets(image, threshold=threshold)
    height, width, _ = image.shape
    still = jnp.eye(2, 3, dtype=offsets.dtype)
    coordinates = affine_coordinates(still, (height, width)) + offsets[None, None]
    return warp(image, coordinates, fill=fill)


def random_thickness(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    max_change: float,
) -> Float[Array, "height width channels"]:
    """Makes the bright strokes of the image thicker or thinner.

    The change c is uniform in [-max_change, max_change]. A positive c gives
    image + c (dilated - image), a negative one gives image + |c| (eroded - image). Each
    pixel of the dilated image is the largest of its 3 x 3 neighbours, and of the eroded
    image the smallest, so that a change of 1 moves each border of a stroke by one pixel.

    Args:
      key: A JAX key.
      image: Bright strokes on a dark ground; give `1 - image` for a dark drawing.
      max_change: Largest change, in pixels, from 0 to 1.

    Raises:
      ValueError: If `image` is not `[height, width, channels]`, or `max_change` is not in
        [0, 1].
      TypeError: If `image` is not floating-point.

    >>> blot = jnp.ones((2, 2, 1))
    >>> print(random_thickness(jax.random.key(0), blot, max_change=1.0).sum())
    4.0
    """
    check_image(image)
    check_probability("max_change", max_change)
    change = jax.random.uniform(key, minval=-max_change, maxval=max_change)
    change = change.astype(image.dtype)
    sign = jnp.sign(change)
    return image + change * (_largest_around(sign * image) - sign * image)


def _middle(on: Bool[Array, " size"]) -> Array:
    """Middle of the first and the last True, from the middle of the axis; 0 if none is."""
    last = len(on) - 1
    ends = jnp.argmax(on) + last - jnp.argmax(on[::-1])
    return jnp.where(jnp.any(on), (ends - last) / 2, 0.0)


def _largest_around(image: Float[Array, "height width channels"]) -> Array:
    """Largest of each pixel and its eight neighbours; fewer at the borders."""
    # As a window, because XLA would compute the image anew for each shifted copy of it.
    for window in ((3, 1, 1), (1, 3, 1)):
        image = lax.reduce_window(image, -jnp.inf, lax.max, window, (1, 1, 1), "SAME")
    return image
