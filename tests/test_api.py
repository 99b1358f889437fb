"""Tests of the project's conventions for public functions and for imports."""

import ast
import inspect
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

import siamese_jax
from tests.cases import CASES, Kind
from tests.public import MODULES, public_members

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("siamese_jax", "experiments", "benchmarks", "tests")

# of files, paths and NumPy arrays: they have tests of their own instead of a row
HOST_MODULES = {"errors", "evaluation", "identification", "images", "model"}
HOST_FUNCTIONS = {
    "batching.use_devices_of",  # sets a mesh
    "health.warning",  # returns words
    "samplers.class_index",
    "siamese.from_flax",
    "siamese.from_nnx",
    "verification.calibrate",
    "verification.check_disjoint_folds",
    "verification.pair_tiles",
    "verification.streamed_operating_points",
    "whitening.within_class_factor",
}

# Public functions ----------------------------------------------------------------------


PUBLIC = [
    pytest.param(module, value, id=f"{module}.{name}")
    for module, name, value in public_members()
    if inspect.isfunction(value)
]


def test_every_public_module_is_in_the_namespace():
    folder = pathlib.Path(siamese_jax.__file__).parent
    found = {path.stem for path in folder.glob("[!_]*.py")}
    found |= {path.parent.name for path in folder.glob("[!_]*/__init__.py")}
    assert found - {"cli"} == set(siamese_jax.__all__)


def test_every_public_function_has_one_row_in_the_table():
    rows = [case.name for case in CASES if case.kind is not Kind.SETTINGS]
    assert len(rows) == len(set(rows))
    rows = [name.partition(" (")[0] for name in rows]  # more rows of a function say why
    traced = {param.id for param in PUBLIC if param.values[0] not in HOST_MODULES}
    assert traced - HOST_FUNCTIONS == set(rows)


@pytest.mark.parametrize(("module", "fn"), PUBLIC)
def test_signature_follows_the_house_rules(module, fn):
    parameters = list(inspect.signature(fn).parameters.values())
    names = [parameter.name for parameter in parameters]
    assert "rng" not in names, "JAX keys are called key"
    assert "key" not in names[1:], "a key comes first"
    for parameter in parameters:
        if parameter.default is not inspect.Parameter.empty:
            assert parameter.kind is parameter.KEYWORD_ONLY, parameter.name
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            assert parameter.annotation is not inspect.Parameter.empty, parameter.name


@pytest.mark.parametrize(("module", "fn"), PUBLIC)
def test_docstring_has_an_effect_and_an_example(module, fn):
    text = inspect.getdoc(fn)
    assert text
    assert text.splitlines()[0].endswith((".", ":", "?"))
    tutorials = f"{MODULES[module].__doc__} {sys.modules[fn.__module__].__doc__}"
    assert ">>> " in text or f"{fn.__name__}(" in tutorials or module in HOST_MODULES


@pytest.mark.parametrize("module", sorted({*MODULES} - {"errors"}))
def test_modules_begin_with_a_tutorial_that_runs(module):
    assert MODULES[module].__doc__
    assert ">>> " in MODULES[module].__doc__


# Imports -------------------------------------------------------------------------------


class Import(NamedTuple):
    """One imported module, by its full name, and where the import stands."""

    path: pathlib.Path
    module: str
    at_the_top: bool

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def imports(folder: str) -> Iterator[Import]:
    """All imports of the files in a folder; `import_extra("x.y")` is one of x.y."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                # `from package import module` and `from module import name`
                assert node.module, f"{path}: imports are absolute"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_extra":
                names = [ast.literal_eval(node.args[0])]
            for name in names:
                yield Import(path, name, id(node) in top)


def room(path: pathlib.Path, folder: str) -> str:
    """First part of a path inside a package: the module or the sub-package."""
    return path.relative_to(ROOT / folder).parts[0].removesuffix(".py")


TOOLS = {"_checks", "_labels", "_numerics"}
CORE = {*TOOLS, "distances", "relations", "reductions"}
NETWORKS = {"_cpu", "convolution", "siamese", "distances"}
MAY_IMPORT = {
    "errors": set(),
    "_checks": set(),
    "_labels": {"_checks"},
    "_numerics": set(),
    "_extras": {"errors"},
    "distances": TOOLS,
    "relations": TOOLS,
    "reductions": TOOLS,
    "miners": CORE,
    "losses": {*CORE, "miners"},
    "_reach": {"_checks", "losses"},
    "_totals": CORE,
    "_folds": {*CORE, "losses", "miners", "_reach", "_totals"},
    "_tiles": {*CORE, "losses", "_reach", "_totals", "_folds"},
    "_sets": {*CORE, "losses", "_reach", "_tiles", "_totals"},
    "tiling": {*CORE, "_reach", "_totals", "_folds", "_sets", "_tiles"},
    "_ring": {*CORE, "_folds", "_tiles"},
    "sharding": {
        *(*CORE, "_folds", "_reach", "_ring", "_sets", "_tiles", "_totals", "losses"),
    },
    "regularizers": CORE,
    "memory": CORE,
    "samplers": TOOLS,
    "siamese": TOOLS,
    "augment": TOOLS,
    "_cpu": TOOLS,
    "convolution": {*TOOLS, "_cpu"},
    "encoders": {*TOOLS, *NETWORKS},
    "training": TOOLS,
    "whitening": TOOLS,
    "batching": TOOLS,
    "episodes": {*CORE, "batching", "samplers"},
    "verification": {*CORE, "errors", "siamese"},
    "identification": {*TOOLS, "verification"},
    "health": CORE,
    "retrieval": {*CORE, "batching", "verification"},
    "_names": set(),
    "_files": {"errors"},
    "_page": {"errors", "_extras"},
    "evaluation": {
        *(*CORE, "errors", "_names", "_page", "images"),
        *("episodes", "health", "retrieval", "samplers", "verification"),
    },
    "_evaluate_command": {"errors", "_extras", "_files", "_names", "evaluation"}
    | {"verification"},
    "_image_file": {"errors", "_extras"},
    "_image_folder": {"errors", "_names", "_image_file"},
    "images": {
        *("errors", "_extras", "_labels", "_names", "_image_file", "_image_folder"),
    },
    "_model_folder": {
        *("errors", "_extras", "_files", "_numerics", "images", "verification"),
    },
    "_match_picture": {"errors", "_extras", "_names", "images", "identification"},
    "model": {
        *("errors", "_checks", "_extras", "_labels", "_model_folder", "images"),
        *("batching", "distances"),
        *("siamese", "verification", "identification"),
    },
    "cli": {
        *("errors", "_extras", "_names", "_match_picture", "images", "identification"),
        *("_evaluate_command", "_files", "model", "verification"),
    },
    "__main__": {"cli"},
}

# besides jax, numpy, jaxtyping and Python's own modules
MAY_USE = {
    "siamese": {"flax"},
    "encoders": {"flax"},
    "training": {"optax"},
    "_image_file": {"PIL"},
    "images": {"PIL"},
    "_match_picture": {"PIL"},
    "_page": {"matplotlib"},
    "evaluation": {"matplotlib", "sklearn"},
    "_evaluate_command": {"matplotlib"},
    "_model_folder": {"safetensors", "flatbuffers"},
    "cli": {"tyro"},
}
# of these alone, at the top of the file
MAY_USE_AT_THE_TOP = {"encoders": {"flax"}, "training": {"optax"}}


def test_imports_inside_the_library_point_one_way():
    for found in imports("siamese_jax"):
        own = room(found.path, "siamese_jax")
        parts = found.module.split(".")
        if found.package != "siamese_jax" or own == "__init__" or len(parts) == 1:
            continue
        allowed = MAY_IMPORT[own] | {own}
        assert parts[1] in allowed, f"{own} imports {found.module}"


def test_the_directions_of_imports_have_no_circle():
    # a module comes after all that it may import
    placed = set()
    while set(MAY_IMPORT) - placed:
        free = {name for name, below in MAY_IMPORT.items() if below <= placed} - placed
        assert free, f"a circle among {set(MAY_IMPORT) - placed}"
        placed |= free


def test_the_library_uses_few_packages_and_large_ones_late():
    plain = {"jax", "numpy", "jaxtyping", "siamese_jax", *sys.stdlib_module_names}
    for found in imports("siamese_jax"):
        own = room(found.path, "siamese_jax")
        if found.package not in plain:
            assert found.package in MAY_USE.get(own, ()), f"{own} imports {found.module}"
            late = not found.at_the_top
            assert late or found.package in MAY_USE_AT_THE_TOP.get(own, ()), found


ROOMS = ["cli", "datasets", "engine", "report", "evaluations", "systems", "sweeps"]


def test_imports_between_the_rooms_of_experiments_point_one_way():
    for found in imports("experiments"):
        parts = found.module.split(".")
        own = room(found.path, "experiments")
        if found.package == "experiments" and own not in ("__main__", "__init__"):
            allowed = ROOMS[: ROOMS.index(own) + 1]
            assert parts[1] in allowed, f"{found.path} imports {found.module}"


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("siamese_jax", {"experiments", "benchmarks", "tests"}),
        ("experiments", {"benchmarks", "tests"}),
        ("benchmarks", {"tests"}),
    ],
)
def test_packages_import_in_one_direction(folder, forbidden):
    assert not [found for found in imports(folder) if found.package in forbidden]


# Files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_are_short_and_named_for_an_idea(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 500, path
        assert path.stem not in ("utils", "util", "helpers", "common", "misc"), path


# Importing -----------------------------------------------------------------------------

LARGE_PACKAGES = {
    *("flax", "tensorflow", "tensorflow_datasets", "matplotlib", "orbax", "tyro", "tqdm"),
    *("grain", "sklearn", "PIL", "tensorboardX", "safetensors"),
}


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


def test_importing_does_no_work():
    modules = [f"siamese_jax.{name}" for name in (*MODULES, "cli") if name != "encoders"]
    loaded = run_python(
        "import sys, jax\n"
        "before = dict(jax.config.values)\n"
        f"import {', '.join(modules)}\n"
        "assert dict(jax.config.values) == before\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "print(' '.join(sys.modules))"
    ).split()
    assert not LARGE_PACKAGES & set(loaded)


def test_a_module_is_loaded_when_it_is_first_used():
    run_python(
        "import sys\n"
        "import siamese_jax as sj\n"
        "assert not [name for name in sys.modules if name.startswith('siamese_jax.')]\n"
        "assert 'jax' not in sys.modules\n"
        "assert {'losses', 'model'} <= set(dir(sj))\n"
        "assert sj.losses.contrastive_loss\n"
        "assert 'siamese_jax.encoders' not in sys.modules\n"
        "assert not hasattr(sj, 'no_such_module')"
    )
