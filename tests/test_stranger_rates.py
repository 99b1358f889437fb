"""Tests of the evaluation `stranger_rates` with pixels as embeddings."""

import json

import numpy as np
import pytest

from experiments.datasets.letters import Letters
from experiments.evaluations import stranger_rates
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation
from siamese_jax.model import pixel_model, save_model

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model of pixels, and 1,200 blurred patterns of noise instead of glyphs."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(60, 196, size=(1_200, 1, 4, 4, 1))
    images = patterns + rng.integers(-20, 20, size=(1_200, 2, 4, 4, 1))
    names = np.repeat(np.arange(1_200), 2)
    glyphs = Letters(images.reshape(-1, 4, 4, 1).astype(np.uint8), names, names, names)
    monkeypatch.setattr(stranger_rates, "draw_glyphs", lambda: glyphs)
    save_model(tmp_path / "model", pixel_model(Preparation((4, 4))))
    return tmp_path / "model"


def test_shares_are_measured_and_written(model, tmp_path, capsys):
    config = stranger_rates.Config(
        model,
        num_classes=(20, 200),
        num_simulated=20,
        rates=(0.1,),
        num_calibrations=5,
        json=tmp_path / "shares.json",
    )
    stranger_rates.main(config)
    metrics = json.loads((tmp_path / "shares.json").read_text())["metrics"]
    assert set(metrics) == {"let_in_of_20_classes_at_0.1", "let_in_of_200_classes_at_0.1"}
    assert all(0.02 < share < 0.25 for share in metrics.values())
    shown = capsys.readouterr().out
    assert "threshold from the gallery" in shown
    assert "embedding 2,400 drawings of 1,200 glyphs" in shown


def test_settings_that_make_no_sense_are_refused(model):
    for changes, words in (
        ({"num_calibrations": 0}, "--num-calibrations must be at least 1; got 0"),
        ({"num_classes": (10, 251)}, "--num-classes must be from 2 to 250; got"),
        ({"num_classes": (1,)}, r"--num-classes must be at least 2; got \(1,\)"),
    ):
        with pytest.raises(UserError, match=words):
            stranger_rates.main(stranger_rates.Config(model, **changes))
