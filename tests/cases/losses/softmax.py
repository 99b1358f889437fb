"""Rows of the losses that are cross-entropies over the rows of a matrix."""

from tests import oracles
from tests.cases.case import Reach
from tests.cases.losses.tuples import matrix_loss

SOFTMAX = [
    matrix_loss(
        "supervised_contrastive_loss",
        form="cosines",
        options=({}, {"temperature": 0.5}, {"temperature": 0.3, "inside": True}),
        oracle=oracles.supervised_contrastive,
        scalars=("temperature",),
        reach=Reach.ROW,
    ),
    matrix_loss(
        "info_nce_loss",
        form="cosines",
        weights="entry",
        options=({}, {"temperature": 0.5}),
        oracle=oracles.info_nce,
        scalars=("temperature",),
        reach=Reach.ROW,
    ),
    matrix_loss(
        "decoupled_contrastive_loss",
        form="cosines",
        weights="entry",
        options=({}, {"temperature": 0.5}),
        oracle=oracles.decoupled_contrastive,
        scalars=("temperature",),
        reach=Reach.ROW,
    ),
    matrix_loss(
        "hard_negative_contrastive_loss",
        form="cosines",
        weights="entry",
        options=(
            {},
            {"temperature": 0.3, "concentration": 0.5, "positive_share": 0.02},
            {"concentration": 0.0, "positive_share": 0.4},  # some at the lower bound
        ),
        oracle=oracles.hard_negative_contrastive,
        scalars=("temperature", "concentration", "positive_share"),
        reach=Reach.ROW,
    ),
    matrix_loss(
        "matching_loss",
        form="cosines",
        options=({}, {"temperature": 0.2}),
        oracle=oracles.matching,
        scalars=("temperature",),
        reach=Reach.ROW,
    ),
    matrix_loss(
        "sigmoid_pair_loss",
        form="cosines",
        options=({}, {"scale": 3.0, "bias": -1.0}),
        oracle=oracles.sigmoid_pair,
        scalars=("scale", "bias"),
        reach=Reach.ROW,
        counts_without_positive="each entry is decided by itself",
    ),
]
