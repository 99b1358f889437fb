"""Tests of the head on embeddings of a frozen network, and of losses by their names."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine import named_losses
from experiments.engine.named_losses import find_loss, loss_names
from experiments.systems import embedding_head
from siamese_jax import distances, losses
from siamese_jax.errors import UserError
from tests.stripes import write_stripes

SHORT = {"num_steps": 60, "steps_per_call": 30, "checkpoint_every": 60}


def write_arrays(folder, *, num_classes=12, num_images=8):
    """Embeddings of which two numbers tell the class, among 14 louder ones of noise."""
    rng = np.random.default_rng(0)
    labels = np.repeat([f"class{number:02}" for number in range(num_classes)], num_images)
    angles = np.repeat(np.arange(num_classes) * 2 * np.pi / num_classes, num_images)
    signal = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    embeddings = np.hstack([3 * rng.normal(size=(len(labels), 14)), 4 * signal])
    order = rng.permutation(len(labels))
    np.save(folder / "e.npy", embeddings[order])
    np.save(folder / "l.npy", labels[order])
    return embedding_head.Config(
        workdir=folder / "run",
        embeddings=folder / "e.npy",
        labels=folder / "l.npy",
        num_classes=6,
        dim=4,
        learning_rate=0.03,
        **SHORT,
    )


@pytest.mark.slow
def test_a_head_finds_what_tells_classes_apart(tmp_path, capsys):
    config = write_arrays(tmp_path)
    embedding_head.main(config)
    found = json.loads((config.workdir / "results.json").read_text())["metrics"]
    assert found["num_test_classes"] == 6
    assert found["recall_at_1"] > found["recall_at_1_before"] + 0.2
    assert found["map_at_r"] > found["map_at_r_before"] + 0.1
    features = np.load(config.embeddings)
    embeddings = np.load(config.workdir / "embeddings.npy")
    head = np.load(config.workdir / "head.npz")  # as the file's head says
    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    x = x @ head["Dense_0/kernel"] + head["Dense_0/bias"]
    wanted = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, wanted, atol=1e-5)
    assert (config.workdir / "report.html").exists()


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_labels(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    config = write_arrays(tmp_path)
    labels = np.load(config.labels)
    with monkeypatch.context() as patch:
        patch.setattr(embedding_head.loop, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            embedding_head.main(config)
    for other, words in (
        (np.roll(labels, 1), r"others \(\d+ of 96 rows have another label\); choose"),
        (labels[1:], r"others \(95 rows instead of 96\)"),
    ):
        np.save(config.labels, other)
        with pytest.raises(UserError, match=words):
            embedding_head.main(config)
    np.save(config.labels, labels)
    embedding_head.main(config)
    np.testing.assert_array_equal(np.load(config.workdir / "labels.npy"), labels)


def test_the_first_classes_are_for_training():
    labels = np.array([7, 3, 5, 3, 9, 7, 1])
    half = embedding_head.first_classes(embedding_head.Config(), labels)
    assert half.tolist() == [False, True, True, True, False, False, True]
    config = embedding_head.Config(num_train_classes=2)
    two = embedding_head.first_classes(config, labels)
    assert np.unique(labels[two]).tolist() == [1, 3]
    config = embedding_head.Config(num_train_classes=4)
    with pytest.raises(UserError, match=r"--num-train-classes: .* 4 of 5 are for training"):
        embedding_head.first_classes(config, labels)


def test_a_new_head_leaves_the_cosines_of_features_as_they_are():
    head = embedding_head.Head(dim=6)
    x = jax.random.normal(jax.random.key(0), (5, 6))
    y, _ = jax.jit(head.init_with_output)(jax.random.key(1), x)
    before, after = (distances.cosine_similarity_matrix(z, z) for z in (x, y))
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_wrong_files_and_flags_are_refused_before_any_work(tmp_path):
    config = write_arrays(tmp_path)

    def main(**changes):
        embedding_head.main(dataclasses.replace(config, **changes))

    np.save(tmp_path / "wide.npy", np.zeros((3, 3)))
    for changes, words in (
        ({"embeddings": None}, "--embeddings is needed with --dataset arrays"),
        ({"labels": None}, "--labels is needed with --dataset arrays"),
        (
            {"labels": tmp_path / "wide.npy"},
            r"--labels: .* must be \[n\] integers or names",
        ),
        ({"num_classes": 7}, "--num-classes: there are 6 training classes; got 7"),
        ({"backbone": "a:b"}, "--backbone is used only with --dataset folder or"),
        ({"loss": "nt_xent"}, "--loss must be one of all_triplets, "),
    ):
        with pytest.raises(UserError, match=words):
            main(**changes)
        assert not config.workdir.exists()
    np.save(tmp_path / "few.npy", np.repeat(np.arange(12), 3))
    with pytest.raises(UserError, match=r"e.npy must have 36 rows; got shape \(96, 16\)"):
        main(labels=tmp_path / "few.npy")
    for dataset, flag in (("folder", "--backbone"), ("cars196", "--backbone")):
        of_images = embedding_head.Config(dataset=dataset, data_dir=tmp_path)
        with pytest.raises(UserError, match=f"{flag} is needed with --dataset {dataset}"):
            embedding_head.main(of_images)


@pytest.mark.slow
def test_the_backbone_runs_once_even_if_a_run_goes_on(tmp_path, monkeypatch):
    names = [f"class{number}" for number in range(8)]
    config = embedding_head.Config(
        workdir=tmp_path / "run",
        dataset="folder",
        data_dir=write_stripes(tmp_path / "images", names=names, num=3),
        backbone="own:embed",
        image_size=(16, 16),
        num_classes=4,
        num_images=2,
        dim=4,
        **{"num_steps": 2, "steps_per_call": 1, "checkpoint_every": 1},
    )
    calls = []

    def embed(images):
        calls.append(images.shape)
        return images[:, ::4, ::4].reshape(len(images), -1)

    monkeypatch.setattr(embedding_head.backbones, "import_backbone", lambda path: embed)
    embedding_head.main(config)
    assert calls == [(24, 16, 16, 3)]
    first = json.loads((config.workdir / "results.json").read_text())["metrics"]
    (config.workdir / "results.json").unlink()
    embedding_head.main(config)
    assert len(calls) == 1
    assert json.loads((config.workdir / "results.json").read_text())["metrics"] == first


def test_embeddings_of_another_backbone_are_not_taken_up(tmp_path, monkeypatch):
    names = [f"class{number}" for number in range(4)]
    config = embedding_head.Config(
        workdir=tmp_path / "run",
        dataset="folder",
        data_dir=write_stripes(tmp_path / "images", names=names, num=2),
        backbone="own:first",
        image_size=(4, 4),
        num_classes=2,
        num_images=2,
    )
    numbers = {"own:first": 1.0, "own:second": 2.0}
    monkeypatch.setattr(
        embedding_head.backbones,
        "import_backbone",
        lambda path: lambda images: np.full((len(images), 3), numbers[path]),
    )

    def stop(config, system, data):  # before the first step
        raise KeyboardInterrupt(float(data.features[0, 0, 0, 0]))

    monkeypatch.setattr(embedding_head.loop, "train", stop)
    for backbone in ("own:first", "own:second", "own:second"):
        other = dataclasses.replace(config, backbone=backbone)
        with pytest.raises(KeyboardInterrupt, match=str(numbers[backbone])):
            embedding_head.main(other)
    numbers["own:second"] = 3.0  # nor is it asked again for the same settings
    with pytest.raises(KeyboardInterrupt, match=r"2\.0"):
        embedding_head.main(other)


# Losses by name -------------------------------------------------------------------------


def test_losses_are_those_of_the_library():
    x = distances.normalize(jax.random.normal(jax.random.key(0), (6, 3)))
    labels, ids = jnp.array([0, 0, 1, 1, 2, 2]), jnp.arange(6)
    proxies = jax.random.normal(jax.random.key(1), (3, 3))
    euclidean, cosine = (
        distances.euclidean_distance_matrix,
        distances.cosine_similarity_matrix,
    )
    hinge = losses.on_labels(losses.contrastive_loss, euclidean)
    contrast = losses.on_labels(losses.supervised_contrastive_loss, cosine)
    for name, options, wanted in (
        ("contrastive", ("margin=0.7", "squared=False"), {"margin": 0.7, "squared": False}),
        ("supervised_contrastive", ("temperature=0.3",), {"temperature": 0.3}),
    ):
        loss_fn = {"contrastive": hinge, "supervised_contrastive": contrast}[name]
        found = find_loss(name, options)
        assert not found.has_proxies
        value = found.loss_fn(x, labels, ids, None)
        np.testing.assert_allclose(value, loss_fn(x, labels, **wanted), rtol=1e-6)
    found = find_loss("proxy_anchor", ("scale=16",))
    assert found.has_proxies
    wanted = losses.proxy_anchor_loss(x, labels, proxies, scale=16)
    np.testing.assert_allclose(found.loss_fn(x, labels, ids, proxies), wanted, rtol=1e-6)


def test_an_example_is_not_compared_with_its_copy():
    x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss_fn = find_loss("contrastive", ()).loss_fn
    copies = loss_fn(x, jnp.array([0, 0, 1]), jnp.array([5, 5, 6]), None)
    once = loss_fn(x[1:], jnp.array([0, 1]), jnp.array([5, 6]), None)
    np.testing.assert_allclose(copies, once, rtol=1e-6)


def test_every_loss_of_embeddings_and_labels_can_be_named():
    left_out = {name.removesuffix("_loss") for name in losses.__all__} - set(loss_names())
    assert {name for name in left_out if hasattr(losses, f"{name}_loss")} == {
        *("barlow_twins", "class", "dynamic_soft_margin", "negative_cosine", "nt_xent"),
        *("prototypical", "quadruplet", "soft_triple", "triplet", "vicreg"),
    }


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("contrastive", "scale=3", "the loss has the options apart, factor, margin, posi"),
        ("contrastive", "margin", "margin must be a number; got ''"),
        ("contrastive", "margin=wide", "margin must be a number; got 'wide'"),
        ("contrastive", "margin=True", "margin must be a number; got 'True'"),
        ("contrastive", "squared=2", "squared must be True or False; got '2'"),
        ("fast_ap", "num_bins=0", "num_bins must be"),
        ("p2s_grad", "scale=2", "the loss has the options none; got scale=2"),
    ],
)
def test_a_wrong_option_of_a_loss_is_refused(name, option, words):
    with pytest.raises(UserError, match=f"--loss-options: .*{words}"):
        named_losses.find_loss(name, (option,))
