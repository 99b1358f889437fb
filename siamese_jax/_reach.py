"""What a value of each loss of a matrix depends on, and so how the loss can be cut.

* entry-wise: a value needs its own entry alone.
* row-wise: it needs the row of its anchor.
* whole-matrix: it needs other rows too, and the loss cannot be cut.

A loss that is not of `siamese_jax.losses` is taken to be row-wise.
"""

from collections.abc import Callable
from typing import Any

from siamese_jax import losses
from siamese_jax._checks import whole_matrix_words
from siamese_jax.losses._direction import Plain, check_direction, plain

ENTRY_WISE = frozenset(
    {
        losses.contrastive_loss,
        losses.cosine_embedding_loss,
        losses.logistic_loss,
        losses.margin_loss,
        losses.threshold_consistent_margin_loss,
    }
)
ROW_WISE = frozenset(
    {
        losses.all_triplets_loss,  # without swap
        losses.circle_loss,
        losses.decoupled_contrastive_loss,
        losses.fast_ap_loss,
        losses.generalized_lifted_structure_loss,
        losses.hard_negative_contrastive_loss,
        losses.hard_triplet_loss,
        losses.info_nce_loss,
        losses.matching_loss,
        losses.multi_similarity_loss,
        losses.nca_loss,
        losses.pnp_loss,
        losses.ranked_list_loss,
        losses.recall_loss,
        losses.semi_hard_triplet_loss,
        losses.sigmoid_pair_loss,
        losses.smooth_ap_loss,
        losses.supervised_contrastive_loss,
        losses.tuplet_margin_loss,
    }
)
WHOLE_MATRIX = frozenset(
    {
        losses.angular_loss,
        losses.histogram_loss,
        losses.intra_pair_variance_loss,
        losses.lifted_structure_loss,
    }
)


def taken_apart(loss_fn: Callable[..., Any], matrix_fn: Callable[..., Any]) -> Plain:
    """Returns `plain(loss_fn)` of a loss that can be cut and takes what `matrix_fn` makes.

    Raises:
      ValueError: As `refuse_whole_matrix` and `check_direction`.
    """
    taken = plain(loss_fn)
    refuse_whole_matrix(taken.fn, taken.options)
    check_direction(loss_fn, matrix_fn)
    return taken


def refuse_whole_matrix(loss_fn: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raises ValueError for a loss of the library that rows alone cannot compute.

    Args:
      loss_fn: A plain loss.
      options: Its options.
    """
    name = getattr(loss_fn, "__name__", repr(loss_fn))
    if loss_fn in WHOLE_MATRIX:
        raise ValueError(whole_matrix_words(name))
    if loss_fn is losses.all_triplets_loss and options.get("swap"):
        raise ValueError(whole_matrix_words(f"{name} with swap=True"))
    if loss_fn is losses.nt_xent_loss:
        raise ValueError(
            "nt_xent_loss makes its own matrix; take info_nce_loss of both views, "
            "jnp.concatenate([a, b]), with the labels jnp.tile(jnp.arange(len(a)), 2)"
        )
    own = getattr(loss_fn, "__module__", "").startswith("siamese_jax.losses")
    if own and loss_fn not in ENTRY_WISE | ROW_WISE and name in losses.__all__:
        raise ValueError(f"{name} is not a loss of a matrix and its relation")
