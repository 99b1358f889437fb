"""The five systems in Keras 3, for parity tests and benchmarks.

`build(system, **options)` returns a compiled Keras model that takes `[left, right]` and
returns the same as the tutorial's model, `[n, 1]`: a distance, or the probability that the
two are of one class. Targets are 1 for pairs of one class. `set_weights` and `get_weights`
translate between the weights of this model and the parameters of our system. `fit` trains.

The environment variable KERAS_BACKEND selects the backend. It must be set before this
module is imported. The module imports Keras and NumPy alone, so that JAX, TensorFlow and
PyTorch need not share a process.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import layers, ops

EPSILON = 1e-7  # the tutorials raise smaller squared distances to this value


class Leaf(NamedTuple):
    """The Keras variables that correspond to one array of our parameters.

    Attributes:
      variables: The Keras variable. For two towers with separate weights, the variables of
        both, which are stacked in our array.
      shape: Shape of our array.
    """

    variables: tuple[Any, ...]
    shape: tuple[int, ...]


class Reference(NamedTuple):
    """A system in Keras.

    Attributes:
      model: Compiled model from `[left, right]` to a distance or a probability, `[n, 1]`.
      encoders: Models from images to embeddings: one for both inputs, or one for each.
      leaves: Our parameters, with a `Leaf` in the place of each array.
    """

    model: keras.Model
    encoders: tuple[keras.Model, ...]
    leaves: dict[str, Any]


# Weights --------------------------------------------------------------------------------


def set_weights(reference: Reference, params: Mapping[str, Any]) -> None:
    """Copies the parameters of our system into the Keras model.

    Raises:
      ValueError: If a name or a shape differs from those of the model.
    """
    _assign(reference.leaves, params, "params")


def get_weights(reference: Reference) -> dict[str, Any]:
    """Returns the weights of the Keras model as parameters of our system, in NumPy."""
    return _values(reference.leaves)


def _assign(leaves: Any, params: Any, path: str) -> None:
    if isinstance(leaves, Leaf):
        if np.shape(params) != leaves.shape:
            raise ValueError(
                f"{path} must have shape {leaves.shape}; got {np.shape(params)}"
            )
        parts = np.reshape(params, (len(leaves.variables), -1))
        for variable, part in zip(leaves.variables, parts, strict=True):
            variable.assign(np.reshape(part, variable.shape))
        return
    if set(leaves) != set(params):
        raise ValueError(f"{path} must have {sorted(leaves)}; got {sorted(params)}")
    for name in leaves:
        _assign(leaves[name], params[name], f"{path}/{name}")


def _values(leaves: Any) -> Any:
    if isinstance(leaves, Leaf):
        parts = [ops.convert_to_numpy(variable.value) for variable in leaves.variables]
        return np.reshape(np.stack(parts), leaves.shape)
    return {name: _values(below) for name, below in leaves.items()}


def _leaf(*variables: Any, shape: Sequence[int] | None = None) -> Leaf:
    own = tuple(variables[0].shape)
    stacked = own if len(variables) == 1 else (len(variables), *own)
    return Leaf(variables, stacked if shape is None else tuple(shape))


def _leaves(*encoders: keras.Model) -> dict[str, Any]:
    """Makes the leaves of one encoder, or of several whose weights ours stacks.

    The layers have the names that Flax gives them.
    """
    return {
        same[0].name: {
            "kernel": _leaf(*[layer.kernel for layer in same]),
            "bias": _leaf(*[layer.bias for layer in same]),
        }
        for same in zip(*[encoder.layers for encoder in encoders], strict=True)
        if same[0].weights
    }


# Pieces ---------------------------------------------------------------------------------


def _encoder(
    image_shape: Sequence[int], *stack: layers.Layer, name: str = "encoder"
) -> keras.Model:
    return keras.Sequential([keras.Input(tuple(image_shape)), *stack], name=name)


def _dense(number: int, features: int, activation: str = "relu") -> layers.Layer:
    return layers.Dense(features, activation=activation, name=f"Dense_{number}")


def _conv(number: int, features: int, size: int, **options: Any) -> layers.Layer:
    return layers.Conv2D(
        features,
        size,
        activation="relu",
        data_format="channels_last",
        name=f"Conv_{number}",
        **options,
    )


def _normal(rng: np.random.Generator, mean: float) -> Callable[..., np.ndarray]:
    """Returns an initialiser that draws from N(mean, .01^2)."""

    def draw(shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        return mean + 0.01 * rng.standard_normal(shape, np.float32)

    return draw


def _pool() -> layers.Layer:
    return layers.MaxPooling2D(2, data_format="channels_last")


def _inputs(image_shape: Sequence[int]) -> list[Any]:
    return [keras.Input(tuple(image_shape), name=name) for name in ("left", "right")]


def _squared_distance(a: Any, b: Any) -> Any:
    return ops.sum(ops.square(a - b), axis=1, keepdims=True)


def _guarded_distance(a: Any, b: Any) -> Any:
    return ops.sqrt(ops.maximum(_squared_distance(a, b), EPSILON))


def contrastive_loss(target: Any, distance: Any) -> Any:
    """Returns the mean of y d^2 + (1 - y) max(1 - d, 0)^2, where y is 1 for one class.

    The margin is 1. Unlike in the paper there is no factor 1/2.
    """
    pull, push = ops.square(distance), ops.square(ops.maximum(1.0 - distance, 0.0))
    return ops.mean(target * pull + (1.0 - target) * push, axis=-1)


def _rmsprop() -> keras.optimizers.Optimizer:
    return keras.optimizers.RMSprop(learning_rate=1e-3, rho=0.9, epsilon=1e-7)


# The five systems -----------------------------------------------------------------------


def mnist_conv(
    *,
    form: Literal["literal", "contrastive"] = "literal",
    num_steps: int = 8_470,
    image_shape: Sequence[int] = (28, 28, 1),
) -> Reference:
    """Builds `mnist_conv`: one convolution, one dense layer, Euclidean distance, Adam.

    Args:
      form: "literal" is the tutorial: cross-entropy of the raw distance, with a constant
        learning rate. "contrastive" is our correction: contrastive loss, with a learning
        rate that falls to zero.
      num_steps: Number of steps in which the learning rate falls to zero.
      image_shape: Height, width and number of channels of an image.
    """
    encoder = _encoder(image_shape, _conv(0, 32, 3), layers.Flatten(), _dense(0, 128))
    left, right = _inputs(image_shape)
    model = keras.Model([left, right], _guarded_distance(encoder(left), encoder(right)))
    if form == "literal":
        model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    else:
        rate = keras.optimizers.schedules.CosineDecay(1e-3, num_steps)
        model.compile(keras.optimizers.Adam(rate, epsilon=1e-8), contrastive_loss)
    return Reference(model, (encoder,), {"encoder": _leaves(encoder)})


def mnist_mlp(
    *, dropout: float = 0.5, image_shape: Sequence[int] = (28, 28, 1)
) -> Reference:
    """Builds `mnist_mlp`: three dense layers, Euclidean distance, contrastive loss.

    Unlike in the other systems, a small squared distance is not raised to `EPSILON`.

    Args:
      dropout: Rate of dropout between the dense layers.
      image_shape: Height, width and number of channels of an image.
    """
    encoder = _encoder(
        image_shape,
        layers.Flatten(),
        _dense(0, 128),
        layers.Dropout(dropout),
        _dense(1, 128),
        layers.Dropout(dropout),
        _dense(2, 128),
    )
    left, right = _inputs(image_shape)
    output = ops.sqrt(_squared_distance(encoder(left), encoder(right)))
    model = keras.Model([left, right], output)
    model.compile(_rmsprop(), contrastive_loss)
    return Reference(model, (encoder,), {"encoder": _leaves(encoder)})


def orl_tutorial(
    *,
    stride: int = 1,
    dropout: Sequence[float] = (0.25, 0.25, 0.1),
    image_shape: Sequence[int] = (56, 46, 1),
) -> Reference:
    """Builds `orl_tutorial`: two convolutions, two dense layers, contrastive loss.

    Args:
      stride: Stride of the convolutions. The tutorial intends 1, but its code has 3.
      dropout: Rates of dropout after each pooling and after the first dense layer.
      image_shape: Height, width and number of channels of an image.
    """
    encoder = _encoder(
        image_shape,
        _conv(0, 6, 3, strides=stride),
        _pool(),
        layers.Dropout(dropout[0]),
        _conv(1, 12, 3, strides=stride),
        _pool(),
        layers.Dropout(dropout[1]),
        layers.Flatten(),
        _dense(0, 128),
        layers.Dropout(dropout[2]),
        _dense(1, 50),
    )
    left, right = _inputs(image_shape)
    model = keras.Model([left, right], _guarded_distance(encoder(left), encoder(right)))
    model.compile(_rmsprop(), contrastive_loss)
    return Reference(model, (encoder,), {"encoder": _leaves(encoder)})


def omniglot_koch(
    *,
    image_size: int = 105,
    kernel_sizes: Sequence[int] = (10, 7, 4, 4),
    dim: int = 4096,
) -> Reference:
    """Builds `omniglot_koch`: four convolutions, a sigmoid layer, weighted L1 distance.

    Args:
      image_size: Height and width of an image, 105 in the paper.
      kernel_sizes: Height and width of the kernels of the four convolutions.
      dim: Number of dimensions of the embedding.
    """
    rng = np.random.default_rng()
    kernel = {"kernel_initializer": _normal(rng, 0.0)}
    initializers = {**kernel, "bias_initializer": _normal(rng, 0.5)}
    decay = {"kernel_regularizer": keras.regularizers.L2(2e-4)}
    stack: list[layers.Layer] = []
    for number, features in enumerate((64, 128, 128, 256)):
        size, first = kernel_sizes[number], number == 0
        drawn = kernel if first else initializers
        stack.append(_conv(number, features, size, **drawn, **decay))
        stack += [_pool()] if number < 3 else [layers.Flatten()]
    dense = layers.Dense(
        dim,
        activation="sigmoid",
        kernel_regularizer=keras.regularizers.L2(1e-3),
        name="Dense_0",
        **initializers,
    )
    image_shape = (image_size, image_size, 1)
    encoder = _encoder(image_shape, *stack, dense)
    head = layers.Dense(1, activation="sigmoid", **initializers)
    left, right = _inputs(image_shape)
    model = keras.Model([left, right], head(ops.abs(encoder(left) - encoder(right))))
    model.compile(keras.optimizers.Adam(6e-5), "binary_crossentropy")
    of_head = {
        "weights": _leaf(head.kernel, shape=(dim,)),
        "bias": _leaf(head.bias, shape=()),
    }
    return Reference(model, (encoder,), {"encoder": _leaves(encoder), "head": of_head})


def mnist_towers(
    *, variant: Literal["a", "b", "c"] = "c", image_shape: Sequence[int] = (28, 28, 1)
) -> Reference:
    """Builds `mnist_towers`: dense layers, and a dense layer to the probability.

    Args:
      variant: "a" concatenates the outputs of two towers. "b" concatenates the two outputs
        of one tower. "c" takes the Euclidean distance of the two outputs of one tower.
      image_shape: Height, width and number of channels of an image.
    """
    encoders = tuple(
        _encoder(image_shape, layers.Flatten(), _dense(0, 128), name=f"tower_{number}")
        for number in range(2 if variant == "a" else 1)
    )
    left, right = _inputs(image_shape)
    a, b = encoders[0](left), encoders[-1](right)
    if variant == "c":
        compared = _guarded_distance(a, b)
    else:
        compared = ops.concatenate([a, b], axis=1)
    head = layers.Dense(1, activation="sigmoid")
    model = keras.Model([left, right], head(compared))
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    of_head = {"Dense_0": {"kernel": _leaf(head.kernel), "bias": _leaf(head.bias)}}
    return Reference(model, encoders, {"encoder": _leaves(*encoders), "head": of_head})


SYSTEMS: dict[str, Callable[..., Reference]] = {
    fn.__name__: fn
    for fn in (mnist_mlp, mnist_conv, orl_tutorial, omniglot_koch, mnist_towers)
}


def build(system: str, **options: Any) -> Reference:
    """Builds the Keras model of one of `SYSTEMS`, freshly initialised and compiled.

    Args:
      system: Name of the system.
      options: Keyword arguments of the function with that name.

    Raises:
      ValueError: If there is no system with this name.
    """
    if system not in SYSTEMS:
        raise ValueError(f"system must be one of {', '.join(SYSTEMS)}; got {system!r}")
    return SYSTEMS[system](**options)


class _Clock(keras.callbacks.Callback):
    def on_train_end(self, logs: Any = None) -> None:
        self.ended = time.perf_counter()


def fit(model: keras.Model, inputs: Any, targets: Any, batch_size: int) -> float:
    """Trains for one epoch by `model.fit`, and returns the seconds until its last step.

    Then `fit` in TensorFlow waits for a thread that tunes its input pipeline, until 2.55,
    5.11, 10.23 and so on seconds have passed since the start. This is not counted.
    """
    clock, began = _Clock(), time.perf_counter()
    model.fit(inputs, targets, batch_size=batch_size, verbose=0, callbacks=[clock])
    return clock.ended - began
