"""Losses over pairs: the value of one pair."""

import math

import numpy as np

from tests.oracles.terms import each_entry, entries


def apart(oracle):
    """A loss of pairs whose same and different pairs may be averaged apart."""

    def both(numbers, same, *, apart=False, where=None, **options):
        if not apart:
            return oracle(numbers, same, where=where, **options)
        same = np.asarray(same)
        _, where = entries(numbers, where)
        return sum(
            oracle(numbers, same, where=np.logical_and(where, kind), **options)
            for kind in (same, np.logical_not(same))
        )

    return both


@apart
@each_entry
def contrastive(d, is_same, *, margin=1.0, positive_margin=0.0, factor=0.5, squared=True):
    gap = d - positive_margin if is_same else margin - d
    if gap <= 0:
        return 0.0
    return factor * gap**2 if squared else factor * gap


@each_entry
def logistic(s, is_same):
    probability = 1 / (1 + math.exp(-s))
    return -math.log(probability if is_same else 1 - probability)


@each_entry
def cosine_embedding(s, is_same, *, margin=0.0):
    return 1 - s if is_same else max(0.0, s - margin)


@each_entry
def margin_loss(d, is_same, *, boundary=1.2, margin=0.2):
    y = 1 if is_same else -1
    return max(0.0, margin + y * (d - boundary))


@each_entry
def _threshold_consistent(s, is_same, *, positive_margin=0.9, negative_margin=0.5):
    """None for a pair on the right side of its margin, which the mean leaves out."""
    if is_same:
        return positive_margin - s if s <= positive_margin else None
    return s - negative_margin if s >= negative_margin else None


def threshold_consistent_margin(numbers, same, **options):
    return apart(_threshold_consistent)(numbers, same, apart=True, **options)
