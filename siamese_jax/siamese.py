"""One network, two inputs: the same parameter tree applied to both through `vmap`.

An encoder is any pure function `apply_fn(params, x) -> embeddings`; the inputs to compare
are stacked on a leading axis, `[2, n, ...]` for pairs, `[3, n, ...]` for triplets.

>>> import jax.numpy as jnp
>>> from siamese_jax.distances import euclidean_distance
>>> pair = jnp.array([[[0.0, 0.0]], [[3.0, 4.0]]])  # [2, 1, 2]
>>> a, b = twin(lambda params, x: params * x)(2.0, pair)
>>> print(euclidean_distance(a, b))
[10.]

Flax, for a module with dropout (one key for each input):

    def apply_fn(params, x, key):
        return module.apply({"params": params}, x, rngs={"dropout": key})

    embeddings = twin(apply_fn)(params, pair, jax.random.split(key, 2))

Batch statistics: let `apply_fn` return `(embeddings, statistics)` and say
`has_statistics=True`. With `nn.BatchNorm(axis_name="twin")` they are joint, equal to those
of the flattened batch; without the name each input normalises by itself, and the updated
running statistics are averaged over the inputs.

    def apply_fn(params, x):  # linen, with the statistics before the step
        variables = {"params": params, "batch_stats": statistics}
        x, updates = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return x, updates["batch_stats"]

    graph, params, statistics, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def apply_fn(params, x):  # NNX; return `nnx.state(model, nnx.BatchStat)` beside x
        return nnx.merge(graph, params, statistics, rest)(x)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from siamese_jax._checks import check_floating, check_rank, check_scalar
from siamese_jax._numerics import Scalar, widen

ApplyFn = Callable[..., Any]

TWIN_AXIS = "twin"


def twin(apply_fn: ApplyFn, *, has_statistics: bool = False) -> ApplyFn:
    """Applies one parameter tree to every input: `vmap(apply_fn, in_axes=(None, 0))`.

    Args:
      apply_fn: `apply_fn(params, x, *extras) -> embeddings`; any pytrees. The mapped axis
        is named "twin".
      has_statistics: `apply_fn` returns `(embeddings, statistics)`; the statistics are
        averaged over the inputs, so that one set comes back.

    Returns:
      A function of `(params, inputs, *extras)`. Inputs and each of the extras (a dropout
      key for each input, say) have a leading axis of the same length.

    >>> pair = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> print(twin(lambda params, x: params + x)(10.0, pair).tolist())
    [[11.0, 12.0], [13.0, 14.0]]
    """
    return _over_inputs(apply_fn, params_axis=None, has_statistics=has_statistics)


def joint_twin(apply_fn: ApplyFn) -> ApplyFn:
    """What `twin` gives, of all inputs laid behind one another as one batch.

    Faster on CPUs, whose matrix products like one long axis better than two. Batch
    statistics are joint ones, as they come; the extras are handed on as they are, so one
    dropout key serves all inputs.

    Args:
      apply_fn: `apply_fn(params, x, *extras) -> embeddings`, one row for each row of x.

    Returns:
      A function of `(params, inputs, *extras)`. Inputs have leading axes `[k, n]`, and so
      have the embeddings.

    >>> pair = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> print(joint_twin(lambda params, x: params + x)(10.0, pair).tolist())
    [[11.0, 12.0], [13.0, 14.0]]
    """

    def apply(params: PyTree, inputs: PyTree, *extras: PyTree) -> Any:
        k, n = jax.tree.leaves(inputs)[0].shape[:2]
        batch = jax.tree.map(lambda x: x.reshape(k * n, *x.shape[2:]), inputs)
        embeddings = apply_fn(params, batch, *extras)
        return jax.tree.map(lambda x: x.reshape(k, n, *x.shape[1:]), embeddings)

    return apply


def two_towers(apply_fn: ApplyFn, *, has_statistics: bool = False) -> ApplyFn:
    """Applies to each input its own parameters: `vmap(apply_fn, in_axes=(0, 0))`.

    The same line as `twin` over a stacked tree, such as `jax.vmap(init)(keys)` or
    `stack_towers(left, right)` make. Statistics stay one set for each tower.

    Args:
      apply_fn: As for `twin`.
      has_statistics: As for `twin`; the returned statistics are stacked, not averaged.

    Returns:
      A function of `(stacked_params, inputs, *extras)`.

    >>> params = stack_towers(jnp.array(1.0), jnp.array(10.0))
    >>> pair = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> print(two_towers(lambda params, x: params * x)(params, pair).tolist())
    [[1.0, 2.0], [30.0, 40.0]]
    """
    return _over_inputs(apply_fn, params_axis=0, has_statistics=has_statistics)


def stack_towers(*towers: PyTree) -> PyTree:
    """Stacks the parameter trees of several towers on a new leading axis.

    Raises:
      ValueError: If no tree is given, or their structures or shapes differ.

    >>> print(stack_towers({"w": jnp.zeros(3)}, {"w": jnp.ones(3)})["w"].shape)
    (2, 3)
    """
    if not towers:
        raise ValueError("stack_towers needs at least one parameter tree; got none")
    described = [jax.tree.map(jnp.shape, tower) for tower in towers]
    for number, other in enumerate(described[1:], 1):
        if other != described[0]:
            raise ValueError(
                f"the trees of towers 0 and {number} differ in structure or shapes: "
                f"{described[0]} and {other}"
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *towers)


def _over_inputs(
    apply_fn: ApplyFn, *, params_axis: int | None, has_statistics: bool
) -> ApplyFn:
    def apply(params: PyTree, inputs: PyTree, *extras: PyTree) -> Any:
        in_axes = (params_axis, 0) + (0,) * len(extras)
        mapped = jax.vmap(apply_fn, in_axes=in_axes, axis_name=TWIN_AXIS)
        outputs = mapped(params, inputs, *extras)
        if not has_statistics or params_axis == 0:
            return outputs
        embeddings, statistics = outputs
        return embeddings, jax.tree.map(_mean_of_inputs, statistics)

    return apply


def _mean_of_inputs(stacked: Array) -> Array:
    return jnp.mean(stacked, axis=0).astype(stacked.dtype)


# Pair heads: two embeddings, or their distance, to the log-odds of "same" ---------------


def threshold_logits(
    distances: Float[Array, "*shape"], *, threshold: Scalar, scale: Scalar = 1.0
) -> Float[Array, "*shape"]:
    """Log-odds of "same" from a distance: scale * (threshold - distance).

    Positive below the threshold. A learnt threshold and scale make a logistic head; the
    dense layer on a distance of the Keras tutorials is kernel = -scale and
    bias = scale * threshold.

    Raises:
      ValueError: If `threshold` or `scale` is not a scalar.
      TypeError: If `distances` is not floating-point.

    >>> print(threshold_logits(jnp.array([0.25, 1.0]), threshold=0.5, scale=4.0))
    [ 1. -2.]
    """
    check_floating("distances", distances)
    check_scalar("threshold", threshold)
    check_scalar("scale", scale)
    logits = scale * (threshold - widen(distances))
    return logits.astype(distances.dtype)


def weighted_l1_logits(
    a: Float[Array, "*batch dim"],
    b: Float[Array, "*batch dim"],
    weights: Float[Array, " dim"],
    bias: Scalar,
) -> Float[Array, "*batch"]:
    """Log-odds of "same" from a weighted city-block distance: sum_j w_j |a_j - b_j| + bias.

    Raises:
      ValueError: If `weights` has not one weight a dimension, or `bias` is no scalar.
      TypeError: If an input is not floating-point.

    Reference:
      Koch, Zemel, Salakhutdinov. Siamese Neural Networks for One-shot Image Recognition.
      2015, section 3.1 (the sigmoid is left to the loss).

    >>> a, b = jnp.array([[1.0, 5.0]]), jnp.array([[2.0, 2.0]])
    >>> print(weighted_l1_logits(a, b, jnp.array([-1.0, -2.0]), 10.0))
    [3.]
    """
    for name, array in (("a", a), ("b", b), ("weights", weights)):
        check_floating(name, array)
    check_rank("weights", weights, 1)
    check_scalar("bias", bias)
    if not a.shape == b.shape == (*a.shape[:-1], *weights.shape):
        raise ValueError(
            f"a and b must have equal shapes ending in one entry for each of the "
            f"{weights.shape[0]} weights; got {a.shape} and {b.shape}"
        )
    difference = jnp.abs(widen(a) - widen(b))
    products = jnp.einsum(
        "...d,d->...", difference, widen(weights), precision=jax.lax.Precision.HIGHEST
    )
    return (products + bias).astype(a.dtype)
