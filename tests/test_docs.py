"""Tests of the pages in docs: tables are complete, and what they say runs."""

import inspect
import pathlib
import re

import jax
import pytest

from siamese_jax import losses

DOCS = pathlib.Path(__file__).parents[1] / "docs"


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


PAGE = (DOCS / "coming-from.md").read_text()
TRANSLATIONS = [(row[0], row[1].strip("`")) for row in rows(PAGE)]


@pytest.fixture(scope="module")
def names():
    (setup,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
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
