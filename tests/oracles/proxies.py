"""Losses with proxies of classes, embedding by embedding, with angles and loops."""

import math

import numpy as np

from tests.oracles.distances import cosine, dot, squared_euclidean, unit
from tests.oracles.terms import option_at, weighted_mean, weights_of


def each_embedding(value):
    """The loss of a batch from value(embedding, label, proxies, **options) of one."""

    def oracle(embeddings, labels, proxies, *, where=None, weights=None, **options):
        embeddings, proxies = (np.asarray(x, np.float64) for x in (embeddings, proxies))
        weights = weights_of(len(embeddings), weights)
        terms = []
        for i, (x, label) in enumerate(zip(embeddings, labels, strict=True)):
            if where is None or where[i]:
                own = {
                    k: option_at(o, (len(proxies),), int(label)) for k, o in options.items()
                }
                terms.append((value(x, int(label), proxies, **own), weights[i]))
        return weighted_mean(terms)

    return oracle


def cross_entropy(logits, label):
    largest = max(logits)
    total = math.fsum(math.exp(logit - largest) for logit in logits)
    return largest + math.log(total) - logits[label]


def class_loss(logits, labels, **options):
    """The logits of an embedding are its products with unit vectors."""
    unit_vectors = np.eye(np.shape(logits)[1])
    return each_embedding(
        lambda x, label, proxies: cross_entropy([dot(x, w) for w in proxies], label)
    )(logits, labels, unit_vectors, **options)


@each_embedding
def normalized_softmax(x, label, proxies, *, temperature=0.05):
    return cross_entropy([cosine(x, w) / temperature for w in proxies], label)


@each_embedding
def cos_face(x, label, proxies, *, margin=0.35, scale=64.0):
    logits = [scale * cosine(x, w) for w in proxies]
    logits[label] -= scale * margin
    return cross_entropy(logits, label)


@each_embedding
def arc_face(x, label, proxies, *, margin=28.6, scale=64.0):
    if proxies.ndim == 3:  # the nearest centre of each class
        proxies = [max(centers, key=lambda w: cosine(x, w)) for centers in proxies]
    cosines = [cosine(x, w) for w in proxies]
    angle, margin = math.degrees(math.acos(cosines[label])), float(margin)
    if angle + margin <= 180:
        cosines[label] = math.cos(math.radians(angle + margin))
    else:
        margin = math.radians(margin)
        cosines[label] -= margin * math.sin(margin)
    return cross_entropy([scale * c for c in cosines], label)


def dynamic_margins(counts, *, power=0.25, largest=28.6, smallest=0.0):
    return np.array(
        [smallest + (largest - smallest) / float(n) ** power for n in np.asarray(counts)]
    )


@each_embedding
def large_margin_softmax(
    x, label, proxies, *, margin=4, scale=1.0, normalize_proxies=False
):
    logits = []
    for c, w in enumerate(proxies):
        angle = math.acos(max(-1.0, min(1.0, cosine(x, w))))
        value = math.cos(angle)
        if c == label:
            pieces = [
                k
                for k in range(margin)
                if k * math.pi / margin <= angle <= (k + 1) * math.pi / margin
            ]
            value = (-1) ** pieces[0] * math.cos(margin * angle) - 2 * pieces[0]
        length = 1.0 if normalize_proxies else math.sqrt(dot(w, w))
        logits.append(scale * math.sqrt(dot(x, x)) * length * value)
    return cross_entropy(logits, label)


def sphere_face(embeddings, labels, proxies, **options):
    units = np.array([unit(w) for w in proxies])
    return large_margin_softmax(embeddings, labels, units, **options)


@each_embedding
def soft_triple(x, label, centers, *, center_temperature=0.1, margin=0.01, scale=20.0):
    logits = []
    for c, of_class in enumerate(centers):
        cosines = [cosine(x, w) for w in of_class]
        total = math.fsum(math.exp(s / center_temperature) for s in cosines)
        similarity = math.fsum(
            math.exp(s / center_temperature) / total * s for s in cosines
        )
        logits.append(scale * (similarity - margin * (c == label)))
    return cross_entropy(logits, label)


@each_embedding
def proxy_nca(x, label, proxies, *, temperature=1.0, negatives_only=False):
    shares = [math.exp(-squared_euclidean(unit(x), unit(w)) / temperature) for w in proxies]
    others = [share for c, share in enumerate(shares) if c != label or not negatives_only]
    return -math.log(shares[label] / math.fsum(others))


def proxy_anchor(
    embeddings, labels, proxies, *, margin=0.1, scale=32.0, where=None, weights=None
):
    weights = weights_of(len(proxies), weights)
    rows = [i for i in range(len(labels)) if where is None or where[i]]
    pull, push = [], []
    for c, w in enumerate(proxies):
        cosines = [(cosine(embeddings[i], w), int(labels[i]) == c) for i in rows]
        pulled = [math.exp(-scale * (s - margin)) for s, right in cosines if right]
        pushed = [math.exp(scale * (s + margin)) for s, right in cosines if not right]
        if pulled:
            pull.append((math.log(1 + math.fsum(pulled)), weights[c]))
        if rows:
            push.append((math.log(1 + math.fsum(pushed)), weights[c]))
    return weighted_mean(pull) + weighted_mean(push)


@each_embedding
def p2s_grad(x, label, proxies):
    gaps = [cosine(x, w) - (c == label) for c, w in enumerate(proxies)]
    return math.fsum(gap**2 for gap in gaps) / len(gaps)


@each_embedding
def instance(x, label, proxies, *, scale=64.0):
    return cross_entropy([scale * dot(x, w) for w in proxies], label)


@each_embedding
def prototypical(x, label, prototypes):
    return cross_entropy([-squared_euclidean(x, c) for c in prototypes], label)
