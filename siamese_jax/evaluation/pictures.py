"""Pictures of `siamese-jax evaluate`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from siamese_jax._page import (
    CORRECT,
    INK,
    LINES,
    PALE,
    WRONG,
    new_figure,
    without_frame,
)
from siamese_jax.evaluation.figures import Figure as Number
from siamese_jax.evaluation.files import ImageFn
from siamese_jax.evaluation.neighbours import Answer
from siamese_jax.evaluation.sets import Sets
from siamese_jax.verification import CalibrationCurve, DetCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RATE_TICKS = (1e-5, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95)
_MOST_DRAWN = 2_000  # points of a map
_NUM_COLORED = 10  # classes


def error_curves(curves: Mapping[str, DetCurve]) -> "Figure":
    """The ROC curve over a logarithmic rate, and the same as a DET curve."""
    figure = new_figure(figsize=(9.2, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    smallest = 1.0
    for (name, curve), color in zip(curves.items(), LINES, strict=False):
        false, missed = map(
            np.asarray, (curve.false_match_rate, curve.false_non_match_rate)
        )
        positive = false > 0
        smallest = min(smallest, float(false[positive].min(initial=0.1)))
        left.step(false, 1 - missed, where="post", color=color, label=name)
        deviates = (curve.false_match_deviate, curve.false_non_match_deviate)
        right.plot(*map(np.asarray, deviates), color=color, label=name)
    left.set(xscale="log", xlim=(max(smallest, 1e-7), 1), ylim=(0, 1.02))
    left.set(xlabel="different pairs called the same (FAR)", title="ROC")
    left.set(ylabel="same pairs called the same (TAR)")
    left.legend(loc="lower right", frameon=False)
    _deviate_axes(right)
    for axes in (left, right):
        without_frame(axes)
    return figure


def _deviate_axes(axes) -> None:
    """Axes of normal deviates, with rates at the ticks."""
    from jax.scipy.special import ndtri

    places = np.asarray(ndtri(np.array(_RATE_TICKS)))
    texts = [f"{100 * rate:g} %" for rate in _RATE_TICKS]
    axes.plot(places[[0, -1]], places[[0, -1]], color="#ddd", linewidth=0.8, zorder=0)
    axes.set_xticks(places, texts, fontsize=7)
    axes.set_yticks(places, texts, fontsize=7)
    axes.set(xlim=places[[0, -1]], ylim=places[[0, -1]], title="DET")
    axes.set(xlabel="false matches", ylabel="false non-matches")
    axes.set_aspect("equal")


def calibration(curves: Mapping[str, CalibrationCurve]) -> "Figure":
    """How often pairs are the same, against the probability that they were given."""
    figure = new_figure(figsize=(4.2, 4))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#ddd", linewidth=0.8, zorder=0)
    for (name, curve), color in zip(curves.items(), LINES, strict=False):
        used = np.asarray(curve.share) > 0
        points = [np.asarray(x)[used] for x in (curve.probability, curve.frequency)]
        axes.plot(*points, color=color, label=name)
        axes.scatter(
            points[0], points[1], s=8 + 250 * np.asarray(curve.share)[used], color=color
        )
    axes.set(xlabel="probability of the same", ylabel="share of the same", aspect="equal")
    axes.legend(loc="upper left", frameon=False)
    without_frame(axes)
    return figure


def match_curves(
    cutoffs: Sequence[int],
    recall: Float[np.ndarray, " k"],
    precision: Float[np.ndarray, " k"],
) -> "Figure":
    """Recall at k, the cumulative match characteristic, and precision at k."""
    figure = new_figure(figsize=(5.5, 3.2))
    axes = figure.subplots()
    axes.plot(cutoffs, recall, color=INK, marker="o", label="recall at k (CMC)")
    axes.plot(cutoffs, precision, color=PALE, marker="o", label="precision at k")
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="k nearest")
    ticks = [k for k in cutoffs if k in (1, 2, 4, 8, 16, 32, 64, 100)]
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.minorticks_off()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    without_frame(axes)
    return figure


def class_histogram(precision: Float[np.ndarray, " classes"]) -> "Figure":
    """The classes by their precision at 1."""
    figure = new_figure(figsize=(5.5, 2.6))
    axes = figure.subplots()
    bins = np.linspace(0, 1, 21).tolist()
    axes.hist(precision, bins, color=PALE)
    axes.axvline(float(precision.mean()), color=INK, label=f"mean {precision.mean():.3f}")
    axes.set(xlabel="precision at 1 of a class", ylabel="classes")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    without_frame(axes)
    return figure


def accuracy_bars(figures: Mapping[str, Mapping[str, Number]]) -> "Figure":
    """Accuracies of few-shot tasks with intervals, a panel for each kind of task."""
    tasks: dict[str, list[tuple[str, Number, str]]] = {}
    for (_, of_kind), color in zip(figures.items(), (INK, "#c28a1e"), strict=False):
        for name, number in of_kind.items():
            task, _, classifier = name.partition("_shot_")
            if number.value is not None:
                tasks.setdefault(task, []).append((classifier, number, color))
    figure = new_figure(figsize=(2.4 * len(tasks) + 1, 3), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for axes, (task, bars) in zip(panels, tasks.items(), strict=True):
        names, numbers, colors = zip(*bars, strict=True)
        values = np.array([number.value for number in numbers])
        half = np.array([(number.high or 0) - number.value for number in numbers])
        axes.barh(names, values, xerr=half, color=colors, alpha=0.85, height=0.7)
        for place, value in enumerate(values):
            axes.text(0.02, place, f"{value:.3f}", va="center", color="white", fontsize=8)
        axes.set(title=f"{task.replace('_', '-')}-shot", xlim=(0, 1), xlabel="accuracy")
        without_frame(axes)
    panels[0].invert_yaxis()
    return figure


def answers(
    shown: Sequence[Answer], sets: Sets, query_image: ImageFn, reference_image: ImageFn
) -> "Figure":
    """In each row a query and its nearest references, framed green if of its class."""
    width = 1 + max(len(answer.neighbours) for answer in shown)
    figure = new_figure(figsize=(1.05 * width, 1.25 * len(shown)))
    grid = figure.subplots(len(shown), width, squeeze=False)
    for row, answer in zip(grid, shown, strict=True):
        for axes in row:
            axes.set_axis_off()
        _picture(row[0], query_image(answer.query), None)
        name = sets.name_of(sets.queries.labels[answer.query])
        row[0].set_title(_short(name), fontsize=7, pad=2, parse_math=False)
        for axes, reference, distance, same in zip(
            row[1:], answer.neighbours, answer.distances, answer.same, strict=False
        ):
            _picture(axes, reference_image(int(reference)), CORRECT if same else WRONG)
            name = _short(sets.name_of(sets.references.labels[reference]))
            title = f"{name}\n{distance:.3f}"
            axes.set_title(title, fontsize=7, pad=2, parse_math=False)
    figure.subplots_adjust(hspace=0.5, wspace=0.12)
    return figure


def _picture(axes, image: np.ndarray, color: str | None) -> None:
    axes.set_axis_on()
    if image.shape[2] == 1:
        axes.imshow(image[:, :, 0], cmap="gray", vmin=0, vmax=255)
    else:
        axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=color or "#222", linewidth=2.5 if color else 0.8)


def _short(name: str, length: int = 13) -> str:
    """The two ends of a long name, since names of classes often begin alike.

    >>> _short("armenian-small-letter-ayb")
    'arme…tter-ayb'
    """
    if len(name) <= length:
        return name
    first = (length - 1) * 2 // 5
    return f"{name[:first]}\u2026{name[first + 1 - length :]}"


def plane(
    embeddings: Float[np.ndarray, "n dim"],
    labels: Int[np.ndarray, " n"],
    names: Sequence[str],
) -> "Figure":
    """Rows on the two directions in which they vary most; some classes have a colour."""
    figure = new_figure(figsize=(7, 5))
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    counts = np.bincount(labels, minlength=len(names))
    colored = np.sort(
        rng.permutation(np.flatnonzero(counts == counts.max()))[:_NUM_COLORED]
    )
    if len(colored) < _NUM_COLORED:
        colored = np.argsort(-counts, kind="stable")[:_NUM_COLORED]
    rows = np.flatnonzero(np.isin(labels, colored))
    others = rng.permutation(np.flatnonzero(~np.isin(labels, colored)))[:_MOST_DRAWN]
    rows = rng.permutation(rows)[:_MOST_DRAWN]
    drawn = np.concatenate([others, rows])
    centred = embeddings[drawn] - embeddings[drawn].mean(axis=0, keepdims=True)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    places = centred @ directions[:2].T
    if places.shape[1] == 1:
        places = np.pad(places, ((0, 0), (0, 1)))
    grey = places[: len(others)]
    axes.scatter(grey[:, 0], grey[:, 1], s=5, color="#ddd", label="other classes")
    for number, place in enumerate(colored):
        at = places[len(others) :][labels[rows] == place]
        axes.scatter(
            at[:, 0], at[:, 1], s=12, color=f"C{number}", label=_short(names[place], 28)
        )
    share = np.sum(values[:2] ** 2) / max(np.sum(values**2), 1e-30)
    axes.set(xticks=[], yticks=[], xlabel=f"{share:.0%} of the variance is in this plane")
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    without_frame(axes, "left", "bottom")
    return figure
