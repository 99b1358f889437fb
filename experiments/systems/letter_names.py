"""Letters and their names: two towers with own weights, trained by the loss of SigLIP.

Source:  this project's own; the sigmoid loss of Zhai et al. 2023 (SigLIP), on drawings of
         letters and their Unicode names instead of photographs and captions.
Run:     python -m experiments letter_names --workdir runs/letter_names
Expect:  recall_at_1 from drawing to name and from name to drawing: new_faces .386 and .564
         of 972 letters (chance .001), new_letters .706 and .832 of 107 (chance .009),
         new_alphabets .014 and .009 of 107 (chance .009); one seed, 150 s of processor
         time for the training
Quick:   python -m experiments letter_names --num-steps 40 --workdir runs/quick_letter_names

Nothing is downloaded: letters are drawn from the fonts that come with matplotlib, and their
names, such as "GREEK SMALL LETTER ALPHA WITH TONOS", come with Python. One tower, a
convolutional network, embeds a drawing. The other one reads the name character by
character. A batch has one drawing of each of some letters, aligned with the names: a
drawing belongs to its own name and to no other. Both embeddings have length 1, and scale
and bias of their cosine are learnt. (The towers are of two kinds. Where two towers have the
same layers, `siamese.two_towers` applies both in one call, as in mnist_towers.)

Nine tenths of the Latin, Greek and Cyrillic letters are for training, in eight sans-serif
faces. There are three tests, each in both directions: the name that is nearest to a
drawing, and the drawing that is nearest to a name.

new_faces      the letters of the training, drawn in the four serif faces
new_letters    the other tenth of the letters, in all faces, among one another; parts of
               their names, such as "CAPITAL" or "WITH ACUTE", occur in the training
new_alphabets  Armenian and Georgian letters, among one another; nothing in the training
               says what "ARMENIAN SMALL LETTER AYB" looks like

`chance` of a test is the recall at 1 of random answers. The model of the run is the tower
of the drawings. RUN/names.txt and RUN/name_embeddings.npy have the names of the letters of
the training and their embeddings, so that other drawings of these can be named: the nearest
row is the name.
"""

import dataclasses
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from experiments.cli import command_line, write_whole
from experiments.datasets import evaluation_rng
from experiments.datasets.letters import TEST, TRAINING, Letters, draw_letters
from experiments.engine import loop, optimizers, supcon
from experiments.engine.config import RunConfig, setting
from experiments.engine.data import gather
from experiments.engine.health import EMBEDDED, embedded_pairs
from experiments.engine.precision import settled
from experiments.engine.system import System
from experiments.evaluations import few_shot
from experiments.systems.glyphs import DISTORTION, PREPARATION
from siamese_jax import (
    augment,
    distances,
    losses,
    reductions,
    relations,
    retrieval,
    samplers,
    sharding,
)
from siamese_jax.encoders import ConvNet
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages
from siamese_jax.model import Model
from siamese_jax.relations import Items
from siamese_jax.siamese import from_flax
from siamese_jax.training import TrainState, with_compute_dtype


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """The settings of both towers and of their training.

    Attributes:
      num_letters: Number of letters in a batch.
      widths: Number of features of each block of the tower of the drawings.
      name_features: Number of features of each layer of the tower of the names.
      dim: Number of dimensions of the embeddings.
      learning_rate: Peak of the one-cycle schedule.
      weight_decay: Weight decay of AdamW.
    """

    experiment: ClassVar[str] = "letter_names"

    num_steps: int = setting(1_000, at_least=1)
    steps_per_call: int = setting(20, at_least=1)
    checkpoint_every: int = setting(200, at_least=1)

    num_letters: int = setting(96, at_least=2)
    widths: tuple[int, ...] = setting((24, 48, 96), at_least=1)
    name_features: int = setting(64, at_least=1)
    dim: int = setting(64, at_least=1)
    learning_rate: float = setting(3e-3, above=0)
    weight_decay: float = setting(1e-4, at_least=0)

    @property
    def can_be_lengthened(self) -> bool:
        """No: the learning rate falls to zero at the last step."""
        return False


TRAINING_FACES = range(8)  # sans-serif; the other four are serif
NEW_SHARE = 10  # one letter of so many is not for training
CHARACTERS = " -0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of Unicode names
LENGTH = 88  # characters, the most in a name of Unicode
SCALE, BIAS = 10.0, -10.0  # at the start, as in the paper
CUTOFFS = (1, 5)


# Names ----------------------------------------------------------------------------------


def encode_names(names: list[str]) -> np.ndarray:
    """Numbers of characters, int8 [n, 88], with 0 after the end.

    >>> encode_names(["A B"])[0, :5].tolist()
    [13, 1, 14, 0, 0]
    """
    numbers = np.zeros((len(names), LENGTH), np.int8)
    for row, name in zip(numbers, names, strict=True):
        row[: len(name)] = [CHARACTERS.index(character) + 1 for character in name]
    return numbers


class NameTower(nn.Module):
    """Reads a name in windows of five characters, twice, and takes the largest features.

    Attributes:
      features: Number of features of each layer.
      dim: Dimension of the embedding, which is not normalised.
    """

    features: int
    dim: int

    @nn.compact
    def __call__(self, names: jax.Array, *, train: bool = False) -> jax.Array:
        """Embeds names, integers [n, length]."""
        is_character = (names > 0)[:, :, None]
        x = nn.Embed(len(CHARACTERS) + 1, self.features)(names.astype(jnp.int32))
        for _ in range(2):
            x = jnp.where(is_character, x, 0)
            windows = [jnp.roll(x, shift, axis=1) for shift in range(-2, 3)]
            x = nn.relu(nn.Dense(self.features)(jnp.concatenate(windows, axis=2)))
        return nn.Dense(self.dim)(jnp.max(jnp.where(is_character, x, 0), axis=1))


# The system -----------------------------------------------------------------------------


class DrawingTower(nn.Module):
    """A small network whose embeddings have mean 0 and variance 1 over a batch.

    Without this, the loss soon finds its way to a solution in which all drawings have one
    embedding and all names the opposite one, and takes long to leave it.

    Attributes:
      widths: Number of features of each block of the network.
      dim: Dimension of the embedding, which is not normalised to length 1.
      axis_name: Name of the axis of the devices, over which statistics are taken together.
    """

    widths: tuple[int, ...]
    dim: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Embeds drawings."""
        x = ConvNet(self.widths, self.dim, axis_name=self.axis_name)(images, train=train)
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            use_scale=False,
            use_bias=False,
            axis_name=self.axis_name if train else None,
        )(x)


class LetterData(NamedTuple):
    """The training letters on the device.

    Attributes:
      images: uint8 [num_images, 32, 32, 1].
      classes: The index of the letters.
      names: int8 [num_letters, length], the name of each letter, in the order of the index.
    """

    images: jax.Array
    classes: samplers.ClassIndex
    names: jax.Array


class NamedBatch(NamedTuple):
    """Aligned pairs: row i of the images and of the names is one letter.

    Attributes:
      images: [n, 32, 32, 1], distorted drawings.
      names: int8 [n, length].
      labels: [n], the number of the letter.
    """

    images: jax.Array
    names: jax.Array
    labels: jax.Array


def build(config: Config) -> System:
    """The system as pure functions."""
    image_init, encode = from_flax(
        DrawingTower(config.widths, config.dim, config.axis_name)
    )
    name_init, read = from_flax(NameTower(config.name_features, config.dim))
    see = with_compute_dtype(encode, config.compute_dtype)
    read = with_compute_dtype(read, config.compute_dtype)
    pair_terms = make_pair_terms(config.axis_name)
    mean: Callable[[reductions.Terms], Any] = reductions.mean
    if config.axis_name is not None:
        mean = sharding.over_devices(mean, axis_name=config.axis_name)

    def init(key: jax.Array) -> tuple[Any, Any]:
        image_key, name_key = jax.random.split(key)
        shape = (1, *PREPARATION.image_shape)
        encoder, statistics = image_init(image_key, jnp.zeros(shape))
        names, _ = name_init(name_key, jnp.zeros((1, LENGTH), jnp.int8))
        beside = {"log_scale": jnp.log(SCALE), "bias": jnp.array(BIAS)}
        return {"encoder": encoder, "names": names, **beside}, statistics

    distort = partial(augment.random_affine, distortion=DISTORTION)

    def sample(key: jax.Array, step: jax.Array, data: LetterData) -> NamedBatch:
        batch_key, distortion_key = jax.random.split(key)
        batch = samplers.sample_batch(batch_key, data.classes, config.num_letters, 1)
        keys = jax.random.split(distortion_key, config.num_letters)
        images = jax.vmap(distort)(keys, gather(data.images, batch.examples))
        return NamedBatch(images, data.names[batch.classes], batch.classes)

    def loss(params: Any, statistics: Any, batch: NamedBatch, key: jax.Array) -> Any:
        images, statistics = see(
            params["encoder"], batch.images, statistics=statistics, key=key, train=True
        )
        names = read(params["names"], batch.names)
        scale, bias = jnp.exp(params["log_scale"]), params["bias"]
        options = {"scale": scale, "bias": bias}
        terms = pair_terms(images, names, batch.labels, **options)
        aligned = jnp.ones(batch.labels.shape, bool)
        embedded = embedded_pairs(
            jnp.stack([images, names]), aligned, aligned, terms, axis_name=config.axis_name
        )
        return mean(terms), (statistics, {**options, EMBEDDED: embedded})

    optimizer = optimizers.one_cycle_adamw(
        config.learning_rate, config.num_steps, weight_decay=config.weight_decay
    )
    model = supcon.normalized_model(encode, PREPARATION)
    return System(init, sample, loss, optimizer, model)


def make_pair_terms(axis_name: str | None) -> Callable[..., Any]:
    """Returns `(images, names, labels, *, scale, bias) -> terms` of aligned embeddings.

    With the name of an axis, the drawings of a device meet the names of all devices.
    """
    loss_fn, matrix_fn = losses.sigmoid_pair_loss, distances.cosine_similarity_matrix
    if axis_name is not None:
        of_shares = sharding.gathered(loss_fn, matrix_fn, axis_name=axis_name)

    def terms(
        images: jax.Array, names: jax.Array, labels: jax.Array, **options: Any
    ) -> Any:
        items = Items(labels)
        if axis_name is not None:
            return of_shares(images, items, names, items, **options, reduce_fn=None)
        same, where = relations.between(items, items)
        matrix = matrix_fn(images, names)
        return loss_fn(matrix, same, where=where, **options, reduce_fn=None)

    return terms


# Data -----------------------------------------------------------------------------------


class Split(NamedTuple):
    """The drawings to train on, and those of each test, by the name of the test."""

    train: Letters
    tests: dict[str, Letters]


def load(config: Config) -> Split:
    """Draws the letters and splits them, in the same way for every seed.

    Raises:
      UserError: If there are fewer training letters than a batch needs.
    """
    everything = draw_letters()
    known = everything.only(TRAINING)
    names = evaluation_rng("new letters").permutation(np.unique(known.letters))
    is_new = np.isin(known.letters, names[: len(names) // NEW_SHARE])
    is_training_face = np.isin(known.faces, TRAINING_FACES)
    train = _only(known, ~is_new & is_training_face)
    if config.num_letters > train.num_letters:
        raise UserError(
            f"--num-letters: there are {train.num_letters} training letters; got "
            f"{config.num_letters}"
        )
    tests = {
        "new_faces": _only(known, ~is_new & ~is_training_face),
        "new_letters": _only(known, is_new),
        "new_alphabets": everything.only(TEST),
    }
    return Split(train, tests)


def _only(letters: Letters, rows: np.ndarray) -> Letters:
    return Letters(*(array[rows] for array in letters))


def on_device(train: Letters) -> LetterData:
    """The training letters and their names, on the device."""
    names = encode_names(names_of(np.unique(train.letters)))
    index = samplers.class_index(train.letters)
    return LetterData(jnp.asarray(train.images), index, jnp.asarray(names))


def names_of(letters: np.ndarray) -> list[str]:
    """The Unicode names of letters."""
    return [unicodedata.name(letter) for letter in letters.tolist()]


# Evaluation -----------------------------------------------------------------------------


def embed_names(config: Config, state: TrainState, names: list[str]) -> jax.Array:
    """Embeddings [n, dim] of names, of length 1."""
    read = from_flax(NameTower(config.name_features, config.dim)).apply

    @jax.jit
    def embed(params: Any, numbers: jax.Array) -> jax.Array:
        return distances.normalize(read(params, numbers))

    return embed(state.params["names"], jnp.asarray(encode_names(names)))


def both_directions(
    images: jax.Array, labels: np.ndarray, names: jax.Array
) -> dict[str, float]:
    """Recall of the right name for each drawing, and of a right drawing for each name.

    Args:
      images: [n, dim], embeddings of drawings.
      labels: [n], the row of each one's name.
      names: [m, dim], embeddings of names.
    """
    of_images = Items(jnp.asarray(labels, jnp.int32))
    of_names = Items(jnp.arange(len(names)))
    there, back = (images, of_images), (names, of_names)
    figures: dict[str, float] = {}
    for direction, queries, references in (
        ("image_to_name", there, back),
        ("name_to_image", back, there),
    ):
        found = retrieval.evaluate(
            *queries,
            references=references[0],
            reference_items=references[1],
            cutoffs=CUTOFFS,
            matrix_fn=distances.cosine_distance_matrix,
        )
        for k, recall in zip(CUTOFFS, found.mean.recall_at_k, strict=True):
            figures[f"{direction}_recall_at_{k}"] = float(recall)
    return figures


def evaluate(
    config: Config, state: TrainState, model: Model, tests: dict[str, Letters]
) -> dict[str, float]:
    """The figures of all tests, and chance beside them."""
    metrics: dict[str, float] = {}
    for test, letters in tests.items():
        shown, labels = np.unique(letters.letters, return_inverse=True)
        names = embed_names(config, state, names_of(shown))
        images = model.embed_prepared(letters.images)
        figures = both_directions(images, labels, names)
        figures |= {"num_letters": len(shown), "chance": 1 / len(shown)}
        metrics |= {f"{test}_{name}": figure for name, figure in figures.items()}
    return metrics


def print_examples(config: Config, state: TrainState, model: Model, new: Letters) -> None:
    """Prints the nearest name of some new letters."""
    shown, rows = np.unique(new.letters, return_index=True)
    some = slice(None, None, max(1, len(shown) // 8))
    names = names_of(shown)
    matrix = distances.cosine_distance_matrix(
        model.embed_prepared(new.images[rows[some]]), embed_names(config, state, names)
    )
    print("the nearest names of some new letters:\n")
    for name, nearest in zip(names[some], np.asarray(matrix).argmin(axis=1), strict=True):
        print(f"  {name}: {'right' if names[nearest] == name else names[nearest]}")


def main(config: Config) -> None:
    """Draws the letters, trains both towers, evaluates and reports."""
    config = settled(config)
    if not loop.start(config):
        return
    split, system = load(config), build(config)
    trained = loop.train(config, system, on_device(split.train))
    print("evaluating ...")
    model = system.model(trained.state)
    metrics = evaluate(config, trained.state, model, split.tests)
    new = split.tests["new_letters"]
    pictures = LabelledImages(255 - new.images, new.letters)  # dark ink, as in files
    model = few_shot.calibrate_model(model, pictures, "pairs of the new letters")
    names = names_of(np.unique(split.train.letters))
    write_whole(config.directory / "names.txt", "\n".join(names) + "\n")
    embeddings = np.asarray(embed_names(config, trained.state, names))
    np.save(config.directory / "name_embeddings.npy", embeddings)
    loop.finish(config, metrics, trained, model)
    print_examples(config, trained.state, model, new)
    sections = [report.training_section(config.directory, ("loss", "scale", "bias"))]
    report.write_report(config.directory, "Letters and their names", metrics, sections)


if __name__ == "__main__":
    command_line(main, Config)
