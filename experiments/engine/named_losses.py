"""Losses of the library by their names, for embeddings that are normalised to length 1."""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from siamese_jax import distances, losses, relations
from siamese_jax.errors import UserError
from siamese_jax.relations import Items

# The matrix that a loss takes, by the names of the arguments that it must be given. A loss
# with proxies takes none.
_MATRICES: dict[tuple[str, ...], Callable[..., Any] | None] = {
    ("distances", "same"): distances.euclidean_distance_matrix,
    ("similarities", "same"): distances.cosine_similarity_matrix,
    ("embeddings", "labels", "proxies"): None,
}
_OF_ALL_LOSSES = ("where", "weights", "reduce_fn")


class NamedLoss(NamedTuple):
    """A loss with its options.

    Attributes:
      loss_fn: `loss_fn(embeddings, labels, ids, proxies)`. Embeddings with equal ids are
        not compared. Only losses with proxies use those, one for each class. With
        `reduce_fn=None` it returns the terms of the loss.
      has_proxies: Whether it is a loss with proxies.
    """

    loss_fn: Callable[..., Any]
    has_proxies: bool


def loss_names() -> list[str]:
    """The names of all losses that embeddings, labels and proxies suffice for.

    >>> names = loss_names()
    >>> "contrastive" in names, "proxy_anchor" in names, "nt_xent" in names
    (True, True, False)
    """
    names = [name for name in losses.__all__ if name.endswith("_loss")]
    return [
        name.removesuffix("_loss")
        for name in names
        if _needed(getattr(losses, name)) in _MATRICES
    ]


def _needed(loss_fn: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(loss_fn).parameters.values()
    return tuple(one.name for one in parameters if one.default is one.empty)


def find_loss(name: str, texts: Sequence[str]) -> NamedLoss:
    """The loss of a name, such as "contrastive", with options such as "margin=0.5".

    Raises:
      UserError: If there is no such loss, or an option or its value is wrong.
    """
    if name not in loss_names():
        raise UserError(f"--loss must be one of {', '.join(loss_names())}; got {name}")
    fn = getattr(losses, f"{name}_loss")
    matrix_fn = _MATRICES[_needed(fn)]
    defaults = {
        option: one.default
        for option, one in inspect.signature(fn).parameters.items()
        if one.default is not one.empty and option not in _OF_ALL_LOSSES
    }
    options = dict(_option(text, defaults) for text in texts)

    def loss_fn(
        embeddings: jax.Array, labels: Any, ids: Any, proxies: Any, **reduction: Any
    ) -> Any:
        if matrix_fn is None:
            return fn(embeddings, labels, proxies, **options, **reduction)
        same, where = relations.within(Items(labels, ids=ids))
        matrix = matrix_fn(embeddings, embeddings)
        return fn(matrix, same, where=where, **options, **reduction)

    labels = jnp.arange(4) // 2
    try:
        jax.eval_shape(loss_fn, jnp.eye(4), labels, jnp.arange(4), jnp.eye(2, 4))
    except (ValueError, TypeError) as error:
        raise UserError(f"--loss-options: {error}") from error
    return NamedLoss(loss_fn, matrix_fn is None)


def _option(text: str, defaults: Mapping[str, Any]) -> tuple[str, Any]:
    """Splits "margin=0.5" into the name and the value of an option.

    Raises:
      UserError: If there is no such option, or its value is of another kind than its
        default.
    """
    name, _, word = text.partition("=")
    if name not in defaults:
        names = ", ".join(sorted(defaults)) or "none"
        raise UserError(f"--loss-options: the loss has the options {names}; got {text}")
    if isinstance(defaults[name], str):
        return name, word
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        value = None
    is_flag = isinstance(defaults[name], bool)
    if not isinstance(value, int | float) or isinstance(value, bool) != is_flag:
        kind = "True or False" if is_flag else "a number"
        raise UserError(f"--loss-options: {name} must be {kind}; got {word!r}")
    return name, value
