"""Keras's optimisers, number for number: the tutorials' results hang on them.

>>> import jax.numpy as jnp
>>> optimizer = adam(0.1)
>>> update, _ = optimizer.update(jnp.array(1.0), optimizer.init(jnp.array(0.0)))
>>> print(f"{update:.4f}")
-0.1000
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def rmsprop(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """RMSprop as Keras 3 has it: g / sqrt(v + 1e-7), v decaying by .9."""
    return optax.rmsprop(learning_rate, decay=0.9, eps=1e-7, eps_in_sqrt=True)


def adam(
    learning_rate: optax.ScalarOrSchedule, *, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adam as Keras has it: sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps).

    `optax.adam` adds its epsilon after the correction for the bias of v, as the algorithm
    of the paper does. Keras adds it before, as the paper's section 2 ends: it then weighs
    1 / sqrt(1 - b2^t) times as much, 32 times at the first step.

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
