"""Select which entries of a matrix count, and which examples make triplets.

In a matrix of distances the rows are anchors. Nothing here has a shape that depends on the
labels, so that one compilation serves every batch, and no array of n^3 triplets is made.

A pair miner returns a mask `[n, m]` to pass to a loss as `where`:

* `pair_margin_mask`: positives and negatives on the wrong side of a margin.
* `multi_similarity_mask`: those that are not well ordered within their row.
* `nearest_mask`, `hardest_share_mask`: a number of each row, a share of the whole batch.
* `false_negative_mask`: leaves out negatives that are too near to be believed.
* `uniform_histogram_weights` draws pairs evenly over all distances, and returns weights.

A triplet miner chooses partners. It returns `Mined(distances, indices, where)`: the
distance of each, its column, and whether there is one:

* `hard_negatives`, `semi_hard_negatives`, `angular_negatives` and, at random,
  `distance_weighted_negatives`: one negative for each entry `[anchor, positive]`.
* `mine_triplets`: one positive and one negative for each anchor, easy, semi-hard or hard.

>>> import jax.numpy as jnp
>>> distances = jnp.array([[1.0, 0.5, 2.0, 3.0]])
>>> same = jnp.array([[True, False, False, False]])
>>> print(hard_negatives(distances, same).distances[0, 0])
0.5
>>> print(semi_hard_negatives(distances, same).distances[0, 0])
2.0

`sides` splits the valid entries into positives and negatives. With it and a masked
`jax.nn.logsumexp` most losses are a few lines; see `siamese_jax.losses`.

`same` and `where` come from `siamese_jax.relations`: `same` is True where the two are of
one class, `where` is True where the entry is valid, and None means that all entries are.
Another shape than that of the matrix raises ValueError, another type of number TypeError.
Distances are float32 if those of the matrix are of half precision. A NaN among the valid
distances of a row is never skipped: if it could have been chosen, it is chosen, and masks
keep NaN entries, so that the loss is NaN too.
"""

from siamese_jax.miners.pairs import (
    Sides,
    false_negative_mask,
    hardest_share_mask,
    multi_similarity_mask,
    nearest_mask,
    pair_margin_mask,
    sides,
    uniform_histogram_weights,
)
from siamese_jax.miners.triplets import (
    Mined,
    Triplets,
    angular_negatives,
    distance_weighted_negatives,
    hard_negatives,
    mine_triplets,
    semi_hard_negatives,
)

__all__ = [
    "Mined",
    "Sides",
    "Triplets",
    "angular_negatives",
    "distance_weighted_negatives",
    "false_negative_mask",
    "hard_negatives",
    "hardest_share_mask",
    "mine_triplets",
    "multi_similarity_mask",
    "nearest_mask",
    "pair_margin_mask",
    "semi_hard_negatives",
    "sides",
    "uniform_histogram_weights",
]
