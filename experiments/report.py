"""report.html: one self-contained page with the figures and pictures of a run.

`write_report` writes the page. The other functions make pictures, or whole sections that
several systems share.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli import finite_or_none, read_json, table_rows, write_whole
from experiments.engine.logs import read_log
from siamese_jax._names import shown
from siamese_jax._page import (
    CORRECT,
    INK,
    PALE,
    WRONG,
    Cell,
    Table,
    new_figure,
    page,
    without_frame,
)
from siamese_jax._page import Section as Section
from siamese_jax._page import distance_histogram as distance_histogram
from siamese_jax._page import roc as roc
from siamese_jax.samplers import Pairs
from siamese_jax.verification import RocCurve, roc_curve

if TYPE_CHECKING:  # matplotlib is imported when a picture is made
    from matplotlib.figure import Figure


def write_report(
    workdir: pathlib.Path,
    title: str,
    metrics: Mapping[str, float | None],
    sections: Sequence[Section],
    *,
    remarks: Sequence[str] = (),
) -> None:
    """Writes workdir/report.html, with the settings in workdir/config.json at its end.

    Args:
      workdir: The folder of the run.
      title: The heading of the page.
      metrics: The figures in the table. None and numbers that are not finite are
        shown as "undefined".
      sections: The pictures.
      remarks: Sentences about the figures, which stand above them.
    """
    figures = {name: finite_or_none(value) for name, value in metrics.items()}
    rows = [[Cell(name), Cell(text, "number")] for name, text in table_rows(figures)]
    settings = json.dumps(read_json(workdir / "config.json"), indent=2)
    whole = page(
        title,
        Table([], rows),
        sections,
        remarks=remarks,
        details=("Configuration", settings),
    )
    write_whole(workdir / "report.html", whole)  # a run with this page counts as complete


# Sections -------------------------------------------------------------------------------


def pair_sections(
    images: np.ndarray,
    pairs: Pairs,
    distances: np.ndarray,
    threshold: float,
    *,
    name: str = "test pairs",
    cmap: str = "gray_r",
) -> list[Section]:
    """Returns three sections: examples of pairs, their distances, and the ROC curve.

    Args:
      images: [n, height, width, channels].
      pairs: Pairs of the images.
      distances: The distance of each pair.
      threshold: Pairs up to this distance are called the same.
      name: What pairs these are.
      cmap: The colour map of the images, "gray" for photographs and dark ink, "gray_r" for
        light ink, which then is shown dark.
    """
    distances, same = np.asarray(distances), np.asarray(pairs.same)
    examples = np.asarray(pairs.examples)
    wrong = (distances <= threshold) != same
    parts = ((same, 4), (~same, 3), (wrong, 7))
    shown = np.concatenate([_spread(mask, num) for mask, num in parts])
    grid = pair_grid(
        images[examples[:, shown]], distances[shown], same[shown], threshold, cmap=cmap
    )
    curve = jax.jit(roc_curve)(jnp.asarray(distances), jnp.asarray(same))
    return [
        Section(
            "Same or different?",
            f"{name.capitalize()} with their distances, which are green where the decision "
            "is correct: some of the same class, some of different classes"
            + (", and then some wrong decisions." if wrong.any() else ". None is wrong."),
            grid,
        ),
        Section(
            f"Distances of {name}",
            "The model has no threshold: its distances tell nothing apart."
            if math.isnan(threshold)
            else f"The line is the threshold, {threshold:.3f}.",
            distance_histogram(distances, same, threshold),
        ),
        roc_section({name: curve}),
    ]


def _spread(mask: np.ndarray, num: int) -> np.ndarray:
    """Returns up to `num` of the positions where the mask is True, evenly spread."""
    found = np.flatnonzero(mask)
    return found[:: max(1, len(found) // num)][:num]


def roc_section(curves_by_name: Mapping[str, RocCurve]) -> Section:
    """Returns a section with one or more ROC curves."""
    note = "The falling line marks equal error rates."
    return Section("ROC", note, roc(curves_by_name))


def training_section(workdir: pathlib.Path, names: Sequence[str] = ("loss",)) -> Section:
    """Returns a section with metrics of the training steps."""
    note = "Metrics of each training step, and their running mean."
    return Section("Training", note, curves(workdir, names))


# Pictures -------------------------------------------------------------------------------


def curves(
    workdir: pathlib.Path, names: Sequence[str] = ("loss",), *, log: str = "metrics.jsonl"
) -> "Figure":
    """Plots metrics of a log over the steps, with a running mean; 0 is always in view.

    Args:
      workdir: The folder of the run.
      names: The metrics to plot.
      log: The file in the folder.
    """
    logged = read_log(workdir, log)
    figure = new_figure(figsize=(4.2 * len(names), 3))
    for axes, name in zip(
        figure.subplots(1, len(names), squeeze=False)[0], names, strict=True
    ):
        steps, values = logged["step"], logged[name]
        window = max(1, len(values) // 50)
        means = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps, values, color=PALE, linewidth=0.6)
        axes.plot(steps[window - 1 :], means, color=INK)
        finite = np.append(values[np.isfinite(values)], 0)
        low, high = 1.05 * np.quantile(finite, (0.01, 0.99))
        axes.set(xlabel="step", title=name, ylim=(min(0.0, low), max(0.0, high)))
        without_frame(axes)
    return figure


def pair_grid(
    images: np.ndarray,
    distances: np.ndarray,
    same: np.ndarray,
    threshold: float,
    *,
    cmap: str = "gray_r",
) -> "Figure":
    """Shows the two images of each pair, one above the other, with their distance.

    Args:
      images: [2, n, height, width, channels].
      distances: [n], green where the decision is correct, else red.
      same: [n], whether the images are of the same class.
      threshold: Pairs up to this distance are called the same.
      cmap: The colour map of images with one channel.
    """
    num = len(distances)
    figure = new_figure(figsize=(0.95 * num, 2.3))
    for column, axes in enumerate(figure.subplots(1, num, squeeze=False)[0]):
        correct = (distances[column] <= threshold) == same[column]
        axes.imshow(np.concatenate(list(images[:, column])), cmap=cmap)
        axes.set_title(f"{distances[column]:.2f}", color=CORRECT if correct else WRONG)
        axes.set_xlabel("same" if same[column] else "diff.")
        axes.set(xticks=[], yticks=[])
    return figure


class Answer(NamedTuple):
    """The answer to a query.

    Attributes:
      query: [height, width, 1].
      candidates: [n, height, width, 1], from nearest to farthest.
      distances: [n].
      correct: bool [n], whether each candidate is of the query's class.
    """

    query: np.ndarray
    candidates: np.ndarray
    distances: np.ndarray
    correct: np.ndarray


def answer_grid(answers: Sequence[Answer]) -> "Figure":
    """Shows in each row a query and its nearest candidates, framed green if correct."""
    num_candidates = len(answers[0].candidates)
    figure = new_figure(figsize=(0.85 * (num_candidates + 1), 0.95 * len(answers)))
    grid = figure.subplots(len(answers), num_candidates + 1, squeeze=False)
    for row, answer in zip(grid, answers, strict=True):
        row[0].imshow(answer.query[:, :, 0], cmap="gray_r")
        row[0].set_ylabel("query", rotation=0, ha="right", va="center", fontsize=8)
        for place, axes in enumerate(row[1:]):
            axes.imshow(answer.candidates[place, :, :, 0], cmap="gray_r")
            color = CORRECT if answer.correct[place] else WRONG if place == 0 else "#ccc"
            for spine in axes.spines.values():
                spine.set(color=color, linewidth=2.5 if color != "#ccc" else 0.8)
            axes.set_title(f"{answer.distances[place]:.2f}", fontsize=7, pad=2)
        for axes in row:
            axes.set(xticks=[], yticks=[])
    figure.subplots_adjust(hspace=0.45)
    return figure


def embedding_map(embeddings: np.ndarray, images: np.ndarray, seed: int = 0) -> "Figure":
    """Shows images in the plane, where t-SNE of their embeddings puts them."""
    from sklearn.manifold import TSNE

    figure = new_figure(figsize=(8, 8))
    axes = figure.subplots()
    axes.set_axis_off()
    if np.ptp(embeddings, axis=0).max() < 1e-6:
        axes.set_title("All embeddings coincide: the model has collapsed.")
        return figure
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    layout = TSNE(random_state=seed, perplexity=perplexity, init="pca")
    places = layout.fit_transform(embeddings)
    half = np.ptp(places, axis=0).max() / 70
    for (x, y), image in zip(places, images, strict=True):
        box = (x - half, x + half, y - half, y + half)
        axes.imshow(image[:, :, 0], cmap="gray_r", extent=box, aspect="auto", alpha=0.9)
    axes.set(xlim=(places[:, 0].min() - 2 * half, places[:, 0].max() + 2 * half))
    axes.set(ylim=(places[:, 1].min() - 2 * half, places[:, 1].max() + 2 * half))
    return figure


def confusion_matrix(shares: np.ndarray, names: Sequence[str]) -> "Figure":
    """Plots how often each class (rows) is taken for each other class (columns)."""
    figure = new_figure(figsize=(4.6, 4.2))
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Reds", vmin=0)
    figure.colorbar(picture, ax=axes, shrink=0.8, format=lambda share, _: f"{share:.0%}")
    ticks = np.arange(len(names))
    texts = [shown(name) for name in names]
    axes.set_xticks(ticks, texts, parse_math=False)  # a name may hold $
    axes.set_yticks(ticks, texts, parse_math=False)
    return figure


def confusion_pairs(
    drawings: Sequence[tuple[np.ndarray, np.ndarray]], shares: Sequence[float]
) -> "Figure":
    """Shows confusions: above a drawing of a class, below the class it is taken for.

    Args:
      drawings: Pairs of images [height, width, 1].
      shares: How often each confusion happens.
    """
    figure = new_figure(figsize=(0.95 * len(shares), 2.3))
    for axes, (truth, answer), share in zip(
        figure.subplots(1, len(shares), squeeze=False)[0], drawings, shares, strict=True
    ):
        axes.imshow(np.concatenate([truth[:, :, 0], answer[:, :, 0]]), cmap="gray_r")
        axes.set_title(f"{share:.0%}", fontsize=9)
        axes.set(xticks=[], yticks=[])
    return figure
