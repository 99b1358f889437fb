"""Classifiers of a few examples that classify all queries of a task together."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp
from jaxtyping import Array, Bool, Float

from siamese_jax._checks import check_at_least
from siamese_jax._numerics import Scalar, widen
from siamese_jax.distances import squared_euclidean_distance_matrix
from siamese_jax.episodes.inductive import (
    checked_task,
    if_all_have_examples,
    prototypes,
)


def laplacian_shot_logits(
    support: Float[Array, "ways shots dim"],
    queries: Float[Array, "queries dim"],
    *,
    num_neighbours: int = 3,
    strength: Scalar = 1.0,
    num_steps: int = 20,
    where: Bool[Array, "ways shots"] | None = None,
) -> Float[Array, "queries ways"]:
    """LaplacianShot (transductive): prototypes, and the answers of similar queries.

    With the squared distance a_qc of query q to the prototype of class c, the assignments y
    begin as softmax(-a_q) and become, in each step,

        y_q = softmax(-a_q + strength * sum of y_p over the nearest other queries p of q)

    Args:
      support: See `siamese_jax.episodes`, also for `queries` and `where`.
      queries: Embeddings to classify. Centre and normalise them as `simple_shot_logits`
        does to follow the paper.
      num_neighbours: The number of nearest other queries.
      strength: How much the answers of neighbours count.
      num_steps: Number of steps.
      where: False where an example is ignored.

    Returns:
      The argument of the last softmax.

    Raises:
      ValueError: If `num_neighbours` is not from 1 to the number of other queries.

    Reference:
      Ziko, Dolz, Granger, Ben Ayed. Laplacian Regularized Few-Shot Learning. ICML 2020,
      eq. 12, with the means of the support as prototypes.

    >>> support, queries = jnp.array([[[0.0]], [[4.0]]]), jnp.array([[2.0], [3.0]])
    >>> logits = laplacian_shot_logits(support, queries, num_neighbours=1)
    >>> print(jnp.argmax(logits, axis=1))  # the first is halfway, its neighbour is not
    [1 1]
    """
    examples, counted = checked_task(support, queries, where)
    check_at_least("num_neighbours", num_neighbours, 1)
    num = len(queries)
    if num_neighbours >= num:
        raise ValueError(
            f"num_neighbours must be below the number of queries, {num}; got "
            f"{num_neighbours}"
        )
    queries = widen(queries)
    means = prototypes(examples, where=counted)
    alone = -squared_euclidean_distance_matrix(queries, means)
    between = squared_euclidean_distance_matrix(queries, queries)
    between = jnp.where(jnp.eye(num, dtype=bool), jnp.inf, between)
    _, neighbours = lax.top_k(-between, num_neighbours)

    def step(_: Array, logits: Array) -> Array:
        return alone + strength * jnp.sum(jax.nn.softmax(logits)[neighbours], axis=1)

    logits = lax.fori_loop(0, num_steps, step, alone)
    has_nan = jnp.any(jnp.isnan(queries))
    return if_all_have_examples(counted, jnp.where(has_nan, jnp.nan, logits))


def transport_logits(
    support: Float[Array, "ways shots dim"],
    queries: Float[Array, "queries dim"],
    *,
    temperature: Scalar = 0.1,
    num_steps: int = 50,
    where: Bool[Array, "ways shots"] | None = None,
) -> Float[Array, "queries ways"]:
    """Optimal transport (transductive): as many queries of every class.

    The logits are the logarithm of the plan P that has the form
    u_q exp(-a_qc / temperature) v_c, with the squared distances a to the prototypes. The
    rows of P sum to 1 and its columns to the number of queries over the number of classes,
    found by Sinkhorn's iteration. Where the classes of the queries are not equally
    frequent, this knowledge is wrong and costs accuracy.

    Args:
      support: See `siamese_jax.episodes`, also for `queries` and `where`.
      queries: Embeddings to classify.
      temperature: Divides the squared distances; the smaller, the harder the plan.
      num_steps: Number of times that columns and rows are scaled.
      where: False where an example is ignored.

    Reference:
      Hu, Gripon, Pateux. Leveraging the Feature Distribution in Transfer-based Few-Shot
      Learning. ICANN 2021, section 3.2, without the moving centres.

    >>> support, queries = jnp.array([[[0.0]], [[4.0]]]), jnp.array([[0.0], [1.0]])
    >>> print(jnp.argmax(transport_logits(support, queries), axis=1))
    [0 1]
    """
    examples, counted = checked_task(support, queries, where)
    means = prototypes(examples, where=counted)
    cost = squared_euclidean_distance_matrix(widen(queries), means)
    share = jnp.log(len(queries) / len(means))

    def step(_: Array, logits: Array) -> Array:
        logits = logits + share - logsumexp(logits, axis=0, keepdims=True)
        return logits - logsumexp(logits, axis=1, keepdims=True)

    logits = lax.fori_loop(0, num_steps, step, -cost / temperature)
    return if_all_have_examples(counted, logits)
