"""Networks: images to embeddings, and embeddings of two images to "same" log-odds.

Flax linen modules; the rest of the library sees only `apply_fn(params, images)`. Images are
`[n, height, width, channels]`, floating-point in [0, 1]. `train=True` turns on dropout
(needs the rng "dropout") and batch statistics.

The first five are the networks of public Keras tutorials, with their initialisers;
`ConvNet` is the small plain network used for glyphs.

>>> import jax
>>> import jax.numpy as jnp
>>> encoder = MnistMlp()
>>> variables = encoder.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
>>> print(encoder.apply(variables, jnp.zeros((5, 28, 28, 1))).shape)
(5, 128)
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from siamese_jax.convolution import (
    Layout,
    convolution,
    convolution_chwn,
    convolve_and_pool,
    max_pool,
)
from siamese_jax.distances import euclidean_distance
from siamese_jax.siamese import TWIN_AXIS, weighted_l1_logits

Images = Float[Array, "n height width channels"]
Embeddings = Float[Array, "n dim"]

_KERAS_INIT = nn.initializers.glorot_uniform()


def _normal(mean: float, deviation: float) -> nn.initializers.Initializer:
    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return mean + deviation * jax.random.normal(key, shape, dtype)

    return init


def _dense(features: int) -> nn.Dense:
    return nn.Dense(features, kernel_init=_KERAS_INIT)


class Conv(nn.Module):
    """Valid convolution, max-pooling of windows if there are any, bias, ReLU.

    Pooling first gives the same numbers: adding a bias and ReLU keep the order. Parameters
    are those of `nn.Conv`.

    Attributes:
      features: Of the result.
      size: Of the square kernel.
      stride: Of the convolution; more than 1 cannot be with `layout` "CHWN".
      window: Rows and columns of a block of the pooling; 1 for none.
      layout: Of images and result.
      kernel_init: Of the kernel.
      bias_init: Of the bias.
    """

    features: int
    size: int
    stride: int = 1
    window: int = 1
    layout: Layout = "NHWC"
    kernel_init: nn.initializers.Initializer = _KERAS_INIT
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, images: Float[Array, "a height width b"]) -> Float[Array, "..."]:
        """Largest values of the blocks."""
        if self.stride > 1 and self.layout == "CHWN":
            raise ValueError(f"layout CHWN needs a stride of 1; got {self.stride}")
        channels = images.shape[3 if self.layout == "NHWC" else 0]
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, (self.features,))
        images, kernel, bias = nn.dtypes.promote_dtype(images, kernel, bias)
        if self.stride == 1 and (self.window > 1 or self.layout == "CHWN"):
            x = convolve_and_pool(images, kernel, self.window, layout=self.layout)
        else:
            x = convolution(images, kernel, (self.stride, self.stride), "VALID")
            x = max_pool(x, self.window)
        bias = (
            bias[None, None, None, :]
            if self.layout == "NHWC"
            else bias[:, None, None, None]
        )
        return nn.relu(x + bias)


class Dropout(nn.Module):
    """Zeroes entries with probability `rate`, and divides the others by 1 - rate.

    As `nn.Dropout`, but what falls out is decided by a hash of the entry's number and of
    the key, two rounds of MurmurHash3's finaliser: JAX's generators take longer than the
    layers of a small network. It depends on key and shape alone.

    Attributes:
      rate: Probability to the nearest multiple of 2^-32.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], *, train: bool) -> Float[Array, "*shape"]:
        """What is left; all of it unless `train`."""
        if not train or self.rate == 0:
            return x
        if self.rate == 1:
            return jnp.zeros_like(x)
        words = jax.random.key_data(self.make_rng("dropout")).ravel().astype(jnp.uint32)
        number = jnp.zeros((), jnp.uint32)  # row-major, whose parts XLA fuses
        for axis, size in enumerate(x.shape):
            number = number * size + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        bits = _mixed(_mixed(number * jnp.uint32(0x9E3779B9) + words[0]) ^ words[-1])
        kept = bits >= jnp.uint32(min(round(self.rate * 2**32), 2**32 - 1))
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros((), x.dtype))


def _mixed(bits: Array) -> Array:
    """Each bit depends on all."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> jnp.uint32(shift))) * jnp.uint32(factor)
    return bits ^ (bits >> jnp.uint32(16))


def _flatten(x: Float[Array, "n ..."]) -> Float[Array, "n features"]:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))  # of any n: symbolic, 0


# Encoders -----------------------------------------------------------------------------


class MnistConv(nn.Module):
    """Conv 32 of 3x3, ReLU, flatten, dense 128 ReLU: 2,769,344 parameters on 28x28."""

    dim: int = 128

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        x = Conv(32, 3)(images)
        return nn.relu(_dense(self.dim)(_flatten(x)))


class MnistMlp(nn.Module):
    """Three dense layers of 128 ReLU, dropout between: 133,504 parameters on 28x28."""

    dropout: float = 0.5
    dim: int = 128

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        x = nn.relu(_dense(self.dim)(_flatten(images)))
        for _ in range(2):
            x = Dropout(self.dropout)(x, train=train)
            x = nn.relu(_dense(self.dim)(x))
        return x


class OrlConv(nn.Module):
    """Two convolutions with pooling and dropout, dense 128 and 50, for faces of 56x46.

    Attributes:
      stride: 1 is what was meant, 191,618 parameters on 56x46x1; 3 is what the tutorial's
        code does, 8,834 parameters.
      dropout: Rates after each pooling and after the first dense layer.
      dim: Dimension of the embedding.
    """

    stride: int = 1
    dropout: Sequence[float] = (0.25, 0.25, 0.1)
    dim: int = 50

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        layout: Layout = "CHWN" if self.stride == 1 else "NHWC"  # see convolve_and_pool
        x = images if layout == "NHWC" else jnp.transpose(images, (3, 1, 2, 0))
        for features, rate in zip((6, 12), self.dropout[:2], strict=True):
            x = Conv(features, 3, self.stride, window=2, layout=layout)(x)
            x = Dropout(rate)(x, train=train)
        if layout == "CHWN":  # [features, n], which the product takes as its transpose
            x = jnp.transpose(x, (1, 2, 0, 3))
            x = x.reshape(math.prod(x.shape[:3]), x.shape[3]).T
        x = nn.relu(_dense(128)(_flatten(x)))
        x = Dropout(self.dropout[2])(x, train=train)
        return nn.relu(_dense(self.dim)(x))


class KochConv(nn.Module):
    """Koch, Zemel, Salakhutdinov 2015, figure 4: 38,947,648 parameters on 105x105.

    With `WeightedL1Head` 38,951,745. Initialised as the public Keras tutorial does: weights
    N(0, .01), biases N(.5, .01), but a zero bias in the first convolution. The paper draws
    that bias from N(.5, .01) too, and dense weights from N(0, .2).

    Attributes:
      dim: Dimension of the embedding.
      kernel_sizes: Of the four convolutions. (5, 4, 3, 3) suits images of half the size,
        53x53: 4,774,016 parameters. Weights of a smaller layer are drawn larger, so that
        its signal is as strong: .01 times the root of how much fewer inputs it has.
    """

    dim: int = 4096
    kernel_sizes: Sequence[int] = (10, 7, 4, 4)

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        x = images
        layers = zip((64, 128, 128, 256), self.kernel_sizes, (10, 7, 4, 4), strict=True)
        for depth, (features, size, size_in_paper) in enumerate(layers):
            x = Conv(
                features,
                size,
                window=2 if depth < 3 else 1,
                kernel_init=_normal(0.0, 0.01 * size_in_paper / size),
                bias_init=nn.initializers.zeros if depth == 0 else _normal(0.5, 0.01),
            )(x)
        x = _flatten(x)
        deviation = 0.01 * (9_216 / x.shape[1]) ** 0.5
        dense = nn.Dense(
            self.dim, kernel_init=_normal(0.0, deviation), bias_init=_normal(0.5, 0.01)
        )
        return nn.sigmoid(dense(x))


class MnistTower(nn.Module):
    """Flatten, dense 128 ReLU: 100,480 parameters on 28x28."""

    dim: int = 128

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        return nn.relu(_dense(self.dim)(_flatten(images)))


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, batch norm, ReLU and pooling, then one dense layer.

    Batch statistics are in the collection "batch_stats"; under `siamese.twin`, `joint=True`
    shares them between the inputs.

    Attributes:
      widths: Features of each block; each halves the image.
      dim: Dimension of the embedding, which is not normalised.
      joint: Under `siamese.twin`, take batch statistics over all inputs together.
    """

    widths: Sequence[int] = (32, 64, 64)
    dim: int = 64
    joint: bool = False

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        x = images
        for width in self.widths:
            x = nn.Conv(
                width,
                (3, 3),
                padding="SAME",
                use_bias=False,
                conv_general_dilated=convolution,
            )(x)
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                axis_name=TWIN_AXIS if self.joint and train else None,
            )(x)
            x = max_pool(nn.relu(x), 2)
        return nn.Dense(self.dim)(_flatten(x))


class ResidualConv(nn.Module):
    """A residual network for glyphs of some 48 to 64 pixels, with batch normalisation.

    A strided 5x5 convolution halves the image, and pooling again, before each stage:
    residual blocks of two 3x3 convolutions, each normalised and rectified before it. What
    is left is pooled and goes into one dense layer: where a stroke is counts.

    Batch statistics are in the collection "batch_stats".

    Attributes:
      stem: Features of the first convolution.
      widths: Features of each stage.
      num_blocks: Residual blocks of a stage.
      dim: Dimension of the embedding, which is not normalised.
      dtype: Of activations and products: bfloat16 for mixed precision. Parameters,
        statistics, sums and embeddings are float32.

    Reference:
      He, Zhang, Ren, Sun. Identity Mappings in Deep Residual Networks. ECCV 2016, figure
      4 (e).
    """

    stem: int = 64
    widths: Sequence[int] = (128, 256)
    num_blocks: int = 1
    dim: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        x = jnp.transpose(images, (3, 1, 2, 0)).astype(self.dtype)  # CHWN, up to the end
        x = _ConvCHWN(self.stem, 5, stride=2)(x)
        for width in self.widths:
            x = max_pool(x, 2)
            for _ in range(self.num_blocks):
                y = _ConvCHWN(width, 3)(self._normalized(x, train))
                y = _ConvCHWN(width, 3)(self._normalized(y, train))
                x = y + (x if len(x) == width else _ConvCHWN(width, 1)(x))
        x = self._normalized(max_pool(x, 2), train).astype(jnp.float32)
        return nn.Dense(self.dim)(_flatten(jnp.transpose(x, (3, 1, 2, 0))))

    def _normalized(
        self, x: Float[Array, "c h w n"], train: bool
    ) -> Float[Array, "c h w n"]:
        norm = nn.BatchNorm(not train, momentum=0.9, axis=0, dtype=self.dtype)
        return nn.relu(norm(x))


class _ConvCHWN(nn.Module):
    """Convolution of images [channels, height, width, n], "SAME", without a bias."""

    features: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "c h w n"]) -> Float[Array, "d out_h out_w n"]:
        shape = (self.features, self.size, self.size, len(x))
        he_normal = nn.initializers.he_normal(in_axis=-1, out_axis=0)
        kernel = self.param("kernel", he_normal, shape)
        return convolution_chwn(x, kernel, stride=self.stride)


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
    """A dense layer on both embeddings side by side: it cannot compare them."""

    @nn.compact
    def __call__(self, a: Embeddings, b: Embeddings) -> Float[Array, " n"]:
        """Log-odds of "same"."""
        return _dense(1)(jnp.concatenate([a, b], axis=-1))[:, 0]
