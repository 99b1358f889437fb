"""Networks with batch normalisation: a small plain one and a residual one.

>>> import jax
>>> encoder = ResNet(stem=2, widths=(2, 4), dim=3)
>>> variables = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
>>> print(variables["params"]["Conv_0"]["kernel"].shape)
(5, 5, 1, 2)
>>> print(jax.jit(encoder.apply)(variables, jnp.zeros((6, 16, 16, 1))).shape)
(6, 3)
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from siamese_jax._numerics import safe_sqrt, widen
from siamese_jax.convolution import convolution, max_pool
from siamese_jax.encoders._dense import flatten
from siamese_jax.encoders._images_last import SWAP, SameConv, by_platform
from siamese_jax.encoders._remat import block
from siamese_jax.encoders._sizes import check_images, least_input

Images = Float[Array, "n height width channels"]
Embeddings = Float[Array, "n dim"]
AxisName = Any  # a name, a tuple of names, or None


class Standardized(nn.Module):
    """A network that sees each image with mean 0 and deviation 1.

    Brightness and contrast of an image then change next to nothing. An image of one colour
    becomes 0.

    Attributes:
      net: The network.
    """

    net: nn.Module

    @property
    def least_size(self) -> tuple[int, int]:
        """Least height and width of its images."""
        return getattr(self.net, "least_size", (1, 1))

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        check_images("Standardized", images, (1, 1))  # the network says what it needs
        axes = (1, 2, 3)
        mean = jnp.mean(images, axes, keepdims=True)
        deviation = safe_sqrt(jnp.var(images, axes, keepdims=True))
        return self.net((images - mean) / (deviation + 1e-3), train=train)


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, batch norm, ReLU and pooling, then one dense layer.

    Attributes:
      widths: Number of features of each block, which halves the image.
      dim: Dimension of the embedding, which is not normalised.
      axis_name: Names of mapped axes over which batch statistics are taken together:
        `siamese.TWIN_AXIS` for all inputs of `siamese.twin`, the name of the devices' axis
        for the whole batch under `pmap` or `shard_map`.
      remat: Whether to compute activations of blocks again in the backward pass, for less
        memory and a third more time on accelerators. (On CPUs XLA undoes it.)
    """

    widths: Sequence[int] = (32, 64, 64)
    dim: int = 64
    axis_name: AxisName = None
    remat: bool = False

    @property
    def least_size(self) -> tuple[int, int]:
        """Least height and width of its images."""
        return 2 ** len(self.widths), 2 ** len(self.widths)

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        check_images(type(self).__name__, images, self.least_size)

        def layers(width: int, x: Array) -> Array:
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
                axis_name=self.axis_name if train else None,
            )(x)
            return max_pool(nn.relu(x), 2)

        x = images
        for width in self.widths:
            x = block(self, partial(layers, width), x, remat=self.remat)
        return nn.Dense(self.dim)(flatten(x))


class ResNet(nn.Module):
    """A residual network for glyphs of some 48 to 64 pixels, with batch normalisation.

    A strided 5x5 convolution halves the image, and pooling halves it again before each
    stage of residual blocks. A block has two 3x3 convolutions, each after normalisation and
    ReLU. The last result is pooled, normalised and rectified, and goes into one dense
    layer, so that the place of a stroke counts.

    In half precision, the layers work on images [channels, height, width, n] on CPUs, which
    is faster there. Parameters and results are the same.

    Attributes:
      stem: Number of features of the first convolution.
      widths: Number of features of each stage.
      num_blocks: Number of residual blocks of a stage.
      dim: Dimension of the embedding, which is not normalised.
      dtype: Type of activations and products, that of images and parameters by default;
        bfloat16 for mixed precision. Parameters, statistics, sums, the dense layer and
        embeddings are then float32.
      axis_name: See `ConvNet`.
      remat: Whether to compute activations of blocks again in the backward pass, for less
        memory and a third more time on accelerators. (On CPUs XLA undoes it.)

    Reference:
      He, Zhang, Ren, Sun. Identity Mappings in Deep Residual Networks. ECCV 2016, figure
      4 (e).
    """

    stem: int = 64
    widths: Sequence[int] = (128, 256)
    num_blocks: int = 1
    dim: int = 256
    dtype: Any = None
    axis_name: AxisName = None
    remat: bool = False

    @property
    def least_size(self) -> tuple[int, int]:
        """Least height and width of its images."""
        size = least_input(2 ** (len(self.widths) + 1), stride=2)
        return size, size

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        check_images(type(self).__name__, images, self.least_size)
        layers = partial(
            _ResNetLayers,
            self.stem,
            self.widths,
            self.num_blocks,
            self.dim,
            self.dtype,
            self.axis_name,
            self.remat,
        )
        if jnp.dtype(self.dtype or images.dtype).itemsize == 2:
            return by_platform(self, layers, images, train=train)
        wide = layers()  # in which `convolution` needs fewer multiplications
        nn.share_scope(self, wide)
        return wide(images, train=train)


class _ResNetLayers(nn.Module):
    """The layers of `ResNet`, on images [n, height, width, c] or [c, height, width, n]."""

    stem: int
    widths: Sequence[int]
    num_blocks: int
    dim: int
    dtype: Any
    axis_name: AxisName
    remat: bool
    images_last: bool = False

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Embeddings:
        """Embeds images."""
        swap = SWAP if self.images_last else (0, 1, 2, 3)
        channel_axis = 0 if self.images_last else 3
        conv = self._make_conv()

        def normalized(x: Array) -> Array:
            norm = nn.BatchNorm(
                not train,
                momentum=0.9,
                axis=channel_axis,
                dtype=self.dtype,
                axis_name=self.axis_name if train else None,
            )
            return nn.relu(norm(x))

        def residual(width: int, x: Array) -> Array:
            y = conv(width, 3)(normalized(x))
            y = conv(width, 3)(normalized(y))
            return y + (x if x.shape[channel_axis] == width else conv(width, 1)(x))

        x = conv(self.stem, 5, stride=2)(jnp.transpose(images, swap))
        for width in self.widths:
            x = max_pool(x, 2)
            for _ in range(self.num_blocks):
                x = block(self, partial(residual, width), x, remat=self.remat)
        x = widen(normalized(max_pool(x, 2)))
        return nn.Dense(self.dim)(flatten(jnp.transpose(x, swap)))

    def _make_conv(self) -> Callable[..., nn.Module]:
        """Returns a function that makes the next convolution."""
        he_normal, numbers = nn.initializers.he_normal(), itertools.count()

        def of_flax(features: int, size: int, stride: int = 1) -> nn.Module:
            return nn.Conv(
                features,
                (size, size),
                stride,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=he_normal,
                conv_general_dilated=convolution,
            )

        def images_last(features: int, size: int, stride: int = 1) -> nn.Module:
            name = f"Conv_{next(numbers)}"
            return SameConv(features, size, stride, he_normal, self.dtype, name=name)

        return images_last if self.images_last else of_flax
