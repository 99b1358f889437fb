"""From characters to digits: a net trained on Omniglot, on one-shot tasks of MNIST.

Source:  Koch, Zemel, Salakhutdinov. Siamese Neural Networks for One-shot Image
         Recognition. 2015, section 4.4: 70.3 %, nearest neighbour 26.5 %.
Run:     python -m experiments.mnist_transfer --workdir RUN
Expect:  pixels .437 +- .010; a net of 1,500 steps at half size .180 +- .008

A task shows one image of each of the ten digits, and asks for another image of one of
them. All are of MNIST's test split; nothing is learnt from MNIST. Its light digits are
turned into the dark ink on light paper that nets of Omniglot take, and resized to the
net's input. The baseline is the nearest image by the Euclidean distance of the 28 x 28
pixels, on the same tasks.

The paper, as far as it says, has 400 tasks made as its Omniglot tasks are. It enlarges the
digits to 35 x 35 and gives them to a smaller net, trained on Omniglot at 35 x 35, a third
of its size; here the net of the run is taken as it is, and the digits are enlarged to what
it was trained on. The paper does not say how its nearest neighbours were found; ours are
better.
"""

import dataclasses
import pathlib

import jax

from experiments import model, omniglot, run
from experiments.data import Dataset, load_tfds
from experiments.model import Model
from experiments.run import UserError
from siamese_jax import samplers
from siamese_jax.episodes import EpisodeAccuracy


@dataclasses.dataclass(frozen=True)
class Config:
    """Which run, on how many tasks.

    Attributes:
      workdir: A run of an experiment on Omniglot.
      num_episodes: Tasks.
      seed: Of the tasks.
      json: A file for the figures.
    """

    workdir: pathlib.Path
    num_episodes: int = 10_000
    seed: int = 0
    json: pathlib.Path | None = None


def load_pictures() -> Dataset:
    """MNIST's test digits as pictures like Omniglot's: dark ink on light paper.

    Raises:
      FileNotFoundError: If MNIST is not prepared; says how to get it.
    """
    digits = load_tfds("mnist", "test")
    return Dataset(255 - digits.images, digits.labels)


def judge(config: Config, judged: Model, digits: Dataset) -> EpisodeAccuracy:
    """Random 10-way tasks of one question; the same for every model."""
    return omniglot.task_accuracy(
        jax.random.key(config.seed),
        judged,
        model.embed(judged, digits.images, batch_size=64),
        samplers.class_index(digits.labels),
        num_episodes=config.num_episodes,
        within_alphabet=False,
        num_ways=10,
    )


def command(config: Config) -> None:
    """Judges the net and the baseline, and shows the figures.

    Raises:
      UserError: If a flag or the working directory is wrong.
    """
    if config.num_episodes < 2:
        raise UserError(f"num_episodes must be at least 2; got {config.num_episodes}")
    run.check_output(config.json)
    learnt = model.load_model(config.workdir)
    digits = load_pictures()
    pixels = model.pixel_model(digits.images.shape[1:])
    metrics = omniglot.as_metrics("one_shot_accuracy_pixels", judge(config, pixels, digits))
    print(f"embedding {len(digits.images):,} digits ...")
    metrics = (
        omniglot.as_metrics("one_shot_accuracy", judge(config, learnt, digits)) | metrics
    )
    run.show_figures({"metrics": metrics}, config.json)


if __name__ == "__main__":
    run.command_line(command, Config)
