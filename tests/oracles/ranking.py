"""Losses that stand for figures of retrieval, query by query."""

import math

import numpy as np

from tests.oracles.terms import each_anchor


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@each_anchor
def nca(positives, negatives, *, temperature=1.0):
    """Stochastic neighbours, of whom each is drawn with its own probability."""
    if not positives:
        return None
    total = math.fsum(math.exp(-d / temperature) for d in positives + negatives)
    probability = math.fsum(math.exp(-d / temperature) / total for d in positives)
    return -math.log(probability)


@each_anchor
def fast_ap(positives, negatives, *, num_bins=10, max_distance=4.0):
    if not positives:
        return None
    step = max_distance / num_bins
    positives_so_far = all_so_far = average = 0.0
    for node in range(num_bins + 1):
        center = node * step
        here = math.fsum(max(0.0, 1 - abs(d - center) / step) for d in positives)
        others = math.fsum(max(0.0, 1 - abs(d - center) / step) for d in negatives)
        positives_so_far += here
        all_so_far += here + others
        if all_so_far > 0:
            average += here * positives_so_far / all_so_far
    return 1 - average / len(positives)


def ahead_of(s, others, temperature):
    """How many of the others are more similar to the query, with sigmoids for steps."""
    return math.fsum(sigmoid((other - s) / temperature) for other in others)


def each_rank(value):
    """The mean over the positives of value(positive, other positives, negatives)."""

    def of_anchor(positives, negatives, **options):
        if not positives:
            return None
        values = [
            value(s, positives[:j] + positives[j + 1 :], negatives, **options)
            for j, s in enumerate(positives)
        ]
        return math.fsum(values) / len(values)

    return each_anchor(of_anchor)


@each_rank
def smooth_ap(s, other_positives, negatives, *, temperature=0.01):
    rank_among_positives = 1 + ahead_of(s, other_positives, temperature)
    rank = rank_among_positives + ahead_of(s, negatives, temperature)
    return 1 - rank_among_positives / rank


@each_rank
def pnp(s, _, negatives, *, growth="linear", temperature=0.01, power=1.0, slope=2.0):
    r = ahead_of(s, negatives, temperature)
    if growth == "linear":
        return r
    if growth == "log":
        return math.log(1 + r)
    if growth == "x log x":
        return (1 + r) * math.log(1 + r)
    if growth == "saturating":
        return (slope * r - math.log(1 + slope * r)) / slope**2
    assert growth == "bounded"
    return 1 - 1 / (1 + r) ** power


@each_anchor
def recall(
    positives, negatives, *, num_retrieved=1, rank_temperature=1.0, temperature=0.01
):
    if not positives:
        return None
    found = 0.0
    for j, s in enumerate(positives):
        others = positives[:j] + positives[j + 1 :] + negatives
        rank = 1 + ahead_of(s, others, temperature)
        found += sigmoid((num_retrieved - rank) / rank_temperature)
    return 1 - found / min(num_retrieved, len(positives))


def average_precision(similarities, same):
    """Of one query without ties: the mean precision at the ranks of its positives."""
    order = np.argsort(-np.asarray(similarities, np.float64))
    hits = [bool(same[j]) for j in order]
    precisions = [sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits) if hit]
    return sum(precisions) / len(precisions)
