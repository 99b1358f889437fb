"""Relations of sets, classification by prototypes, and heads of pairs."""

import math

import numpy as np

from tests.oracles.distances import euclidean


def between(row_labels, column_labels, row_ids, column_ids, row_valid, column_valid):
    shape = (len(row_labels), len(column_labels))
    same, where = np.zeros(shape, bool), np.zeros(shape, bool)
    for i, j in np.ndindex(shape):
        same[i, j] = row_labels[i] == column_labels[j]
        alive = row_valid[i] and column_valid[j]
        where[i, j] = alive and row_ids[i] != column_ids[j]
    return same, where


def shared_label(rows, columns):
    sets = [
        [{i for i, on in enumerate(row) if on} for row in side] for side in (rows, columns)
    ]
    return np.array([[bool(a & b) for b in sets[1]] for a in sets[0]])


def threshold_logits(distances, *, threshold, scale=1.0):
    return np.array([scale * (threshold - float(d)) for d in distances])


def weighted_l1_logits(a, b, weights, bias):
    return np.array(
        [
            math.fsum(
                float(w) * abs(float(p) - float(q))
                for p, q, w in zip(x, y, weights, strict=True)
            )
            + float(bias)
            for x, y in zip(a, b, strict=True)
        ]
    )


def concatenation_logits(a, b, weights, bias):
    return np.array(
        [
            math.fsum(
                float(w) * float(x) for w, x in zip(weights, [*left, *right], strict=True)
            )
            + float(bias)
            for left, right in zip(a, b, strict=True)
        ]
    )


def bilinear_logits(a, b, weights, bias):
    dims = range(len(weights))
    return np.array(
        [
            math.fsum(
                float(left[i]) * float(weights[i][j]) * float(right[j])
                for i in dims
                for j in dims
            )
            + float(bias)
            for left, right in zip(a, b, strict=True)
        ]
    )


def prototypes(support):
    return np.array([np.mean(np.asarray(s, np.float64), axis=0) for s in support])


def classify(support, queries):
    centres = prototypes(support)
    return np.array(
        [min(range(len(centres)), key=lambda k: euclidean(q, centres[k])) for q in queries]
    )
