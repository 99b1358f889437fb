"""Blocks of layers whose activations are computed again in the backward pass.

    x = block(self, lambda x: nn.relu(nn.Conv(8, (3, 3))(x)), x, remat=True)

Only x is kept for the gradient. Parameters have the names that they would have without.
XLA on CPUs finds that the same is computed twice, and keeps the activations after all.
"""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array


def block(
    module: nn.Module, layers: Callable[[Array], Array], x: Array, *, remat: bool
) -> Array:
    """Returns layers(x), for which the backward pass keeps x alone if `remat`.

    Args:
      module: The module in whose compact method the layers are made.
      layers: Makes and applies the layers of the block.
      x: Input of the block.
      remat: Whether to compute the layers again. They need a third more time then.
    """
    if not remat or module.is_initializing():
        return layers(x)
    return nn.remat(lambda _, x: layers(x))(module, x)
