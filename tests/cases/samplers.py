"""Rows of the table: samplers."""

import jax.numpy as jnp
import numpy as np

from siamese_jax import (
    samplers,
)
from tests.cases.case import KEY, Case, key
from tests.cases.relations import FOUR

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
        "samplers.sample_pairs",
        samplers.sample_pairs,
        keyed,
        options=({"num_pairs": 6},),
        misuse=(
            ((KEY, _LONELY), {"num_pairs": 2}, ValueError, _FEWER),
            ((KEY, _ONE_CLASS), {"num_pairs": 2}, ValueError, "at least 2 classes"),
            ((KEY, INDEX), {"num_pairs": 0}, ValueError, "num_pairs must be at least 1"),
            ((KEY, INDEX), {"num_pairs": 2, "within_groups": True}, ValueError, _GROUP),
        ),
    ),
    Case(
        "samplers.sample_partners",
        samplers.sample_partners,
        lambda rng: (*keyed(rng), jnp.arange(6), jnp.arange(6) % 2 == 0),
        misuse=(((KEY, _LONELY, FOUR, FOUR > 1), {}, ValueError, _FEWER),),
    ),
    Case(
        "samplers.sample_triplets",
        samplers.sample_triplets,
        keyed,
        options=({"num_triplets": 6},),
        misuse=(
            ((KEY, _LONELY), {"num_triplets": 2}, ValueError, _FEWER),
            ((KEY, _ONE_CLASS), {"num_triplets": 2}, ValueError, "at least 2 classes"),
            ((KEY, INDEX), {"num_triplets": 0}, ValueError, "num_triplets must be"),
            ((KEY, INDEX), {"num_triplets": 2, "within_groups": True}, ValueError, _GROUP),
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
                (KEY, INDEX),
                {"num_classes": 2, "num_per_class": 3},
                ValueError,
                "every class needs at least 3 examples; class 5 has 2",
            ),
            (
                (KEY, INDEX),
                {"num_classes": 6, "num_per_class": 1},
                ValueError,
                "at least 6 classes are needed; there are 5",
            ),
            (
                (KEY, INDEX),
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
                (KEY, INDEX),
                {"num_ways": 2, "num_shots": 1, "num_queries": 2},
                ValueError,
                "every class needs at least 3 examples; class 5 has 2",
            ),
            (
                (KEY, INDEX),
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
                (KEY,),
                {"num_examples": 0, "batch_size": 3},
                ValueError,
                "num_examples must",
            ),
            (
                (KEY,),
                {"num_examples": 3, "batch_size": 0},
                ValueError,
                "batch_size must be",
            ),
        ),
    ),
]
