"""Relations of sets, classification by prototypes, and heads of pairs."""

import math

import numpy as np
from sklearn import linear_model

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


def _examples(support, where):
    """The examples of each class that count, in float64."""
    where = np.ones(np.shape(support)[:2], bool) if where is None else np.asarray(where)
    return [np.float64(s)[w] for s, w in zip(np.asarray(support), where, strict=True)]


def prototypes(support, *, where=None):
    return np.array([np.mean(x, axis=0) for x in _examples(support, where)])


def classify(support, queries):
    centres = prototypes(support)
    return np.array(
        [min(range(len(centres)), key=lambda k: euclidean(q, centres[k])) for q in queries]
    )


def neighbour_logits(support, queries, *, where=None):
    classes = _examples(support, where)
    return np.array([[-min(euclidean(q, e) for e in x) for x in classes] for q in queries])


def prototype_logits(support, queries, *, where=None):
    centres = prototypes(support, where=where)
    return np.array([[-euclidean(q, c) for c in centres] for q in queries])


def simple_shot_logits(support, queries, base_mean, *, where=None):
    def placed(x):
        centred = np.float64(x) - np.float64(base_mean)
        return centred / math.sqrt(np.sum(centred**2))

    classes = [[placed(e) for e in x] for x in _examples(support, where)]
    centres = [np.mean(x, axis=0) for x in classes]
    return np.array([[-euclidean(placed(q), c) for c in centres] for q in queries])


def matching_logits(support, queries, *, temperature=1.0, where=None):
    rows = []
    for q in np.float64(queries):
        attention = [
            sum(math.exp(q @ e / math.sqrt((q @ q) * (e @ e)) / temperature) for e in x)
            for x in _examples(support, where)
        ]
        rows.append([math.log(a / sum(attention)) for a in attention])
    return np.array(rows)


def _regression(support, where):
    classes = _examples(support, where)
    return np.concatenate(classes), np.repeat(
        range(len(classes)), [len(x) for x in classes]
    )


def ridge_logits(support, queries, *, strength=1.0, where=None):
    x, y = _regression(support, where)
    fit = linear_model.Ridge(alpha=strength, solver="svd")
    return fit.fit(x, np.eye(len(support))[y]).predict(np.float64(queries))


def logistic_logits(support, queries, *, strength=1.0, num_steps=None, where=None):
    x, y = _regression(support, where)
    fit = linear_model.LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000)
    return fit.fit(x, y).decision_function(np.float64(queries))


def _softmax(row):
    shares = [math.exp(v - max(row)) for v in row]
    return np.array(shares) / sum(shares)


def laplacian_shot_logits(
    support, queries, *, num_neighbours=3, strength=1.0, num_steps=20, where=None
):
    centres = prototypes(support, where=where)
    num = len(queries)
    alone = np.array([[-(euclidean(q, c) ** 2) for c in centres] for q in queries])
    nearest = [
        sorted(set(range(num)) - {i}, key=lambda j: euclidean(queries[i], queries[j]))
        for i in range(num)
    ]
    logits = alone
    for _ in range(num_steps):
        y = [_softmax(row) for row in logits]
        others = [sum(y[j] for j in nearest[i][:num_neighbours]) for i in range(num)]
        logits = alone + strength * np.array(others)
    return logits


def transport_logits(support, queries, *, temperature=0.1, num_steps=50, where=None):
    centres = prototypes(support, where=where)
    plan = np.array(
        [
            [math.exp(-(euclidean(q, c) ** 2) / temperature) for c in centres]
            for q in queries
        ]
    )
    for _ in range(num_steps):
        plan *= len(queries) / len(centres) / plan.sum(axis=0)
        plan /= plan.sum(axis=1, keepdims=True)
    return np.log(plan)
