"""Flax modules as pure functions of trees of arrays."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from siamese_jax.siamese.inputs import ApplyFn

if TYPE_CHECKING:  # the caller of `from_flax` or `from_nnx` has imported it
    import flax.linen as nn
    from flax import nnx


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
