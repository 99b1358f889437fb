"""Rows of the contract table for losses, by family."""

from tests.cases.losses.matrices import COMBINED
from tests.cases.losses.pairs import PAIRS
from tests.cases.losses.proxies import PROXIES
from tests.cases.losses.ranking import RANKING
from tests.cases.losses.softmax import SOFTMAX
from tests.cases.losses.triplets import TRIPLETS
from tests.cases.losses.tuples import TUPLES
from tests.cases.losses.views import VIEWS

LOSSES = [
    *PAIRS,
    *TRIPLETS,
    *TUPLES,
    *RANKING,
    *SOFTMAX,
    *PROXIES,
    *VIEWS,
    *COMBINED,
]
