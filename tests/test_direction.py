"""Tests that distances are not taken for similarities, nor similarities for distances."""

import functools

import jax
import jax.numpy as jnp
import pytest

from siamese_jax import distances, losses, sharding, tiling
from siamese_jax._reach import ENTRY_WISE, ROW_WISE, WHOLE_MATRIX

pytestmark = pytest.mark.quick

TAKE_DISTANCES = {
    losses.contrastive_loss,
    losses.margin_loss,
    losses.nca_loss,
    losses.fast_ap_loss,
    losses.hard_triplet_loss,
    losses.semi_hard_triplet_loss,
    losses.all_triplets_loss,
    losses.lifted_structure_loss,
    losses.generalized_lifted_structure_loss,
    losses.ranked_list_loss,
}
OF_A_MATRIX = sorted(ENTRY_WISE | ROW_WISE | WHOLE_MATRIX, key=lambda fn: fn.__name__)
DISTANCES = distances.euclidean_distance_matrix
SIMILARITIES = distances.cosine_similarity_matrix
FORMS = {
    "on_labels": losses.on_labels,
    "tiled": tiling.tiled,
    "gathered": functools.partial(sharding.gathered, axis_name="data"),
    "ring": functools.partial(sharding.ring, axis_name="data"),
}


@pytest.mark.parametrize("loss_fn", OF_A_MATRIX, ids=lambda fn: fn.__name__)
def test_each_loss_takes_one_of_the_two(loss_fn):
    right, wrong = DISTANCES, SIMILARITIES
    if loss_fn not in TAKE_DISTANCES:
        right, wrong = wrong, right
    losses.on_labels(loss_fn, right)
    words = f"^{loss_fn.__name__} takes .*s; {wrong.__name__} makes .*s$"
    with pytest.raises(ValueError, match=words):
        losses.on_labels(loss_fn, wrong)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_refuses_the_wrong_one(form):
    with pytest.raises(ValueError, match="contrastive_loss takes distances; cosine_simil"):
        form(losses.contrastive_loss, SIMILARITIES)
    contrast = functools.partial(losses.sigmoid_pair_loss, temperature=0.5)
    squared = functools.partial(distances.squared_euclidean_distance_matrix)
    with pytest.raises(ValueError, match="takes similarities; squared_euclidean_distance_"):
        form(contrast, squared)
    form(contrast, SIMILARITIES)


def test_both_directions_are_seen_through():
    both = losses.both_directions(losses.info_nce_loss)
    with pytest.raises(ValueError, match="info_nce_loss takes similarities"):
        tiling.tiled(both, DISTANCES)
    tiling.tiled(both, SIMILARITIES)


def test_other_names_say_nothing():
    def own_loss(matrix, same, *, where):
        return jnp.sum(matrix, where=where & same) / 2

    x, labels = jnp.array([[0.0], [1.0]]), jnp.array([7, 7])
    assert losses.on_labels(own_loss, DISTANCES)(x, labels) == 1
    assert losses.on_labels(own_loss, lambda a, b: 2 - DISTANCES(a, b))(x, labels) == 1
    negated = losses.on_labels(losses.info_nce_loss, lambda a, b: -DISTANCES(a, b))
    assert negated(x, labels) == 0


def dissimilarity_matrix(a, b):
    """A distance, whose name ends like that of a similarity."""
    return DISTANCES(a, b)


@functools.wraps(DISTANCES)
def converted_matrix(a, b):
    """A similarity, with the name of a distance."""
    return -DISTANCES(a, b)


@functools.wraps(losses.contrastive_loss)
def converted_loss(similarities, same, **options):
    """A loss of similarities, with the name of one of distances."""
    return losses.contrastive_loss(1 - similarities, same, **options)


class Named:
    """An object with a name that is no text."""

    __name__ = 7

    def __call__(self, a, b):
        return DISTANCES(a, b)


@pytest.mark.parametrize(
    ("loss_fn", "matrix_fn"),
    [
        (losses.contrastive_loss, dissimilarity_matrix),
        (losses.info_nce_loss, converted_matrix),
        (converted_loss, SIMILARITIES),
        (losses.contrastive_loss, Named()),
        (losses.contrastive_loss, jax.jit(lambda a, b: 1 - SIMILARITIES(a, b))),
    ],
)
def test_functions_of_others_are_never_refused(loss_fn, matrix_fn):
    x, labels = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([7, 7])
    assert jnp.isfinite(losses.on_labels(loss_fn, matrix_fn)(x, labels))
