"""Reference implementations, written from the papers as plain loops in float64.

They share no code with the library and use neither JAX, nor matrices, nor masks.
"""

# ruff: noqa: F403

from tests.oracles.distances import *
from tests.oracles.health import *
from tests.oracles.images import *
from tests.oracles.miners import *
from tests.oracles.pairs import *
from tests.oracles.proxies import *
from tests.oracles.ranking import *
from tests.oracles.regularizers import *
from tests.oracles.retrieval import *
from tests.oracles.sets import *
from tests.oracles.softmax import *
from tests.oracles.terms import *
from tests.oracles.triplets import *
from tests.oracles.tuples import *
from tests.oracles.verification import *
from tests.oracles.views import *
