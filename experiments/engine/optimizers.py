"""Optimisers: Keras's own, on which the tutorials depend, and the project's default.

>>> import jax.numpy as jnp
>>> optimizer = adam(0.1)
>>> update, _ = optimizer.update(jnp.array(1.0), optimizer.init(jnp.array(0.0)))
>>> print(f"{update:.4f}")
-0.1000
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


def rmsprop(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """RMSprop as in Keras 3: g / sqrt(v + 1e-7), v a mean of g^2 with decay 0.9."""
    return optax.rmsprop(learning_rate, decay=0.9, eps=1e-7, eps_in_sqrt=True)


def adam(
    learning_rate: optax.ScalarOrSchedule, *, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adam as in Keras: sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps).

    Keras adds epsilon before the bias of v is corrected, as the end of section 2 of the
    paper proposes. `optax.adam` adds it afterwards, as algorithm 1 does. In Keras's form
    epsilon counts 1 / sqrt(1 - b2^t) times as much, which is 32 times at the first step.

    Reference:
      Kingma, Ba. Adam: A Method for Stochastic Optimization. ICLR 2015.
    """
    b1, b2 = 0.9, 0.999
    moments = optax.scale_by_adam(b1, b2)

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        _, state = moments.update(gradients, state, params)
        correction = jnp.sqrt(1 - b2**state.count) / (1 - b1**state.count)

        def one(m: jax.Array, v: jax.Array) -> jax.Array:
            return correction * m / (jnp.sqrt(v) + eps)

        return jax.tree.map(one, state.mu, state.nu), state

    as_keras = optax.GradientTransformation(moments.init, update)
    return optax.chain(as_keras, optax.scale_by_learning_rate(learning_rate))


def one_cycle_adamw(
    peak: float, num_steps: int, *, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW whose learning rate rises to `peak` in a tenth of the steps, then falls.

    Both the rise and the fall are cosines.
    """
    schedule = optax.cosine_onecycle_schedule(num_steps, peak, 0.1)
    return optax.adamw(schedule, weight_decay=weight_decay)


class AverageParams(NamedTuple):
    """The number of updates, and the average of the parameters after each of them."""

    step: jax.Array
    average: Any


def average_params(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential average of the parameters; it stands last in a chain.

    After n updates the average decays by `decay`, or by (1 + n) / (10 + n) where that is
    less, so that the first parameters are soon forgotten. Updates pass unchanged.

    Reference:
      Polyak, Juditsky. Acceleration of stochastic approximation by averaging. 1992; with
      the decay of Tarvainen, Valpola. Mean teachers. NeurIPS 2017.

    >>> optimizer = optax.chain(optax.sgd(1.0), average_params(0.5))
    >>> state = optimizer.init(jnp.array(0.0))
    >>> _, state = optimizer.update(jnp.array(-1.0), state, jnp.array(0.0))
    >>> print(averaged_params(state))  # .1 of 0, .9 of 1
    0.9
    """

    def init(params: Any) -> AverageParams:
        copies = jax.tree.map(jnp.copy, params)  # the training step donates its state
        return AverageParams(jnp.zeros((), jnp.int32), copies)

    def update(updates: Any, state: AverageParams, params: Any = None) -> Any:
        now = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
        new = optax.apply_updates(params, updates)
        average = optax.incremental_update(new, state.average, 1 - now)
        return updates, AverageParams(state.step + 1, average)

    return optax.GradientTransformation(init, update)


def averaged_params(optimizer_state: Any) -> Any:
    """The average from the state of a chain that ends with `average_params`."""
    return optimizer_state[-1].average
