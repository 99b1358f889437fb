"""Cross-entropy of each anchor's positives among the items of its row, in nats.

The similarities, divided by a temperature, are the logits of a softmax over a row. The
losses differ in what the denominator holds and in how several positives are combined:

* `supervised_contrastive_loss`: all items of the row, positives included.
* `info_nce_loss`: the positive itself and the negatives.
* `decoupled_contrastive_loss`: the negatives alone.
* `hard_negative_contrastive_loss`: the positive and negatives that weigh more if they are
  similar.
* `matching_loss`: all items, and the probabilities of the positives are added.

The aligned pairs of two views or of two towers have the relation `relations.aligned(n)`.
With it `info_nce_loss` is the loss of CLIP in one direction, the N-pairs loss and the
multiple negatives ranking loss; `both_directions` makes it symmetric. `sigmoid_pair_loss`
decides each pair by itself instead.

>>> from siamese_jax import relations
>>> same, where = relations.aligned(2)
>>> loss = both_directions(info_nce_loss)(jnp.zeros((2, 2)), same, where=where)
>>> print(f"{loss:.4f}")  # log 2
0.6931
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax.nn import logsumexp, softplus
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import check_floating, check_scalar, check_shape
from siamese_jax._numerics import Scalar, widen
from siamese_jax.losses.pairs import logistic_loss
from siamese_jax.miners import Sides, sides
from siamese_jax.reductions import (
    ReduceFn,
    Terms,
    make_terms,
    mean,
    mean_and_count,
    reduce_terms,
)


def supervised_contrastive_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    temperature: Scalar = 0.1,
    inside: bool = False,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Softmax cross-entropy of each anchor's positives among all other items.

    For anchor i with positives P(i) and valid entries A(i):
    -1/|P(i)| sum_{p in P(i)} log( exp(s_ip / t) / sum_{a in A(i)} exp(s_ia / t) ).
    With `inside` the mean over the positives is taken inside the logarithm.
    An anchor without a positive is left out. An anchor without a negative is not; its loss
    is at least log |P(i)|, or 0 `inside`.

    Args:
      similarities: A matrix whose rows are anchors, in the paper of cosine similarities.
      same: True where the two are of one class.
      temperature: t, which divides the similarities, 0.1 in the paper.
      inside: Which of the two losses of the paper to compute. It prefers the other, L_out.
      where: See `siamese_jax.losses`, also for `weights` (one per anchor) and `reduce_fn`.
        It must be False between an anchor and itself, as in `relations.within`.

    Returns:
      The reduced loss, or `Terms` with one value per anchor.

    Reference:
      Khosla et al. Supervised Contrastive Learning. NeurIPS 2020, eq. 2 (L_out) and 3
      (L_in), which sum over anchors instead of averaging.

    >>> same = jnp.array([[True, False]])
    >>> loss = supervised_contrastive_loss(jnp.zeros((1, 2)), same)
    >>> print(f"{loss:.4f}")  # log 2
    0.6931
    """
    logits, (positive, negative) = _logits(similarities, same, where, temperature)
    num_positives = jnp.sum(positive, axis=1)
    at_least_one = jnp.maximum(num_positives, 1)
    if inside:
        of_positives = logsumexp(logits, axis=1, where=positive) - jnp.log(at_least_one)
    else:
        of_positives = jnp.sum(jnp.where(positive, logits, 0), axis=1) / at_least_one
    values = logsumexp(logits, axis=1, where=positive | negative) - of_positives
    return reduce_terms(make_terms(values, num_positives > 0, weights=weights), reduce_fn)


def info_nce_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    temperature: Scalar = 0.1,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, "n m"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Softmax cross-entropy of each positive among itself and the anchor's negatives.

    For anchor i, positive p and negatives N(i):
    -log( exp(s_ip / t) / (exp(s_ip / t) + sum_{a in N(i)} exp(s_ia / t)) ).

    Args:
      similarities: A matrix whose rows are anchors, of cosine similarities or dot products.
      same: True where the two are of one class, or the aligned pairs.
      temperature: t, which divides the similarities.
      where: See `siamese_jax.losses`, also for `reduce_fn` and for `weights` (one per
        entry, of which those of the positives are used).

    Returns:
      The reduced loss, or `Terms` with one value per anchor-positive entry whose anchor has
      a negative.

    Reference:
      van den Oord, Li, Vinyals. Representation Learning with Contrastive Predictive Coding.
      2018, eq. 4. Known as NT-Xent with labels, and with aligned pairs and temperature 1 as
      the N-pairs loss (Sohn, NIPS 2016, eq. 3, without its penalty on norms).

    >>> same = jnp.array([[True, True, False]])
    >>> loss = info_nce_loss(jnp.zeros((1, 3)), same)
    >>> print(f"{loss:.4f}")  # log 2 for each of the two positives
    0.6931
    """
    logits, (positive, negative) = _logits(similarities, same, where, temperature)
    against = logsumexp(logits, axis=1, where=negative, keepdims=True)
    values = softplus(against - logits)
    exists = positive & jnp.any(negative, axis=1, keepdims=True)
    return reduce_terms(make_terms(values, exists, weights=weights), reduce_fn)


def decoupled_contrastive_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    temperature: Scalar = 0.1,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, "n m"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Contrastive loss without the positive in the denominator, for small batches.

    For anchor i, positive p and negatives N(i):  -s_ip / t + log sum_{a in N(i)}
    exp(s_ia / t). It can be negative.

    Args:
      similarities: A matrix whose rows are anchors, in the paper of cosine similarities.
      same: True where the two are of one class, or the aligned pairs.
      temperature: t, which divides the similarities.
      where: See `siamese_jax.losses`, also for `reduce_fn` and for `weights` (one per
        entry, of which those of the positives are used).

    Returns:
      The reduced loss, or `Terms` with one value per anchor-positive entry whose anchor has
      a negative.

    Reference:
      Yeh et al. Decoupled Contrastive Learning. ECCV 2022, eq. 6, there for two views.

    >>> same = jnp.array([[True, False, False]])
    >>> loss = decoupled_contrastive_loss(jnp.zeros((1, 3)), same)
    >>> print(f"{loss:.4f}")  # log 2
    0.6931
    """
    logits, (positive, negative) = _logits(similarities, same, where, temperature)
    exists = positive & jnp.any(negative, axis=1, keepdims=True)
    against = logsumexp(logits, axis=1, where=negative, keepdims=True)
    values = jnp.where(exists, against, 0) - logits
    return reduce_terms(make_terms(values, exists, weights=weights), reduce_fn)


def hard_negative_contrastive_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    temperature: Scalar = 0.5,
    concentration: Scalar = 1.0,
    positive_share: Scalar = 0.1,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, "n m"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Contrastive loss whose negatives weigh more if they are similar, and debiased.

    With logits z = s / t, for anchor i, positive p and its n negatives N, the negatives
    weigh w_a = exp(b z_a) / mean_N exp(b z), and with the share q of positives among them
    g = max( (sum_N w_a exp(z_a) - n q exp(z_p)) / (1 - q), n exp(-1 / t) ),
    loss = -log( exp(z_p) / (exp(z_p) + g) ).
    With b = 0 and q = 0 it is `info_nce_loss`, up to the lower bound.

    Args:
      similarities: A matrix of cosine similarities whose rows are anchors.
      same: True where the two are known to be of one class, such as two views.
      temperature: t, which divides the similarities.
      concentration: b. Larger values concentrate on the most similar negatives.
      positive_share: q, the share of entries that are called different but are the same.
      where: See `siamese_jax.losses`, also for `reduce_fn` and for `weights` (one per
        entry, of which those of the positives are used).

    Returns:
      The reduced loss, or `Terms` with one value per anchor-positive entry whose anchor has
      a negative.

    Reference:
      Robinson et al. Contrastive Learning with Hard Negative Samples. ICLR 2021, eq. 4 and
      its appendix; `concentration=0` is Chuang et al. Debiased Contrastive Learning.
      NeurIPS 2020, eq. 7 and 8.

    >>> same = jnp.array([[True, False]])
    >>> loss = hard_negative_contrastive_loss(jnp.zeros((1, 2)), same)
    >>> print(f"{loss:.4f}")  # log(1 + (1 - 0.1) / 0.9)
    0.6931
    """
    check_scalar("concentration", concentration)
    check_scalar("positive_share", positive_share)
    logits, (positive, negative) = _logits(similarities, same, where, temperature)
    num_negatives = jnp.sum(negative, axis=1, keepdims=True)
    exists = positive & (num_negatives > 0)
    n = jnp.maximum(num_negatives, 1).astype(logits.dtype)

    def log_sum(scale: Scalar) -> Array:
        sums = logsumexp(scale * logits, axis=1, where=negative, keepdims=True)
        return jnp.where(num_negatives > 0, sums, 0)

    # logarithms of all terms divided by exp(z_p), so that nothing overflows
    log_sum_weighted = log_sum(1 + concentration) - log_sum(concentration) + jnp.log(n)
    weighted = jnp.where(exists, log_sum_weighted - logits, 0)
    least = jnp.where(exists, jnp.log(n) - 1 / temperature - logits, 0)
    share = n * positive_share * jnp.exp(-jnp.maximum(weighted, -80))
    some_left = ~(share >= 1)  # NaN stays
    debiased = weighted + jnp.log1p(-jnp.where(some_left, share, 0))
    debiased -= jnp.log1p(-positive_share)
    values = softplus(jnp.maximum(jnp.where(some_left, debiased, least), least))
    return reduce_terms(make_terms(values, exists, weights=weights), reduce_fn)


def matching_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    temperature: Scalar = 1.0,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Classification by attention to labelled examples: -log of the right ones' share.

    For query i:  -log( sum_{p in P(i)} exp(s_ip / t) / sum_a exp(s_ia / t) ).

    Args:
      similarities: A matrix whose rows are queries and whose columns are the labelled
        examples, in the paper of cosine similarities.
      same: True where the example is of the query's class.
      temperature: t, which divides the similarities.
      where: See `siamese_jax.losses`, also for `weights` (one per query) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per query that has an example of its
      class.

    Reference:
      Vinyals et al. Matching Networks for One Shot Learning. NIPS 2016, eq. 1 and section
      2.1.1. With squared Euclidean distances as negative similarities it is the loss of
      Neighbourhood Components Analysis, see `nca_loss`.

    >>> same = jnp.array([[True, True, False, False]])
    >>> loss = matching_loss(jnp.zeros((1, 4)), same)
    >>> print(f"{loss:.4f}")  # log 2
    0.6931
    """
    logits, (positive, negative) = _logits(similarities, same, where, temperature)
    exists = jnp.any(positive, axis=1)
    right = jnp.where(exists, logsumexp(logits, axis=1, where=positive), 0)
    values = logsumexp(logits, axis=1, where=positive | negative) - right
    return reduce_terms(make_terms(values, exists, weights=weights), reduce_fn)


def sigmoid_pair_loss(
    similarities: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    scale: Scalar = 10.0,
    bias: Scalar = -10.0,
    where: Bool[Array, "n m"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduce_fn: ReduceFn | None = mean,
) -> Any:
    """Sigmoid loss: each entry is decided by itself, summed over a row.

    With z = scale s + bias, the value of row i is the sum over its entries of
    log(1 + exp(-z)) if same, log(1 + exp(z)) otherwise.

    Args:
      similarities: A matrix, in the paper of cosine similarities of aligned pairs.
      same: True where the two belong together.
      scale: A positive number, usually learnt as exp of a parameter.
      bias: Usually learnt. Its start makes almost all entries different.
      where: See `siamese_jax.losses`, also for `weights` (one per row) and `reduce_fn`.

    Returns:
      The reduced loss, or `Terms` with one value per row that has a valid entry.

    Reference:
      Zhai et al. Sigmoid Loss for Language Image Pre-Training. ICCV 2023, eq. 1.

    >>> same = jnp.array([[True, False]])
    >>> loss = sigmoid_pair_loss(jnp.zeros((1, 2)), same, bias=0.0)
    >>> print(f"{loss:.4f}")  # 2 log 2
    1.3863
    """
    check_scalar("scale", scale)
    check_scalar("bias", bias)
    positive, negative = sides(similarities, same, where, name="similarities")
    terms = logistic_loss(
        scale * widen(similarities) + bias,
        same,
        where=positive | negative,
        reduce_fn=None,
    )
    rows = jnp.any(terms.where, axis=1)
    values = jnp.sum(terms.values, axis=1)
    return reduce_terms(make_terms(values, rows, weights=weights), reduce_fn)


# For all of them ------------------------------------------------------------------------


def both_directions(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a loss of a matrix symmetric: the mean of its values by rows and by columns.

    Args:
      loss_fn: A loss such as `info_nce_loss`, to which rows are anchors.

    Returns:
      A function like `loss_fn`. It takes no weights, and its `reduce_fn` must return a
      number: all but None and `mean_and_count` do.

    Reference:
      Radford et al. Learning Transferable Visual Models. ICML 2021, figure 3.

    >>> same = jnp.eye(2, dtype=bool)
    >>> loss = both_directions(supervised_contrastive_loss)(jnp.zeros((2, 2)), same)
    >>> print(f"{loss:.4f}")
    0.6931
    """
    return functools.partial(symmetric_loss, loss_fn)


def symmetric_loss(
    loss_fn: Callable[..., Any],
    matrix: Float[Array, "n m"],
    same: Bool[Array, "n m"],
    *,
    where: Bool[Array, "n m"] | None = None,
    **options: Any,
) -> Any:
    """The loss that `both_directions` makes, with the loss of one direction."""
    given = getattr(loss_fn, "keywords", {}) | options  # by `functools.partial`, and here
    check_both(given.get("reduce_fn", mean), given)
    check_floating(next(iter(inspect.signature(loss_fn).parameters)), matrix)
    matrix = widen(matrix)  # once, so that both gradients are added in float32
    turned = None if where is None else where.T
    by_rows = loss_fn(matrix, same, where=where, **options)
    by_columns = loss_fn(matrix.T, same.T, where=turned, **options)
    if isinstance(by_rows, (Terms, tuple)):
        found = type(by_rows).__name__
        raise ValueError(f"reduce_fn must return a number; got {found} for both_directions")
    return (by_rows + by_columns) / 2


def check_both(reduce_fn: ReduceFn | None, options: Mapping[str, Any]) -> None:
    """Raises ValueError for options that `both_directions` of a loss does not take."""
    if reduce_fn is None or reduce_fn is mean_and_count:
        name = getattr(reduce_fn, "__name__", None)
        raise ValueError(f"reduce_fn must return a number; got {name} for both_directions")
    if options.get("weights") is not None:
        raise ValueError("both_directions takes no weights; weights must be None")


def corrected_logits(
    similarities: Float[Array, "n m"], log_probabilities: Float[Array, " m"]
) -> Float[Array, "n m"]:
    """Subtracts from each column the logarithm of how often it is sampled (logQ).

    Frequent items are negatives in many batches. The correction makes the softmax over a
    batch an estimate of the softmax over all items. Divide the similarities by the
    temperature before, and give the loss `temperature=1`.

    Args:
      similarities: A matrix of logits.
      log_probabilities: Logarithm of the probability that a batch holds the item of each
        column.

    Reference:
      Yi et al. Sampling-Bias-Corrected Neural Modeling. RecSys 2019, eq. 4.

    >>> logits = corrected_logits(jnp.zeros((1, 2)), jnp.log(jnp.array([0.5, 1.0])))
    >>> print(jnp.exp(logits))
    [[2. 1.]]
    """
    check_floating("similarities", similarities)
    check_floating("log_probabilities", log_probabilities)
    columns = similarities.shape[1:]
    check_shape("log_probabilities", log_probabilities, columns, "one for each column")
    return widen(similarities) - widen(log_probabilities)[None, :]


def _logits(
    similarities: Array, same: Array, where: Array | None, temperature: Scalar
) -> tuple[Array, Sides]:
    check_scalar("temperature", temperature)
    both = sides(similarities, same, where, name="similarities")
    return widen(similarities) / temperature, both
