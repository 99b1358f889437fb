"""Layers on images [channels, height, width, n], which are faster on CPUs.

With the images last, what a CPU moves and compares is contiguous even where there are few
channels, and bfloat16 products have the layout that its units accept. A network is written
once, for both layouts. Its parameters and results do not depend on the layout.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from siamese_jax._cpu import blocks, images_last

SWAP = (3, 1, 2, 0)  # from one layout to the other and back


def by_platform(
    module: nn.Module,
    make_layers: Callable[..., nn.Module],
    images: Float[Array, "n height width channels"],
    *,
    train: bool,
) -> Float[Array, "n dim"]:
    """Runs `make_layers(images_last=True)` on CPUs, and with False elsewhere.

    Args:
      module: The module that calls. The parameters and statistics of the layers are its
        own, under the names that they have in the layers.
      make_layers: Makes a module, to be called with `(images, train=train)`.
      images: Images.
      train: As for every encoder.
    """
    if module.is_initializing():
        layers = make_layers(images_last=False)
        nn.share_scope(module, layers)
        return layers(images, train=train)
    variables = dict(module.variables)
    rngs = {}
    if train and module.has_rng("dropout"):
        rngs["dropout"] = module.make_rng("dropout")
    on_cpu, elsewhere = (
        partial(_apply, make_layers(images_last=last, parent=None), train)
        for last in (True, False)
    )
    embeddings, statistics = lax.platform_dependent(
        variables, images, rngs, cpu=on_cpu, default=elsewhere
    )
    for name, value in statistics.items():
        module.put_variable("batch_stats", name, value)
    return embeddings


def _apply(
    layers: nn.Module, train: bool, variables: Any, images: Array, rngs: Any
) -> tuple[Any, Any]:
    """Returns embeddings, and the new batch statistics if `train`, else {}."""
    if not train:
        return layers.apply(variables, images), {}
    embeddings, changed = layers.apply(
        variables, images, train=True, rngs=rngs, mutable=["batch_stats"]
    )
    return embeddings, dict(changed.get("batch_stats", {}))


class SameConv(nn.Module):
    """Convolution with padding "SAME" and no bias; parameters are those of `nn.Conv`."""

    features: int
    size: int
    stride: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "c h w n"]) -> Float[Array, "d out_h out_w n"]:
        """Convolves in `dtype`, or in that of x and the kernel."""
        shape = (self.size, self.size, x.shape[0], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        dtype = self.dtype or jnp.result_type(x, kernel)
        return images_last.convolve(x.astype(dtype), kernel, stride=self.stride)


class PooledConv(nn.Module):
    """Valid convolution, max-pooling, bias; parameters are those of `nn.Conv`."""

    features: int
    size: int
    window: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "c h w n"]) -> Float[Array, "d out_h out_w n"]:
        """Returns max_pool(conv(x)) + bias."""
        shape = (self.size, self.size, x.shape[0], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = blocks.convolve_and_pool(
            x.astype(wide), kernel.astype(wide), self.window, images_last=True
        )
        return y.astype(x.dtype) + bias[:, None, None, None]
