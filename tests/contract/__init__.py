"""What the contracts promise, as checks that `tests/test_contract.py` runs over all rows.

`losses` has the checks of losses, whose options and samples share compiled programs.
`functions` has those of all other functions. Each of them has `trials(case, contract)`,
which yields the name of a trial, its check, and the arguments of the check.
"""

import contextlib
from collections.abc import Iterator

from jaxtyping import config as jaxtyping_config


@contextlib.contextmanager
def as_for_a_user() -> Iterator[None]:
    """Without the checks of shapes that only tests have."""
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)
