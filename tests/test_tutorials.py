"""Tests of the tutorials and the notebook: `make docs` runs the cells of the tutorials."""

import ast
import importlib
import json
import pathlib
import re

import pytest

import siamese_jax

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = sorted(set((DOCS / "tutorials").glob("*.md")) - {DOCS / "tutorials" / "index.md"})
NOTEBOOK = DOCS / "notebooks" / "siamese_jax_tour.ipynb"


def cells_of_page(path: pathlib.Path) -> list[str]:
    return re.findall(r"```\{code-cell\}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def cells_of_notebook(*, without: str = "") -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code" and without not in cell["metadata"].get("tags", [])
    ]


def missing_names(code: str) -> list[str]:
    """Names of the library that code uses and that do not exist."""
    tree, modules, missing = ast.parse(code), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if not node.module.startswith(("siamese_jax", "experiments")):
                continue
            package = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                if package is siamese_jax:
                    modules[name] = importlib.import_module(f"siamese_jax.{name}")
                elif not hasattr(package, name):
                    missing.append(f"{node.module}.{name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and not hasattr(module, node.attr):
                missing.append(f"{node.value.id}.{node.attr}")
    return missing


def test_missing_names_are_found():
    code = "from siamese_jax import losses\nlosses.hard_triplet_loss\nlosses.no_loss"
    assert missing_names(code) == ["losses.no_loss"]


def test_the_index_has_every_tutorial_in_its_list_and_in_its_tree():
    index = (DOCS / "tutorials" / "index.md").read_text()
    (tree,) = re.findall(r"```\{toctree\}\n:hidden:\n(.*?)```", index, flags=re.DOTALL)
    names = [path.stem for path in PAGES]
    assert len(names) == 6
    assert sorted(tree.split()) == names
    assert sorted(re.findall(r"^\* \[\]\((.*)\.md\)", index, flags=re.MULTILINE)) == names


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_tutorial_is_a_notebook_whose_names_exist(path):
    assert path.read_text().startswith("---\nfile_format: mystnb\nkernelspec:\n")
    cells = cells_of_page(path)
    assert len(cells) >= 5
    assert len(cells) == path.read_text().count("{code-cell}")
    assert missing_names("\n".join(cells)) == []


def test_the_notebook_is_stored_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    assert missing_names("\n".join(cells_of_notebook())) == []


SMALL = """
NUM_STEPS, STEPS_PER_CALL, NUM_EPISODES = 4, 2, 2
NUM_LETTERS, NUM_STYLES, WIDTHS, DIM = 4, 4, (4, 4), 8
"""


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(monkeypatch, tmp_path, capsys):
    """With small settings, on all devices, without the cell that installs."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "notebook"}
    for cell in cells_of_notebook(without="install"):
        exec(cell, names)
        if "NUM_STEPS =" in cell:
            exec(SMALL, names)
    printed = capsys.readouterr().out
    assert "step 4: loss" in printed
    assert "16 images in a batch, 2 on each device" in printed
    assert "Verification(same=" in printed
    assert (tmp_path / "model.zip").is_file()
