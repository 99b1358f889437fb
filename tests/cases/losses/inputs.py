"""Inputs that families of losses share, and the calls that all of a family refuse."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from tests.cases.case import Inputs, Refusal, entry_arrays, f32

LABELS = np.array([0, 0, 0, 1, 1, 2, 3])  # unequal classes, two of which are alone
NUM_PAIRS = 49


def pairs(rng, *, smallest=0.0, largest=2.0):
    numbers = f32(rng.uniform(smallest, largest, size=NUM_PAIRS))
    same = jnp.asarray(rng.random(NUM_PAIRS) < 0.5)
    return Inputs((numbers, same), entry_arrays(rng, NUM_PAIRS))


cosine_pairs = partial(pairs, smallest=-1.0, largest=1.0)


def square(rng, *, form="distances", weights="entry", mask="entries"):
    """A matrix within a batch.

    The form is Euclidean distances, those of vectors of length 1, or their cosines.
    Weights are one per entry, one per anchor, or none. What is masked are entries and the
    diagonal, or whole items: some losses use an entry of another row, which belongs to
    items that are compared in any case.
    """
    points = rng.normal(size=(7, 3))
    if form != "distances":
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    if form == "cosines":
        matrix = np.clip(points @ points.T, -1, 1)
    else:
        matrix = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    same = LABELS[:, None] == LABELS[None]
    items = np.arange(7) != rng.integers(7)
    entries = items[:, None] & items[None] if mask == "items" else rng.random((7, 7)) < 0.8
    arrays = {"where": jnp.asarray(entries & ~np.eye(7, dtype=bool))}
    shape = {"entry": (7, 7), "anchor": (7,)}.get(weights)
    if shape:
        arrays["weights"] = f32(rng.uniform(0.5, 2, size=shape))
    return Inputs((f32(matrix), jnp.asarray(same)), arrays)


# a sort would move the NaN of this negative of row 0 to the end
OF_A_NEGATIVE = (0, 4)

# Refusals ------------------------------------------------------------------------------

_D, _S = jnp.zeros(4), jnp.zeros(4, bool)
_MATRIX, _SAME = jnp.zeros((4, 4)), jnp.zeros((4, 4), bool)


def pair_refusals(name, *scalars, margins=()):
    """The refusals of a loss of pairs with these options."""
    return (
        Refusal(
            "same is a column",
            (_D, _S[:, None]),
            {},
            ValueError,
            rf"same must have shape \(4,\) to match {name}",
        ),
        Refusal(
            "same is not boolean",
            (_D, _D),
            {},
            TypeError,
            "same must be a boolean array; got dtype float32",
        ),
        Refusal(
            f"{name} are boolean",
            (_S, _S),
            {},
            TypeError,
            f"{name} must be a floating-point array",
        ),
        *_array_refusals((_D, _S), _S, _D),
        *_scalar_refusals((_D, _S), scalars),
        *margin_refusals((_D, _S), margins),
    )


def _array_refusals(args, where, weights):
    """Of masks and weights with one place for each of four."""
    return (
        Refusal(
            "where is too short",
            args,
            {"where": where[:3]},
            ValueError,
            r"where must have shape \(4,",
        ),
        Refusal(
            "weights are too short",
            args,
            {"weights": weights[:3]},
            ValueError,
            r"weights must have shape \(4,",
        ),
        Refusal(
            "where is not boolean",
            args,
            {"where": where.astype(jnp.float32)},
            TypeError,
            "where must be a boolean",
        ),
        Refusal(
            "weights are integers",
            args,
            {"weights": weights.astype(int)},
            TypeError,
            "weights must be a floating-point",
        ),
    )


def _scalar_refusals(args, names):
    return tuple(
        Refusal(
            f"{name} is a vector",
            args,
            {name: jnp.ones(4)},
            ValueError,
            rf"{name} must be a scalar; got shape \(4,\)",
        )
        for name in names
    )


def margin_refusals(args, names):
    return tuple(
        Refusal(
            f"{name} does not broadcast",
            args,
            {name: jnp.ones((4, 1, 1))},
            ValueError,
            rf"{name} must be a scalar or broadcast to shape \(4,.*got shape \(4, 1, 1\)",
        )
        for name in names
    )


def matrix_refusals(name="distances"):
    """The refusals of all functions of a matrix and its relation."""
    return (
        Refusal(
            f"{name} are a vector",
            (_MATRIX[0], _SAME[0]),
            {},
            ValueError,
            f"{name} must (have 2 axes|be the matrix of a batch with itself)",
        ),
        Refusal(
            "same has fewer rows",
            (_MATRIX, _SAME[:3]),
            {},
            ValueError,
            r"same must have shape \(4, 4\)",
        ),
        Refusal(
            f"{name} are boolean",
            (_SAME, _SAME),
            {},
            TypeError,
            f"{name} must be a floating-point",
        ),
        Refusal(
            "same is not boolean",
            (_MATRIX, _MATRIX),
            {},
            TypeError,
            "same must be a boolean",
        ),
        Refusal(
            "where is a vector",
            (_MATRIX, _SAME),
            {"where": _SAME[0]},
            ValueError,
            r"where must have shape \(4, 4\)",
        ),
    )


def loss_refusals(name, *scalars, weights="entry", margins=(), square=False):
    """The refusals of a loss of a matrix with these options."""
    args = (_MATRIX, _SAME)
    of_weights = _MATRIX if weights == "entry" else _MATRIX[0]
    is_square = Refusal(
        f"{name} are not square",
        (_MATRIX[:3], _SAME[:3]),
        {},
        ValueError,
        rf"{name} must be the matrix of a batch with itself.*\(3, 4\)",
    )
    return (
        *matrix_refusals(name),
        *_array_refusals(args, _SAME, of_weights),
        *_scalar_refusals(args, scalars),
        *margin_refusals(args, margins),
        *([is_square] if square else []),
    )


def too_small(args, name, number, least=1):
    return Refusal(
        f"{name} is too small",
        args,
        {name: number},
        ValueError,
        f"{name} must be at least {least}; got {number}",
    )


ZEROS = (_MATRIX, _SAME)
