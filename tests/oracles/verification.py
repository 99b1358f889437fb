"""Figures of verification, by counting pairs."""

import math
from itertools import pairwise, product

import numpy as np
from scipy import optimize, stats


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


def _rates(pairs, threshold):
    """Weights of the different and of the same pairs up to a threshold, and of all."""
    different = math.fsum(w for d, s, w in pairs if not s and d <= threshold)
    same = math.fsum(w for d, s, w in pairs if s and d <= threshold)
    return (
        different / math.fsum(w for _, s, w in pairs if not s),
        same / math.fsum(w for _, s, w in pairs if s),
    )


def operating_points(distances, same, false_match_rates, *, where=None, weights=None):
    """Tries just below each different distance, from the farthest to the nearest."""
    pairs = list(_counted(distances, same, where, weights))
    points = []
    for rate in false_match_rates:
        for d in sorted((d for d, s, _ in pairs if not s), reverse=True):
            threshold = float(np.nextafter(np.float32(d), np.float32(-np.inf)))
            false, true = _rates(pairs, threshold)
            if false <= rate * (1 + 1e-9):
                break
        points.append((threshold, false, true, 1 - true))
    return tuple(np.array(points).T)


def det_curve(distances, same, *, where=None, weights=None):
    thresholds, false, true = roc_curve(distances, same, where=where, weights=weights)
    missed = 1 - true
    return thresholds, false, missed, stats.norm.ppf(false), stats.norm.ppf(missed)


def _cost(false, true, p_target, c_miss, c_fa):
    cost = c_miss * p_target * (1 - true) + c_fa * (1 - p_target) * false
    return cost / min(c_miss * p_target, c_fa * (1 - p_target))


def min_dcf(
    distances, same, *, p_target=0.01, c_miss=1.0, c_fa=1.0, where=None, weights=None
):
    pairs = list(_counted(distances, same, where, weights))
    values = sorted({d for d, _, _ in pairs})
    thresholds = [float(np.nextafter(np.float32(values[0]), -np.float32(1e9))), *values]
    costs = [_cost(*_rates(pairs, t), p_target, c_miss, c_fa) for t in thresholds]
    best = min(range(len(costs)), key=lambda i: (round(costs[i], 9), i))
    return costs[best], thresholds[best]


def actual_dcf(
    log_ratios, same, *, p_target=0.01, c_miss=1.0, c_fa=1.0, where=None, weights=None
):
    pairs = [(-r, s, w) for r, s, w in _counted(log_ratios, same, where, weights)]
    odds = (c_fa * (1 - p_target)) / (c_miss * p_target)
    return _cost(*_rates(pairs, -math.log(odds)), p_target, c_miss, c_fa)


def cllr(log_ratios, same, *, where=None, weights=None):
    total, of_kind = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    for r, s, w in _counted(log_ratios, same, where, weights):
        total[s] += w * math.log2(1 + math.exp(-r if s else r))
        of_kind[s] += w
    return (total[True] / of_kind[True] + total[False] / of_kind[False]) / 2


def min_cllr(distances, same, *, where=None, weights=None):
    """Isotonic regression by its formula: the smallest of the largest means."""
    pairs = list(_counted(distances, same, where, weights))
    of_same = math.fsum(w for _, s, w in pairs if s)
    of_different = math.fsum(w for _, s, w in pairs if not s)
    values = sorted({d for d, _, _ in pairs})
    same_at = [math.fsum(w for d, s, w in pairs if s and d == v) for v in values]
    all_at = [math.fsum(w for d, _, w in pairs if d == v) for v in values]
    total = 0.0
    for i, value in enumerate(values):
        share = min(
            max(
                sum(same_at[a : b + 1]) / sum(all_at[a : b + 1])
                for b in range(i, len(values))
            )
            for a in range(i + 1)
        )
        for d, s, w in pairs:
            if d != value:
                continue
            if s:  # 1 + e^-l, with l = log(share / (1 - share)) - log(prior odds)
                total += (
                    w
                    / of_same
                    * math.log2(1 + (1 - share) / share * of_same / of_different)
                )
            else:
                total += (
                    w
                    / of_different
                    * math.log2(1 + share / (1 - share) * of_different / of_same)
                )
    return total / 2


def calibration_curve(
    probabilities, same, *, num_bins=10, equal_mass=False, where=None, weights=None
):
    pairs = list(_counted(probabilities, same, where, weights))
    whole = sum(w for _, _, w in pairs)
    bins = [[] for _ in range(num_bins)]
    for p, s, w in pairs:
        if equal_mass:
            place = int(num_bins * sum(v for q, _, v in pairs if q < p) / whole)
        else:
            place = max(0, math.ceil(p * num_bins) - 1)
        bins[place].append((p, s, w))
    curve = []
    for members in bins:
        weight = sum(w for _, _, w in members)
        expected, found = (
            (
                sum(w * p for p, _, w in members) / weight,
                sum(w * s for _, s, w in members) / weight,
            )
            if members
            else (math.nan, math.nan)
        )
        curve.append((expected, found, weight / whole))
    return tuple(np.array(curve).T)


def expected_calibration_error(probabilities, same, **options):
    curve = calibration_curve(probabilities, same, **options)
    return sum(share * abs(f - p) for p, f, share in zip(*curve, strict=True) if share)


def fold_accuracy(distances, same, folds, *, num_folds=10, where=None):
    where = np.ones(len(distances), bool) if where is None else np.asarray(where)
    folds = np.asarray(folds)
    accuracies, thresholds = [], []
    for fold in range(num_folds):
        threshold, _ = best_threshold(distances, same, where=where & (folds != fold))
        held_out = list(_counted(distances, same, where & (folds == fold), None))
        right = sum((d <= threshold) == s for d, s, _ in held_out)
        accuracies.append(right / len(held_out))
        thresholds.append(threshold)
    mean = sum(accuracies) / num_folds
    variance = sum((a - mean) ** 2 for a in accuracies) / (num_folds - 1)
    return mean, math.sqrt(variance / num_folds), np.array(accuracies), np.array(thresholds)


def open_set_trials(distances, same, *, where=None):
    where = np.ones(np.shape(distances), bool) if where is None else np.asarray(where)
    deciding, mated = [], []
    for row, of_class, counted in zip(np.asarray(distances), same, where, strict=True):
        entries = [(d, s) for d, s, c in zip(row, of_class, counted, strict=True) if c]
        nearest = min((d for d, _ in entries), default=math.inf)
        is_mated = any(s for _, s in entries)
        right = all(s for d, s in entries if d == nearest)
        deciding.append(nearest if right or not is_mated else math.inf)
        mated.append(is_mated)
    return np.array(deciding), np.array(mated), where.any(axis=1)


def open_set_rates(distances, same, false_alarm_rates, *, where=None):
    deciding, mated, counted = open_set_trials(distances, same, where=where)
    points = operating_points(deciding, mated, false_alarm_rates, where=counted)
    return points[:3]


def z_norm(distances, cohort, *, num_nearest=None):
    rows = []
    for row, others in zip(np.float64(distances), np.float64(cohort), strict=True):
        nearest = sorted(others)[:num_nearest]
        rows.append((row - np.mean(nearest)) / np.std(nearest))
    return np.array(rows)


def as_norm(distances, first, second, *, num_nearest=None):
    distances = np.float64(distances)
    by_first = z_norm(distances, first, num_nearest=num_nearest)
    by_second = z_norm(distances.T, second, num_nearest=num_nearest).T
    return (by_first + by_second) / 2


def pool_templates(
    embeddings, templates, *, num_templates, media=None, weights=None, where=None
):
    num = len(embeddings)
    media = range(num) if media is None else np.asarray(media).tolist()
    weights = np.ones(num) if weights is None else np.float64(weights)
    where = np.ones(num, bool) if where is None else np.asarray(where)
    pooled = []
    for template in range(num_templates):
        images = {}
        for i in range(num):
            if where[i] and templates[i] == template:
                images.setdefault(media[i], []).append(
                    weights[i] * np.float64(embeddings[i])
                )
        total = sum((np.mean(x, axis=0) for x in images.values()), np.zeros(1))
        length = math.sqrt(float(np.sum(total**2)))
        pooled.append(
            total / length if images else np.full(np.shape(embeddings)[1], np.nan)
        )
    return np.array(pooled)
