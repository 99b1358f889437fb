"""Calibration: turning a distance into a decision, a probability and a false match rate.

The functions work on NumPy arrays on the host, in the precision of the distances.
"""

import dataclasses
import math

import numpy as np
from jax.typing import ArrayLike

from siamese_jax._checks import (
    check_at_least,
    check_boolean,
    check_floating,
    check_rank,
    check_same_shape,
)
from siamese_jax._numerics import just_below
from siamese_jax.errors import UserError

_LARGEST_STEP = 1.05  # from one stored rank to the next


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a distance means, measured on pairs that the model was not trained on.

    Attributes:
      pairs: Description of the pairs, in words.
      num_pairs: Number of the pairs.
      num_classes: Number of the classes that they come from, or None if nobody said it.
      threshold: Distance up to which two examples are called the same, chosen for the
        highest accuracy on the pairs.
      accuracy: Accuracy at that threshold on the pairs.
      scale: P(same) = sigmoid(scale * (threshold - distance)).
      num_different: Number of the different pairs that false match rates come from.
      ranks: Some ranks from 1 to `num_different`, ascending, about 5 % apart, without gaps
        up to 20.
      thresholds: For each rank k a threshold just below the k-th smallest distance of these
        different pairs.
    """

    pairs: str
    num_pairs: int
    num_classes: int | None
    threshold: float
    accuracy: float
    scale: float
    num_different: int
    ranks: list[int]
    thresholds: list[float]

    def __post_init__(self) -> None:
        """Refuses numbers without a value, which would give decisions without a meaning."""
        for name in ("threshold", "accuracy", "scale", "thresholds"):
            value = getattr(self, name)
            if not np.isfinite(np.asarray(value, float)).all():
                raise ValueError(f"{name} must be finite; got {value}")
        if self.scale < 0:
            raise ValueError(f"scale must be at least 0; got {self.scale}")
        if len(self.ranks) != len(self.thresholds):
            raise ValueError(
                f"ranks and thresholds must be equally many; got {len(self.ranks)} and "
                f"{len(self.thresholds)}"
            )

    def probability_same(self, distance: ArrayLike) -> np.ndarray | np.float64:
        """Probability that two examples at this distance are of one class.

        It is at least 1/2 up to the threshold and below 1/2 beyond it. It assumes that same
        and different are as frequent as among the pairs of the calibration.
        """
        beyond = np.asarray(distance, float) - self.threshold
        with np.errstate(over="ignore"):
            # infinity times a scale of 0 would be NaN
            finite = np.clip(beyond, -np.finfo(float).max, np.finfo(float).max)
            logits = np.clip(self.scale * finite, -50, 50)
        probability = 1 / (1 + np.exp(logits))
        # next to the threshold the sigmoid is rounded to 1/2 on both sides
        return np.where(
            beyond > 0, np.minimum(probability, np.nextafter(0.5, 0)), probability
        )[()]

    def threshold_at(self, false_match_rate: float, *, num_comparisons: int = 1) -> float:
        """Threshold up to which at most this share of strangers match, on average.

        A stranger is compared with N = `num_comparisons` examples, all of other classes
        than its own, and matches if one of the distances is at most the threshold. If n
        distances of different pairs are known, a threshold just below the k-th smallest
        lets in the share

            1 - prod_{j = 0}^{k - 1} (n - j) / (n + N - j)

        on average over strangers and over calibrations, which for N = 1 is k / (n + 1): the
        k smallest of all n + N distances must not be among the N new ones. This assumes
        that all distances are independent. The largest k is taken whose share is at most
        the rate; equal distances are all let in or all kept out.

        Raises:
          ValueError: If the rate is not in (0, 1], or the number is below 1.
          UserError: If so few pairs cannot tell so small a rate. See `smallest_rate`.

        >>> distances = np.array([0.1, 0.2, 1.0, 2.0, 3.0, 4.0])
        >>> calibration = calibrate(distances, distances < 0.5, pairs="toy pairs")
        >>> 1.9 < calibration.threshold_at(0.4) < 2.0  # two of 4 + 1
        True
        """
        if not 0 < false_match_rate <= 1:
            raise ValueError(f"false_match_rate must be in (0, 1]; got {false_match_rate}")
        smallest = self.smallest_rate(num_comparisons=num_comparisons)
        tolerated = false_match_rate * (1 + 1e-9)  # as the shares are rounded
        if smallest > tolerated:
            raise UserError(
                f"{self.num_different} different pairs cannot tell a rate of "
                f"{false_match_rate:.3g} for {num_comparisons} comparisons; the smallest "
                f"that they can tell is {smallest:.3g}"
            )
        n, num = self.num_different, num_comparisons
        kept_out = np.cumsum(np.log1p(-num / (n + num - np.arange(self.ranks[-1]))))
        let_in = -np.expm1(kept_out[np.array(self.ranks) - 1])
        return self.thresholds[np.searchsorted(let_in, tolerated, side="right") - 1]

    def smallest_rate(self, *, num_comparisons: int = 1) -> float:
        """Smallest share of strangers that the pairs can tell: N / (n + N).

        Raises:
          ValueError: If the number of comparisons is below 1.
        """
        if num_comparisons < 1:
            raise ValueError(f"num_comparisons must be at least 1; got {num_comparisons}")
        return num_comparisons / (self.num_different + num_comparisons)


def calibrate(
    distances: ArrayLike,
    same: ArrayLike,
    *,
    pairs: str,
    num_classes: int | None = None,
    different: ArrayLike | None = None,
) -> Calibration:
    """Fits a threshold, a probability and false match rates; runs on the host.

    The threshold is that of `best_threshold`. The probability is fitted by logistic
    regression as in `fit_logistic`, but is 1/2 at this threshold, so that it never
    contradicts the decision: only its scale is fitted, which is at least 0.

    Args:
      distances: Distance of each pair, `[n]`.
      same: True where the two examples of a pair are of one class, `[n]`.
      pairs: Description of the pairs in words, such as "all pairs of validation".
      num_classes: Number of the classes that the pairs come from.
      different: Distances of different pairs for the false match rates, `[m]`, by default
        those among the pairs. They count as independent, so that no pair should be there
        twice.

    Raises:
      ValueError: If a shape is wrong.
      TypeError: If distances are not floating-point or `same` not boolean.
      UserError: If the pairs are not of both kinds, a distance is not finite, or the
        distances tell nothing apart: they are all equal, or same pairs are no nearer than
        different ones.

    >>> distances = np.array([1.0, 2.0, 3.0, 4.0])
    >>> same = np.array([True, True, False, False])
    >>> calibration = calibrate(distances, same, pairs="toy pairs")
    >>> print(calibration.threshold, calibration.accuracy)
    2.5 1.0
    >>> print(calibration.probability_same(2.5))
    0.5
    """
    distances, same = _checked("distances", distances), np.asarray(same)
    check_boolean("same", same)
    check_same_shape("same", same, "distances", distances)
    further = _checked("different", np.zeros(0) if different is None else different)
    if different is not None:
        check_at_least("the number of distances in different", len(further), 1)
    _refuse_meaningless(distances, same, further, pairs)
    different = distances[~same] if different is None else further
    threshold, accuracy = _best_threshold(distances, same)
    steps = math.ceil(math.log(len(different), _LARGEST_STEP)) + 1
    ranks = np.unique(np.rint(np.geomspace(1, len(different), steps)).astype(int))
    return Calibration(
        pairs=pairs,
        num_pairs=len(same),
        num_classes=num_classes,
        threshold=threshold,
        accuracy=accuracy,
        scale=_fit_scale(threshold - distances.astype(float), same),
        num_different=len(different),
        ranks=ranks.tolist(),
        thresholds=just_below(np.sort(different)[ranks - 1]).tolist(),
    )


def _checked(name: str, distances: ArrayLike) -> np.ndarray:
    array = np.asarray(distances)
    check_floating(name, array)
    check_rank(name, array, 1)
    return array.astype(np.promote_types(array.dtype, np.float32))


def _refuse_meaningless(
    distances: np.ndarray, same: np.ndarray, further: np.ndarray, pairs: str
) -> None:
    num_same = int(same.sum())
    num_infinite = int((~np.isfinite(np.append(distances, further))).sum())
    if num_infinite or not 0 < num_same < len(same):
        raise UserError(
            f"{pairs} cannot calibrate: {num_same} same, {len(same) - num_same} different, "
            f"{num_infinite} distances not finite"
        )
    if distances.min() == distances.max():
        raise UserError(
            f"{pairs} cannot calibrate: the model tells nothing apart, all "
            f"{len(distances)} distances are {distances[0]:.6g}"
        )
    values, matches, mismatches = _counts(distances, same)
    halfway = (matches + np.append(0, matches[:-1])) / 2
    area = float(np.sum(halfway * np.diff(mismatches, prepend=0)))
    area /= float(matches[-1]) * float(mismatches[-1])
    if area <= 0.5:
        raise UserError(
            f"{pairs} cannot calibrate: the model tells nothing apart, same pairs are no "
            f"nearer than different ones (area under the ROC curve {area:.3f}, "
            f"{len(values)} different distances)"
        )


def _counts(
    distances: np.ndarray, same: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different distances, and how many same and different pairs are up to each."""
    values, group = np.unique(distances, return_inverse=True)
    matches, mismatches = (
        np.cumsum(np.bincount(group[which], minlength=len(values)))
        for which in (same, ~same)
    )
    return values, matches, mismatches


def _best_threshold(distances: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    """The same as `best_threshold`, in the precision of the distances."""
    values, matches, mismatches = _counts(distances, same)
    correct = np.append(0, matches) + mismatches[-1] - np.append(0, mismatches)
    best = int(np.argmax(correct))
    accuracy = float(correct[best] / len(same))
    if best == 0:
        return float(just_below(values[:1])[0]), accuracy
    if best == len(values):
        return float(values[-1]), accuracy
    lower, upper = values[best - 1], values[best]
    halfway = lower + (upper - lower) / 2
    return float(halfway if halfway < upper else lower), accuracy


def _fit_scale(margins: np.ndarray, same: np.ndarray) -> float:
    """Fits s >= 0 in P(same) = sigmoid(s * margin), to the targets of `fit_logistic`.

    The cross-entropy is convex in s. Its derivative is positive for large s, since no
    target is 0 or 1, so that bisection finds the zero.
    """
    unit = np.abs(margins).max()
    z = margins / unit
    num_same, num_different = same.sum(), (~same).sum()
    target = np.where(same, (num_same + 1) / (num_same + 2), 1 / (num_different + 2))

    def slope(scale: float) -> float:
        return float(
            np.sum(z * (1 / (1 + np.exp(-np.clip(scale * z, -700, 700))) - target))
        )

    low, high = 0.0, 1.0
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(low / unit)
