"""One row for each public function: what the contract tests need to know of it.

A new function needs one row here; `test_api.py` fails until it has one. For a new loss the
row is its name, how its arguments are made, its oracle, and every option worth a value.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from siamese_jax import (
    augment,
    batching,
    convolution,
    distances,
    episodes,
    losses,
    miners,
    reductions,
    relations,
    samplers,
    siamese,
    training,
    verification,
)
from tests import oracles


@dataclasses.dataclass(frozen=True)
class Case:
    """A public function under contract.

    Attributes:
      name: "module.function".
      fn: The function, with callables bound.
      make: Makes its arrays from a NumPy generator.
      options: Keyword arguments to try, all of which the oracle understands.
      arrays: Makes optional array keywords (where, weights), tried with the first option.
      oracle: Plain float64 loops; None if its own test module has the properties.
      gradient: Positions of the arguments to differentiate.
      singular: Arguments at which the naive gradient is NaN.
      misuse: (changed arguments, keywords, error, words of its message).
      traits: Which contracts apply: "loss", "matrix", "half", "nan".
    """

    name: str
    fn: Callable[..., Any]
    make: Callable[[np.random.Generator], tuple]
    options: tuple[dict, ...] = ({},)
    arrays: Callable[[np.random.Generator, tuple], dict] | None = None
    oracle: Callable[..., Any] | None = None
    gradient: tuple[int, ...] = ()
    singular: Callable[[], tuple] | None = None
    misuse: tuple[tuple[tuple, dict, type[Exception], str], ...] = ()
    traits: frozenset[str] = frozenset()


def f32(array):
    return jnp.asarray(array, jnp.float32)


def key(rng):
    return jax.random.key(int(rng.integers(2**31)))


# Distances ------------------------------------------------------------------------------


def two_rows(rng):
    return f32(rng.normal(size=(3, 5, 4))), f32(rng.normal(size=(3, 5, 4)))


def two_sets(rng):
    return f32(rng.normal(size=(6, 4))), f32(rng.normal(size=(5, 4)))


# ordinary, coinciding, zero, both zero, differing in one coordinate only
_A = f32([[1.0, -2.0], [3.0, -1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
_B = f32([[0.5, 1.0], [3.0, -1.0], [1.0, 2.0], [0.0, 0.0], [1.0, 4.0]])

_ROWS_MISUSE = (
    (
        (jnp.zeros((3, 2)), jnp.zeros((3, 1, 2))),
        {},
        ValueError,
        r"b must have shape \(3, 2\)",
    ),
    (
        (jnp.zeros((3, 2), int), jnp.zeros((3, 2))),
        {},
        TypeError,
        "a must be a floating-point",
    ),
    (([1.0], jnp.zeros(1)), {}, TypeError, "got list"),
)
_SETS_MISUSE = (
    ((jnp.zeros((3, 2)), jnp.zeros((3, 3))), {}, ValueError, "b must have 2 columns"),
    ((jnp.zeros(3), jnp.zeros((3, 3))), {}, ValueError, "a must have 2 axes"),
    ((jnp.zeros((3, 2), bool), jnp.zeros((3, 2))), {}, TypeError, "a must be a floating"),
)


def distance_cases(name, oracle, options=({},), misuse=()):
    common = {
        "gradient": (0, 1),
        "singular": lambda: (_A, _B),
        "options": options,
        "traits": frozenset({"half", "nan"}),
    }
    yield Case(
        f"distances.{name}",
        getattr(distances, name),
        two_rows,
        oracle=oracles.rows(oracle),
        misuse=tuple((args, options[0] | kw, e, m) for args, kw, e, m in _ROWS_MISUSE)
        + tuple((two_rows(np.random.default_rng(0)), kw, e, m) for kw, e, m in misuse),
        **common,
    )
    yield Case(
        f"distances.{name}_matrix",
        getattr(distances, f"{name}_matrix"),
        two_sets,
        oracle=oracles.matrix(oracle),
        misuse=tuple((args, options[0] | kw, e, m) for args, kw, e, m in _SETS_MISUSE)
        + tuple((two_sets(np.random.default_rng(0)), kw, e, m) for kw, e, m in misuse),
        **common,
    )


DISTANCES = [
    *distance_cases("squared_euclidean_distance", oracles.squared_euclidean),
    *distance_cases("euclidean_distance", oracles.euclidean),
    *distance_cases("manhattan_distance", oracles.manhattan),
    *distance_cases(
        "lp_distance",
        oracles.lp,
        options=(
            {"order": 3},
            {"order": 1},
            {"order": 1.5},
            {"order": 2},
            {"order": jnp.inf},
        ),
        misuse=(({"order": 0.5}, ValueError, "order must be at least 1; got 0.5"),),
    ),
    *distance_cases("cosine_distance", oracles.cosine_distance),
    *distance_cases("cosine_similarity", oracles.cosine),
    *distance_cases("dot_similarity", oracles.dot),
    Case(
        "distances.distance_matrix",
        partial(distances.distance_matrix, distances.euclidean_distance),
        two_sets,
        oracle=oracles.matrix(oracles.euclidean),
        gradient=(0, 1),
        singular=lambda: (_A, _B),
        misuse=_SETS_MISUSE,
        traits=frozenset({"half", "nan"}),
    ),
    Case(
        "distances.normalize",
        distances.normalize,
        lambda rng: two_rows(rng)[:1],
        oracle=lambda x: np.array([[oracles.unit(row) for row in rows] for rows in x]),
        gradient=(0,),
        singular=lambda: (_A,),
        misuse=(((jnp.zeros(2, int),), {}, TypeError, "x must be a floating-point"),),
        traits=frozenset({"half", "nan"}),
    ),
]

# Losses and miners ----------------------------------------------------------------------


def pairs(rng):
    return f32(rng.uniform(0, 2, size=9)), jnp.asarray(rng.random(9) < 0.5)


def triplets(rng):
    return f32(rng.uniform(0, 2, size=9)), f32(rng.uniform(0, 2, size=9))


def square(rng):
    """Distances within a batch of unequal classes, one of which is alone."""
    labels = np.array([0, 0, 0, 1, 1, 2, 3])
    points = rng.normal(size=(7, 3))
    matrix = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    return f32(matrix), jnp.asarray(labels[:, None] == labels[None])


def entry_arrays(rng, args):
    shape = args[0].shape
    return {
        "where": jnp.asarray(rng.random(shape) < 0.7),
        "weights": f32(rng.uniform(0.5, 2, size=shape)),
    }


def anchor_arrays(rng, args):
    arrays = entry_arrays(rng, args)
    return arrays | {"weights": f32(rng.uniform(0.5, 2, size=len(args[0])))}


def _pairs_misuse(name):
    d, same = jnp.zeros(4), jnp.zeros(4, bool)
    return (
        (
            (d, same[:, None]),
            {},
            ValueError,
            rf"same must have shape \(4,\) to match {name}",
        ),
        ((d, d), {}, TypeError, "same must be a boolean array; got dtype float32"),
        ((same, same), {}, TypeError, f"{name} must be a floating-point array"),
        ((d, same), {"where": same[:3]}, ValueError, r"where must have shape \(4,\)"),
        ((d, same), {"weights": d[:3]}, ValueError, r"weights must have shape \(4,\)"),
        ((d, same), {"where": d}, TypeError, "where must be a boolean"),
    )


def _matrix_misuse(name="distances"):
    d, same = jnp.zeros((4, 4)), jnp.zeros((4, 4), bool)
    return (
        ((d[0], same[0]), {}, ValueError, f"{name} must have 2 axes"),
        ((d, same[:3]), {}, ValueError, r"same must have shape \(4, 4\)"),
        ((same, same), {}, TypeError, f"{name} must be a floating-point"),
        ((d, d), {}, TypeError, "same must be a boolean"),
        ((d, same), {"where": same[0]}, ValueError, r"where must have shape \(4, 4\)"),
    )


def _loss_misuse(name):
    d, same = jnp.zeros((4, 4)), jnp.zeros((4, 4), bool)
    wrong = ((d, same), {"weights": jnp.ones(3)}, ValueError, "weights must have shape")
    return (*_matrix_misuse(name), wrong)


LOSS = frozenset({"loss", "half", "nan"})
ROWS = frozenset({"loss", "matrix", "half", "nan"})

LOSSES = [
    Case(
        "losses.contrastive_loss",
        losses.contrastive_loss,
        pairs,
        options=(
            {},
            {"margin": 0.7, "factor": 1.0},
            {"margin": 1.5, "positive_margin": 0.4},
        ),
        arrays=entry_arrays,
        oracle=oracles.contrastive,
        gradient=(0,),
        singular=lambda: (f32([0.0, 0.0, 1.0, 0.3]), jnp.array([True, False, False, True])),
        misuse=_pairs_misuse("distances"),
        traits=LOSS,
    ),
    Case(
        "losses.logistic_loss",
        losses.logistic_loss,
        lambda rng: (f32(rng.normal(size=9)), jnp.asarray(rng.random(9) < 0.5)),
        arrays=entry_arrays,
        oracle=oracles.logistic,
        gradient=(0,),
        singular=lambda: (f32([0.0, 1e4, -1e4, 1e4]), jnp.array([True, False, True, True])),
        misuse=_pairs_misuse("similarities"),
        traits=LOSS,
    ),
    Case(
        "losses.triplet_loss",
        losses.triplet_loss,
        triplets,
        options=({}, {"margin": 0.2}),
        arrays=entry_arrays,
        oracle=oracles.triplet,
        gradient=(0, 1),
        singular=lambda: (f32([0.0, 0.0, 1.0]), f32([0.0, 1.0, 1.5])),
        misuse=(
            (
                (jnp.zeros(3), jnp.zeros((3, 1))),
                {},
                ValueError,
                "negative_distances must have",
            ),
            (
                (jnp.zeros(3, int), jnp.zeros(3)),
                {},
                TypeError,
                "positive_distances must be",
            ),
            (
                (jnp.zeros(3), jnp.zeros(3, int)),
                {},
                TypeError,
                "negative_distances must be",
            ),
        ),
        traits=frozenset({"half", "nan"}),
    ),
    *(
        Case(
            f"losses.{name}",
            getattr(losses, name),
            square,
            options=options,
            arrays=arrays,
            oracle=oracle,
            gradient=(0,),
            singular=lambda: (f32(np.ones((4, 4))), jnp.eye(4) + jnp.eye(4, k=1) > 0),
            misuse=_loss_misuse("distances"),
            traits=ROWS,
        )
        for name, options, arrays, oracle in (
            (
                "hard_triplet_loss",
                ({}, {"margin": 0.2}),
                anchor_arrays,
                oracles.hard_triplet,
            ),
            (
                "semi_hard_triplet_loss",
                ({}, {"margin": 0.2}),
                entry_arrays,
                oracles.semi_hard_triplet,
            ),
            (
                "all_triplets_loss",
                ({}, {"margin": 0.2}, {"margin": 0.3, "active_only": True}),
                anchor_arrays,
                oracles.all_triplets,
            ),
        )
    ),
    Case(
        "losses.supervised_contrastive_loss",
        losses.supervised_contrastive_loss,
        square,
        options=({"temperature": 0.5}, {}),
        arrays=anchor_arrays,
        oracle=oracles.supervised_contrastive,
        gradient=(0,),
        singular=lambda: (f32(np.ones((4, 4)) * 1e4), jnp.eye(4) > 0),
        misuse=_loss_misuse("similarities"),
        traits=ROWS,
    ),
]

MINERS = [
    *(
        Case(
            f"miners.{fn.__name__}",
            fn,
            square,
            arrays=lambda rng, args: {"where": entry_arrays(rng, args)["where"]},
            oracle=oracle,
            gradient=(0,),
            misuse=_matrix_misuse(),
            traits=frozenset({"nan"}),
        )
        for fn, oracle in (
            (miners.hard_negatives, oracles.hard_negatives),
            (miners.semi_hard_negatives, oracles.semi_hard_negatives),
        )
    ),
    Case(
        "miners.sides",
        miners.sides,
        square,
        arrays=lambda rng, args: {"where": entry_arrays(rng, args)["where"]},
        oracle=oracles.sides,
        misuse=_matrix_misuse(),
    ),
    Case(
        "miners.row_has_nan",
        miners.row_has_nan,
        lambda rng: (
            f32(np.where(rng.random((5, 4)) < 0.3, np.nan, 1.0)),
            jnp.asarray(rng.random((5, 4)) < 0.5),
        ),
        oracle=oracles.row_has_nan,
    ),
]

# Relations and reductions ---------------------------------------------------------------


def labels_and_ids(rng):
    def integers(n):
        return jnp.asarray(rng.integers(4, size=n))

    def flags(n):
        return jnp.asarray(rng.random(n) < 0.7)

    return integers(6), integers(5), integers(6), integers(5), flags(6), flags(5)


def _between(row_labels, column_labels, row_ids, column_ids, row_valid, column_valid):
    rows = relations.Items(row_labels, row_ids, row_valid)
    return relations.between(rows, relations.Items(column_labels, column_ids, column_valid))


_I4 = jnp.arange(4)
RELATIONS = [
    Case(
        "relations.between",
        _between,
        labels_and_ids,
        oracle=oracles.between,
        misuse=(
            (
                (_I4, _I4, _I4[:3], _I4, _I4 > 0, _I4 > 0),
                {},
                ValueError,
                r"rows.ids must have shape \(4,\)",
            ),
            (
                (_I4, _I4, _I4, _I4, _I4 > 0, _I4[:, None] > 0),
                {},
                ValueError,
                r"columns.valid must have shape \(4,\)",
            ),
        ),
    ),
    Case(
        "relations.within",
        lambda labels, valid: relations.within(relations.Items(labels, valid=valid)),
        lambda rng: (labels_and_ids(rng)[0], labels_and_ids(rng)[4]),
        oracle=lambda labels, valid: oracles.between(
            labels, labels, range(6), range(6), valid, valid
        ),
        misuse=(((_I4, _I4[:3] > 0), {}, ValueError, "valid must have shape"),),
    ),
    Case(
        "relations.equal_labels",
        relations.equal_labels,
        lambda rng: labels_and_ids(rng)[:2],
        oracle=lambda a, b: np.array([[x == y for y in b] for x in a]),
        misuse=(
            ((_I4[:, None], _I4), {}, ValueError, "labels must have 1 axes"),
            ((_I4, _I4 * 1.0), {}, TypeError, "labels must be a integer"),
        ),
    ),
    Case(
        "relations.shared_label",
        relations.shared_label,
        lambda rng: tuple(jnp.asarray(rng.random((n, 5)) < 0.3) for n in (6, 4)),
        oracle=oracles.shared_label,
        misuse=(
            ((_I4 > 0, _I4 > 0), {}, ValueError, "labels must have 2 axes"),
            (
                (jnp.ones((4, 4)), jnp.ones((4, 4))),
                {},
                TypeError,
                "labels must be a boolean",
            ),
        ),
    ),
]


def values_where_weights(rng):
    values = f32(rng.normal(size=8))
    return values, *entry_arrays(rng, (values,)).values()


def _of_terms(fn):
    return lambda v, where, w: fn(reductions.make_terms(v, where=where, weights=w))


def _terms_oracle(values, where, weights):
    return [
        (float(v), float(w)) for v, c, w in zip(values, where, weights, strict=True) if c
    ]


REDUCTIONS = [
    Case(
        "reductions.make_terms",
        _of_terms(lambda terms: terms),
        values_where_weights,
        oracle=lambda v, c, w: (np.where(c, v, 0), np.array(c), np.where(c, w, 0)),
        misuse=(
            (
                (jnp.ones(3), jnp.ones(2, bool), jnp.ones(3)),
                {},
                ValueError,
                "where must have",
            ),
            (
                (jnp.ones(3), jnp.ones(3), jnp.ones(3)),
                {},
                TypeError,
                "where must be a boolean",
            ),
            (
                (jnp.ones(3), None, jnp.ones((3, 1))),
                {},
                ValueError,
                "weights must have shape",
            ),
            (
                (jnp.ones(3), None, jnp.ones(3, int)),
                {},
                TypeError,
                "weights must be a float",
            ),
            ((jnp.ones(3, int), None, None), {}, TypeError, "values must be a floating"),
        ),
    ),
    Case(
        "reductions.mean",
        _of_terms(reductions.mean),
        values_where_weights,
        oracle=lambda *args: oracles.weighted_mean(_terms_oracle(*args)),
        gradient=(0, 2),
    ),
    Case(
        "reductions.total",
        _of_terms(reductions.total),
        values_where_weights,
        oracle=lambda *args: sum(v * w for v, w in _terms_oracle(*args)),
        gradient=(0, 2),
    ),
    Case(
        "reductions.mean_and_count",
        _of_terms(reductions.mean_and_count),
        values_where_weights,
        oracle=lambda *args: (
            oracles.weighted_mean(_terms_oracle(*args)),
            len(_terms_oracle(*args)),
        ),
    ),
    Case(
        "reductions.reduce_terms",
        _of_terms(lambda terms: reductions.reduce_terms(terms, reductions.total)),
        values_where_weights,
        oracle=lambda *args: sum(v * w for v, w in _terms_oracle(*args)),
    ),
]

# Siamese, augmentation, convolution ------------------------------------------------------


def dense(params, x):
    return jnp.tanh(jnp.matmul(x, params, precision="highest"))


def _dense_oracle(params, x):
    return np.tanh(np.asarray(x, np.float64) @ np.asarray(params, np.float64))


def params_and_pair(rng):
    return f32(rng.normal(size=(3, 2))), f32(rng.normal(size=(2, 4, 3)))


def images(rng):
    return f32(rng.random((3, 6, 5, 2)))


def images_and_matrices(rng):
    return images(rng), f32(np.eye(2, 3) + rng.normal(size=(3, 2, 3)) * 0.5)


DISTORTION = augment.Affine(30.0, 0.3, (0.8, 1.2), 2.0, 0.7, 0.7, 0.7, 0.7)
_IMAGE = jnp.zeros((1, 4, 4, 1))
_KEY = jax.random.key(0)
_AFFINE_MISUSE = tuple(
    ((_KEY, _IMAGE), {"distortion": augment.Affine(**wrong)}, ValueError, words)
    for wrong, words in (
        ({"max_rotation": -1.0}, "max_rotation must be at least 0; got -1"),
        ({"max_shift": -1.0}, "max_shift must be at least 0"),
        ({"max_shear": 1.0}, r"max_shear must be in \[0, 1\); got 1"),
        ({"scale_range": (1.2, 0.8)}, "scale_range must be"),
        ({"shear_probability": 1.5}, r"shear_probability must be in \[0, 1\]; got 1.5"),
    )
)

MODELS = [
    Case(
        "siamese.twin",
        siamese.twin(dense),
        params_and_pair,
        oracle=lambda p, pair: np.stack([_dense_oracle(p, x) for x in pair]),
        gradient=(0, 1),
    ),
    Case(
        "siamese.two_towers",
        siamese.two_towers(dense),
        lambda rng: (f32(rng.normal(size=(2, 3, 2))), f32(rng.normal(size=(2, 4, 3)))),
        oracle=lambda p, pair: np.stack(
            [_dense_oracle(q, x) for q, x in zip(p, pair, strict=True)]
        ),
        gradient=(0, 1),
    ),
    Case(
        "siamese.stack_towers",
        siamese.stack_towers,
        lambda rng: ({"w": f32(rng.normal(size=3))}, {"w": f32(rng.normal(size=3))}),
        oracle=lambda a, b: {"w": np.stack([a["w"], b["w"]])},
        misuse=(
            ((), {}, ValueError, "at least one parameter tree"),
            (({"w": _I4}, {"v": _I4}), {}, ValueError, "differ"),
            (({"w": _I4}, {"w": _I4[:2]}), {}, ValueError, r"\(4,\).*\(2,\)"),
        ),
    ),
    Case(
        "siamese.threshold_logits",
        siamese.threshold_logits,
        lambda rng: (f32(rng.random(5)),),
        options=({"threshold": 0.5}, {"threshold": 0.3, "scale": 4.0}),
        oracle=oracles.threshold_logits,
        gradient=(0,),
        misuse=(((_I4,), {"threshold": 1.0}, TypeError, "distances must be a floating"),),
        traits=frozenset({"half", "nan"}),
    ),
    Case(
        "siamese.weighted_l1_logits",
        siamese.weighted_l1_logits,
        lambda rng: (
            *(f32(rng.normal(size=shape)) for shape in ((6, 4), (6, 4), 4)),
            f32(rng.normal()),
        ),
        oracle=oracles.weighted_l1_logits,
        gradient=(0, 1, 2, 3),
        singular=lambda: (_A, _B, f32([1.0, 2.0]), f32(0.5)),
        misuse=(
            ((_A, _B[:3], _A[0], 0.0), {}, ValueError, "a and b must have equal shapes"),
            ((_A, _B, jnp.ones(3), 0.0), {}, ValueError, "each of the 3 weights"),
            ((_A, _B, jnp.ones((2, 1)), 0.0), {}, ValueError, "weights must have 1 axes"),
            ((_A, _B, _I4, 0.0), {}, TypeError, "weights must be a floating"),
        ),
        traits=frozenset({"half", "nan"}),
    ),
    Case(
        "augment.affine_transform",
        augment.affine_transform,
        images_and_matrices,
        options=({}, {"fill": 0.5}),
        oracle=oracles.affine_transform,
        gradient=(0,),
        misuse=(
            ((_IMAGE[0], jnp.zeros((1, 2, 3))), {}, ValueError, "images must have 4 axes"),
            ((_IMAGE, jnp.zeros((2, 2, 3))), {}, ValueError, r"shape \(1, 2, 3\)"),
            ((_IMAGE.astype(int), jnp.zeros((1, 2, 3))), {}, TypeError, "images must be a"),
        ),
    ),
    Case(
        "augment.random_affine",
        augment.random_affine,
        lambda rng: (key(rng), images(rng)),
        options=({"distortion": DISTORTION}, {"distortion": DISTORTION, "fill": 1.0}),
        misuse=(
            (
                (_KEY, _IMAGE[0]),
                {"distortion": DISTORTION},
                ValueError,
                "images must have 4",
            ),
            ((_KEY, _IMAGE > 0), {"distortion": DISTORTION}, TypeError, "images must be a"),
            *_AFFINE_MISUSE,
        ),
    ),
    Case(
        "augment.sample_affine",
        lambda key: augment.sample_affine(key, 3, (6, 5), DISTORTION),
        lambda rng: (key(rng),),
    ),
    Case(
        "augment.random_noise",
        augment.random_noise,
        lambda rng: (key(rng), images(rng)),
        options=({"scale": 0.1}, {"scale": 0.1, "probability": 0.5}),
        misuse=(
            ((_KEY, _IMAGE[0]), {"scale": 0.1}, ValueError, "images must have 4 axes"),
            ((_KEY, _IMAGE), {"scale": -1.0}, ValueError, "scale must be at least 0"),
            ((_KEY, _IMAGE), {"scale": 1.0, "probability": 2.0}, ValueError, "probability"),
            ((_KEY, _IMAGE > 0), {"scale": 1.0}, TypeError, "images must be a floating"),
        ),
    ),
    Case(
        "convolution.convolution",
        convolution.convolution,
        lambda rng: (images(rng), f32(rng.normal(size=(3, 2, 2, 4)))),
        options=(
            {"window_strides": (1, 1), "padding": ((0, 0), (0, 0))},
            {"window_strides": (2, 1), "padding": ((1, 2), (0, 1))},
        ),
        oracle=lambda x, k, window_strides, padding: oracles.convolution(
            x, k, window_strides, padding
        ),
        gradient=(0, 1),
    ),
    Case(
        "convolution.max_pool",
        partial(convolution.max_pool, window=2),
        lambda rng: (images(rng),),
        oracle=partial(oracles.max_pool, window=2),
        gradient=(0,),
    ),
]

# Samplers -------------------------------------------------------------------------------

LABELS = np.array([3, 3, 3, 5, 5, 7, 7, 7, 7, 8, 8, 9, 9, 9])
GROUPS = np.array([0] * 5 + [1] * 4 + [2] * 5)  # classes 3, 5 | 7 | 8, 9
INDEX = samplers.class_index(LABELS, groups=GROUPS)
_LONELY = samplers.class_index(["a", "a", "b"])
_ONE_CLASS = samplers.class_index(["a", "a"])
_FEWER = "every class needs at least 2 examples; class 'b' has 1"
_GROUP = r"2 classes are needed from at most 1 group\(s\).*1 \(1 classes\)"


def keyed(rng):
    return key(rng), INDEX


SAMPLERS = [
    Case(
        "samplers.class_index",
        lambda labels: labels,  # runs on the host; its properties are in test_samplers
        lambda rng: (jnp.asarray(LABELS),),
    ),
    Case(
        "samplers.sample_pairs",
        samplers.sample_pairs,
        keyed,
        options=({"num_pairs": 6},),
        misuse=(
            ((_KEY, _LONELY), {"num_pairs": 2}, ValueError, _FEWER),
            ((_KEY, _ONE_CLASS), {"num_pairs": 2}, ValueError, "at least 2 classes"),
            ((_KEY, INDEX), {"num_pairs": 0}, ValueError, "num_pairs must be at least 1"),
            ((_KEY, INDEX), {"num_pairs": 2, "within_groups": True}, ValueError, _GROUP),
        ),
    ),
    Case(
        "samplers.sample_partners",
        samplers.sample_partners,
        lambda rng: (*keyed(rng), jnp.arange(6), jnp.arange(6) % 2 == 0),
        misuse=(((_KEY, _LONELY, _I4, _I4 > 1), {}, ValueError, _FEWER),),
    ),
    Case(
        "samplers.sample_triplets",
        samplers.sample_triplets,
        keyed,
        options=({"num_triplets": 6},),
        misuse=(
            ((_KEY, _LONELY), {"num_triplets": 2}, ValueError, _FEWER),
            ((_KEY, _ONE_CLASS), {"num_triplets": 2}, ValueError, "at least 2 classes"),
            ((_KEY, INDEX), {"num_triplets": 0}, ValueError, "num_triplets must be"),
            ((_KEY, INDEX), {"num_triplets": 2, "within_groups": True}, ValueError, _GROUP),
        ),
    ),
    Case(
        "samplers.sample_batch",
        samplers.sample_batch,
        keyed,
        options=(
            {"num_classes": 3, "num_per_class": 2},
            {"num_classes": 3, "num_per_class": 2, "max_groups": 2},
        ),
        misuse=(
            (
                (_KEY, INDEX),
                {"num_classes": 2, "num_per_class": 3},
                ValueError,
                "every class needs at least 3 examples; class 5 has 2",
            ),
            (
                (_KEY, INDEX),
                {"num_classes": 6, "num_per_class": 1},
                ValueError,
                "at least 6 classes are needed; there are 5",
            ),
            (
                (_KEY, INDEX),
                {"num_classes": 2, "num_per_class": 1, "max_groups": 1},
                ValueError,
                _GROUP,
            ),
        ),
    ),
    Case(
        "samplers.sample_episode",
        samplers.sample_episode,
        keyed,
        options=({"num_ways": 3, "num_shots": 1, "num_queries": 1},),
        misuse=(
            (
                (_KEY, INDEX),
                {"num_ways": 2, "num_shots": 1, "num_queries": 2},
                ValueError,
                "every class needs at least 3 examples; class 5 has 2",
            ),
            (
                (_KEY, INDEX),
                {"num_ways": 6, "num_shots": 1, "num_queries": 1},
                ValueError,
                "at least 6 classes",
            ),
        ),
    ),
    Case(
        "samplers.sample_epoch",
        samplers.sample_epoch,
        lambda rng: (key(rng),),
        options=({"num_examples": 7, "batch_size": 3},),
        misuse=(
            (
                (_KEY,),
                {"num_examples": 0, "batch_size": 3},
                ValueError,
                "num_examples must",
            ),
            (
                (_KEY,),
                {"num_examples": 3, "batch_size": 0},
                ValueError,
                "batch_size must be",
            ),
        ),
    ),
]

# Training, episodes, verification ---------------------------------------------------------

OPTIMIZER = optax.adam(0.1)


def slope_loss(params, statistics, batch, key):
    loss = jnp.mean((params * batch["x"] - batch["y"]) ** 2)
    return loss, (statistics, {"slope": params})


def slope_batch(key, step, data):
    rows = jax.random.randint(key, (4,), 0, len(data["x"]))
    return jax.tree.map(lambda array: array[rows], data)


def slope_data(rng):
    return {"x": f32(rng.normal(size=8)), "y": f32(rng.normal(size=8))}


TRAINING = [
    Case(
        "training.init_state",
        lambda params: training.init_state(params, OPTIMIZER),
        lambda rng: (f32(rng.normal(size=3)),),
    ),
    Case(
        "training.train_step",
        lambda key, params, batch: training.train_step(
            key,
            training.init_state(params, OPTIMIZER),
            batch,
            loss_fn=slope_loss,
            optimizer=OPTIMIZER,
        ),
        lambda rng: (key(rng), f32(rng.normal()), slope_data(rng)),
    ),
    Case(
        "training.train_steps",
        lambda key, params, data, num_steps=3: training.train_steps(
            key,
            training.init_state(params, OPTIMIZER),
            data,
            num_steps=num_steps,
            batch_fn=slope_batch,
            loss_fn=slope_loss,
            optimizer=OPTIMIZER,
        ),
        lambda rng: (key(rng), f32(rng.normal()), slope_data(rng)),
        misuse=(
            (
                (_KEY, f32(0.0), slope_data(np.random.default_rng(0))),
                {"num_steps": 0},
                ValueError,
                "num_steps must be at least 1; got 0",
            ),
        ),
    ),
    Case(
        "batching.map_batches",
        lambda x, batch_size=3: batching.map_batches(
            lambda rows: 2 * rows["x"], {"x": x}, batch_size=batch_size
        ),
        lambda rng: (f32(rng.normal(size=(7, 2))),),
        oracle=lambda x: 2 * np.asarray(x),
        misuse=(
            ((jnp.ones((0, 2)),), {}, ValueError, r"at least 1; got \[0\]"),
            ((jnp.ones((3, 2)),), {"batch_size": 0}, ValueError, "batch_size must be"),
        ),
    ),
]

_EPISODE_OPTIONS = {"num_episodes": 5, "num_ways": 2}

EPISODES = [
    Case(
        "episodes.prototypes",
        episodes.prototypes,
        lambda rng: (f32(rng.normal(size=(4, 3, 2))),),
        oracle=oracles.prototypes,
        gradient=(0,),
        misuse=(
            ((jnp.ones((3, 2)),), {}, ValueError, "support must have 3 axes"),
            ((jnp.ones((3, 2, 2), int),), {}, TypeError, "support must be a floating"),
        ),
        traits=frozenset({"half", "nan"}),
    ),
    Case(
        "episodes.classify",
        episodes.classify,
        lambda rng: (f32(rng.normal(size=(4, 3, 2))), f32(rng.normal(size=(6, 2)))),
        oracle=oracles.classify,
        misuse=(
            ((jnp.ones((3, 2)), jnp.ones((3, 2))), {}, ValueError, "support must have 3"),
            (
                (jnp.ones((3, 1, 2)), jnp.ones((3, 4))),
                {},
                ValueError,
                "must have 4 columns",
            ),
            (
                (jnp.ones((3, 1, 2)), jnp.ones((3, 2), int)),
                {},
                TypeError,
                "must be a float",
            ),
        ),
    ),
    Case(
        "episodes.episode_accuracy",
        episodes.episode_accuracy,
        lambda rng: (key(rng), f32(rng.normal(size=(14, 2))), INDEX),
        options=(_EPISODE_OPTIONS,),
        misuse=(
            ((_KEY, jnp.ones((13, 2)), INDEX), _EPISODE_OPTIONS, ValueError, "14 rows"),
            ((_KEY, jnp.ones(14), INDEX), _EPISODE_OPTIONS, ValueError, "must have 2 axes"),
            (
                (_KEY, jnp.ones((14, 2), int), INDEX),
                _EPISODE_OPTIONS,
                TypeError,
                "floating",
            ),
            (
                (_KEY, jnp.ones((14, 2)), INDEX),
                _EPISODE_OPTIONS | {"num_episodes": 1},
                ValueError,
                "num_episodes must be at least 2",
            ),
            (
                (_KEY, jnp.ones((14, 2)), INDEX),
                _EPISODE_OPTIONS | {"num_shots": 2},
                ValueError,
                "class 5 has 2",
            ),
        ),
    ),
]


def judged(rng):
    """Distances of two kinds, with ties."""
    same = rng.random(40) < 0.5
    gaps = np.round(rng.normal(size=40) + np.where(same, 0, 1), 1)
    return f32(gaps - gaps.min()), jnp.asarray(same)


def where_and_weights(rng, args):
    return entry_arrays(rng, args)


_D, _S = jnp.ones(4), jnp.ones(4, bool)
_JUDGED_MISUSE = (
    ((_D[:, None], _S[:, None]), {}, ValueError, "distances must have 1 axes"),
    ((_D, _S[:3]), {}, ValueError, r"same must have shape \(4,\)"),
    ((_S, _S), {}, TypeError, "distances must be a floating"),
    ((_D, _D), {}, TypeError, "same must be a boolean"),
    ((_D, _S), {"weights": _D[:3]}, ValueError, "weights must have shape"),
    ((_D, _S), {"where": _S[:3]}, ValueError, "where"),
)


def _bootstrap(key, distances, same, identities, **options):
    options = {"num_identities": 6, "num_samples": 20} | options
    return verification.bootstrap_interval(
        key, verification.roc_area, distances, same, identities, **options
    )


VERIFICATION = [
    Case(
        "verification.decision_rates",
        verification.decision_rates,
        judged,
        options=({"threshold": 1.0}, {"threshold": 1.3}),
        arrays=where_and_weights,
        oracle=oracles.decision_rates,
        misuse=tuple((a, k | {"threshold": 1.0}, e, m) for a, k, e, m in _JUDGED_MISUSE),
        traits=frozenset({"nan"}),
    ),
    *(
        Case(
            f"verification.{fn.__name__}",
            fn,
            judged,
            arrays=arrays,
            oracle=oracle,
            misuse=_JUDGED_MISUSE,
            traits=frozenset({"nan"}),
        )
        for fn, oracle, arrays in (
            (verification.roc_curve, oracles.roc_curve, None),
            (verification.roc_area, oracles.roc_area, where_and_weights),
            (verification.equal_error_rate, oracles.equal_error_rate, where_and_weights),
            (verification.best_threshold, oracles.best_threshold, where_and_weights),
        )
    ),
    Case(
        "verification.transferred_threshold",
        lambda *args: verification.transferred_threshold(args[:2], args[2:]),
        lambda rng: (*judged(rng), *judged(rng)),
        oracle=lambda *args: oracles.transferred_threshold(args[:2], args[2:]),
    ),
    Case(
        "verification.bootstrap_interval",
        _bootstrap,
        lambda rng: (key(rng), *judged(rng), jnp.asarray(rng.integers(6, size=(2, 40)))),
        misuse=(
            ((_KEY, _D, _S, _I4), {}, ValueError, r"identities must have shape \(2, 4\)"),
            (
                (_KEY, _D, _S, jnp.ones((2, 4))),
                {},
                TypeError,
                "identities must be a integer",
            ),
            ((_KEY, _D, _S, _I4), {"level": 1.0}, ValueError, "level must be in"),
            ((_KEY, _D, _S, _I4), {"num_identities": 1}, ValueError, "num_identities"),
            ((_KEY, _D, _S, _I4), {"num_samples": 1}, ValueError, "num_samples"),
        ),
    ),
]

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
