"""The command `siamese-jax evaluate`: its flags, and the order of its work."""

import inspect
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from siamese_jax._extras import import_extra
from siamese_jax._files import check_new_folder, write_whole
from siamese_jax._names import shown
from siamese_jax.errors import UserError

if TYPE_CHECKING:  # imported in the functions, so that --help is quick
    from siamese_jax.evaluation import Pairs, Sets, Verified
    from siamese_jax.evaluation.files import ImageFn


def evaluate(
    *,
    out: pathlib.Path,
    embeddings: pathlib.Path | None = None,
    labels: pathlib.Path | None = None,
    ids: pathlib.Path | None = None,
    reference_embeddings: pathlib.Path | None = None,
    reference_labels: pathlib.Path | None = None,
    reference_ids: pathlib.Path | None = None,
    images: pathlib.Path | None = None,
    reference_images: pathlib.Path | None = None,
    pairs: pathlib.Path | None = None,
    distance: Literal["euclidean", "cosine"] = "euclidean",
    max_queries: int | None = None,
    num_tasks: int = 600,
    seed: int = 0,
) -> None:
    """Tell how good embeddings are, by all figures that apply to them.

    Embeddings are a NumPy file [rows, dimensions] of any model, such as the one
    that `siamese-jax embed` writes, and labels a NumPy file with an integer or
    a string for each row. The figures are those of retrieval (precision at 1,
    recall at k, MAP@R, ...), of verification over all pairs (equal error rate,
    TAR at FAR, costs, calibration), of few-shot tasks, of clusters (with
    scikit-learn), and of the health of embeddings. Intervals of retrieval take
    the classes to be a random sample, those of few-shot accuracies the tasks.

    The table is printed and written to the folder --out: evaluation.json has
    the figures, evaluation.html shows them with curves, neighbours right and
    wrong, and the worst classes. A figure that means nothing for these
    embeddings is null there, with the reason.

    Each row is searched in all other rows, or in the references if there are
    any. Rows of the same id, such as two crops of one photo, are not compared,
    and few-shot tasks take one of them.
    With many rows, only random ones are compared with all others, so that there
    are a thousand million comparisons; --max-queries sets another number.

    --pairs is for the lists of verification benchmarks: a CSV file with the
    columns a, b, same, where a and b are numbers of rows from 0 and same is 1
    or 0, or with the columns distance, same, which needs no embeddings. A column
    fold, as in the ten folds of Labeled Faces in the Wild, gives the accuracy
    of each fold at the threshold of the others.

    Args:
      out: A folder for the results, which must be new or empty.
      embeddings: A NumPy file, one row for each example.
      labels: A NumPy file, one integer or string for each row, or a row of True and False
        for several labels. The JSON file that `siamese-jax embed` writes, or another list
        of image files, stands for the names of their folders.
      ids: A NumPy file, one integer or string for each row: what the row shows.
      reference_embeddings: Rows to search, if these are other ones.
      reference_labels: Their labels.
      reference_ids: Their ids.
      images: Images in the order of the rows, to show neighbours: a NumPy file, a folder,
        a text file with one path a line, or the JSON file of `siamese-jax embed`.
      reference_images: Images of the references.
      pairs: A CSV file of pairs.
      distance: The distance of two embeddings.
      max_queries: The largest number of rows that are compared with all others.
      num_tasks: Number of few-shot tasks of each kind.
      seed: Seed of all that is drawn at random.

    Raises:
      UserError: If a flag makes no sense, or a file cannot be read or does not fit.
    """
    flags = dict(locals())
    check_new_folder("--out", out)
    _check_flags(flags)
    import_extra("matplotlib.figure")  # before any work is done

    from siamese_jax.evaluation import report

    sets = _read_sets(flags)
    shown_images = None if sets is None else _read_images(flags, sets)
    listed = None if pairs is None else _read_pairs(flags, sets)
    judged = _judge(flags, sets, listed)
    judged["settings"] = {name: _plain(value) for name, value in flags.items()}
    print(report.table_text(judged["groups"]))
    for note in judged["notes"]:
        print(note)
    out.mkdir(exist_ok=True)
    write_whole(out / "evaluation.json", report.json_text(**judged))
    print(f"{out / 'evaluation.json'}: the figures")
    # an image that cannot be read must not cost the figures
    page = report.page_text(sets=sets, images=shown_images, **judged)
    write_whole(out / "evaluation.html", page)
    print(f"{out / 'evaluation.html'}: a page with curves and neighbours")


def _judge(
    flags: Mapping[str, Any], sets: "Sets | None", listed: "_Listed | None"
) -> dict[str, Any]:
    """All figures, and what tables and pages show besides: the arguments of both."""
    from siamese_jax.evaluation import evaluate_sets, verify

    groups: dict[str, Any] = {}
    lists: dict[str, Verified] = {}
    notes: list[str] = []
    sizes: dict[str, int] = {}
    found = None
    given = None if listed is None else verify(listed.pairs, folds=listed.folds)
    if isinstance(given, str):
        raise UserError(f"--pairs: {flags['pairs']} cannot be judged: {given}")
    if sets is not None:
        options = ("distance", "max_queries", "num_tasks", "seed")
        found = evaluate_sets(
            sets,
            **{name: flags[name] for name in options},
            progress_fn=lambda part: print(f"{part} ...", flush=True),
        )
        groups, notes, sizes = dict(found.groups), list(found.notes), dict(found.sizes)
        if found.verified is not None:
            lists["all pairs"] = found.verified
    if listed is not None and given is not None:
        name = shown(flags["pairs"].name)
        groups[f"verification of {name}"], lists[name] = given.figures, given
        sizes |= {f"num_listed_{kind[4:]}": n for kind, n in given.sizes.items()}
        notes += listed.notes
    return {
        "groups": groups,
        "lists": lists,
        "notes": notes,
        "sizes": sizes,
        "found": found,
    }


def _plain(value: Any) -> Any:
    return shown(str(value)) if isinstance(value, pathlib.Path) else value


_TOGETHER = (
    ("labels", "embeddings"),
    ("embeddings", "labels"),
    ("ids", "labels"),
    ("images", "labels"),
    ("reference_embeddings", "labels"),
    ("reference_labels", "reference_embeddings"),
    ("reference_embeddings", "reference_labels"),
    ("reference_ids", "reference_embeddings"),
    ("reference_images", "reference_embeddings"),
    ("reference_images", "images"),
    ("max_queries", "labels"),
    ("num_tasks", "labels"),
    ("distance", "embeddings"),
)


def _check_flags(flags: Mapping[str, Any]) -> None:
    """Refuses flags that need others or have no effect, and numbers out of their range."""
    from siamese_jax.evaluation.whole import check_numbers

    given = _given(flags)
    for name, other in _TOGETHER:
        both = "pairs" in given and (name, other) == ("embeddings", "labels")
        if name in given and other not in given and not both:
            raise UserError(f"{_flag(name)} needs {_flag(other)}")
    if {"images", "reference_embeddings"} <= given and "reference_images" not in given:
        raise UserError("--images needs --reference-images beside --reference-embeddings")
    if flags["embeddings"] is None and flags["pairs"] is None:
        raise UserError("--embeddings and --labels are needed, or --pairs")
    check_numbers(flags, name_fn=_flag)


def _given(flags: Mapping[str, Any]) -> set[str]:
    """The names of the flags that differ from their defaults."""
    parameters = inspect.signature(evaluate).parameters
    return {name for name, value in flags.items() if value != parameters[name].default}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# Input ----------------------------------------------------------------------------------


def _read_sets(flags: Mapping[str, Any]) -> "Sets | None":
    """The embeddings with their labels, or None if there are no labels."""
    from siamese_jax.evaluation import make_sets
    from siamese_jax.evaluation.files import read_array, read_labels

    def read(name: str) -> Any:
        path, labels = flags[name], name.endswith("labels")
        if path is None:
            return None
        return (read_labels if labels else read_array)(_flag(name), path)

    if flags["labels"] is None:
        return None
    return make_sets(
        read("embeddings"),
        read("labels"),
        ids=read("ids"),
        references=read("reference_embeddings"),
        reference_labels=read("reference_labels"),
        reference_ids=read("reference_ids"),
    )


def _read_images(
    flags: Mapping[str, Any], sets: "Sets"
) -> "tuple[ImageFn, ImageFn] | None":
    """Functions that give the images of queries and of references, if there are any."""
    from siamese_jax.evaluation.files import read_images

    found = []
    for name, of in (("images", sets.queries), ("reference_images", sets.references)):
        path = flags["images" if sets.itself else name]
        if path is None:
            return None
        found.append(read_images(_flag(name), path, len(of.embeddings)))
    return found[0], found[1]


class _Listed(NamedTuple):
    """The pairs of a list, with the fold of each if there are any, and remarks."""

    pairs: "Pairs"
    folds: Any
    notes: list[str]


def _read_pairs(flags: Mapping[str, Any], sets: "Sets | None") -> _Listed:
    """The pairs of a list with their distances."""
    import numpy as np

    from siamese_jax.evaluation import Pairs
    from siamese_jax.evaluation.distance import DISTANCES
    from siamese_jax.evaluation.files import read_array, read_pairs
    from siamese_jax.evaluation.pairs import listed_pairs
    from siamese_jax.evaluation.sets import checked_embeddings

    path = flags["pairs"]
    x = None if sets is None else sets.queries.embeddings
    if x is None and flags["embeddings"] is not None:
        array = read_array("--embeddings", flags["embeddings"])
        x = checked_embeddings("embeddings", array)
    found = read_pairs(path, None if x is None else len(x))
    if found.examples is None and x is not None and sets is None:
        raise UserError(f"--embeddings: {path} has distances; embeddings are not used")
    if found.folds is not None and sets is None and "seed" in _given(flags):
        raise UserError(f"--seed: {path} has folds; nothing is drawn at random")
    distances = found.distances
    if found.examples is not None and x is not None:
        distances = listed_pairs(
            x, found.examples, distance=DISTANCES[flags["distance"]]
        ).astype(np.float64)
    parts, notes, classes = found.folds, [], None
    if sets is not None and not sets.multi_label and found.examples is not None:
        classes = sets.queries.labels[found.examples]
        wrong = np.count_nonzero(found.same != (classes[0] == classes[1]))
        if wrong:
            notes.append(
                f"Of {wrong:,} pairs of {shown(path.name)} the labels say the opposite."
            )
    if parts is None:
        parts = np.random.default_rng(flags["seed"]).integers(0, 2, len(found.same))
        notes.append(
            f"The pairs of {shown(path.name)} have no folds: they are calibrated on random "
            "halves of the pairs, which may share examples."
        )
    elif classes is not None:
        notes += _shared_identities(path, parts, classes)
    assert distances is not None  # of the list, or of its rows
    return _Listed(Pairs(distances, found.same, parts), found.folds, notes)


def _shared_identities(path: pathlib.Path, folds: Any, identities: Any) -> list[str]:
    from siamese_jax.verification import check_disjoint_folds

    try:
        check_disjoint_folds(folds, identities)
    except ValueError:
        return [
            f"Classes are in several folds of {shown(path.name)}, which makes accuracies "
            "too high."
        ]
    return []
