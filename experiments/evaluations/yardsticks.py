"""Retrieval on CUB-200, Cars-196 or Online Products, verification on LFW, as papers do it.

Source:  Song et al. 2016 for retrieval, Huang et al. 2007 for LFW; see
         experiments/datasets/yardsticks.py and lfw.py for the splits
Run:     python -m experiments yardsticks --dataset caltech_birds2011 --model RUN/model
         python -m experiments yardsticks --dataset lfw --data-dir lfw --model RUN/model
         python -m experiments yardsticks --method backbone --backbone my_file:embed
         python -m experiments yardsticks --method embeddings --embeddings E.npy
Expect:  recall_at_1 .264, map_at_r .039 and r_precision .073 with --dataset omniglot
         --method pixels --image-size 28 28; a random order has .001 of each

caltech_birds2011 is CUB-200-2011. The images come from TensorFlow Datasets (`python -m
experiments tfds NAME` prepares them) or from --data-dir, an unpacked archive of the
authors. Every image of the test classes is a query, and all others are the references. The
figures are recall@k (the share of the queries with an image of their class among the k
nearest), MAP@R and R-precision. Of LFW they are the accuracy over the ten folds of
pairs.txt with its standard error, the equal error rate, and the true accept rates (TAR) at
some false accept rates (FAR).

--method says where the embeddings come from:

model       the model of a run of this project
backbone    any Python function of images, such as a network of another library. It is given
            uint8 images [n, height, width, 3] as NumPy arrays and returns embeddings
            [n, dim]. The images are resized so that the shorter side has 256 pixels, and
            their middle of 224 x 224 pixels is taken (--image-size for another size).
embeddings  a .npy file with one row for each image, in the order of OUT/rows.csv
pixels      the pixels themselves, the baseline; choose a small --image-size
none        nothing is embedded; --out gets the lists alone

--out FOLDER writes rows.csv (the name and the class of each image), labels.npy, and, unless
the method is none, embeddings.npy.
"""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli import command_line, show_figures, write_whole
from experiments.datasets import lfw
from experiments.datasets.lfw import FacePairs
from experiments.datasets.yardsticks import YARDSTICKS, ClassSplitName, Part, open_yardstick
from experiments.engine import backbones
from experiments.engine.config import check_config, setting
from siamese_jax import retrieval, verification
from siamese_jax._files import check_new_folder
from siamese_jax.cli import check_output
from siamese_jax.errors import UserError
from siamese_jax.evaluation.distance import DISTANCES, DistanceName
from siamese_jax.evaluation.verified import is_told
from siamese_jax.images import Preparation
from siamese_jax.model import Model, load_model, pixel_model
from siamese_jax.relations import Items

FALSE_ACCEPT_RATES = (0.001, 0.01, 0.1)  # LFW has 3,000 pairs of different persons
_WITH_SIZE = ("backbone", "pixels")


@dataclasses.dataclass(frozen=True)
class Config:
    """The test, and what is tested.

    Attributes:
      dataset: The set, by its name in TensorFlow Datasets.
      data_dir: The folder to which the archive of the authors was unpacked.
      part: The classes to search in. Papers give figures for the test classes.
      pairs: The list of pairs of LFW, by default pairs.txt beside the images.
      method: Where the embeddings come from.
      model: The folder of a model.
      backbone: "module:function", a function of images.
      embeddings: A .npy file of embeddings.
      distance: What compares embeddings. A model has its own distance.
      image_size: Height and width of the images that the backbone is given.
      batch_size: Number of images that are embedded at a time.
      out: A folder for the rows, the labels and the embeddings, which must be new or empty.
      json: A file for the figures.
    """

    dataset: ClassSplitName | Literal["lfw"] = "caltech_birds2011"
    data_dir: pathlib.Path | None = None
    part: Literal["test", "train"] = setting("test", only_when={"dataset": (*YARDSTICKS,)})
    pairs: pathlib.Path | None = setting(None, only_when={"dataset": "lfw"})
    method: Literal["model", "backbone", "embeddings", "pixels", "none"] = "model"
    model: pathlib.Path | None = setting(None, only_when={"method": "model"})
    backbone: str | None = setting(None, only_when={"method": "backbone"})
    embeddings: pathlib.Path | None = setting(None, only_when={"method": "embeddings"})
    distance: DistanceName = setting(
        "cosine", only_when={"method": ("backbone", "embeddings")}
    )
    image_size: tuple[int, int] = setting(
        (224, 224), at_least=1, only_when={"method": _WITH_SIZE}
    )
    batch_size: int = setting(
        64, at_least=1, only_when={"method": ("model", "backbone", "pixels")}
    )
    out: pathlib.Path | None = None
    json: pathlib.Path | None = setting(
        None, only_when={"method": ("model", "backbone", "embeddings", "pixels")}
    )


class Embedder(NamedTuple):
    """What makes embeddings of images and compares them.

    Attributes:
      preparation: How an image is prepared.
      embed_fn: A function of prepared images, or None if the embeddings are given.
      matrix_fn: Distances of all rows of two sets.
      pairs_fn: Distances of the rows of two sets, row by row.
    """

    preparation: Preparation
    embed_fn: backbones.Backbone | None
    matrix_fn: Callable[[Any, Any], jax.Array]
    pairs_fn: Callable[[Any, Any], jax.Array]


def main(config: Config) -> None:
    """Embeds the images and shows the figures.

    Raises:
      UserError: If a flag, a file or the result of a backbone is wrong.
      FileNotFoundError: If TFDS has not prepared the set.
    """
    check_config(config)
    check_method(config)
    check_output("--json", config.json)
    if config.out is not None:
        check_new_folder("--out", config.out)
    embedder = make_embedder(config)
    pairs = None
    metrics: Mapping[str, float | None]
    if config.dataset == "lfw":
        pairs = lfw.read_pairs(lfw.find_pairs(config.data_dir, config.pairs))
        names = np.unique(pairs.names)
        part = lfw.open_faces(names, config.data_dir, embedder.preparation)
    else:
        parts = open_yardstick(config.dataset, config.data_dir, embedder.preparation)
        part = getattr(parts, config.part)
    if config.out is not None:
        write_rows(config.out, part)
    if config.method == "none":
        return
    embeddings = embed(config, embedder, part)
    if config.out is not None:
        np.save(config.out / "embeddings.npy", embeddings)
    if pairs is None:
        cutoffs = YARDSTICKS[config.dataset].cutoffs
        labels = part.source.labels
        metrics = retrieval_metrics(embedder.matrix_fn, embeddings, labels, cutoffs)
    else:
        metrics = pair_metrics(embedder.pairs_fn, embeddings, part.names, pairs)
    show_figures({**facts_of(config), "metrics": metrics}, config.json)


def facts_of(config: Config) -> dict[str, str]:
    """The settings that the figures depend on, by name."""
    names = ["dataset", "method", "model", "backbone", "embeddings"]
    if config.dataset != "lfw":
        names.append("part")
    if config.method in ("backbone", "embeddings"):
        names.append("distance")
    found = {name: getattr(config, name) for name in names}
    return {name: str(value) for name, value in found.items() if value is not None}


def check_method(config: Config) -> None:
    """Checks that the flag is there that the method needs.

    Raises:
      UserError: If not.
    """
    needed = {name: name for name in ("model", "backbone", "embeddings")} | {"none": "out"}
    flag = needed.get(config.method)
    if flag is not None and getattr(config, flag) is None:
        raise UserError(f"--{flag} is needed with --method {config.method}")


def make_embedder(config: Config) -> Embedder:
    """The embedder of a method.

    Raises:
      UserError: If the folder is no model, or the backbone cannot be imported.
    """
    preparation = Preparation(config.image_size, color=True, resampling="center-crop")
    if config.method in ("model", "pixels"):
        folder = config.model
        return of_model(load_model(folder) if folder else pixel_model(preparation))
    named = config.backbone and backbones.import_backbone(config.backbone)
    row_fn, matrix_fn = DISTANCES[config.distance]
    return Embedder(preparation, named or None, matrix_fn, jax.jit(row_fn))


def of_model(model: Model) -> Embedder:
    """The embedder that a model of this project is."""
    return Embedder(
        model.preparation, model.embed_prepared, model.distances, model.pair_distances
    )


def embed(config: Config, embedder: Embedder, part: Part) -> np.ndarray:
    """The embeddings of all images of a part, or those of the file.

    Raises:
      UserError: If the embeddings are wrong, or an image cannot be read.
    """
    num_rows = len(part.names)
    if embedder.embed_fn is None and config.embeddings is not None:
        return backbones.read_embeddings(config.embeddings, num_rows)
    assert embedder.embed_fn is not None  # `check_method`
    return backbones.embed_source(
        embedder.embed_fn, part.source, batch_size=min(config.batch_size, num_rows)
    )


def write_rows(folder: pathlib.Path, part: Part) -> None:
    """Writes rows.csv and labels.npy, which describe the rows of embeddings."""
    folder.mkdir(exist_ok=True)
    labels = part.source.labels
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "label"])
    writer.writerows(zip(part.names.tolist(), labels.tolist(), strict=True))
    write_whole(folder / "rows.csv", text.getvalue())
    np.save(folder / "labels.npy", labels)
    print(f"{len(labels):,} rows in {folder / 'rows.csv'}")


# Figures --------------------------------------------------------------------------------


def retrieval_metrics(
    matrix_fn: Callable[[Any, Any], jax.Array],
    embeddings: np.ndarray,
    labels: np.ndarray,
    cutoffs: tuple[int, ...] = (1, 2, 4, 8),
) -> dict[str, float]:
    """Figures of retrieval, where each image is searched in all others.

    Args:
      matrix_fn: The distance.
      embeddings: [n, dim].
      labels: [n], classes, numbers or names.
      cutoffs: The k of recall@k.
    """
    _, numbers = np.unique(labels, return_inverse=True)
    found = retrieval.evaluate(
        jnp.asarray(embeddings),
        Items(jnp.asarray(numbers, jnp.int32)),
        cutoffs=cutoffs,
        matrix_fn=matrix_fn,
    )
    recalls = np.asarray(found.mean.recall_at_k).tolist()
    return {
        "num_queries": int(found.num_queries),
        "num_without_relevant": int(found.num_without_relevant),
        **{f"recall_at_{k}": x for k, x in zip(cutoffs, recalls, strict=True)},
        "map_at_r": float(found.mean.average_precision_at_r),
        "r_precision": float(found.mean.r_precision),
    }


_fold_accuracy = jax.jit(verification.fold_accuracy, static_argnames="num_folds")
_operating_points = jax.jit(verification.operating_points, static_argnums=2)
_equal_error_rate = jax.jit(verification.equal_error_rate)


def pair_metrics(
    pairs_fn: Callable[[Any, Any], jax.Array],
    embeddings: np.ndarray,
    names: np.ndarray,
    pairs: FacePairs,
) -> dict[str, float | None]:
    """Figures of verification on a list of pairs.

    A true accept rate is None if the list has too few pairs of different persons for one
    of them to be the share that may be falsely accepted.

    Args:
      pairs_fn: The distance.
      embeddings: [n, dim].
      names: [n], the names of the images, sorted.
      pairs: Pairs of these names.
    """
    a, b = embeddings[np.searchsorted(names, pairs.names)]
    distances = pairs_fn(a, b)
    metrics: dict[str, float | None] = {"num_pairs": len(pairs.same)}
    if num_folds := int(pairs.folds.max()):
        num_folds += 1
        _, people = np.unique(pairs.people, return_inverse=True)
        try:
            verification.check_disjoint_folds(pairs.folds, people.reshape(2, -1))
        except ValueError as error:
            print(f"persons are in several folds, which makes accuracies too high: {error}")
        found = _fold_accuracy(distances, pairs.same, pairs.folds, num_folds=num_folds)
        metrics["accuracy"] = float(found.mean)
        metrics["accuracy_standard_error"] = float(found.standard_error)
    metrics["equal_error_rate"] = float(_equal_error_rate(distances, pairs.same))
    points = _operating_points(distances, pairs.same, FALSE_ACCEPT_RATES)
    num_different = int(np.sum(~pairs.same))
    for rate, true_rate in zip(FALSE_ACCEPT_RATES, points.true_match_rate, strict=True):
        told = is_told(rate, num_different)
        metrics[f"tar_at_far_{rate}"] = float(true_rate) if told else None
    return metrics


if __name__ == "__main__":
    command_line(main, Config)
