"""House rules, as tests over the public functions and the imports between modules."""

import ast
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import siamese_jax
from siamese_jax import encoders
from tests.cases import CASES

PACKAGE = pathlib.Path(siamese_jax.__file__).parent
NAMES = sorted({path.stem for path in PACKAGE.glob("[!_]*.py")} | {"losses"})
# every public module but the one of Flax classes, whose functions are their methods
MODULES = [importlib.import_module(f"siamese_jax.{n}") for n in NAMES if n != "encoders"]

CORE = ("_checks", "_numerics", "distances", "relations", "reductions")
MAY_IMPORT = {
    "_checks": (),
    "_numerics": (),
    "distances": ("_checks", "_numerics"),
    "relations": ("_checks", "_numerics"),
    "reductions": ("_checks", "_numerics"),
    "miners": CORE,
    "losses": (*CORE, "miners", "losses"),
    "samplers": ("_checks", "_numerics"),
    "siamese": ("_checks", "_numerics"),
    "augment": ("_checks", "_numerics"),
    "_fourier": (),
    "convolution": ("_checks", "_numerics", "_fourier"),
    "encoders": (*CORE, "convolution", "siamese"),
    "training": ("_checks", "_numerics"),
    "batching": ("_checks",),
    "episodes": (*CORE, "batching", "samplers"),
    "verification": ("_checks", "_numerics"),
}


def public_functions():
    for module in MODULES:
        for name, fn in vars(module).items():
            own = inspect.isfunction(fn) and fn.__module__.startswith(module.__name__)
            if own and not name.startswith("_"):
                yield pytest.param(
                    fn, id=f"{module.__name__.removeprefix('siamese_jax.')}.{name}"
                )


PUBLIC = list(public_functions())

# not for tracing: has properties and misuse of its own in test_samplers
ON_THE_HOST = {"samplers.class_index"}


def test_every_public_function_has_one_row_in_the_table():
    rows = [case.name for case in CASES]
    assert len(rows) == len(set(rows))
    assert {param.id for param in PUBLIC} - ON_THE_HOST == set(rows)


@pytest.mark.parametrize("fn", PUBLIC)
def test_signature_follows_the_house_rules(fn):
    parameters = list(inspect.signature(fn).parameters.values())
    names = [parameter.name for parameter in parameters]
    assert "rng" not in names, "JAX keys are called key"
    assert "key" not in names[1:], "a key comes first"
    for parameter in parameters:
        if parameter.default is not inspect.Parameter.empty and parameter.name != "where":
            assert parameter.kind is parameter.KEYWORD_ONLY, parameter.name
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            assert parameter.annotation is not inspect.Parameter.empty, parameter.name


@pytest.mark.parametrize("fn", PUBLIC)
def test_docstring_has_an_effect_and_an_example(fn):
    text = inspect.getdoc(fn)
    assert text
    assert text.splitlines()[0].endswith((".", ":", "?"))
    tutorial = sys.modules[fn.__module__].__doc__ or ""
    assert ">>> " in text or f"{fn.__name__}(" in tutorial


@pytest.mark.parametrize("module", [*MODULES, encoders], ids=lambda m: m.__name__)
def test_modules_begin_with_a_tutorial_that_runs(module):
    assert module.__doc__
    assert ">>> " in module.__doc__


def test_imports_point_one_way():
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("siamese_jax"):
                parts = node.module.split(".")[1:]
                found = [parts[0]] if parts else [alias.name for alias in node.names]
                for target in found:
                    assert target in MAY_IMPORT[name], f"{name} imports {target}"


def test_files_stay_readable():
    root = PACKAGE.parent
    for folder in ("siamese_jax", "experiments", "benchmarks"):
        for path in (root / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 620, path


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_does_no_work():
    core = [module.__name__ for module in MODULES]
    loaded = run_python(
        "import sys, jax\n"
        "before = dict(jax.config.values)\n"
        f"import {', '.join(core)}\n"
        "assert dict(jax.config.values) == before\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "print(' '.join(sys.modules))"
    ).split()
    for package in (
        "flax",
        "tensorflow",
        "tensorflow_datasets",
        "matplotlib",
        "orbax",
        "tyro",
        "tqdm",
        "sklearn",
        "PIL",
        "tensorboardX",
    ):
        assert package not in loaded
