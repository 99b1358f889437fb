"""Losses: numbers, who is the same, and what counts.

Every loss over pairs reads `x_loss(distances, same, *, where, weights, reduce_fn)`, or
`similarities` where larger is closer. The shape is free: `[n]` for given pairs, `[n, m]`
for all pairs of two sets, with `same` and `where` from `siamese_jax.relations`.

>>> import jax.numpy as jnp
>>> from siamese_jax import distances, relations
>>> embeddings = jnp.array([[0.0, 0.0], [0.6, 0.8], [0.0, 0.5]])
>>> same, where = relations.within(relations.Items(jnp.array([0, 0, 1])))
>>> matrix = distances.euclidean_distance_matrix(embeddings, embeddings)
>>> loss = contrastive_loss(matrix, same, where=where)

* `contrastive_loss(distances, same)`, `logistic_loss(similarities, same)`: by entry.
* `triplet_loss(positive_distances, negative_distances)`: given triplets.
* `hard_triplet_loss`, `semi_hard_triplet_loss`, `all_triplets_loss(distances, same)`: over
  a matrix.
* `supervised_contrastive_loss(similarities, same)`: over a matrix, larger is closer.

The arguments that all losses share:

* `same`: True = of one class. (Hadsell's Y = 1 means different, Koch's y = 1 means same;
  here the name is the polarity.)
* `where`: what counts. A masked entry has no value and no gradient, as if it were deleted;
  it must still be finite, since NaN behind a mask reaches the gradient all the same: zero
  the padding's embeddings. None counts everything.
* `weights`: one for each value the loss returns, 1 by default: for each entry, or for each
  anchor (row) where the loss has one value an anchor.
* `reduce_fn`: from `siamese_jax.reductions`; `mean` by default. `None` returns the `Terms`.
* `margin` is in units of the distance; `temperature` divides similarities. Both may be
  learnt scalars.

A batch with nothing to learn from (no positive, no negative, all masked) gives loss 0 and
gradient 0, and `mean_and_count` says that the count is 0 (differentiate it as
`jax.value_and_grad(..., has_aux=True)`). NaN in gives NaN out.
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
