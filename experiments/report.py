"""report.html: one self-contained page of pictures of a run."""

import base64
import html
import io
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.run import RunConfig, read_log
from siamese_jax.verification import RocCurve

if TYPE_CHECKING:  # imported where needed: learning needs none
    from matplotlib.figure import Figure

_RIGHT, _WRONG, _INK, _SOFT = "#2a7f4f", "#c0392b", "#26435f", "#9fb3c8"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td { padding: .2rem .9rem .2rem 0; }
td.number { font-variant-numeric: tabular-nums; text-align: right; }
img { max-width: 100%; } p.note { color: #555; max-width: 46rem; }
details { margin-top: 2rem; color: #555; } pre { overflow-x: auto; }
"""


class Section(NamedTuple):
    """A heading, a sentence that says what to look for, and a picture."""

    title: str
    note: str
    figure: "Figure"


def write_report(
    config: RunConfig, title: str, metrics: dict[str, float], sections: Sequence[Section]
) -> None:
    """Writes the page: a table of figures, the sections, the configuration."""
    rows = "\n".join(
        f'<tr><td>{html.escape(name)}</td><td class="number">{value:.4f}</td></tr>'
        for name, value in metrics.items()
    )
    parts = "\n".join(
        f"<h2>{html.escape(section.title)}</h2>\n"
        f'<p class="note">{html.escape(section.note)}</p>\n'
        f'<img alt="{html.escape(section.title)}" src="{_as_png(section.figure)}">'
        for section in sections
    )
    asked = json.dumps(json.loads((config.directory / "config.json").read_text()), indent=2)
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n<table>{rows}</table>\n{parts}\n"
        f"<details><summary>Configuration</summary><pre>{html.escape(asked)}</pre></details>"
        "</html>\n"
    )
    (config.directory / "report.html").write_text(page, encoding="utf-8")


def _as_png(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(**options: Any) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(**options)


# Pictures -------------------------------------------------------------------------------


def curves(
    workdir: pathlib.Path, names: Sequence[str] = ("loss",), *, log: str = "metrics.jsonl"
) -> "Figure":
    """Metrics of a log over the steps, with a running mean."""
    logged = read_log(workdir, log)
    figure = _figure(figsize=(4.2 * len(names), 3))
    for axes, name in zip(
        figure.subplots(1, len(names), squeeze=False)[0], names, strict=True
    ):
        steps, values = logged["step"], logged[name]
        window = max(1, len(values) // 50)
        means = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps, values, color=_SOFT, linewidth=0.6)
        axes.plot(steps[window - 1 :], means, color=_INK)
        axes.set(
            xlabel="step", title=name, ylim=(0, float(np.quantile(values, 0.99)) * 1.05)
        )
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def roc(curves_by_name: dict[str, RocCurve]) -> "Figure":
    """One or more ROC curves."""
    figure = _figure(figsize=(4.2, 4))
    axes = figure.subplots()
    for (name, curve), color in zip(
        curves_by_name.items(), (_INK, _SOFT, _RIGHT, _WRONG), strict=False
    ):
        axes.plot(curve.false_match_rate, curve.true_match_rate, color=color, label=name)
    axes.plot([0, 1], [1, 0], color="#ddd", linewidth=0.8, zorder=0)  # equal errors
    axes.set(xlabel="different pairs called the same", ylabel="same pairs called the same")
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def distance_histogram(
    distances: np.ndarray, same: np.ndarray, threshold: float
) -> "Figure":
    """Distances of same and of different pairs, with the threshold between."""
    figure = _figure(figsize=(5.5, 3))
    axes = figure.subplots()
    low, high = min(0.0, float(np.min(distances))), float(np.max(distances))
    bins = np.linspace(low, high + 1e-9, 60).tolist()
    for kind, color, label in ((True, _RIGHT, "same"), (False, _WRONG, "different")):
        axes.hist(distances[same == kind], bins, alpha=0.6, color=color, label=label)
    axes.axvline(threshold, color="#222", linewidth=1, label="threshold")
    axes.set(xlabel="distance", yticks=[])
    axes.legend(frameon=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def pair_grid(
    images: np.ndarray,
    distances: np.ndarray,
    same: np.ndarray,
    threshold: float,
    *,
    cmap: str = "gray_r",
) -> "Figure":
    """Pairs one above the other, their distance, green where judged rightly."""
    num = len(distances)
    figure = _figure(figsize=(0.95 * num, 2.3))
    for column, axes in enumerate(figure.subplots(1, num)):
        right = (distances[column] <= threshold) == same[column]
        axes.imshow(np.concatenate(list(images[:, column, :, :, 0])), cmap=cmap)
        axes.set_title(f"{distances[column]:.2f}", color=_RIGHT if right else _WRONG)
        axes.set_xlabel("same" if same[column] else "diff.")
        axes.set(xticks=[], yticks=[])
    return figure


class Answer(NamedTuple):
    """A query, the candidates from nearest to farthest, their distances, and the truth."""

    query: np.ndarray
    candidates: np.ndarray
    distances: np.ndarray
    right: np.ndarray


def answer_grid(answers: Sequence[Answer]) -> "Figure":
    """Each row: a query, then its nearest candidates; the right one is framed green."""
    num_candidates = len(answers[0].candidates)
    figure = _figure(figsize=(0.85 * (num_candidates + 1), 0.95 * len(answers)))
    grid = figure.subplots(len(answers), num_candidates + 1, squeeze=False)
    for row, answer in zip(grid, answers, strict=True):
        row[0].imshow(answer.query[:, :, 0], cmap="gray_r")
        row[0].set_ylabel("query", rotation=0, ha="right", va="center", fontsize=8)
        for place, axes in enumerate(row[1:]):
            axes.imshow(answer.candidates[place, :, :, 0], cmap="gray_r")
            color = _RIGHT if answer.right[place] else _WRONG if place == 0 else "#ccc"
            for spine in axes.spines.values():
                spine.set(color=color, linewidth=2.5 if color != "#ccc" else 0.8)
            axes.set_title(f"{answer.distances[place]:.2f}", fontsize=7, pad=2)
        for axes in row:
            axes.set(xticks=[], yticks=[])
    figure.subplots_adjust(hspace=0.45)
    return figure


def embedding_map(embeddings: np.ndarray, images: np.ndarray, seed: int = 0) -> "Figure":
    """The images themselves, laid out in the plane by t-SNE of their embeddings."""
    from sklearn.manifold import TSNE

    figure = _figure(figsize=(8, 8))
    axes = figure.subplots()
    axes.set_axis_off()
    if np.ptp(embeddings, axis=0).max() < 1e-6:
        axes.set_title("All embeddings coincide: the net has collapsed.")
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
    """How often each class (rows) is taken for each other (columns)."""
    figure = _figure(figsize=(4.6, 4.2))
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Reds", vmin=0)
    figure.colorbar(picture, ax=axes, shrink=0.8, format=lambda share, _: f"{share:.0%}")
    ticks = np.arange(len(names))
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    return figure


def confusion_pairs(
    drawings: Sequence[tuple[np.ndarray, np.ndarray]], shares: Sequence[float]
) -> "Figure":
    """The most frequent confusions: a class, and what it is taken for."""
    figure = _figure(figsize=(0.95 * len(shares), 2.3))
    for axes, (truth, answer), share in zip(
        figure.subplots(1, len(shares), squeeze=False)[0], drawings, shares, strict=True
    ):
        axes.imshow(np.concatenate([truth[:, :, 0], answer[:, :, 0]]), cmap="gray_r")
        axes.set_title(f"{share:.0%}", fontsize=9)
        axes.set(xticks=[], yticks=[])
    return figure


def matches(
    queries: np.ndarray,
    nearest: np.ndarray,
    titles: Sequence[str],
    accepted: Sequence[bool],
) -> "Figure":
    """Queries above what they are nearest to; green where that is near enough."""
    num = len(titles)
    figure = _figure(figsize=(1.2 * max(num, 2), 3.2))
    for column, axes in enumerate(figure.subplots(1, num, squeeze=False)[0]):
        stacked = np.concatenate([queries[column], nearest[column]])
        gray = {"cmap": "gray"} if stacked.shape[2] == 1 else {}
        axes.imshow(stacked[:, :, 0] if gray else stacked, **gray)
        color = _RIGHT if accepted[column] else _WRONG
        axes.set_title(titles[column], color=color, fontsize=9)
        axes.set_xlabel("" if accepted[column] else "none of these", fontsize=8)
        axes.set(xticks=[], yticks=[])
    return figure
