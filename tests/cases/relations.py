"""Rows of the contract table for relations and reductions."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import reductions, relations
from siamese_jax.relations import Items
from tests import oracles
from tests.cases.case import FOUR, Case, Contract, Inputs, Kind, Refusal, entry_arrays, f32


def items(rng, num_items):
    labels, ids = (jnp.asarray(rng.integers(4, size=num_items)) for _ in range(2))
    return Items(labels, ids, jnp.asarray(rng.random(num_items) < 0.7))


def _between_oracle(rows, columns):
    sides = zip(rows, columns, strict=True)  # labels, ids, validity of both
    return oracles.between(*(field for pair in sides for field in pair))


def _within_oracle(items):
    items = items._replace(ids=range(len(items.labels)))
    return _between_oracle(items, items)


ALL = FOUR >= 0
RELATIONS = [
    Case(
        "relations.between",
        relations.between,
        Kind.RELATION,
        lambda rng: Inputs((items(rng, 6), items(rng, 5))),
        oracle=_between_oracle,
        refusals=(
            Refusal(
                "fewer ids than rows",
                (Items(FOUR, FOUR[:3], ALL), Items(FOUR, FOUR, ALL)),
                {},
                ValueError,
                r"rows.ids must have shape \(4,\)",
            ),
            Refusal(
                "validity is a column",
                (Items(FOUR, FOUR, ALL), Items(FOUR, FOUR, ALL[:, None])),
                {},
                ValueError,
                r"columns.valid must have shape \(4,\)",
            ),
            Refusal(
                "ids are boolean",
                (Items(FOUR, ALL, ALL), Items(FOUR, FOUR, ALL)),
                {},
                TypeError,
                "rows.ids must be an integer array",
            ),
        ),
    ),
    Case(
        "relations.within",
        relations.within,
        Kind.RELATION,
        lambda rng: Inputs((items(rng, 6)._replace(ids=None),)),
        oracle=_within_oracle,
        refusals=(
            Refusal(
                "validity is too short",
                (Items(FOUR, valid=ALL[:3]),),
                {},
                ValueError,
                "valid must have shape",
            ),
            Refusal(
                "validity is not boolean",
                (Items(FOUR, valid=FOUR),),
                {},
                TypeError,
                "items.valid must be a boolean",
            ),
        ),
    ),
    Case(
        "relations.aligned",
        lambda rows: relations.aligned(len(rows)),
        Kind.RELATION,
        lambda rng: Inputs((FOUR,)),
        oracle=lambda rows: (
            np.array([[i == j for i in rows] for j in rows]),
            np.ones((4, 4)),
        ),
        exempt={Contract.REFUSALS: "takes a number"},
    ),
    Case(
        "relations.equal_labels",
        relations.equal_labels,
        Kind.RELATION,
        lambda rng: Inputs((items(rng, 6).labels, items(rng, 5).labels)),
        oracle=lambda a, b: np.array([[x == y for y in b] for x in a]),
        refusals=(
            Refusal(
                "labels are a column",
                (FOUR[:, None], FOUR),
                {},
                ValueError,
                "labels must have 1 axis",
            ),
            Refusal(
                "labels are numbers",
                (FOUR, FOUR * 1.0),
                {},
                TypeError,
                "labels must be an integer",
            ),
        ),
    ),
    Case(
        "relations.shared_label",
        relations.shared_label,
        Kind.RELATION,
        lambda rng: Inputs(tuple(jnp.asarray(rng.random((n, 5)) < 0.3) for n in (6, 4))),
        oracle=oracles.shared_label,
        refusals=(
            Refusal(
                "label sets are vectors",
                (ALL, ALL),
                {},
                ValueError,
                "labels must have 2 axes",
            ),
            Refusal(
                "label sets are numbers",
                (jnp.ones((4, 4)), jnp.ones((4, 4))),
                {},
                TypeError,
                "labels must be a boolean",
            ),
        ),
    ),
]


def _terms_of(rng, values):
    where, weights = entry_arrays(rng, len(values)).values()
    return reductions.make_terms(values, where, weights=weights)


def terms(rng):
    values = f32(rng.normal(size=8))
    return Inputs((_terms_of(rng, values),))


def some_zero_terms(rng):
    """As of triplets whose negatives are beyond the margin."""
    values = f32(np.maximum(rng.normal(size=8), 0))
    return Inputs((_terms_of(rng, values),))


def _valid(terms):
    return [(float(v), float(w)) for v, where, w in zip(*terms, strict=True) if where]


def _sum_oracle(terms, reduce_fn=None):
    return sum(value * weight for value, weight in _valid(terms))


def _mean_oracle(terms):
    return oracles.weighted_mean(_valid(terms))


def _values_and_mask(rng):
    values, arrays = f32(rng.normal(size=8)), entry_arrays(rng, 8)
    where = arrays.pop("where").at[0].set(True)  # the place of the NaN
    return Inputs((values, where), arrays)


def _terms_oracle(values, where, *, weights=None):
    weights = np.ones(len(values)) if weights is None else weights
    return np.where(where, values, 0), where, np.where(where, weights, 0)


def _apart_oracle(parts, reduce_fn):
    total = sum(_mean_oracle(part) for part in parts)
    count = sum(len(_valid(part)) for part in parts)
    return total if reduce_fn is reductions.mean else (total, count)


_VALUES, _WHERE = jnp.ones(3), jnp.ones(3, bool)
_TERMS_ONLY = {Contract.REFUSALS: "takes what make_terms has checked"}

REDUCTIONS = [
    Case(
        "reductions.make_terms",
        reductions.make_terms,
        Kind.REDUCTION,
        _values_and_mask,
        oracle=_terms_oracle,
        refusals=(
            Refusal(
                "where is too short",
                (_VALUES, _WHERE[:2]),
                {},
                ValueError,
                "where must have",
            ),
            Refusal(
                "where is not boolean",
                (_VALUES, _VALUES),
                {},
                TypeError,
                "where must be a boolean",
            ),
            Refusal(
                "weights are a column",
                (_VALUES, _WHERE),
                {"weights": _VALUES[:, None]},
                ValueError,
                "weights must have shape",
            ),
            Refusal(
                "weights are integers",
                (_VALUES, _WHERE),
                {"weights": jnp.ones(3, int)},
                TypeError,
                "weights must be a float",
            ),
            Refusal(
                "values are integers",
                (jnp.ones(3, int), None),
                {},
                TypeError,
                "values must be a floating",
            ),
        ),
        exempt={Contract.ORDER: "keeps the order of its terms"},
    ),
    Case(
        "reductions.mean",
        reductions.mean,
        Kind.REDUCTION,
        terms,
        oracle=_mean_oracle,
        exempt=_TERMS_ONLY,
    ),
    Case(
        "reductions.mean_of_active",
        reductions.mean_of_active,
        Kind.REDUCTION,
        some_zero_terms,
        oracle=lambda terms: oracles.weighted_mean([x for x in _valid(terms) if x[0]]),
        exempt=_TERMS_ONLY | {Contract.GRADIENT: "jumps where a value leaves 0"},
    ),
    Case(
        "reductions.sum_terms",
        reductions.sum_terms,
        Kind.REDUCTION,
        terms,
        oracle=_sum_oracle,
        exempt=_TERMS_ONLY,
    ),
    Case(
        "reductions.mean_and_count",
        reductions.mean_and_count,
        Kind.REDUCTION,
        terms,
        oracle=lambda terms: (_mean_oracle(terms), len(_valid(terms))),
        exempt=_TERMS_ONLY,
    ),
    Case(
        "reductions.reduce_terms",
        reductions.reduce_terms,
        Kind.REDUCTION,
        terms,
        options=({"reduce_fn": reductions.sum_terms},),
        oracle=_sum_oracle,
        exempt=_TERMS_ONLY,
    ),
    Case(
        "reductions.reduce_terms (apart)",
        reductions.reduce_terms,
        Kind.REDUCTION,
        lambda rng: Inputs(((*terms(rng).args, *terms(rng).args),)),
        options=({"reduce_fn": reductions.mean}, {"reduce_fn": reductions.mean_and_count}),
        oracle=_apart_oracle,
        exempt=_TERMS_ONLY,
    ),
]
