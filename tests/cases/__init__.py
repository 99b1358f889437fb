"""One row for each public function: what the contract tests need to know of it.

A new function needs one row here; `test_api.py` fails until it has one. For a new loss the
row is its name, how its arguments are made, its oracle, and every option worth a value.
"""

from tests.cases.distances import DISTANCES
from tests.cases.evaluation import EPISODES, TRAINING, VERIFICATION
from tests.cases.losses import LOSSES, MINERS
from tests.cases.models import MODELS
from tests.cases.relations import REDUCTIONS, RELATIONS
from tests.cases.samplers import SAMPLERS

CASES = [
    *DISTANCES,
    *LOSSES,
    *MINERS,
    *RELATIONS,
    *REDUCTIONS,
    *MODELS,
    *SAMPLERS,
    *TRAINING,
    *EPISODES,
    *VERIFICATION,
]
