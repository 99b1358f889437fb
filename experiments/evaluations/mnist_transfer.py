"""Accuracy of a model trained on Omniglot in one-shot tasks with MNIST's digits.

Source:  Koch, Zemel, Salakhutdinov. Siamese Neural Networks for One-shot Image
         Recognition. 2015, section 4.4: 70.3 %, nearest neighbour 26.5 %.
Run:     python -m experiments mnist_transfer --model RUN/model
Expect:  pixels .426 +- .010; Koch's network at half size, after 1,500 steps, .180 +- .008

A task has one image of each of the ten digits, and asks which digit another image shows.
All images are of MNIST's test split; nothing is trained on MNIST. Its light digits are
inverted to dark ink on light paper, as in the files of Omniglot. The baseline is the
nearest image by the Euclidean distance of the 28 x 28 pixels, in the same tasks.

The paper seems to have 400 tasks made as its Omniglot tasks are. It enlarges the digits to
35 x 35 and uses a smaller network, trained on Omniglot at 35 x 35, a third of its size.
Here the model is used as it is, and the digits are enlarged to the size it was trained on.
The paper does not say how its nearest neighbours were found; those here are better.
"""

import dataclasses
import pathlib

import jax

from experiments.cli import command_line, show_figures
from experiments.datasets.tfds import load_tfds
from experiments.engine.config import LARGEST_SEED, check_config, setting
from experiments.evaluations import few_shot
from siamese_jax import samplers
from siamese_jax.cli import check_output
from siamese_jax.episodes import EpisodeAccuracy
from siamese_jax.images import LabelledImages, Preparation
from siamese_jax.model import Model, load_model, pixel_model


@dataclasses.dataclass(frozen=True)
class Config:
    """The model, and the number of tasks.

    Attributes:
      model: The folder of a model that was trained on Omniglot.
      num_episodes: Number of tasks.
      seed: The seed of the tasks.
      json: A file for the figures.
    """

    model: pathlib.Path
    num_episodes: int = setting(10_000, at_least=2)
    seed: int = setting(0, at_least=0, at_most=LARGEST_SEED)
    json: pathlib.Path | None = None


def main(config: Config) -> None:
    """Evaluates the model and the baseline, and shows the figures.

    Raises:
      UserError: If a flag or the folder of the model is wrong.
      FileNotFoundError: If MNIST is not prepared.
    """
    check_config(config)
    check_output("--json", config.json)
    model = load_model(config.model)
    digits = load_pictures()
    height, width = digits.images.shape[1:3]
    pixels = evaluate(config, pixel_model(Preparation((height, width))), digits)
    print(f"embedding {len(digits.images):,} digits ...")
    metrics = few_shot.as_metrics("one_shot_accuracy", evaluate(config, model, digits))
    metrics |= few_shot.as_metrics("one_shot_accuracy_pixels", pixels)
    show_figures({"metrics": metrics}, config.json)


def load_pictures() -> LabelledImages:
    """Returns MNIST's test digits as dark ink on light paper, like Omniglot's pictures.

    Raises:
      FileNotFoundError: If MNIST is not prepared.
    """
    digits = load_tfds("mnist", "test")
    return LabelledImages(255 - digits.images, digits.labels)


def evaluate(config: Config, model: Model, digits: LabelledImages) -> EpisodeAccuracy:
    """Returns the accuracy over random 10-way tasks, which are the same for every model."""
    return few_shot.task_accuracy(
        jax.random.key(config.seed),
        model,
        model.embed(digits.images, batch_size=64),
        samplers.class_index(digits.labels),
        num_episodes=config.num_episodes,
        within_alphabet=False,
        num_ways=10,
    )


if __name__ == "__main__":
    command_line(main, Config)
