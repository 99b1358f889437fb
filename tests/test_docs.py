"""Tests of the pages in docs: tables are complete, and what they say runs."""

import doctest
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import siamese_jax
from siamese_jax import distances, losses, relations, sharding, tiling
from tests.public import public_members

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def rows(page: str) -> list[list[str]]:
    """The cells of all tables of a page, without headings."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [row for row in cells if row[0].startswith("`")]


def test_every_loss_is_in_the_table_once():
    found = [row[0].strip("`") for row in rows((DOCS / "losses.md").read_text())]
    wanted = [name for name in losses.__all__ if name.endswith("_loss")]
    assert sorted(found) == sorted(wanted)


def test_the_table_has_a_cost_for_every_loss():
    for row in rows((DOCS / "losses.md").read_text()):
        assert len(row) == 6, row
        assert row[5].startswith(("entry", "row", "whole")), row


def test_the_modules_of_the_table_are_those_of_the_code():
    page = (DOCS / "losses.md").read_text()
    for row in rows(page):
        fn = getattr(losses, row[0].strip("`"))
        assert inspect.getmodule(fn).__name__.startswith("siamese_jax.losses.")


def test_every_module_has_a_page():
    """That these pages have every public name is checked where they are built."""
    _, _, listed = (DOCS / "api.md").read_text().partition(":template: module.rst")
    assert re.findall(r"\w+", listed) == siamese_jax.__all__


def test_what_is_public_is_documented():
    """The pages leave out what has no docstring."""
    bare = [
        f"{module}.{name}"
        for module, name, value in public_members()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and not inspect.getdoc(value)
    ]
    assert not bare


def test_the_example_of_the_first_page_gives_a_gradient():
    (example,) = python_blocks((DOCS / "index.md").read_text())

    def run(embeddings, labels):
        names = {"embeddings": embeddings, "labels": labels}
        exec(example, names)
        return names["loss"], names["gradient"]

    loss, gradient = jax.eval_shape(run, jnp.ones((6, 4)), jnp.arange(6) % 3)
    assert (loss.shape, gradient.shape) == ((), (6, 4))


PAGE = (DOCS / "coming-from.md").read_text()
TRANSLATIONS = [(row[0], row[1].strip("`")) for row in rows(PAGE)]


@pytest.fixture(scope="module")
def names():
    (setup,) = python_blocks(PAGE)
    found = {}
    exec(setup, found)
    return found


@pytest.mark.parametrize(("theirs", "ours"), TRANSLATIONS, ids=lambda text: text[:40])
def test_what_stands_beside_another_library_runs(theirs, ours, names):
    """It is traced alone: its values are compared in test_golden.py."""

    def run():
        found = eval(ours, names)
        if callable(found) or found is None:  # a reduction
            d, same, where = (names[name] for name in ("d", "same", "where"))
            return losses.contrastive_loss(d, same, where=where, reduce_fn=found)
        return found

    assert jax.tree.leaves(jax.eval_shape(run)), theirs


def test_every_loss_of_pytorch_metric_learning_has_a_row():
    left = {row[0].strip("`").split("(")[0] for row in rows(PAGE)}
    assert {"ContrastiveLoss", "PNPLoss", "BatchHardMiner", "SNRDistance"} <= left


# Scaling --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scaling():
    """The examples of the page, which have run, and the names that they have made."""
    text = "\n\n".join(python_blocks((DOCS / "scaling.md").read_text()))
    examples = doctest.DocTestParser().get_doctest(text, {}, "scaling.md", None, 0)
    runner = doctest.DocTestRunner()
    runner.run(examples, clear_globs=False)
    return runner, examples.globs


@pytest.mark.slow
def test_the_examples_on_scaling_run(scaling):
    runner, _ = scaling
    assert runner.tries > 30
    assert runner.failures == 0


N, DIM, TILE = 2048, 128, 64


def compiled_numbers(form, tile):
    """Numbers of 4 bytes that one device holds for value and gradient."""
    loss_fn, matrix_fn = (
        losses.supervised_contrastive_loss,
        distances.dot_similarity_matrix,
    )
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    share = jax.P("data")

    def dense(x, labels):
        same, where = relations.within(relations.Items(labels))
        return loss_fn(matrix_fn(x, x), same, where=where)

    if form == "tiled":
        tiled = tiling.tiled(loss_fn, matrix_fn, tile_size=tile)
        of_items = lambda x, labels: tiled(x, relations.Items(labels))  # noqa: E731
    elif form in ("ring", "gathered"):
        make = getattr(sharding, form)
        parts = make(loss_fn, matrix_fn, axis_name="data", tile_size=tile)
        of_items = lambda x, labels: parts(x, relations.Items(labels))  # noqa: E731
    else:
        of_items = dense
    step = jax.value_and_grad(of_items)
    if form in ("ring", "gathered"):
        specs = {"in_specs": (share, share), "out_specs": (jax.P(), share)}
        step = jax.shard_map(step, mesh=mesh, **specs)
    on_mesh = jax.NamedSharding(mesh, share) if form == "jit" else None
    inputs = (
        jax.ShapeDtypeStruct((N, DIM), jnp.float32, sharding=on_mesh),
        jax.ShapeDtypeStruct((N,), jnp.int32, sharding=on_mesh),
    )
    compiled = jax.jit(step).lower(*inputs).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "num_devices", "tile"),
    [
        ("dense", 1, None),
        ("tiled", 1, TILE),
        ("jit", 8, None),
        ("gathered", 8, None),
        ("gathered", 8, TILE),
        ("ring", 8, None),
        ("ring", 8, TILE),
    ],
)
def test_the_formulas_of_memory_are_those_of_compiled_programs(
    scaling, form, num_devices, tile
):
    _, names = scaling
    wanted = names["cost"](form, N, num_devices, DIM, tile=tile).memory
    assert compiled_numbers(form, tile) == pytest.approx(wanted, rel=0.1)
