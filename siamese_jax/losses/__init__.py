"""Losses over pairs, matrices, triplets, proxies of classes, and two views.

Most losses are `x_loss(distances, same, *, where, weights, reduce_fn)`, with `similarities`
instead of `distances` where larger means closer. The arrays have shape `[n]` for n given
pairs or `[n, m]` for all pairs of two sets, whose rows are anchors. For a matrix, `same`
and `where` come from `siamese_jax.relations`.

>>> import jax.numpy as jnp
>>> from siamese_jax import distances, relations
>>> embeddings = jnp.array([[0.0], [1.0], [0.5]])
>>> same, where = relations.within(relations.Items(jnp.array([0, 0, 1])))
>>> matrix = distances.euclidean_distance_matrix(embeddings, embeddings)
>>> print(contrastive_loss(matrix, same, where=where))  # (1/2 + 1/8 + 1/8) / 3
0.25

`on_labels(loss_fn, matrix_fn)` puts these steps together, to a function of embeddings and
labels.

By module:

* `pairs`: each pair by itself, arrays of any shape. Contrastive, logistic, cosine
  embedding, margin, threshold-consistent margin.
* `triplets`: given triplets and quadruplets; the hard, the semi-hard or all triplets of a
  matrix.
* `softmax`: supervised contrastive, InfoNCE, decoupled, hard negatives, matching, sigmoid.
* `tuples`, `angular`: an anchor with all its positives and negatives. Multi-similarity,
  circle, tuplet margin, angular, lifted structure, intra-pair variance, ranked list,
  histogram.
* `ranking`: NCA, FastAP, Smooth-AP, PNP, recall.
* `proxies`, `margins`: `x_loss(embeddings, labels, proxies, ...)`. Proxy-NCA, Proxy-Anchor,
  prototypical, P2SGrad, instance; ArcFace, CosFace, SphereFace, SoftTriple and others.
* `views`: `x_loss(a, b, ...)`. NT-Xent, negative cosine, Barlow Twins, VICReg.

The arguments that all losses share:

* `same`: True where the two are of one class. (In Hadsell's paper Y = 1 means different,
  in Koch's y = 1 means same.)
* `where`: True where the entry is valid. A masked entry has no value and no gradient, as if
  it were deleted. It must still be finite, since a NaN behind a mask reaches the gradient:
  set the embeddings of padding to zero. None means that all entries are valid.
* `weights`: the weight of each value that the loss computes, one per entry, or one per
  anchor (row) where the loss computes one value per anchor. None means weight 1.
* `reduce_fn`: a function from `siamese_jax.reductions`, by default `mean`. None returns the
  `Terms`.
* `margin` is in units of the distance. `temperature` divides the similarities. Both may be
  learned scalars.

Inputs of another shape raise ValueError, those of another type of number TypeError. Inputs
of half precision are computed in float32, and losses are float32. A batch without a valid
term, such as a triplet loss without a negative, gives loss 0 and gradient 0, and
`mean_and_count` returns the count 0 with it (differentiate it with
`jax.value_and_grad(..., has_aux=True)`). A NaN input gives a NaN loss.

A loss of your own needs `miners.sides`, which splits the valid entries into positives and
negatives, the masked `jax.nn.logsumexp`, and `reductions.make_terms` with the mask of the
anchors that count:

>>> from jax.nn import logsumexp, softplus
>>> from siamese_jax import miners, reductions
>>> def smooth_hinge_loss(distances, same, *, where=None, reduce_fn=reductions.mean):
...     positive, negative = miners.sides(distances, same, where)
...     farthest = logsumexp(distances, axis=1, where=positive)
...     nearest = -logsumexp(-distances, axis=1, where=negative)
...     complete = jnp.any(positive, axis=1) & jnp.any(negative, axis=1)
...     values = softplus(jnp.where(complete, farthest - nearest, 0))
...     return reduce_fn(reductions.make_terms(values, complete))
>>> print(f"{smooth_hinge_loss(matrix, same, where=where):.4f}")  # two of three anchors
0.9741
"""

from siamese_jax.losses.angular import angular_loss
from siamese_jax.losses.labels import (
    on_labels,
)
from siamese_jax.losses.margins import (
    arc_face_loss,
    cos_face_loss,
    dynamic_margins,
    large_margin_softmax_loss,
    normalized_softmax_loss,
    soft_triple_loss,
    sphere_face_loss,
)
from siamese_jax.losses.pairs import (
    contrastive_loss,
    cosine_embedding_loss,
    logistic_loss,
    margin_loss,
    threshold_consistent_margin_loss,
)
from siamese_jax.losses.proxies import (
    class_loss,
    instance_loss,
    p2s_grad_loss,
    prototypical_loss,
    proxy_anchor_loss,
    proxy_nca_loss,
)
from siamese_jax.losses.ranking import (
    fast_ap_loss,
    nca_loss,
    pnp_loss,
    recall_loss,
    smooth_ap_loss,
)
from siamese_jax.losses.softmax import (
    both_directions,
    corrected_logits,
    decoupled_contrastive_loss,
    hard_negative_contrastive_loss,
    info_nce_loss,
    matching_loss,
    sigmoid_pair_loss,
    supervised_contrastive_loss,
)
from siamese_jax.losses.triplets import (
    DynamicSoftMargin,
    all_triplets_loss,
    dynamic_soft_margin_loss,
    hard_triplet_loss,
    quadruplet_loss,
    semi_hard_triplet_loss,
    triplet_loss,
)
from siamese_jax.losses.tuples import (
    circle_loss,
    generalized_lifted_structure_loss,
    histogram_loss,
    intra_pair_variance_loss,
    lifted_structure_loss,
    multi_similarity_loss,
    ranked_list_loss,
    tuplet_margin_loss,
)
from siamese_jax.losses.views import (
    barlow_twins_loss,
    negative_cosine_loss,
    nt_xent_loss,
    vicreg_loss,
)

__all__ = [
    "DynamicSoftMargin",
    "all_triplets_loss",
    "angular_loss",
    "arc_face_loss",
    "barlow_twins_loss",
    "both_directions",
    "circle_loss",
    "class_loss",
    "contrastive_loss",
    "corrected_logits",
    "cos_face_loss",
    "cosine_embedding_loss",
    "decoupled_contrastive_loss",
    "dynamic_margins",
    "dynamic_soft_margin_loss",
    "fast_ap_loss",
    "generalized_lifted_structure_loss",
    "hard_negative_contrastive_loss",
    "hard_triplet_loss",
    "histogram_loss",
    "info_nce_loss",
    "instance_loss",
    "intra_pair_variance_loss",
    "large_margin_softmax_loss",
    "lifted_structure_loss",
    "logistic_loss",
    "margin_loss",
    "matching_loss",
    "multi_similarity_loss",
    "nca_loss",
    "negative_cosine_loss",
    "normalized_softmax_loss",
    "nt_xent_loss",
    "on_labels",
    "p2s_grad_loss",
    "pnp_loss",
    "prototypical_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "quadruplet_loss",
    "ranked_list_loss",
    "recall_loss",
    "semi_hard_triplet_loss",
    "sigmoid_pair_loss",
    "smooth_ap_loss",
    "soft_triple_loss",
    "sphere_face_loss",
    "supervised_contrastive_loss",
    "threshold_consistent_margin_loss",
    "triplet_loss",
    "tuplet_margin_loss",
    "vicreg_loss",
]
