"""Losses over pairs, over distance matrices and over triplets.

A loss over pairs is `x_loss(distances, same, *, where, weights, reduce_fn)`, with
`similarities` instead of `distances` where larger means closer. The arrays have shape `[n]`
for n given pairs or `[n, m]` for all pairs of two sets. For a matrix, `same` and `where`
come from `siamese_jax.relations`.

>>> import jax.numpy as jnp
>>> from siamese_jax import distances, relations
>>> embeddings = jnp.array([[0.0], [1.0], [0.5]])
>>> same, where = relations.within(relations.Items(jnp.array([0, 0, 1])))
>>> matrix = distances.euclidean_distance_matrix(embeddings, embeddings)
>>> print(contrastive_loss(matrix, same, where=where))  # (1/2 + 1/8 + 1/8) / 3
0.25

* `contrastive_loss(distances, same)`, `logistic_loss(similarities, same)`: each pair by
  itself, arrays of any shape.
* `triplet_loss(positive_distances, negative_distances)`: given triplets.
* `hard_triplet_loss`, `semi_hard_triplet_loss`, `all_triplets_loss(distances, same)`: all
  triplets, or a selection, of a matrix whose rows are anchors.
* `supervised_contrastive_loss(similarities, same)`: a matrix whose rows are anchors.

The arguments that all losses share:

* `same`: True where the two are of one class. (In Hadsell's paper Y = 1 means different,
  in Koch's y = 1 means same.)
* `where`: True where the entry is valid. A masked entry has no value and no gradient, as if
  it were deleted. It must still be finite, since a NaN behind a mask reaches the gradient:
  set the embeddings of padding to zero. None means that all entries are valid.
* `weights`: the weight of each value that the loss computes, one per entry, or one per
  anchor (row) where the loss computes one value per anchor. None means weight 1.
* `reduce_fn`: a function from `siamese_jax.reductions`, by default `mean`. `mean_of_active`
  averages over the triplets or pairs whose loss is not 0. None returns the `Terms`.
* `margin` is in units of the distance. `temperature` divides the similarities. Both may be
  learned scalars.

Inputs of another shape raise ValueError, those of another type of number TypeError. A batch
without a valid term (no positive, no negative, or everything masked) gives loss 0 and
gradient 0, and `mean_and_count` returns the count 0 with it (differentiate it with
`jax.value_and_grad(..., has_aux=True)`). A NaN input gives a NaN loss. The loss of
half-precision numbers is computed in float32 and is float32.
"""

from siamese_jax.losses.pairs import contrastive_loss, logistic_loss
from siamese_jax.losses.softmax import supervised_contrastive_loss
from siamese_jax.losses.triplets import (
    all_triplets_loss,
    hard_triplet_loss,
    semi_hard_triplet_loss,
    triplet_loss,
)

__all__ = [
    "all_triplets_loss",
    "contrastive_loss",
    "hard_triplet_loss",
    "logistic_loss",
    "semi_hard_triplet_loss",
    "supervised_contrastive_loss",
    "triplet_loss",
]
