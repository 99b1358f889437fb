"""The command `siamese-jax`: a saved model put to use on image files.

    siamese-jax verify --model DIR A B
        Are the images A and B of one class?

    siamese-jax identify --model DIR --gallery FOLDER --queries FILE...
        Which class of a gallery does each image belong to, if any?

    siamese-jax embed --model DIR --out E.npy FILE_OR_FOLDER...
        The embeddings of images, for other programs.

    siamese-jax evaluate --embeddings E.npy --labels L.npy --out FOLDER
        How good embeddings are, by all usual figures: a table and a page.

DIR is a folder that `siamese_jax.model.save_model` has written.
`siamese-jax COMMAND --help` explains a command and its flags.
"""

import inspect
import io
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, Union

from siamese_jax._evaluate_command import evaluate
from siamese_jax._extras import import_extra
from siamese_jax._files import check_output as check_output
from siamese_jax._files import checksum, open_whole, write_json
from siamese_jax._names import print_any_name, shown
from siamese_jax.errors import UserError

if TYPE_CHECKING:  # imported in the functions, so that --help is quick
    from siamese_jax.identification import Identification
    from siamese_jax.model import Model
    from siamese_jax.verification import Calibration

PROGRAM = "siamese-jax"
# Below this number of classes a calibration comes with a warning. Where .1 of the strangers
# to 10 letters was asked, all pairs of 2 other letters let in .73, of 3: .46, of 5: .32, of
# 10: .18, of 20: .12.
FEW_CLASSES = 20


def main(*, arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; the arguments are those of this process by default.

    An error that the user can put right is shown as one line, `error: ...`, on the standard
    error stream.

    Raises:
      SystemExit: With status 1 after such an error, with 2 if the flags are wrong, with 0
        after `--help`.

    >>> main(arguments=["verify", "--unknown"])
    Traceback (most recent call last):
    SystemExit: 2
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    print_any_name()
    try:
        run = parse(arguments)
        run()
    except (UserError, OSError) as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None


# The commands: their parameters are the flags, their docstrings the help ----------------


def verify(
    a: pathlib.Path,
    b: pathlib.Path,
    /,
    *,
    model: pathlib.Path,
    json: pathlib.Path | None = None,
) -> None:
    """Tell whether two images are of one class.

    Prints the distance of the two images, the threshold up to which two images
    are called the same, and the probability that they are, which is at least
    0.5 if and only if they are called the same. The threshold and the
    probability come from the pairs of images that the model was calibrated on,
    and assume that same and different are as frequent as there. A calibration
    on fewer than 20 classes comes with a warning.

    Args:
      a: An image file.
      b: Another image file.
      model: The folder of the model.
      json: A file for the answer.

    Raises:
      UserError: If the model or an image cannot be read, the model has no calibration, or
        the answer cannot be written.
    """
    check_output("--json", json)
    _print_remarks([], [a, b])
    loaded = _load(model)
    found = loaded.verify(a, b)
    if json is not None:
        write_json(json, found._asdict())
    probability = found.probability_same
    if not found.same:
        probability = min(probability, 0.499)  # not rounded up to 0.500
    print(
        f"{'same' if found.same else 'different'}: distance {found.distance:.4f}, "
        f"threshold {found.threshold:.4f}, probability of the same {probability:.3f}"
    )
    _warn_if_few(
        loaded.calibration, "the answer and the probability may be wrong more often"
    )


def identify(
    *,
    model: pathlib.Path,
    gallery: pathlib.Path,
    queries: tuple[pathlib.Path, ...],
    labelled: bool = False,
    false_accept_rate: float | None = None,
    picture: pathlib.Path | None = None,
    json: pathlib.Path | None = None,
) -> None:
    """Name the nearest class of a gallery for each query, or none of these.

    The gallery is a folder with one sub-folder for each class, which holds one
    or more images. The classes need not be ones that the model was trained on.
    The answer to a query is the class of the nearest gallery image, or "none
    of these" if even that is farther away than the threshold.

    The threshold lets in at most the share --false-accept-rate of strangers,
    whose classes are not in the gallery, on average over galleries. A gallery
    of 2 / rate - 1 classes or more (19 for .1, 199 for .01) shows it itself:
    each of its classes plays strangers to the others. For a smaller gallery the
    threshold comes from the pairs of images that the model was calibrated on;
    a calibration on fewer than 20 classes comes with a warning. If the images
    are not enough to tell the rate, the smallest that they can tell is taken;
    if the rate was asked for, every answer is "none of these" instead. A
    warning says so.

    strangers_let_in is the share of the gallery images that match another class
    when their own class is left out. With --labelled, queries of classes that
    are not in the gallery are strangers. A query that is a file of the gallery,
    or a copy of one, is named as such.

    Args:
      model: The folder of the model.
      gallery: A folder with one sub-folder for each class.
      queries: Image files, and folders of images.
      labelled: Take the folder of each query for its class, and count the right answers.
      false_accept_rate: Share of strangers that may be taken for a class of the gallery.
        By default 0.1, or the smallest share that the images are enough to tell.
      picture: A PNG or JPEG file for the first 12 queries above their nearest images.
      json: A file for the answers.

    Raises:
      FileNotFoundError: If the gallery does not exist.
      UserError: If a flag makes no sense, the model, the gallery or an image cannot be
        read, the model has no calibration, or an answer cannot be written.
    """
    from siamese_jax.images import class_names, list_folder, list_images
    from siamese_jax.model import USUAL_RATE

    check_output("--json", json)
    check_output("--picture", picture, endings=(".png", ".jpg", ".jpeg"))
    if false_accept_rate is not None and not 0 < false_accept_rate < 1:
        raise UserError(f"--false-accept-rate must be in (0, 1); got {false_accept_rate}")
    asked = list_images(queries)
    if not asked:
        raise UserError("--queries: at least one image file is needed; got none")
    _check_files("--queries", asked)
    files = list_folder(gallery)
    _print_remarks([gallery, *queries], [*files, *asked])
    labels = class_names(files)
    if len(set(labels)) < 2:
        raise UserError(f"{gallery} has one class, {labels[0]}; two are needed")
    truth = _classes_of(asked, files) if labelled else None

    loaded = _load(model)
    found = loaded.identify(files, labels, asked, false_accept_rate=false_accept_rate)
    smallest = math.ceil(1000 * found.smallest_rate) / 1000
    if false_accept_rate is None and smallest > USUAL_RATE:
        _warn(
            f"the images are not enough to tell a rate of {USUAL_RATE:g}: at most "
            f"{smallest:g} of the strangers are let in instead; more classes in the "
            "gallery allow less"
        )
    answers = _answers(found, asked, labels, truth, _are_copies(asked, files))
    answers["picture"] = None if picture is None else shown(str(picture))
    if json is not None:
        write_json(json, answers)
    _print_answers(answers)
    if found.threshold_from is None:
        _warn(
            f"neither the {len(files)} images of the gallery nor the pairs that the model "
            f"was calibrated on are enough to tell a rate of {false_accept_rate:g}, so "
            f"that every answer is none of these; --false-accept-rate {smallest:g} or "
            "more works, and so do more classes"
        )
    if found.threshold_from != "gallery":
        _warn_if_few(
            loaded.calibration,
            "more images of the gallery's classes may come back as none of these, and more "
            "strangers be let in, than asked",
        )
    if picture is not None:
        nearest = [files[position] for position in found.nearest.positions]
        drawn = _draw(picture, asked, nearest, found)
        if json is not None and not drawn:
            write_json(json, answers | {"picture": None})


def embed(
    images: tuple[pathlib.Path, ...], /, *, model: pathlib.Path, out: pathlib.Path
) -> None:
    """Write the embeddings of images as a NumPy file.

    The file E.npy of --out holds a float32 array with one row for each image.
    E.json, which is written beside it, has the list of the image files in the
    order of the rows. A folder stands for all images in it and in its
    sub-folders.

    Args:
      images: Image files and folders.
      model: The folder of the model.
      out: The NumPy file to write; its name ends in .npy.

    Raises:
      UserError: If no image is given, the model or an image cannot be read, or the files
        cannot be written.
    """
    import numpy as np

    from siamese_jax.images import list_images

    check_output("--out", out, endings=(".npy",))
    list_file = out.with_suffix(".json")
    check_output("--out", list_file)
    files = list_images(images)
    if not files:
        raise UserError("at least one image file or folder is needed; got none")
    _check_files("images", files)
    _print_remarks(images, files)
    vectors = np.asarray(_load(model).embed(files), np.float32)
    with open_whole(out) as file:
        np.save(file, vectors)
    write_json(list_file, {"files": [shown(str(file)) for file in files]})
    print(f"{out}: {vectors.shape[0]} embeddings of {vectors.shape[1]} numbers")
    print(f"{list_file}: their image files")


COMMANDS: dict[str, Callable[..., None]] = {
    "verify": verify,
    "identify": identify,
    "embed": embed,
    "evaluate": evaluate,
}


# Flags ----------------------------------------------------------------------------------


def parse(arguments: Sequence[str], *, program: str = PROGRAM) -> Callable[[], None]:
    """The command that the arguments ask for, ready to run.

    Raises:
      SystemExit: With status 2 if the flags are wrong, with 0 after `--help`.
    """
    tyro = import_extra("tyro")
    asked = COMMANDS.get(arguments[0]) if arguments else None
    if {"-h", "--help"} & set(arguments):
        # tyro would join the lines of a description to paragraphs
        print(_description(asked))
    alternatives = tuple(
        Annotated[
            Any,
            tyro.conf.subcommand(
                name,
                constructor=_deferred(command),
                description="" if command is asked else _summary(command),
            ),
        ]
        for name, command in COMMANDS.items()
    )
    return tyro.cli(
        Union[alternatives],  # noqa: UP007, made of a tuple
        prog=program,
        description="",
        args=arguments,
        config=(
            tyro.conf.DisallowNone,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.PositionalMetavarFromFieldName,
        ),
    )


def _deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The command bound to its flags, so that no error of it happens inside tyro."""

    @wraps(command)
    def bind(*args: Any, **flags: Any) -> Callable[[], None]:
        return partial(command, *args, **flags)

    return bind


def _description(command: Callable[..., None] | None) -> str:
    text = inspect.getdoc(command or sys.modules[__name__]) or ""
    return text.split("\nArgs:\n")[0].rstrip() + "\n"


def _summary(command: Callable[..., None]) -> str:
    return _description(command).splitlines()[0]


# Checks, files and words ----------------------------------------------------------------


def _check_files(name: str, files: Sequence[pathlib.Path]) -> None:
    for file in files:
        if not file.is_file():
            raise UserError(f"{name}: {file} is not a file")


def _print_remarks(paths: Sequence[pathlib.Path], files: Sequence[pathlib.Path]) -> None:
    from siamese_jax.images import remarks

    for line in remarks(paths, files):
        print(line, file=sys.stderr)


def _classes_of(
    queries: Sequence[pathlib.Path], gallery: Sequence[pathlib.Path]
) -> list[str]:
    """The folders of the queries; those of a class have the gallery's name for it."""
    from siamese_jax.images import class_names

    names = class_names([*gallery, *queries])
    labels, truth = names[: len(gallery)], names[len(gallery) :]
    if not set(truth) & set(labels):
        raise UserError(
            "--labelled: no query is of a class of the gallery; the queries' folders are "
            f"{', '.join(sorted(set(truth))[:5])}"
        )
    return truth


def _load(folder: pathlib.Path) -> "Model":
    from siamese_jax.model import load_model

    return load_model(folder)


def _are_copies(
    queries: Sequence[pathlib.Path], gallery: Sequence[pathlib.Path]
) -> list[bool]:
    """Whether each query is a file of the gallery or has the same bytes as one."""
    sizes = {file.stat().st_size for file in queries}
    alike = [file for file in gallery if file.stat().st_size in sizes]
    known = {checksum(file.read_bytes()) for file in alike}
    return [checksum(file.read_bytes()) in known for file in queries]


def _warn(words: str) -> None:
    print(f"warning: {words}", file=sys.stderr)


def _warn_if_few(calibration: "Calibration | None", words: str) -> None:
    if calibration is None or calibration.num_classes is None:
        return
    if calibration.num_classes < FEW_CLASSES:
        _warn(
            f"calibrated on {calibration.num_classes} classes only ({calibration.pairs}): "
            f"{words}"
        )


def _answers(
    found: "Identification",
    queries: Sequence[pathlib.Path],
    labels: Sequence[str],
    truth: Sequence[str] | None,
    in_gallery: Sequence[bool],
) -> dict[str, Any]:
    """The answers as JSON has them."""
    from siamese_jax.identification import identification_rates

    metrics = {"strangers_let_in": found.strangers_let_in}
    nearest = found.nearest
    if truth is not None:
        metrics |= identification_rates(nearest, truth, labels, found.threshold)
    return {
        "metrics": metrics,
        "threshold": found.threshold,
        "threshold_from": found.threshold_from,
        "num_classes": len(set(labels)),
        "queries": [
            {
                "file": shown(str(file)),
                "answer": shown(label) if accepted else None,
                "nearest": shown(label),
                "distance": float(distance),
                "runner_up": shown(second),
                "runner_up_distance": float(second_distance),
                "in_gallery": copy,
            }
            for file, label, distance, second, second_distance, accepted, copy in zip(
                queries,
                nearest.labels,
                nearest.distances,
                nearest.runner_up_labels,
                nearest.runner_up_distances,
                found.accepted,
                in_gallery,
                strict=True,
            )
        ],
    }


def _print_answers(answers: dict[str, Any]) -> None:
    for query in answers["queries"]:
        print(
            f"{query['file']}{' (a file of the gallery)' if query['in_gallery'] else ''}: "
            f"{query['answer'] or 'none of these'} "
            f"(nearest {query['nearest']} at {query['distance']:.4f}, "
            f"then {query['runner_up']} at {query['runner_up_distance']:.4f})"
        )
    sources = {"gallery": "the gallery", "pairs": "the pairs of the calibration"}
    classes, source = f"for {answers['num_classes']} classes", answers["threshold_from"]
    if source is None:
        print(f"no threshold {classes}")
    else:
        print(f"threshold {answers['threshold']:.4f}, {classes}, from {sources[source]}")
    width = max(map(len, answers["metrics"]))
    for name, value in answers["metrics"].items():
        print(f"  {name:<{width}}  {value:.4f}")


def _draw(
    picture: pathlib.Path,
    queries: Sequence[pathlib.Path],
    nearest: Sequence[pathlib.Path],
    found: "Identification",
) -> bool:
    """Writes the picture, or warns that there is none: the answers do not depend on it."""
    try:
        from siamese_jax._match_picture import draw_matches

        drawn, encoded = draw_matches(queries, nearest, found), io.BytesIO()
        drawn.save(encoded, "PNG" if picture.suffix.lower() == ".png" else "JPEG")
        picture.write_bytes(encoded.getvalue())
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        print(f"warning: no picture was made: {shown(reason)}", file=sys.stderr)
        return False
    print(f"picture: {picture}")
    return True
