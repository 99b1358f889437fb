"""Rows of the functions that make a loss of a matrix from another, or change its logits."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from siamese_jax import distances, losses
from tests import oracles
from tests.cases.case import Case, Contract, Inputs, Kind, Reach, Refusal, Singular, f32
from tests.cases.losses.inputs import OF_A_NEGATIVE, ZEROS, matrix_refusals, square


def _similarities(rng):
    return Inputs((f32(rng.normal(size=(5, 4))), f32(np.log(rng.uniform(0.1, 1, size=4)))))


def _labelled(rng):
    labels = jnp.asarray([3, 3, 0, 0, 0, 5])
    valid = jnp.asarray([True, True, True, True, False, True])
    return Inputs((f32(rng.normal(size=(6, 3))), labels, valid))


def _on_labels_oracle(embeddings, labels, valid, **options):
    ids = range(len(labels))
    same, where = oracles.between(labels, labels, ids, ids, valid, valid)
    matrix = oracles.matrix(oracles.euclidean)(embeddings, embeddings)
    return oracles.contrastive(matrix, same, where=where, **options)


COMBINED = [
    Case(
        "losses.both_directions",
        losses.both_directions(losses.info_nce_loss),
        Kind.MATRIX_LOSS,
        partial(square, form="cosines", weights=None),
        options=({}, {"temperature": 0.5}),
        oracle=oracles.both_directions(oracles.info_nce),
        singular=Singular((f32(np.ones((7, 7))), jnp.eye(7) > 0)),
        reach=Reach.WHOLE,
        nan_at=OF_A_NEGATIVE,
        refusals=(
            *matrix_refusals("similarities"),
            Refusal(
                "terms are wanted",
                ZEROS,
                {"reduce_fn": None},
                ValueError,
                "reduce_fn must return a number",
            ),
        ),
        exempt={
            Contract.TERMS: "the rows and the columns have terms of their own",
            Contract.REACH: "has no terms",
        },
    ),
    Case(
        "losses.corrected_logits",
        losses.corrected_logits,
        Kind.MAP,
        _similarities,
        oracle=oracles.corrected_logits,
        keeps_dtype=False,
        refusals=(
            Refusal(
                "one probability too few",
                (jnp.zeros((3, 4)), jnp.zeros(3)),
                {},
                ValueError,
                r"log_probabilities must have shape \(4,\)",
            ),
            Refusal(
                "probabilities are integers",
                (jnp.zeros((3, 4)), jnp.zeros(4, int)),
                {},
                TypeError,
                "log_probabilities must be a floating",
            ),
            Refusal(
                "similarities are integers",
                (jnp.zeros((3, 4), int), jnp.zeros(4)),
                {},
                TypeError,
                "similarities must be a floating",
            ),
        ),
    ),
    Case(
        "losses.on_labels",
        losses.on_labels(losses.contrastive_loss, distances.euclidean_distance_matrix),
        Kind.MAP,
        _labelled,
        options=({}, {"margin": 2.5}),
        oracle=_on_labels_oracle,
        keeps_dtype=False,
        refusals=(
            Refusal(
                "labels are numbers",
                (jnp.zeros((3, 2)), jnp.zeros(3), jnp.ones(3, bool)),
                {},
                TypeError,
                "labels must be an integer",
            ),
            Refusal(
                "validity is too short",
                (jnp.zeros((3, 2)), jnp.zeros(3, int), jnp.ones(2, bool)),
                {},
                ValueError,
                "valid must have shape",
            ),
        ),
    ),
]
