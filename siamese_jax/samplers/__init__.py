"""Sample pairs, triplets, P x K batches, episodes and epochs from a key.

A class index is built once from the labels, on the host. Every sampler is a pure function
of a key and this index and runs on the device, inside a `lax.scan` if you like. It returns
example numbers, which select the examples: `images[numbers]`.

>>> import jax
>>> import numpy as np
>>> labels = np.array([5, 5, 5, 6, 6, 7, 7])
>>> index = class_index(labels)
>>> pairs = sample_pairs(jax.random.key(0), index, num_pairs=4)
>>> print(pairs.examples.shape, pairs.same.tolist())
(2, 4) [True, False, True, False]
>>> left, right = labels[pairs.examples]
>>> print((left == right).tolist())
[True, False, True, False]

* `sample_pairs`, `sample_partners`, `sample_triplets`: pairs and triplets.
* `sample_batch`: P classes with K examples each, in turns, so that shares of consecutive
  examples, one for each device, have all classes. `sample_hard_batch`: classes that are
  often taken for one another. `sample_episode`: an N-way K-shot task.
* `epoch_batch`, `class_epoch_batch`: the batch of a step when every epoch visits each
  example, or each class, once in random order. `permute`: the permutation behind them.

Classes are drawn with equal probability, whatever their sizes, and so are the examples of a
class. The examples drawn of one class are distinct: a pair of the same class never holds
one image twice. With `repeat`, batches take classes too small for it too, and repeat their
examples.

Groups of classes (the letters of one alphabet, the species of one family) make harder
batches. `same_group` draws the negative of a pair or triplet from the anchor's group;
`max_groups` draws the classes of a batch or an episode from as few groups as possible,
`num_groups` draws equal shares of a batch from so many groups.

If a class or group is too small for a request, the sampler raises ValueError when it is
traced, before any work, and names the class or group.
"""

from siamese_jax.samplers.batches import (
    Batch,
    ClassEpochBatch,
    Episode,
    class_epoch_batch,
    sample_batch,
    sample_episode,
    sample_hard_batch,
)
from siamese_jax.samplers.epochs import EpochBatch, epoch_batch, permute
from siamese_jax.samplers.index import ClassIndex, class_index
from siamese_jax.samplers.pairs import (
    Pairs,
    sample_pairs,
    sample_partners,
    sample_triplets,
)

__all__ = [
    "Batch",
    "ClassEpochBatch",
    "ClassIndex",
    "Episode",
    "EpochBatch",
    "Pairs",
    "class_epoch_batch",
    "class_index",
    "epoch_batch",
    "permute",
    "sample_batch",
    "sample_episode",
    "sample_hard_batch",
    "sample_pairs",
    "sample_partners",
    "sample_triplets",
]
