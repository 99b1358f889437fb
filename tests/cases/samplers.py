"""Rows of the contract table for samplers."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import samplers
from tests.cases.case import FOUR, KEY, Case, Inputs, Kind, Refusal, key

LABELS = np.array([3, 3, 3, 5, 5, 7, 7, 7, 7, 8, 8, 9, 9, 9])
GROUPS = np.array([0] * 5 + [1] * 4 + [2] * 5)  # classes 3, 5 | 7 | 8, 9
INDEX = samplers.class_index(LABELS, groups=GROUPS)
_LONELY = samplers.class_index(["a", "a", "b"])
_ONE_CLASS = samplers.class_index(["a", "a"])
_FEWER = "every class needs at least 2 examples; class 'b' has 1"
_GROUP = r"2 classes are needed from at most 1 group\(s\).*1 \(1 classes\)"


def keyed(rng):
    return Inputs((key(rng), INDEX))


def _sampler(name, options, *refusals):
    """A sampler of `(key, index, *, ...)`; refusals: (name, index, options, words)."""
    return Case(
        f"samplers.{name}",
        getattr(samplers, name),
        Kind.RANDOM,
        keyed,
        options=options,
        refusals=tuple(
            Refusal(name, (KEY, index), changed, ValueError, words)
            for name, index, changed, words in refusals
        ),
    )


SAMPLERS = [
    *(
        _sampler(
            name,
            ({count: 6},),
            ("a class of one example", _LONELY, {count: 2}, _FEWER),
            ("one class", _ONE_CLASS, {count: 2}, "at least 2 classes"),
            ("none", INDEX, {count: 0}, f"{count} must be at least 1"),
            ("a group of one class", INDEX, {"same_group": True}, _GROUP),
        )
        for name, count in (
            ("sample_pairs", "num_pairs"),
            ("sample_triplets", "num_triplets"),
        )
    ),
    Case(
        "samplers.sample_partners",
        samplers.sample_partners,
        Kind.RANDOM,
        lambda rng: Inputs((*keyed(rng).args, jnp.arange(6), jnp.arange(6) % 2 == 0)),
        refusals=(
            Refusal(
                "a class of one example",
                (KEY, _LONELY, FOUR, FOUR > 1),
                {},
                ValueError,
                _FEWER,
            ),
        ),
    ),
    _sampler(
        "sample_batch",
        (
            {"num_classes": 3, "num_per_class": 2},
            {"num_classes": 3, "num_per_class": 2, "max_groups": 2},
        ),
        (
            "too few examples",
            INDEX,
            {"num_classes": 2, "num_per_class": 3},
            "every class needs at least 3 examples; class 5 has 2",
        ),
        (
            "too few classes",
            INDEX,
            {"num_classes": 6, "num_per_class": 1},
            "at least 6 classes are needed; there are 5",
        ),
        (
            "a group of one class",
            INDEX,
            {"num_classes": 2, "num_per_class": 1, "max_groups": 1},
            _GROUP,
        ),
    ),
    Case(
        "samplers.sample_hard_batch",
        samplers.sample_hard_batch,
        Kind.RANDOM,
        lambda rng: Inputs((*keyed(rng).args, jnp.asarray(rng.uniform(size=(5, 5))))),
        options=({"num_classes": 3, "num_per_class": 2},),
        refusals=(
            Refusal(
                "another number of classes",
                (KEY, INDEX, jnp.ones((4, 5))),
                {},
                ValueError,
                r"confusion must have shape \(5, 5\)",
            ),
            Refusal(
                "too few examples",
                (KEY, INDEX, jnp.ones((5, 5))),
                {"num_per_class": 3},
                ValueError,
                "every class needs at least 3 examples; class 5 has 2",
            ),
            Refusal(
                "too few classes",
                (KEY, INDEX, jnp.ones((5, 5))),
                {"num_classes": 6},
                ValueError,
                "at least 6 classes are needed; there are 5",
            ),
        ),
    ),
    Case(
        "samplers.class_epoch_batch",
        samplers.class_epoch_batch,
        Kind.RANDOM,
        lambda rng: Inputs((key(rng), jnp.asarray(rng.integers(9)), INDEX)),
        options=({"num_classes": 3, "num_per_class": 2},),
        refusals=(
            Refusal(
                "too few classes",
                (KEY, FOUR[0], INDEX),
                {"num_classes": 6},
                ValueError,
                "at least 6 classes are needed; there are 5",
            ),
            Refusal(
                "too few examples",
                (KEY, FOUR[0], INDEX),
                {"num_per_class": 3},
                ValueError,
                "every class needs at least 3 examples; class 5 has 2",
            ),
        ),
    ),
    _sampler(
        "sample_episode",
        ({"num_ways": 3, "num_shots": 1, "num_queries": 1},),
        (
            "too few examples",
            INDEX,
            {"num_ways": 2, "num_queries": 2},
            "every class needs at least 3 examples; class 5 has 2",
        ),
        ("too few classes", INDEX, {"num_ways": 6}, "at least 6 classes"),
    ),
    Case(
        "samplers.epoch_batch",
        samplers.epoch_batch,
        Kind.RANDOM,
        lambda rng: Inputs((key(rng), jnp.asarray(rng.integers(9)))),
        options=({"num_examples": 7, "batch_size": 3},),
        refusals=(
            Refusal(
                "no examples",
                (KEY, FOUR[0]),
                {"num_examples": 0},
                ValueError,
                "num_examples must",
            ),
            Refusal(
                "an empty batch",
                (KEY, FOUR[0]),
                {"batch_size": 0},
                ValueError,
                "batch_size must be",
            ),
        ),
    ),
    Case(
        "samplers.permute",
        samplers.permute,
        Kind.RANDOM,
        lambda rng: Inputs((key(rng), jnp.asarray(rng.permutation(7)))),
        options=({"num_examples": 7},),
        refusals=(
            Refusal(
                "no examples",
                (KEY, FOUR),
                {"num_examples": 0},
                ValueError,
                "num_examples must",
            ),
        ),
    ),
]
