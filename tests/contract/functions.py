"""Checks of distances, miners, relations, reductions, figures, maps and draws.

A check takes a `Variant` of a row: one of its options, with or without a mask and weights.
One program computes all variants of a row, so that a row costs few compilations.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.cases import Case, Contract
from tests.cases.case import Inputs
from tests.contract.trees import (
    assert_trees_close,
    float_leaves,
    map_floats,
    replace_floats,
)


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

    @property
    def place(self) -> int:
        """Its place in `with_masked`, and so among the results of the programs."""
        return len(self.case.options) if self.with_arrays else self.number

    def arrays(self, inputs: Inputs) -> dict[str, Any]:
        return dict(inputs.arrays) if self.with_arrays else {}

    def call(self, inputs: Inputs):
        return self.case.fn(*inputs.args, **self.arrays(inputs), **self.options)


def sample(case: Case, seed: int) -> Inputs:
    args, arrays = case.inputs(np.random.default_rng(seed))
    return Inputs(tuple(args), dict(arrays))


def by_options(case: Case) -> list[Variant]:
    return [Variant(case, number) for number in range(len(case.options))]


def with_masked(case: Case) -> list[Variant]:
    return by_options(case) + [Variant(case, 0, True)] * bool(sample(case, 0).arrays)


def once(case: Case) -> list[Variant]:
    return [Variant(case)]


# Programs, each of which computes all variants of a row -----------------------------------


class Compiled:
    """All variants of a row under `jit`, which counts how often they are traced."""

    def __init__(self, case: Case):
        self.num_traces = 0
        self.variants = with_masked(case)
        self.call = jax.jit(self._all)
        self.mapped = jax.jit(jax.vmap(self._all))

    def _all(self, inputs: Inputs) -> list:
        self.num_traces += 1
        return [variant.call(inputs) for variant in self.variants]


# the trials of one row follow one another and share its programs
@functools.lru_cache(maxsize=2)
def compiled(case: Case) -> Compiled:
    return Compiled(case)


@functools.lru_cache(maxsize=8)
def results(case: Case, seed: int) -> list:
    return compiled(case).call(sample(case, seed))


@functools.lru_cache(maxsize=2)
def mapped_results(case: Case, *seeds: int) -> list:
    samples = [sample(case, seed) for seed in seeds]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *samples)
    return compiled(case).mapped(stacked)


def values_and_gradients_of(loss_fns: list[Callable]) -> Callable:
    """One program for the values of several functions of some arrays, and the gradients."""

    def total(copies):
        values = [fn(copy) for fn, copy in zip(loss_fns, copies, strict=True)]
        return sum(values), values

    program = jax.jit(jax.value_and_grad(total, has_aux=True))

    def values_and_gradients(floats):
        (_, values), found = program([floats] * len(loss_fns))
        return values, found

    return values_and_gradients


@functools.lru_cache(maxsize=2)
def slopes(case: Case) -> list[tuple[float, float]]:
    """Of each variant the derivative by its gradient and by central differences."""
    with jax.enable_x64(True):
        inputs = map_floats(lambda x: x.astype(jnp.float64), sample(case, 0))
        rng = np.random.default_rng(7)
        moved = float_leaves(inputs)
        direction = [rng.normal(size=x.shape) for x in moved]

        def scalar(variant: Variant) -> Callable:
            shapes = float_leaves(jax.eval_shape(variant.call, inputs))
            weights = [rng.normal(size=leaf.shape) for leaf in shapes]

            def weighted_sum(floats):
                leaves = float_leaves(variant.call(replace_floats(inputs, floats)))
                return sum(
                    jnp.sum(w * leaf) for w, leaf in zip(weights, leaves, strict=True)
                )

            return weighted_sum

        program = values_and_gradients_of([scalar(x) for x in with_masked(case)])
        found = [
            sum(np.sum(np.asarray(g) * v) for g, v in zip(gradient, direction, strict=True))
            for gradient in program(moved)[1]
        ]
        step = 1e-6
        ahead, behind = (
            program([x + sign * step * v for x, v in zip(moved, direction, strict=True)])[0]
            for sign in (1, -1)
        )
        differences = [
            float(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)
        ]
        return list(zip(found, differences, strict=True))


@functools.lru_cache(maxsize=2)
def at_singular_points(case: Case) -> list[tuple[float, list]]:
    """Of each option a value and its gradients."""
    args = case.singular.args

    def scalar(variant: Variant) -> Callable:
        def weighted_sum(floats):
            out = variant.call(Inputs(replace_floats(args, floats)))
            return jnp.sum(out * jnp.arange(1.0, out.size + 1).reshape(out.shape))

        return weighted_sum

    floats = float_leaves(args)
    program = values_and_gradients_of([scalar(x) for x in by_options(case)])
    return list(zip(*program(floats), strict=True))


# Checks --------------------------------------------------------------------------------


def check_value(variant: Variant, seed: int):
    inputs = sample(variant.case, seed)
    wanted = variant.case.oracle(*inputs.args, **variant.arrays(inputs), **variant.options)
    found = results(variant.case, seed)[variant.place]
    assert_trees_close(found, wanted, rtol=2e-5, atol=3e-6)


def check_vmap(variant: Variant):
    mapped = mapped_results(variant.case, 0, 1)[variant.place]
    for number, seed in enumerate((0, 1)):
        found = jax.tree.map(lambda leaf, i=number: leaf[i], mapped)
        assert_trees_close(found, results(variant.case, seed)[variant.place])


def check_one_trace(variant: Variant):
    fn = compiled(variant.case)
    fn.call(sample(variant.case, 0))
    num_traces = fn.num_traces
    fn.call(sample(variant.case, 1))
    assert fn.num_traces == num_traces


def check_gradient(variant: Variant):
    slope, difference = slopes(variant.case)[variant.place]
    assert abs(slope) > 1e-6
    np.testing.assert_allclose(slope, difference, rtol=2e-6, atol=1e-8)


def check_singular(variant: Variant):
    value, found = at_singular_points(variant.case)[variant.place]
    assert np.isfinite(value)
    for gradient in found:
        assert np.isfinite(gradient).all()
    for row in variant.case.singular.learning_rows:
        assert np.abs(found[0][row]).sum() > 0


@functools.lru_cache(maxsize=2)
def masked_and_deleted(case: Case) -> list[tuple]:
    """Of each option the results with a mask, and without what it hides."""
    args = sample(case, 3).args
    keep = np.arange(len(args[0])) % 3 != 1

    def both(args, kept):
        return [
            (case.fn(*args, where=keep, **options), case.fn(*kept, **options))
            for options in case.options
        ]

    return jax.jit(both)(args, jax.tree.map(lambda array: array[keep], args))


def check_mask(variant: Variant):
    found, wanted = masked_and_deleted(variant.case)[variant.number]
    assert_trees_close(found, wanted, rtol=1e-6, atol=1e-7)


def check_order(variant: Variant):
    inputs = sample(variant.case, 4)
    num_rows = len(jax.tree.leaves(inputs.args)[0])
    order = np.random.default_rng(5).permutation(num_rows)
    shuffled = inputs._replace(args=jax.tree.map(lambda x: x[order], inputs.args))
    found = compiled(variant.case).call(shuffled)[variant.place]
    wanted = results(variant.case, 4)[variant.place]
    assert_trees_close(found, wanted, rtol=1e-6, atol=1e-7)


@functools.lru_cache(maxsize=2)
def half_programs(case: Case, *, large: bool) -> Callable:
    options = case.options + (case.large_options if large else ())
    return jax.jit(lambda args: [case.fn(*args, **kw) for kw in options])


def check_half(variant: Variant, dtype):
    case = variant.case
    args = sample(case, 6).args
    keeps_dtype = case.result_keeps_dtype
    # float16 ends at 65504, which results beyond the inputs would pass
    large = not (keeps_dtype and dtype == jnp.float16)
    scale = 1e4 if large else 1.0
    half = map_floats(lambda x: (scale * x).astype(dtype), args)
    exact = map_floats(lambda x: x.astype(jnp.float32), half)
    fn = half_programs(case, large=large)
    found, wanted = map(float_leaves, (fn(half), fn(exact)))
    for leaf in found:
        assert leaf.dtype == (dtype if keeps_dtype else jnp.float32)
        assert np.isfinite(leaf.astype(jnp.float32)).all()
    rounding = float(jnp.finfo(dtype).eps) if keeps_dtype else 1e-6
    for a, b in zip(found, wanted, strict=True):
        largest = np.abs(b).max(initial=1)
        assert_trees_close(a, b, rtol=8 * rounding, atol=8 * rounding * largest)


@functools.lru_cache(maxsize=2)
def results_of_nan(case: Case) -> list:
    inputs = sample(case, 8)
    first, *others = float_leaves(inputs.args)
    first = np.array(first)
    first[(0,) * first.ndim if case.nan_at is None else case.nan_at] = np.nan
    args = replace_floats(inputs.args, [first, *others])
    return compiled(case).call(inputs._replace(args=args))


def check_nan(variant: Variant):
    leaves = float_leaves(results_of_nan(variant.case)[variant.place])
    assert any(np.isnan(leaf).any() for leaf in leaves)


# Trials --------------------------------------------------------------------------------

SEEDS = {"-seed 0": 0, "-seed 1": 1}
DTYPES = {"-float16": jnp.float16, "-bfloat16": jnp.bfloat16, "-float32": jnp.float32}

# check, which variants, and further arguments by name
CHECKS: dict[Contract, list[tuple[Callable[..., None], Callable, dict[str, Any]]]] = {
    Contract.VALUE: [(check_value, with_masked, SEEDS)],
    # the examples in the docstrings run without jit
    Contract.JIT_VMAP: [(check_vmap, with_masked, {}), (check_one_trace, once, {})],
    Contract.ORDER: [(check_order, once, {})],
    Contract.NAN: [(check_nan, by_options, {})],
    Contract.HALF: [(check_half, once, DTYPES)],
    Contract.GRADIENT: [(check_gradient, with_masked, {})],
    Contract.SINGULAR: [(check_singular, by_options, {})],
    Contract.MASK: [(check_mask, by_options, {})],
}


def trials(case: Case, contract: Contract) -> Iterator[tuple[str, Callable, tuple]]:
    for check, variants, extras in CHECKS.get(contract, ()):
        word = check.__name__.removeprefix("check_")
        for variant in variants(case):
            for name, extra in extras.items() or [("", None)]:
                args = (variant, extra) if extras else (variant,)
                yield f"{word}-{variant.name}{name}", check, args
