"""Distances of two vectors, and of rows or all pairs of rows."""

import math
from itertools import product

import numpy as np


def squared_euclidean(a, b):
    return math.fsum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def euclidean(a, b):
    return math.sqrt(squared_euclidean(a, b))


def manhattan(a, b):
    return math.fsum(abs(float(x) - float(y)) for x, y in zip(a, b, strict=True))


def lp(a, b, order):
    gaps = [abs(float(x) - float(y)) for x, y in zip(a, b, strict=True)]
    if math.isinf(order):
        return max(gaps)
    return math.fsum(gap**order for gap in gaps) ** (1 / order)


def dot(a, b):
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def cosine(a, b):
    lengths = math.sqrt(dot(a, a)) * math.sqrt(dot(b, b))
    return dot(a, b) / lengths if lengths else 0.0


def cosine_distance(a, b):
    if not dot(a, a) or not dot(b, b):
        return 1.0
    a, b = (np.asarray(v, np.float64) / math.sqrt(dot(v, v)) for v in (a, b))
    return squared_euclidean(a, b) / 2


def unit(a):
    length = math.sqrt(dot(a, a))
    return [float(x) / length if length else 0.0 for x in a]


def rows(fn):
    """A function of two vectors, row by row over any leading axes."""

    def oracle(a, b, **options):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        out = [
            fn(a[i], b[i], **options)
            for i in product(*(range(size) for size in a.shape[:-1]))
        ]
        return np.array(out).reshape(a.shape[:-1])

    return oracle


def matrix(fn):
    """A function of two vectors, every row against every row."""

    def oracle(a, b, **options):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return np.array([[fn(x, y, **options) for y in b] for x in a])

    return oracle


def angle(a, b):
    return math.acos(max(-1.0, min(1.0, cosine(a, b))))


def mahalanobis(a, b, factor):
    gaps = [float(x) - float(y) for x, y in zip(a, b, strict=True)]
    return math.sqrt(math.fsum(dot(row, gaps) ** 2 for row in factor))


def poincare(a, b):
    room = (1 - dot(a, a)) * (1 - dot(b, b))
    return math.acosh(1 + 2 * squared_euclidean(a, b) / room)


def signal_to_noise(a, b):
    """Variance of the difference over the variance of the anchor, feature by feature."""
    gaps = [float(y) - float(x) for x, y in zip(a, b, strict=True)]
    return float(np.var(np.array(gaps)) / np.var(np.asarray(a, np.float64)))
