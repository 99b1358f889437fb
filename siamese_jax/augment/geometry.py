"""Moving the pixels of an image: affine maps, elastic fields, bilinear interpolation."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from siamese_jax._checks import check_at_least
from siamese_jax._numerics import widen
from siamese_jax.augment._checks import check_image, check_probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine:
    """Ranges and probabilities of a random affine map.

    Shear, scale and shift have a vertical and a horizontal component, which are drawn
    independently. Each component is applied with its probability, and is uniform in its
    range.

    Attributes:
      max_rotation: Largest rotation to either side, in degrees.
      max_shear: Largest shear to either side, in pixels of one axis per pixel of the other.
        It is less than 1.
      scale_range: Smallest and largest magnification. Above 1 the content grows.
      max_shift: Largest shift to either side, in pixels.
      rotation_probability: Probability of a rotation.
      shear_probability: Probability of each of the two shears.
      scale_probability: Probability of each of the two scales.
      shift_probability: Probability of each of the two shifts.

    Raises:
      ValueError: If a range or a probability makes no sense. The message names it.
    """

    max_rotation: float = 0.0
    max_shear: float = 0.0
    scale_range: tuple[float, float] = (1.0, 1.0)
    max_shift: float = 0.0
    rotation_probability: float = 1.0
    shear_probability: float = 1.0
    scale_probability: float = 1.0
    shift_probability: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges and the probabilities."""
        check_at_least("max_rotation", self.max_rotation, 0)
        check_at_least("max_shift", self.max_shift, 0)
        if not 0 <= self.max_shear < 1:
            raise ValueError(f"max_shear must be in [0, 1); got {self.max_shear}")
        smallest, largest = self.scale_range
        if not 0 < smallest <= largest:
            raise ValueError(
                f"scale_range must be (smallest, largest), both positive; "
                f"got {self.scale_range}"
            )
        for name in ("rotation", "shear", "scale", "shift"):
            field = f"{name}_probability"
            check_probability(field, getattr(self, field))


KOCH_AFFINE = Affine(
    max_rotation=10.0,
    max_shear=0.3,
    scale_range=(0.8, 1.2),
    max_shift=2.0,
    rotation_probability=0.5,
    shear_probability=0.5,
    scale_probability=0.5,
    shift_probability=0.5,
)
"""The distortions of Koch, Zemel, Salakhutdinov 2015, section 3.3."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elastic:
    """Size and smoothness of a random displacement of every pixel.

    Attributes:
      scale: Standard deviation of each displacement, down and to the right, in pixels. A
        scale above half of `sigma` may fold the image over itself.
      sigma: Standard deviation of the Gaussian that smooths the displacements, in pixels.
        Points that are much nearer to each other than this move together.

    Raises:
      ValueError: If `scale` is negative or `sigma` is not positive.
    """

    scale: float
    sigma: float

    def __post_init__(self) -> None:
        """Checks both numbers."""
        check_at_least("scale", self.scale, 0)
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive; got {self.sigma}")


# Interpolation --------------------------------------------------------------------------


def warp(
    image: Float[Array, "height width channels"],
    coordinates: Float[Array, "out_height out_width 2"],
    *,
    fill: float = 0.0,
) -> Float[Array, "out_height out_width channels"]:
    """Returns the values of the image at the coordinates, interpolated bilinearly.

    A coordinate is (row, column), in pixels of the image. The same as
    `scipy.ndimage.map_coordinates(channel, coordinates, order=1, mode="grid-constant",
    cval=fill)`, with the coordinates on the first axis.

    Args:
      image: The image to look at.
      coordinates: Where each output pixel looks.
      fill: Value of what is outside the image.

    Raises:
      ValueError: If `image` is not `[height, width, channels]`, or `coordinates` not
        `[out_height, out_width, 2]`.
      TypeError: If `image` is not floating-point.

    >>> image = jnp.array([[1.0, 2.0]])[:, :, None]
    >>> print(warp(image, jnp.array([[[0.0, 0.5]]]))[0, 0])
    [1.5]
    """
    check_image(image)
    if coordinates.ndim != 3 or coordinates.shape[2] != 2:
        raise ValueError(
            f"coordinates must have shape (height, width, 2); got {coordinates.shape}"
        )

    coordinates = widen(coordinates)
    _, _, channels = image.shape
    # Each output pixel is a weighted sum over a window of 2 x 2 pixels. With a border of
    # `fill`, every window lies inside. One gather of windows and one sum are faster on a
    # CPU than four gathers, because XLA does not compute a sum anew for each of its uses.
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=fill)
    beyond = jnp.array(image.shape[:2], coordinates.dtype)[None, None]
    coordinates = jnp.clip(coordinates, -1, beyond)
    first = jnp.minimum(jnp.floor(coordinates), beyond - 1)
    windows = lax.gather(
        padded,
        first.astype(jnp.int32) + 1,
        lax.GatherDimensionNumbers(
            offset_dims=(2, 3, 4), collapsed_slice_dims=(), start_index_map=(0, 1)
        ),
        slice_sizes=(2, 2, channels),
        mode="clip",
    )
    down, right = jnp.split(coordinates - first, 2, axis=-1)
    up, left = 1 - down, 1 - right
    weights = jnp.stack([up * left, up * right, down * left, down * right], axis=-2)
    corners = windows.reshape(*windows.shape[:2], 4, channels)
    return jnp.sum(weights * corners, axis=-2).astype(image.dtype)


# Affine maps ----------------------------------------------------------------------------


def random_affine(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    distortion: Affine,
    *,
    fill: float = 0.0,
) -> Float[Array, "height width channels"]:
    """Distorts the image by a random affine map about its centre.

    Args:
      key: A JAX key.
      image: The image to distort.
      distortion: Ranges and probabilities of the map.
      fill: Value of what comes from outside the image.

    Raises:
      ValueError: If `image` is not `[height, width, channels]`.
      TypeError: If `image` is not floating-point.

    >>> still = random_affine(jax.random.key(0), jnp.ones((2, 2, 1)), Affine())
    >>> print(still.sum())
    4.0
    """
    check_image(image)
    height, width, _ = image.shape
    matrix = sample_affine(key, (height, width), distortion)
    return affine_transform(image, matrix, fill=fill)


def sample_affine(
    key: PRNGKeyArray, image_size: tuple[int, int], distortion: Affine
) -> Float[Array, "2 3"]:
    """Draws a random map from output to input pixels, as `affine_transform` takes it.

    The content is scaled, then sheared, then rotated, each about the centre of the image,
    then shifted.

    Args:
      key: A JAX key.
      image_size: Height and width of the image, in pixels.
      distortion: Ranges and probabilities of the map.

    >>> print(jnp.abs(sample_affine(jax.random.key(0), (8, 8), Affine())))
    [[1. 0. 0.]
     [0. 1. 0.]]
    """
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


def affine_transform(
    image: Float[Array, "height width channels"],
    matrix: Float[Array, "2 3"],
    *,
    fill: float = 0.0,
) -> Float[Array, "height width channels"]:
    """Returns an image whose pixel p is the input at `matrix[:, :2] @ p + matrix[:, 2]`.

    p is (row, column), and the interpolation is bilinear. The same as
    `scipy.ndimage.affine_transform(channel, matrix[:, :2], offset=matrix[:, 2], order=1,
    mode="grid-constant", cval=fill)`.

    Args:
      image: The image to transform.
      matrix: The map from output to input pixels.
      fill: Value of what comes from outside the image.

    Raises:
      ValueError: If `image` is not `[height, width, channels]`, or `matrix` is not
        `[2, 3]`.
      TypeError: If `image` is not floating-point.

    >>> image = jnp.array([[1.0, 2.0]])[:, :, None]
    >>> left = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    >>> print(affine_transform(image, left)[:, :, 0])
    [[2. 0.]]
    """
    check_image(image)
    height, width, _ = image.shape
    return warp(image, affine_coordinates(matrix, (height, width)), fill=fill)


def affine_coordinates(
    matrix: Float[Array, "2 3"], image_size: tuple[int, int]
) -> Float[Array, "height width 2"]:
    """Returns where each output pixel p looks: `matrix[:, :2] @ p + matrix[:, 2]`.

    Coordinates are float32 or wider: bfloat16 has no odd number beyond 256.

    Args:
      matrix: The map from output to input pixels.
      image_size: Height and width of the output, in pixels.

    Raises:
      ValueError: If `matrix` is not `[2, 3]`.

    >>> left = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    >>> print(affine_coordinates(left, (1, 2))[0])
    [[0. 1.]
     [0. 2.]]
    """
    if matrix.shape != (2, 3):
        raise ValueError(f"matrix must have shape (2, 3); got {matrix.shape}")
    matrix = widen(matrix)
    height, width = image_size
    rows = jnp.arange(height, dtype=matrix.dtype)[:, None, None]
    columns = jnp.arange(width, dtype=matrix.dtype)[None, :, None]
    down, right, offset = matrix[:, 0], matrix[:, 1], matrix[:, 2]
    return down[None, None] * rows + right[None, None] * columns + offset[None, None]


def _inverse(matrix: Float[Array, "2 2"]) -> Float[Array, "2 2"]:
    (a, b), (c, d) = matrix
    return jnp.stack([jnp.stack([d, -b]), jnp.stack([-c, a])]) / (a * d - b * c)


# Elastic fields -------------------------------------------------------------------------


def random_elastic(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    elastic: Elastic,
    *,
    fill: float = 0.0,
) -> Float[Array, "height width channels"]:
    """Moves the pixels of the image by a smooth random field.

    Args:
      key: A JAX key.
      image: The image to distort.
      elastic: Size and smoothness of the displacements.
      fill: Value of what comes from outside the image.

    Raises:
      ValueError: If `image` is not `[height, width, channels]`.
      TypeError: If `image` is not floating-point.

    Reference:
      Simard, Steinkraus, Platt. Best Practices for Convolutional Neural Networks Applied
      to Visual Document Analysis. ICDAR 2003, section 2. `sample_elastic` names the
      difference.

    >>> still = Elastic(scale=0.0, sigma=1.0)
    >>> print(random_elastic(jax.random.key(0), jnp.ones((2, 2, 1)), still).sum())
    4.0
    """
    check_image(image)
    height, width, _ = image.shape
    displacements = sample_elastic(key, (height, width), elastic)
    still = jnp.eye(2, 3, dtype=displacements.dtype)
    coordinates = affine_coordinates(still, (height, width)) + displacements
    return warp(image, coordinates, fill=fill)


def sample_elastic(
    key: PRNGKeyArray, image_size: tuple[int, int], elastic: Elastic
) -> Float[Array, "height width 2"]:
    """Draws smooth random displacements, in pixels, to add to coordinates.

    Gaussian noise is drawn on a grid of points that are `sigma` apart, from 4 sigma before
    the image to 4 sigma behind it. It is smoothed by a Gaussian of standard deviation
    `sigma`, and scaled so that each displacement is normal with mean 0 and standard
    deviation `scale`, at the borders too. Simard et al. smooth uniform noise of every
    pixel, which is weaker at the borders.

    Args:
      key: A JAX key.
      image_size: Height and width of the image, in pixels.
      elastic: Size and smoothness of the displacements.

    >>> elastic = Elastic(scale=1.0, sigma=2.0)
    >>> print(sample_elastic(jax.random.key(0), (8, 6), elastic).shape)
    (8, 6, 2)
    """
    down, across = (_smoothing(size, elastic.sigma) for size in image_size)
    noise = jax.random.normal(key, (down.shape[1], across.shape[1], 2))
    field = jnp.einsum("hi,wj,ijd->hwd", down, across, noise, precision="highest")
    return elastic.scale * field


def _smoothing(size: int, sigma: float) -> Float[Array, "size points"]:
    """Weights of the points of the grid for each pixel, with squares that sum to 1."""
    points = jnp.arange(-4, size / sigma + 4) * sigma
    steps = (jnp.arange(size)[:, None] - points[None, :]) / sigma
    weights = jnp.exp(-(steps**2) / 2)
    return weights / jnp.linalg.norm(weights, axis=1, keepdims=True)
