"""Tests of the package as a namespace: modules are loaded when they are first used."""

import pathlib
import subprocess
import sys

import pytest

import siamese_jax

PACKAGE = pathlib.Path(siamese_jax.__file__).parent
COMMANDS = {"cli"}


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_every_public_module_is_in_the_namespace():
    files = {path.stem for path in PACKAGE.glob("[!_]*.py")}
    packages = {path.parent.name for path in PACKAGE.glob("[!_]*/__init__.py")}
    assert set(siamese_jax.__all__) == (files | packages) - COMMANDS
    assert siamese_jax.__all__ == sorted(siamese_jax.__all__)
    assert set(siamese_jax.__all__) <= set(dir(siamese_jax))
    assert "__version__" in dir(siamese_jax)


def test_modules_are_loaded_on_first_use_and_not_before():
    out = run_python(
        "import sys\n"
        "import siamese_jax as sj\n"
        "loaded = [name for name in ('jax', 'numpy', 'flax') if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "assert not [name for name in sys.modules if name.startswith('siamese_jax.')]\n"
        "print(sj.losses.contrastive_loss.__name__)\n"
        "import siamese_jax.losses\n"
        "assert sj.losses is sys.modules['siamese_jax.losses']\n"
        "assert 'siamese_jax.training' not in sys.modules\n"
    )
    assert out.strip() == "contrastive_loss"


def test_an_unknown_name_is_named():
    with pytest.raises(AttributeError, match="'siamese_jax' has no attribute 'loses'"):
        siamese_jax.loses  # noqa: B018
