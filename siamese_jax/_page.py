"""Self-contained HTML pages of pictures and tables, and pictures that several pages show.

Pictures are figures of matplotlib, which is imported when a picture is made.
"""

import base64
import html
import io
import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from siamese_jax._extras import import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CORRECT, WRONG, INK, PALE = "#2a7f4f", "#c0392b", "#26435f", "#9fb3c8"
LINES = (INK, PALE, CORRECT, WRONG, "#c28a1e")

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td { padding: .2rem .9rem .2rem 0; }
th { text-align: left; padding: .2rem .9rem .2rem 0; font-weight: 600;
     border-bottom: 1px solid #ccc; }
th.group { padding-top: 1.1rem; } th.number { text-align: right; }
td.number { font-variant-numeric: tabular-nums; text-align: right; }
td.right { color: #2a7f4f; } td.wrong { color: #c0392b; } td.why { color: #777; }
img { max-width: 100%; } p.note { color: #555; max-width: 46rem; }
details { margin-top: 2rem; color: #555; } pre { overflow-x: auto; }
"""


class Cell(NamedTuple):
    """A cell of a table: its text, and how it looks.

    Attributes:
      text: The text.
      kind: "", "number", "right", "wrong" or "why".
    """

    text: str
    kind: str = ""


class Table(NamedTuple):
    """A table.

    Attributes:
      headings: Texts of the first line.
      rows: The cells of the other lines. A line of one cell is a heading of those below.
    """

    headings: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]


class Section(NamedTuple):
    """A part of the page.

    Attributes:
      title: The heading.
      note: A sentence that says what the picture shows.
      content: The picture or the table.
    """

    title: str
    note: str
    content: "Figure | Table"


def page(
    title: str,
    table: Table,
    sections: Sequence[Section],
    *,
    remarks: Sequence[str] = (),
    details: tuple[str, str],
) -> str:
    """A page with everything in it, which loads nothing from elsewhere.

    Args:
      title: The heading of the page.
      table: The figures.
      sections: The pictures and further tables.
      remarks: Sentences about the figures, which stand above them.
      details: Heading and text of the last part, which is folded.
    """
    notes = "\n".join(f'<p class="note">{html.escape(remark)}</p>' for remark in remarks)
    parts = "\n".join(map(_section, sections))
    heading, text = map(html.escape, details)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n{notes}\n{_table(table)}\n{parts}\n"
        f"<details><summary>{heading}</summary><pre>{text}</pre></details></html>\n"
    )


def _section(section: Section) -> str:
    title, content = html.escape(section.title), section.content
    shown = (
        _table(content)
        if isinstance(content, Table)
        else f'<img alt="{title}" src="{_as_png(content)}">'
    )
    return f'<h2>{title}</h2>\n<p class="note">{html.escape(section.note)}</p>\n{shown}'


def _table(table: Table) -> str:
    width = max((len(row) for row in [table.headings, *table.rows]), default=1)
    lines = [_cells("th", table.headings)] if table.headings else []
    for row in table.rows:
        if len(row) == 1 and width > 1:
            text = html.escape(row[0].text)
            lines.append(f'<th class="group" colspan="{width}">{text}</th>')
        else:
            lines.append(_cells("td", row))
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>{rows}</table>"


def _cells(tag: str, row: Iterable[Cell]) -> str:
    return "".join(
        f"<{tag}{kind and f' class={chr(34)}{kind}{chr(34)}'}>{html.escape(text)}</{tag}>"
        for text, kind in row
    )


def _as_png(figure: "Figure") -> str:
    """Returns a picture as the address of an image, with the image in it."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# Pictures -------------------------------------------------------------------------------


def new_figure(**options: Any) -> "Figure":
    """An empty figure, which belongs to no window."""
    return import_extra("matplotlib.figure").Figure(**options)


def without_frame(axes: "Axes", *sides: str) -> None:
    """Hides the frame at the top and the right, and at other sides."""
    axes.spines[["top", "right", *sides]].set_visible(False)


def roc(curves_by_name: Mapping[str, Any]) -> "Figure":
    """Plots one or more ROC curves."""
    figure = new_figure(figsize=(4.2, 4))
    axes = figure.subplots()
    lines = zip(curves_by_name.items(), itertools.cycle(LINES), strict=False)
    for (name, curve), color in lines:
        axes.plot(curve.false_match_rate, curve.true_match_rate, color=color, label=name)
    axes.plot([0, 1], [1, 0], color="#ddd", linewidth=0.8, zorder=0)  # equal errors
    axes.set(xlabel="different pairs called the same", ylabel="same pairs called the same")
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False)
    without_frame(axes)
    return figure


def distance_histogram(
    distances: np.ndarray,
    same: np.ndarray,
    threshold: float,
    *,
    counts: np.ndarray | None = None,
) -> "Figure":
    """Plots the finite distances of same and of different pairs, and the threshold.

    Args:
      distances: Distance of each pair, or of pairs that are counted together.
      same: Whether the two are of one class.
      threshold: The threshold. NaN is not shown.
      counts: Number of pairs that each distance stands for. With them, both kinds have the
        same area. Without them, each is as large as its number of pairs.
    """
    figure = new_figure(figsize=(5.5, 3))
    axes = figure.subplots()
    finite = np.isfinite(distances)
    distances, same = distances[finite], same[finite]
    low = float(np.min(distances, initial=0.0))
    high = float(np.max(distances, initial=low))
    bins = np.linspace(low, high + 1e-9, 60).tolist()
    for kind, color, label in ((True, CORRECT, "same"), (False, WRONG, "different")):
        of_kind = same == kind
        weights = (
            None
            if counts is None
            else counts[finite][of_kind] / counts[finite][of_kind].sum()
        )
        axes.hist(
            distances[of_kind], bins, alpha=0.6, color=color, label=label, weights=weights
        )
    if not math.isnan(threshold):
        axes.axvline(threshold, color="#222", linewidth=1, label="threshold")
    axes.set(xlabel="distance", yticks=[])
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)  # beside the bars
    without_frame(axes, "left")
    return figure
