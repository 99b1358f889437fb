"""One-shot recognition of letters of alphabets never seen, with nothing to download.

Source:  this project's own; the training recipe is Khosla et al. 2020 on P x K batches.
Run:     python -m experiments.glyphs --workdir runs/glyphs        (`make demo`)
Expect:  one_shot_accuracy .794 +- .004 over three seeds (nearest pixels: .157), in about a
         minute of training and half a minute of judging, on two CPU cores
Quick:   python -m experiments.glyphs --workdir runs/quick --num-steps 40   (about a minute)

Letters are drawn from the fonts that matplotlib brings; a class is a letter, an example is
a face of the font, distorted anew each time it is seen. The net learns from Latin, Greek
and Cyrillic letters which drawings are of one letter. It is tested on Armenian and Georgian
ones: 20 letters of one alphabet, all in one face, and a letter in another face to find
among them. The letters are new to the net, the faces are not.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report, run
from experiments.letters import TEST, TRAINING, Letters, draw_letters
from siamese_jax import augment, distances, episodes, losses, relations, samplers, training
from siamese_jax import verification as verify
from siamese_jax.batching import map_batches
from siamese_jax.encoders import ConvNet


@dataclasses.dataclass(frozen=True)
class Config(run.RunConfig):
    """The demonstration: small enough for two CPU cores."""

    experiment: ClassVar[str] = "glyphs"

    num_steps: int = 800
    steps_per_call: int = 10
    checkpoint_every: int = 100

    font_dir: pathlib.Path | None = None  # a folder of your own fonts, added to the twelve
    num_letters: int = 24  # P: letters of one alphabet in a batch
    num_faces: int = 4  # K: drawings of each
    widths: tuple[int, ...] = (24, 48, 96)  # of the encoder's blocks
    dim: int = 64  # of the embedding
    learning_rate: float = 3e-3  # peak of a one-cycle schedule
    weight_decay: float = 1e-4
    temperature: float = 0.1  # at first; it is learnt

    num_episodes: int = 10_000  # test tasks for each alphabet
    num_ways: int = 20
    num_pairs: int = 10_000  # test pairs


DISTORTION = augment.Affine(
    max_rotation=15.0, max_shear=0.2, scale_range=(0.8, 1.2), max_shift=3.0
)
NOISE = 0.1  # standard deviation, of ink = 1
TEST_SEED = 20  # the test drawings, tasks and pairs are the same for every seed


class Data(NamedTuple):
    """What stays on the device: the training drawings, and where the letters are."""

    images: jax.Array
    classes: samplers.ClassIndex


def test_key(purpose: str) -> jax.Array:
    """A key of its own for each thing that is drawn for the test."""
    key = jax.random.key(TEST_SEED)
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))


# Training -------------------------------------------------------------------------------


def distort(key: jax.Array, images: jax.Array) -> jax.Array:
    """uint8 drawings to distorted, noisy ones in about [0, 1]."""
    affine_key, noise_key = jax.random.split(key)
    images = augment.random_affine(affine_key, images / 255, DISTORTION)
    return augment.random_noise(noise_key, images, scale=NOISE)


def sample(config: Config, key: jax.Array, step: jax.Array, data: Data) -> Any:
    """P letters of one alphabet, K faces of each, all distorted."""
    batch_key, distortion_key = jax.random.split(key)
    batch = samplers.sample_batch(
        batch_key, data.classes, config.num_letters, config.num_faces, max_groups=1
    )
    return distort(distortion_key, data.images[batch.examples]), batch.labels


def loss_fn(encoder: ConvNet, params: Any, statistics: Any, batch: Any, key: Any) -> Any:
    """Each drawing finds the other drawings of its letter among all of the batch."""
    images, labels = batch
    variables = {"params": params["encoder"], "batch_stats": statistics}
    embeddings, updates = encoder.apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    similarities = distances.cosine_similarity_matrix(embeddings, embeddings)
    same, where = relations.within(relations.Items(labels))
    temperature = jnp.exp(params["log_temperature"])
    loss = losses.supervised_contrastive_loss(
        similarities, same, where=where, temperature=temperature
    )
    return loss, (updates["batch_stats"], {"temperature": temperature})


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW on a one-cycle cosine schedule."""
    schedule = optax.cosine_onecycle_schedule(config.num_steps, config.learning_rate, 0.1)
    return optax.adamw(schedule, weight_decay=config.weight_decay)


def initial_state(config: Config, encoder: ConvNet) -> training.TrainState:
    """Random parameters from the seed."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)  # no step has it
    variables = jax.jit(encoder.init)(key, jnp.zeros((1, 32, 32, 1)))
    params = {
        "encoder": variables["params"],
        "log_temperature": jnp.log(config.temperature),
    }
    optimizer = make_optimizer(config)
    return training.init_state(params, optimizer, statistics=variables["batch_stats"])


def train_steps(
    config: Config,
    encoder: ConvNet,
    key: jax.Array,
    state: training.TrainState,
    data: Data,
    num_steps: int,
) -> tuple[training.TrainState, training.Metrics]:
    """Many steps as one program."""
    return training.train_steps(
        key,
        state,
        data,
        num_steps=num_steps,
        batch_fn=partial(sample, config),
        loss_fn=partial(loss_fn, encoder),
        optimizer=make_optimizer(config),
    )


# Evaluation -----------------------------------------------------------------------------


class Drawings(NamedTuple):
    """Distorted drawings with two ways to compare them: embeddings and pixels."""

    images: jax.Array
    embeddings: jax.Array
    pixels: jax.Array
    classes: samplers.ClassIndex


def embed(encoder: ConvNet, state: training.TrainState, images: np.ndarray) -> Any:
    """Each drawing distorted once, and its embedding on the unit sphere."""
    variables = {"params": state.params["encoder"], "batch_stats": state.statistics}

    @jax.jit
    def distort_and_embed(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        distorted = distort(test_key("distortion"), images)
        apply_fn = partial(encoder.apply, variables)
        embeddings = map_batches(apply_fn, distorted, batch_size=128)
        return distorted, distances.normalize(embeddings)

    return distort_and_embed(jnp.asarray(images))


def select(embedded: Any, letters: Letters, alphabets: Sequence[str]) -> Drawings:
    """The drawings of some alphabets, with their letters as classes."""
    rows = np.isin(letters.alphabets, alphabets)
    images, embeddings = (array[rows] for array in embedded)
    classes = samplers.class_index(letters.letters[rows], groups=letters.alphabets[rows])
    return Drawings(images, embeddings, images.reshape(len(images), -1), classes)


def one_shot(config: Config, drawings: dict[str, Drawings]) -> dict[str, float]:
    """Accuracy of each unseen alphabet and their mean, beside nearest pixels.

    `aligned`: the examples of each letter are in the order of the faces, so the candidates
    of a task are all in one face, and the query is in another.
    """
    metrics: dict[str, float] = {}
    means: dict[str, list[float]] = {"": [], "_pixels": []}
    for alphabet, of in drawings.items():
        for suffix, vectors in (("", of.embeddings), ("_pixels", of.pixels)):
            result = episodes.episode_accuracy(
                test_key(f"tasks of {alphabet}"),
                vectors,
                of.classes,
                num_episodes=config.num_episodes,
                num_ways=config.num_ways,
                aligned=True,
            )
            name = f"one_shot_accuracy_{alphabet}{suffix}"
            metrics[name] = float(result.mean)
            if not suffix:
                metrics[f"{name}_interval"] = float(result.high - result.mean)
            means[suffix].append(float(result.mean))
    mean = {f"one_shot_accuracy{s}": float(np.mean(values)) for s, values in means.items()}
    return mean | metrics


class JudgedPairs(NamedTuple):
    """Pairs of drawings with their distances."""

    examples: np.ndarray
    same: jax.Array
    distances: jax.Array
    pixel_distances: jax.Array


def judge_pairs(drawings: Drawings, num_pairs: int, purpose: str) -> JudgedPairs:
    """Balanced pairs within an alphabet: two faces of a letter, or two letters."""
    pairs = samplers.sample_pairs(
        test_key(purpose), drawings.classes, num_pairs, within_groups=True
    )
    return JudgedPairs(
        np.asarray(pairs.examples),
        pairs.same,
        distances.euclidean_distance(*drawings.embeddings[pairs.examples]),
        distances.euclidean_distance(*drawings.pixels[pairs.examples]),
    )


def verification(
    test: Drawings, pairs: JudgedPairs, training_pairs: JudgedPairs
) -> dict[str, float]:
    """Same or different: the threshold is chosen on training letters."""
    chosen = verify.transferred_threshold(
        (training_pairs.distances, training_pairs.same), (pairs.distances, pairs.same)
    )
    pixels = verify.transferred_threshold(
        (training_pairs.pixel_distances, training_pairs.same),
        (pairs.pixel_distances, pairs.same),
    )
    interval = verify.bootstrap_interval(
        test_key("bootstrap"),
        verify.roc_area,
        pairs.distances,
        pairs.same,
        test.classes.class_of[pairs.examples],
        num_identities=test.classes.num_classes,
        num_samples=200,
    )
    return {
        "pair_accuracy": float(chosen.accuracy_where_applied),
        "pair_accuracy_training_letters": float(chosen.accuracy_where_chosen),
        "pair_accuracy_pixels": float(pixels.accuracy_where_applied),
        "pair_threshold": float(chosen.threshold),
        "pair_eer": float(verify.equal_error_rate(pairs.distances, pairs.same)),
        "pair_eer_pixels": float(
            verify.equal_error_rate(pairs.pixel_distances, pairs.same)
        ),
        "roc_area": float(verify.roc_area(pairs.distances, pairs.same)),
        "roc_area_low": float(interval.low),
        "roc_area_high": float(interval.high),
        "roc_area_pixels": float(verify.roc_area(pairs.pixel_distances, pairs.same)),
    }


# The report -----------------------------------------------------------------------------


def show_answers(config: Config, drawings: Drawings, num_rows: int) -> list[report.Answer]:
    """Queries of random tasks with their nearest candidates, half answered wrongly."""
    tasks = _random_tasks(config, drawings, num_tasks=100)
    images = np.asarray(jnp.clip(drawings.images, 0, 1))
    answers = []
    for support, query, row in zip(*map(np.asarray, tasks), strict=True):
        order = np.argsort(row)[:8]
        # the query is of the first class of its task
        answer = report.Answer(
            images[query], images[support[order]], row[order], order == 0
        )
        answers.append(answer)
    right = [answer for answer in answers if answer.right[0]]
    wrong = [answer for answer in answers if not answer.right[0]]
    return [*right[: num_rows // 2], *wrong[: num_rows // 2]]


@partial(jax.jit, static_argnames=("config", "num_tasks"))
def _random_tasks(
    config: Config, drawings: Drawings, *, num_tasks: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Support [tasks, ways], one query [tasks], and its distances [tasks, ways]."""

    def one_task(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        episode = samplers.sample_episode(
            key, drawings.classes, config.num_ways, 1, 1, aligned=True
        )
        support, query = episode.support[:, 0], episode.query[0]
        matrix = distances.euclidean_distance_matrix(
            drawings.embeddings[query], drawings.embeddings[support]
        )
        return support, query[0], matrix[0]

    return jax.vmap(one_task)(jax.random.split(test_key("shown tasks"), num_tasks))


def confusions(letters: Letters, drawings: Drawings, num: int) -> tuple[list, list[float]]:
    """Letters most often taken for another: nearest drawing in another face."""
    matrix = np.array(
        distances.euclidean_distance_matrix(drawings.embeddings, drawings.embeddings)
    )
    faces, classes = letters.faces, np.asarray(drawings.classes.class_of)
    matrix[faces[:, None] == faces[None, :]] = np.inf
    answers = classes[matrix.argmin(axis=1)]
    counts = np.zeros((drawings.classes.num_classes,) * 2)
    np.add.at(counts, (classes, answers), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    np.fill_diagonal(shares, 0)
    worst = np.argsort(-shares, axis=None)[:num]
    first = np.array([np.flatnonzero(classes == c)[0] for c in range(len(counts))])
    drawn = letters.images[first]
    rows, columns = np.unravel_index(worst, shares.shape)
    return list(zip(drawn[rows], drawn[columns], strict=True)), shares.ravel()[
        worst
    ].tolist()


def sections(
    config: Config,
    alphabets: dict[str, Drawings],
    unseen: Letters,
    test: Drawings,
    pairs: JudgedPairs,
    threshold: float,
) -> list[report.Section]:
    """The pictures of the report."""
    shown = slice(0, 14)
    examples = pairs.examples[:, shown]
    curves = {
        "embeddings": verify.roc_curve(pairs.distances, pairs.same),
        "pixels": verify.roc_curve(pairs.pixel_distances, pairs.same),
    }
    answers = [
        report.Section(
            f"One-shot answers: {alphabet.capitalize()}",
            "A letter in one face, and the nearest of the candidates in another face with "
            "their distances, nearest first. Green: the right letter. Red: a wrong answer.",
            report.answer_grid(show_answers(config, drawings, 8)),
        )
        for alphabet, drawings in alphabets.items()
    ]
    first_face = np.flatnonzero(np.isin(unseen.faces, (0, 3, 7)))
    return [
        *answers,
        report.Section(
            "What is taken for what",
            "Above a letter, below what its drawings are most often nearest to in another "
            "face, and how often.",
            report.confusion_pairs(*confusions(unseen, test, 10)),
        ),
        report.Section(
            "Same or different?",
            "Pairs of unseen letters with their distances; green where the threshold is "
            "right.",
            report.pair_grid(
                np.asarray(jnp.clip(test.images, 0, 1))[examples],
                np.asarray(pairs.distances)[shown],
                np.asarray(pairs.same)[shown],
                threshold,
            ),
        ),
        report.Section(
            "Distances of unseen pairs",
            "The threshold was chosen on training letters.",
            report.distance_histogram(
                np.asarray(pairs.distances), np.asarray(pairs.same), threshold
            ),
        ),
        report.Section(
            "ROC", "The falling line marks equal error rates.", report.roc(curves)
        ),
        report.Section(
            "The embedding space",
            "Unseen letters in three faces, by t-SNE: the faces of a letter should meet.",
            report.embedding_map(
                np.asarray(test.embeddings)[first_face], unseen.images[first_face]
            ),
        ),
        report.Section(
            "Training", "", report.curves(config.directory, ("loss", "temperature"))
        ),
    ]


def check_counts(config: Config, letters: Letters) -> None:
    """Refuses what the letters cannot give, before training."""
    num_faces = len(np.unique(letters.faces))
    if config.num_faces > num_faces:
        raise run.UserError(f"num_faces: there are {num_faces}; got {config.num_faces}")
    for name, needed, alphabets in (
        ("num_letters", config.num_letters, TRAINING),
        ("num_ways", config.num_ways, TEST),
    ):
        for alphabet in alphabets:
            found = letters.only([alphabet]).num_letters
            if needed > found:
                raise run.UserError(f"{name}: {alphabet} has {found} letters; got {needed}")
    if config.num_episodes < 2:
        raise run.UserError("num_episodes must be at least 2, for an interval; got 1")


def main(config: Config) -> None:
    """Draws, trains, judges, reports."""
    if not run.start(config):
        return
    letters = draw_letters(config.font_dir)
    seen = letters.only(TRAINING)
    for alphabet in (*TRAINING, *TEST):
        print(f"{alphabet:>9}: {letters.only([alphabet]).num_letters} letters")
    check_counts(config, letters)
    index = samplers.class_index(seen.letters, groups=seen.alphabets)
    data = Data(jnp.asarray(seen.images), index)
    encoder = ConvNet(widths=config.widths, dim=config.dim)
    trained = run.train(
        config,
        initial_state(config, encoder),
        data,
        partial(train_steps, config, encoder),
        images_per_step=config.num_letters * config.num_faces,
    )
    print("judging ...")
    embedded = embed(encoder, trained.state, letters.images)
    alphabets = {name: select(embedded, letters, [name]) for name in TEST}
    test = select(embedded, letters, TEST)
    pairs = judge_pairs(test, config.num_pairs, "test pairs")
    training_pairs = judge_pairs(
        select(embedded, letters, TRAINING), config.num_pairs, "training pairs"
    )
    metrics = one_shot(config, alphabets) | verification(test, pairs, training_pairs)
    run.finish(config, metrics, trained)  # first: a report can be made again
    pictures = sections(
        config, alphabets, letters.only(TEST), test, pairs, metrics["pair_threshold"]
    )
    report.write_report(config, "Letters of alphabets never seen", metrics, pictures)


if __name__ == "__main__":
    run.command_line(main, Config)
