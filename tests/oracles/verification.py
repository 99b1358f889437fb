"""Figures of verification, by counting pairs."""

import math
from itertools import pairwise, product

import numpy as np
from scipy import optimize


def _counted(distances, same, where, weights):
    weights = np.ones(len(distances)) if weights is None else weights
    where = np.ones(len(distances), bool) if where is None else where
    for d, s, c, w in zip(distances, same, where, weights, strict=True):
        if c:
            yield float(d), bool(s), float(w)


def decision_rates(distances, same, threshold, *, where=None, weights=None):
    right = called = found = positive = total = 0.0
    for d, s, w in _counted(distances, same, where, weights):
        guess = d <= threshold
        right += w * (guess == s)
        called += w * guess
        found += w * (guess and s)
        positive += w * s
        total += w
    return right / total, found / called, found / positive


def roc_auc(distances, same, *, where=None, weights=None):
    pairs = list(_counted(distances, same, where, weights))
    won = total = 0.0
    for (d, s, w), (e, t, v) in product(pairs, pairs):
        if s and not t:
            won += w * v * (1.0 if d < e else 0.5 if d == e else 0.0)
            total += w * v
    return won / total


def roc_curve(distances, same, *, where=None, weights=None):
    """Without a mask: the library keeps one point for each entry, masked or not."""
    assert where is None
    pairs = list(_counted(distances, same, where, weights))
    thresholds = sorted(d for d, _, _ in pairs)
    positive = sum(w for _, s, w in pairs if s)
    negative = sum(w for _, s, w in pairs if not s)
    false = [sum(w for d, s, w in pairs if not s and d <= t) / negative for t in thresholds]
    true = [sum(w for d, s, w in pairs if s and d <= t) / positive for t in thresholds]
    below = np.nextafter(np.float32(thresholds[0]), np.float32(-np.inf))
    return np.array([below, *thresholds]), np.array([0.0, *false]), np.array([0.0, *true])


def equal_error_rate(distances, same, *, where=None, weights=None):
    """Walks along the straight pieces of the curve until both errors meet."""
    pairs = list(_counted(distances, same, where, weights))
    _, false, true = roc_curve(
        *zip(*[(d, s) for d, s, _ in pairs], strict=True), weights=[w for _, _, w in pairs]
    )
    for i in range(1, len(false)):
        if 1 - true[i] <= false[i]:
            for share in np.linspace(0, 1, 200001):
                f = false[i - 1] + share * (false[i] - false[i - 1])
                t = true[i - 1] + share * (true[i] - true[i - 1])
                if 1 - t <= f + 1e-12:
                    return f
    raise AssertionError("the errors always meet")


def best_threshold(distances, same, *, where=None, weights=None):
    pairs = list(_counted(distances, same, where, weights))
    values = sorted({d for d, _, _ in pairs})
    halfway = [(low + high) / 2 for low, high in pairwise(values)]
    candidates = [values[0] - 1e-6, *halfway, values[-1]]

    def accuracy(threshold):
        right = math.fsum(w for d, s, w in pairs if (d <= threshold) == s)
        return right / math.fsum(w for _, _, w in pairs)

    best = max(candidates, key=lambda t: (round(accuracy(t), 12), -t))
    return best, accuracy(best)


def evaluate_threshold(validation, test):
    threshold, accuracy = best_threshold(*validation)
    right = [(d <= threshold) == s for d, s, _ in _counted(*test, where=None, weights=None)]
    return threshold, accuracy, sum(right) / len(right)


def fit_logistic(distances, same, *, where=None, weights=None):
    pairs = list(_counted(distances, same, where, weights))
    num_same = math.fsum(w for _, s, w in pairs if s)
    num_different = math.fsum(w for _, s, w in pairs if not s)

    def cross_entropy(line):
        total = 0.0
        for d, s, w in pairs:
            target = (num_same + 1) / (num_same + 2) if s else 1 / (num_different + 2)
            p = 1 / (1 + math.exp(-line[1] * (line[0] - d)))
            total -= w * (target * math.log(p) + (1 - target) * math.log(1 - p))
        return total

    start = (sum(d for d, _, _ in pairs) / len(pairs), 1.0)
    return tuple(optimize.minimize(cross_entropy, start, tol=1e-10).x)
