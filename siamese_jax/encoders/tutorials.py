"""The networks of public Keras tutorials and of Koch et al. 2015, with their initialisers.

>>> import jax
>>> encoder = MnistTower(dim=3)
>>> embeddings, _ = encoder.init_with_output(jax.random.key(0), jnp.zeros((2, 4, 4, 1)))
>>> print(embeddings)
[[0. 0. 0.]
 [0. 0. 0.]]
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from siamese_jax._cpu.maps import elementwise
from siamese_jax._numerics import widen
from siamese_jax.convolution import convolution
from siamese_jax.distances import euclidean_distance
from siamese_jax.encoders._dense import dot_general, flatten
from siamese_jax.encoders._images_last import SWAP, PooledConv, by_platform
from siamese_jax.encoders._pooled import pooled_convolution
from siamese_jax.encoders._remat import block
from siamese_jax.encoders._sizes import check_images, least_input
from siamese_jax.siamese import weighted_l1_logits

Images = Float[Array, "n height width channels"]
Embeddings = Float[Array, "n dim"]

_KERAS_INIT = nn.initializers.glorot_uniform()


def _normal(mean: float, deviation: float) -> nn.initializers.Initializer:
    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return mean + deviation * jax.random.normal(key, shape, dtype)

    return init


def _dense(features: int) -> nn.Dense:
    return nn.Dense(features, kernel_init=_KERAS_INIT, dot_general=dot_general)


def _conv(
    features: int,
    size: int,
    *,
    stride: int = 1,
    window: int = 1,
    kernel_init: nn.initializers.Initializer = _KERAS_INIT,
    bias_init: nn.initializers.Initializer = nn.initializers.zeros,
) -> nn.Conv:
    """Valid convolution, then the largest of window x window blocks, then the bias."""
    return nn.Conv(
        features,
        (size, size),
        stride,
        padding="VALID",
        kernel_init=kernel_init,
        bias_init=bias_init,
        conv_general_dilated=pooled_convolution(window) if window > 1 else convolution,
    )


def _rectified(
    conv: Callable[[], nn.Conv], x: Float[Array, "n h w c"]
) -> Float[Array, "n _ _ _"]:
    return nn.relu(conv()(x))


def _joined_relu(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Applies ReLU, on CPUs under `vmap` to all images as one batch.

    XLA sums the gradient of the bias, which follows, faster over three axes than over four
    on CPUs.
    """

    def on_cpu(x: Array) -> Array:
        (y,) = elementwise(lambda x: (nn.relu(x),), x, image_axes=((0,), (0,)))
        return y

    return lax.platform_dependent(x, cpu=on_cpu, default=nn.relu)


class Dropout(nn.Module):
    """Zeroes entries with probability `rate`, and divides the others by 1 - rate.

    Like `nn.Dropout`, but a hash of the entry's number and of the key decides: two rounds
    of MurmurHash3's finaliser. JAX's generators take longer on a CPU than the layers of a
    small network. Which entries of a row are zeroed depends on the key, the number of the
    row and the shape of a row alone.

    Attributes:
      rate: Probability that an entry is zeroed, rounded to a multiple of 2^-32.
      axes: Order of the axes in which entries are numbered, all by default. With the same
        order of rows, columns and so on, two layouts lose the same entries.
      axis_name: Name of an axis of `pmap` or `shard_map` over which the batch is cut into
        equal shares. With it the devices lose the entries that the whole batch would lose
        on one device, if they have the same key.

    Raises:
      ValueError: If `rate` is not in [0, 1], when x is given.
    """

    rate: float
    axes: Sequence[int] | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], *, train: bool) -> Float[Array, "*shape"]:
        """Applies dropout if `train`, else returns x."""
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate must be in [0, 1]; got {self.rate}")
        if not train or self.rate == 0:
            return x
        if self.rate == 1:
            return jnp.zeros_like(x)
        words = jax.random.key_data(self.make_rng("dropout")).ravel().astype(jnp.uint32)
        share = 0 if self.axis_name is None else lax.axis_index(self.axis_name)
        number = jnp.asarray(share, jnp.uint32)  # row-major, whose parts XLA fuses
        for axis in self.axes or range(x.ndim):
            places = lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            number = number * x.shape[axis] + places
        bits = _mixed(_mixed(number * jnp.uint32(0x9E3779B9) + words[0]) ^ words[-1])
        kept = bits >= jnp.uint32(min(round(self.rate * 2**32), 2**32 - 1))
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros((), x.dtype))


def _mixed(bits: Array) -> Array:
    """MurmurHash3 finaliser."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> jnp.uint32(shift))) * jnp.uint32(factor)
    return bits ^ (bits >> jnp.uint32(16))


# Encoders -----------------------------------------------------------------------------


class MnistConv(nn.Module):
    """Conv 32 of 3x3, ReLU, flatten, dense 128 ReLU: 2,769,344 parameters on 28x28."""

    dim: int = 128

    @property
    def least_size(self) -> tuple[int, int]:
        """Least height and width of its images."""
        return 3, 3

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        check_images(type(self).__name__, images, self.least_size)
        conv, dense = _conv(32, 3), _dense(self.dim)

        def at_once(images: Images) -> Array:
            return dense(flatten(_joined_relu(conv(images))))

        if train or self.is_initializing():
            return nn.relu(at_once(images))
        params = conv.variables["params"], dense.variables["params"]
        height, width, channels = images.shape[1:]
        features = (height - 2) * (width - 2) * 32
        kernels = params[0]["kernel"].shape[2], len(params[1]["kernel"])
        if kernels != (channels, features):
            raise ValueError(
                "MnistConv needs images of the size and channels that it was initialised "
                f"with; got {height} x {width} with {channels}"
            )
        on_cpu = partial(_strip_by_strip, *params)
        return nn.relu(lax.platform_dependent(images, cpu=on_cpu, default=at_once))


def _strip_by_strip(
    conv: Mapping[str, Array], dense: Mapping[str, Array], images: Images
) -> Embeddings:
    """Applies convolution, ReLU and a dense layer to two rows of outputs at a time.

    The features of a strip stay in the cache of a CPU until the product has read them,
    which saves a fifth of the time. Training needs the features of all rows later.
    """
    given = images, conv["kernel"], conv["bias"], dense["kernel"], dense["bias"]
    images, kernel, conv_bias, weights, bias = nn.dtypes.promote_dtype(*map(widen, given))
    num_rows = images.shape[1] - kernel.shape[0] + 1
    height = 2 if num_rows % 2 == 0 else 1
    size = len(weights) // num_rows * height  # features of a strip

    def add(strip: Array, total: Array) -> Array:
        rows = lax.dynamic_slice_in_dim(
            images, strip * height, height + kernel.shape[0] - 1, axis=1
        )
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(
            rows, kernel, (1, 1), "VALID", dimension_numbers=dimensions
        )
        part = lax.dynamic_slice_in_dim(weights, strip * size, size)
        return total + flatten(nn.relu(x + conv_bias[None, None, None])) @ part

    total = jnp.zeros((images.shape[0], weights.shape[1]), images.dtype)
    total = lax.fori_loop(0, num_rows // height, add, total)
    return (total + bias[None]).astype(jnp.result_type(*given))


class MnistMlp(nn.Module):
    """Three dense layers of 128 ReLU, dropout between: 133,504 parameters on 28x28.

    Attributes:
      dropout: Rate after each of the first two layers.
      dim: Dimension of the embedding.
      width: Number of features of each of the first two layers.
      axis_name: See `Dropout`.
    """

    dropout: float = 0.5
    dim: int = 128
    width: int = 128
    axis_name: str | None = None

    @property
    def least_size(self) -> tuple[int, int]:
        """Least height and width of its images."""
        return 1, 1

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        check_images(type(self).__name__, images, self.least_size)
        x = flatten(images)
        for _ in range(2):
            x = nn.relu(_dense(self.width)(x))
            x = Dropout(self.dropout, axis_name=self.axis_name)(x, train=train)
        return nn.relu(_dense(self.dim)(x))


class OrlConv(nn.Module):
    """Two convolutions with pooling and dropout, dense 128 and 50, for faces of 56x46.

    Attributes:
      stride: Stride of the convolutions. The tutorial means 1, which has 191,618
        parameters on 56x46x1; its code has 3, with 8,834 parameters.
      dropout: Rates after each pooling and after the first dense layer.
      dim: Dimension of the embedding.
      axis_name: See `Dropout`.
    """

    stride: int = 1
    dropout: Sequence[float] = (0.25, 0.25, 0.1)
    dim: int = 50
    axis_name: str | None = None

    @property
    def least_size(self) -> tuple[int, int]:
        """Least height and width of its images."""
        size = 1
        for _ in range(2):
            size = least_input(size, kernel=3, stride=self.stride, window=2)
        return size, size

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        check_images(type(self).__name__, images, self.least_size)
        layers = partial(_OrlLayers, self.stride, self.dropout, self.dim, self.axis_name)
        return by_platform(self, layers, images, train=train)


class _OrlLayers(nn.Module):
    """The layers of `OrlConv`, on images [n, height, width, c] or [c, height, width, n]."""

    stride: int
    dropout: Sequence[float]
    dim: int
    axis_name: str | None
    images_last: bool = False

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        images_last = self.images_last and self.stride == 1
        axes = SWAP if images_last else (0, 1, 2, 3)
        x = jnp.transpose(images, axes)
        for number, features in enumerate((6, 12)):
            if images_last:
                conv: nn.Module = PooledConv(
                    features, 3, 2, _KERAS_INIT, name=f"Conv_{number}"
                )
            else:
                conv = _conv(features, 3, stride=self.stride, window=2)
            drop = Dropout(self.dropout[number], axes, self.axis_name)
            x = drop(nn.relu(conv(x)), train=train)
        if images_last:  # [features, n], which the product takes as its transpose
            x = jnp.transpose(x, (1, 2, 0, 3))
            x = x.reshape(math.prod(x.shape[:3]), x.shape[3]).T
        x = nn.relu(_dense(128)(flatten(x)))
        x = Dropout(self.dropout[2], axis_name=self.axis_name)(x, train=train)
        return nn.relu(_dense(self.dim)(x))


class KochConv(nn.Module):
    """Koch, Zemel, Salakhutdinov 2015, figure 4: 38,947,648 parameters on 105x105.

    With `WeightedL1Head` 38,951,745 parameters. Initialised as the public Keras tutorial
    does: weights N(0, .01), biases N(.5, .01), but a zero bias in the first convolution.
    The paper draws that bias from N(.5, .01) too, and dense weights from N(0, .2).

    Attributes:
      dim: Dimension of the embedding.
      kernel_sizes: Sizes of the four kernels. (5, 4, 3, 3) suits images of half the size,
        53x53: 4,774,016 parameters. Weights of a smaller layer are drawn larger, so that
        its signal is as strong: .01 times the root of how much fewer inputs it has.
      remat: Whether to compute activations of blocks again in the backward pass, for less
        memory and a third more time on accelerators. (On CPUs XLA undoes it.)
    """

    dim: int = 4096
    kernel_sizes: Sequence[int] = (10, 7, 4, 4)
    remat: bool = False

    @property
    def least_size(self) -> tuple[int, int]:
        """Least height and width of its images."""
        size = least_input(1, kernel=self.kernel_sizes[-1])
        for kernel in reversed(self.kernel_sizes[:-1]):
            size = least_input(size, kernel=kernel, window=2)
        return size, size

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        check_images(type(self).__name__, images, self.least_size)
        x = images
        layers = zip((64, 128, 128, 256), self.kernel_sizes, (10, 7, 4, 4), strict=True)
        for depth, (features, size, size_in_paper) in enumerate(layers):
            conv = partial(
                _conv,
                features,
                size,
                window=2 if depth < 3 else 1,
                kernel_init=_normal(0.0, 0.01 * size_in_paper / size),
                bias_init=nn.initializers.zeros if depth == 0 else _normal(0.5, 0.01),
            )
            x = block(self, partial(_rectified, conv), x, remat=self.remat)
        x = flatten(x)
        deviation = 0.01 * (9_216 / x.shape[1]) ** 0.5
        dense = nn.Dense(
            self.dim,
            kernel_init=_normal(0.0, deviation),
            bias_init=_normal(0.5, 0.01),
            dot_general=dot_general,
        )
        return nn.sigmoid(dense(x))


class MnistTower(nn.Module):
    """Flatten, dense 128 ReLU: 100,480 parameters on 28x28."""

    dim: int = 128

    @property
    def least_size(self) -> tuple[int, int]:
        """Least height and width of its images."""
        return 1, 1

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        check_images(type(self).__name__, images, self.least_size)
        return nn.relu(_dense(self.dim)(flatten(images)))


# Heads --------------------------------------------------------------------------------


class WeightedL1Head(nn.Module):
    """Koch et al. 2015, section 3.1: sum_j w_j |a_j - b_j| + b, with learnt w and b."""

    @nn.compact
    def __call__(self, a: Embeddings, b: Embeddings) -> Float[Array, " n"]:
        """Log-odds of "same"."""
        weights = self.param("weights", _normal(0.0, 0.01), (a.shape[-1],))
        bias = self.param("bias", _normal(0.5, 0.01), ())
        return weighted_l1_logits(a, b, weights, bias)


class DistanceHead(nn.Module):
    """A dense layer on the Euclidean distance: two parameters."""

    @nn.compact
    def __call__(self, a: Embeddings, b: Embeddings) -> Float[Array, " n"]:
        """Log-odds of "same"."""
        return _dense(1)(euclidean_distance(a, b)[:, None])[:, 0]


class ConcatenationHead(nn.Module):
    """A dense layer on both embeddings side by side, which cannot compare them."""

    @nn.compact
    def __call__(self, a: Embeddings, b: Embeddings) -> Float[Array, " n"]:
        """Log-odds of "same"."""
        return _dense(1)(jnp.concatenate([a, b], axis=-1))[:, 0]
