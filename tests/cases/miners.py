"""Rows of the contract table for miners."""

from functools import partial

from siamese_jax import miners
from tests import oracles
from tests.cases.case import KEY, Case, Inputs, Kind, Refusal, key
from tests.cases.losses.inputs import (
    OF_A_NEGATIVE,
    ZEROS,
    margin_refusals,
    matrix_refusals,
    square,
    too_small,
)


def _without_options(refusals):
    """The same calls of a function whose mask is its third argument."""
    return tuple(
        refusal._replace(args=(*refusal.args, refusal.options.get("where")), options={})
        for refusal in refusals
    )


def _with_mask(rng):
    args, arrays = square(rng)
    return Inputs((*args, arrays["where"]))


def _with_key(rng):
    args, arrays = square(rng, form="unit distances", weights=None)
    return Inputs((key(rng), *args), arrays)


def _mask(name, *, form="distances", margins=(), more=(), **row):
    numbers = "similarities" if form == "cosines" else "distances"
    refusals = (*matrix_refusals(numbers), *margin_refusals(ZEROS, margins), *more)
    return Case(
        f"miners.{name}",
        getattr(miners, name),
        Kind.DECISION,
        partial(square, form=form, weights=None),
        oracle=getattr(oracles, name),
        refusals=refusals,
        **row,
    )


_MATRIX, _SAME = ZEROS

MINERS = [
    Case(
        "miners.sides",
        partial(miners.sides, name="scores"),
        Kind.RELATION,
        _with_mask,
        oracle=oracles.sides,
        refusals=_without_options(matrix_refusals("scores")),
    ),
    *(
        Case(
            f"miners.{fn.__name__}",
            fn,
            Kind.MINER,
            partial(square, weights=None),
            oracle=oracle,
            refusals=matrix_refusals(),
            nan_at=OF_A_NEGATIVE,
        )
        for fn, oracle in (
            (miners.hard_negatives, oracles.hard_negatives),
            (miners.semi_hard_negatives, oracles.semi_hard_negatives),
        )
    ),
    Case(
        "miners.angular_negatives",
        miners.angular_negatives,
        Kind.MINER,
        partial(square, weights=None, mask="items"),
        options=({}, {"angle": 45.0}),
        oracle=oracles.angular_negatives,
        refusals=(
            *matrix_refusals(),
            Refusal(
                "distances are not square",
                (_MATRIX[:3], _SAME[:3]),
                {},
                ValueError,
                "distances must be the matrix of a batch with itself",
            ),
        ),
        nan_at=OF_A_NEGATIVE,
    ),
    Case(
        "miners.mine_triplets",
        miners.mine_triplets,
        Kind.MINER,
        partial(square, weights=None),
        options=(
            {"positive": "easy", "negative": "semi-hard"},
            {},
            {"positive": "semi-hard"},
            {"positive": "hard", "negative": "easy"},
            {"positive_range": (1.0, 2.5), "negative_range": (1.5, 3.0)},
        ),
        oracle=oracles.mine_triplets,
        refusals=(
            *matrix_refusals(),
            Refusal(
                "there is no such choice",
                ZEROS,
                {"positive": "medium"},
                ValueError,
                "positive must be one of easy, semi-hard, hard; got medium",
            ),
            Refusal(
                "both are semi-hard",
                ZEROS,
                {"positive": "semi-hard", "negative": "semi-hard"},
                ValueError,
                "must not both be semi-hard",
            ),
            Refusal(
                "a range is empty",
                ZEROS,
                {"negative_range": (2.0, 1.0)},
                ValueError,
                "negative_range must be .smallest, largest.; got .2.0, 1.0.",
            ),
        ),
        nan_at=OF_A_NEGATIVE,
    ),
    _mask(
        "pair_margin_mask",
        options=({}, {"positive_margin": 1.5, "negative_margin": 2.0}),
        margins=("positive_margin", "negative_margin"),
    ),
    _mask(
        "multi_similarity_mask",
        form="cosines",
        options=({}, {"margin": -0.3}),
        margins=("margin",),
    ),
    _mask(
        "nearest_mask",
        options=({"num_positives": 1, "num_negatives": 2}, {}, {"num_negatives": 1}),
        more=(too_small(ZEROS, "num_positives", 0),),
    ),
    _mask(
        "hardest_share_mask",
        options=({}, {"share": 0.21}, {"share": 1.0}),
        more=(
            Refusal(
                "no share", ZEROS, {"share": 0.0}, ValueError, "share must be in .0, 1."
            ),
        ),
    ),
    _mask(
        "false_negative_mask",
        options=({}, {"margin": 0.5}, {"margin": -0.5}),
        margins=("margin",),
    ),
    Case(
        "miners.distance_weighted_negatives",
        miners.distance_weighted_negatives,
        Kind.RANDOM,
        _with_key,
        options=({"dim": 8},),
        refusals=(
            Refusal(
                "one dimension",
                (KEY, *ZEROS),
                {"dim": 1},
                ValueError,
                "dim must be at least 2; got 1",
            ),
        ),
    ),
    Case(
        "miners.uniform_histogram_weights",
        miners.uniform_histogram_weights,
        Kind.RANDOM,
        _with_key,
        options=({"num_bins": 5},),
        refusals=(too_small((KEY, *ZEROS), "num_bins", 0),),
    ),
]
