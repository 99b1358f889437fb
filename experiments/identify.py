"""Who or what is this? The nearest class of a gallery, or none of these.

    python -m experiments.identify --workdir RUN --gallery FOLDER --queries FILE...

The gallery has one sub-folder a class with one or more images; RUN is the working directory
of any finished run, and the classes need not be ones it has seen. A query's answer is the
class of the nearest gallery image, with its distance and the runner-up class; "none of
these" where even the nearest is beyond the threshold.

The threshold is calibrated on the run's validation pairs: with N classes in the gallery a
stranger has N chances to match, so each comparison may match falsely with probability
1 - (1 - rate)^(1/N), where `--false-accept-rate` is the share of strangers to be let in.
How many strangers it does let in is measured too: each gallery image is asked for with its
own class left out.

`--labelled` takes the folder of each query for its class and counts right and wrong
answers; queries of classes that are not in the gallery count as strangers.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import model, report, run
from experiments.data import list_folder
from experiments.model import Model


@dataclasses.dataclass(frozen=True)
class Config:
    """Which run, what is known, and what is asked.

    Attributes:
      workdir: Of a finished run.
      gallery: One sub-folder a class.
      queries: Image files.
      false_accept_rate: The share of strangers to be let in.
      labelled: The folder of each query names its class.
      picture: Where the picture of queries beside their nearest goes; by default
        identify.png in the working directory.
      json: A file for the answers, or nothing.
    """

    workdir: pathlib.Path
    gallery: pathlib.Path
    queries: tuple[pathlib.Path, ...]
    false_accept_rate: float = 0.1
    labelled: bool = False
    picture: pathlib.Path | None = None
    json: pathlib.Path | None = None


class Gallery(NamedTuple):
    """What is known.

    Attributes:
      images: uint8 [n, *image_shape].
      labels: [n], the class of each.
      embeddings: [n, dim].
    """

    images: np.ndarray
    labels: np.ndarray
    embeddings: Any


class Answer(NamedTuple):
    """The nearest class, its distance and image, and the class after it."""

    nearest: str
    distance: float
    image: int
    runner_up: str
    runner_up_distance: float


def load_gallery(learnt: Model, folder: pathlib.Path) -> Gallery:
    """Reads and embeds all images of all classes.

    Raises:
      FileNotFoundError: If the folder does not exist.
      UserError: If it has fewer than two classes, a class has no image, or a file cannot
        be read.
    """
    files = list_folder(folder)
    labels = np.array([file.parent.name for file in files])
    if len(np.unique(labels)) < 2:
        raise run.UserError(f"{folder} has one class, {labels[0]!s}; two are needed")
    images = model.read_images(learnt, files)
    return Gallery(images, labels, model.embed(learnt, images))


def answer(gallery: Gallery, distances: np.ndarray) -> Answer:
    """The nearest class and the runner-up, from the distances to all gallery images."""
    order = np.argsort(distances, kind="stable")
    labels = gallery.labels[order]
    second = int(np.argmax(labels != labels[0]))
    return Answer(
        nearest=str(labels[0]),
        distance=float(distances[order[0]]),
        image=int(order[0]),
        runner_up=str(labels[second]),
        runner_up_distance=float(distances[order[second]]),
    )


def strangers_let_in(learnt: Model, gallery: Gallery, threshold: float) -> float:
    """Share of gallery images that match another class, their own being left out."""
    matrix = np.array(learnt.matrix_fn(gallery.embeddings, gallery.embeddings))
    matrix[gallery.labels[:, None] == gallery.labels[None, :]] = np.inf
    return float(np.mean(matrix.min(axis=1) <= threshold))


def rates(
    answers: Sequence[Answer], truth: Sequence[str], known: set[str], threshold: float
) -> dict[str, float]:
    """Right and wrong answers to queries whose classes are known.

    Raises:
      UserError: If no query is of a class of the gallery.
    """
    accepted = np.array([a.distance <= threshold for a in answers])
    right = np.array([a.nearest == t for a, t in zip(answers, truth, strict=True)])
    member = np.array([t in known for t in truth])
    if not member.any():
        raise run.UserError(
            f"--labelled: no query is of a class of the gallery; the queries' folders are "
            f"{', '.join(sorted(set(truth))[:5])}"
        )
    figures = {
        "one_shot_accuracy": right[member].mean(),
        "right_and_accepted_rate": (right & accepted)[member].mean(),
        "false_reject_rate": (~accepted)[member].mean(),
    }
    if not member.all():
        figures["false_accept_rate"] = accepted[~member].mean()
    return {name: float(figure) for name, figure in figures.items()}


def identify(config: Config) -> dict[str, Any]:
    """Answers all queries; draws the picture.

    Raises:
      FileNotFoundError: If the gallery does not exist.
      UserError: If the run is not finished, the gallery is empty, a file cannot be read or
        a rate makes no sense.
    """
    if not 0 < config.false_accept_rate < 1:
        raise run.UserError(
            f"--false-accept-rate must be in (0, 1); got {config.false_accept_rate}"
        )
    if not config.queries:
        raise run.UserError("--queries: at least one image file; got none")
    learnt = model.load_model(config.workdir)
    calibration = model.load_calibration(config.workdir)
    gallery = load_gallery(learnt, config.gallery)
    images = model.read_images(learnt, config.queries)
    matrix = np.asarray(learnt.matrix_fn(model.embed(learnt, images), gallery.embeddings))
    if not np.isfinite(matrix).all():
        raise run.UserError("distances are not finite: the run has diverged")
    answers = [answer(gallery, row) for row in matrix]
    known = set(gallery.labels.tolist())
    threshold = calibration.threshold_at(
        1 - (1 - config.false_accept_rate) ** (1 / len(known))
    )
    metrics = {"strangers_let_in": strangers_let_in(learnt, gallery, threshold)}
    if config.labelled:
        truth = [file.resolve().parent.name for file in config.queries]
        metrics |= rates(answers, truth, known, threshold)
    picture = config.picture or config.workdir / "identify.png"
    draw(config, gallery, images, answers, threshold).savefig(
        picture, dpi=110, bbox_inches="tight"
    )
    return {
        "metrics": metrics,
        "threshold": threshold,
        "num_classes": len(known),
        "picture": str(picture),
        "queries": [
            {
                "file": str(file),
                "answer": found.nearest if found.distance <= threshold else None,
                **{k: v for k, v in found._asdict().items() if k != "image"},
            }
            for file, found in zip(config.queries, answers, strict=True)
        ],
    }


def draw(
    config: Config,
    gallery: Gallery,
    images: np.ndarray,
    answers: Sequence[Answer],
    threshold: float,
) -> Any:
    """The first queries above what they are nearest to."""
    shown = slice(0, 12)
    return report.matches(
        images[shown],
        gallery.images[[found.image for found in answers[shown]]],
        [f"{found.nearest}\n{found.distance:.2f}" for found in answers[shown]],
        [found.distance <= threshold for found in answers[shown]],
    )


def command(config: Config) -> None:
    """Answers in words, and as JSON where asked."""
    found = identify(config)
    for query in found["queries"]:
        verdict = query["answer"] or "none of these"
        print(
            f"{query['file']}: {verdict} (nearest {query['nearest']} at "
            f"{query['distance']:.4f}, then {query['runner_up']} at "
            f"{query['runner_up_distance']:.4f})"
        )
    print(f"threshold {found['threshold']:.4f}, for {found['num_classes']} classes")
    run.print_table(found["metrics"])
    print(f"picture: {found['picture']}")
    if config.json is not None:
        run.write_whole(config.json, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    run.command_line(command, Config)
