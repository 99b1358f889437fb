"""Tests of the report: one self-contained page that shows every picture."""

import json
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import report
from siamese_jax import verification
from siamese_jax.samplers import Pairs


def make_sections(workdir):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(12, 6, 6, 1), dtype=np.uint8)
    pairs = Pairs(jnp.arange(12).reshape(2, 6), jnp.arange(6) % 2 == 0)
    distances = np.linspace(0, 1, 6)
    curve = verification.roc_curve(jnp.asarray(distances), pairs.same)
    answer = report.Answer(images[0], images[1:4], distances[:3], np.array([0, 1, 0]) > 0)
    drawings = [(images[0], images[1]), (images[2], images[3])]
    figures = [
        report.answer_grid([answer, answer]),
        report.embedding_map(rng.normal(size=(12, 3)), images),
        report.embedding_map(np.zeros((12, 3)), images),
        report.confusion_matrix(np.eye(3), list("abc")),
        report.confusion_pairs(drawings, [0.5, 0.25]),
    ]
    return [
        *report.pair_sections(images, pairs, distances, 0.5, name="toy pairs"),
        report.roc_section({"model": curve, "pixels": curve}),
        report.training_section(workdir, ("loss", "temperature")),
        *[report.Section("A <picture>", "", figure) for figure in figures],
    ]


@pytest.mark.slow
def test_a_page_holds_all_figures_and_pictures_and_nothing_from_elsewhere(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 3}')
    lines = [
        json.dumps({"step": step, "loss": 1 / step, "temperature": 0.1})
        for step in range(1, 80)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    sections = make_sections(tmp_path)
    metrics = {"accuracy": 0.25, "num_trials": 3, "nothing": None, "broken": np.nan}
    report.write_report(tmp_path, "Pairs & more", metrics, sections)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(sections) == 10
    assert "<h1>Pairs &amp; more</h1>" in page
    assert "A &lt;picture&gt;" in page
    assert "Toy pairs with their distances" in page
    assert "&quot;seed&quot;: 3" in page
    for name, shown in (
        ("accuracy", "0.2500"),
        ("num_trials", "3"),
        ("nothing", "undefined"),
        ("broken", "undefined"),
    ):
        assert f'<td>{name}</td><td class="number">{shown}</td>' in page
    assert not re.search("https?:", page)


def test_curves_below_0_are_the_right_way_up_and_in_view(tmp_path):
    lines = [
        json.dumps(
            {"step": step, "bias": -10 + step / 20, "loss": 1 / step, "both": number}
        )
        for step, number in enumerate(np.linspace(-2, 4, 100), 1)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    bias, loss, both = report.curves(tmp_path, ("bias", "loss", "both")).axes
    assert bias.get_ylim() == (pytest.approx(-10.4, abs=0.1), 0)
    assert loss.get_ylim() == (0, pytest.approx(0.78, abs=0.3))
    assert both.get_ylim() == pytest.approx((-2.1, 4.2), abs=0.2)


@pytest.mark.slow
def test_any_name_can_be_drawn(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    names = [
        "Ba$$in",
        r"$\frac{a_1}^2$",
        os.fsdecode(b"caf\xe9"),
        "\U0001f600",
        "two\nlines",
    ]
    figure = report.confusion_matrix(np.eye(5), names)
    report.write_report(tmp_path, "Names", {}, [report.Section("Names", "", figure)])
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()
