"""The five systems with the tutorials' settings, on synthetic images.

Every contestant reads the same cases in its own process, with its own framework. This file
therefore imports NumPy and no framework.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

NUM_IMAGES = 5_000


class Case(NamedTuple):
    """The settings with which one system is timed.

    Attributes:
      image_shape: Height, width and number of channels of an image.
      batch_size: Number of pairs in a step.
      num_steps: Number of steps in one timed run.
      num_compared_steps: Number of steps, from the first on, whose losses must agree.
      config: Settings of our system, without the batch size.
      options: Options of the models in Keras and PyTorch.
      without_dropout: Changes to `config` and `options` that turn dropout off, for the
        comparison of losses.
      steps_per_execution: The argument of `compile` in Keras with the best speed for this
        system. Backends that do not support it use 1.
      flops_per_pair: Number of floating-point operations of a training step for each pair,
        when convolutions are computed as direct sums. It counts the forward pass and both
        gradients of each layer, but not the gradient of the images.
      draws_pairs: Whether our system draws new pairs of classes at each step. The other
        systems go through a fixed list of pairs.
    """

    image_shape: tuple[int, int, int]
    batch_size: int
    num_steps: int
    num_compared_steps: int
    config: Mapping[str, Any]
    options: Mapping[str, Any]
    without_dropout: Mapping[str, Any]
    steps_per_execution: int
    flops_per_pair: float
    draws_pairs: bool = False


class Pairs(NamedTuple):
    """Images and the pairs to train on.

    Attributes:
      images: Images as bytes, [num_images, height, width, channels].
      examples: Indices of the two images of each pair, [2, n].
      same: Whether the two images of a pair count as one class, [n].
    """

    images: np.ndarray
    examples: np.ndarray
    same: np.ndarray


CASES = {
    "mnist_mlp": Case(
        image_shape=(28, 28, 1),
        batch_size=128,
        num_steps=800,
        num_compared_steps=10,
        config={"dropout": 0.5},
        options={"dropout": 0.5},
        without_dropout={"dropout": 0.0},
        steps_per_execution=20,
        flops_per_pair=1.196e6,
    ),
    "mnist_conv": Case(
        image_shape=(28, 28, 1),
        batch_size=128,
        num_steps=60,
        num_compared_steps=10,
        config={"form": "literal"},
        options={"form": "literal"},
        without_dropout={},
        steps_per_execution=1,
        flops_per_pair=34.78e6,
    ),
    "orl_tutorial": Case(
        image_shape=(56, 46, 1),
        batch_size=128,
        num_steps=60,
        num_compared_steps=10,
        config={"stride": 1},
        options={"stride": 1},
        without_dropout={"dropout": (0.0, 0.0, 0.0)},
        steps_per_execution=1,
        flops_per_pair=7.203e6,
    ),
    "omniglot_koch": Case(
        image_shape=(105, 105, 1),
        batch_size=32,
        num_steps=3,
        num_compared_steps=2,
        config={"pixels": "ink-1"},
        options={},
        without_dropout={},
        steps_per_execution=1,
        flops_per_pair=10.67e9,
        draws_pairs=True,
    ),
    "mnist_towers": Case(
        image_shape=(28, 28, 1),
        batch_size=16,
        num_steps=2_000,
        num_compared_steps=10,
        config={"variants": ("c",)},
        options={"variant": "c"},
        without_dropout={},
        steps_per_execution=20,
        flops_per_pair=0.803e6,
    ),
}

_DIGITS: dict[str, Any] = {
    "image_shape": (8, 8, 1),
    "config": {"dataset": "digits"},
    "options": {"image_shape": (8, 8, 1)},
}
_SMOKE: dict[str, dict[str, Any]] = {
    "mnist_mlp": _DIGITS,
    "mnist_conv": _DIGITS,
    "mnist_towers": _DIGITS,
    "omniglot_koch": {
        "image_shape": (53, 53, 1),
        "config": {"size": "half", "pixels": "ink-1"},
        "options": {"image_size": 53, "kernel_sizes": (5, 4, 3, 3)},
    },
}


def get_case(
    system: str,
    *,
    smoke: bool = False,
    dtype: str = "float32",
    batch_size: int | None = None,
) -> Case:
    """Returns one of `CASES` with a precision and a batch size.

    Args:
      system: A name in `CASES`.
      smoke: Whether the case is tiny, which is enough to show that everything runs.
      dtype: Type of number that the network computes in, "float32" or "bfloat16".
      batch_size: Number of pairs in a step. None means the batch size of the tutorial.
    """
    case = CASES[system]
    case = case._replace(
        config={**case.config, "compute_dtype": dtype},
        batch_size=batch_size or case.batch_size,
    )
    if not smoke:
        return case
    small = _SMOKE.get(system, {})
    return case._replace(
        image_shape=small.get("image_shape", case.image_shape),
        batch_size=4,
        num_steps=4,
        num_compared_steps=3,
        config={**case.config, **small.get("config", {})},
        options={**case.options, **small.get("options", {})},
        steps_per_execution=min(case.steps_per_execution, 2),
    )


def make_pairs(case: Case) -> Pairs:
    """Returns random pairs of two different images, the same in every process.

    The content of the images does not change the speed. The images are mostly black, so
    that distances are small and no loss saturates.
    """
    rng = np.random.default_rng(0)
    num_pairs = case.num_steps * case.batch_size
    num_images = min(NUM_IMAGES, 2 * num_pairs)
    images = rng.integers(0, 64, (num_images, *case.image_shape), np.uint8)
    images[rng.random(images.shape, np.float32) > 0.2] = 0
    first = rng.integers(0, num_images, num_pairs)
    second = (first + rng.integers(1, num_images, num_pairs)) % num_images
    examples = np.stack([first, second]).astype(np.int32)
    return Pairs(images, examples, np.arange(num_pairs) % 2 == 0)
