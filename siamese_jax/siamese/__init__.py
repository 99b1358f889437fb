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
parameters::

    init, apply = from_flax(encoders.MnistMlp())
    params, statistics = init(key, images)
    a, b = twin(apply)(params, pair)

In training, dropout takes one key for each input::

    def embed(params, x, key):
        return apply(params, x, key=key, train=True)  # embeddings and statistics

    twin(embed, has_statistics=True)(params, pair, jax.random.split(key, 2))

Batch normalisation with `nn.BatchNorm(axis_name="twin")` uses the statistics of both inputs
together, equal to those of the flattened batch. Without the name each input is normalised
by its own statistics, and the updated running statistics are averaged over the inputs.

`in_chunks` embeds a batch whose activations do not fit into memory at once, with the values
and the gradient of the whole batch.

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

from siamese_jax.siamese.chunks import in_chunks
from siamese_jax.siamese.flax_modules import (
    BoundEncoder,
    PureEncoder,
    from_flax,
    from_nnx,
)
from siamese_jax.siamese.heads import (
    bilinear_logits,
    concatenation_logits,
    threshold_logits,
    weighted_l1_logits,
)
from siamese_jax.siamese.inputs import (
    TWIN_AXIS,
    ApplyFn,
    stack_towers,
    twin,
    two_towers,
)

__all__ = [
    "TWIN_AXIS",
    "ApplyFn",
    "BoundEncoder",
    "PureEncoder",
    "bilinear_logits",
    "concatenation_logits",
    "from_flax",
    "from_nnx",
    "in_chunks",
    "stack_towers",
    "threshold_logits",
    "twin",
    "two_towers",
    "weighted_l1_logits",
]
