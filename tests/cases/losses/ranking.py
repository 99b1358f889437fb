"""Rows of the losses that stand for figures of retrieval."""

from tests import oracles
from tests.cases.case import Reach, Refusal
from tests.cases.losses.inputs import ZEROS, too_small
from tests.cases.losses.tuples import matrix_loss

RANKING = [
    matrix_loss(
        "nca_loss",
        form="distances",
        options=({}, {"temperature": 0.5}),
        oracle=oracles.nca,
        scalars=("temperature",),
        reach=Reach.ROW,
    ),
    matrix_loss(
        "fast_ap_loss",
        form="distances",
        options=({}, {"num_bins": 5, "max_distance": 2.5}),
        oracle=oracles.fast_ap,
        more=(too_small(ZEROS, "num_bins", 0),),
        reach=Reach.ROW,
    ),
    matrix_loss(
        "smooth_ap_loss",
        form="cosines",
        options=({}, {"temperature": 0.3}),
        oracle=oracles.smooth_ap,
        scalars=("temperature",),
        reach=Reach.ROW,
    ),
    matrix_loss(
        "pnp_loss",
        form="cosines",
        options=(
            {},
            {"growth": "log", "temperature": 0.3},
            {"growth": "x log x", "temperature": 0.3},
            {"growth": "saturating", "temperature": 0.3, "slope": 1.5},
            {"growth": "bounded", "temperature": 0.3, "power": 0.7},
        ),
        oracle=oracles.pnp,
        scalars=("temperature",),
        more=(
            Refusal(
                "there is no such growth",
                ZEROS,
                {"growth": "square"},
                ValueError,
                "growth must be one of linear, log, x log x, saturating, bounded; "
                "got square",
            ),
        ),
        reach=Reach.ROW,
    ),
    matrix_loss(
        "recall_loss",
        form="cosines",
        options=({}, {"num_retrieved": 2, "rank_temperature": 0.5, "temperature": 0.3}),
        oracle=oracles.recall,
        scalars=("temperature", "rank_temperature"),
        more=(too_small(ZEROS, "num_retrieved", 0),),
        reach=Reach.ROW,
    ),
]
