"""Rows of the contract table for verification."""

from tests.cases.verification.costs import COSTS
from tests.cases.verification.pairs import PAIR_FIGURES
from tests.cases.verification.protocols import PROTOCOLS

VERIFICATION = [*PAIR_FIGURES, *COSTS, *PROTOCOLS]
