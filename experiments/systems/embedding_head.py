"""A small head on the embeddings of a frozen network, trained by any loss of the library.

Source:  this project's own
Run:     python -m experiments embedding_head --embeddings E.npy --labels L.npy
         python -m experiments embedding_head --dataset omniglot --image-size 56 56
         --backbone experiments.engine.backbones:gradients
Expect:  with the second command recall_at_1 .645 (before .497), map_at_r .243 (.122) and
         r_precision .331 (.186) on the 659 test characters; ten seconds of training and
         two minutes for the embeddings and the figures on two busy CPU cores
Quick:   any of these with --num-steps 50

A network that somebody else has trained embeds all images once. The head, a linear map or
a perceptron with one hidden layer, is trained on these embeddings and leaves the network as
it is. The first half of the classes is for training, and retrieval is tested on the other
half: recall@k, MAP@R and R-precision by the cosine, before and after.

--dataset says where the embeddings come from:

arrays   --embeddings, a .npy file [n, dim], and --labels, a .npy file of n integers or
         names
folder   the images of --data-dir, which has one sub-folder for each class, by --backbone
others   the data sets of `python -m experiments yardsticks`, whose test classes are those
         of papers, by --backbone

--backbone my_file:embed names a Python function: uint8 images [n, height, width, 3] go in,
embeddings [n, dim] come out. It runs once; RUN/backbone_embeddings.npy keeps the result.
The function of the second command measures oriented gradients, and needs no download.

--loss names a function of siamese_jax.losses without its ending, and --loss-options its
arguments: --loss contrastive --loss-options margin=0.5. Losses of distances or similarities
are taken over all pairs of a batch. Losses with proxies learn one proxy for each class.

A run keeps the labels in RUN/labels.npy. If it was stopped, it goes on with these, and
refuses others.

The embeddings that the head makes have length 1. RUN/embeddings.npy has them for all rows,
and RUN/head.npz the parameters, for which this is the whole linear head in NumPy:

    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    x = x @ head["Dense_0/kernel"] + head["Dense_0/bias"]
    embeddings = x / np.linalg.norm(x, axis=1, keepdims=True)
"""

import dataclasses
import pathlib
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from experiments.cli import command_line, read_json
from experiments.datasets import sources
from experiments.datasets.sources import ImageSource
from experiments.datasets.yardsticks import ClassSplitName, open_yardstick
from experiments.engine import backbones, loop, named_losses, optimizers
from experiments.engine.config import RunConfig, as_json, is_started, setting
from experiments.engine.health import EMBEDDED, Embedded
from experiments.engine.init_from import named_arrays
from experiments.engine.precision import settled
from experiments.engine.system import System
from experiments.evaluations.yardsticks import retrieval_metrics
from siamese_jax import distances, reductions, samplers
from siamese_jax.errors import UserError
from siamese_jax.evaluation.files import read_array
from siamese_jax.images import Preparation, class_names, list_folder
from siamese_jax.model import Model
from siamese_jax.siamese import from_flax
from siamese_jax.training import TrainState, with_compute_dtype

_OF_IMAGES = (
    *("folder", "caltech_birds2011", "cars196", "stanford_online_products", "omniglot"),
)


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """The embeddings, and the settings of the head and of its training.

    Attributes:
      dataset: Where the embeddings come from.
      embeddings: A .npy file with one embedding in each row.
      labels: A .npy file with the class of each row.
      backbone: "module:function", a function of images.
      data_dir: The folder of the images. Without it a data set is read from TFDS.
      image_size: Height and width of the images that the backbone is given.
      num_train_classes: The first so many classes are for training, in the order of their
        labels; half of them by default.
      head: The kind of head.
      hidden: Number of hidden features of the perceptron.
      dim: Number of dimensions of the new embeddings.
      loss: A loss without its ending, such as "supervised_contrastive".
      loss_options: Options of the loss, such as "temperature=0.2".
      num_classes: Number of classes in a batch.
      num_images: Number of embeddings of each class in a batch. Those of smaller classes
        are repeated, and are not compared with themselves.
      learning_rate: Peak of the one-cycle schedule.
      weight_decay: Weight decay of AdamW.
    """

    experiment: ClassVar[str] = "embedding_head"

    num_steps: int = setting(1_000, at_least=1)
    steps_per_call: int = setting(50, at_least=1)
    checkpoint_every: int = setting(500, at_least=1)

    dataset: Literal["arrays", "folder"] | ClassSplitName = "arrays"
    embeddings: pathlib.Path | None = setting(None, only_when={"dataset": "arrays"})
    labels: pathlib.Path | None = setting(None, only_when={"dataset": "arrays"})
    backbone: str | None = setting(None, only_when={"dataset": _OF_IMAGES})
    data_dir: pathlib.Path | None = setting(None, only_when={"dataset": _OF_IMAGES})
    image_size: tuple[int, int] = setting(
        (224, 224), at_least=1, only_when={"dataset": _OF_IMAGES}
    )
    num_train_classes: int | None = setting(
        None, at_least=2, only_when={"dataset": ("arrays", "folder")}
    )
    head: Literal["linear", "mlp"] = "linear"
    hidden: int = setting(512, at_least=1, only_when={"head": "mlp"})
    dim: int = setting(128, at_least=1)
    loss: str = "multi_similarity"
    loss_options: tuple[str, ...] = ()
    num_classes: int = setting(16, at_least=2)
    num_images: int = setting(4, at_least=2)
    learning_rate: float = setting(1e-3, above=0)
    weight_decay: float = setting(1e-4, at_least=0)

    @property
    def can_be_lengthened(self) -> bool:
        """No: the learning rate falls to zero at the last step."""
        return False


# The system -----------------------------------------------------------------------------


class Head(nn.Module):
    """A linear map of features of length 1, with a hidden layer before it if asked for.

    Attributes:
      dim: Dimension of the embedding, which is not normalised.
      hidden: Number of hidden features. None for no hidden layer.
    """

    dim: int
    hidden: int | None = None

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """Embeds features [n, num_features]."""
        x = distances.normalize(features)
        if self.hidden is not None:
            x = nn.relu(nn.Dense(self.hidden)(x))
        # which leaves the distances of features almost as they are
        return nn.Dense(self.dim, kernel_init=nn.initializers.orthogonal())(x)


class HeadData(NamedTuple):
    """The training rows on the device.

    Attributes:
      features: [n, 1, 1, num_features], the embeddings of the frozen network, in the shape
        in which other systems have images.
      classes: The index of their classes.
    """

    features: jax.Array
    classes: samplers.ClassIndex


class HeadBatch(NamedTuple):
    """Some rows: `images` are features [n, 1, 1, num_features]."""

    images: jax.Array
    labels: jax.Array
    examples: jax.Array


def make_head(config: Config) -> Head:
    """The head of these settings."""
    return Head(config.dim, config.hidden if config.head == "mlp" else None)


def build(config: Config, num_features: int, num_classes: int) -> System:
    """The system as pure functions.

    Args:
      config: The settings.
      num_features: Number of features of the frozen network.
      num_classes: Number of training classes.
    """
    head_init, apply = from_flax(make_head(config))
    embed = with_compute_dtype(apply, config.compute_dtype)
    named = named_losses.find_loss(config.loss, config.loss_options)

    def init(key: jax.Array) -> tuple[Any, Any]:
        head_key, proxy_key = jax.random.split(key)
        params, statistics = head_init(head_key, jnp.zeros((1, num_features)))
        if not named.has_proxies:
            return {"encoder": params}, statistics
        proxies = jax.random.normal(proxy_key, (num_classes, config.dim))
        return {"encoder": params, "proxies": distances.normalize(proxies)}, statistics

    def sample(key: jax.Array, step: jax.Array, data: HeadData) -> HeadBatch:
        classes, (P, K) = data.classes, (config.num_classes, config.num_images)
        batch = samplers.sample_batch(key, classes, P, K, repeat=True)
        return HeadBatch(data.features[batch.examples], batch.classes, batch.examples)

    def loss(params: Any, statistics: Any, batch: HeadBatch, key: jax.Array) -> Any:
        features = batch.images[:, 0, 0]
        x = distances.normalize(embed(params["encoder"], features))
        labels, examples = batch.labels, batch.examples
        given = x, labels, jnp.ones(labels.shape, bool)
        if config.axis_name is not None:  # heads are small: each device has the whole loss
            x, labels, examples = jax.lax.all_gather(
                (x, labels, examples), config.axis_name, tiled=True
            )
        proxies = params.get("proxies")
        terms = named.loss_fn(x, labels, examples, proxies, reduce_fn=None)
        value = reductions.reduce_terms(terms, reductions.mean)
        return value, (statistics, {EMBEDDED: Embedded(*given, terms)})

    def model(state: TrainState) -> Model:
        raise UserError("a head takes embeddings; a model of images it is not")

    optimizer = optimizers.one_cycle_adamw(
        config.learning_rate, config.num_steps, weight_decay=config.weight_decay
    )
    return System(init, sample, loss, optimizer, model)


# Data -----------------------------------------------------------------------------------


class Rows(NamedTuple):
    """What is known of all rows before they are embedded.

    Attributes:
      labels: [n], integers or names.
      is_train: [n], True for the training classes.
      source: The images, or None if the embeddings are given.
    """

    labels: np.ndarray
    is_train: np.ndarray
    source: ImageSource | None


def find_rows(config: Config) -> Rows:
    """Finds the labels of all rows and splits their classes.

    Raises:
      UserError: If a flag or a file is wrong or missing.
      FileNotFoundError: If a folder does not exist, or TFDS has not prepared the set.
    """
    needed = ("embeddings", "labels") if config.dataset == "arrays" else ("backbone",)
    if config.dataset == "folder":
        needed = (*needed, "data_dir")
    for name in needed:
        if getattr(config, name) is None:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is needed with --dataset {config.dataset}")
    preparation = Preparation(config.image_size, color=True, resampling="center-crop")
    if config.labels is not None:
        labels = np.asarray(read_array("--labels", config.labels))
        if labels.ndim != 1 or labels.dtype.kind not in "iuU":
            raise UserError(
                f"--labels: {config.labels} must be [n] integers or names; got "
                f"{list(labels.shape)} {labels.dtype}"
            )
        return Rows(labels, first_classes(config, labels), None)
    if config.dataset == "folder" and config.data_dir is not None:
        files = list_folder(config.data_dir)
        source = sources.of_files(files, np.array(class_names(files)), preparation)
        return Rows(source.labels, first_classes(config, source.labels), source)
    parts = open_yardstick(config.dataset, config.data_dir, preparation)
    source = sources.joined(parts.train.source, parts.test.source)
    is_train = np.arange(len(source.labels)) < len(parts.train.names)
    return Rows(source.labels, is_train, source)


def first_classes(config: Config, labels: np.ndarray) -> np.ndarray:
    """Tells which rows are of the training classes, the first in the order of labels.

    Raises:
      UserError: If no two classes are left for the test.
    """
    names = np.unique(labels)
    num_train = config.num_train_classes or (len(names) + 1) // 2
    if len(names) - num_train < 2 or num_train < 2:
        raise UserError(
            f"--num-train-classes: 2 classes or more for training and 2 for the test are "
            f"needed; {num_train} of {len(names)} are for training"
        )
    return np.isin(labels, names[:num_train])


def keep_labels(config: Config, labels: np.ndarray) -> None:
    """Writes the labels of all rows to RUN/labels.npy.

    Raises:
      UserError: If the run has made steps with other labels. If it went on, it would be
        tested on rows that it was trained on.
    """
    path = config.directory / "labels.npy"
    if not (is_started(config.directory) and path.exists()):
        np.save(path, labels)
        return
    found = np.load(path)
    if len(found) != len(labels):
        change = f"{len(labels)} rows instead of {len(found)}"
    else:
        change = f"{np.sum(found != labels)} of {len(labels)} rows have another label"
    if not np.array_equal(found, labels):
        raise UserError(
            f"{path} has the labels that the run was started with, and now there are "
            f"others ({change}); choose another --workdir, or restore the labels"
        )


def has_these_settings(config: Config) -> bool:
    """Whether the folder of the run was last used with the same settings."""
    path = config.directory / "config.json"
    return path.exists() and read_json(path) == as_json(config)


def find_features(config: Config, rows: Rows, *, goes_on: bool) -> np.ndarray:
    """The embeddings of the frozen network: float32 [n, num_features].

    They are kept in the folder of the run, so that a run that goes on does not need the
    network.

    Args:
      config: The settings.
      rows: What the rows are.
      goes_on: Whether the embeddings in the folder, if any, are those of these settings.
        Others are deleted.

    Raises:
      UserError: If the embeddings or the backbone are wrong.
    """
    if config.embeddings is not None:
        return backbones.read_embeddings(config.embeddings, len(rows.labels))
    kept = config.directory / "backbone_embeddings.npy"
    if not goes_on:
        kept.unlink(missing_ok=True)
    if kept.exists():
        return backbones.read_embeddings(kept, len(rows.labels))
    assert rows.source is not None  # `find_rows` has checked both
    assert config.backbone is not None
    backbone = backbones.import_backbone(config.backbone)
    features = backbones.embed_source(backbone, rows.source)
    part = kept.with_name("part.npy")
    np.save(part, features)
    part.replace(kept)
    return features


def training_data(features: np.ndarray, labels: np.ndarray) -> HeadData:
    """Training rows on the device, in JAX's default type of floating-point numbers."""
    array = jnp.asarray(features[:, None, None, :], jnp.result_type(float))
    return HeadData(array, samplers.class_index(labels))


# Evaluation -----------------------------------------------------------------------------


def evaluate(features: np.ndarray, embeddings: np.ndarray, rows: Rows) -> dict[str, float]:
    """Figures of retrieval on the test classes before and after, and on the training ones.

    Args:
      features: [n, num_features], of the frozen network.
      embeddings: [n, dim], of the head.
      rows: What the rows are.
    """
    test, train = ~rows.is_train, rows.is_train
    before, after, trained = (
        retrieval_metrics(distances.cosine_distance_matrix, array[part], rows.labels[part])
        for array, part in ((features, test), (embeddings, test), (embeddings, train))
    )
    sizes = ("num_queries", "num_without_relevant")
    figures = [name for name in after if name not in sizes]
    return {
        "num_test_classes": len(np.unique(rows.labels[test])),
        **after,
        **{f"{name}_before": before[name] for name in figures},
        **{f"{name}_training_classes": trained[name] for name in figures},
    }


def main(config: Config) -> None:
    """Embeds the images once, trains the head, and compares retrieval before and after."""
    config = settled(config)
    named_losses.find_loss(config.loss, config.loss_options)
    rows = find_rows(config)
    labels = rows.labels[rows.is_train]
    num_classes = len(np.unique(labels))
    if config.num_classes > num_classes:
        raise UserError(
            f"--num-classes: there are {num_classes} training classes; got "
            f"{config.num_classes}"
        )
    goes_on = has_these_settings(config)
    if not loop.start(config):
        return
    keep_labels(config, rows.labels)
    features = find_features(config, rows, goes_on=goes_on)
    system = build(config, features.shape[1], num_classes)
    data = training_data(features[rows.is_train], labels)
    trained = loop.train(config, system, data)
    params = jax.tree.map(np.asarray, trained.state.params["encoder"])
    head = from_flax(make_head(config)).apply
    embed = jax.jit(lambda params, x: distances.normalize(head(params, x)))
    embeddings = np.asarray(embed(params, features), np.float32)
    np.save(config.directory / "embeddings.npy", embeddings)
    np.savez(config.directory / "head.npz", allow_pickle=False, **named_arrays(params))
    metrics = evaluate(features, embeddings, rows)
    loop.finish(config, metrics, trained, None)
    sections = [report.training_section(config.directory)]
    title = f"A head on {features.shape[1]} features: {config.loss}"
    report.write_report(config.directory, title, metrics, sections)


if __name__ == "__main__":
    command_line(main, Config)
