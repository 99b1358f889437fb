"""Tests of the contracts, each over all functions in `tests/cases` that it applies to.

A check takes a `Variant` of a row (one of its options, with or without a mask and weights)
and, for some contracts, also a seed, a dtype or an invalid input. `TRIALS` lists the trials
of each contract. A trial and its test have the same name:

    pytest tests/test_contract.py -k "contrastive_loss and VALUE"
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config

from siamese_jax import distances, relations
from siamese_jax.reductions import mean_and_count, sum_terms
from tests.cases import CASES, Case, Contract, Kind


class Variant(NamedTuple):
    """A row with one of its options, and with or without its array keywords."""

    case: Case
    number: int = 0
    with_arrays: bool = False

    @property
    def name(self) -> str:
        return f"{self.number}{'-masked' * self.with_arrays}"

    @property
    def options(self) -> dict[str, Any]:
        return self.case.options[self.number]

    def inputs(self, seed: int) -> tuple:
        args, arrays = self.case.inputs(np.random.default_rng(seed))
        return tuple(args), dict(arrays) if self.with_arrays else {}

    def call(self, args, arrays):
        return self.case.fn(*args, **arrays, **self.options)


def by_options(case: Case) -> list[Variant]:
    return [Variant(case, number) for number in range(len(case.options))]


def with_masked(case: Case) -> list[Variant]:
    has_arrays = bool(case.inputs(np.random.default_rng(0)).arrays)
    return by_options(case) + [Variant(case, 0, True)] * has_arrays


# Tools ---------------------------------------------------------------------------------


class Compiled:
    """A variant under `jit`, which counts how often it is traced."""

    def __init__(self, variant: Variant):
        self.num_traces = 0
        self.variant = variant
        self.call = jax.jit(self._traced)

    def _traced(self, args, arrays):
        self.num_traces += 1
        return self.variant.call(args, arrays)


# the trials of one row follow one another and share its programs
@functools.lru_cache(maxsize=8)
def compiled(variant: Variant) -> Compiled:
    return Compiled(variant)


def assert_trees_close(found, wanted, rtol=1e-5, atol=1e-6):
    found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.shape(a) == np.shape(b)
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=atol
        )


def is_float(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def float_leaves(tree) -> list:
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def replace_floats(tree, new: list):
    """The tree with other floating-point leaves."""
    leaves, structure = jax.tree.flatten(tree)
    numbers = iter(new)
    return structure.unflatten(next(numbers) if is_float(x) else x for x in leaves)


def map_floats(fn: Callable, tree):
    return replace_floats(tree, [fn(leaf) for leaf in float_leaves(tree)])


def take(case: Case, args, rows):
    """These rows of a batch; of a batch against itself also these columns."""
    args = jax.tree.map(lambda array: array[rows], args)
    if case.kind is Kind.MATRIX_LOSS:
        args = jax.tree.map(lambda array: array[:, rows], args)
    return args


# Checks --------------------------------------------------------------------------------


def check_value(variant: Variant, seed: int):
    args, arrays = variant.inputs(seed)
    found = compiled(variant).call(args, arrays)
    wanted = variant.case.oracle(*args, **arrays, **variant.options)
    assert_trees_close(found, wanted, rtol=2e-5, atol=3e-6)


def check_jit_vmap(variant: Variant):
    samples = [variant.inputs(seed) for seed in (0, 1)]
    fn = compiled(variant)
    first = fn.call(*samples[0])
    num_traces = fn.num_traces
    results = [first, fn.call(*samples[1])]
    assert fn.num_traces == num_traces
    assert_trees_close(results[0], variant.call(*samples[0]))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *samples)
    mapped = jax.jit(jax.vmap(variant.call))(*stacked)
    for number, result in enumerate(results):
        assert_trees_close(jax.tree.map(lambda leaf, i=number: leaf[i], mapped), result)


def check_gradient(variant: Variant):
    with jax.enable_x64(True):
        inputs = map_floats(lambda x: x.astype(jnp.float64), variant.inputs(0))
        rng = np.random.default_rng(7)
        moved = float_leaves(inputs)
        direction = [jnp.asarray(rng.normal(size=x.shape)) for x in moved]
        shapes = jax.eval_shape(lambda: variant.call(*inputs))
        weights = [rng.normal(size=leaf.shape) for leaf in float_leaves(shapes)]

        @jax.jit
        @jax.value_and_grad
        def scalar(moved):
            leaves = float_leaves(variant.call(*replace_floats(inputs, moved)))
            return sum(jnp.sum(w * leaf) for w, leaf in zip(weights, leaves, strict=True))

        _, gradients = scalar(moved)
        slope = sum(jnp.sum(g * v) for g, v in zip(gradients, direction, strict=True))
        step = 1e-6
        (ahead, _), (behind, _) = (
            scalar([x + sign * step * v for x, v in zip(moved, direction, strict=True)])
            for sign in (1, -1)
        )
        assert float(jnp.abs(slope)) > 1e-6
        np.testing.assert_allclose(
            slope, (ahead - behind) / (2 * step), rtol=2e-6, atol=1e-8
        )


def check_singular(variant: Variant):
    args, learning_rows = variant.case.singular

    @jax.jit
    @jax.value_and_grad
    def scalar(moved):
        out = variant.call(replace_floats(args, moved), {})
        return jnp.sum(out * jnp.arange(1.0, out.size + 1).reshape(out.shape))

    value, gradients = scalar(float_leaves(args))
    assert np.isfinite(value)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
    for row in learning_rows:
        assert np.abs(gradients[0][row]).sum() > 0


def check_mask(variant: Variant):
    case = variant.case
    args, _ = variant.inputs(3)
    keep = np.arange(len(args[0])) % 3 != 1
    where = keep[:, None] & keep[None, :] if args[0].ndim == 2 else keep
    kept = take(case, args, keep)

    def value(numbers, others, **arrays):
        return variant.call((numbers, *others), arrays)

    if Contract.GRADIENT not in case.kind.contracts:
        found = value(args[0], args[1:], where=jnp.asarray(where))
        assert_trees_close(found, value(kept[0], kept[1:]), rtol=1e-6, atol=1e-7)
        return
    value_and_grad = jax.jit(jax.value_and_grad(value))
    found, gradient = value_and_grad(args[0], args[1:], where=jnp.asarray(where))
    wanted, wanted_gradient = value_and_grad(kept[0], kept[1:])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not np.asarray(gradient)[~where].any()
    np.testing.assert_allclose(
        np.asarray(gradient)[where], np.ravel(wanted_gradient), rtol=1e-5, atol=1e-7
    )


def check_order(variant: Variant):
    args, arrays = variant.inputs(4)
    num_rows = len(jax.tree.leaves(args)[0])
    order = np.random.default_rng(5).permutation(num_rows)
    fn = compiled(variant).call
    shuffled = fn(take(variant.case, args, order), arrays)
    assert_trees_close(fn(args, arrays), shuffled, rtol=1e-6, atol=1e-7)


# labels and validity of batches with nothing, or little, to learn from
DEGENERATE = {
    "one class": ([0] * 6, [1] * 6),
    "all different": (range(6), [1] * 6),
    "one pair": ([0, 0, 1, 2, 3, 4], [1] * 6),
    "one row": ([0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0]),
    "nothing": ([0, 0, 0, 1, 1, 1], [0] * 6),
    "padding": ([0, 0, 1, 1, 9, 9], [1, 1, 1, 1, 0, 0]),
    "ordinary": ([0, 0, 0, 1, 1, 1], [1] * 6),
}
# two coinciding points, and a zero vector
POINTS = [[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [3.0, 1.0], [-1.0, 0.5], [2.0, 2.0]]


def check_degenerate(variant: Variant, dtype):
    labels, valid = (jnp.asarray(list(x)) for x in zip(*DEGENERATE.values(), strict=True))

    @jax.jit
    @jax.vmap
    def batch_loss(labels, valid):
        def loss(points):
            items = relations.Items(labels, valid=valid > 0)
            same, where = relations.within(items)
            matrix = distances.euclidean_distance_matrix(points, points)
            arrays = {"where": where, "reduce_fn": mean_and_count}
            return variant.call((matrix, same), arrays)

        return jax.value_and_grad(loss, has_aux=True)(jnp.asarray(POINTS, dtype))

    (values, counts), gradients = batch_loss(labels, valid)
    assert values.dtype == jnp.float32
    assert gradients.dtype == dtype
    for name, value, count, gradient in zip(
        DEGENERATE, values, counts, gradients, strict=True
    ):
        assert np.isfinite(value.astype(jnp.float32)), name
        assert np.isfinite(gradient.astype(jnp.float32)).all(), name
        if count == 0:
            assert value == 0, name
            assert not gradient.any(), name
    by_name = dict(zip(DEGENERATE, counts.tolist(), strict=True))
    assert by_name["nothing"] == by_name["one row"] == 0
    assert by_name["ordinary"] > 0
    if variant.case.kind is Kind.MATRIX_LOSS:
        assert by_name["all different"] == 0  # no positive
        assert 0 < by_name["one pair"] <= 2


def check_half(variant: Variant, dtype):
    case = variant.case
    args, _ = variant.inputs(6)
    keeps_dtype = case.result_keeps_dtype
    # float16 ends at 65504, which results beyond the inputs would pass
    scale = 1.0 if keeps_dtype and dtype == jnp.float16 else 1e4
    half = map_floats(lambda x: (scale * x).astype(dtype), args)
    exact = map_floats(lambda x: x.astype(jnp.float32), half)
    options = case.options + (() if scale == 1.0 else case.large_options)
    fn = jax.jit(lambda args: [case.fn(*args, **kw) for kw in options])
    found, wanted = map(float_leaves, (fn(half), fn(exact)))
    for leaf in found:
        assert leaf.dtype == (dtype if keeps_dtype else jnp.float32)
        assert np.isfinite(leaf.astype(jnp.float32)).all()
    rounding = float(jnp.finfo(dtype).eps) if keeps_dtype else 1e-6
    for a, b in zip(found, wanted, strict=True):
        largest = np.abs(b).max(initial=1)
        assert_trees_close(a, b, rtol=8 * rounding, atol=8 * rounding * largest)
    if Contract.DEGENERATE in case.contracts:
        check_half_embeddings(variant, dtype)


def check_half_embeddings(variant: Variant, dtype):
    """Far apart in many dimensions: squares and sums leave the range of float16."""
    points = 16 * np.random.default_rng(1).normal(size=(4, 512))
    half = jnp.asarray(points, dtype)
    same, where = relations.within(relations.Items(jnp.array([0, 0, 1, 1])))

    @jax.jit
    @jax.value_and_grad
    def loss(points):
        matrix = distances.euclidean_distance_matrix(points, points)
        return variant.call((matrix, same), {"where": where})

    found, gradient = loss(half)
    wanted, wanted_gradient = loss(half.astype(jnp.float32))
    assert found.dtype == jnp.float32
    assert np.isfinite(found)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert gradient.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    assert_trees_close(gradient, wanted_gradient, rtol=eps, atol=eps)


def check_nan(variant: Variant):
    args, arrays = variant.inputs(8)
    first, *others = float_leaves(args)
    place = (0,) * first.ndim if variant.case.nan_at is None else variant.case.nan_at
    args = replace_floats(args, [first.at[place].set(jnp.nan), *others])
    leaves = float_leaves(compiled(variant).call(args, arrays))
    assert any(np.isnan(leaf).any() for leaf in leaves)


def check_terms(variant: Variant):
    args, arrays = variant.inputs(9)
    terms = variant.call(args, arrays | {"reduce_fn": None})
    whole = variant.call(args, arrays | {"reduce_fn": sum_terms})
    np.testing.assert_allclose(jnp.sum(terms.values * terms.weights), whole, rtol=1e-5)
    assert not terms.values[~terms.where].any()
    assert not terms.weights[~terms.where].any()


def check_refusal(variant: Variant, refusal):
    options = variant.options | refusal.options
    jaxtyping_config.update("jaxtyping_disable", True)  # as for a user
    try:
        with pytest.raises(refusal.error, match=refusal.words):
            jax.eval_shape(lambda: variant.case.fn(*refusal.args, **options))
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


# Trials: what each check is called with, by name ----------------------------------------

Trials = Iterator[tuple[str, tuple]]


def each(variants: Callable[[Case], list[Variant]], extras: dict[str, Any]):
    """Every variant of a row with every extra argument."""

    def trials(case: Case) -> Trials:
        for variant in variants(case):
            for name, extra in extras.items():
                yield f"{variant.name}-{name}", (variant, extra)

    return trials


def alone(variants: Callable[[Case], list[Variant]]):
    """Every variant of a row."""
    return lambda case: ((variant.name, (variant,)) for variant in variants(case))


def once(case: Case) -> list[Variant]:
    return [Variant(case)]


def last(case: Case) -> list[Variant]:
    """With the mask and the weights, if it takes them."""
    return with_masked(case)[-1:]


def refusals(case: Case) -> Trials:
    for refusal in case.refusals:
        yield refusal.name, (Variant(case), refusal)


SEEDS = {"seed 0": 0, "seed 1": 1}
DTYPES = {"float16": jnp.float16, "bfloat16": jnp.bfloat16, "float32": jnp.float32}
WIDE = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}  # with the exponents of float32

TRIALS: dict[Contract, tuple[Callable[..., None], Callable[[Case], Trials]]] = {
    Contract.VALUE: (check_value, each(with_masked, SEEDS)),
    Contract.JIT_VMAP: (check_jit_vmap, alone(with_masked)),
    Contract.ORDER: (check_order, alone(once)),
    Contract.NAN: (check_nan, alone(by_options)),
    Contract.HALF: (check_half, each(once, DTYPES)),
    Contract.GRADIENT: (check_gradient, alone(with_masked)),
    Contract.SINGULAR: (check_singular, alone(by_options)),
    Contract.MASK: (check_mask, alone(by_options)),
    Contract.DEGENERATE: (check_degenerate, each(once, WIDE)),
    Contract.TERMS: (check_terms, alone(last)),
    Contract.REFUSALS: (check_refusal, refusals),
}

# what `pytest -m quick` tries of every function
QUICK = {Contract.VALUE, Contract.NAN, Contract.ORDER, Contract.TERMS, Contract.REFUSALS}


def all_trials() -> Iterator[Any]:
    """Row after row, so that the trials of one row share what is compiled."""
    for case in CASES:
        for contract, (check, trials) in TRIALS.items():
            if contract in case.contracts:
                marks = [] if contract in QUICK else [pytest.mark.slow]
                for name, args in trials(case):
                    label = f"{case.name}-{contract.name}-{name}"
                    yield pytest.param(check, args, id=label, marks=marks)


@pytest.mark.parametrize(("check", "args"), list(all_trials()))
def test_contract(check, args):
    check(*args)


# The table -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_row_has_what_its_contracts_need(case):
    assert set(TRIALS) == set(Contract)
    assert (case.oracle is not None) or Contract.VALUE not in case.contracts
    assert (case.singular is not None) or Contract.SINGULAR not in case.contracts
    assert bool(case.refusals) == (Contract.REFUSALS in case.contracts)
    names = [refusal.name for refusal in case.refusals]
    assert len(names) == len(set(names))


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
    check, trials = TRIALS[contract]

    def holds(args) -> bool:
        try:
            check(*args)
        except Exception:
            return False
        return True

    outcomes = [holds(args) for _, args in trials(case)]
    assert not outcomes or not all(outcomes), "it keeps the contract"


def test_the_names_of_the_labels_do_not_matter():
    labels = jnp.array([0, 0, 1, 2, 2])
    renamed = jnp.array([7, 3, 5])[labels]
    for a, b in zip(
        relations.within(relations.Items(labels)),
        relations.within(relations.Items(renamed)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
