"""Penalties on embeddings, proxies and centres, row by row."""

import math
from itertools import combinations

from tests.oracles.distances import cosine, dot, euclidean, unit


def norm_penalty(embeddings, *, order=2.0, power=1.0):
    norms = [sum(abs(float(x)) ** order for x in row) ** (1 / order) for row in embeddings]
    return math.fsum(norm**power for norm in norms) / len(norms)


def zero_mean_penalty(embeddings):
    return math.fsum(abs(math.fsum(map(float, row))) for row in embeddings) / len(
        embeddings
    )


def equal_norm_penalty(proxies):
    squared = [dot(w, w) for w in proxies]
    middle = math.fsum(squared) / len(squared)
    return math.fsum((x - middle) ** 2 / 4 for x in squared) / len(squared)


def nearest_class_penalty(proxies):
    nearest = [
        max(cosine(w, v) for k, v in enumerate(proxies) if k != c)
        for c, w in enumerate(proxies)
    ]
    return math.fsum(nearest) / len(nearest)


def sparse_centers_penalty(centers):
    """The mean over classes and over pairs, of which the paper counts each half."""
    total = 0.0
    for of_class in centers:
        pairs = list(combinations([unit(w) for w in of_class], 2))
        total += math.fsum(euclidean(v, w) for v, w in pairs) / (2 * len(pairs))
    return total / len(centers)
