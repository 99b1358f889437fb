"""More than one net from one view: averages over views, ensembles, tasks answered whole.

Run:     python -m experiments.omniglot_extras --workdirs RUN --alphabets validation
         python -m experiments.omniglot_extras --workdirs RUN1 RUN2 RUN3
Expect:  experiments/omniglot_record.md has the figures of its runs

20-way one-shot tasks within an alphabet, as `within_alphabet` draws them, for nets that
compare by the cosine of embeddings:

one                    the mean over the nets, each alone: what is fair to compare
views                  likewise, each drawing embedded in seven small distortions, and the
                       mean of the seven compared
ensemble               the mean of the nets' cosines
ensemble_views         both
transductive           each net alone, asked for all 20 characters at once, which it has to
                       give different answers: the assignment of the largest sum
ensemble_transductive  likewise, of the mean of the nets' cosines
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from experiments import model, omniglot, run, within_alphabet
from experiments.model import Model
from experiments.omniglot import Characters
from experiments.run import UserError
from siamese_jax import augment, samplers
from siamese_jax.distances import normalize


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs, on which tasks.

    Attributes:
      workdirs: Runs of `omniglot_record`, of one size of input.
      alphabets: As for `within_alphabet`.
      num_episodes: Tasks.
      num_ways: Characters a task.
      seed: Of the tasks.
      json: A file for the figures.
    """

    workdirs: tuple[pathlib.Path, ...]
    alphabets: tuple[str, ...] = ("validation",)
    num_episodes: int = 10_000
    num_ways: int = 20
    seed: int = 0
    json: pathlib.Path | None = None


# Views, ensembles -----------------------------------------------------------------------


def view_matrices(size: int) -> jax.Array:
    """As it is; turned, scaled and sheared a little. Not shifted: nets centre drawings."""
    centre = (size - 1) / 2
    angle = np.deg2rad(6.0)
    still = np.eye(2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, 0.1], [0.1, 1.0]])
    maps = [still, turn, turn.T, still * 1.08, still / 1.08, shear, np.linalg.inv(shear)]
    rows = [np.c_[m, centre - m @ np.full(2, centre)] for m in maps]
    return jnp.asarray(np.stack(rows), jnp.float32)


def with_views(learnt: Model) -> Model:
    """The mean of the embeddings of seven views of each picture."""
    matrices = view_matrices(learnt.image_shape[0])

    def embed_fn(params: Any, pictures: jax.Array) -> Any:
        def one_view(matrix: jax.Array) -> jax.Array:
            same = jnp.broadcast_to(matrix, (len(pictures), 2, 3))
            return learnt.embed_fn(
                params, augment.affine_transform(pictures, same, fill=1.0)
            )

        return normalize(jnp.mean(jax.lax.map(one_view, matrices), axis=0))

    return learnt._replace(embed_fn=embed_fn)


def ensemble(embeddings: Sequence[jax.Array]) -> jax.Array:
    """Unit embeddings side by side: their cosine is the mean of the nets' cosines."""
    return normalize(jnp.concatenate([normalize(part) for part in embeddings], axis=1))


# Judgement ------------------------------------------------------------------------------


def inductive(
    config: Config, learnt: Model, characters: Characters, embeddings: jax.Array
) -> dict[str, float]:
    """Each question alone."""
    found = omniglot.task_accuracy(
        jax.random.key(config.seed),
        learnt,
        embeddings,
        characters.class_index(),
        num_episodes=config.num_episodes,
        within_alphabet=True,
        num_ways=config.num_ways,
    )
    return omniglot.as_metrics("accuracy", found)


def transductive(
    config: Config, learnt: Model, characters: Characters, embeddings: jax.Array
) -> dict[str, float]:
    """All questions of a task at once, no two with one answer."""
    index = characters.class_index()
    keys = jax.random.split(jax.random.key(config.seed), config.num_episodes)

    @jax.jit
    def distances(embeddings: jax.Array) -> jax.Array:
        def one_task(key: jax.Array) -> jax.Array:
            ways = config.num_ways
            task = samplers.sample_episode(key, index, ways, 1, 1, max_groups=1)
            questions, shown = embeddings[task.query[:, 0]], embeddings[task.support[:, 0]]
            return learnt.matrix_fn(questions, shown)

        return jax.lax.map(one_task, keys, batch_size=100)

    right = np.array([assigned_right(task) for task in np.asarray(distances(embeddings))])
    margin = 1.96 * right.std(ddof=1) / len(right) ** 0.5
    return {"accuracy": float(right.mean()), "accuracy_interval": float(margin)}


def assigned_right(distances: np.ndarray) -> float:
    """The share of questions that the assignment of the smallest sum answers rightly.

    Row i is a question whose answer is column i.

    >>> assigned_right(np.array([[1.0, 2.0], [1.1, 3.0]]))  # alone, both would choose 0
    0.0
    >>> assigned_right(np.array([[1.0, 3.0], [1.1, 2.0]]))
    1.0
    """
    rows, columns = linear_sum_assignment(distances)
    return float(np.mean(rows == columns))


def command(config: Config) -> None:
    """Judges every way, and shows the figures.

    Raises:
      UserError: If a flag or a working directory is wrong.
    """
    run.check_output(config.json)
    nets = [model.load_model(workdir) for workdir in config.workdirs]
    if len(shapes := {net.image_shape for net in nets}) != 1:
        raise UserError(f"--workdirs: nets of one size of input; got {sorted(shapes)}")
    characters = within_alphabet.choose(config.alphabets)
    within_alphabet.check_counts(
        characters, num_episodes=config.num_episodes, num_ways=config.num_ways
    )
    print(f"embedding {len(characters.images):,} drawings, eight views of each ...")
    one, views = (
        [model.embed(net, characters.images, batch_size=64) for net in each]
        for each in (nets, [with_views(net) for net in nets])
    )
    together = ensemble(one)
    ways = {
        "one": (inductive, one),
        "views": (inductive, views),
        "ensemble": (inductive, [together]),
        "ensemble_views": (inductive, [ensemble(views)]),
        "transductive": (transductive, one),
        "ensemble_transductive": (transductive, [together]),
    }
    metrics: dict[str, float] = {}
    for name, (judge, embeddings) in ways.items():
        print(f"{name} ...")
        figures = [judge(config, nets[0], characters, each) for each in embeddings]
        for key in figures[0]:
            metrics[f"{name}_{key}"] = float(np.mean([each[key] for each in figures]))
    run.show_figures({"metrics": metrics}, config.json)


if __name__ == "__main__":
    run.command_line(command, Config)
