"""Noise that is added to the values of an image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from siamese_jax._checks import check_at_least
from siamese_jax.augment._checks import check_image, check_probability


def random_noise(
    key: PRNGKeyArray,
    image: Float[Array, "height width channels"],
    *,
    scale: float,
    probability: float = 1.0,
) -> Float[Array, "height width channels"]:
    """Adds Gaussian noise to the image, with a probability.

    The values are not clipped.

    Args:
      key: A JAX key.
      image: The image to add noise to.
      scale: Standard deviation of the noise, in units of the image.
      probability: Probability that the image gets any noise.

    Raises:
      ValueError: If `image` is not `[height, width, channels]`, `scale` is negative or
        `probability` is not in [0, 1].
      TypeError: If `image` is not floating-point.

    >>> print(random_noise(jax.random.key(0), jnp.ones((2, 2, 1)), scale=0.0).sum())
    4.0
    """
    check_image(image)
    check_at_least("scale", scale, 0)
    check_probability("probability", probability)
    noise_key, chance_key = jax.random.split(key)
    noise = scale * jax.random.normal(noise_key, image.shape, image.dtype)
    return jnp.where(jax.random.bernoulli(chance_key, probability), image + noise, image)
