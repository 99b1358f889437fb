"""Rows of the table: relations and reductions."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import (
    reductions,
    relations,
)
from tests import oracles
from tests.cases.case import Case, f32
from tests.cases.losses import entry_arrays


def labels_and_ids(rng):
    def integers(n):
        return jnp.asarray(rng.integers(4, size=n))

    def flags(n):
        return jnp.asarray(rng.random(n) < 0.7)

    return integers(6), integers(5), integers(6), integers(5), flags(6), flags(5)


def _between(row_labels, column_labels, row_ids, column_ids, row_valid, column_valid):
    rows = relations.Items(row_labels, row_ids, row_valid)
    return relations.between(rows, relations.Items(column_labels, column_ids, column_valid))


FOUR = jnp.arange(4)
RELATIONS = [
    Case(
        "relations.between",
        _between,
        labels_and_ids,
        oracle=oracles.between,
        misuse=(
            (
                (FOUR, FOUR, FOUR[:3], FOUR, FOUR > 0, FOUR > 0),
                {},
                ValueError,
                r"rows.ids must have shape \(4,\)",
            ),
            (
                (FOUR, FOUR, FOUR, FOUR, FOUR > 0, FOUR[:, None] > 0),
                {},
                ValueError,
                r"columns.valid must have shape \(4,\)",
            ),
            (
                (FOUR, FOUR, FOUR > 0, FOUR, FOUR > 0, FOUR > 0),
                {},
                TypeError,
                "rows.ids must be an integer array",
            ),
        ),
    ),
    Case(
        "relations.within",
        lambda labels, valid: relations.within(relations.Items(labels, valid=valid)),
        lambda rng: (labels_and_ids(rng)[0], labels_and_ids(rng)[4]),
        oracle=lambda labels, valid: oracles.between(
            labels, labels, range(6), range(6), valid, valid
        ),
        misuse=(
            ((FOUR, FOUR[:3] > 0), {}, ValueError, "valid must have shape"),
            ((FOUR, FOUR), {}, TypeError, "items.valid must be a boolean"),
        ),
    ),
    Case(
        "relations.equal_labels",
        relations.equal_labels,
        lambda rng: labels_and_ids(rng)[:2],
        oracle=lambda a, b: np.array([[x == y for y in b] for x in a]),
        misuse=(
            ((FOUR[:, None], FOUR), {}, ValueError, "labels must have 1 axes"),
            ((FOUR, FOUR * 1.0), {}, TypeError, "labels must be an integer"),
        ),
    ),
    Case(
        "relations.shared_label",
        relations.shared_label,
        lambda rng: tuple(jnp.asarray(rng.random((n, 5)) < 0.3) for n in (6, 4)),
        oracle=oracles.shared_label,
        misuse=(
            ((FOUR > 0, FOUR > 0), {}, ValueError, "labels must have 2 axes"),
            (
                (jnp.ones((4, 4)), jnp.ones((4, 4))),
                {},
                TypeError,
                "labels must be a boolean",
            ),
        ),
    ),
]


def values_where_weights(rng):
    values = f32(rng.normal(size=8))
    return values, *entry_arrays(rng, (values,)).values()


def _of_terms(fn):
    return lambda v, where, w: fn(reductions.make_terms(v, where=where, weights=w))


def _terms_oracle(values, where, weights):
    return [
        (float(v), float(w)) for v, c, w in zip(values, where, weights, strict=True) if c
    ]


REDUCTIONS = [
    Case(
        "reductions.make_terms",
        _of_terms(lambda terms: terms),
        values_where_weights,
        oracle=lambda v, c, w: (np.where(c, v, 0), np.array(c), np.where(c, w, 0)),
        misuse=(
            (
                (jnp.ones(3), jnp.ones(2, bool), jnp.ones(3)),
                {},
                ValueError,
                "where must have",
            ),
            (
                (jnp.ones(3), jnp.ones(3), jnp.ones(3)),
                {},
                TypeError,
                "where must be a boolean",
            ),
            (
                (jnp.ones(3), None, jnp.ones((3, 1))),
                {},
                ValueError,
                "weights must have shape",
            ),
            (
                (jnp.ones(3), None, jnp.ones(3, int)),
                {},
                TypeError,
                "weights must be a float",
            ),
            ((jnp.ones(3, int), None, None), {}, TypeError, "values must be a floating"),
        ),
    ),
    Case(
        "reductions.mean",
        _of_terms(reductions.mean),
        values_where_weights,
        oracle=lambda *args: oracles.weighted_mean(_terms_oracle(*args)),
        gradient=(0, 2),
    ),
    Case(
        "reductions.total",
        _of_terms(reductions.total),
        values_where_weights,
        oracle=lambda *args: sum(v * w for v, w in _terms_oracle(*args)),
        gradient=(0, 2),
    ),
    Case(
        "reductions.mean_and_count",
        _of_terms(reductions.mean_and_count),
        values_where_weights,
        oracle=lambda *args: (
            oracles.weighted_mean(_terms_oracle(*args)),
            len(_terms_oracle(*args)),
        ),
    ),
    Case(
        "reductions.reduce_terms",
        _of_terms(lambda terms: reductions.reduce_terms(terms, reductions.total)),
        values_where_weights,
        oracle=lambda *args: sum(v * w for v, w in _terms_oracle(*args)),
    ),
]
