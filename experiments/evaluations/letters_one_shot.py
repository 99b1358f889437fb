"""One-shot tasks and pairs of drawn letters, beside the comparison of pixels.

Drawings are of `datasets.letters`, distorted. Tasks, pairs and threshold are drawn and
chosen in the same way for every seed of a training run. The threshold is chosen, and the
model calibrated, on signs, which it was not trained on either.
"""

import pathlib
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from experiments import report
from experiments.datasets import evaluation_key
from experiments.datasets.letters import TEST, Letters
from experiments.engine.pair_batches import draw_pairs
from experiments.evaluations.pair_metrics import (
    PairDistances,
    calibrate,
    decision_rates,
    equal_error_rate,
    evaluate_threshold,
    roc_auc,
    roc_curve,
    threshold_of,
)
from experiments.report import Section
from siamese_jax import distances, episodes, samplers, verification
from siamese_jax.model import Model, pixel_model
from siamese_jax.samplers import Pairs


class Drawings(NamedTuple):
    """Drawings of some alphabets with two representations of each.

    Attributes:
      letters: The drawings before they were distorted.
      images: uint8 [n, height, width, 1], the distorted drawings.
      classes: The index of their letters, with alphabets as groups.
      embeddings: [n, dim], of the model.
      pixels: [n, height * width].
    """

    letters: Letters
    images: np.ndarray
    classes: samplers.ClassIndex
    embeddings: jax.Array
    pixels: jax.Array


class ComparedPairs(NamedTuple):
    """Pairs of drawings with their distances by the model and by pixels."""

    pairs: Pairs
    model: PairDistances
    pixels: PairDistances


class Evaluated(NamedTuple):
    """The results of an evaluation.

    Attributes:
      metrics: Figures by name.
      model: The model with its calibration, which is that of pairs of signs.
      drawings: The drawings of both test alphabets.
      by_alphabet: The drawings of each test alphabet.
      test_pairs: The pairs of test letters.
      num_ways: Number of letters in a task.
    """

    metrics: dict[str, float]
    model: Model
    drawings: Drawings
    by_alphabet: dict[str, Drawings]
    test_pairs: ComparedPairs
    num_ways: int


def evaluate(
    model: Model,
    letters: Letters,
    images: np.ndarray,
    signs: Letters,
    sign_images: np.ndarray,
    *,
    num_episodes: int,
    num_ways: int,
    num_pairs: int,
) -> Evaluated:
    """Evaluates a model on one-shot tasks and on pairs of test letters.

    Args:
      model: The model.
      letters: Drawings of the test alphabets, and of others, which are ignored.
      images: The same drawings, distorted, with ink 255 on 0 as the encoder sees them.
      signs: Drawings of signs.
      sign_images: The same drawings, distorted.
      num_episodes: Number of tasks for each test alphabet.
      num_ways: Number of letters in a task.
      num_pairs: Number of test pairs, and of pairs of signs, on which the threshold is
        chosen.
    """

    def select(alphabets: Sequence[str]) -> Drawings:
        rows = np.isin(letters.alphabets, alphabets)
        return embed_drawings(model, letters.only(alphabets), images[rows])

    by_alphabet = {alphabet: select([alphabet]) for alphabet in TEST}
    test, others = select(TEST), embed_drawings(model, signs, sign_images)
    test_pairs = compare_pairs(model, test, num_pairs, "test pairs")
    sign_pairs = compare_pairs(model, others, num_pairs, "pairs of signs")
    model = calibrate(
        model,
        sign_pairs.model,
        "pairs of distorted signs",
        others.embeddings,
        signs.letters,
    )
    metrics = one_shot_metrics(by_alphabet, num_episodes=num_episodes, num_ways=num_ways)
    metrics |= pair_metrics(model, test, test_pairs, sign_pairs)
    return Evaluated(metrics, model, test, by_alphabet, test_pairs, num_ways)


def embed_drawings(model: Model, letters: Letters, images: np.ndarray) -> Drawings:
    """Embeds drawings, which are distorted ones of the given letters."""
    return Drawings(
        letters,
        images,
        samplers.class_index(letters.letters, groups=letters.alphabets),
        model.embed_prepared(images, batch_size=128),
        pixel_model(model.preparation).embed_prepared(images),
    )


def one_shot_metrics(
    by_alphabet: dict[str, Drawings], *, num_episodes: int, num_ways: int
) -> dict[str, float]:
    """Returns the accuracy in each test alphabet and the mean, also of pixels.

    All candidates of a task are in one face, and the query is in another.
    """
    metrics: dict[str, float] = {}
    accuracies: dict[str, list[float]] = {"": [], "_pixels": []}
    for alphabet, drawings in by_alphabet.items():
        for suffix, vectors in (("", drawings.embeddings), ("_pixels", drawings.pixels)):
            result = episodes.episode_accuracy(
                evaluation_key(f"tasks of {alphabet}"),
                vectors,
                drawings.classes,
                num_episodes=num_episodes,
                num_ways=num_ways,
                same_rank=True,
            )
            name = f"one_shot_accuracy_{alphabet}{suffix}"
            metrics[name] = float(result.mean)
            if not suffix:
                metrics[f"{name}_interval"] = float(result.high - result.mean)
            accuracies[suffix].append(metrics[name])
    mean = {f"one_shot_accuracy{s}": float(np.mean(a)) for s, a in accuracies.items()}
    return mean | metrics


def compare_pairs(
    model: Model, drawings: Drawings, num_pairs: int, purpose: str
) -> ComparedPairs:
    """Draws pairs within alphabets: two faces of one letter, or two letters."""
    pairs = draw_pairs(
        evaluation_key(purpose), drawings.classes, num_pairs=num_pairs, same_group=True
    )
    by_model = model.pair_distances(*drawings.embeddings[pairs.examples])
    by_pixels = distances.euclidean_distance(*drawings.pixels[pairs.examples])
    return ComparedPairs(
        pairs, PairDistances(by_model, pairs.same), PairDistances(by_pixels, pairs.same)
    )


def pair_metrics(
    model: Model, test: Drawings, test_pairs: ComparedPairs, sign_pairs: ComparedPairs
) -> dict[str, float]:
    """Returns verification metrics; thresholds are chosen on pairs of signs."""
    threshold = threshold_of(model)
    rates, sign_rates = (
        decision_rates(*pairs.model, threshold) for pairs in (test_pairs, sign_pairs)
    )
    pixels = evaluate_threshold(sign_pairs.pixels, test_pairs.pixels)
    interval = verification.bootstrap_interval(
        evaluation_key("bootstrap"),
        verification.roc_auc,
        *test_pairs.model,
        test.classes.class_of[test_pairs.pairs.examples],
        num_identities=test.classes.num_classes,
        num_samples=200,
    )
    figures = {
        "pair_accuracy": rates.accuracy,
        "pair_accuracy_signs": sign_rates.accuracy,
        "pair_accuracy_pixels": pixels.test_accuracy,
        "pair_eer": equal_error_rate(*test_pairs.model),
        "pair_eer_pixels": equal_error_rate(*test_pairs.pixels),
        "roc_auc": roc_auc(*test_pairs.model),
        "roc_auc_low": interval.low,
        "roc_auc_high": interval.high,
        "roc_auc_pixels": roc_auc(*test_pairs.pixels),
    }
    metrics = {name: float(figure) for name, figure in figures.items()}
    return metrics | {"pair_threshold": threshold}


# The report -----------------------------------------------------------------------------


def write_report(workdir: pathlib.Path, evaluated: Evaluated) -> None:
    """Writes the page of a run, whose pictures show the test letters."""
    sections = [
        *(
            answer_section(evaluated, alphabet, drawings)
            for alphabet, drawings in evaluated.by_alphabet.items()
        ),
        confusion_section(evaluated),
        *pair_sections(evaluated),
        map_section(evaluated),
        report.training_section(workdir, ("loss", "temperature")),
    ]
    title = "Letters of alphabets that were not trained on"
    report.write_report(workdir, title, evaluated.metrics, sections)


def answer_section(evaluated: Evaluated, alphabet: str, drawings: Drawings) -> Section:
    """Returns a section with one-shot tasks, half of them answered wrongly."""
    return Section(
        f"One-shot answers: {alphabet.capitalize()}",
        "A letter in one face, and the nearest of the candidates in another face with "
        "their distances, nearest first. Green: the correct letter. Red: a wrong answer.",
        report.answer_grid(choose_answers(evaluated, drawings, num_rows=8)),
    )


def choose_answers(
    evaluated: Evaluated, drawings: Drawings, *, num_rows: int
) -> list[report.Answer]:
    """Returns answers of random tasks, if possible half of them correct, half wrong."""
    tasks = _random_tasks(
        drawings.classes, drawings.embeddings, num_ways=evaluated.num_ways, num_tasks=100
    )
    images = drawings.images
    answers = []
    for support, query, row in zip(*map(np.asarray, tasks), strict=True):
        order = np.argsort(row)[:8]
        # the query is of the first class of its task
        answers.append(
            report.Answer(images[query], images[support[order]], row[order], order == 0)
        )
    correct = [answer for answer in answers if answer.correct[0]]
    wrong = [answer for answer in answers if not answer.correct[0]]
    return [*correct[: num_rows // 2], *wrong[: num_rows // 2]]


@partial(jax.jit, static_argnames=("num_ways", "num_tasks"))
def _random_tasks(
    classes: samplers.ClassIndex, embeddings: jax.Array, *, num_ways: int, num_tasks: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns support [tasks, ways], one query [tasks], and distances [tasks, ways]."""

    def one_task(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        episode = samplers.sample_episode(key, classes, num_ways, 1, 1, same_rank=True)
        support, query = episode.support[:, 0], episode.query[0]
        matrix = distances.euclidean_distance_matrix(embeddings[query], embeddings[support])
        return support, query[0], matrix[0]

    return jax.vmap(one_task)(jax.random.split(evaluation_key("shown tasks"), num_tasks))


def confusion_section(evaluated: Evaluated) -> Section:
    """Returns a section with the ten letters most often taken for another."""
    drawings = evaluated.drawings
    embeddings, faces = drawings.embeddings, drawings.letters.faces
    matrix = np.array(distances.euclidean_distance_matrix(embeddings, embeddings))
    matrix[faces[:, None] == faces[None, :]] = np.inf
    classes = np.asarray(drawings.classes.class_of)
    counts = np.zeros((drawings.classes.num_classes,) * 2)
    np.add.at(counts, (classes, classes[matrix.argmin(axis=1)]), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    np.fill_diagonal(shares, 0)
    rows, columns = np.unravel_index(np.argsort(-shares, axis=None)[:10], shares.shape)
    first = np.array([np.flatnonzero(classes == c)[0] for c in range(len(counts))])
    images = drawings.letters.images[first]
    return Section(
        "Confusions",
        "Above a letter, below the letter that its drawings are most often nearest to in "
        "another face, and how often.",
        report.confusion_pairs(
            list(zip(images[rows], images[columns], strict=True)),
            shares[rows, columns].tolist(),
        ),
    )


def pair_sections(evaluated: Evaluated) -> list[Section]:
    """Returns sections with pairs, their distances, and the ROC curves."""
    pairs, by_model, by_pixels = evaluated.test_pairs
    examples, histogram, _ = report.pair_sections(
        evaluated.drawings.images,
        pairs,
        np.asarray(by_model.distances),
        evaluated.metrics["pair_threshold"],
        name="pairs of test letters",
    )
    curves = {
        "embeddings": roc_curve(*by_model),
        "pixels": roc_curve(*by_pixels),
    }
    return [examples, histogram, report.roc_section(curves)]


def map_section(evaluated: Evaluated) -> Section:
    """Returns a section with the embedding space."""
    drawings = evaluated.drawings
    shown = np.flatnonzero(np.isin(drawings.letters.faces, (0, 3, 7)))
    return Section(
        "The embedding space",
        "Test letters in three faces, by t-SNE. The faces of a letter should be together.",
        report.embedding_map(
            np.asarray(drawings.embeddings)[shown], drawings.letters.images[shown]
        ),
    )
