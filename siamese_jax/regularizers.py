"""Penalties on embeddings or on the proxies of classes, to be added to a loss.

Each is a function of one array, and has the argument `reduce_fn` of the losses.

>>> import jax.numpy as jnp
>>> print(norm_penalty(jnp.array([[3.0, 4.0], [0.0, 0.0]])))  # (5 + 0) / 2
2.5
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from siamese_jax._checks import check_at_least, check_floating, check_rank
from siamese_jax._numerics import safe_abs, widen
from siamese_jax.distances import (
    cosine_similarity_matrix,
    euclidean_distance_matrix,
    lp_distance,
    normalize,
)
from siamese_jax.reductions import ReduceFn, make_terms, mean, reduce_terms


def norm_penalty(
    embeddings: Float[Array, "n dim"],
    *,
    order: float = 2.0,
    power: float = 1.0,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Lp norm of each row, raised to a power: (sum_k |x_k|^order)^(power / order).

    Raises:
      ValueError: If `order` or `power` is below 1.

    >>> print(norm_penalty(jnp.array([[3.0, 4.0]]), power=2.0))
    25.0
    """
    check_rank("embeddings", embeddings, 2)
    check_at_least("power", power, 1)
    values = lp_distance(embeddings, jnp.zeros_like(embeddings), order=order) ** power
    return reduce_terms(make_terms(values, None), reduce_fn)


def zero_mean_penalty(
    embeddings: Float[Array, "n dim"], *, reduce_fn: ReduceFn | None = mean
) -> Any:
    """Absolute value of the sum of each row.

    >>> print(zero_mean_penalty(jnp.array([[3.0, -4.0]])))
    1.0
    """
    values = safe_abs(jnp.sum(_matrix("embeddings", embeddings), axis=1))
    return reduce_terms(make_terms(values, None), reduce_fn)


def equal_norm_penalty(
    proxies: Float[Array, "classes dim"], *, reduce_fn: ReduceFn | None = mean
) -> Any:
    """Keeps the proxies of all classes equally long: (|w|^2 - mean |w|^2)^2 / 4.

    Reference:
      Wu et al. Deep Face Recognition with Center Invariant Loss. ACM MM Workshops 2017,
      eq. 4.

    >>> print(equal_norm_penalty(jnp.array([[2.0], [0.0]])))  # (2^2 / 4 + 2^2 / 4) / 2
    1.0
    """
    squared = jnp.sum(_matrix("proxies", proxies) ** 2, axis=1)
    values = (squared - jnp.mean(squared)) ** 2 / 4
    return reduce_terms(make_terms(values, None), reduce_fn)


def nearest_class_penalty(
    proxies: Float[Array, "classes dim"], *, reduce_fn: ReduceFn | None = mean
) -> Any:
    """Keeps classes apart: the cosine of each proxy to the most similar other one.

    Raises:
      ValueError: If there are fewer than two classes.

    Reference:
      Zhao et al. RegularFace: Deep Face Recognition via Exclusive Regularization. CVPR
      2019, eq. 4.

    >>> print(nearest_class_penalty(jnp.array([[1.0, 0.0], [0.0, 1.0]])))
    0.0
    """
    proxies = _matrix("proxies", proxies)
    check_at_least("the number of proxies", len(proxies), 2)
    cosines = cosine_similarity_matrix(proxies, proxies)
    others = ~jnp.eye(len(proxies), dtype=bool)
    values = jnp.max(jnp.where(others, cosines, -jnp.inf), axis=1)
    return reduce_terms(make_terms(values, None), reduce_fn)


def sparse_centers_penalty(centers: Float[Array, "classes centers dim"]) -> Any:
    """Merges centres that a class does not need: mean distance of its unit centres.

    With K centres for each of C classes, of length 1:
    sum over classes and pairs s < t of |w_s - w_t| / (C K (K - 1)).

    Raises:
      ValueError: If there are fewer than two centres a class.

    Reference:
      Qian et al. SoftTriple Loss. ICCV 2019, eq. 10, where the weight tau is the caller's.

    >>> print(sparse_centers_penalty(jnp.array([[[1.0, 0.0], [-1.0, 0.0]]])))  # 2 / 2
    1.0
    """
    check_floating("centers", centers)
    check_rank("centers", centers, 3)
    num_classes, num_centers = centers.shape[:2]
    check_at_least("the number of centres", num_centers, 2)
    pairs = jnp.triu(jnp.ones((num_centers, num_centers), bool), 1)

    def of_class(unit: Array) -> Array:
        return jnp.sum(jnp.where(pairs, euclidean_distance_matrix(unit, unit), 0))

    total = jnp.sum(jax.vmap(of_class)(normalize(widen(centers))))
    return total / (num_classes * num_centers * (num_centers - 1))


def _matrix(name: str, x: Array) -> Array:
    check_floating(name, x)
    check_rank(name, x, 2)
    return widen(x)
