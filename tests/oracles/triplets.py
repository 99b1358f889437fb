"""Triplet and quadruplet losses, triplet by triplet."""

import math
from itertools import product

import numpy as np

from tests.oracles.terms import (
    each_anchor,
    each_entry,
    each_positive,
    option_at,
    row_sides,
    weighted_mean,
    weights_of,
)


def cost(violation, soft=False):
    return math.log(1 + math.exp(violation)) if soft else max(0.0, violation)


@each_entry
def _triplet(positive, negative, swapped=math.inf, *, margin=1.0, soft=False):
    return cost(positive - min(negative, swapped) + margin, soft)


def triplet(positives, negatives, *, swapped_distances=None, **options):
    swapped = () if swapped_distances is None else (swapped_distances,)
    return _triplet(positives, negatives, *swapped, **options)


@each_entry
def quadruplet(positive, negative, other, *, margin=1.0, other_margin=0.5):
    return max(0.0, positive - negative + margin) + max(
        0.0, positive - other + other_margin
    )


@each_anchor
def hard_triplet(positives, negatives, *, margin=1.0, soft=False):
    if not positives or not negatives:
        return None
    return cost(max(positives) - min(negatives) + margin, soft)


def semi_hard_choice(d, negatives):
    farther = [n for n in negatives if n > d]
    return min(farther) if farther else max(negatives)


@each_positive
def semi_hard_triplet(d, negatives, *, margin=1.0, soft=False):
    if not negatives:
        return None
    return cost(d - semi_hard_choice(d, negatives) + margin, soft)


def all_triplets(
    distances,
    same,
    *,
    margin=1.0,
    soft=False,
    swap=False,
    active_only=False,
    where=None,
    weights=None,
):
    shape = np.shape(distances)
    weights = weights_of(len(distances), weights)
    terms = []
    for i, positives, negatives in row_sides(distances, same, where):
        for (j, p), (k, n) in product(positives, negatives):
            nearest = min(n, float(distances[j, k])) if swap else n
            value = cost(p - nearest + option_at(margin, shape, (i, j)), soft)
            if value > 0 or not active_only:
                terms.append((value, weights[i]))
    return weighted_mean(terms)


def dynamic_soft_margin(
    positives,
    negatives,
    histogram,
    *,
    momentum=0.01,
    lowest=-2.0,
    where=None,
    weights=None,
):
    """Each violation is shared by the two nodes around it, and weighs by its rank."""
    histogram = [float(x) for x in histogram]
    num_bins, step = len(histogram), 2 * abs(lowest) / len(histogram)
    weights = weights_of(len(positives), weights)
    counts, violations = [0.0] * num_bins, []
    for i, (p, n) in enumerate(zip(positives, negatives, strict=True)):
        if where is None or where[i]:
            v = float(p) - float(n)
            place = min(max((v - lowest) / step, 0.0), num_bins - 1.0)
            left = min(int(place), num_bins - 2)
            counts[left] += 1 - (place - left)
            counts[left + 1] += place - left
            violations.append((v, left, weights[i]))
    rate = momentum if any(histogram) else 1.0
    mixed = [(1 - rate) * h + rate * c for h, c in zip(histogram, counts, strict=True)]
    new = [x / math.fsum(mixed) for x in mixed]
    loss = weighted_mean((math.fsum(new[: k + 1]) * v, w) for v, k, w in violations)
    return loss, np.array(new)
