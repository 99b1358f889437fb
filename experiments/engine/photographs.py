"""Systems for small sets of photographs: two encoders, trained by supervised contrast.

The encoder is a linear map of oriented gradients ("hog"), for sets that are too small to
learn features from, or a small convolutional network ("conv"). Its embeddings are
normalised to length 1.
"""

import dataclasses
from typing import Literal

from experiments.engine import optimizers, supcon
from experiments.engine.config import setting
from experiments.engine.loop import System
from siamese_jax.encoders import ConvNet, GradientMap, Standardized
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation


@dataclasses.dataclass(frozen=True)
class PhotographConfig(supcon.SupConConfig):
    """The settings of the encoder and of its training.

    Attributes:
      encoder: A linear map of oriented gradients, or a convolutional network.
      widths: Number of features of each block of the convolutional network. Each block
        halves the image.
      dim: Number of features of the convolutional network's embeddings.
    """

    encoder: Literal["hog", "conv"] = "conv"
    widths: tuple[int, ...] = setting(
        (16, 32, 64, 128), at_least=1, only_when={"encoder": "conv"}
    )
    dim: int = setting(64, at_least=1, only_when={"encoder": "conv"})

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
    )


def make_encoder(config: PhotographConfig) -> GradientMap | Standardized:
    """The encoder that `--encoder` names."""
    if config.encoder == "hog":
        return GradientMap()
    return Standardized(ConvNet(widths=config.widths, dim=config.dim))


def check_size(config: PhotographConfig, size: tuple[int, int], name: str) -> None:
    """Refuses images that are too small for the encoder.

    Args:
      config: The settings of the encoder.
      size: Height and width of the prepared images.
      name: What the error message calls the size, such as a flag.

    Raises:
      UserError: If it is less than `least_size` of the encoder.
    """
    least = make_encoder(config).least_size
    if size[0] < least[0] or size[1] < least[1]:
        raise UserError(
            f"{name} must be at least {least} for --encoder {config.encoder}; got {size}"
        )
