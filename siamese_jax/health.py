"""Health of embeddings while a network learns: are they spread, or do they collapse?

The figures are computed from the embeddings of a batch, in the compiled training step, and
returned among its metrics:

>>> import jax
>>> import jax.numpy as jnp
>>> from siamese_jax import relations
>>> embeddings = jnp.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
>>> same, where = relations.within(relations.Items(jnp.array([0, 0, 1, 1])))
>>> health = jax.jit(embedding_health)(embeddings, same, where)
>>> print(health.spread, health.alignment)  # the mean is 0, and equal classes coincide
1.0 0.0
>>> print(f"{health.effective_rank:.2f}")  # all lie on one line
1.00

A network that gives the same embedding for everything has a spread near 0, and one that
uses few directions an effective rank near 1. `warning` says so in a sentence for the log:

>>> print(warning(embedding_health(jnp.ones((4, 2)), same, where)))
the embeddings have collapsed to a point: their spread is 0.0000
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import check_boolean, check_floating, check_rank, check_shape
from siamese_jax._numerics import widen
from siamese_jax.distances import normalize, squared_euclidean_distance_matrix
from siamese_jax.reductions import Terms


class Health(NamedTuple):
    """Figures of a batch of embeddings x, of which u are those of length 1.

    Attributes:
      spread: sqrt(mean |x - mean(x)|^2 / mean |x|^2), from 0 if all are equal to 1 if
        their mean is 0.
      effective_rank: exp(-sum_k p_k log p_k), with p_k the singular values of the centred
        embeddings, divided by their sum. From 1 for a line to the number of features. 0 if
        all embeddings are equal.
      alignment: Mean |u_i - u_j|^2 over pairs of one class, from 0 to 4. NaN without pairs.
      uniformity: log(mean exp(-2 |u_i - u_j|^2)) over all pairs, from -8 to 0, where all
        coincide. NaN without pairs.
    """

    spread: Float[Array, ""]
    effective_rank: Float[Array, ""]
    alignment: Float[Array, ""]
    uniformity: Float[Array, ""]


def embedding_health(
    embeddings: Float[Array, "n dim"], same: Bool[Array, "n n"], where: Bool[Array, "n n"]
) -> Health:
    """Spread, effective rank, alignment and uniformity of a batch of embeddings.

    Args:
      embeddings: Embeddings, as the loss is given them.
      same: True where two are of one class.
      where: True for the pairs that are compared, as `relations.within` gives them. An
        embedding that is in no pair, such as padding, counts in none of the figures. If
        none is in a pair, all figures are NaN.

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If embeddings are not floating-point, or `same` or `where` not boolean.

    Reference:
      Roy, Vetterli. The effective rank. EUSIPCO 2007. Wang, Isola. Understanding
      Contrastive Representation Learning through Alignment and Uniformity on the
      Hypersphere. ICML 2020, section 4.1, with alpha = 2 and t = 2.

    >>> pairs = jnp.ones((2, 2), bool)
    >>> health = embedding_health(jnp.array([[-2.0], [2.0]]), pairs, pairs)
    >>> print(health.spread, health.alignment)  # |u_i - u_j|^2 is 0, 4, 4 and 0
    1.0 2.0
    """
    check_floating("embeddings", embeddings)
    check_rank("embeddings", embeddings, 2)
    for name, flags in (("same", same), ("where", where)):
        check_boolean(name, flags)
        check_shape(name, flags, (len(embeddings),) * 2, "one for each pair of embeddings")
    x = widen(embeddings)
    counted = jnp.any(where, axis=1) | jnp.any(where, axis=0)
    centred = _centred(x, counted)
    size = jnp.sum(jnp.where(counted[:, None], x**2, 0))
    variance = jnp.sum(centred**2)
    unit = normalize(x)
    squared = squared_euclidean_distance_matrix(unit, unit)
    positive = same & where
    spread = jnp.sqrt(variance / jnp.where(size == 0, 1, size))
    counts = jnp.any(counted)
    return Health(
        spread=jnp.where(counts, spread, jnp.nan),
        effective_rank=jnp.where(counts, _effective_rank(centred), jnp.nan),
        alignment=jnp.sum(jnp.where(positive, squared, 0)) / jnp.sum(positive),
        uniformity=jnp.log(
            jnp.sum(jnp.where(where, jnp.exp(-2 * squared), 0)) / jnp.sum(where)
        ),
    )


def active_share(terms: Terms | tuple[Terms, ...]) -> Float[Array, ""]:
    """Share of the valid terms of a loss that are not 0, such as triplets that still teach.

    Without a valid term it is NaN. The terms are what a loss returns with `reduce_fn=None`.
    Some losses return several of them, which are counted together.

    Raises:
      TypeError: If `terms` are not `Terms`.

    >>> from siamese_jax.reductions import make_terms
    >>> print(active_share(make_terms(jnp.array([0.0, 2.0]), None)))
    0.5
    """
    parts = (terms,) if isinstance(terms, Terms) else terms
    if not (isinstance(parts, tuple) and all(isinstance(part, Terms) for part in parts)):
        raise TypeError(
            f"terms must be the Terms that a loss returns with reduce_fn=None; got "
            f"{type(terms).__name__}"
        )
    values = jnp.concatenate([part.values.ravel() for part in parts])
    where = jnp.concatenate([part.where.ravel() for part in parts])
    share = jnp.sum(where & (values != 0)) / jnp.sum(where)
    return jnp.where(jnp.any(where & jnp.isnan(values)), jnp.nan, share)


def warning(
    health: Health, *, min_spread: float = 0.01, min_rank: float = 1.5
) -> str | None:
    """What is wrong with embeddings, in words for a log, or None.

    Args:
      health: Figures of a batch.
      min_spread: The embeddings have collapsed to a point below this spread.
      min_rank: They have collapsed to a line below this effective rank. Embeddings of two
        classes that are told apart perfectly are on a line too, so that batches of two
        classes need `min_rank=0`.

    >>> warning(Health(*map(jnp.array, (0.9, 30.0, 0.2, -3.0)))) is None
    True
    """
    spread, rank = (float(np.asarray(x)) for x in (health.spread, health.effective_rank))
    if not (np.isfinite(spread) and np.isfinite(rank)):
        return "no embedding counts, or one is not finite"
    if spread < min_spread:
        return f"the embeddings have collapsed to a point: their spread is {spread:.4f}"
    if rank < min_rank:
        return (
            f"the embeddings have collapsed to a line: their effective rank is {rank:.2f}"
        )
    return None


def _centred(x: Float[Array, "n dim"], counted: Bool[Array, " n"]) -> Float[Array, "n dim"]:
    """The embeddings that count without their mean, and 0 for the others.

    One of them is subtracted first, so that equal embeddings give 0 without rounding.
    """
    moved = jnp.where(counted[:, None], x - x[jnp.argmax(counted)][None, :], 0)
    mean = jnp.sum(moved, axis=0, keepdims=True) / jnp.maximum(jnp.sum(counted), 1)
    return jnp.where(counted[:, None], moved - mean, 0)


def _effective_rank(centred: Float[Array, "n dim"]) -> Float[Array, ""]:
    values = jnp.linalg.svd(centred, compute_uv=False)
    total = jnp.sum(values)
    shares = values / jnp.where(total == 0, 1, total)
    positive = shares > 0
    entropy = -jnp.sum(
        jnp.where(positive, shares * jnp.log(jnp.where(positive, shares, 1)), 0)
    )
    rank = jnp.where(total == 0, 0, jnp.exp(entropy))
    return jnp.where(jnp.isnan(total), jnp.nan, rank)
