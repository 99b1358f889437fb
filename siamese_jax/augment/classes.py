"""Made classes: a strong change that all drawings of a class share makes a new class.

A weak distortion with a key of its own for each drawing leaves a drawing in its class. A
strong one with one key for all drawings of a class makes drawings of another class, which
nobody has drawn. It resembles the first and is a hard negative for it:

>>> from functools import partial
>>> def make_class(key, images):  # [n, height, width, channels], of one class
...     change = partial(random_gap, key, width=2.0, max_offset=1.0)
...     return jax.vmap(change)(images)
>>> drawings = jnp.stack([jnp.ones((6, 6, 1)), jnp.ones((6, 6, 1)) / 2])
>>> made = make_class(jax.random.key(0), drawings)
>>> print(bool(jnp.all((made[0] == 0) == (made[1] == 0))))  # the same gap
True

Centre the drawings first (`center`), so that a place in the image is the same place of the
character in all of them. `geometry.random_elastic` with a large `sigma` bends all drawings
of a class alike, if they get one key.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from siamese_jax._checks import check_at_least, check_same_shape
from siamese_jax.augment._checks import check_image
from siamese_jax.augment.geometry import affine_coordinates, affine_transform, warp


def random_stretch(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    stretch_range: tuple[float, float],
    fill: float = 0.0,
) -> Float[Array, "height width channels"]:
    """Stretches the image in a random direction, and shrinks it across, about its centre.

    The content becomes s times as long in a direction that is uniform over the circle, and
    1 / s times as wide across, with s uniform in the range. Areas stay the same. A
    horizontal stretch by s makes letters wide. A diagonal one slants them, as a shear of
    s - 1 / s followed by a rotation does.

    Args:
      key: A JAX key.
      image: The image to stretch.
      stretch_range: Smallest and largest s. At least 1; further from 1 than what drawings
        of one class differ by.
      fill: Value of what comes from outside the image.

    Raises:
      ValueError: If `image` is not `[height, width, channels]`, or the range is not
        1 <= smallest <= largest.
      TypeError: If `image` is not floating-point.

    >>> still = random_stretch(
    ...     jax.random.key(0), jnp.ones((3, 3, 1)), stretch_range=(1.0, 1.0))
    >>> print(still.sum())
    9.0
    """
    check_image(image)
    smallest, largest = stretch_range
    if not 1 <= smallest <= largest:
        raise ValueError(
            f"stretch_range must be (smallest, largest), both at least 1; got "
            f"{stretch_range}"
        )
    angle_key, stretch_key = jax.random.split(key)
    along = _direction(angle_key)
    across = jnp.stack([-along[1], along[0]])
    stretch = jax.random.uniform(stretch_key, minval=smallest, maxval=largest)
    # an output pixel looks back, where the content came from
    backward = jnp.outer(along, along) / stretch + jnp.outer(across, across) * stretch
    centre = _centre(image)
    offset = centre - jnp.matmul(backward, centre, precision="highest")
    matrix = jnp.concatenate([backward, offset[:, None]], axis=1)
    return affine_transform(image, matrix, fill=fill)


def random_splice(
    key: PRNGKeyArray,
    first: Float[Array, "height width channels"],
    second: Float[Array, "height width channels"],
    *,
    max_offset: float,
) -> Float[Array, "height width channels"]:
    """Joins a part of the first image and the other part of the second at a random line.

    The line has a uniform direction, and a distance from the centre of the image that is
    uniform in [-max_offset, max_offset] pixels. A pixel is of the first image if its
    centre is on the line or on one side of it, and of the second on the other side.

    Args:
      key: A JAX key.
      first: An image, such as a drawing of a class.
      second: An image of the same shape, such as a drawing of another class.
      max_offset: Largest distance of the line from the centre, in pixels.

    Raises:
      ValueError: If `first` is not `[height, width, channels]`, the shapes differ, or
        `max_offset` is negative.
      TypeError: If an image is not floating-point.

    >>> light, dark = jnp.ones((4, 4, 1)), jnp.zeros((4, 4, 1))
    >>> print(jnp.unique(random_splice(jax.random.key(0), light, dark, max_offset=0.0)))
    [0. 1.]
    """
    check_image(first, name="first")
    check_image(second, name="second")
    check_same_shape("second", second, "first", first)
    distances = _distances_to_line(key, first, max_offset)
    return jnp.where(distances[:, :, None] >= 0, first, second)


def random_gap(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    width: float,
    max_offset: float,
    fill: float = 0.0,
) -> Float[Array, "height width channels"]:
    """Removes what is within half of `width` of a random line, which cuts strokes.

    Args:
      key: A JAX key.
      image: The image to cut.
      width: Width of the gap, in pixels.
      max_offset: Largest distance of the line from the centre, in pixels; see
        `random_splice`.
      fill: Value of the pixels in the gap.

    Raises:
      ValueError: If `image` is not `[height, width, channels]`, or a number is negative.
      TypeError: If `image` is not floating-point.

    >>> image = jnp.ones((3, 3, 1))
    >>> print(random_gap(jax.random.key(0), image, width=9.0, max_offset=0.0).sum())
    0.0
    """
    check_image(image)
    check_at_least("width", width, 0)
    distances = _distances_to_line(key, image, max_offset)
    is_cut = jnp.abs(distances) < width / 2
    return jnp.where(is_cut[:, :, None], jnp.asarray(fill, image.dtype), image)


def random_copy(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    distance: float,
) -> Float[Array, "height width channels"]:
    """Adds a copy of the bright strokes, moved in a random direction, which doubles them.

    Each pixel is the larger of that of the image and that of the moved image. The movement
    is rounded to whole pixels, so that nothing is blurred.

    Args:
      key: A JAX key.
      image: Bright strokes on a ground of 0; give `1 - image` for a dark drawing.
      distance: How far the copy is moved, in pixels.

    Raises:
      ValueError: If `image` is not `[height, width, channels]`, or the distance is
        negative.
      TypeError: If `image` is not floating-point.

    >>> dot = jnp.zeros((5, 5, 1)).at[2, 2].set(1.0)
    >>> print(random_copy(jax.random.key(0), dot, distance=2.0).sum())
    2.0
    """
    check_image(image)
    check_at_least("distance", distance, 0)
    shift = jnp.round(distance * _direction(key))
    height, width, _ = image.shape
    still = affine_coordinates(jnp.eye(2, 3, dtype=shift.dtype), (height, width))
    return jnp.maximum(image, warp(image, still - shift[None, None]))


def _direction(key: PRNGKeyArray) -> Float[Array, "2"]:
    """A vector (down, right) of length 1, uniform over the circle."""
    angle = jax.random.uniform(key, maxval=2 * jnp.pi)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)])


def _distances_to_line(
    key: PRNGKeyArray, image: Float[Array, "height width channels"], max_offset: float
) -> Float[Array, "height width"]:
    """Distance of each pixel to a random line, negative on one side."""
    check_at_least("max_offset", max_offset, 0)
    angle_key, offset_key = jax.random.split(key)
    offset = jax.random.uniform(offset_key, minval=-max_offset, maxval=max_offset)
    height, width, _ = image.shape
    still = affine_coordinates(jnp.eye(2, 3, dtype=offset.dtype), (height, width))
    from_centre = still - _centre(image)[None, None]
    return jnp.sum(from_centre * _direction(angle_key)[None, None], axis=2) - offset


def _centre(image: Float[Array, "height width channels"]) -> Float[Array, "2"]:
    """Row and column of the middle of the image."""
    return (jnp.array(image.shape[:2], float) - 1) / 2
