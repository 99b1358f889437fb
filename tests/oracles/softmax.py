"""Losses that are cross-entropies of positives among the items of a row."""

import math

import numpy as np

from tests.oracles.pairs import logistic
from tests.oracles.terms import each_anchor, each_positive, row_sides, weighted_mean


@each_anchor
def supervised_contrastive(positives, negatives, *, temperature=0.1, inside=False):
    if not positives:
        return None
    everyone = math.fsum(math.exp(s / temperature) for s in positives + negatives)
    shares = [math.exp(s / temperature) / everyone for s in positives]
    if inside:
        return -math.log(math.fsum(shares) / len(shares))
    return -math.fsum(math.log(share) for share in shares) / len(shares)


@each_positive
def info_nce(positive, negatives, *, temperature=0.1):
    if not negatives:
        return None
    right = math.exp(positive / temperature)
    wrong = math.fsum(math.exp(s / temperature) for s in negatives)
    return -math.log(right / (right + wrong))


@each_positive
def decoupled_contrastive(positive, negatives, *, temperature=0.1):
    if not negatives:
        return None
    right = math.exp(positive / temperature)
    return -math.log(right / math.fsum(math.exp(s / temperature) for s in negatives))


@each_positive
def hard_negative_contrastive(
    positive, negatives, *, temperature=0.5, concentration=1.0, positive_share=0.1
):
    if not negatives:
        return None
    right = math.exp(positive / temperature)
    wrong = [math.exp(s / temperature) for s in negatives]
    importance = [x**concentration for x in wrong]
    mean_importance = math.fsum(importance) / len(wrong)
    reweighted = math.fsum(
        i / mean_importance * x for i, x in zip(importance, wrong, strict=True)
    )
    debiased = (reweighted - positive_share * len(wrong) * right) / (1 - positive_share)
    debiased = max(debiased, len(wrong) * math.exp(-1 / temperature))
    return -math.log(right / (right + debiased))


@each_anchor
def matching(positives, negatives, *, temperature=1.0):
    if not positives:
        return None
    everyone = positives + negatives
    total = math.fsum(math.exp(s / temperature) for s in everyone)
    attention = [math.exp(s / temperature) / total for s in everyone]
    return -math.log(math.fsum(attention[: len(positives)]))


def sigmoid_pair(similarities, same, *, scale=10.0, bias=-10.0, where=None, weights=None):
    weights = np.ones(len(similarities)) if weights is None else weights
    terms = []
    for i, positives, negatives in row_sides(similarities, same, where):
        members = [(s, True) for _, s in positives] + [(s, False) for _, s in negatives]
        if members:
            numbers = np.array([scale * s + bias for s, _ in members])
            kinds = np.array([kind for _, kind in members])
            terms.append((logistic(numbers, kinds) * len(members), weights[i]))
    return weighted_mean(terms)


def both_directions(oracle):
    def both(matrix, same, *, where=None, **options):
        turned = None if where is None else np.transpose(where)
        by_rows = oracle(matrix, same, where=where, **options)
        matrix, same = np.transpose(matrix), np.transpose(same)
        return (by_rows + oracle(matrix, same, where=turned, **options)) / 2

    return both


def corrected_logits(similarities, log_probabilities):
    return np.array(
        [
            [float(s) - float(q) for s, q in zip(row, log_probabilities, strict=True)]
            for row in similarities
        ]
    )
