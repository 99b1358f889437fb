"""End-to-end tests of the three MNIST systems on scikit-learn's digits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import report
from experiments.engine.data import class_data
from experiments.engine.logs import read_log
from experiments.engine.pair_batches import PairData
from experiments.engine.system import initial_state
from experiments.evaluations import pair_metrics
from experiments.systems import mnist_conv, mnist_mlp, mnist_towers
from siamese_jax import _page
from siamese_jax.errors import UserError
from siamese_jax.images import LabelledImages
from siamese_jax.model import load_model
from siamese_jax.samplers import Pairs
from tests.test_systems import PAIRS, SHORT

pytestmark = pytest.mark.slow

SMALL = SHORT | PAIRS | {"dataset": "digits"}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """The tests of other systems look at them."""
    monkeypatch.setattr(_page, "_as_png", lambda figure: "")
    monkeypatch.setattr(report, "embedding_map", lambda *args: None)


def metrics_of(workdir):
    return json.loads((workdir / "results.json").read_text())["metrics"]


@pytest.mark.parametrize("form", ["supervised", "logistic", "literal"])
def test_mnist_conv_end_to_end(tmp_path, form):
    config = mnist_conv.Config(workdir=tmp_path / form, form=form, **SMALL)
    mnist_conv.main(config)
    metrics = metrics_of(config.workdir)
    assert {"pair_accuracy", "pair_eer", "roc_auc"} <= metrics.keys()
    model = load_model(config.workdir / "model")
    # so few steps may leave the order of the distances upside down
    told = model.calibration is not None
    assert metrics["validation_threshold"] == (
        model.calibration.threshold if told else None
    )
    assert told or form == "literal"
    if form == "literal":  # the farther, the more alike
        points = jnp.array([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
        matrix = (
            mnist_conv.build(config)
            .model(initial_state(mnist_conv.build(config), jax.random.key(0)))
            .distances(points, points)
        )
        assert matrix[0, 1] < matrix[0, 0]
    else:
        assert metrics["pair_accuracy"] == metrics["pair_accuracy_at_validation_threshold"]


def test_the_literal_loss_has_its_polarity_upside_down_and_no_gradient_beyond_1():
    same = jnp.array([True, False, False])
    distance = jnp.array([0.2, 0.2, 1.5])
    values = mnist_conv.cross_entropy_of_distance(distance, same)
    np.testing.assert_allclose(values[:2], -np.log([0.2, 0.8]), rtol=1e-6)

    def total(d):
        return jnp.sum(mnist_conv.cross_entropy_of_distance(d, same))

    gradient = jax.grad(total)(distance)
    assert gradient[0] < 0 < gradient[1]  # the same apart, others together
    assert gradient[2] == 0


def test_the_corrected_forms_distort_each_image_in_its_own_way():
    config = mnist_conv.Config(dataset="digits", form="contrastive", batch_size=8)
    plain = dataclasses.replace(config, distort=False)
    images = np.full((20, 8, 8, 1), 255, np.uint8)
    data = class_data(LabelledImages(images, np.arange(20) // 2))
    key, step = jax.random.key(0), jnp.asarray(0)
    found, wanted = (
        mnist_conv.build(one).sample(key, step, data).images for one in (config, plain)
    )
    assert (np.asarray(wanted) == 1).all()
    flat = np.asarray(found).reshape(16, -1)
    assert len(np.unique(flat, axis=0)) == 16


def test_the_tuned_perceptron_embeds_as_many_images_as_the_tutorial(tmp_path):
    config = mnist_mlp.Config(workdir=tmp_path / "tuned", recipe="tuned", **SMALL)
    mnist_mlp.main(config)
    assert "temperature" in read_log(config.workdir)
    model = load_model(config.workdir / "model")
    embeddings = model.embed(np.full((3, 8, 8, 1), 100, np.uint8))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    with pytest.raises(UserError, match="--batch-size must be at least 10; got 8"):
        mnist_mlp.build(dataclasses.replace(config, batch_size=8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1; got 1.0"),
        ({"margin": 0.0}, "--margin must be above 0; got 0.0"),
        (
            {"recipe": "tuned", "margin": 2.0},
            "--margin is used only with --recipe tutorial",
        ),
        ({"recipe": "tuned", "pairs": "fresh"}, "--pairs is used only with --recipe tutor"),
        ({"recipe": "tuned", "batch_size": 8}, "--batch-size must be at least 10; got 8"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_any_work(tmp_path, changes, words):
    config = mnist_mlp.Config(workdir=tmp_path / "run", dataset="digits", **changes)
    with pytest.raises(UserError, match=words):
        mnist_mlp.main(config)
    assert not config.workdir.exists()


@pytest.mark.parametrize("module", [mnist_mlp, mnist_conv])
def test_a_batch_with_more_images_of_a_digit_than_there_are_is_refused(tmp_path, module):
    settings = {"recipe": "tuned"} if module is mnist_mlp else {"form": "supervised"}
    config = module.Config(
        workdir=tmp_path / "run", dataset="digits", batch_size=600, **settings, **SHORT
    )
    words = "--batch-size 600 has 120 images of each digit; there are 11. of"
    with pytest.raises(UserError, match=words):
        module.main(config)


def test_a_batch_of_pairs_larger_than_the_list_is_padded():
    config = mnist_mlp.Config(dataset="digits", batch_size=7)
    sample = mnist_mlp.build(config).sample
    pairs = Pairs(jnp.array([[0, 1], [1, 2]]), jnp.array([True, False]))
    data = PairData(jnp.zeros((3, 8, 8, 1), jnp.uint8), pairs)
    batch = sample(jax.random.key(0), jnp.asarray(0), data)
    assert batch.where.tolist() == [True] * 2 + [False] * 5


def test_towers_print_three_variants_side_by_side(tmp_path, capsys):
    config = mnist_towers.Config(workdir=tmp_path / "towers", **SMALL)
    mnist_towers.main(config)
    metrics = metrics_of(config.workdir)
    counts = {"a": 2 * (64 * 128 + 128) + 257, "b": 64 * 128 + 128 + 257, "c": 8_322}
    for variant, count in counts.items():
        assert metrics[f"towers_{variant}_num_parameters"] == count
        assert 0 <= metrics[f"towers_{variant}_pair_accuracy"] <= 1
        assert (config.workdir / variant / "checkpoints").is_dir()
    out = capsys.readouterr().out
    assert any(line.split() == ["a", "b", "c"] for line in out.splitlines())
    model = load_model(config.workdir / "model")
    assert model.preparation.image_shape == (8, 8, 1)
    only_a = mnist_towers.of_variant(config, "a")
    with pytest.raises(UserError, match="only c makes a model"):
        mnist_towers.build(only_a).model(None)
    with pytest.raises(UserError, match="--variants must be some of a b c"):
        mnist_towers.main(dataclasses.replace(config, variants=("a", "a")))


def test_each_image_has_a_match_and_a_mismatch():
    labels = np.repeat(np.arange(4), 5)
    dataset = LabelledImages(np.zeros((20, 8, 8, 1), np.uint8), labels)
    config = mnist_towers.Config(dataset="digits")
    pairs = mnist_towers.make_split(jax.random.key(0), config, dataset).pairs
    examples, same = np.asarray(pairs.examples), np.asarray(pairs.same)
    left, right = labels[examples]
    np.testing.assert_array_equal(left == right, same)
    for kind in (True, False):
        np.testing.assert_array_equal(examples[0, same == kind], np.arange(20))
    assert (examples[0] != examples[1]).all()


def test_confused_classes_are_counted_from_different_pairs():
    labels = np.array([0, 1, 2, 0])
    examples = jnp.array([[0, 0, 1, 0], [1, 2, 3, 3]])
    pairs = Pairs(examples, jnp.array([False, False, False, True]))
    shares = pair_metrics.called_the_same(
        labels, pairs, np.array([True, False, False, True])
    )
    np.testing.assert_allclose(shares, [[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]])
