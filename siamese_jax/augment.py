"""Random distortions of images, on the device: pure functions of `(key, images)`.

Images are `[n, height, width, channels]`. Each image has its own part of the key, so what
happens to an image depends on the key and on its place in the batch, and on nothing else.

>>> import jax
>>> import jax.numpy as jnp
>>> images = jnp.ones((4, 8, 8, 1))
>>> distortion = Affine(max_rotation=20.0, scale_range=(0.8, 1.2), max_shift=1.0)
>>> print(random_affine(jax.random.key(0), images, distortion).shape)
(4, 8, 8, 1)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy import ndimage
from jaxtyping import Array, Float, PRNGKeyArray

from siamese_jax._checks import check_at_least, check_floating, check_rank


class Affine(NamedTuple):
    """How far an affine distortion may go, and how likely each of its components is.

    Shear, scale and shift have a vertical and a horizontal component, drawn independently;
    each is applied with its probability, and is uniform in its range.

    Attributes:
      max_rotation: Degrees, to either side.
      max_shear: Pixels of one axis per pixel of the other, to either side.
      scale_range: Smallest and largest magnification; above 1 the content grows.
      max_shift: Pixels, to either side.
      rotation_probability: Of a rotation.
      shear_probability: Of each shear.
      scale_probability: Of each scale.
      shift_probability: Of each shift.
    """

    max_rotation: float = 0.0
    max_shear: float = 0.0
    scale_range: tuple[float, float] = (1.0, 1.0)
    max_shift: float = 0.0
    rotation_probability: float = 1.0
    shear_probability: float = 1.0
    scale_probability: float = 1.0
    shift_probability: float = 1.0


KOCH_AFFINE = Affine(10.0, 0.3, (0.8, 1.2), 2.0, 0.5, 0.5, 0.5, 0.5)
"""The distortions of Koch, Zemel, Salakhutdinov 2015, section 3.3."""


def random_affine(
    key: PRNGKeyArray,
    images: Float[Array, "n height width channels"],
    distortion: Affine,
    *,
    fill: float = 0.0,
) -> Float[Array, "n height width channels"]:
    """Distorts each image by its own random affine map, about the image's centre.

    Args:
      key: A JAX key.
      images: To distort.
      distortion: Ranges and probabilities.
      fill: Value of what comes from outside the image.

    Raises:
      ValueError: If `images` is not `[n, height, width, channels]`, or a range or
        probability of `distortion` makes no sense (named).
      TypeError: If `images` is not floating-point.

    >>> still = random_affine(jax.random.key(0), jnp.ones((1, 2, 2, 1)), Affine())
    >>> print(still.sum())
    4.0
    """
    _check_images(images)
    _, height, width, _ = images.shape
    matrices = sample_affine(key, len(images), (height, width), distortion)
    return affine_transform(images, matrices, fill=fill)


def sample_affine(
    key: PRNGKeyArray, num_images: int, image_size: tuple[int, int], distortion: Affine
) -> Float[Array, "num_images 2 3"]:
    """Random maps from output to input pixels, as `affine_transform` takes them.

    Args:
      key: A JAX key.
      num_images: How many maps.
      image_size: Height and width; the centre of the image stays, but for the shift.
      distortion: Ranges and probabilities. Content is scaled, then sheared, then rotated,
        then shifted.

    Raises:
      ValueError: If a range or probability of `distortion` makes no sense (named).

    >>> print(jnp.abs(sample_affine(jax.random.key(0), 1, (8, 8), Affine())[0]))
    [[1. 0. 0.]
     [0. 1. 0.]]
    """
    _check_distortion(distortion)
    keys = jax.random.split(key, num_images)
    return jax.vmap(lambda key: _one_affine(key, image_size, distortion))(keys)


def affine_transform(
    images: Float[Array, "n height width channels"],
    matrices: Float[Array, "n 2 3"],
    *,
    fill: float = 0.0,
) -> Float[Array, "n height width channels"]:
    """Output pixel p shows the input at `matrix[:, :2] @ p + matrix[:, 2]`, bilinearly.

    p is (row, column). The same as `scipy.ndimage.affine_transform(image, matrix[:, :2],
    offset=matrix[:, 2], order=1, mode="grid-constant", cval=fill)`.

    Raises:
      ValueError: If `images` is not `[n, height, width, channels]`, or `matrices` is not
        `[n, 2, 3]`.
      TypeError: If `images` is not floating-point.

    >>> image = jnp.array([[1.0, 2.0]])[None, :, :, None]
    >>> left = jnp.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]])
    >>> print(affine_transform(image, left)[0, :, :, 0])
    [[2. 0.]]
    """
    _check_images(images)
    if matrices.shape != (len(images), 2, 3):
        raise ValueError(
            f"matrices must have shape {(len(images), 2, 3)}, one for each image; "
            f"got {matrices.shape}"
        )
    height, width = images.shape[1:3]
    grid = jnp.mgrid[:height, :width].astype(matrices.dtype)

    def one_channel(channel: Array, coordinates: Array) -> Array:
        return ndimage.map_coordinates(
            channel, list(coordinates), order=1, mode="constant", cval=fill
        )

    def one_image(image: Array, matrix: Array) -> Array:
        turned = jnp.einsum("ij,jhw->ihw", matrix[:, :2], grid, precision="highest")
        coordinates = turned + matrix[:, 2, None, None]
        channels = jax.vmap(one_channel, in_axes=(-1, None), out_axes=-1)
        return channels(image, coordinates)

    return jax.vmap(one_image)(images, matrices)


def random_noise(
    key: PRNGKeyArray,
    images: Float[Array, "n height width channels"],
    *,
    scale: float,
    probability: float = 1.0,
) -> Float[Array, "n height width channels"]:
    """Adds to each image, with a probability, Gaussian noise of a standard deviation.

    Values are not clipped.

    Args:
      key: A JAX key.
      images: To add noise to.
      scale: Standard deviation, in units of the image.
      probability: That an image gets noise at all.

    Raises:
      ValueError: If `images` is not `[n, height, width, channels]`, `scale` is negative
        or `probability` not in [0, 1].
      TypeError: If `images` is not floating-point.

    >>> print(random_noise(jax.random.key(0), jnp.ones((1, 2, 2, 1)), scale=0.0).sum())
    4.0
    """
    _check_images(images)
    check_at_least("scale", scale, 0)
    _check_probability("probability", probability)

    def one_image(key: PRNGKeyArray, image: Array) -> Array:
        noise_key, chance_key = jax.random.split(key)
        noise = scale * jax.random.normal(noise_key, image.shape, image.dtype)
        return jnp.where(
            jax.random.bernoulli(chance_key, probability), image + noise, image
        )

    return jax.vmap(one_image)(jax.random.split(key, len(images)), images)


def _one_affine(
    key: PRNGKeyArray, image_size: tuple[int, int], distortion: Affine
) -> Float[Array, "2 3"]:
    keys = iter(jax.random.split(key, 4))

    def draw(
        num: int, low: float, high: float, probability: float, neutral: float
    ) -> Array:
        value_key, chance_key = jax.random.split(next(keys))
        values = jax.random.uniform(value_key, (num,), minval=low, maxval=high)
        chosen = jax.random.bernoulli(chance_key, probability, (num,))
        return jnp.where(chosen, values, neutral)

    d = distortion
    angle = jnp.deg2rad(
        draw(1, -d.max_rotation, d.max_rotation, d.rotation_probability, 0.0)[0]
    )
    shears = draw(2, -d.max_shear, d.max_shear, d.shear_probability, 0.0)
    scales = draw(2, *d.scale_range, d.scale_probability, 1.0)
    shift = draw(2, -d.max_shift, d.max_shift, d.shift_probability, 0.0)

    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    shear = jnp.eye(2) + jnp.diag(shears[:1], 1) + jnp.diag(shears[1:], -1)
    forward = jnp.matmul(rotation, shear * scales[None, :], precision="highest")
    # The content moves forward, so an output pixel looks back.
    backward = _inverse(forward)
    centre = (jnp.array(image_size, backward.dtype) - 1) / 2
    turned = jnp.matmul(backward, centre + shift, precision="highest")
    return jnp.concatenate([backward, (centre - turned)[:, None]], axis=1)


def _inverse(matrix: Float[Array, "2 2"]) -> Float[Array, "2 2"]:
    (a, b), (c, d) = matrix
    return jnp.stack([jnp.stack([d, -b]), jnp.stack([-c, a])]) / (a * d - b * c)


def _check_images(images: Array) -> None:
    check_floating("images", images)
    check_rank("images", images, 4)


def _check_probability(name: str, probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"{name} must be in [0, 1]; got {probability}")


def _check_distortion(distortion: Affine) -> None:
    check_at_least("max_rotation", distortion.max_rotation, 0)
    check_at_least("max_shift", distortion.max_shift, 0)
    if not 0 <= distortion.max_shear < 1:
        raise ValueError(f"max_shear must be in [0, 1); got {distortion.max_shear}")
    smallest, largest = distortion.scale_range
    if not 0 < smallest <= largest:
        raise ValueError(
            f"scale_range must be (smallest, largest), both positive; "
            f"got {distortion.scale_range}"
        )
    for name in ("rotation", "shear", "scale", "shift"):
        field = f"{name}_probability"
        _check_probability(field, getattr(distortion, field))
