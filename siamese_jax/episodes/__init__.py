"""N-way K-shot accuracy: classify queries by a few examples of each of N classes.

Embed every test image once, then evaluate thousands of random tasks in one call:

>>> import jax
>>> import jax.numpy as jnp
>>> from siamese_jax import samplers
>>> labels = [0, 0, 1, 1, 2, 2]
>>> embeddings = jnp.array([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])
>>> index = samplers.class_index(labels)
>>> result = episode_accuracy(
...     jax.random.key(0), embeddings, index, num_episodes=100, num_ways=2)
>>> print(result.mean, result.low, result.high)
1.0 1.0 1.0

By default the class of the nearest prototype is the answer. Any function
`logits_fn(support, queries)` that gives logits, larger for more probable classes, can take
its place, such as ridge regression on the support:

>>> result = episode_accuracy(
...     jax.random.key(0), embeddings, index, num_episodes=100, num_ways=2,
...     logits_fn=ridge_logits)
>>> print(result.mean)
1.0

* `neighbour_logits`, `prototype_logits`, `simple_shot_logits`, `matching_logits`,
  `ridge_logits`, `logistic_logits` classify each query by itself.
* `laplacian_shot_logits` and `transport_logits` are transductive: they classify all queries
  of a task together, and learn from them. Report their accuracies apart from the others,
  with the number of queries, on which they depend.

What the functions that give logits share:

* `support`: embeddings of K examples of each of N classes, floating-point `[N, K, dim]`.
* `queries`: embeddings to classify, floating-point `[n, dim]`.
* `where`: boolean `[N, K]`. An example where it is False is ignored, so that classes may
  have unequal shots. None uses every example. If a class has no example, all logits are
  NaN.

Another shape raises ValueError, another type of number TypeError. Half precision is
computed in float32, and logits are float32.
"""

from siamese_jax.episodes.accuracy import EpisodeAccuracy, episode_accuracy
from siamese_jax.episodes.inductive import (
    classify,
    logistic_logits,
    matching_logits,
    neighbour_logits,
    prototype_logits,
    prototypes,
    ridge_logits,
    simple_shot_logits,
)
from siamese_jax.episodes.transductive import laplacian_shot_logits, transport_logits

__all__ = [
    "EpisodeAccuracy",
    "classify",
    "episode_accuracy",
    "laplacian_shot_logits",
    "logistic_logits",
    "matching_logits",
    "neighbour_logits",
    "prototype_logits",
    "prototypes",
    "ridge_logits",
    "simple_shot_logits",
    "transport_logits",
]
