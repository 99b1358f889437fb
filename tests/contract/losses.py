"""Checks of losses.

A loss has options that may be learnt (`Scalar` and `Margin` in its signature), which enter
its programs as arrays, and other options, each choice of which has programs of its own:

* `forward`, the terms and their mean, over several samples at once: `jit` of `vmap`;
* `backward`, the same for one sample with the gradient of the mean by all numbers.

All checks of an option read the results of these two, so that a loss costs few
compilations. A `Variant` is a row with one of its options.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from siamese_jax._numerics import Margin, Scalar
from siamese_jax.reductions import Terms, sum_terms
from tests.cases import Case, Contract, Kind, Reach
from tests.contract import as_for_a_user
from tests.contract.jaxprs import half_arithmetic
from tests.contract.samples import (
    behind_the_mask,
    degenerate,
    reordered,
    subset,
    whole,
    with_nan,
)
from tests.contract.trees import (
    assert_trees_close,
    float_leaves,
    map_floats,
    replace_floats,
)


class Inputs(NamedTuple):
    """All that a program takes: arguments, mask and weights, options that may be learnt."""

    args: tuple
    arrays: dict[str, Any]
    numbers: dict[str, Any]


class Variant(NamedTuple):
    """A row with one of its options."""

    case: Case
    number: int

    @property
    def options(self) -> dict[str, Any]:
        return self.case.options[self.number]

    @property
    def numbers(self) -> dict[str, np.ndarray]:
        """The options that may be learnt, with the defaults of the signature."""
        parameters = inspect.signature(self.case.fn).parameters
        return {
            name: np.asarray(self.options.get(name, parameter.default), np.float32)
            for name, parameter in parameters.items()
            if any(parameter.annotation is kind for kind in (Scalar, Margin))
        }

    @property
    def fixed(self) -> dict[str, Any]:
        """The options that a program cannot take."""
        return {k: v for k, v in self.options.items() if k not in self.numbers}

    @property
    def programs(self) -> "Programs":
        shapes = {name: number.shape for name, number in self.numbers.items()}
        return programs(self.case, repr((self.fixed, shapes)), self)

    def inputs(self, seed: int) -> Inputs:
        args, arrays = self.case.inputs(np.random.default_rng(seed))
        return Inputs(tuple(args), dict(arrays), self.numbers)


class Programs:
    """A loss under `jit`, with the options that are not numbers of one variant."""

    def __init__(self, variant: Variant):
        self.num_traces = 0
        self.case, self.fixed = variant.case, variant.fixed
        self.forward = jax.jit(jax.vmap(self.loss_and_terms))
        self.backward = jax.jit(jax.value_and_grad(self._of_floats, has_aux=True))

    def loss_and_terms(self, inputs: Inputs) -> tuple[Any, list[Terms]]:
        self.num_traces += 1
        args, arrays, numbers = inputs
        call = functools.partial(self.case.fn, *args, **arrays, **numbers, **self.fixed)
        if Contract.TERMS not in self.case.contracts:
            return call(), []
        seen = []

        def reduce_fn(terms: Terms):
            seen.append(terms)
            return default_reduction(self.case)(terms)

        return call(reduce_fn=reduce_fn), seen

    def _of_floats(self, floats: list, inputs: Inputs):
        return self.loss_and_terms(replace_floats(inputs, floats))

    def gradient(self, inputs: Inputs):
        """The loss, its terms, and the gradient as `Inputs`, with zeros for integers."""
        (loss, terms), gradients = self.backward(float_leaves(inputs), inputs)
        zeros = jax.tree.map(np.zeros_like, inputs)
        return loss, terms, replace_floats(zeros, [np.asarray(g) for g in gradients])


def default_reduction(case: Case) -> Callable[[Terms], Any]:
    return inspect.signature(case.fn).parameters["reduce_fn"].default


# the trials of one row follow one another and share its programs
_PROGRAMS: dict[tuple, Programs] = {}


def programs(case: Case, key: str, variant: Variant) -> Programs:
    if not any(known is case for known, _ in _PROGRAMS):
        _PROGRAMS.clear()
    if (case, key) not in _PROGRAMS:
        _PROGRAMS[case, key] = Programs(variant)
    return _PROGRAMS[case, key]


LARGE = 1e4


@functools.lru_cache(maxsize=8)
def results(variant: Variant) -> dict[str, tuple[Any, list[Terms]]]:
    """The loss and the terms of each sample, in one call."""
    case = variant.case
    unmasked = whole(variant.inputs(4))
    large = unmasked._replace(args=map_floats(lambda x: LARGE * x, unmasked.args))
    samples = {
        "seed 0": variant.inputs(0),
        "seed 1": variant.inputs(1),
        "in order": unmasked,
        "shuffled": unmasked._replace(args=reordered(case.kind, unmasked.args)),
        "nan": unmasked._replace(args=with_nan(case, unmasked.args)),
        "large": large,
    }
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *samples.values())
    found = jax.tree.map(np.asarray, variant.programs.forward(stacked))
    return {
        name: jax.tree.map(lambda leaf, i=number: leaf[i], found)
        for number, name in enumerate(samples)
    }


# Checks --------------------------------------------------------------------------------


def check_value(variant: Variant, seed: int):
    args, arrays, _ = variant.inputs(seed)
    wanted = variant.case.oracle(*args, **arrays, **variant.options)
    assert_trees_close(results(variant)[f"seed {seed}"][0], wanted, rtol=3e-5, atol=3e-6)


def check_plain_value(variant: Variant):
    """Without mask and weights, and with options that are Python numbers."""
    args, _, _ = variant.inputs(2)
    found = jax.jit(lambda args: variant.case.fn(*args, **variant.options))(args)
    wanted = variant.case.oracle(*args, **variant.options)
    assert_trees_close(found, wanted, rtol=3e-5, atol=3e-6)


def check_jit_vmap(variant: Variant):
    """One sample alone, with its gradient, is as among several; nothing compiles twice."""
    found = variant.programs.gradient(variant.inputs(0))
    num_traces = variant.programs.num_traces
    again = variant.programs.gradient(variant.inputs(1))
    assert variant.programs.num_traces == num_traces
    assert_trees_close(found[:2], results(variant)["seed 0"])
    assert_trees_close(again[:2], results(variant)["seed 1"])


def check_gradient(variant: Variant):
    """Along a random direction, against central differences of the oracle."""
    inputs = variant.inputs(0)
    _, _, gradient = variant.programs.gradient(inputs)
    rng = np.random.default_rng(7)
    direction = map_floats(lambda x: rng.normal(size=x.shape) * np.mean(np.abs(x)), inputs)

    def oracle(step):
        moved = [
            np.asarray(x, np.float64) + step * np.asarray(v)
            for x, v in zip(float_leaves(inputs), float_leaves(direction), strict=True)
        ]
        args, arrays, numbers = replace_floats(inputs, moved)
        return variant.case.oracle(*args, **arrays, **numbers, **variant.fixed)

    step = 1e-6
    wanted = (oracle(step) - oracle(-step)) / (2 * step)
    products = [
        np.sum(np.float64(g) * v)
        for g, v in zip(float_leaves(gradient), float_leaves(direction), strict=True)
    ]
    size = sum(
        np.sum(np.abs(np.float64(g) * v))
        for g, v in zip(float_leaves(gradient), float_leaves(direction), strict=True)
    )
    assert abs(wanted) > 1e-6
    np.testing.assert_allclose(sum(products), wanted, rtol=1e-4, atol=2e-5 * size)


def check_singular(variant: Variant):
    args, learning_rows = variant.case.singular
    inputs = whole(variant.inputs(0))._replace(args=args)
    loss, _, gradient = variant.programs.gradient(inputs)
    assert np.isfinite(loss)
    for leaf in float_leaves(gradient):
        assert np.isfinite(leaf).all()
    for row in learning_rows:
        assert np.abs(gradient.args[0][row]).sum() > 0


def check_mask(variant: Variant):
    """What is behind a mask is without effect, and so without a gradient."""
    inputs = variant.inputs(3)
    where = np.asarray(inputs.arrays["where"])
    other = inputs._replace(args=behind_the_mask(inputs.args, where))
    found, wanted = (variant.programs.gradient(x) for x in (other, inputs))
    assert_trees_close(found, wanted, rtol=1e-6, atol=1e-7)
    for x, gradient in zip(inputs.args, found[2].args, strict=True):
        if x.shape[: where.ndim] == where.shape:
            assert not gradient[~where].any()


def check_order(variant: Variant):
    (found, _), (wanted, _) = (results(variant)[x] for x in ("shuffled", "in order"))
    assert_trees_close(found, wanted, rtol=1e-6, atol=1e-6)


def check_degenerate(variant: Variant):
    case = variant.case
    counts = {}
    for name, args, where in degenerate(case, variant.inputs(0).args):
        inputs = whole(variant.inputs(0))._replace(args=args)
        if "where" in inputs.arrays:
            inputs.arrays["where"] = where
        loss, terms, gradient = variant.programs.gradient(inputs)
        assert np.isfinite(loss), name
        for leaf in float_leaves(gradient):
            assert np.isfinite(leaf).all(), name
        counts[name] = sum(int(np.sum(part.where)) for part in terms)
        if name == "nothing" or (terms and not counts[name]):
            assert loss == 0, name
            assert not any(leaf.any() for leaf in float_leaves(gradient)), name
    if Contract.TERMS not in case.contracts:
        return
    assert counts.get("nothing", 0) == counts.get("one row", 0) == 0
    assert counts["ordinary"] > 0
    if case.kind is Kind.MATRIX_LOSS:
        has_terms = counts["all different"] > 0
        assert has_terms == bool(case.counts_without_positive)
        assert counts["one pair"] > 0


def check_half(variant: Variant, dtype):
    """Half precision is converted at once: no arithmetic, forward or backward, in it."""
    inputs = variant.inputs(0)
    half = inputs._replace(args=map_floats(lambda x: jnp.asarray(x, dtype), inputs.args))
    run = variant.programs.backward.__wrapped__
    jaxpr, shapes = jax.make_jaxpr(run, return_shape=True)(float_leaves(half), half)
    assert half_arithmetic(jaxpr.jaxpr) == set()
    (loss, terms), gradients = shapes
    assert {leaf.dtype for leaf in float_leaves((loss, terms))} == {jnp.dtype(jnp.float32)}
    wanted = [leaf.dtype for leaf in float_leaves(half)]
    assert [leaf.dtype for leaf in gradients] == wanted


def check_large(variant: Variant):
    loss, terms = results(variant)["large"]
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in float_leaves(terms))
    inputs = whole(variant.inputs(4))
    inputs = inputs._replace(args=map_floats(lambda x: LARGE * x, inputs.args))
    for leaf in float_leaves(variant.programs.gradient(inputs)):
        assert np.isfinite(leaf).all()


def check_nan(variant: Variant):
    loss, _ = results(variant)["nan"]
    assert np.isnan(loss)


def check_nan_of_others(variant: Variant):
    """In the other arguments too; a label that is none of the classes counts as one."""
    inputs = whole(variant.inputs(8))
    for place, x in enumerate(inputs.args[1:], start=1):
        if x.dtype == bool:
            continue
        other = np.array(x)
        other[(0,) * x.ndim] = -1 if np.issubdtype(x.dtype, np.integer) else np.nan
        args = (*inputs.args[:place], other, *inputs.args[place + 1 :])
        loss, _, _ = variant.programs.gradient(inputs._replace(args=args))
        assert np.isnan(loss), place


def check_terms(variant: Variant):
    """They are 0 where not valid, and the loss is the sum of their means or their sum."""
    loss, terms = results(variant)["seed 0"]
    is_sum = default_reduction(variant.case) is sum_terms
    total = 0.0
    for values, where, weights in terms:
        assert not values[~where].any()
        assert not weights[~where].any()
        whole_weight = np.sum(weights, dtype=np.float64) or 1.0
        part = np.sum(np.float64(values) * weights)
        total += part if is_sum else part / whole_weight
    np.testing.assert_allclose(loss, total, rtol=1e-5, atol=1e-7)


def check_unreduced(variant: Variant):
    """Without a reduction the same terms come back."""
    args, arrays, numbers = variant.inputs(0)
    call = functools.partial(variant.case.fn, **variant.fixed, reduce_fn=None)
    found = jax.eval_shape(lambda args, more: call(*args, **more), args, arrays | numbers)
    shapes = [leaf.shape for leaf in jax.tree.leaves(found)]
    assert shapes == [leaf.shape for leaf in jax.tree.leaves(results(variant)["seed 0"][1])]


def check_reach(variant: Variant):
    """Terms need no more than their entry or their row, or the declaration says so."""
    case = variant.case
    reach = case.reach_of(variant.options)
    by_entry = reach is Reach.ENTRY
    inputs = variant.inputs(0)
    _, terms = results(variant)["seed 0"]
    part = subset(case.kind, inputs, columns=by_entry)
    wanted = subset(case.kind, terms, columns=by_entry)

    def holds() -> bool:
        try:
            with as_for_a_user():  # whose call a loss of a square refuses itself
                found = jax.jit(variant.programs.loss_and_terms)(part)[1]
            assert_trees_close(found, wanted)
        except (AssertionError, ValueError):
            return False
        return True

    assert holds() == (reach is not Reach.WHOLE)


# Trials --------------------------------------------------------------------------------


def by_options(case: Case) -> list[Variant]:
    return [Variant(case, number) for number in range(len(case.options))]


def first(case: Case) -> list[Variant]:
    return by_options(case)[:1]


def by_fixed_options(case: Case) -> list[Variant]:
    """One for each choice of options that are not numbers, with scalars for numbers."""
    found = {repr(v.fixed): v for v in reversed(by_options(case)) if is_scalar(v)}
    return list(reversed(found.values()))


def of_several(case: Case) -> list[Variant]:
    """All options of losses that take more than one array of numbers, or labels."""
    args = case.inputs(np.random.default_rng(0)).args
    return by_options(case) if any(x.dtype != bool for x in args[1:]) else []


def with_scalars(case: Case) -> list[Variant]:
    return [variant for variant in by_options(case) if is_scalar(variant)]


def is_scalar(variant: Variant) -> bool:
    """Whether no option is an array, which would have to be reordered with the batch."""
    return all(np.ndim(option) == 0 for option in variant.options.values())


SEEDS = {"-seed 0": 0, "-seed 1": 1}
DTYPES = {"-float16": jnp.float16, "-bfloat16": jnp.bfloat16}

# check, which variants, and further arguments by name
CHECKS: dict[Contract, list[tuple[Callable[..., None], Callable, dict[str, Any]]]] = {
    Contract.VALUE: [(check_value, by_options, SEEDS), (check_plain_value, first, {})],
    Contract.ORDER: [(check_order, with_scalars, {})],
    Contract.NAN: [(check_nan, by_options, {}), (check_nan_of_others, of_several, {})],
    Contract.TERMS: [
        (check_terms, by_options, {}),
        (check_unreduced, by_fixed_options, {}),
    ],
    # the examples in the docstrings run without jit
    Contract.JIT_VMAP: [(check_jit_vmap, by_options, {})],
    Contract.HALF: [(check_half, by_fixed_options, DTYPES), (check_large, by_options, {})],
    Contract.GRADIENT: [(check_gradient, by_options, {})],
    Contract.SINGULAR: [(check_singular, by_options, {})],
    Contract.MASK: [(check_mask, by_options, {})],
    Contract.DEGENERATE: [(check_degenerate, by_options, {})],
    Contract.REACH: [(check_reach, by_fixed_options, {})],
}


def trials(case: Case, contract: Contract) -> Iterator[tuple[str, Callable, tuple]]:
    for check, variants, extras in CHECKS.get(contract, ()):
        word = check.__name__.removeprefix("check_")
        for variant in variants(case):
            for name, extra in extras.items() or [("", None)]:
                args = (variant, extra) if extras else (variant,)
                yield f"{word}-{variant.number}{name}", check, args
