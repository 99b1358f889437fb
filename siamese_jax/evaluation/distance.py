"""The distances that embeddings can be judged by."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from siamese_jax.distances import (
    cosine_distance,
    cosine_distance_matrix,
    euclidean_distance,
    euclidean_distance_matrix,
)

DistanceName = Literal["euclidean", "cosine"]


class Distance(NamedTuple):
    """A distance in its two forms, and a number that it does not exceed.

    Attributes:
      row_fn: Distances of matching rows.
      matrix_fn: Distances of all pairs of rows.
      bound_fn: From the rows of two sets, a number that no distance of a row of the one to
        a row of the other exceeds.
    """

    row_fn: Callable[[Array, Array], Float[Array, " n"]]
    matrix_fn: Callable[[Array, Array], Float[Array, "n m"]]
    bound_fn: Callable[[np.ndarray, np.ndarray], float]


def _euclidean_bound(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distances of both sets to the mean of the second, by the triangle."""
    mean = b.mean(axis=0, dtype=np.float64)
    radii = [np.linalg.norm(rows - mean[None, :], axis=1).max() for rows in (a, b)]
    return float(sum(radii))


DISTANCES = {
    "euclidean": Distance(euclidean_distance, euclidean_distance_matrix, _euclidean_bound),
    "cosine": Distance(cosine_distance, cosine_distance_matrix, lambda a, b: 2.0),
}
