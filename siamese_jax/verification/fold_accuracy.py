"""Accuracy over given folds of pairs, as for Labeled Faces in the Wild."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from siamese_jax._checks import check_at_least, check_integer, check_shape
from siamese_jax.verification._pairs import Flags, Numbers, check_representable, prepare
from siamese_jax.verification.thresholds import best_threshold, decision_rates


class FoldAccuracy(NamedTuple):
    """Accuracy of every fold at the threshold of the others.

    Attributes:
      mean: Mean over the folds.
      standard_error: Standard deviation over the folds (over F - 1), divided by sqrt(F).
      accuracies: Accuracy on each fold.
      thresholds: Threshold of best accuracy on the other folds.
    """

    mean: Float[Array, ""]
    standard_error: Float[Array, ""]
    accuracies: Float[Array, " folds"]
    thresholds: Float[Array, " folds"]


def fold_accuracy(
    distances: Numbers,
    same: Flags,
    folds: Int[Array, " n"] | Int[np.ndarray, " n"],
    *,
    num_folds: int = 10,
    where: Flags | None = None,
) -> FoldAccuracy:
    """Accuracy on each fold of pairs, at the best threshold of all other folds.

    Args:
      distances: Distance of each pair.
      same: True where the two examples of a pair are of one class.
      folds: Number of the fold of each pair, from 0.
      num_folds: Number F of folds.
      where: False where a pair is ignored.

    Returns:
      The accuracies. That of a fold without pairs is NaN, and so is the mean. All are NaN
      if a distance is, or a number of a fold is not from 0 to F - 1. No identity should be
      in two folds: see `check_disjoint_folds`.

    Raises:
      ValueError: If a shape is wrong or there are fewer than 2 folds.
      TypeError: If `folds` is not integer.

    Reference:
      Huang, Ramesh, Berg, Learned-Miller. Labeled Faces in the Wild. 2007, section III,
      View 2.

    >>> distances, same = jnp.array([1.0, 3.0, 1.0, 3.0]), jnp.array([True, False] * 2)
    >>> found = fold_accuracy(distances, same, jnp.array([0, 0, 1, 1]), num_folds=2)
    >>> print(found.mean, found.standard_error, found.thresholds)
    1.0 0.0 [2. 2.]
    """
    check_at_least("num_folds", num_folds, 2)
    check_representable("distances", distances)
    prepare(distances, same, where, None)
    check_integer("folds", folds)
    check_shape("folds", folds, distances.shape, "one for each distance")
    folds, same = jnp.asarray(folds), jnp.asarray(same)
    counted = jnp.ones(folds.shape, bool) if where is None else jnp.asarray(where)
    distances = jnp.asarray(distances)
    known = ~jnp.any(counted & ((folds < 0) | (folds >= num_folds)))
    known &= ~jnp.any(counted & jnp.isnan(distances))

    def one_fold(fold: Array) -> tuple[Array, Array]:
        threshold, _ = best_threshold(distances, same, where=counted & (folds != fold))
        held_out = counted & (folds == fold)
        return decision_rates(distances, same, threshold, where=held_out)[0], threshold

    found = jax.vmap(one_fold)(jnp.arange(num_folds))
    accuracies, thresholds = jax.tree.map(lambda x: jnp.where(known, x, jnp.nan), found)
    error = jnp.std(accuracies, ddof=1) / num_folds**0.5
    return FoldAccuracy(jnp.mean(accuracies), error, accuracies, thresholds)


def check_disjoint_folds(
    folds: Int[Array, " n"] | Int[np.ndarray, " n"],
    identities: Int[Array, "2 n"] | Int[np.ndarray, "2 n"],
) -> None:
    """Raises ValueError if an identity is in two folds, which makes accuracies too high.

    It looks at values, so it runs on the host, not under `jit`.

    Args:
      folds: Number of the fold of each pair.
      identities: Identity of the first and of the second example of each pair.

    Raises:
      ValueError: If a shape is wrong, or an identity is in several folds.
      TypeError: If an argument is not integer.

    >>> check_disjoint_folds(np.array([0, 1]), np.array([[7, 8], [7, 9]]))
    >>> check_disjoint_folds(np.array([0, 1]), np.array([[7, 8], [7, 7]]))
    Traceback (most recent call last):
    ValueError: identities must each be in one fold; 1 of 2 are in several, first identity 7
    """
    check_integer("folds", folds)
    check_integer("identities", identities)
    wanted = (2, len(folds))
    check_shape("identities", identities, wanted, "two for each pair")
    found = np.asarray(identities).reshape(-1)
    pairs = np.unique(np.stack([found, np.tile(np.asarray(folds), 2)]), axis=1)
    people, num_folds = np.unique(pairs[0], return_counts=True)
    several = people[num_folds > 1]
    if several.size:
        raise ValueError(
            f"identities must each be in one fold; {several.size} of {people.size} are in "
            f"several, first identity {several[0]}"
        )
