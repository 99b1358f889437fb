"""The distances that embeddings can be judged by."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from jaxtyping import Array, Float

from siamese_jax.distances import (
    cosine_distance,
    cosine_distance_matrix,
    euclidean_distance,
    euclidean_distance_matrix,
)

DistanceName = Literal["euclidean", "cosine"]


class Distance(NamedTuple):
    """A distance in its two forms.

    Attributes:
      row_fn: Distances of matching rows.
      matrix_fn: Distances of all pairs of rows.
    """

    row_fn: Callable[[Array, Array], Float[Array, " n"]]
    matrix_fn: Callable[[Array, Array], Float[Array, "n m"]]


DISTANCES = {
    "euclidean": Distance(euclidean_distance, euclidean_distance_matrix),
    "cosine": Distance(cosine_distance, cosine_distance_matrix),
}
