"""Random distortions of images, on the device: pure functions of `(key, images)`.

`ink_offsets` and `center` draw nothing at random: they find, and take away, where on the
paper something was drawn.

Images are `[n, height, width, channels]`. Each image has its own part of the key, so what
happens to an image depends on the key and on its place in the batch, and on nothing else.

>>> import jax
>>> import jax.numpy as jnp
>>> images = jnp.ones((4, 8, 8, 1))
>>> distortion = Affine(max_rotation=20.0, scale_range=(0.8, 1.2), max_shift=1.0)
>>> print(random_affine(jax.random.key(0), images, distortion).shape)
(4, 8, 8, 1)

Each interpolation blurs a little. To move an image in two ways at once, add displacements
to affine coordinates, and `warp` once:

>>> affine_key, elastic_key = jax.random.split(jax.random.key(0))
>>> matrices = sample_affine(affine_key, 4, (8, 8), distortion)
>>> moved = sample_elastic(elastic_key, 4, (8, 8), Elastic(scale=0.5, sigma=2.0))
>>> print(warp(images, affine_coordinates(matrices, (8, 8)) + moved).shape)
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


class Elastic(NamedTuple):
    """A smooth random displacement of every pixel, as if the paper were rubber.

    Attributes:
      scale: Standard deviation of each displacement, down and to the right, in pixels.
      sigma: Of the Gaussian that smooths them, in pixels: points much nearer to each other
        than this move together. A scale above half of it may fold the paper.
    """

    scale: float
    sigma: float


# Moving pixels --------------------------------------------------------------------------


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
    return warp(images, affine_coordinates(matrices, (height, width)), fill=fill)


def affine_coordinates(
    matrices: Float[Array, "n 2 3"], image_size: tuple[int, int]
) -> Float[Array, "n height width 2"]:
    """Where each output pixel p looks: `matrix[:, :2] @ p + matrix[:, 2]`.

    >>> left = jnp.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]])
    >>> print(affine_coordinates(left, (1, 2))[0, 0])
    [[0. 1.]
     [0. 2.]]
    """
    height, width = image_size
    grid = jnp.mgrid[:height, :width].astype(matrices.dtype)
    turned = jnp.einsum("nij,jhw->nhwi", matrices[:, :, :2], grid, precision="highest")
    return turned + matrices[:, None, None, :, 2]


def warp(
    images: Float[Array, "n height width channels"],
    coordinates: Float[Array, "n out_height out_width 2"],
    *,
    fill: float = 0.0,
) -> Float[Array, "n out_height out_width channels"]:
    """Each output pixel shows the input at its coordinates, bilinearly.

    A coordinate is (row, column), in pixels of the input. The same as
    `scipy.ndimage.map_coordinates(channel, coordinates, order=1, mode="grid-constant",
    cval=fill)`.

    Raises:
      ValueError: If `images` is not `[n, height, width, channels]`, or `coordinates` not
        `[n, out_height, out_width, 2]`.
      TypeError: If `images` is not floating-point.

    >>> image = jnp.array([[1.0, 2.0]])[None, :, :, None]
    >>> print(warp(image, jnp.array([[[[0.0, 0.5]]]]))[0, 0, 0])
    [1.5]
    """
    _check_images(images)
    if coordinates.shape[::3] != (images.shape[0], 2) or coordinates.ndim != 4:
        raise ValueError(
            f"coordinates must have shape ({images.shape[0]}, height, width, 2); "
            f"got {coordinates.shape}"
        )

    def one_channel(channel: Array, coordinates: Array) -> Array:
        rows_columns = [coordinates[..., 0], coordinates[..., 1]]
        return ndimage.map_coordinates(
            channel, rows_columns, order=1, mode="constant", cval=fill
        )

    channels = jax.vmap(one_channel, in_axes=(-1, None), out_axes=-1)
    return jax.vmap(channels)(images, coordinates)


def ink_offsets(
    images: Float[Array, "n height width channels"], *, threshold: float
) -> Float[Array, "n 2"]:
    """(row, column) from each image's middle to its ink's, in pixels.

    Ink is what is brighter than `threshold` in any channel: dark drawings are to be turned
    first (`1 - images`). Its middle is that of the smallest box around it; without ink it
    is the image's. Added to the coordinates of a `warp`, the offsets centre the ink,
    without another interpolation. They are float32 or wider.

    Raises:
      ValueError: If `images` is not `[n, height, width, channels]`.
      TypeError: If `images` is not floating-point.

    >>> print(ink_offsets(jnp.zeros((1, 5, 5, 1)).at[0, 0, 3].set(1.0), threshold=0.5))
    [[-2.  1.]]
    """
    _check_images(images)
    ink = jnp.any(images > threshold, axis=3)

    def offset(on: Array) -> Array:
        last = on.shape[1] - 1
        ends = jnp.argmax(on, axis=1) + last - jnp.argmax(on[:, ::-1], axis=1)
        return jnp.where(jnp.any(on, axis=1), (ends - last) / 2, 0.0)

    offsets = [offset(jnp.any(ink, axis=2)), offset(jnp.any(ink, axis=1))]
    wide = jnp.promote_types(images.dtype, jnp.float32)
    return jnp.stack(offsets, axis=-1).astype(wide)


def center(
    images: Float[Array, "n height width channels"],
    *,
    threshold: float,
    fill: float = 0.0,
) -> Float[Array, "n height width channels"]:
    """Moves each image so that the middle of its ink is the middle of the image.

    As `ink_offsets` finds it. Where the sides of image and ink differ by an odd number,
    that is by half a pixel, which blurs.

    Raises:
      ValueError: If `images` is not `[n, height, width, channels]`.
      TypeError: If `images` is not floating-point.

    >>> corner = jnp.zeros((1, 3, 3, 1)).at[0, 0, 0].set(1.0)
    >>> print(center(corner, threshold=0.5)[0, :, :, 0])
    [[0. 0. 0.]
     [0. 1. 0.]
     [0. 0. 0.]]
    """
    offsets = ink_offsets(images, threshold=threshold)
    grid = jnp.stack(jnp.mgrid[: images.shape[1], : images.shape[2]], axis=-1)
    coordinates = grid[None].astype(offsets.dtype) + offsets[:, None, None]
    return warp(images, coordinates, fill=fill)


def random_elastic(
    key: PRNGKeyArray,
    images: Float[Array, "n height width channels"],
    distortion: Elastic,
    *,
    fill: float = 0.0,
) -> Float[Array, "n height width channels"]:
    """Moves the pixels of each image by its own smooth random field.

    Args:
      key: A JAX key.
      images: To distort.
      distortion: How far, how smoothly.
      fill: Value of what comes from outside the image.

    Raises:
      ValueError: If `images` is not `[n, height, width, channels]`, or a number of
        `distortion` makes no sense (named).
      TypeError: If `images` is not floating-point.

    Reference:
      Simard, Steinkraus, Platt. Best Practices for Convolutional Neural Networks Applied
      to Visual Document Analysis. ICDAR 2003, section 2; see `sample_elastic`.

    >>> still = random_elastic(jax.random.key(0), jnp.ones((1, 2, 2, 1)), Elastic(0.0, 1.0))
    >>> print(still.sum())
    4.0
    """
    _check_images(images)
    size = images.shape[1], images.shape[2]
    matrices = jnp.broadcast_to(jnp.eye(2, 3), (len(images), 2, 3))
    moved = sample_elastic(key, len(images), size, distortion)
    return warp(images, affine_coordinates(matrices, size) + moved, fill=fill)


def sample_elastic(
    key: PRNGKeyArray, num_images: int, image_size: tuple[int, int], distortion: Elastic
) -> Float[Array, "num_images height width 2"]:
    """Smooth random displacements, to add to coordinates.

    Gaussian noise on a grid of points a sigma apart, from 4 sigma above the image to 4
    sigma below it, is smoothed by a Gaussian of deviation sigma, and scaled so that each
    displacement is normal with mean 0 and deviation `scale`, at the borders too. Simard et
    al. smooth uniform noise of every pixel, which is weaker at the borders.

    Raises:
      ValueError: If a number of `distortion` makes no sense (named).

    >>> print(sample_elastic(jax.random.key(0), 3, (8, 6), Elastic(1.0, 2.0)).shape)
    (3, 8, 6, 2)
    """
    check_at_least("scale", distortion.scale, 0)
    if not distortion.sigma > 0:
        raise ValueError(f"sigma must be positive; got {distortion.sigma}")
    down, across = (_smoothing(size, distortion.sigma) for size in image_size)

    def one_image(key: PRNGKeyArray) -> Array:
        noise = jax.random.normal(key, (down.shape[1], across.shape[1], 2))
        field = jnp.einsum("hi,wj,ijd->hwd", down, across, noise, precision="highest")
        return distortion.scale * field

    return jax.vmap(one_image)(jax.random.split(key, num_images))


def _smoothing(size: int, sigma: float) -> Float[Array, "size points"]:
    """Weights of the grid's points for each pixel; their squares add to 1."""
    points = jnp.arange(-4, size / sigma + 4) * sigma
    away = (jnp.arange(size)[:, None] - points[None, :]) / sigma
    weights = jnp.exp(-(away**2) / 2)
    return weights / jnp.linalg.norm(weights, axis=1, keepdims=True)


# Changing values ------------------------------------------------------------------------


def random_thickness(
    key: PRNGKeyArray,
    images: Float[Array, "n height width channels"],
    *,
    max_change: float,
) -> Float[Array, "n height width channels"]:
    """Makes the light strokes of each image thicker or thinner.

    By a change uniform in [-max_change, max_change]: a positive c gives image + c (dilated
    - image), a negative one image + |c| (eroded - image). Each pixel of the dilated image
    is the largest of its 3 x 3 neighbours, of the eroded one the smallest; 1 moves each
    border of a stroke by a pixel.

    Args:
      key: A JAX key.
      images: With light strokes on dark ground; for dark strokes give `1 - images`.
      max_change: Pixels, in [0, 1].

    Raises:
      ValueError: If `images` is not `[n, height, width, channels]`, or `max_change` is not
        in [0, 1].
      TypeError: If `images` is not floating-point.

    >>> blot = jnp.ones((1, 2, 2, 1))
    >>> print(random_thickness(jax.random.key(0), blot, max_change=1.0).sum())
    4.0
    """
    _check_images(images)
    _check_probability("max_change", max_change)

    def one_image(key: PRNGKeyArray, image: Array) -> Array:
        change = jax.random.uniform(key, minval=-max_change, maxval=max_change)
        sign = jnp.sign(change)
        return image + change * (_largest_around(sign * image) - sign * image)

    return jax.vmap(one_image)(jax.random.split(key, len(images)), images)


def _largest_around(image: Float[Array, "height width channels"]) -> Array:
    """Of each pixel and its neighbours, also across corners."""
    rows = jnp.pad(image, ((1, 1), (0, 0), (0, 0)), mode="edge")
    image = jnp.maximum(jnp.maximum(rows[:-2], rows[2:]), image)
    columns = jnp.pad(image, ((0, 0), (1, 1), (0, 0)), mode="edge")
    return jnp.maximum(jnp.maximum(columns[:, :-2], columns[:, 2:]), image)


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
