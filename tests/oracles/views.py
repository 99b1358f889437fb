"""Losses over two views, feature by feature."""

import math

import numpy as np

from tests.oracles.distances import cosine


def nt_xent(a, b, *, temperature=0.1):
    """Each view of each example looks for the other view among all others."""
    items = [(i, x) for view in (a, b) for i, x in enumerate(np.asarray(view, float))]
    total = 0.0
    for k, (example, x) in enumerate(items):
        others = [
            (other == example, math.exp(cosine(x, y) / temperature))
            for place, (other, y) in enumerate(items)
            if place != k
        ]
        right = math.fsum(e for partner, e in others if partner)
        total -= math.log(right / math.fsum(e for _, e in others))
    return total / len(items)


def negative_cosine(predictions, targets):
    cosines = [cosine(p, z) for p, z in zip(predictions, targets, strict=True)]
    return -math.fsum(cosines) / len(cosines)


def covariance(x, y):
    """Of two features, dividing by n - 1."""
    x, y = (np.asarray(z, np.float64) for z in (x, y))
    mean_x, mean_y = (math.fsum(z) / len(z) for z in (x, y))
    products = [(p - mean_x) * (q - mean_y) for p, q in zip(x, y, strict=True)]
    return math.fsum(products) / (len(x) - 1)


def barlow_twins(a, b, *, redundancy_weight=5e-3):
    a, b = np.transpose(a), np.transpose(b)
    total = 0.0
    for k, m in np.ndindex(len(a), len(b)):
        scale = math.sqrt(covariance(a[k], a[k]) * covariance(b[m], b[m]))
        correlation = covariance(a[k], b[m]) / scale if scale else 0.0
        if k == m:
            total += (1 - correlation) ** 2
        else:
            total += redundancy_weight * correlation**2
    return total


def vicreg(
    a,
    b,
    *,
    invariance_weight=25.0,
    variance_weight=25.0,
    covariance_weight=1.0,
    epsilon=1e-4,
):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    n, dim = a.shape
    gaps = [(a[i, k] - b[i, k]) ** 2 for i, k in np.ndindex(n, dim)]
    spread = repeated = 0.0
    for x in (a.T, b.T):
        for k, m in np.ndindex(dim, dim):
            if k == m:
                deviation = math.sqrt(covariance(x[k], x[k]) + epsilon)
                spread += max(0.0, 1 - deviation) / dim
            else:
                repeated += covariance(x[k], x[m]) ** 2 / dim
    return (
        invariance_weight * math.fsum(gaps) / len(gaps)
        + variance_weight * spread / 2
        + covariance_weight * repeated
    )
