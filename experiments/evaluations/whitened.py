"""The accuracy of a run of omniglot_supcon without whitening and with several shrinkages.

Run:     python -m experiments whitened --run RUN --shrinkage 0.1 0.3 1
Expect:  at the shrinkage of the run, its within_alphabet_accuracy to within the interval of
         that, as a run draws 10,000 tasks and this 100,000

The last state of the run is evaluated on random 20-way one-shot tasks within the validation
alphabets, which are the same for every figure. The whitening is fitted to the characters
that the run was trained on. It does not matter whether the run whitens its own model.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from experiments.cli import command_line, show_figures
from experiments.datasets import evaluation_key
from experiments.engine import checkpoints
from experiments.engine.config import check_config, setting
from experiments.engine.system import initial_state, load_system
from experiments.evaluations import few_shot
from experiments.evaluations.model_so_far import read_settings
from siamese_jax.cli import check_output
from siamese_jax.episodes import EpisodeAccuracy
from siamese_jax.errors import UserError
from siamese_jax.images import prepare
from siamese_jax.model import Model


@dataclasses.dataclass(frozen=True)
class Config:
    """The run, and the shrinkages to compare.

    Attributes:
      run: The folder of a run of omniglot_supcon.
      shrinkage: How much of the identity is added to the covariance, see
        `siamese_jax.whitening`.
      num_episodes: Number of tasks.
      json: A file for the figures.
    """

    run: pathlib.Path
    shrinkage: tuple[float, ...] = setting((0.1, 0.3, 1.0), at_least=0)
    num_episodes: int = setting(100_000, at_least=2)
    json: pathlib.Path | None = None


def main(config: Config) -> None:
    """Embeds the drawings, evaluates, and shows the figures.

    Raises:
      UserError: If a flag is wrong, the folder is no such run, or its state cannot be read.
    """
    check_config(config)
    check_output("--json", config.json)
    settings = read_settings(config.run)
    if settings.experiment != "omniglot_supcon":
        raise UserError(f"--run: {config.run} is a run of {settings.experiment}")
    module = load_system("omniglot_supcon")
    parts = module.load_parts(settings)
    if "validation" not in parts:
        raise UserError(f"--run: {config.run} has no validation alphabets")
    train, validation = parts["train"], parts["validation"]
    system = module.build(settings)
    like = jax.eval_shape(lambda: initial_state(system, jax.random.key(0)))
    model = system.model(checkpoints.load_state(config.run, like))
    index = validation.class_index()

    def accuracy(model: Model) -> EpisodeAccuracy:
        return few_shot.task_accuracy(
            evaluation_key("within_alphabet_20_way_1_shot tasks"),
            model,
            jnp.asarray(model.embed(validation.images, batch_size=64)),
            index,
            num_episodes=config.num_episodes,
            within_alphabet=True,
        )

    metrics = few_shot.as_metrics("not_whitened", accuracy(model))
    images = prepare(train.images, model.preparation)
    for shrinkage in config.shrinkage:
        white = module.whitened(model, images, train.labels, shrinkage=shrinkage)
        metrics |= few_shot.as_metrics(f"shrinkage_{shrinkage:g}", accuracy(white))
    show_figures({"metrics": metrics}, config.json)


if __name__ == "__main__":
    command_line(main, Config)
