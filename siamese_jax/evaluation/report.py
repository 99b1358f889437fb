"""The terminal table, the JSON file and the page of `siamese-jax evaluate`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from siamese_jax._page import Cell, Section, Table, distance_histogram, page
from siamese_jax.evaluation import pictures
from siamese_jax.evaluation.figures import Figure
from siamese_jax.evaluation.files import ImageFn
from siamese_jax.evaluation.neighbours import Answer, Ranked
from siamese_jax.evaluation.sets import Sets
from siamese_jax.evaluation.verified import Verified
from siamese_jax.evaluation.whole import Evaluated

Groups = Mapping[str, Mapping[str, Figure]]


def table_text(groups: Groups) -> str:
    """All figures as text: value, interval, mean over classes, or why there is none.

    >>> print(table_text({"retrieval": {"map": Figure(0.5, 0.25, 0.75, macro=0.5)}}))
    retrieval
      map  0.5000 (0.2500 to 0.7500)  over classes 0.5000
    """
    width = max(len(name) for figures in groups.values() for name in figures)
    lines = []
    for group, figures in groups.items():
        lines.append(group)
        for name, found in figures.items():
            macro = found.macro
            over = "" if macro is None else f"  over classes {_number(macro)}"
            lines.append(f"  {name:<{width}}  {_value(found)}{over}")
    return "\n".join(lines)


def _value(found: Figure) -> str:
    if found.value is None:
        return f"none: {found.why}"
    return _number(found.value) + ((found.low is not None and f" {_interval(found)}") or "")


def _interval(found: Figure) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"({_number(found.low)} to {_number(found.high)})"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


# JSON -----------------------------------------------------------------------------------


def json_text(
    *,
    groups: Groups,
    settings: Mapping[str, Any],
    sizes: Mapping[str, int],
    notes: Sequence[str],
    found: Evaluated | None,
    lists: Mapping[str, Verified],
) -> str:
    """All figures as JSON, with null for what has no value, and some of the curves."""
    content: dict[str, Any] = {
        "settings": dict(settings),
        "sizes": dict(sizes),
        "figures": {
            group: {name: _as_json(figure) for name, figure in figures.items()}
            for group, figures in groups.items()
        },
        "thresholds_at_far": {name: of.thresholds for name, of in lists.items()},
        "notes": list(notes),
    }
    if found is not None:
        ranked = found.ranked
        content["worst_classes"] = [of._asdict() for of in ranked.worst]
        content["recall_at_k"] = _by_cutoff(ranked, ranked.recall)
        content["precision_at_k"] = _by_cutoff(ranked, ranked.precision)
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _as_json(figure: Figure) -> dict[str, Any]:
    """A figure without the parts that it has not; the value is there or null."""
    parts = figure._asdict()
    return {name: x for name, x in parts.items() if name == "value" or x is not None}


def _by_cutoff(ranked: Ranked, values: np.ndarray) -> dict[str, float | None]:
    return {
        str(k): None if np.isnan(value) else float(value)
        for k, value in zip(ranked.cutoffs, values, strict=True)
    }


# The page -------------------------------------------------------------------------------


def page_text(
    *,
    groups: Groups,
    settings: Mapping[str, Any],
    sizes: Mapping[str, int],
    notes: Sequence[str],
    sets: Sets | None,
    found: Evaluated | None,
    lists: Mapping[str, Verified],
    images: tuple[ImageFn, ImageFn] | None,
) -> str:
    """The page: figures, then curves, answers and classes.

    Args:
      groups: Figures by group and name.
      settings: What was asked for.
      sizes: Numbers of rows, queries and so on.
      notes: Sentences on what was limited.
      sets: The embeddings, if there are any.
      found: What they gave.
      lists: What the pairs gave, all of them or those of a list, by their name.
      images: Functions that give the images of queries and of references.
    """
    sections: list[Section] = []
    if found is not None and sets is not None:
        sections += _answer_sections(sets, found.ranked, images)
        sections += _class_sections(found.ranked)
    sections += _pair_sections(lists)
    if found is not None and sets is not None:
        sections += _embedding_sections(sets, groups)
    facts = ", ".join(f"{_number(number)} {name[4:]}" for name, number in sizes.items())
    return page(
        "Evaluation of embeddings",
        _figure_table(groups),
        sections,
        remarks=[f"{facts.replace('_', ' ')}.", *notes],
        details=("Settings", json.dumps(dict(settings), indent=2)),
    )


def _figure_table(groups: Groups) -> Table:
    rows: list[list[Cell]] = []
    for group, figures in groups.items():
        rows.append([Cell(group)])
        for name, found in figures.items():
            if found.value is None:
                rows.append(
                    [Cell(name), Cell("none", "number"), Cell(found.why or "", "why")]
                )
                continue
            macro = "" if found.macro is None else _number(found.macro)
            values = (_number(found.value), _interval(found), macro)
            rows.append([Cell(name), *(Cell(text, "number") for text in values)])
    titles = ("value", "95 % interval", "mean over classes")
    return Table([Cell("figure"), *(Cell(title, "number") for title in titles)], rows)


def _answer_sections(
    sets: Sets, ranked: Ranked, images: tuple[ImageFn, ImageFn] | None
) -> list[Section]:
    kinds = {
        "Neighbours, right": [answer for answer in ranked.answers if answer.same[0]],
        "Neighbours, wrong": [answer for answer in ranked.answers if not answer.same[0]],
    }
    sections = []
    for title, shown in kinds.items():
        if not shown:
            continue
        note = (
            "Random queries whose nearest reference is "
            f"{'of' if title.endswith('right') else 'not of'} their class. Each is "
            "followed by its nearest references, the nearest first, with their distances; "
            "those of its class are green."
        )
        content = (
            _answer_table(shown, sets)
            if images is None
            else pictures.answers(shown, sets, *images)
        )
        sections.append(Section(title, note, content))
    return sections


def _answer_table(shown: Sequence[Answer], sets: Sets) -> Table:
    rows = []
    for answer in shown:
        name = sets.name_of(sets.queries.labels[answer.query])
        row = [Cell(f"row {answer.query}: {name}")]
        for reference, distance, same in zip(
            answer.neighbours[:5], answer.distances, answer.same, strict=False
        ):
            name = sets.name_of(sets.references.labels[reference])
            text = f"row {reference}: {name} ({distance:.3f})"
            row.append(Cell(text, "right" if same else "wrong"))
        rows.append(row)
    width = max(map(len, rows))
    headings = ["query", *(f"nearest {k}" for k in range(1, width))]
    return Table([Cell(text) for text in headings], rows)


def _class_sections(ranked: Ranked) -> list[Section]:
    sections = [
        Section(
            "Right answers among the k nearest",
            "Recall at k is the share of queries with one of their class among the k "
            "nearest. Precision at k is the share of the k nearest that are of it.",
            pictures.match_curves(ranked.cutoffs, ranked.recall, ranked.precision),
        )
    ]
    if not ranked.worst:
        return sections
    note = "Share of the queries of a class whose nearest reference is of the class."
    sections.append(
        Section("Classes", note, pictures.class_histogram(ranked.class_precision))
    )
    titles = ("queries", "precision at 1", "MAP@R")
    headings = [Cell("class"), *(Cell(title, "number") for title in titles)]
    rows = []
    for of in ranked.worst:
        values = (str(of.num_queries), f"{of.precision_at_1:.3f}", f"{of.map_at_r:.3f}")
        cells = [Cell(text, "number") for text in values]
        rows.append([Cell(of.name), *cells, Cell(of.taken_for or "")])
    table = Table([*headings, Cell("most often taken for")], rows)
    note = "The classes with the smallest precision at 1, then MAP@R."
    return [*sections, Section("Worst classes", note, table)]


def _pair_sections(lists: Mapping[str, Verified]) -> list[Section]:
    if not lists:
        return []
    note = (
        "Both errors at every threshold. In the DET curve, the axes are normal deviates, "
        "and the line marks equal error rates."
    )
    curves = {name: of.det for name, of in lists.items()}
    sections = [Section("Same or different?", note, pictures.error_curves(curves))]
    for name, of in lists.items():
        distances, same, _, counts = of.pairs
        counts = np.ones(len(same)) if counts is None else counts
        picture = distance_histogram(distances, same, float("nan"), counts=counts)
        note = "Same and different pairs have the same area."
        sections.append(Section(f"Distances of {name}", note, picture))
    calibrated = {
        name: of.calibration for name, of in lists.items() if of.calibration is not None
    }
    if calibrated:
        note = (
            "Probabilities of logistic regression on the distance, fitted to one part of "
            "the pairs and judged on the others, where same and different pairs weigh "
            "alike. A larger point stands for more pairs."
        )
        sections.append(Section("Calibration", note, pictures.calibration(calibrated)))
    return sections


def _embedding_sections(sets: Sets, groups: Groups) -> list[Section]:
    sections = []
    few_shot = {group: of for group, of in groups.items() if group.startswith("few-shot")}
    known = [of for figures in few_shot.values() for of in figures.values()]
    if any(of.value is not None for of in known):
        note = (
            "Accuracy of random tasks, with 95 % intervals. The yellow classifiers are "
            "transductive: they see all queries of a task together."
        )
        sections.append(Section("A few examples", note, pictures.accuracy_bars(few_shot)))
    if not sets.multi_label:
        x, labels = sets.queries.embeddings, sets.queries.labels
        note = "The two directions in which the rows vary most (principal components)."
        sections.append(
            Section("Embeddings in the plane", note, pictures.plane(x, labels, sets.names))
        )
    return sections
