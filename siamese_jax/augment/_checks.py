"""The checks that the augmentations share."""

from jaxtyping import Array

from siamese_jax._checks import check_floating, check_rank


def check_image(image: Array, *, name: str = "image") -> None:
    """Raises unless `image` is one floating-point image `[height, width, channels]`."""
    check_floating(name, image)
    check_rank(name, image, 3)


def check_probability(name: str, probability: float) -> None:
    """Raises ValueError unless the Python number `probability` is in [0, 1]."""
    if not 0 <= probability <= 1:
        raise ValueError(f"{name} must be in [0, 1]; got {probability}")
