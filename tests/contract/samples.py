"""Inputs of losses made from others: reordered, with a NaN, masked, parts, degenerate."""

from collections.abc import Iterator

import jax
import numpy as np

from tests.cases import Case, Kind
from tests.contract.trees import float_leaves, replace_floats


def whole(inputs):
    """The inputs with everything valid, and of weight 1."""
    return inputs._replace(arrays=jax.tree.map(np.ones_like, inputs.arrays))


def reordered(kind: Kind, args: tuple) -> tuple:
    """The batch in another order; with proxies also the classes, under other names."""
    args = jax.tree.map(np.asarray, args)
    rng = np.random.default_rng(5)
    order = rng.permutation(len(args[0]))
    if kind is Kind.MATRIX_LOSS:
        return tuple(array[order][:, order] for array in args)
    if kind is not Kind.PROXY_LOSS:
        return tuple(array[order] for array in args)
    numbers, labels, *proxies = args
    classes = rng.permutation(len(proxies[0]) if proxies else numbers.shape[1])
    if not proxies:  # the columns are the classes
        numbers = numbers[:, classes]
    renamed = np.argsort(classes).astype(labels.dtype)[labels]
    return (numbers[order], renamed[order], *(x[classes] for x in proxies))


def with_nan(case: Case, args: tuple) -> tuple:
    first, *others = float_leaves(args)
    first = np.array(first)
    first[(0,) * first.ndim if case.nan_at is None else case.nan_at] = np.nan
    return replace_floats(args, [first, *others])


def behind_the_mask(args: tuple, where: np.ndarray) -> tuple:
    """Other numbers, relations and labels (-1, which is no class) where masked."""

    def changed(array):
        array = np.array(array)
        if array.shape[: where.ndim] == where.shape:
            rest = array[~where]
            if array.dtype == bool:
                array[~where] = ~rest
            elif np.issubdtype(array.dtype, np.integer):
                array[~where] = -1
            else:
                array[~where] = np.linspace(-3, 3, rest.size).reshape(rest.shape)
        return array

    return jax.tree.map(changed, args)


def subset(kind: Kind, tree, *, columns: bool):
    """Some of the rows of all arrays, and some of their columns; of pairs some entries."""
    keep = np.array([0, 3, 4])

    def part(array):
        if np.ndim(array) == 0:
            return array
        array = np.asarray(array)[keep]
        is_matrix = array.ndim == 2 and kind is Kind.MATRIX_LOSS
        return array[:, keep] if is_matrix and columns else array

    return jax.tree.map(part, tree)


# Batches with nothing, or little, to learn from -----------------------------------------

# labels and validity
BATCHES = {
    "one class": ([0] * 7, [1] * 7),
    "all different": (range(7), [1] * 7),
    "one pair": ([0, 1, 2, 3, 4, 5, 2], [1] * 7),
    "one row": ([0, 0, 0, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0]),
    "nothing": ([0, 0, 0, 1, 1, 1, 1], [0] * 7),
    "padding": ([0, 0, 1, 1, 9, 9, 9], [1, 1, 1, 1, 0, 0, 0]),
    "ordinary": ([0, 0, 0, 1, 1, 1, 1], [1] * 7),
}
# two coinciding points, and a zero vector
POINTS = np.array(
    [[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [3.0, 1.0], [-1.0, 0.5], [2.0, 2.0], [0.0, 1.0]],
    np.float32,
)


def degenerate(case: Case, args: tuple) -> Iterator[tuple[str, tuple, np.ndarray]]:
    """The name, the arguments and the mask of each degenerate batch of such arguments."""
    if case.kind is Kind.PROXY_LOSS:
        yield from _of_proxies(args)
    elif case.kind is Kind.VIEW_LOSS:
        yield from _of_views(args)
    else:
        yield from _of_matrices(args)


def _of_matrices(args: tuple) -> Iterator[tuple[str, tuple, np.ndarray]]:
    gaps = POINTS[:, None] - POINTS[None]
    distances = np.sqrt(np.sum(gaps**2, axis=-1))
    shape = args[0].shape
    for name, (labels, valid) in BATCHES.items():
        labels, valid = np.array(labels), np.array(valid) > 0
        same = labels[:, None] == labels[None]
        where = valid[:, None] & valid[None] & ~np.eye(7, dtype=bool)
        yield name, (distances.reshape(shape), same.reshape(shape)), where.reshape(shape)


def _of_proxies(args: tuple) -> Iterator[tuple[str, tuple, np.ndarray]]:
    numbers, labels, *proxies = args
    rows = np.resize(POINTS, numbers.shape)
    everything = np.ones(len(rows), bool)
    yield "ordinary", args, everything
    yield "one class", (rows, np.zeros_like(labels), *proxies), everything
    yield "zeros", (np.zeros_like(numbers), labels, *proxies), everything
    padded = np.where(everything.cumsum() < 3, labels, -1).astype(labels.dtype)
    yield "padding", (rows, padded, *proxies), padded >= 0
    yield "nothing", args, ~everything
    equal = [np.ones_like(x) for x in proxies]
    yield "equal proxies", (rows, labels, *equal), everything


def _of_views(args: tuple) -> Iterator[tuple[str, tuple, np.ndarray]]:
    first, *others = args
    yield "ordinary", args, None
    yield "zeros", (np.zeros_like(first), *others), None
    yield "equal rows", tuple(np.ones_like(x) for x in args), None
    yield "equal views", (first,) * len(args), None
