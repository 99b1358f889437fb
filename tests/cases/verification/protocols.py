"""Rows of protocols: folds, open-set identification, score normalisation, templates."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import verification
from tests import oracles
from tests.cases.case import FOUR, Case, Contract, Inputs, Kind, Refusal, entry_arrays, f32
from tests.cases.verification.pairs import PAIR_REFUSALS, pair_distances

_D, _S = jnp.ones(4), jnp.ones(4, bool)
_MATRIX, _SAME = jnp.ones((4, 3)), jnp.ones((4, 3), bool)


def folds(rng):
    return Inputs((*pair_distances(rng), jnp.asarray(rng.permutation(np.arange(40) % 4))))


def gallery(rng):
    same = rng.integers(8, size=12)[:, None] == rng.integers(4, size=7)[None, :]
    distances = f32(np.round(rng.random((12, 7)) + np.where(same, 0, 0.4), 1))
    mask = jnp.asarray(rng.random((12, 7)) < 0.8).at[0].set(False)
    return Inputs((distances, jnp.asarray(same)), {"where": mask})


def images(rng):
    templates = jnp.asarray(rng.permutation(np.arange(24) % 3))
    media = jnp.asarray(rng.integers(4, size=24))
    return Inputs(
        (f32(rng.normal(size=(24, 2))), templates),
        {"media": media, **entry_arrays(rng, 24)},
    )


def cohorts(*sizes):
    def draw(rng):
        return Inputs(tuple(f32(rng.normal(size=size)) for size in sizes))

    return draw


def _with_folds(refusals):
    return tuple(
        x._replace(args=(*x.args, FOUR)) for x in refusals if "weights" not in x.options
    )


def _refusal(name, args, words, options=None, error=ValueError):
    return Refusal(name, args, options or {}, error, words)


_GALLERY_REFUSALS = (
    _refusal("distances of one query", (_D, _S), "distances must have 2 axes"),
    _refusal("an empty gallery", (_MATRIX[:, :0], _SAME[:, :0]), "gallery entries must be"),
    _refusal("same is too small", (_MATRIX, _SAME[:2]), r"same must have shape \(4, 3\)"),
    _refusal(
        "distances are boolean",
        (_SAME, _SAME),
        "distances must be a float",
        error=TypeError,
    ),
    _refusal("same is not boolean", (_MATRIX, _MATRIX), "same must be", error=TypeError),
    _refusal(
        "a mask of queries",
        (_MATRIX, _SAME),
        r"where must have shape \(4, 3\)",
        {"where": _S},
    ),
)
_A_MATRIX_MASK = "has a mask of the matrix, not of its rows"

PROTOCOLS = [
    Case(
        "verification.fold_accuracy",
        verification.fold_accuracy,
        Kind.FIGURE,
        folds,
        options=({"num_folds": 4},),
        oracle=oracles.fold_accuracy,
        refusals=(
            *_with_folds(PAIR_REFUSALS),
            _refusal("one fold", (_D, _S, FOUR), "num_folds must be", {"num_folds": 1}),
            _refusal("too few", (_D, _S, FOUR[:3]), r"folds must have shape \(4,\)"),
            _refusal(
                "folds are numbers", (_D, _S, _D), "folds must be an", error=TypeError
            ),
        ),
    ),
    Case(
        "verification.open_set_trials",
        verification.open_set_trials,
        Kind.FIGURE,
        gallery,
        oracle=oracles.open_set_trials,
        refusals=_GALLERY_REFUSALS,
        exempt={
            Contract.MASK: _A_MATRIX_MASK,
            Contract.ORDER: "has one number for each query, in their order",
        },
    ),
    Case(
        "verification.open_set_rates",
        verification.open_set_rates,
        Kind.FIGURE,
        gallery,
        options=({"false_alarm_rates": [0.0, 0.3, 0.6]},),
        oracle=oracles.open_set_rates,
        refusals=(
            *_GALLERY_REFUSALS,
            _refusal(
                "a rate of 1",
                (_MATRIX, _SAME),
                "false_alarm_rates must be a list of rates",
                {"false_alarm_rates": [1.0]},
            ),
        ),
        exempt={Contract.MASK: _A_MATRIX_MASK},
    ),
    Case(
        "verification.z_norm",
        verification.z_norm,
        Kind.MAP,
        cohorts((4,), (4, 9)),
        options=({}, {"num_nearest": 3}),
        keeps_dtype=False,
        oracle=oracles.z_norm,
        refusals=(
            _refusal("distances of three axes", (_MATRIX[None], _MATRIX), "1 or 2 axes"),
            _refusal("cohort is a row", (_D, _D), "cohort must have 2 axes"),
            _refusal("cohort is too short", (_D, _MATRIX[:2]), r"shape \(4, 3\), one row"),
            _refusal(
                "one is no cohort", (_D, _MATRIX), "must be at least 2", {"num_nearest": 1}
            ),
            _refusal("too many", (_D, _MATRIX), "must be at most 3", {"num_nearest": 4}),
            _refusal("integers", (FOUR, _MATRIX), "distances must be", error=TypeError),
            _refusal("a cohort of integers", (_D, _SAME), "cohort must", error=TypeError),
        ),
    ),
    *(
        Case(
            f"verification.as_norm{name}",
            verification.as_norm,
            Kind.MAP,
            cohorts(*sizes),
            options=({}, {"num_nearest": 3}),
            keeps_dtype=False,
            oracle=oracles.as_norm,
            refusals=(
                _refusal(
                    "second is too short",
                    (_D, _MATRIX, _MATRIX[:2]),
                    "second must have shape",
                ),
                _refusal(
                    "second has the rows of a matrix",
                    (jnp.ones((4, 5)), _MATRIX, _MATRIX),
                    r"second must have shape \(5, 3\)",
                ),
                _refusal(
                    "second is too small",
                    (_D, _MATRIX, _MATRIX[:, :2]),
                    "at most 2, the size of second",
                    {"num_nearest": 3},
                ),
            ),
        )
        for name, sizes in (
            ("", ((4,), (4, 9), (4, 7))),
            (" (matrix)", ((4, 5), (4, 9), (5, 7))),
        )
    ),
    Case(
        "verification.pool_templates",
        verification.pool_templates,
        Kind.MAP,
        images,
        options=({"num_templates": 3},),
        oracle=oracles.pool_templates,
        refusals=(
            _refusal("one embedding", (_D, FOUR), "embeddings must have 2 axes"),
            _refusal("too few templates", (_MATRIX, FOUR[:3]), "one for each embedding"),
            _refusal("templates", (_MATRIX, _D), "templates must be", error=TypeError),
            _refusal("integers", (_SAME, FOUR), "embeddings must be", error=TypeError),
            _refusal("none", (_MATRIX, FOUR), "num_templates must", {"num_templates": 0}),
            _refusal("few media", (_MATRIX, FOUR), "media must", {"media": FOUR[:2]}),
            _refusal("weights", (_MATRIX, FOUR), "weights must", {"weights": _D[:2]}),
            _refusal("a long mask", (_MATRIX, FOUR), "where must", {"where": _S[:2]}),
        ),
    ),
]
