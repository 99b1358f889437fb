"""From embeddings and labels to a loss of their matrix."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Bool, Float, Shaped

from siamese_jax import relations
from siamese_jax.losses._direction import check_direction
from siamese_jax.relations import Items, SameFn, equal_labels


def on_labels(
    loss_fn: Callable[..., Any],
    matrix_fn: Callable[[Array, Array], Float[Array, "n n"]],
    *,
    same_fn: SameFn = equal_labels,
) -> Callable[..., Any]:
    """Makes a loss of a matrix a function of embeddings and labels.

    Args:
      loss_fn: `loss_fn(matrix, same, *, where, ...)`, such as `semi_hard_triplet_loss`.
      matrix_fn: What the loss takes, of all pairs of embeddings, such as
        `distances.euclidean_distance_matrix`.
      same_fn: See `siamese_jax.relations`; `shared_label` for items with several labels.

    Returns:
      `loss(embeddings, labels, valid=None, **options)`. No embedding is compared with
      itself. Where `valid` is False, the embedding is padding and counts nowhere. The
      options go to `loss_fn`.

    Raises:
      ValueError: If the loss takes distances and `matrix_fn` makes similarities, or the
        reverse, and both are functions of the library.

    >>> import jax.numpy as jnp
    >>> from siamese_jax import distances, losses
    >>> loss_fn = on_labels(losses.contrastive_loss, distances.euclidean_distance_matrix)
    >>> print(loss_fn(jnp.array([[0.0], [1.0]]), jnp.array([7, 7])))
    0.5
    """
    check_direction(loss_fn, matrix_fn)

    def loss(
        embeddings: Float[Array, "n dim"],
        labels: Shaped[Array, "n ..."],
        valid: Bool[Array, " n"] | None = None,
        **options: Any,
    ) -> Any:
        same, where = relations.within(Items(labels, valid=valid), same_fn=same_fn)
        return loss_fn(matrix_fn(embeddings, embeddings), same, where=where, **options)

    return loss
