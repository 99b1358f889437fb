"""The health of embeddings while a run trains: computed in its steps, and told in words.

The loss of a system gives what it has embedded, in its metrics under `EMBEDDED`. In its
place the training step puts the figures of `siamese_jax.health`, at the steps 10, 20, ...,
100, and at every hundredth step from then on: the singular values of a batch take longer
than some training steps. They are figures of the batch of all devices.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from siamese_jax import health, relations
from siamese_jax.reductions import Terms
from siamese_jax.training import LossFn, Metrics

EMBEDDED = "embedded"
FIGURES = (*health.Health._fields, "active_share")


class Embedded(NamedTuple):
    """What a loss was given, and its terms, on one device.

    Attributes:
      embeddings: [..., n, dim], of n examples, of which each may have several inputs.
      labels: [..., n], the class of each embedding among those of all devices.
      valid: [..., n], False for padding.
      terms: The terms of the loss, of which those that are not 0 are active. Some losses
        have several of them.
    """

    embeddings: jax.Array
    labels: jax.Array
    valid: jax.Array
    terms: Terms | tuple[Terms, ...]


def embedded_pairs(
    embeddings: jax.Array,
    same: jax.Array,
    where: jax.Array,
    terms: Terms,
    *,
    axis_name: str | None,
) -> Embedded:
    """What a loss of pairs was given.

    Two embeddings are of one class if they are a pair of the same class. What is known
    about the classes of other pairs is not used.

    Args:
      embeddings: [2, n, dim].
      same: Whether both embeddings of a pair are of the same class.
      where: False for padding.
      terms: The terms of the loss.
      axis_name: The axis of the devices, if each has a share of the pairs.
    """
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    first = 2 * len(same) * device + jnp.arange(len(same))
    labels = jnp.stack([first, jnp.where(same, first, first + len(same))])
    return Embedded(embeddings, labels, jnp.stack([where, where]), terms)


# In the training step -------------------------------------------------------------------


def is_measured(step: Any) -> Any:
    """Whether the health is measured in a step, which is counted from 1."""
    return (step % 100 == 0) | ((step % 10 == 0) & (step < 100))


def numbered(sample: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a sampler of `(step, batch)`, whose steps are counted from 1."""
    return lambda key, step, data: (step + 1, sample(key, step, data))


def measured(loss_fn: LossFn, axis_name: str | None) -> LossFn:
    """A loss function of numbered batches, whose metrics have the health.

    The figures are NaN in steps in which they are not measured, and where they mean
    nothing.

    Args:
      loss_fn: The loss of a system. Without embeddings among its metrics these stay as
        they are.
      axis_name: The axis of the devices, if each has a share of the batch.
    """

    def loss(params: Any, statistics: Any, batch: Any, key: jax.Array) -> Any:
        step, batch = batch
        value, (statistics, metrics) = loss_fn(params, statistics, batch, key)
        embedded = metrics.get(EMBEDDED)
        metrics = _numbers(metrics)
        if embedded is not None:
            metrics |= jax.lax.cond(
                is_measured(step),
                partial(_figures, axis_name=axis_name),
                lambda _: dict.fromkeys(FIGURES, jnp.full((), jnp.nan, float)),
                jax.lax.stop_gradient(embedded),
            )
        return value, (statistics, metrics)

    return loss


def unmeasured(loss_fn: LossFn) -> LossFn:
    """The loss of a system with metrics that are numbers alone."""

    def loss(params: Any, statistics: Any, batch: Any, key: jax.Array) -> Any:
        value, (statistics, metrics) = loss_fn(params, statistics, batch, key)
        return value, (statistics, _numbers(metrics))

    return loss


def _numbers(metrics: dict[str, Any]) -> Metrics:
    return {name: metric for name, metric in metrics.items() if name != EMBEDDED}


def _figures(embedded: Embedded, *, axis_name: str | None) -> Metrics:
    dim = embedded.embeddings.shape[-1]
    embedded = embedded._replace(
        embeddings=embedded.embeddings.reshape(-1, dim),
        labels=embedded.labels.ravel(),
        valid=embedded.valid.ravel(),
    )
    if axis_name is not None:
        embedded = jax.lax.all_gather(embedded, axis_name, tiled=True)
    items = relations.Items(embedded.labels, valid=embedded.valid)
    same, where = relations.within(items)
    figures = health.embedding_health(embedded.embeddings, same, where)
    share = health.active_share(embedded.terms)
    return {
        name: figure.astype(float)
        for name, figure in zip(FIGURES, (*figures, share), strict=True)
    }


# In the log -----------------------------------------------------------------------------


class CollapseWatch:
    """Tells where the embeddings of a run begin and end to be collapsed.

    Networks with sigmoid features start with embeddings near a point. While their spread
    grows from one measurement to the next they have not collapsed.
    """

    def __init__(self, lines: Iterable[dict[str, float]]) -> None:
        """Takes up the lines of metrics.jsonl with the health that were told before."""
        self._collapsed, self._spread = False, float("-inf")
        for line in lines:
            self._look_at(line)

    def told(self, metrics: dict[str, np.ndarray], step: int) -> list[str]:
        """Sentences for the steps after `step` in which a collapse begins or ends."""
        lines = []
        for i in range(len(metrics["loss"])) if FIGURES[0] in metrics else ():
            if is_measured(step + i + 1):
                words = self._look_at({name: float(metrics[name][i]) for name in FIGURES})
                lines += [f"step {step + i + 1}: {words}"] if words else []
        return lines

    def _look_at(self, figures: dict[str, float]) -> str | None:
        of_embeddings: list[Any] = [figures[name] for name in health.Health._fields]
        words = health.warning(health.Health(*of_embeddings))
        spread, was_collapsed = figures["spread"], self._collapsed
        grows = spread > self._spread
        self._collapsed = words is not None and (was_collapsed or not grows)
        self._spread = spread
        if self._collapsed and not was_collapsed:
            return words
        if was_collapsed and not self._collapsed:
            return (
                f"the embeddings are spread again: their spread is {spread:.4f}, their "
                f"effective rank is {figures['effective_rank']:.2f}"
            )
        return None
