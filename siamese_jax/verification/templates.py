"""Templates: one embedding for all images and video frames of a person."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from siamese_jax._checks import (
    check_at_least,
    check_boolean,
    check_floating,
    check_integer,
    check_rank,
    check_shape,
)
from siamese_jax._numerics import widen
from siamese_jax.distances import normalize


def pool_templates(
    embeddings: Float[Array, "n dim"],
    templates: Int[Array, " n"] | Int[np.ndarray, " n"],
    *,
    num_templates: int,
    media: Int[Array, " n"] | Int[np.ndarray, " n"] | None = None,
    weights: Float[Array, " n"] | Float[np.ndarray, " n"] | None = None,
    where: Bool[Array, " n"] | Bool[np.ndarray, " n"] | None = None,
) -> Float[Array, "templates dim"]:
    """Direction of the sum of each template's media, each of which is a mean of its images.

    A medium is a photo or a video. With its images i, of weights w_i, the template is

        normalize(sum over media (1 / number of images) sum_i w_i e_i)

    so that a long video counts as much as a photo. Without media, each image is one.

    Args:
      embeddings: Embedding of each image, usually of length 1.
      templates: Number of the template of each image, from 0.
      num_templates: Number of templates.
      media: Medium of each image, any integers. The same number in two templates means two
        media.
      weights: Weight of each image, such as the confidence that it shows a face.
      where: False where an image is ignored.

    Returns:
      Unit vectors in the type of the embeddings. A template without images is NaN, one
      whose sum is 0 is 0. All are NaN if the number of a template is not from 0 to
      `num_templates` - 1.

    Raises:
      ValueError: If a shape is wrong or `num_templates` is below 1.
      TypeError: If embeddings or weights are not floating-point, numbers of templates or
        media not integer, or `where` not boolean.

    Reference:
      Maze et al. IARPA Janus Benchmark - C: Face Dataset and Protocol. ICB 2018.

    >>> frames = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> template = jnp.zeros(3, int)
    >>> pooled = pool_templates(
    ...     frames, template, num_templates=1, media=jnp.array([5, 5, 6]))
    >>> print(pooled.round(3))
    [[0.707 0.707]]
    """
    check_floating("embeddings", embeddings)
    check_rank("embeddings", embeddings, 2)
    check_at_least("num_templates", num_templates, 1)
    num, dim = embeddings.shape
    check_integer("templates", templates)
    check_shape("templates", templates, (num,), "one for each embedding")
    images = widen(jnp.asarray(embeddings))
    counted = jnp.ones(num, bool) if where is None else jnp.asarray(where)
    check_boolean("where", counted)
    check_shape("where", counted, (num,), "one for each embedding")
    if weights is not None:
        check_floating("weights", weights)
        check_shape("weights", weights, (num,), "one for each embedding")
        images = images * widen(jnp.asarray(weights))[:, None]
    media = jnp.arange(num) if media is None else jnp.asarray(media)
    check_integer("media", media)
    check_shape("media", media, (num,), "one for each embedding")

    if num == 0:
        return jnp.full((num_templates, dim), jnp.nan, embeddings.dtype)
    templates = jnp.asarray(templates)
    unknown = jnp.any(counted & ((templates < 0) | (templates >= num_templates)))
    templates = jnp.where(counted, templates, num_templates)  # beyond all, so dropped
    order = jnp.lexsort((media, templates))
    template, medium = templates[order], media[order]
    is_next = (template[1:] != template[:-1]) | (medium[1:] != medium[:-1])
    place = jnp.pad(jnp.cumsum(is_next), (1, 0))  # media, numbered in this order
    images = jnp.where(counted[:, None], images, 0)[order]

    size = jnp.zeros(num, images.dtype).at[place].add(1)
    shares = images / size[place][:, None]
    sums = jnp.zeros((num_templates, images.shape[1]), images.dtype)
    sums = sums.at[template].add(shares, mode="drop")
    has_images = jnp.zeros(num_templates, bool).at[template].set(True, mode="drop")
    pooled = jnp.where((has_images & ~unknown)[:, None], normalize(sums), jnp.nan)
    return pooled.astype(embeddings.dtype)
