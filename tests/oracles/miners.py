"""Miners, row by row."""

import math

import numpy as np

from tests.oracles.terms import entries, row_sides
from tests.oracles.triplets import semi_hard_choice


def distance(entry):
    return entry[1]


def _negatives(distances, same, where, choose):
    chosen = np.zeros(np.shape(distances))
    indices = np.zeros(np.shape(distances), int)
    exists = np.zeros(np.shape(distances), bool)
    for i, positives, negatives in row_sides(distances, same, where):
        for j, d in positives:
            if negatives:
                k, chosen[i, j] = choose(d, negatives)
                indices[i, j], exists[i, j] = k, True
    return chosen, indices, exists


def hard_negatives(distances, same, *, where=None):
    return _negatives(
        distances, same, where, lambda _, negatives: min(negatives, key=distance)
    )


def semi_hard_negatives(distances, same, *, where=None):
    def choose(d, negatives):
        chosen = semi_hard_choice(d, [n for _, n in negatives])
        return next((k, n) for k, n in negatives if n == chosen)

    return _negatives(distances, same, where, choose)


def sides(distances, same, where=None):
    _, where = entries(distances, where)
    same = np.asarray(same)
    return np.logical_and(same, where), np.logical_and(np.logical_not(same), where)


def row_has_nan(distances, where):
    return np.array(
        [
            [any(math.isnan(d) and w for d, w in zip(*row, strict=True))]
            for row in zip(np.asarray(distances), np.asarray(where), strict=True)
        ]
    )


# Masks: which entries count ---------------------------------------------------------------


def _mask(matrix, same, where, keeps):
    """Entries for which keeps(number, is_positive, positives, negatives) holds."""
    kept = np.zeros(np.shape(matrix), bool)
    for i, positives, negatives in row_sides(matrix, same, where):
        numbers = [x for _, x in positives], [x for _, x in negatives]
        for is_positive, side in ((True, positives), (False, negatives)):
            for j, x in side:
                kept[i, j] = keeps(x, is_positive, *numbers)
    return kept


def pair_margin_mask(
    distances, same, *, positive_margin=0.2, negative_margin=0.8, where=None
):
    def keeps(d, is_positive, *_):
        return d > positive_margin if is_positive else d < negative_margin

    return _mask(distances, same, where, keeps)


def multi_similarity_mask(similarities, same, *, margin=0.1, where=None):
    def keeps(s, is_positive, positives, negatives):
        if is_positive:
            return any(s - margin < n for n in negatives)
        return any(s + margin > p for p in positives)

    return _mask(similarities, same, where, keeps)


def nearest_mask(distances, same, *, num_positives=None, num_negatives=None, where=None):
    def keeps(d, is_positive, positives, negatives):
        if is_positive:
            return num_positives is None or d in sorted(positives)[-num_positives:]
        return num_negatives is None or d in sorted(negatives)[:num_negatives]

    return _mask(distances, same, where, keeps)


def hardest_share_mask(distances, same, *, share=0.5, where=None):
    rows = list(row_sides(distances, same, where))
    positives = sorted((d for _, side, _ in rows for _, d in side), reverse=True)
    negatives = sorted(d for _, _, side in rows for _, d in side)
    hardest = [side[: math.ceil(share * len(side))] for side in (positives, negatives)]
    return _mask(distances, same, where, lambda d, positive, *_: d in hardest[not positive])


def false_negative_mask(distances, same, *, margin=0.0, where=None):
    def keeps(d, is_positive, positives, _):
        return is_positive or not positives or d >= min(positives) - margin

    return _mask(distances, same, where, keeps)


# Triplets --------------------------------------------------------------------------------


def angular_negatives(distances, same, *, angle=20.0, where=None):
    """By the distance of each negative from the centre of anchor and positive."""
    d = np.asarray(distances, np.float64)
    chosen, indices, exists = np.zeros(d.shape), np.zeros(d.shape, int), d < 0
    for a, positives, negatives in row_sides(distances, same, where):
        for p, a_p in positives:
            to_centre = {
                n: math.sqrt(max(0.0, 2 * a_n**2 + 2 * d[p, n] ** 2 - a_p**2)) / 2
                for n, a_n in negatives
            }
            n = min(to_centre, key=to_centre.get, default=None)
            if n is None or math.degrees(math.atan2(a_p, 2 * to_centre[n])) <= angle:
                continue
            chosen[a, p], indices[a, p], exists[a, p] = d[a, n], n, True
    return chosen, indices, exists


def mine_triplets(
    distances,
    same,
    *,
    positive="hard",
    negative="hard",
    positive_range=(0.0, math.inf),
    negative_range=(0.0, math.inf),
    where=None,
):
    found = []
    for _, positives, negatives in row_sides(distances, same, where):
        positives = [p for p in positives if positive_range[0] <= p[1] <= positive_range[1]]
        negatives = [n for n in negatives if negative_range[0] <= n[1] <= negative_range[1]]
        if positive == "semi-hard":
            choose = max if negative == "easy" else min
            n = choose(negatives, key=distance, default=None)
            nearer = [p for p in positives if n is None or p[1] < n[1]]
            p = max(nearer, key=distance, default=None)
        else:
            choose = min if positive == "easy" else max
            p = choose(positives, key=distance, default=None)
            if negative == "semi-hard":
                negatives = [n for n in negatives if p is None or n[1] > p[1]]
            choose = max if negative == "easy" else min
            n = choose(negatives, key=distance, default=None)
        found.append((p, n))
    sides = []
    for side in zip(*found, strict=True):
        entries_of = [(0, 0.0) if entry is None else entry for entry in side]
        indices, numbers = (np.array(x) for x in zip(*entries_of, strict=True))
        sides += [numbers, indices, np.array([entry is not None for entry in side])]
    return *sides, np.logical_and(sides[2], sides[5])
