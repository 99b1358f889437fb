"""The terms of a loss, one after the other, and their weighted mean.

A loss is written as the value of one pair, of one anchor-positive pair or of one anchor.
The functions here turn it into the mean over a batch. None is a term that does not count.
"""

import math

import numpy as np


def weighted_mean(terms):
    """The mean of (value or None, weight)."""
    terms = [(value, float(weight)) for value, weight in terms if value is not None]
    total = math.fsum(weight for _, weight in terms)
    return math.fsum(value * weight for value, weight in terms) / total if total else 0.0


def entries(numbers, where):
    numbers = np.asarray(numbers, np.float64)
    where = np.ones(numbers.shape, bool) if where is None else np.asarray(where)
    return numbers, where


def row_sides(numbers, same, where):
    """Of each row its number, its positives and its negatives, as (column, number)."""
    numbers, where = entries(numbers, where)
    for i, row in enumerate(numbers):
        columns = [j for j in range(len(row)) if where[i, j]]
        yield (
            i,
            [(j, row[j]) for j in columns if same[i, j]],
            [(j, row[j]) for j in columns if not same[i, j]],
        )


def weights_of(shape, weights):
    return np.ones(shape) if weights is None else np.asarray(weights, np.float64)


def option_at(option, shape, place):
    """An option of one entry: a number, or an array that broadcasts to the shape."""
    if isinstance(option, (str, bool)) or np.ndim(option) == 0:
        return option
    return np.broadcast_to(np.asarray(option, np.float64), shape)[place]


def each_entry(value):
    """The loss of given pairs or tuples from value(*numbers, **options) of one."""

    def oracle(*arrays, where=None, weights=None, **options):
        shape = np.shape(arrays[0])
        where = np.ones(shape, bool) if where is None else np.asarray(where)
        weights = weights_of(shape, weights)
        arrays = [np.asarray(array) for array in arrays]
        terms = []
        for place in np.ndindex(shape):
            if where[place]:
                own = {k: option_at(x, shape, place) for k, x in options.items()}
                numbers = [array[place].item() for array in arrays]
                terms.append((value(*numbers, **own), weights[place]))
        return weighted_mean(terms)

    return oracle


def each_anchor(value):
    """The loss of a matrix from value(positives, negatives, **options) of one row."""

    def oracle(numbers, same, *, where=None, weights=None, **options):
        weights = weights_of(len(numbers), weights)
        terms = []
        for i, positives, negatives in row_sides(numbers, same, where):
            own = {k: option_at(x, (len(numbers),), i) for k, x in options.items()}
            sides = [x for _, x in positives], [x for _, x in negatives]
            terms.append((value(*sides, **own), weights[i]))
        return weighted_mean(terms)

    return oracle


def each_positive(value):
    """The loss of a matrix from value(positive, negatives, **options) of one entry."""

    def oracle(numbers, same, *, where=None, weights=None, **options):
        shape = np.shape(numbers)
        weights = weights_of(shape, weights)
        terms = []
        for i, positives, negatives in row_sides(numbers, same, where):
            for j, number in positives:
                own = {k: option_at(x, shape, (i, j)) for k, x in options.items()}
                others = [x for _, x in negatives]
                terms.append((value(number, others, **own), weights[i, j]))
        return weighted_mean(terms)

    return oracle
