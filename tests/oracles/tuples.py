"""Losses of each anchor with all its positives and negatives."""

import math

import numpy as np

from tests.oracles.terms import (
    each_anchor,
    each_positive,
    entries,
    row_sides,
    weighted_mean,
    weights_of,
)


def sum_of_exponentials(numbers):
    return math.fsum(math.exp(x) for x in numbers)


@each_anchor
def multi_similarity(
    positives, negatives, *, positive_scale=2.0, negative_scale=50.0, base=0.5
):
    if not positives and not negatives:
        return None
    pull = sum_of_exponentials(-positive_scale * (s - base) for s in positives)
    push = sum_of_exponentials(negative_scale * (s - base) for s in negatives)
    return math.log(1 + pull) / positive_scale + math.log(1 + push) / negative_scale


def circle(similarities, same, *, weighted_by=None, where=None, weights=None, **options):
    """The weights of the similarities are those of `weighted_by`, by default of itself."""
    fixed = similarities if weighted_by is None else weighted_by
    weights = weights_of(len(similarities), weights)
    return weighted_mean(
        (
            _circle_of_anchor(
                [(s, float(fixed[i][j])) for j, s in positives],
                [(s, float(fixed[i][j])) for j, s in negatives],
                **options,
            ),
            weights[i],
        )
        for i, positives, negatives in row_sides(similarities, same, where)
    )


def _circle_of_anchor(positives, negatives, *, margin=0.4, scale=80.0):
    if not positives or not negatives:
        return None
    total = 0.0
    for s_p, fixed_p in positives:
        for s_n, fixed_n in negatives:
            alpha_p = max(0.0, (1 + margin) - fixed_p)
            alpha_n = max(0.0, fixed_n - (-margin))
            logit_p = alpha_p * (s_p - (1 - margin))
            logit_n = alpha_n * (s_n - margin)
            total += math.exp(scale * (logit_n - logit_p))
    return math.log(1 + total)


@each_positive
def tuplet_margin(positive, negatives, *, angle=5.73, scale=64.0):
    if not negatives:
        return None
    slackened = math.cos(math.acos(positive) - math.radians(angle))
    return math.log(1 + sum_of_exponentials(scale * (s - slackened) for s in negatives))


def angular(products, same, *, angle=40.0, where=None, weights=None):
    weights = weights_of(np.shape(products), weights)
    products = np.asarray(products, np.float64)
    squared = math.tan(math.radians(angle)) ** 2
    terms = []
    for a, positives, negatives in row_sides(products, same, where):
        for p, a_p in positives:
            if negatives:
                total = sum_of_exponentials(
                    4 * squared * (a_n + products[p, n]) - 2 * (1 + squared) * a_p
                    for n, a_n in negatives
                )
                terms.append((math.log(1 + total), weights[a, p]))
    return weighted_mean(terms)


def lifted_structure(distances, same, *, margin=1.0, where=None, weights=None):
    weights = weights_of(np.shape(distances), weights)
    rows = list(row_sides(distances, same, where))
    terms = []
    for i, positives, negatives in rows:
        for j, d in positives:
            both = [x for _, x in negatives] + [x for _, x in rows[j][2]]
            if both:
                hinge = d + math.log(sum_of_exponentials(margin - x for x in both))
                terms.append((max(0.0, hinge) ** 2 / 2, weights[i, j]))
    return weighted_mean(terms)


@each_anchor
def generalized_lifted_structure(positives, negatives, *, margin=1.0):
    if not positives or not negatives:
        return None
    farthest = math.log(sum_of_exponentials(positives))
    return max(0.0, farthest + math.log(sum_of_exponentials(margin - x for x in negatives)))


def intra_pair_variance(
    similarities,
    same,
    *,
    positive_slack=0.01,
    negative_slack=0.01,
    where=None,
    weights=None,
):
    similarities, where = entries(similarities, where)
    weights = weights_of(similarities.shape, weights)
    sides = {True: [], False: []}
    for place in np.ndindex(similarities.shape):
        if where[place]:
            sides[bool(same[place])].append((similarities[place], weights[place]))
    middle = {kind: weighted_mean(members) for kind, members in sides.items()}
    lowest = (1 - positive_slack) * middle[True]
    highest = (1 + negative_slack) * middle[False]
    return weighted_mean(
        (max(0.0, lowest - s) ** 2, w) for s, w in sides[True]
    ) + weighted_mean((max(0.0, s - highest) ** 2, w) for s, w in sides[False])


@each_anchor
def ranked_list(
    positives,
    negatives,
    *,
    margin=0.4,
    boundary=1.2,
    positive_scale=0.0,
    negative_scale=10.0,
    balance=0.5,
):
    if not positives and not negatives:
        return None
    too_far = [d for d in positives if d > boundary - margin]
    too_near = [d for d in negatives if d < boundary]
    pull = weighted_mean(
        (d - (boundary - margin), math.exp(positive_scale * (d - (boundary - margin))))
        for d in too_far
    )
    push = weighted_mean(
        (boundary - d, math.exp(negative_scale * (boundary - d))) for d in too_near
    )
    return (1 - balance) * pull + balance * push


def histogram(similarities, same, *, num_bins=100, where=None, weights=None):
    """Both histograms, and how much of the negative one is at or above the positive one."""
    similarities, where = entries(similarities, where)
    weights = weights_of(similarities.shape, weights)
    step = 2 / num_bins
    nodes = [-1 + r * step for r in range(num_bins + 1)]

    def shares(is_same):
        counts, total = [0.0] * len(nodes), 0.0
        for place in np.ndindex(similarities.shape):
            if where[place] and bool(same[place]) == is_same:
                s = min(1.0, max(-1.0, similarities[place]))
                total += weights[place]
                for r, node in enumerate(nodes):
                    counts[r] += weights[place] * max(0.0, 1 - abs(s - node) / step)
        return [count / total for count in counts] if total else None

    of_positives, of_negatives = shares(True), shares(False)
    if of_positives is None or of_negatives is None:
        return 0.0
    return math.fsum(
        share * math.fsum(of_positives[: r + 1]) for r, share in enumerate(of_negatives)
    )
