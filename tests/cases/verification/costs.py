"""Rows of operating points, detection costs and reliability."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import verification
from tests import oracles
from tests.cases.case import Case, Contract, Inputs, Kind, Refusal, entry_arrays, f32
from tests.cases.verification.pairs import PAIR_REFUSALS, pair_distances, weighted_pairs

_FOUR, _SAME = jnp.ones(4), jnp.ones(4, bool)


def _refusal(name, options, words):
    return Refusal(name, (_FOUR, _SAME), options, ValueError, words)


def _of_ratios(refusals):
    return tuple(
        x._replace(words=x.words.replace("distances", "log_ratios")) for x in refusals
    )


def _of_probabilities(refusals):
    return tuple(
        x._replace(words=x.words.replace("distances", "probabilities")) for x in refusals
    )


def log_ratios(rng):
    distances, same = pair_distances(rng)
    return Inputs((1.05 - distances, same), entry_arrays(rng, 40))


def probabilities(rng):
    same = rng.random(40) < 0.5
    values = np.clip(rng.normal(size=40) / 4 + np.where(same, 0.7, 0.3), 0, 1)
    sixty_fourths = f32(np.round(values * 64) / 64)  # with ties
    return Inputs((sixty_fourths, jnp.asarray(same)), entry_arrays(rng, 40))


_COST_REFUSALS = (
    _refusal("a certain target", {"p_target": 1.0}, r"p_target must be in \(0, 1\); got 1"),
    _refusal("misses are free", {"c_miss": 0.0}, "c_miss must be positive"),
    _refusal("false alarms are priceless", {"c_fa": float("inf")}, "c_fa must be positive"),
)
_COST_OPTIONS = ({}, {"p_target": 0.3, "c_miss": 2.0, "c_fa": 3.0})
_BIN_OPTIONS = ({"num_bins": 8}, {"num_bins": 5, "equal_mass": True})
_BIN_REFUSALS = (
    *_of_probabilities(PAIR_REFUSALS),
    _refusal("no bins", {"num_bins": 0}, "num_bins must be at least 1"),
)

COSTS = [
    Case(
        "verification.operating_points",
        verification.operating_points,
        Kind.FIGURE,
        weighted_pairs,
        options=({"false_match_rates": [0.0, 0.1, 0.5, 0.95]},),
        oracle=oracles.operating_points,
        refusals=(
            *PAIR_REFUSALS,
            _refusal("a rate of 1", {"false_match_rates": [1.0]}, r"rates in \[0, 1\)"),
            _refusal("a rate of NaN", {"false_match_rates": [np.nan]}, "false_match_rates"),
            _refusal("no rates", {"false_match_rates": []}, "must be a list of rates"),
        ),
    ),
    Case(
        "verification.det_curve",
        verification.det_curve,
        Kind.FIGURE,
        lambda rng: Inputs(pair_distances(rng)),
        oracle=oracles.det_curve,
        refusals=PAIR_REFUSALS,
        exempt={Contract.MASK: "keeps one point for each entry, masked or not"},
    ),
    Case(
        "verification.min_dcf",
        verification.min_dcf,
        Kind.FIGURE,
        weighted_pairs,
        options=_COST_OPTIONS,
        oracle=oracles.min_dcf,
        refusals=(*PAIR_REFUSALS, *_COST_REFUSALS),
    ),
    Case(
        "verification.actual_dcf",
        verification.actual_dcf,
        Kind.FIGURE,
        log_ratios,
        options=_COST_OPTIONS,
        oracle=oracles.actual_dcf,
        refusals=(*_of_ratios(PAIR_REFUSALS), *_COST_REFUSALS),
    ),
    Case(
        "verification.cllr",
        verification.cllr,
        Kind.FIGURE,
        log_ratios,
        oracle=oracles.cllr,
        refusals=_of_ratios(PAIR_REFUSALS),
    ),
    Case(
        "verification.min_cllr",
        verification.min_cllr,
        Kind.FIGURE,
        weighted_pairs,
        oracle=oracles.min_cllr,
        refusals=PAIR_REFUSALS,
    ),
    *(
        Case(
            f"verification.{fn.__name__}",
            fn,
            Kind.FIGURE,
            probabilities,
            options=_BIN_OPTIONS,
            oracle=oracle,
            refusals=_BIN_REFUSALS,
        )
        for fn, oracle in (
            (verification.calibration_curve, oracles.calibration_curve),
            (verification.expected_calibration_error, oracles.expected_calibration_error),
        )
    ),
]
