"""A table with one row for each public function, which the contract tests run over.

Every new function needs a row. `test_api.py` fails if the row is missing. The row of a loss
has its name, its kind, a function that makes its inputs, its reference implementation, and
the options to test. `test_contract.py` then checks every contract of this kind.
"""

from tests.cases.augment import AUGMENT
from tests.cases.case import Case, Contract, Kind, Reach
from tests.cases.convolution import CONVOLUTION
from tests.cases.distances import DISTANCES
from tests.cases.encoders import ENCODERS
from tests.cases.episodes import EPISODES
from tests.cases.health import HEALTH
from tests.cases.losses import LOSSES
from tests.cases.memory import MEMORY
from tests.cases.miners import MINERS
from tests.cases.regularizers import REGULARIZERS
from tests.cases.relations import REDUCTIONS, RELATIONS
from tests.cases.retrieval import RETRIEVAL
from tests.cases.samplers import SAMPLERS
from tests.cases.sharding import SHARDING
from tests.cases.siamese import SIAMESE
from tests.cases.tiling import TILING
from tests.cases.training import TRAINING
from tests.cases.verification import VERIFICATION

CASES = [
    *DISTANCES,
    *LOSSES,
    *MINERS,
    *REGULARIZERS,
    *RELATIONS,
    *REDUCTIONS,
    *SHARDING,
    *SIAMESE,
    *AUGMENT,
    *CONVOLUTION,
    *ENCODERS,
    *SAMPLERS,
    *TILING,
    *TRAINING,
    *MEMORY,
    *EPISODES,
    *VERIFICATION,
    *RETRIEVAL,
    *HEALTH,
]

__all__ = ["CASES", "Case", "Contract", "Kind", "Reach"]
