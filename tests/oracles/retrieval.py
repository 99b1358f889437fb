"""Figures of retrieval, query by query, from lists of references in order."""

import math

import numpy as np


def _distance(a, b):
    return math.sqrt(
        math.fsum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))
    )


def nearest(queries, references, query_ids, reference_ids, reference_valid, *, k):
    distances, indices = [], []
    for query, own in zip(queries, query_ids, strict=True):
        found = sorted(
            (_distance(query, reference), j)
            for j, reference in enumerate(references)
            if reference_valid[j] and reference_ids[j] != own
        )
        found = (found + [(math.inf, -1)] * k)[:k]
        distances.append([d for d, _ in found])
        indices.append([j for _, j in found])
    return np.array(distances), np.array(indices)


def hits_of_queries(queries, references, relevant, compared):
    """Of each query whether each compared reference, in order, is relevant."""
    for i, query in enumerate(queries):
        order = sorted(
            (_distance(query, reference), j)
            for j, reference in enumerate(references)
            if compared(i, j)
        )
        yield [relevant(i, j) for _, j in order]


def hits_of_ranks(ranks):
    """Whether each reference is relevant, as far as the last of the ranks."""
    return [r in ranks for r in range(1, max(ranks, default=0) + 1)]


def precision_at_k(ranks, *, k):
    return np.array([sum(hits_of_ranks(list(row))[:k]) / k for row in ranks])


def recall_at_k(ranks, *, k):
    return np.array([float(any(hits_of_ranks(list(row))[:k])) for row in ranks])


def reciprocal_rank(ranks):
    return np.array([_reciprocal_rank(hits_of_ranks(list(row))) for row in ranks])


def r_precision(ranks, num_relevant):
    return _each(ranks, num_relevant, lambda hits, num: sum(hits[:num]) / num)


def mean_precision(ranks, num_relevant):
    return _each(ranks, num_relevant, lambda hits, num: _precisions(hits) / num)


def average_precision_at_r(ranks, num_relevant):
    return _each(ranks, num_relevant, lambda hits, num: _precisions(hits[:num]) / num)


def average_precision_at_k(ranks, num_relevant, *, k):
    return _each(ranks, num_relevant, lambda hits, num: _precisions(hits[:k]) / min(num, k))


def ndcg_at_k(ranks, num_relevant, *, k):
    return _each(ranks, num_relevant, lambda hits, num: _ndcg(hits, num, k))


def all_figures(ranks, num_relevant, *, cutoffs, num_references):
    """In the order of the fields of `Figures`."""

    def at_each(fn, *args):
        return np.stack([fn(*args, k=k) for k in cutoffs], axis=1)

    return (
        at_each(precision_at_k, ranks),
        at_each(recall_at_k, ranks),
        at_each(average_precision_at_k, ranks, num_relevant),
        at_each(ndcg_at_k, ranks, num_relevant),
        r_precision(ranks, num_relevant),
        average_precision_at_r(ranks, num_relevant),
        mean_precision(ranks, num_relevant),
        reciprocal_rank(ranks),
        ndcg_at_k(ranks, num_relevant, k=num_references),
    )


def mean_figures(figures, where):
    return tuple(
        np.mean([row for row, counts in zip(values, where, strict=True) if counts], axis=0)
        for values in (np.asarray(leaf, np.float64) for leaf in figures)
    )


def class_means(figures, labels, where, *, num_classes):
    per_class, num_queries = [], []
    for number in range(num_classes):
        of_class = np.array(
            [bool(w) and c == number for c, w in zip(labels, where, strict=True)]
        )
        num_queries.append(of_class.sum())
        nothing = tuple(np.full(np.shape(leaf)[1:], np.nan) for leaf in figures)
        per_class.append(mean_figures(figures, of_class) if of_class.any() else nothing)
    per_class = tuple(map(np.stack, zip(*per_class, strict=True)))
    return (
        per_class,
        mean_figures(per_class, np.array(num_queries) > 0),
        np.array(num_queries),
    )


def evaluate(queries, items, references=None, reference_items=None, *, cutoffs):
    """In the order of the fields of `Evaluation`."""
    ids, reference_ids = items.ids, None
    if references is None:
        references, reference_items = queries, items
        ids = np.arange(len(queries)) if ids is None else ids
        reference_ids = ids
    else:
        reference_ids = reference_items.ids
    labels, reference_labels = np.asarray(items.labels), np.asarray(reference_items.labels)
    valid = _flags(items.valid, queries)
    reference_valid = _flags(reference_items.valid, references)

    def compared(i, j):
        same = ids is not None and reference_ids is not None and ids[i] == reference_ids[j]
        return valid[i] and reference_valid[j] and not same

    def relevant(i, j):
        return bool(labels[i] == reference_labels[j])

    rows = list(hits_of_queries(queries, references, relevant, compared))
    num_relevant = np.array([sum(hits) for hits in rows])
    ranks = [[r for r, hit in enumerate(hits, 1) if hit] for hits in rows]
    per_query = all_figures(
        ranks, num_relevant, cutoffs=cutoffs, num_references=len(references)
    )
    where = num_relevant > 0
    without = sum(v and not w for v, w in zip(valid, where, strict=True))
    mean = mean_figures(per_query, where)
    return mean, per_query, where, where.sum(), without, num_relevant


def _flags(valid, rows):
    return np.ones(len(rows), bool) if valid is None else np.asarray(valid)


def _each(ranks, num_relevant, fn):
    return np.array(
        [
            fn(hits_of_ranks(list(row)), int(num)) if num else 0.0
            for row, num in zip(ranks, num_relevant, strict=True)
        ]
    )


def _reciprocal_rank(hits):
    return next((1 / r for r, hit in enumerate(hits, 1) if hit), 0.0)


def _precisions(hits):
    return math.fsum(sum(hits[:r]) / r for r, hit in enumerate(hits, 1) if hit)


def _ndcg(hits, num_relevant, k):
    gain = math.fsum(1 / math.log2(1 + r) for r, hit in enumerate(hits[:k], 1) if hit)
    return gain / math.fsum(
        1 / math.log2(1 + r) for r in range(1, min(num_relevant, k) + 1)
    )
