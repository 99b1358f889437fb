"""Distances and similarities of vectors: of matching rows, or of all pairs of rows.

`x_distance(a, b)` and `x_similarity(a, b)` compare two arrays `[..., dim]` row by row. The
same name with `_matrix` compares each row of `a [n, dim]` with each row of `b [m, dim]`.
A smaller distance and a larger similarity mean closer.

Euclidean, squared Euclidean, Manhattan and Lp distances, cosine distance, cosine and dot
similarities; angular, Poincare, Mahalanobis (learnt) and signal-to-noise distances.
`distance_matrix` makes the matrix of any other row-by-row function.

>>> import jax.numpy as jnp
>>> a, b = jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([[3.0, 4.0], [1.0, 1.0]])
>>> print(euclidean_distance(a, b))
[5. 0.]
>>> print(euclidean_distance_matrix(a, b).shape)
(2, 2)

What holds for all of them:

* The inputs must be floating-point, else TypeError is raised. The row-by-row functions
  need two equal shapes, the matrix functions `[n, dim]` and `[m, dim]`, else ValueError is
  raised: shapes are never broadcast.
* Gradients are finite everywhere. Where two vectors coincide, a Euclidean distance has no
  derivative and the gradient used is 0 (a subgradient). The same holds for the cosine and
  the direction of a zero vector.
* Half precision is computed in float32, and distances and similarities are float32:
  rounded to half precision, they would overflow, and miners would choose other negatives.
  Gradients come back in the type of the inputs, those beyond the range of float16 as its
  largest number.
* A difference below about 1e-19 (float32) counts as zero, since its square underflows. For
  a direction, entries that are not normal numbers (below about 1e-38) count as zero.

The Euclidean and cosine matrices use a matrix product at the highest precision. Its
expansion |a|^2 + |b|^2 - 2ab cancels for near points, so the entries where it loses more
than about ten bits are computed again from the differences. As long as no squared length
overflows, values are therefore as exact as those of the row-by-row form, and equal vectors
have distance 0. The memory needed is that of the result. Gradients are matrix products too:
that of a pair at distance d has a relative error of about 1e-7 |a - mean| / d.
"""

from siamese_jax.distances.special import (
    angular_distance,
    angular_distance_matrix,
    mahalanobis_distance,
    mahalanobis_distance_matrix,
    poincare_distance,
    poincare_distance_matrix,
    signal_to_noise_distance,
    signal_to_noise_distance_matrix,
)
from siamese_jax.distances.standard import (
    cosine_distance,
    cosine_distance_matrix,
    cosine_similarity,
    cosine_similarity_matrix,
    distance_matrix,
    dot_similarity,
    dot_similarity_matrix,
    euclidean_distance,
    euclidean_distance_matrix,
    lp_distance,
    lp_distance_matrix,
    manhattan_distance,
    manhattan_distance_matrix,
    normalize,
    squared_euclidean_distance,
    squared_euclidean_distance_matrix,
)

__all__ = [
    "angular_distance",
    "angular_distance_matrix",
    "cosine_distance",
    "cosine_distance_matrix",
    "cosine_similarity",
    "cosine_similarity_matrix",
    "distance_matrix",
    "dot_similarity",
    "dot_similarity_matrix",
    "euclidean_distance",
    "euclidean_distance_matrix",
    "lp_distance",
    "lp_distance_matrix",
    "mahalanobis_distance",
    "mahalanobis_distance_matrix",
    "manhattan_distance",
    "manhattan_distance_matrix",
    "normalize",
    "poincare_distance",
    "poincare_distance_matrix",
    "signal_to_noise_distance",
    "signal_to_noise_distance_matrix",
    "squared_euclidean_distance",
    "squared_euclidean_distance_matrix",
]
