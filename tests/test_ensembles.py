"""Tests of several models and several views of one image."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from experiments.evaluations import (
    ensembles,
    within_alphabet,
)
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation
from siamese_jax.model import Model, pixel_model
from tests.drawings import drawings
from tests.test_evaluations import flat

pytestmark = pytest.mark.slow

# Ensembles ------------------------------------------------------------------------------


def squared(params, x, y):
    return jnp.sum((x[:, None] - y[None]) ** 2, axis=2)


def test_an_ensemble_s_cosine_is_the_mean_of_cosines():
    images = jnp.asarray(np.random.default_rng(0).random((2, 3, 3, 1)), jnp.float32)
    embeddings = [flat(params, images) for params in (jnp.arange(9.0) + 1, 1.0)]
    cosines = [jnp.vdot(*each) for each in embeddings]
    found = jnp.vdot(*ensembles.ensemble(embeddings))
    np.testing.assert_allclose(found, np.mean(cosines), rtol=1e-5)


def test_views_are_seven_small_distortions_and_the_first_is_none():
    matrices = np.asarray(ensembles.view_matrices(9))
    assert matrices.shape == (7, 2, 3)
    np.testing.assert_allclose(matrices[0], np.eye(2, 3), atol=1e-6)
    centre = matrices @ [4.0, 4.0, 1.0]
    np.testing.assert_allclose(centre, 4, atol=1e-5)
    assert len({tuple(matrix.ravel().round(4)) for matrix in matrices}) == 7


@pytest.mark.parametrize("invert", [False, True])
def test_views_are_surrounded_by_paper(invert):
    paper = jnp.full((2, 9, 9, 1), 0.0 if invert else 1.0)

    def embed_fn(params, images):  # of paper alone all embeddings are equal
        return flat(params, images + 1)

    model = Model(1.0, embed_fn, Preparation((9, 9), invert=invert))
    found = ensembles.with_views(model).embed_fn(1.0, paper)
    np.testing.assert_allclose(found, embed_fn(1.0, paper), atol=1e-6)


def test_the_mean_of_seven_views_is_embedded():
    images = jnp.asarray(np.random.default_rng(0).random((2, 9, 9, 1)), jnp.float32)
    model = Model(1.0, flat, Preparation((9, 9), invert=True))
    found = ensembles.with_views(model).embed_fn(1.0, images)
    total = 0.0
    for matrix in np.asarray(ensembles.view_matrices(9)):
        view = [
            ndimage.affine_transform(
                image[..., 0], matrix[:, :2], matrix[:, 2], order=1, mode="grid-constant"
            )
            for image in np.asarray(images)
        ]
        total = total + flat(1.0, jnp.asarray(np.stack(view)[..., None]))
    wanted = total / jnp.linalg.norm(total, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_every_method_is_evaluated_on_the_same_tasks(tmp_path, monkeypatch):
    characters = drawings("validation")
    monkeypatch.setattr(within_alphabet, "choose_alphabets", lambda words: characters)
    model = Model(1.0, flat, Preparation((15, 15)))
    monkeypatch.setattr(ensembles, "load_model", lambda folder: model)
    out = tmp_path / "extras.json"
    config = ensembles.Config((tmp_path,), num_episodes=50, num_ways=5, json=out)
    ensembles.main(config)
    metrics = json.loads(out.read_text())["metrics"]
    assert metrics["one_accuracy"] == metrics["ensemble_accuracy"]  # one model
    assert metrics["views_accuracy"] == metrics["ensemble_views_accuracy"]
    assert metrics["transductive_accuracy"] == metrics["ensemble_transductive_accuracy"]
    assert 0 < metrics["one_accuracy"] <= 1
    with pytest.raises(UserError, match="--num-episodes must be at least 2"):
        ensembles.main(dataclasses.replace(config, num_episodes=1))


def test_equal_distances_are_answered_by_chance():
    characters = drawings("validation")
    equal = jnp.ones((len(characters.images), 2))
    config = ensembles.Config((), num_episodes=2_000, num_ways=5)
    found = ensembles.transductive(config, characters, equal)
    assert found["accuracy"] == pytest.approx(0.2, abs=0.03)


def test_a_model_whose_embeddings_are_not_finite_is_refused(tmp_path, monkeypatch):
    characters = drawings("validation")
    monkeypatch.setattr(within_alphabet, "choose_alphabets", lambda words: characters)
    model = Model(jnp.nan, flat, Preparation((15, 15)))
    monkeypatch.setattr(ensembles, "load_model", lambda folder: model)
    with pytest.raises(UserError, match=r"--models: .* embeddings that are not finite"):
        ensembles.main(ensembles.Config((tmp_path,), num_episodes=50, num_ways=5))


def test_models_of_different_sizes_are_refused(monkeypatch):
    sizes = iter([15, 16])

    def load_model(folder):
        return Model(1.0, flat, Preparation((next(sizes), 15)))

    monkeypatch.setattr(ensembles, "load_model", load_model)
    words = r"models of one size .*\(15, 15, 1\), \(16, 15, 1\)"
    with pytest.raises(UserError, match=words):
        ensembles.main(ensembles.Config((pathlib.Path(), pathlib.Path())))


def test_models_that_do_not_compare_by_the_cosine_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(within_alphabet, "choose_alphabets", drawings)
    by_pixels = pixel_model(Preparation((15, 15)))
    by_squares = Model(1.0, flat, Preparation((15, 15)), matrix_fn=squared)
    for model in (by_pixels, by_squares):
        monkeypatch.setattr(ensembles, "load_model", lambda folder, model=model: model)
        with pytest.raises(UserError, match="does not compare by the cosine"):
            ensembles.main(ensembles.Config((tmp_path,), num_episodes=50, num_ways=5))
    with pytest.raises(UserError, match="--models needs at least one value"):
        ensembles.main(ensembles.Config(()))
