"""Tests of a trained model: its decisions, and saving and loading it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config
from PIL import Image

from siamese_jax.distances import cosine_similarity_matrix, manhattan_distance_matrix
from siamese_jax.encoders import MnistMlp
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation
from siamese_jax.model import Model, pixel_model
from siamese_jax.verification import calibrate

pytestmark = pytest.mark.slow

SIZE = (8, 6)


def random_images(num, *, size=SIZE, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, size=(num, *size, channels), dtype=np.uint8)


def toy_calibration():
    distances = np.array([0.5, 1.0, 1.5, 2.0, 3.0, 4.0], np.float32)
    return calibrate(distances, np.arange(6) < 3, pairs="toy pairs")


def make_model(**changes):
    """A multilayer perceptron and a weighted distance, untrained."""
    encoder = MnistMlp()
    params = encoder.init(jax.random.key(0), jnp.zeros((1, *SIZE, 1)))["params"]
    model = Model(
        {"encoder": params, "head": [jnp.linspace(0.5, 1.5, 128), jnp.array(0.25)]},
        lambda params, images: encoder.apply({"params": params["encoder"]}, images),
        Preparation(SIZE, invert=True),
        matrix_fn=weighted_distance,
        calibration=toy_calibration(),
        details={"seed": 3, "figures": {"accuracy": 0.5}},
    )
    return dataclasses.replace(model, **changes)


def weighted_distance(params, x, y):
    weights, bias = params["head"]
    return manhattan_distance_matrix(x * weights[None, :], y * weights[None, :]) + bias


# From images to decisions ---------------------------------------------------------------


def test_images_are_arrays_of_numpy_or_jax_or_files(tmp_path, monkeypatch):
    model, images = make_model(), random_images(2, size=(9, 7))
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image[..., 0]).save(file)
    for same in (jnp.asarray(images), files, [str(file) for file in files]):
        np.testing.assert_array_equal(model.embed(same), model.embed(images))
    answer = model.verify(*images)
    assert model.verify(*jnp.asarray(images)) == answer == model.verify(*files)
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)  # as for a user
    with pytest.raises(TypeError, match="images must be uint8; got float32"):
        model.embed(jnp.zeros((2, 9, 7, 1)))
    with pytest.raises(TypeError, match=r"a list of files is wanted; got one .* 'a\.png'"):
        model.embed("a.png")
    with pytest.raises(TypeError, match="must be the name of a file; got ndarray"):
        model.embed(list(images))


def test_files_are_laid_on_the_ground_of_the_preparation(tmp_path):
    drawing = Image.new("RGBA", SIZE[::-1], (0, 0, 0, 0))
    drawing.save(tmp_path / "a.png")
    for background in (255, 0):
        model = pixel_model(Preparation(SIZE, background=background))
        assert model.embed([tmp_path / "a.png"]).tolist() == [[background / 255] * 48]


def test_embeddings_are_those_of_prepared_images_between_0_and_1():
    model, images = make_model(), random_images(5)
    x = jnp.asarray(255 - images, jnp.float32) / 255
    wanted = model.embed_fn(model.params, x)
    for batch_size in (1, 2, 5, 256):
        found = model.embed(images, batch_size=batch_size)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    found = model.embed_prepared(255 - images)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_files_of_any_size_are_embedded_like_their_arrays(tmp_path):
    model = make_model()
    small, large = random_images(1), random_images(1, size=(20, 30), channels=3)
    Image.fromarray(small[0, :, :, 0]).save(tmp_path / "small.png")
    Image.fromarray(large[0]).save(tmp_path / "large.png")
    found = model.embed([tmp_path / "small.png", str(tmp_path / "large.png")])
    wanted = [model.embed(images)[0] for images in (small, large)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_shape_is_compiled_once():
    traced = []

    def embed_fn(params, images):
        traced.append(images.shape)
        return images.mean(axis=(1, 2)) * params

    model = Model(jnp.ones(()), embed_fn, Preparation(SIZE))
    for seed in range(3):
        model.embed(random_images(5, seed=seed), batch_size=2)
    once = len(traced)
    dataclasses.replace(model, params=jnp.zeros(())).embed(random_images(5), batch_size=2)
    assert len(traced) == once
    assert set(traced) == {(2, *SIZE, 1)}


def test_images_of_a_wrong_kind_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match=r"\[n, 8, 6, 1\] after the preparation; got"):
        model.embed_prepared(random_images(2, size=(8, 7)))
    with pytest.raises(ValueError, match="at least one file; got none"):
        model.embed([])
    with pytest.raises(ValueError, match=r"must be \[n, height, width"):
        model.embed_prepared(random_images(0))


def test_distances_of_rows_are_those_of_the_matrix(monkeypatch):
    model = make_model()
    for num in (1, 16, 37):
        x, y = jax.random.normal(jax.random.key(num), (2, num, 128))
        matrix = model.distances(x, y)
        np.testing.assert_allclose(matrix, weighted_distance(model.params, x, y), rtol=1e-5)
        rows = model.pair_distances(np.asarray(x), y)
        np.testing.assert_allclose(rows, np.diagonal(matrix), rtol=1e-5)
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)  # as for a user
    with pytest.raises(ValueError, match=r"one shape; got \(37, 128\) and \(3, 128\)"):
        model.pair_distances(x, y[:3])


def test_no_rows_have_no_distances():
    found = make_model().pair_distances(*jnp.zeros((2, 0, 128)))
    assert (found.shape, found.dtype) == ((0,), jnp.float32)


def test_pixels_are_compared_by_their_euclidean_distance():
    model, images = pixel_model(Preparation(SIZE)), random_images(3)
    flat = images.reshape(3, -1) / 255
    wanted = np.linalg.norm(flat[:, None] - flat[None, :], axis=2)
    x = model.embed(images)
    np.testing.assert_allclose(model.distances(x, x), wanted, atol=1e-6)


def test_verify_tells_the_distance_and_what_it_means(tmp_path):
    calibration = toy_calibration()
    model = dataclasses.replace(pixel_model(Preparation((1, 1))), calibration=calibration)
    white, black = np.full((1, 1, 1), 255, np.uint8), np.zeros((1, 1, 1), np.uint8)
    found = model.verify(white, black)
    assert found.distance == pytest.approx(1)
    assert found.threshold == calibration.threshold
    assert found.same
    assert found.probability_same == calibration.probability_same(found.distance)
    twice = model.verify(white, white)
    assert twice.distance == 0
    assert twice.probability_same > found.probability_same
    Image.fromarray(black[:, :, 0]).save(tmp_path / "black.png")
    assert model.verify(white, tmp_path / "black.png") == found
    strict = dataclasses.replace(calibration, threshold=0.9)
    assert not dataclasses.replace(model, calibration=strict).verify(white, black).same


def one_pixel_model(different):
    """The distance is that of pixels; different pairs are at the given distances."""
    distances = np.concatenate([[0.0], different])
    same = np.arange(len(distances)) < 1
    calibration = calibrate(distances, same, pairs="toy pairs", num_classes=9)
    return dataclasses.replace(pixel_model(Preparation((1, 1))), calibration=calibration)


def one_pixel_images(*values):
    return np.array(values, np.uint8).reshape(-1, 1, 1, 1)


def test_identify_answers_with_the_nearest_class_or_none():
    values, queries = one_pixel_images(0, 10, 100, 250), one_pixel_images(12, 90, 180)
    model = one_pixel_model(0.01 * np.arange(1, 100))
    # for four images: 1 - (96 * 95 * 94) / (103 * 102 * 101) ... of 99 + 4 distances
    found = model.identify(values, list("aabc"), queries, false_accept_rate=0.36)
    # 10 different pairs: 1 - prod (99 - j) / (103 - j) = .3425, 11 pairs: .3709
    assert found.threshold == pytest.approx(0.10)
    assert found.threshold < 0.10
    assert found.threshold_from == "pairs"
    assert found.smallest_rate == pytest.approx(4 / 103)
    assert found.nearest.labels.tolist() == ["a", "b", "c"]
    assert found.nearest.runner_up_labels.tolist() == ["b", "a", "b"]
    assert found.accepted.tolist() == [True, True, False]
    assert found.strangers_let_in == 0
    loose = one_pixel_model(0.37 * np.arange(1, 100))
    loose = loose.identify(values, list("aabc"), queries, false_accept_rate=0.05)
    # one pair, .37, is more than 90 / 255 = .353 but less than 100 / 255 = .392
    assert loose.threshold == pytest.approx(0.37)
    assert loose.strangers_let_in == 0.5  # one of a, and b
    assert loose.accepted.all()
    with pytest.raises(ValueError, match="two classes or more; got one, a"):
        model.identify(values, list("aaaa"), queries)
    with pytest.raises(ValueError, match=r"must be in \(0, 1\); got 1.0"):
        model.identify(values, list("aabc"), queries, false_accept_rate=1.0)


def test_what_identify_cannot_answer_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)  # as for a user

    def embed_fn(params, images):
        raise AssertionError("images are embedded")

    model = make_model(embed_fn=embed_fn)
    four, ab = random_images(4), list("aabb")
    for gallery, labels, queries, rate, error, words in (
        (four, ab, four, 0.0, ValueError, r"false_accept_rate must be in \(0, 1\)"),
        (four, list("abc"), four, 0.5, ValueError, "each of the 4 images of gallery; got"),
        (four, list("aaaa"), four, 0.5, ValueError, "of gallery must have two classes"),
        ("a.png", list("aabbc"), four, 0.5, TypeError, "a list of files is wanted"),
        (four, ab, "a.png", 0.5, TypeError, "a list of files is wanted"),
        (four, ab, [], 0.5, ValueError, "at least one file; got none"),
    ):
        with pytest.raises(error, match=words):
            model.identify(gallery, labels, queries, false_accept_rate=rate)


def test_identify_accepts_nothing_where_too_little_is_known():
    values, queries = one_pixel_images(0, 100, 250), one_pixel_images(0, 90)
    found = one_pixel_model([0.5, 0.6]).identify(values, list("abc"), queries)
    assert found.threshold == -np.inf
    assert found.threshold_from is None
    assert not found.accepted.any()
    assert found.nearest.labels.tolist() == ["a", "b"]
    assert found.smallest_rate == 0.5  # 2 / (3 + 1), and 3 / (2 + 3) is more
    again = one_pixel_model([0.5, 0.6]).identify(
        values, list("abc"), queries, false_accept_rate=found.smallest_rate
    )
    assert again.threshold_from == "gallery"


def test_a_large_gallery_shows_its_threshold_itself():
    values = one_pixel_images(*(np.arange(20) * 10 + np.arange(20) % 2))  # 9 or 11 apart
    labels = [f"{number:02}" for number in range(20)]
    queries = one_pixel_images(4, 250)
    found = one_pixel_model([0.5, 0.6]).identify(
        values, labels, queries, false_accept_rate=0.1
    )
    assert found.threshold_from == "gallery"
    # all are 9 from another class: just below, since more than .1 would be let in
    assert found.threshold == pytest.approx(9 / 255, rel=1e-3)
    assert found.accepted.tolist() == [True, False]
    assert found.strangers_let_in == 0


def test_a_distance_equal_to_the_threshold_is_accepted():
    model = one_pixel_model(np.arange(1.0, 9.0))
    images = one_pixel_images(0, 51)
    distance = model.verify(*images).distance
    equal = dataclasses.replace(model.calibration, threshold=distance)
    found = dataclasses.replace(model, calibration=equal).verify(*images)
    assert found.same
    assert found.probability_same == 0.5
    beyond = dataclasses.replace(equal, threshold=np.nextafter(distance, 0).item())
    found = dataclasses.replace(model, calibration=beyond).verify(*images)
    assert not found.same
    assert found.probability_same < 0.5


def test_a_model_that_cannot_decide_says_so():
    images = random_images(2)
    model = make_model(calibration=None)
    with pytest.raises(
        UserError, match=r"has no calibration, so .* what is same: see .*calibrate$"
    ):
        model.verify(*images)
    details = {"no_calibration": "all 4 distances are 0"}
    with pytest.raises(UserError, match="what is same: all 4 distances are 0"):
        dataclasses.replace(model, details=details).verify(*images)
    with pytest.raises(UserError, match="has no calibration"):
        model.identify(images, ["a", "b"], images)
    cosines = make_model(matrix_fn=lambda params, x, y: cosine_similarity_matrix(x, y))
    with pytest.raises(UserError, match="decide what is same: matrix_fn must give dist"):
        cosines.verify(*images)
    with pytest.raises(UserError, match="decide what is same: matrix_fn must give dist"):
        cosines.identify(images, ["a", "b"], images)
    diverged = make_model(matrix_fn=lambda params, x, y: x @ y.T * jnp.nan)
    with pytest.raises(UserError, match="a distance is nan"):
        diverged.verify(*images)
    with pytest.raises(UserError, match="a distance is nan"):
        diverged.identify(images, ["a", "b"], images)
