"""Tests of the package as a namespace: modules are loaded when they are first used."""

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import siamese_jax

PACKAGE = pathlib.Path(siamese_jax.__file__).parent
ROOT = pathlib.Path(__file__).parent.parent
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


# The checkout -----------------------------------------------------------------------------


def examples_of_the_readme():
    text = (ROOT / "README.md").read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(examples_of_the_readme())))
def test_each_example_of_the_readme_can_be_pasted_into_a_file(number, tmp_path):
    example = examples_of_the_readme()[number]
    assert ">>>" not in example
    file = tmp_path / "example.py"
    file.write_text(example)
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, check=True
    )
    said = re.findall(r"^print\(.*\)  # (\S+?)(?:[,:] .*)?$", example, re.MULTILINE)
    assert said
    assert done.stdout.split() == said


def test_the_source_distribution_has_all_of_the_checkout():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode or not listed.stdout:
        pytest.skip("this is no checkout")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = set(settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    always = {"/.gitignore", "/LICENSE", "/README.md", "/pyproject.toml"}  # by hatchling
    wanted = {f"/{path.split('/')[0]}" for path in listed.stdout.splitlines()}
    assert included | always == wanted
