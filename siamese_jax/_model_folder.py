"""The folder that holds a model: how it is written and read.

The format is described in `siamese_jax.model`.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import pathlib
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, PyTree

import siamese_jax
from siamese_jax._extras import import_extra
from siamese_jax._files import checksum
from siamese_jax._numerics import widen
from siamese_jax.errors import UserError
from siamese_jax.images import ImageFile, Preparation
from siamese_jax.verification import Calibration

FORMAT = "siamese_jax model"
FORMAT_VERSION = 2
PLATFORMS = ("cpu", "cuda", "tpu")
ENCODER = "encoder.jax"
DISTANCES = "distances.jax"
PARAMETERS = "parameters.safetensors"
FACTS = "model.json"
DATA = (ENCODER, DISTANCES, PARAMETERS)

FlatParams = dict[str, Array]


class Content(NamedTuple):
    """What a folder holds: the fields of `siamese_jax.model.Model`, in their order."""

    params: PyTree
    embed_fn: Callable[[PyTree, Array], Array]
    preparation: Preparation
    matrix_fn: Callable[[PyTree, Array, Array], Array]
    calibration: Calibration | None
    details: Mapping[str, Any]


# Writing --------------------------------------------------------------------------------


def write_folder(folder: ImageFile, content: Content) -> None:
    """Writes a model as a folder, all of it or nothing."""
    folder = pathlib.Path(folder).resolve()
    _check_free(folder)
    safetensors = import_extra("safetensors.numpy")
    import_extra("flatbuffers")
    named = _named(content.params)
    artifacts, facts = _export(named, content)
    files = {**artifacts, PARAMETERS: safetensors.save(jax.tree.map(np.asarray, named))}
    facts = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "preparation": dataclasses.asdict(content.preparation),
        "calibration": content.calibration and dataclasses.asdict(content.calibration),
        "details": content.details,
        **facts,
        "sha256": {name: checksum(data) for name, data in files.items()},
        "versions": {
            "siamese_jax": siamese_jax.__version__,
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    text = json.dumps(_without_nan(facts), indent=2, allow_nan=False) + "\n"
    _put({**files, FACTS: text.encode()}, folder)


def _check_free(folder: pathlib.Path) -> None:
    """Raises UserError if something is at this place that a new model must not replace."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; a folder is wanted for the model")
    others = sorted({path.name for path in folder.iterdir()} - {FACTS, *DATA})
    if others:
        raise UserError(
            f"{folder} holds other files than a model, such as {others[0]}; it is not "
            "overwritten"
        )


def _put(files: Mapping[str, bytes], folder: pathlib.Path) -> None:
    """Puts a new folder in the place of an old one, which is there until the new one is."""
    part, previous = _beside(folder, "part"), _beside(folder, "previous")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, data in files.items():
        (part / name).write_bytes(data)
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    part.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def _beside(folder: pathlib.Path, what: str) -> pathlib.Path:
    return folder.with_name(f".{folder.name}.{what}")


def _named(params: PyTree) -> FlatParams:
    """The parameters by name: their keys, joined by "/"."""
    named: FlatParams = {}
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "parameters"
        if name in named:
            raise ValueError(f"params must have one name for each array; {name} is twice")
        named[name] = jnp.asarray(value)
    return named


def _export(named: FlatParams, content: Content) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The two functions in files, for any number of rows, and what to know of them."""
    structure = jax.tree.structure(content.params)
    names, image_shape = list(named), content.preparation.image_shape

    def tree(named: FlatParams) -> PyTree:
        return jax.tree.unflatten(structure, [named[name] for name in names])

    def embed_fn(named: FlatParams, images: Array) -> Array:
        return widen(content.embed_fn(tree(named), images))  # as files have embeddings

    def matrix_fn(named: FlatParams, x: Array, y: Array) -> Array:
        return content.matrix_fn(tree(named), x, y)

    n, m = jax_export.symbolic_shape("n, m")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), named)

    def images(rows: Any) -> Any:
        return jax.ShapeDtypeStruct((rows, *image_shape), jnp.float32)

    embedding = jax.eval_shape(embed_fn, shapes, images(1))
    if embedding.ndim != 2 or len(embedding) != 1:
        raise ValueError(
            f"embed_fn must return [n, dim]; got shape {embedding.shape} for one image"
        )

    def vectors(rows: Any) -> Any:
        return jax.ShapeDtypeStruct((rows, embedding.shape[1]), embedding.dtype)

    def export(fn: Callable[..., Array], *arguments: Any) -> jax_export.Exported:
        return jax_export.export(jax.jit(fn), platforms=PLATFORMS)(*arguments)

    encoder = export(embed_fn, shapes, images(n))
    distances = export(matrix_fn, shapes, vectors(n), vectors(m))
    # Positions of the arguments that are read; with symbolic rows JAX would keep them all.
    read = export(matrix_fn, shapes, vectors(1), vectors(1)).module_kept_var_idx
    facts = {
        "image_shape": image_shape,
        "embedding_dim": embedding.shape[1],
        "distance_parameters": [name for i, name in enumerate(sorted(named)) if i in read],
        "platforms": PLATFORMS,
    }
    exported = {ENCODER: encoder, DISTANCES: distances}
    return {name: bytes(one.serialize()) for name, one in exported.items()}, facts


def _without_nan(value: Any) -> Any:
    """The same for JSON, which has no NaN and no infinity: they become null."""
    match value:
        case Mapping():
            return {str(key): _without_nan(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_without_nan(entry) for entry in value]
        case np.ndarray() | np.generic() | jax.Array():
            return _without_nan(value.tolist())
        case float() if not math.isfinite(value):
            return None
        case pathlib.PurePath():
            return str(value)
        case None | bool() | int() | float() | str():
            return value
    raise ValueError(f"details must hold what JSON can; got {type(value).__name__}")


# Reading --------------------------------------------------------------------------------


def read_folder(folder: ImageFile) -> Content:
    """Reads a folder that `write_folder` has written."""
    folder = pathlib.Path(folder)
    previous = _beside(folder.resolve(), "previous")
    if not folder.exists() and previous.exists():  # a save was stopped at its last step
        folder = previous
    facts = _read_facts(folder)
    safetensors = import_extra("safetensors.numpy")
    import_extra("flatbuffers")
    with _blaming(folder / FACTS):
        preparation = _preparation(facts["preparation"], facts["image_shape"])
        calibration = _calibration(facts["calibration"])
        details, used = dict(facts["details"]), set(facts["distance_parameters"])
        checksums = {name: facts["sha256"][name] for name in DATA}
    data = {name: _read(folder / name, sha) for name, sha in checksums.items()}
    exported = {}
    for name in (ENCODER, DISTANCES):
        with _blaming(folder / name):
            exported[name] = jax_export.deserialize(bytearray(data[name]))
    with _blaming(folder / PARAMETERS):
        params = jax.tree.map(jnp.asarray, safetensors.load_file(folder / PARAMETERS))
    # Exported functions have no batching rule: under vmap they are called in sequence.
    embed_fn = sequential_vmap(exported[ENCODER].call)
    matrix_fn = _distances(sequential_vmap(exported[DISTANCES].call), used)
    return Content(params, embed_fn, preparation, matrix_fn, calibration, details)


def _read_facts(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / FACTS
    if not path.is_file():
        inside = folder / "model"
        hint = f"; {inside} is one" if (inside / FACTS).is_file() else ""
        raise UserError(
            f"{folder} is no model folder, which holds {FACTS} and the files "
            f"{', '.join(DATA)}{hint}"
        )
    with _blaming(path):
        facts = json.loads(path.read_text())
        name, version = facts["format"], facts["format_version"]
    if (name, version) != (FORMAT, FORMAT_VERSION):
        raise UserError(
            f"{path} has the format {name!r}, version {version!r}; this version of "
            f"siamese_jax reads {FORMAT!r}, version {FORMAT_VERSION}"
        )
    return facts


def _read(path: pathlib.Path, sha256: str) -> bytes:
    if not path.is_file():
        raise UserError(f"{path} is missing")
    data = path.read_bytes()
    if checksum(data) != sha256:
        raise UserError(
            f"{path} is damaged: it is not the file that was written with the model"
        )
    return data


def _preparation(fields: dict[str, Any], image_shape: list[int]) -> Preparation:
    preparation = Preparation(**{**fields, "size": tuple(fields["size"])})
    if image_shape != list(preparation.image_shape):
        raise ValueError(
            f"image_shape must be that of the preparation, {preparation.image_shape}; got "
            f"{image_shape}"
        )
    return preparation


def _calibration(fields: dict[str, Any] | None) -> Calibration | None:
    if fields is None:
        return None
    for name, kind in get_type_hints(Calibration).items():
        if not _is_of_kind(fields[name], kind):
            raise TypeError(f"{name} must be {kind}; got {fields[name]!r}")
    return Calibration(**fields)


def _is_of_kind(value: Any, kind: Any) -> bool:
    """Tells whether a value of JSON is of the type of a field."""
    if get_origin(kind) is list:
        parts = kind.__args__
        return isinstance(value, list) and all(_is_of_kind(x, *parts) for x in value)
    return isinstance(value, int | float if kind is float else kind)


@contextlib.contextmanager
def _blaming(path: pathlib.Path) -> Iterator[None]:
    """Turns any error, of whatever package reads the file, into one that names the file."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{path} is damaged or not of this format: {type(error).__name__}: {error}"
        ) from error


def _distances(exported: Callable[..., Array], used: set[str]) -> Callable[..., Array]:
    def matrix_fn(params: FlatParams, x: Array, y: Array) -> Array:
        # A program that calls this holds the parameters that it passes on as constants.
        # Zeros in the place of those that are not read keep it small.
        read = {
            name: value if name in used else jnp.zeros(value.shape, value.dtype)
            for name, value in params.items()
        }
        return exported(read, x, y)

    return matrix_fn
