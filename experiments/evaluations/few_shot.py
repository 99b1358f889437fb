"""Few-shot tasks and pairs of classes that a model was not trained on.

Functions that take no key draw by `datasets.evaluation_key`, in the same way for every seed
of a training run.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets import evaluation_key
from experiments.datasets.omniglot import Characters
from experiments.engine import pair_batches
from experiments.engine.pair_batches import random_pairs
from experiments.evaluations.pair_metrics import (
    PairDistances,
    calibrate,
    decision_rates,
    equal_error_rate,
    pair_distances,
    roc_auc,
)
from siamese_jax import episodes, samplers, verification
from siamese_jax.episodes import EpisodeAccuracy
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages
from siamese_jax.model import Model
from siamese_jax.samplers import Pairs

FEW_SHOT = ((20, 1), (5, 1), (20, 5), (5, 5))  # ways and shots
_SHORT_NAMES = {
    "within_alphabet_20_way_1_shot": "within_alphabet",
    "random_20_way_1_shot": "random_20_way",
}
_MAX_PAIRED = 1_000  # up to this number of images, every two of them are a pair
_MOST_WAYS = 20
_MOST_RESAMPLED = 20_000  # pairs, in each bootstrap sample


# Tasks ----------------------------------------------------------------------------------


def task_accuracy(
    key: jax.Array,
    model: Model,
    embeddings: jax.Array,
    index: samplers.ClassIndex,
    *,
    num_episodes: int,
    within_alphabet: bool,
    num_ways: int = 20,
    num_shots: int = 1,
) -> EpisodeAccuracy:
    """Returns the accuracy over random few-shot tasks with a single query each.

    Args:
      key: A JAX key.
      model: Its distance compares the embeddings.
      embeddings: [n, dim], of all examples of the index.
      index: The index of the classes; its groups are alphabets.
      num_episodes: Number of tasks.
      within_alphabet: Whether all classes of a task are of one alphabet.
      num_ways: Number of classes in a task.
      num_shots: Number of support examples of each class.

    Raises:
      UserError: If there are too few classes or examples.
    """
    try:
        return episodes.episode_accuracy(
            key,
            embeddings,
            index,
            num_episodes=num_episodes,
            num_ways=num_ways,
            num_shots=num_shots,
            num_query_classes=1,
            max_groups=1 if within_alphabet else None,
            matrix_fn=model.distances,
        )
    except ValueError as error:
        raise UserError(f"{num_ways}-way tasks: {error}") from error


def as_metrics(name: str, accuracy: EpisodeAccuracy) -> dict[str, float]:
    """Returns the mean as `name`, half the width of its interval as `{name}_interval`."""
    half = float(accuracy.high - accuracy.mean)
    return {name: float(accuracy.mean), f"{name}_interval": half}


def few_shot_metrics(
    model: Model, characters: Characters, num_episodes: int, *, suffix: str = ""
) -> dict[str, float]:
    """Returns accuracies of 20- and 5-way, 1- and 5-shot tasks, with their intervals.

    Tasks are drawn within an alphabet, where there are several, and over all characters.
    `within_alphabet_accuracy` and `random_20_way_accuracy` are 20-way 1-shot; the other
    names say what they are. Each name ends in `suffix`.

    Raises:
      UserError: If there are too few characters or drawings.
    """
    embeddings = model.embed(characters.images, batch_size=64)
    index = characters.class_index()
    has_alphabets = len(index.group_sizes) > 1
    metrics: dict[str, float] = {}
    for place in ("within_alphabet", "random") if has_alphabets else ("random",):
        for num_ways, num_shots in FEW_SHOT:
            name = f"{place}_{num_ways}_way_{num_shots}_shot"
            accuracy = task_accuracy(
                evaluation_key(f"{name} tasks"),
                model,
                embeddings,
                index,
                num_episodes=num_episodes,
                within_alphabet=place == "within_alphabet",
                num_ways=num_ways,
                num_shots=num_shots,
            )
            name = f"{_SHORT_NAMES.get(name, name)}_accuracy{suffix}"
            metrics |= as_metrics(name, accuracy)
    return metrics


# Pairs of drawings ----------------------------------------------------------------------


def draw_pairs(characters: Characters) -> Pairs:
    """Returns 4,000 pairs of drawings, half same, half different within an alphabet."""
    key, index = evaluation_key("pairs of drawings"), characters.class_index()
    return pair_batches.draw_pairs(key, index, num_pairs=4_000, same_group=True)


def drawing_distances(model: Model, characters: Characters, pairs: Pairs) -> PairDistances:
    """Returns the distance of each pair of drawings."""
    return pair_distances(model, model.embed(characters.images, batch_size=64), pairs)


def calibrate_drawings(
    model: Model, characters: Characters, pairs: Pairs, description: str
) -> tuple[Model, PairDistances]:
    """Returns the model, calibrated on pairs of drawings, and the distances of these."""
    embeddings = model.embed(characters.images, batch_size=64)
    distances = pair_distances(model, embeddings, pairs)
    labels = np.asarray(characters.labels)
    return calibrate(model, distances, description, embeddings, labels), distances


# Classes of any images ------------------------------------------------------------------


def unseen_class_metrics(
    model: Model, dataset: LabelledImages, threshold: float, *, suffix: str = ""
) -> tuple[dict[str, float], PairDistances]:
    """Returns verification and identification metrics of new classes, and their pairs.

    Verification is over `all_pairs`; same and different pairs weigh equally in
    `pair_accuracy`. `one_shot_accuracy` is that of identification: a gallery has one image
    of each class, or of 20 random ones where there are more, and other images of these
    classes are the queries.

    Args:
      model: The model to evaluate.
      dataset: Images of at least two classes, with two images or more of each.
      threshold: Pairs up to this distance are called the same.
      suffix: The end of all names, such as "_pixels" for the baseline of pixels.
    """
    embeddings = model.embed(dataset.images)
    pairs = pair_distances(model, embeddings, all_pairs(dataset.labels))
    same = pairs.same
    weights = jnp.where(same, 1 / jnp.sum(same), 1 / jnp.sum(~same))
    rates = decision_rates(*pairs, threshold, weights=weights)
    index = samplers.class_index(dataset.labels)
    identified = episodes.episode_accuracy(
        evaluation_key("identification"),
        embeddings,
        index,
        num_episodes=1_000,
        num_ways=min(_MOST_WAYS, index.num_classes),
        num_queries=min(9, index.smallest_class[1] - 1),
        matrix_fn=model.distances,
    )
    figures = {
        "pair_accuracy": rates.accuracy,
        "pair_eer": equal_error_rate(*pairs),
        "roc_auc": roc_auc(*pairs),
        "one_shot_accuracy": identified.mean,
    }
    return {f"{name}{suffix}": float(figure) for name, figure in figures.items()}, pairs


def sizes(labels: np.ndarray, pairs: PairDistances) -> dict[str, int]:
    """Returns how large the test of `unseen_class_metrics` is.

    Args:
      labels: [n], class of each example.
      pairs: The pairs that it returns.
    """
    num_classes = len(np.unique(labels))
    return {
        "num_test_classes": num_classes,
        "num_test_images": len(labels),
        "num_test_pairs": len(pairs.same),
        "num_ways": min(_MOST_WAYS, num_classes),
    }


def intervals(pairs: PairDistances, labels: np.ndarray, threshold: float) -> dict:
    """Returns the ends of 95 % bootstrap intervals of figures of pairs, over classes.

    Args:
      pairs: The pairs of `all_pairs` with their distances.
      labels: [n], class of each example.
      threshold: Pairs up to this distance are called the same.

    Returns:
      The ends of `pair_accuracy`, `pair_eer` and `roc_auc`, with "_low" and "_high" at the
      end of their names.
    """
    index = samplers.class_index(labels)
    identities = index.class_of[all_pairs(labels).examples]
    some = slice(None, None, -(-len(pairs.same) // _MOST_RESAMPLED))

    def figures(distances: jax.Array, same: jax.Array, weights: jax.Array) -> jax.Array:
        correct = weights * ((distances <= threshold) == same)
        rates = [
            jnp.sum(correct * kind) / jnp.sum(weights * kind) for kind in (same, ~same)
        ]
        eer = verification.equal_error_rate(distances, same, weights=weights)
        area = verification.roc_auc(distances, same, weights=weights)
        return jnp.stack([sum(rates) / 2, eer, area])

    found = verification.bootstrap_interval(
        evaluation_key("bootstrap over classes"),
        figures,
        pairs.distances[some],
        pairs.same[some],
        identities[:, some],
        num_identities=index.num_classes,
        num_samples=200,
    )
    names = ("pair_accuracy", "pair_eer", "roc_auc")
    return {
        f"{name}_{end}": float(figure)
        for end, figures_of_end in found._asdict().items()
        for name, figure in zip(names, figures_of_end, strict=True)
    }


def all_pairs(labels: np.ndarray) -> Pairs:
    """Returns every two examples once; of more than 1,000 examples 100,000 random pairs.

    The random pairs are half same, half different.
    """
    if len(labels) > _MAX_PAIRED:
        return random_pairs(evaluation_key("all pairs"), labels, 100_000)
    first, second = np.triu_indices(len(labels), 1)
    examples = jnp.asarray(np.stack([first, second]), jnp.int32)
    return Pairs(examples, jnp.asarray(labels[first] == labels[second]))


def calibrate_model(model: Model, dataset: LabelledImages, description: str) -> Model:
    """Returns the model, calibrated on 4,000 random pairs of images.

    See `pair_metrics.calibrate` for the rates of false matches, and for a model whose
    distances mean nothing.

    Args:
      model: The model to calibrate.
      dataset: Images of classes that are used neither for training nor for testing.
      description: What pairs these are, such as "pairs of the validation classes".

    Raises:
      UserError: If fewer than two classes have two images.
    """
    pairs = random_pairs(evaluation_key("calibration pairs"), dataset.labels, 4_000)
    embeddings = model.embed(dataset.images)
    distances = pair_distances(model, embeddings, pairs)
    return calibrate(model, distances, description, embeddings, dataset.labels)
