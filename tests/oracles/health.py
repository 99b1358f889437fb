"""Health of embeddings, from eigenvalues and pair by pair."""

import math

import numpy as np


def embedding_health(embeddings, same, where):
    x = np.asarray(embeddings, np.float64)
    centred = [row - sum(x) / len(x) for row in x]
    spread = math.sqrt(sum(c @ c for c in centred) / sum(row @ row for row in x))
    scatter = sum(np.outer(c, c) for c in centred)
    values = [math.sqrt(max(v, 0)) for v in np.linalg.eigvalsh(scatter)]
    shares = [v / sum(values) for v in values if v > 1e-9]
    rank = math.exp(-sum(p * math.log(p) for p in shares))
    unit = [row / math.sqrt(row @ row) for row in x]
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if where[i, j]]
    squared = {(i, j): sum((unit[i] - unit[j]) ** 2) for i, j in pairs}
    alignment = np.mean([squared[i, j] for i, j in pairs if same[i, j]])
    uniformity = math.log(np.mean([math.exp(-2 * squared[pair]) for pair in pairs]))
    return spread, rank, alignment, uniformity
