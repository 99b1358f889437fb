"""Accuracy of test-time augmentation, ensembles, and matching of whole tasks.

Run:     python -m experiments ensembles --models RUN/model --alphabets validation
         python -m experiments ensembles --models RUN1/model RUN2/model RUN3/model
Expect:  with three models of `omniglot_supcon --preset short --no-whiten`, each +- .007:
         one .863, views .873, ensemble .873, ensemble_views .876, transductive .943 and
         ensemble_transductive .950, both +- .002

The tasks are the 20-way one-shot tasks within an alphabet of `within_alphabet`. The models
are those of `omniglot_supcon`, or others that compare by the cosine of their embeddings:

one                    the mean accuracy of the single models, for comparison
views                  the same, with seven small distortions of each drawing: the mean of
                       the seven embeddings is compared
ensemble               drawings are compared by the mean of the models' cosines
ensemble_views         both
transductive           the mean accuracy of the single models when all 20 characters of a
                       task are queried at once and get different answers: the assignment
                       with the smallest sum of distances
ensemble_transductive  the same with the mean of the models' cosines
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli import command_line, show_figures
from experiments.datasets.omniglot import Characters
from experiments.engine.config import LARGEST_SEED, check_config, setting
from experiments.evaluations import few_shot, within_alphabet
from siamese_jax import augment, episodes, samplers
from siamese_jax.cli import check_output
from siamese_jax.distances import euclidean_distance_matrix, normalize
from siamese_jax.errors import UserError
from siamese_jax.model import Model, load_model


@dataclasses.dataclass(frozen=True)
class Config:
    """The models, and the tasks to evaluate them on.

    Attributes:
      models: Folders of models with the same size of input.
      alphabets: As for `within_alphabet`.
      num_episodes: Number of tasks.
      num_ways: Number of characters in a task.
      seed: The seed of the tasks.
      json: A file for the figures.
    """

    models: tuple[pathlib.Path, ...]
    alphabets: tuple[str, ...] = ("validation",)
    num_episodes: int = setting(10_000, at_least=2)
    num_ways: int = setting(20, at_least=2)
    seed: int = setting(0, at_least=0, at_most=LARGEST_SEED)
    json: pathlib.Path | None = None


def main(config: Config) -> None:
    """Evaluates every method, and shows the figures.

    Raises:
      UserError: If a flag or the folder of a model is wrong.
    """
    check_config(config)
    check_output("--json", config.json)
    models = [load_model(folder) for folder in config.models]
    check_models(models)
    characters = within_alphabet.choose_alphabets(config.alphabets)
    within_alphabet.check_ways(characters, config.num_ways)
    print(f"embedding {len(characters.images):,} drawings, eight views of each ...")
    one = [embed(model, characters) for model in models]
    views = [embed(with_views(model), characters) for model in models]
    joined = [ensemble(one)]
    methods = {
        "one": (inductive, one),
        "views": (inductive, views),
        "ensemble": (inductive, joined),
        "ensemble_views": (inductive, [ensemble(views)]),
        "transductive": (transductive, one),
        "ensemble_transductive": (transductive, joined),
    }
    metrics: dict[str, float] = {}
    for name, (evaluate, embeddings) in methods.items():
        print(f"{name} ...")
        figures = [evaluate(config, characters, each) for each in embeddings]
        for key in figures[0]:
            metrics[f"{name}_{key}"] = float(np.mean([each[key] for each in figures]))
    show_figures({"metrics": metrics}, config.json)


def check_models(models: Sequence[Model]) -> None:
    """Checks that all models have the same size of input.

    Raises:
      UserError: If not.
    """
    shapes = {model.preparation.image_shape for model in models}
    if len(shapes) != 1:
        raise UserError(f"--models: models of one size of input; got {sorted(shapes)}")


# Embeddings -----------------------------------------------------------------------------


def embed(model: Model, characters: Characters) -> jax.Array:
    """Returns the embeddings of all drawings.

    Raises:
      UserError: If an embedding is not finite, or the model does not compare by the
        cosine: its embeddings are not of length 1, or its distance is not the Euclidean
        one.
    """
    embeddings = model.embed(characters.images, batch_size=64)
    if not np.isfinite(embeddings).all():
        raise UserError("--models: a model gives embeddings that are not finite")
    some = embeddings[:16]
    wanted = euclidean_distance_matrix(normalize(some), normalize(some))
    found = model.distances(some, some)
    if not np.allclose(found, wanted, rtol=1e-2, atol=1e-2):
        raise UserError("--models: a model does not compare by the cosine of embeddings")
    return embeddings


def view_matrices(size: int) -> jax.Array:
    """Returns seven affine maps [7, 2, 3] about the centre of images of size x size pixels.

    They are the identity, rotations by 6 and -6 degrees, scalings by 1.08 and 1 / 1.08, and
    a shear by .1 along both axes with its inverse. None shifts, since the models centre
    drawings.
    """
    centre = (size - 1) / 2
    angle = np.deg2rad(6.0)
    identity = np.eye(2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, 0.1], [0.1, 1.0]])
    scaled = [identity * 1.08, identity / 1.08]
    maps = [identity, turn, turn.T, *scaled, shear, np.linalg.inv(shear)]
    rows = [np.c_[m, centre - m @ np.full(2, centre)] for m in maps]
    return jnp.asarray(np.stack(rows), jnp.float32)


def with_views(model: Model) -> Model:
    """Returns a model whose embedding is the mean over seven views, with length 1.

    Prepared images are distorted. What comes from outside them is paper: 0 if the model's
    preparation inverts, else 1.
    """
    matrices = view_matrices(model.preparation.size[0])
    paper = 0.0 if model.preparation.invert else 1.0
    transform = jax.vmap(partial(augment.affine_transform, fill=paper), in_axes=(0, None))

    def embed_fn(params: Any, images: jax.Array) -> jax.Array:
        def one_view(matrix: jax.Array) -> jax.Array:
            return model.embed_fn(params, transform(images, matrix))

        return normalize(jnp.mean(jax.lax.map(one_view, matrices), axis=0))

    return dataclasses.replace(model, embed_fn=embed_fn)


def ensemble(embeddings: Sequence[jax.Array]) -> jax.Array:
    """Returns embeddings whose cosine is the mean of the models' cosines.

    They are the models' unit embeddings side by side, divided by the root of their number.
    """
    return normalize(jnp.concatenate([normalize(part) for part in embeddings], axis=1))


# Accuracy -------------------------------------------------------------------------------


def inductive(
    config: Config, characters: Characters, embeddings: jax.Array
) -> dict[str, float]:
    """Returns the accuracy when each query is classified alone."""
    found = episodes.episode_accuracy(
        jax.random.key(config.seed),
        embeddings,
        characters.class_index(),
        num_episodes=config.num_episodes,
        num_ways=config.num_ways,
        num_query_classes=1,
        max_groups=1,
    )
    return few_shot.as_metrics("accuracy", found)


def transductive(
    config: Config, characters: Characters, embeddings: jax.Array
) -> dict[str, float]:
    """Returns the accuracy when all queries of a task are answered together."""
    index = characters.class_index()
    keys = jax.random.split(jax.random.key(config.seed), config.num_episodes)

    @jax.jit
    def distances(embeddings: jax.Array) -> jax.Array:
        def one_task(key: jax.Array) -> jax.Array:
            task = samplers.sample_episode(key, index, config.num_ways, 1, 1, max_groups=1)
            query, support = embeddings[task.query[:, 0]], embeddings[task.support[:, 0]]
            return euclidean_distance_matrix(query, support)

        return jax.lax.map(one_task, keys, batch_size=100)

    matrices = np.asarray(distances(embeddings))
    rng = np.random.default_rng(config.seed)
    shares = np.array(
        [assignment_accuracy(m, rng.permutation(config.num_ways)) for m in matrices]
    )
    margin = 1.96 * shares.std(ddof=1) / len(shares) ** 0.5
    return {"accuracy": float(shares.mean()), "accuracy_interval": float(margin)}


def assignment_accuracy(distances: np.ndarray, order: np.ndarray) -> float:
    """Returns the share of correct answers in the assignment of the smallest sum.

    Row i is a query whose correct answer is column i. Each column answers one row.

    Args:
      distances: [n, n].
      order: A random order of the columns. Of assignments with equal sums the first one in
        this order is taken: without it, equal distances would all be answered correctly.

    >>> order = np.array([1, 0])
    >>> assignment_accuracy(np.array([[1.0, 2.0], [1.1, 3.0]]), order)  # alone, both take 0
    0.0
    >>> assignment_accuracy(np.array([[1.0, 3.0], [1.1, 2.0]]), order)
    1.0
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(distances[:, order])
    return float(np.mean(rows == order[columns]))


if __name__ == "__main__":
    command_line(main, Config)
