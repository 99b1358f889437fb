"""Rows of figures of pairs, at one threshold and over all thresholds."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import verification
from tests import oracles
from tests.cases.case import (
    FOUR,
    KEY,
    Case,
    Contract,
    Inputs,
    Kind,
    Refusal,
    entry_arrays,
    f32,
    key,
)


def pair_distances(rng):
    """Distances of same and of different pairs, with ties."""
    same = rng.random(40) < 0.5
    gaps = np.round(rng.normal(size=40) + np.where(same, 0, 1), 1)
    return f32(gaps - gaps.min()), jnp.asarray(same)


def weighted_pairs(rng):
    return Inputs(pair_distances(rng), entry_arrays(rng, 40))


_D, _S = jnp.ones(4), jnp.ones(4, bool)
PAIR_REFUSALS = (
    Refusal(
        "distances are a column",
        (_D[:, None], _S[:, None]),
        {},
        ValueError,
        "distances must have 1 axis",
    ),
    Refusal(
        "same is too short", (_D, _S[:3]), {}, ValueError, r"same must have shape \(4,\)"
    ),
    Refusal(
        "distances are boolean", (_S, _S), {}, TypeError, "distances must be a floating"
    ),
    Refusal("same is not boolean", (_D, _D), {}, TypeError, "same must be a boolean"),
    Refusal(
        "weights are too short",
        (_D, _S),
        {"weights": _D[:3]},
        ValueError,
        "weights must have shape",
    ),
    Refusal("where is too short", (_D, _S), {"where": _S[:3]}, ValueError, "where"),
)


def _bootstrap(key, distances, same, identities, **options):
    """The callable among the arguments is bound."""
    return verification.bootstrap_interval(
        key, verification.roc_auc, distances, same, identities, **options
    )


def _bootstrap_refusal(name, options, words, *, identities=FOUR, error=ValueError):
    return Refusal(name, (KEY, _D, _S, identities), options, error, words)


PAIR_FIGURES = [
    Case(
        "verification.decision_rates",
        verification.decision_rates,
        Kind.FIGURE,
        weighted_pairs,
        options=({"threshold": 1.0}, {"threshold": 1.3}),
        oracle=oracles.decision_rates,
        refusals=PAIR_REFUSALS,
    ),
    Case(
        "verification.roc_curve",
        verification.roc_curve,
        Kind.FIGURE,
        lambda rng: Inputs(pair_distances(rng)),
        oracle=oracles.roc_curve,
        refusals=PAIR_REFUSALS,
        exempt={Contract.MASK: "keeps one point for each entry, masked or not"},
    ),
    *(
        Case(
            f"verification.{fn.__name__}",
            fn,
            Kind.FIGURE,
            weighted_pairs,
            oracle=oracle,
            refusals=PAIR_REFUSALS,
        )
        for fn, oracle in (
            (verification.roc_auc, oracles.roc_auc),
            (verification.equal_error_rate, oracles.equal_error_rate),
            (verification.best_threshold, oracles.best_threshold),
            (verification.fit_logistic, oracles.fit_logistic),
        )
    ),
    Case(
        "verification.evaluate_threshold",
        verification.evaluate_threshold,
        Kind.FIGURE,
        lambda rng: Inputs((pair_distances(rng), pair_distances(rng))),
        oracle=oracles.evaluate_threshold,
        exempt={
            Contract.MASK: "takes no mask",
            Contract.REFUSALS: "refuses what best_threshold and decision_rates refuse",
        },
    ),
    Case(
        "verification.bootstrap_interval",
        _bootstrap,
        Kind.RANDOM,
        lambda rng: Inputs(
            (key(rng), *pair_distances(rng), jnp.asarray(rng.integers(6, size=(2, 40))))
        ),
        options=({"num_identities": 6, "num_samples": 20},),
        refusals=(
            _bootstrap_refusal(
                "one identity a pair", {}, r"identities must have shape \(2, 4\)"
            ),
            _bootstrap_refusal(
                "identities are numbers",
                {},
                "identities must be an integer",
                identities=jnp.ones((2, 4)),
                error=TypeError,
            ),
            _bootstrap_refusal("a level of 1", {"level": 1.0}, "level must be in"),
            _bootstrap_refusal("one identity", {"num_identities": 1}, "num_identities"),
            _bootstrap_refusal("one sample", {"num_samples": 1}, "num_samples"),
        ),
    ),
]
