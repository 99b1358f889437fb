"""Tests of the contracts, each over all functions in `tests/cases` that it applies to.

The checks of losses are in `tests/contract/losses.py`, those of other functions in
`tests/contract/functions.py`. The names of the trials tell the function, the contract, the
check and the number of the option:

    pytest tests/test_contract.py -k "contrastive_loss and VALUE"
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siamese_jax import relations
from tests.cases import CASES, Case, Contract
from tests.cases.case import Refusal
from tests.contract import as_for_a_user, functions, losses

# what `pytest -m quick` tries of every function
QUICK = {Contract.VALUE, Contract.NAN, Contract.ORDER, Contract.TERMS, Contract.REFUSALS}

Trial = tuple[str, Callable[..., None], tuple]


def check_refusal(case: Case, refusal: Refusal):
    options = case.options[0] | refusal.options
    with as_for_a_user(), pytest.raises(refusal.error, match=refusal.words):
        jax.eval_shape(lambda: case.fn(*refusal.args, **options))


def trials(case: Case, contract: Contract) -> Iterator[Trial]:
    if contract is Contract.REFUSALS:
        return ((x.name, check_refusal, (case, x)) for x in case.refusals)
    return (losses if case.kind.is_loss else functions).trials(case, contract)


def all_trials() -> Iterator:
    """Row after row, so that the trials of one row share what is compiled."""
    for case in CASES:
        for contract in Contract:
            if contract in case.contracts:
                marks = [] if contract in QUICK else [pytest.mark.slow]
                for name, check, args in trials(case, contract):
                    label = f"{case.name}-{contract.name}-{name}"
                    yield pytest.param(check, args, id=label, marks=marks)


@pytest.mark.parametrize(("check", "args"), list(all_trials()))
def test_contract(check, args):
    check(*args)


# The table -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_row_has_what_its_contracts_need(case):
    assert (case.oracle is not None) or Contract.VALUE not in case.contracts
    assert (case.singular is not None) or Contract.SINGULAR not in case.contracts
    assert bool(case.refusals) == (Contract.REFUSALS in case.contracts)
    names = [refusal.name for refusal in case.refusals]
    assert len(names) == len(set(names))


def test_every_contract_of_a_row_is_tried():
    for case in CASES:
        for contract in case.contracts:
            assert list(trials(case, contract)), (case.name, contract)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "contract"),
    [
        pytest.param(case, contract, id=f"{case.name}-{contract.name}")
        for case in CASES
        for contract in case.exempt
    ],
)
def test_an_exemption_is_needed(case, contract):
    assert contract in case.kind.contracts, "its kind is not under this contract"
    assert case.exempt[contract].strip()

    def holds(check, args) -> bool:
        try:
            check(*args)
        except Exception:
            return False
        return True

    outcomes = [holds(check, args) for _, check, args in trials(case, contract)]
    assert not outcomes or not all(outcomes), "it keeps the contract"


def test_the_names_of_the_labels_do_not_matter():
    labels = np.array([0, 0, 1, 2, 2])
    renamed = np.array([7, 3, 5])[labels]
    for a, b in zip(
        relations.within(relations.Items(jnp.asarray(labels))),
        relations.within(relations.Items(jnp.asarray(renamed))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
