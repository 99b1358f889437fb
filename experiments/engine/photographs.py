"""Systems for small sets of photographs: encoders that are trained by supervised contrast.

The encoder is a linear map of oriented gradients ("hog"), for sets that are too small to
learn features from, a small convolutional network ("conv"), or a Flax module of one's own
("package.module:Name"). Its embeddings are normalised to length 1.
"""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from experiments.engine import optimizers, supcon
from experiments.engine.backbones import import_named
from experiments.engine.config import setting
from experiments.engine.system import System
from siamese_jax.encoders import ConvNet, GradientMap, Standardized
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation
from siamese_jax.siamese import from_flax

if TYPE_CHECKING:
    import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class PhotographConfig(supcon.SupConConfig):
    """The settings of the encoder and of its training.

    Attributes:
      encoder: "hog", a linear map of oriented gradients, "conv", a convolutional network,
        or "package.module:Name", a Flax linen module, or what returns one without
        arguments. It is called with images [n, height, width, channels] in [0, 1] and
        `train`, and returns embeddings [n, dim].
      widths: Number of features of each block of the convolutional network. Each block
        halves the image.
      dim: Number of features of the convolutional network's embeddings.
      remat: Whether the convolutional network computes activations again in the backward
        pass, for less memory and a third more time on accelerators.
    """

    encoder: str = "conv"
    widths: tuple[int, ...] = setting(
        (16, 32, 64, 128), at_least=1, only_when={"encoder": "conv"}
    )
    dim: int = setting(64, at_least=1, only_when={"encoder": "conv"})
    remat: bool = setting(False, only_when={"encoder": "conv"})

    def has_bfloat16_products(self, platform: str) -> bool:
        """Not those of oriented gradients, which are measured in float32."""
        return self.encoder != "hog" and super().has_bfloat16_products(platform)

    @property
    def can_be_lengthened(self) -> bool:
        """No: the learning rate falls to zero at the last step."""
        return False


def build(config: PhotographConfig, preparation: Preparation) -> System:
    """The system of these settings, for images that are prepared in this way."""
    return supcon.make_system(
        make_encoder(config),
        preparation,
        sample=supcon.make_sampler(config),
        optimizer=optimizers.one_cycle_adamw(
            config.learning_rate, config.num_steps, weight_decay=config.weight_decay
        ),
        temperature=config.temperature,
        compute_dtype=config.compute_dtype,
        axis_name=config.axis_name,
    )


def make_encoder(config: PhotographConfig) -> "nn.Module":
    """The encoder that `--encoder` names.

    Raises:
      UserError: If there is no such encoder.
    """
    if config.encoder == "hog":
        return GradientMap()
    if config.encoder == "conv":
        network = ConvNet(
            config.widths, config.dim, axis_name=config.axis_name, remat=config.remat
        )
        return Standardized(network)
    return import_encoder(config.encoder)


def import_encoder(path: str) -> "nn.Module":
    """The Flax module that "package.module:Name" names, or that it returns.

    Raises:
      UserError: If it cannot be imported, or is no Flax linen module.
    """
    import flax.linen as nn

    if ":" not in path:
        raise UserError(f"--encoder must be hog, conv or package.module:Name; got {path}")
    found = import_named("--encoder", path)
    network = found if isinstance(found, nn.Module) or not callable(found) else found()
    if not isinstance(network, nn.Module):
        raise UserError(
            f"--encoder {path} must be a Flax linen module; got {type(network).__name__}"
        )
    return network


def check_encoder(config: PhotographConfig, preparation: Preparation, name: str) -> None:
    """Refuses images that are too small for the encoder, and what is no encoder.

    Args:
      config: The settings of the encoder.
      preparation: How its images are prepared.
      name: What the error message calls their size, such as a flag.

    Raises:
      UserError: If the size is less than `least_size` of the encoder, a network of one's
        own does not return embeddings [n, dim] for such images or is to run by pmap, or
        oriented gradients are to be measured in bfloat16.
    """
    if config.encoder == "hog" and config.compute_dtype == "bfloat16":
        raise UserError(
            "--compute-dtype bfloat16 is of no use with --encoder hog: its gradients are "
            "measured in float32, of images that bfloat16 would round to 8 binary digits"
        )
    if ":" in config.encoder and config.parallel == "pmap":
        raise UserError(
            f"--parallel pmap does not take --encoder {config.encoder}, which knows no "
            "axis of the devices; use --parallel jit"
        )
    encoder, shape = make_encoder(config), (2, *preparation.image_shape)
    least = getattr(encoder, "least_size", (1, 1))
    if shape[1] < least[0] or shape[2] < least[1]:
        raise UserError(
            f"{name} must be at least {least} for --encoder {config.encoder}; got "
            f"{preparation.size}"
        )
    init, apply = from_flax(encoder)

    def embed(key: jax.Array) -> jax.Array:
        params, statistics = init(key, jnp.zeros(shape))
        return apply(params, jnp.zeros(shape), statistics=statistics, key=key, train=True)[
            0
        ]

    try:
        found = jax.eval_shape(embed, jax.random.key(0))
    except Exception as error:  # whatever a network of one's own raises
        raise UserError(
            f"--encoder {config.encoder} does not take images {shape}: {error}"
        ) from error
    if len(getattr(found, "shape", ())) != 2 or found.shape[0] != 2:
        raise UserError(
            f"--encoder {config.encoder} must return embeddings [n, dim]; got {found}"
        )
