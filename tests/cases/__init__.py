"""One row for each public function: what the contract tests need to know of it.

A new function needs one row here; `test_api.py` fails until it has one. For a new loss the
row is its name, its kind, how its inputs are made, its oracle, and every option worth a
value. It is then under every contract of its kind.
"""

from tests.cases.augment import AUGMENT
from tests.cases.case import Case, Contract, Kind
from tests.cases.convolution import CONVOLUTION
from tests.cases.distances import DISTANCES
from tests.cases.encoders import ENCODERS
from tests.cases.episodes import EPISODES
from tests.cases.losses import LOSSES, MINERS
from tests.cases.relations import REDUCTIONS, RELATIONS
from tests.cases.samplers import SAMPLERS
from tests.cases.siamese import SIAMESE
from tests.cases.training import TRAINING
from tests.cases.verification import VERIFICATION

CASES = [
    *DISTANCES,
    *LOSSES,
    *MINERS,
    *RELATIONS,
    *REDUCTIONS,
    *SIAMESE,
    *AUGMENT,
    *CONVOLUTION,
    *ENCODERS,
    *SAMPLERS,
    *TRAINING,
    *EPISODES,
    *VERIFICATION,
]

__all__ = ["CASES", "Case", "Contract", "Kind"]
