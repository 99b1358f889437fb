"""Reference implementations, written from the papers as plain loops in float64.

They share no code with the library and use neither JAX, nor matrices, nor masks.
"""

import math
from itertools import pairwise, product

import numpy as np
from scipy import optimize

# Distances -----------------------------------------------------------------------------


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


# Losses: (value of each term or None if it does not count, its weight) -------------------


def weighted_mean(terms):
    terms = [(value, weight) for value, weight in terms if value is not None]
    total = math.fsum(weight for _, weight in terms)
    return math.fsum(value * weight for value, weight in terms) / total if total else 0.0


def _entries(numbers, where):
    numbers = np.asarray(numbers, np.float64)
    where = np.ones(numbers.shape, bool) if where is None else np.asarray(where)
    return numbers, where


def contrastive(
    distances,
    same,
    *,
    margin=1.0,
    positive_margin=0.0,
    factor=0.5,
    where=None,
    weights=None,
):
    distances, where = _entries(distances, where)
    weights = np.ones(distances.shape) if weights is None else np.asarray(weights)
    terms = []
    for place in np.ndindex(distances.shape):
        d = distances[place]
        if not where[place]:
            continue
        gap = d - positive_margin if same[place] else margin - d
        terms.append((factor * gap**2 if gap > 0 else 0.0, float(weights[place])))
    return weighted_mean(terms)


def logistic(similarities, same, *, where=None, weights=None):
    similarities, where = _entries(similarities, where)
    weights = np.ones(similarities.shape) if weights is None else np.asarray(weights)
    terms = []
    for place in np.ndindex(similarities.shape):
        if where[place]:
            probability = 1 / (1 + math.exp(-similarities[place]))
            right = probability if same[place] else 1 - probability
            terms.append((-math.log(right), float(weights[place])))
    return weighted_mean(terms)


def triplet(positives, negatives, *, margin=1.0, where=None, weights=None):
    positives, where = _entries(positives, where)
    negatives = np.asarray(negatives, np.float64)
    weights = np.ones(positives.shape) if weights is None else np.asarray(weights)
    return weighted_mean(
        (max(0.0, positives[i] - negatives[i] + margin), float(weights[i]))
        for i in np.ndindex(positives.shape)
        if where[i]
    )


def _row_sides(distances, same, where):
    distances, where = _entries(distances, where)
    for i, row in enumerate(distances):
        columns = [j for j in range(len(row)) if where[i, j]]
        yield (
            i,
            [(j, row[j]) for j in columns if same[i, j]],
            [(j, row[j]) for j in columns if not same[i, j]],
        )


def _anchor_weights(distances, weights):
    return np.ones(len(distances)) if weights is None else np.asarray(weights, np.float64)


def hard_triplet(distances, same, *, margin=1.0, where=None, weights=None):
    weights = _anchor_weights(distances, weights)
    terms = []
    for i, positives, negatives in _row_sides(distances, same, where):
        if positives and negatives:
            farthest = max(d for _, d in positives)
            nearest = min(d for _, d in negatives)
            terms.append((max(0.0, farthest - nearest + margin), weights[i]))
    return weighted_mean(terms)


def semi_hard_choice(d, negatives):
    farther = [n for _, n in negatives if n > d]
    return min(farther) if farther else max(n for _, n in negatives)


def semi_hard_triplet(distances, same, *, margin=1.0, where=None, weights=None):
    weights = np.ones(np.shape(distances)) if weights is None else np.asarray(weights)
    terms = []
    for i, positives, negatives in _row_sides(distances, same, where):
        for j, d in positives:
            if negatives:
                hinge = max(0.0, d - semi_hard_choice(d, negatives) + margin)
                terms.append((hinge, float(weights[i, j])))
    return weighted_mean(terms)


def all_triplets(
    distances, same, *, margin=1.0, active_only=False, where=None, weights=None
):
    weights = _anchor_weights(distances, weights)
    terms = []
    for i, positives, negatives in _row_sides(distances, same, where):
        for (_, p), (_, n) in product(positives, negatives):
            hinge = p - n + margin
            if hinge > 0 or not active_only:
                terms.append((max(0.0, hinge), weights[i]))
    return weighted_mean(terms)


def supervised_contrastive(
    similarities, same, *, temperature=0.1, where=None, weights=None
):
    weights = _anchor_weights(similarities, weights)
    terms = []
    for i, positives, negatives in _row_sides(similarities, same, where):
        if not positives:
            continue
        everyone = math.fsum(math.exp(s / temperature) for _, s in positives + negatives)
        logs = [math.log(math.exp(s / temperature) / everyone) for _, s in positives]
        terms.append((-math.fsum(logs) / len(logs), weights[i]))
    return weighted_mean(terms)


# Miners ----------------------------------------------------------------------------------


def _negatives(distances, same, where, choose):
    chosen = np.zeros(np.shape(distances))
    exists = np.zeros(np.shape(distances), bool)
    for i, positives, negatives in _row_sides(distances, same, where):
        for j, d in positives:
            if negatives:
                chosen[i, j], exists[i, j] = choose(d, negatives), True
    return chosen, exists


def hard_negatives(distances, same, *, where=None):
    return _negatives(distances, same, where, lambda _, ns: min(n for _, n in ns))


def semi_hard_negatives(distances, same, *, where=None):
    return _negatives(distances, same, where, semi_hard_choice)


def sides(distances, same, where=None):
    _, where = _entries(distances, where)
    same = np.asarray(same)
    return np.logical_and(same, where), np.logical_and(np.logical_not(same), where)


def row_has_nan(distances, where):
    return np.array(
        [
            [any(math.isnan(d) and w for d, w in zip(*row, strict=True))]
            for row in zip(np.asarray(distances), np.asarray(where), strict=True)
        ]
    )


# Verification -----------------------------------------------------------------


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


# The rest --------------------------------------------------------------------------------


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


def prototypes(support):
    return np.array([np.mean(np.asarray(s, np.float64), axis=0) for s in support])


def classify(support, queries):
    centres = prototypes(support)
    return np.array(
        [min(range(len(centres)), key=lambda k: euclidean(q, centres[k])) for q in queries]
    )


def affine_transform(images, matrices, *, fill=0.0):
    coordinates = affine_coordinates(matrices, np.shape(images)[1:3])
    return warp(images, coordinates, fill=fill)


def affine_coordinates(matrices, image_size):
    out = np.zeros((len(matrices), *image_size, 2))
    for n, row, column in np.ndindex(out.shape[:3]):
        out[n, row, column] = np.asarray(matrices[n], np.float64) @ [row, column, 1.0]
    return out


def warp(images, coordinates, *, fill=0.0):
    """Bilinear interpolation, pixel by pixel; outside the image is `fill`."""
    images, coordinates = (np.asarray(a, np.float64) for a in (images, coordinates))
    out = np.zeros((*coordinates.shape[:3], images.shape[3]))

    def look(image, row, column, channel):
        inside = 0 <= row < image.shape[0] and 0 <= column < image.shape[1]
        return image[row, column, channel] if inside else fill

    for n, row, column, channel in np.ndindex(out.shape):
        y, x = coordinates[n, row, column]
        top, left = math.floor(y), math.floor(x)
        for i, j in product((0, 1), (0, 1)):
            share = (1 - abs(y - top - i)) * (1 - abs(x - left - j))
            out[n, row, column, channel] += share * look(
                images[n], top + i, left + j, channel
            )
    return out


def ink_offsets(images, *, threshold):
    """Middle of the box around what is bright, from the middle of the image."""
    out = np.zeros((len(images), 2))
    for n, image in enumerate(np.asarray(images)):
        places = np.argwhere((image > threshold).any(-1))
        if len(places):
            middle = (places.min(0) + places.max(0)) / 2
            out[n] = middle - (np.array(image.shape[:2]) - 1) / 2
    return out


def center(images, *, threshold, fill=0.0):
    """Looks as far from each pixel as the ink is from the middle."""
    offsets = ink_offsets(images, threshold=threshold)
    grid = np.moveaxis(np.mgrid[: images.shape[1], : images.shape[2]], 0, -1)
    return warp(images, grid[None] + offsets[:, None, None], fill=fill)


def convolution_chwn(x, kernel, *, stride=1):
    """As `convolution`, with the padding that leaves ceil(size / stride) outputs."""
    x, kernel = np.transpose(x, (3, 1, 2, 0)), np.transpose(kernel, (1, 2, 3, 0))
    pads = []
    for size, seen in zip(x.shape[1:3], kernel.shape[:2], strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + seen - size, 0)
        pads.append((total // 2, total - total // 2))
    return np.transpose(convolution(x, kernel, (stride, stride), pads), (3, 1, 2, 0))


def convolution(images, kernel, strides, padding):
    images, kernel = np.asarray(images, np.float64), np.asarray(kernel, np.float64)
    (top, bottom), (left, right) = padding
    images = np.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height = (images.shape[1] - kernel.shape[0]) // strides[0] + 1
    width = (images.shape[2] - kernel.shape[1]) // strides[1] + 1
    out = np.zeros((len(images), height, width, kernel.shape[3]))
    for n, y, x, f in np.ndindex(out.shape):
        for i, j, c in np.ndindex(kernel.shape[:3]):
            out[n, y, x, f] += (
                images[n, y * strides[0] + i, x * strides[1] + j, c] * kernel[i, j, c, f]
            )
    return out


def max_pool(x, window):
    x = np.asarray(x)
    n, height, width, channels = x.shape
    out = np.zeros((n, height // window, width // window, channels))
    for place in np.ndindex(out.shape):
        m, i, j, c = place
        out[place] = max(
            x[m, i * window + di, j * window + dj, c]
            for di in range(window)
            for dj in range(window)
        )
    return out
