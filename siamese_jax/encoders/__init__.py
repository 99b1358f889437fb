"""Networks: images to embeddings, and embeddings of two images to "same" log-odds.

Flax linen modules made of Flax's own layers. Images are [n, height, width, channels],
floating-point in [0, 1], and kernels are HWIO. `train=True` turns on dropout, which needs
the rng "dropout", and batch statistics, which are in the collection "batch_stats".
Parameters and results are the same on every platform. On a CPU, `ResNet` in half precision
has reverse-mode derivatives only: no `jax.jvp`, `jax.jacfwd` or `jax.hessian`.
`encoder.least_size` is the least height and width of its images; smaller ones raise
ValueError when the encoder is traced.

tutorials  the networks of public Keras tutorials and of Koch et al. 2015, and their heads
residual   `ConvNet`, a small plain network, and `ResNet`, a residual one
hog        a linear map of oriented gradients, for sets too small to learn features from

The rest of the library sees only `apply_fn(params, images)`; `siamese.from_flax` gives it.

>>> import jax
>>> import jax.numpy as jnp
>>> encoder = MnistMlp()
>>> variables = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
>>> print(jax.jit(encoder.apply)(variables, jnp.zeros((5, 28, 28, 1))).shape)
(5, 128)
"""

from siamese_jax.encoders.hog import GradientMap, oriented_gradients
from siamese_jax.encoders.residual import ConvNet, ResNet, Standardized
from siamese_jax.encoders.tutorials import (
    ConcatenationHead,
    DistanceHead,
    Dropout,
    KochConv,
    MnistConv,
    MnistMlp,
    MnistTower,
    OrlConv,
    WeightedL1Head,
)

__all__ = [
    "ConcatenationHead",
    "ConvNet",
    "DistanceHead",
    "Dropout",
    "GradientMap",
    "KochConv",
    "MnistConv",
    "MnistMlp",
    "MnistTower",
    "OrlConv",
    "ResNet",
    "Standardized",
    "WeightedL1Head",
    "oriented_gradients",
]
