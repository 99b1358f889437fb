"""Siamese networks: the same parameters applied to several inputs through `vmap`.

An encoder is any pure function `apply_fn(params, x) -> embeddings`. The inputs to compare
are stacked on a leading axis: `[2, n, ...]` for pairs, `[3, n, ...]` for triplets.

>>> import jax.numpy as jnp
>>> from siamese_jax.distances import euclidean_distance
>>> pair = jnp.array([[[0.0, 0.0]], [[3.0, 4.0]]])  # [2, 1, 2]
>>> a, b = twin(lambda params, x: params * x)(2.0, pair)
>>> print(euclidean_distance(a, b))
[10.]

`from_flax` turns a Flax linen module into such a function, with the `init` that makes its
parameters:

    init, apply = from_flax(encoders.MnistMlp())
    params, statistics = init(key, images)
    a, b = twin(apply)(params, pair)

In training, dropout takes one key for each input:

    def embed(params, x, key):
        return apply(params, x, key=key, train=True)  # embeddings and statistics

    twin(embed, has_statistics=True)(params, pair, jax.random.split(key, 2))

Batch normalisation with `nn.BatchNorm(axis_name="twin")` uses the statistics of both inputs
together, equal to those of the flattened batch. Without the name each input is normalised
by its own statistics, and the updated running statistics are averaged over the inputs.

`from_nnx` does the same for a Flax NNX module. Here is one with both, in a training step:

>>> import jax
>>> import optax
>>> from flax import nnx
>>> from siamese_jax import losses, training
>>> class Encoder(nnx.Module):
...     def __init__(self, rngs):
...         self.layer = nnx.Linear(2, 4, rngs=rngs)
...         self.norm = nnx.BatchNorm(4, rngs=rngs)
...         self.dropout = nnx.Dropout(0.5, rngs=rngs)
...
...     def __call__(self, x):
...         return self.dropout(nnx.relu(self.norm(self.layer(x))))
>>> params, statistics, apply = from_nnx(Encoder(nnx.Rngs(0)))
>>> def loss_fn(params, statistics, batch, key):
...     def embed(params, x, key):
...         return apply(params, x, statistics=statistics, key=key, train=True)
...
...     keys = jax.random.split(key, 2)
...     (a, b), after = twin(embed, has_statistics=True)(params, batch["pairs"], keys)
...     loss = losses.contrastive_loss(euclidean_distance(a, b), batch["same"])
...     return loss, (after, {})
>>> optimizer = optax.adam(1e-3)
>>> state = training.init_state(params, optimizer, statistics=statistics)
>>> batch = {"pairs": jnp.ones((2, 6, 2)), "same": jnp.arange(6) < 3}
>>> state, metrics = training.train_step(
...     jax.random.key(0), state, batch, loss_fn=loss_fn, optimizer=optimizer)
>>> print(apply(state.params, jnp.ones((6, 2)), statistics=state.statistics).shape)
(6, 4)
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from siamese_jax._checks import (
    check_floating,
    check_rank,
    check_same_shape,
    check_scalar,
    check_shape,
)
from siamese_jax._numerics import Scalar, safe_abs, widen

if TYPE_CHECKING:  # the caller of `from_flax` or `from_nnx` has imported it
    import flax.linen as nn
    from flax import nnx

ApplyFn = Callable[..., Any]

TWIN_AXIS = "twin"


def twin(apply_fn: ApplyFn, *, has_statistics: bool = False) -> ApplyFn:
    """Applies one parameter tree to every input: `vmap(apply_fn, in_axes=(None, 0))`.

    Args:
      apply_fn: `apply_fn(params, x, *extras) -> embeddings`, on any pytrees. The mapped
        axis is named "twin".
      has_statistics: Whether `apply_fn` returns `(embeddings, statistics)`. The statistics
        are averaged over the inputs, so that one set comes back. Of integers and booleans,
        such as counters and flags, the largest comes back: they have no mean, and a counter
        never goes back. (A counter of calls goes up by 1, whatever the number of inputs.)

    Returns:
      A function of `(params, inputs, *extras)`. The inputs and each of the extras (one
      dropout key for each input, for example) have a leading axis of the same length.

    >>> pair = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> print(twin(lambda params, x: params + x)(10.0, pair).tolist())
    [[11.0, 12.0], [13.0, 14.0]]
    """
    mapped = _over_inputs(apply_fn, params_axis=None)

    def apply(params: PyTree, inputs: PyTree, *extras: PyTree) -> Any:
        outputs = mapped(params, inputs, *extras)
        if not has_statistics:
            return outputs
        embeddings, statistics = outputs
        return embeddings, jax.tree.map(_one_of_inputs, statistics)

    return apply


def two_towers(apply_fn: ApplyFn) -> ApplyFn:
    """Applies to each input its own parameters: `vmap(apply_fn, in_axes=(0, 0))`.

    The parameters of all towers are stacked in one tree, as `jax.vmap(init)(keys)` or
    `stack_towers(left, right)` make it.

    Args:
      apply_fn: The same function that `twin` takes. If it returns statistics too, they
        are returned stacked, one set for each tower.

    Returns:
      A function of `(stacked_params, inputs, *extras)`.

    >>> params = stack_towers(jnp.array(1.0), jnp.array(10.0))
    >>> pair = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> print(two_towers(lambda params, x: params * x)(params, pair).tolist())
    [[1.0, 2.0], [30.0, 40.0]]
    """
    return _over_inputs(apply_fn, params_axis=0)


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


def _over_inputs(apply_fn: ApplyFn, *, params_axis: int | None) -> ApplyFn:
    def apply(params: PyTree, inputs: PyTree, *extras: PyTree) -> Any:
        in_axes = (params_axis, 0) + (0,) * len(extras)
        mapped = jax.vmap(apply_fn, in_axes=in_axes, axis_name=TWIN_AXIS)
        return mapped(params, inputs, *extras)

    return apply


def _one_of_inputs(stacked: Array) -> Array:
    """The mean of floating-point numbers, the largest of integers and booleans."""
    if jnp.issubdtype(stacked.dtype, jnp.inexact):
        return jnp.mean(stacked, axis=0)
    return jnp.max(stacked, axis=0)


# Flax -----------------------------------------------------------------------------------


class PureEncoder(NamedTuple):
    """An encoder as two pure functions.

    Attributes:
      init: `init(key, x) -> (params, statistics)`. `statistics` holds the collections that
        forward passes update, such as `{"batch_stats": ...}`, and is empty without them.
      apply: `apply(params, x, *, statistics={}, key=None, train=False)` returns embeddings.
        With `train=True` it returns `(embeddings, statistics)` with the updated statistics,
        and uses `key` for dropout.
    """

    init: Callable[[PRNGKeyArray, PyTree], tuple[PyTree, PyTree]]
    apply: ApplyFn


def from_flax(module: "nn.Module") -> PureEncoder:
    """Returns the pure functions `(init, apply)` of a Flax linen module.

    The module's `__call__` takes `(x, *, train=False)`, as all of `siamese_jax.encoders`
    do. Wrap other modules in one that does.

    Args:
      module: A linen module, not yet bound to parameters.

    >>> import jax
    >>> from siamese_jax.encoders import MnistMlp
    >>> init, apply = from_flax(MnistMlp(dim=16))
    >>> params, statistics = init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    >>> print(apply(params, jnp.zeros((5, 28, 28, 1))).shape, statistics)
    (5, 16) {}
    """

    def init(key: PRNGKeyArray, x: PyTree) -> tuple[PyTree, PyTree]:
        variables = dict(module.init(key, x))
        return variables.pop("params", {}), variables

    def apply(
        params: PyTree,
        x: PyTree,
        *,
        statistics: Mapping[str, PyTree] | None = None,
        key: PRNGKeyArray | None = None,
        train: bool = False,
    ) -> Any:
        collections = dict(statistics or {})
        variables = {"params": params, **collections}
        if not train:
            return module.apply(variables, x)
        rngs = {} if key is None else {"dropout": key}
        embeddings, updates = module.apply(
            variables, x, train=True, rngs=rngs, mutable=list(collections)
        )
        return embeddings, collections | dict(updates)

    return PureEncoder(init, apply)


class BoundEncoder(NamedTuple):
    """An encoder whose parameters exist, as trees of arrays and one pure function.

    Attributes:
      params: The parameters, dictionaries of arrays.
      statistics: The other variables that forward passes may update, such as running
        averages and counters, and `{}` without them.
      apply: The function described in `PureEncoder`.
    """

    params: PyTree
    statistics: PyTree
    apply: ApplyFn


def from_nnx(module: "nnx.Module") -> BoundEncoder:
    """Returns `(params, statistics, apply)` of a Flax NNX module, which is left unchanged.

    The module's `__call__` takes `x` alone. `train` has the effect of `module.train()` and
    `module.eval()`: it sets `deterministic` and `use_running_average` of all layers. With
    `train=True` the key is folded with a number for each random layer, so that no two
    layers, steps or inputs draw the same masks.

    `apply` raises ValueError if the trees do not have the shapes of those returned here, or
    if `train` is true, the module has random layers and `key` is None, since every step
    would then repeat one mask.

    Args:
      module: An NNX module.

    >>> from flax import nnx
    >>> params, statistics, apply = from_nnx(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    >>> print(sorted(params), statistics, apply(params, jnp.zeros((5, 3))).shape)
    ['bias', 'kernel'] {} (5, 4)
    """
    from flax import nnx

    groups = (nnx.Param, nnx.RngKey, (nnx.RngState, nnx.Intermediate), nnx.Variable, ...)
    parts: Any = nnx.split(module, *groups)
    graph, own_params, own_keys, counts, own_statistics, rest = parts
    params, statistics = map(nnx.to_pure_dict, (own_params, own_statistics))
    # of these only the structure is needed: the arrays may be donated
    own_params, own_statistics = jax.eval_shape(lambda: (own_params, own_statistics))

    def apply(
        params: PyTree,
        x: PyTree,
        *,
        statistics: PyTree | None = None,
        key: PRNGKeyArray | None = None,
        train: bool = False,
    ) -> Any:
        merged = nnx.merge(
            graph,
            _with_values("params", own_params, params),
            _fresh_keys(key, own_keys) if train else own_keys,
            counts,
            _with_values("statistics", own_statistics, statistics or {}),
            rest,
            copy=True,  # variables of this trace, not those of the module
        )
        if not train:
            merged.eval()
            return merged(x)
        merged.train()
        embeddings = merged(x)
        parts: Any = nnx.split(merged, *groups)
        return embeddings, nnx.to_pure_dict(parts[4])

    return BoundEncoder(params, statistics, apply)


def _with_values(name: str, state: "nnx.State", values: PyTree) -> "nnx.State":
    """Returns a copy of an NNX state with other values."""
    from flax import nnx

    trees = nnx.to_pure_dict(state), values
    wanted, found = (jax.tree.map(jnp.shape, tree) for tree in trees)
    if wanted != found:
        raise ValueError(f"{name} must have the shapes {wanted}; got {found}")
    copy = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(copy, values)
    return copy


def _fresh_keys(key: PRNGKeyArray | None, keys: "nnx.State") -> "nnx.State":
    """Returns the NNX state with new keys of the same shapes, each from its own number."""
    if not jax.tree.leaves(keys):
        return keys
    if key is None:
        raise ValueError("key must be given to train a module with random layers; got None")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    leaves, structure = jax.tree.flatten(keys)
    fresh = [
        jax.random.split(jax.random.fold_in(key, number), leaf.shape)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, fresh)


# Pair heads: two embeddings, or their distance, to the log-odds of "same" ---------------


def threshold_logits(
    distances: Float[Array, "*shape"], *, threshold: Scalar, scale: Scalar = 1.0
) -> Float[Array, "*shape"]:
    """Log-odds of "same" from a distance: scale * (threshold - distance).

    The log-odds are positive where the distance is below the threshold. With a learnt
    threshold and scale this is a logistic head. The Keras tutorials write it as a dense
    layer on the distance, whose kernel is -scale and whose bias is scale * threshold.

    Raises:
      ValueError: If `threshold` or `scale` is not a scalar.
      TypeError: If `distances` is not floating-point.

    >>> print(threshold_logits(jnp.array([0.25, 1.0]), threshold=0.5, scale=4.0))
    [ 1. -2.]
    """
    check_floating("distances", distances)
    check_scalar("threshold", threshold)
    check_scalar("scale", scale)
    return scale * (threshold - widen(distances))


def weighted_l1_logits(
    a: Float[Array, "*batch dim"],
    b: Float[Array, "*batch dim"],
    weights: Float[Array, " dim"],
    bias: Scalar,
) -> Float[Array, "*batch"]:
    """Log-odds of "same" from a weighted city-block distance: sum_j w_j |a_j - b_j| + bias.

    The gradient of |a_j - b_j| is 0 where a_j = b_j.

    Raises:
      ValueError: If `weights` does not have one entry for each dimension, or `bias` is not
        a scalar.
      TypeError: If an input is not floating-point.

    Reference:
      Koch, Zemel, Salakhutdinov. Siamese Neural Networks for One-shot Image Recognition.
      2015, section 3.1. The paper's sigmoid is part of `losses.logistic_loss`.

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
    difference = safe_abs(widen(a) - widen(b))
    products = jnp.einsum(
        "...d,d->...", difference, widen(weights), precision=jax.lax.Precision.HIGHEST
    )
    return products + bias


def concatenation_logits(
    a: Float[Array, "*batch dim"],
    b: Float[Array, "*batch dim"],
    weights: Float[Array, " two_dim"],
    bias: Scalar,
) -> Float[Array, "*batch"]:
    """Log-odds of "same" from both vectors side by side: w . [a, b] + bias.

    Without a hidden layer before it this head cannot compare: it adds what it thinks of
    each input.

    Raises:
      ValueError: If the shapes of a and b differ, `weights` does not have one entry for
        each of their dimensions, or `bias` is not a scalar.
      TypeError: If an input is not floating-point.

    >>> a, b = jnp.array([[1.0, 5.0]]), jnp.array([[2.0, 3.0]])
    >>> print(concatenation_logits(a, b, jnp.array([1.0, 0.0, 0.0, 2.0]), 10.0))
    [17.]
    """
    _check_head(a, b, weights, bias, (2 * a.shape[-1],))
    joined = jnp.concatenate([widen(a), widen(b)], axis=-1)
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(joined, widen(weights), precision=highest) + bias


def bilinear_logits(
    a: Float[Array, "*batch dim"],
    b: Float[Array, "*batch dim"],
    weights: Float[Array, "dim dim"],
    bias: Scalar,
) -> Float[Array, "*batch"]:
    """Log-odds of "same" from a learnt similarity: a^T W b + bias.

    It is symmetric in the two inputs if W is a symmetric matrix.

    Raises:
      ValueError: If the shapes of a and b differ, `weights` is not `[dim, dim]`, or `bias`
        is not a scalar.
      TypeError: If an input is not floating-point.

    Reference:
      Chechik et al. Large Scale Online Learning of Image Similarity Through Ranking. JMLR
      2010, eq. 1 (OASIS).

    >>> a, b = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])
    >>> print(bilinear_logits(a, b, jnp.array([[0.0, 1.0], [0.0, 0.0]]), 0.5))  # 1 * 4
    [4.5]
    """
    _check_head(a, b, weights, bias, (a.shape[-1], a.shape[-1]))
    highest = jax.lax.Precision.HIGHEST
    mapped = jnp.matmul(widen(a), widen(weights), precision=highest)
    return jnp.sum(mapped * widen(b), axis=-1) + bias


def _check_head(
    a: Array, b: Array, weights: Array, bias: Scalar, shape: tuple[int, ...]
) -> None:
    for name, array in (("a", a), ("b", b), ("weights", weights)):
        check_floating(name, array)
    check_same_shape("b", b, "a", a)
    check_shape("weights", weights, shape, "to match the dimensions of a and b")
    check_scalar("bias", bias)
