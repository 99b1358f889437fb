"""Tests of a model as a folder: saving, loading, and what is refused."""

import dataclasses
import inspect
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from siamese_jax import episodes, samplers
from siamese_jax import model as model_module
from siamese_jax.encoders import MnistConv
from siamese_jax.errors import UserError
from siamese_jax.images import Preparation
from siamese_jax.model import Model, load_model, pixel_model, save_model
from tests.test_model import (
    SIZE,
    make_model,
    random_images,
    toy_calibration,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = make_model()
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, model)
    return model, folder


@pytest.fixture
def copied(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved[1], tmp_path / "model"))


# As a folder ----------------------------------------------------------------------------


def test_a_model_comes_back_from_its_folder(saved):
    model, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        "distances.jax",
        "encoder.jax",
        "model.json",
        "parameters.safetensors",
    ]
    loaded = load_model(folder)
    assert loaded.preparation == model.preparation
    assert loaded.calibration == model.calibration
    assert loaded.details == model.details
    assert {name: value.shape for name, value in loaded.params.items()} == {
        "encoder/Dense_0/kernel": (48, 128),
        "encoder/Dense_0/bias": (128,),
        **{f"encoder/Dense_{i}/kernel": (128, 128) for i in (1, 2)},
        **{f"encoder/Dense_{i}/bias": (128,) for i in (1, 2)},
        "head/0": (128,),
        "head/1": (),
    }
    for num in (1, 7):  # any number of rows
        images = random_images(num, size=(9, 9))
        x = model.embed(images)
        np.testing.assert_allclose(loaded.embed(images), x, rtol=1e-5, atol=1e-6)
        y = x[: num // 2 + 1] + 1
        matrix = model.distances(x, y)
        np.testing.assert_allclose(loaded.distances(x, y), matrix, rtol=1e-5)
    a, b = random_images(2)
    found, wanted = loaded.verify(a, b), model.verify(a, b)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_folder_says_how_the_model_was_made(saved):
    facts = json.loads((saved[1] / "model.json").read_text())
    assert (facts["format"], facts["format_version"]) == ("siamese_jax model", 2)
    assert facts["image_shape"] == [*SIZE, 1]
    assert facts["embedding_dim"] == 128
    assert facts["distance_parameters"] == ["head/0", "head/1"]
    assert facts["platforms"] == ["cpu", "cuda", "tpu"]
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["preparation"] == {
        "size": list(SIZE),
        "color": False,
        "invert": True,
        "resampling": "lanczos",
        "background": 255,
    }


@pytest.mark.parametrize(
    "params",
    [
        (),
        jnp.array(2.0),
        {"a": (jnp.ones(2), [jnp.zeros(3), {"b": jnp.array(True)}])},
        {"a/b": jnp.ones(1), "a": {"c": jnp.ones(1, jnp.bfloat16)}},
        {1: np.arange(3), 10: 0.5, 2: {}, 3: None},
    ],
)
def test_parameters_may_be_nested_in_any_way(params, tmp_path):
    def embed_fn(given, images):
        assert jax.tree.structure(given) == jax.tree.structure(params)
        total = sum(jnp.sum(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(given))
        return images.mean(axis=(1, 2)) + total

    model = Model(params, embed_fn, Preparation(SIZE))
    save_model(tmp_path / "model", model)
    loaded, images = load_model(tmp_path / "model"), random_images(2)
    np.testing.assert_allclose(loaded.embed(images), model.embed(images), rtol=1e-6)
    leaves = jax.tree.leaves(params)
    assert len(loaded.params) == len(leaves)
    assert {value.dtype for value in loaded.params.values()} == {
        jnp.asarray(leaf).dtype for leaf in leaves
    }


def test_two_parameters_of_one_name_are_refused(tmp_path):
    params = {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}
    model = Model(params, lambda params, images: images[:, 0, 0], Preparation(SIZE))
    with pytest.raises(ValueError, match="one name for each array; a/b is twice"):
        save_model(tmp_path / "model", model)


def test_an_encoder_that_returns_no_vectors_is_refused(tmp_path):
    model = Model((), lambda params, images: images[:, 0], Preparation(SIZE))
    with pytest.raises(ValueError, match=r"must return \[n, dim\]; got shape \(1, 6, 1\)"):
        save_model(tmp_path / "model", model)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_embeddings_in_half_precision_are_float32_in_a_folder(dtype, tmp_path):
    def embed_fn(params, images):
        return images.reshape(images.shape[0], 48).astype(dtype)

    model = Model((), embed_fn, Preparation(SIZE))
    save_model(tmp_path / "model", model)
    loaded, images = load_model(tmp_path / "model"), random_images(3)
    x = loaded.embed(images)
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(x, model.embed(images).astype(jnp.float32))
    matrix = loaded.distances(np.asarray(x), x)
    np.testing.assert_allclose(matrix, model.distances(x, x), rtol=1e-6)
    assert loaded.pair_distances(x[:0], x[:0]).shape == (0,)


def test_convolutions_are_exported_for_any_number_of_images(tmp_path):
    encoder = MnistConv()
    params = encoder.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    model = Model(params, encoder.apply, Preparation((28, 28)))
    save_model(tmp_path / "model", model)
    images = random_images(3, size=(28, 28))
    found = load_model(tmp_path / "model").embed(images)
    np.testing.assert_allclose(found, model.embed(images), rtol=1e-4, atol=1e-5)


def test_a_loaded_model_works_under_vmap_jit_and_map(saved):
    model, loaded = saved[0], load_model(saved[1])
    labels = np.repeat(np.arange(6), 4)
    x = model.embed(random_images(24))
    index = samplers.class_index(labels)
    found, wanted = (
        episodes.episode_accuracy(
            jax.random.key(0),
            x,
            index,
            num_episodes=40,
            num_ways=4,
            matrix_fn=each.distances,
        )
        for each in (loaded, model)
    )
    np.testing.assert_array_equal(found.accuracies, wanted.accuracies)
    assert 0 < wanted.mean < 1

    sets = x.reshape(4, 6, -1)
    each = np.stack([model.distances(one, x) for one in sets])
    with_x = jax.jit(jax.vmap(lambda one: loaded.distances(one, x)))
    np.testing.assert_allclose(with_x(sets), each, rtol=1e-5)
    mapped = jax.lax.map(lambda one: loaded.distances(one, x), sets)
    np.testing.assert_allclose(mapped, each, rtol=1e-5)
    images = jax.random.uniform(jax.random.key(1), (2, 3, *SIZE, 1))
    twice = jax.vmap(lambda one: loaded.embed_fn(loaded.params, one))(images)
    np.testing.assert_allclose(twice[1], loaded.embed_fn(loaded.params, images[1]))


def test_parameters_are_not_constants_of_the_programs(tmp_path):
    weights = jax.random.normal(jax.random.key(0), (48, 20_000))

    def embed_fn(params, images):
        return (images.reshape(images.shape[0], 48) @ params["weights"])[:, :4]

    model = Model({"weights": weights}, embed_fn, Preparation(SIZE))
    save_model(tmp_path / "model", model)
    assert (tmp_path / "model" / "encoder.jax").stat().st_size < 100_000
    x = jnp.ones((3, 4))
    for each in (model, load_model(tmp_path / "model")):
        programs = (
            jax.jit(each.distances).lower(x, x),  # as within episode_accuracy
            model_module._embed.lower(each.embed_fn, 2, each.params, random_images(2)),
        )
        for program in programs:
            assert len(program.as_text()) < 100_000


def test_a_loaded_model_can_be_calibrated_and_saved_again(saved, copied):
    loaded = load_model(copied)
    other = dataclasses.replace(loaded.calibration, threshold=0.125)
    save_model(copied, dataclasses.replace(loaded, calibration=other))
    again = load_model(copied)
    assert again.calibration.threshold == 0.125
    images = random_images(3)
    x = saved[0].embed(images)
    np.testing.assert_allclose(again.embed(images), x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again.distances(x, x), loaded.distances(x, x), rtol=1e-6)


def test_files_hold_no_nan(tmp_path):
    details = {
        "rate": np.float32("nan"),
        "rates": (1.0, float("inf")),
        "count": np.int64(3),
        "folder": pathlib.Path("runs"),
        "matrix": np.eye(2),
    }
    model = pixel_model(Preparation(SIZE))
    model = dataclasses.replace(model, calibration=toy_calibration(), details=details)
    save_model(tmp_path / "model", model)
    text = (tmp_path / "model" / "model.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    loaded = load_model(tmp_path / "model")
    assert loaded.details == {
        "rate": None,
        "rates": [1.0, None],
        "count": 3,
        "folder": "runs",
        "matrix": [[1.0, 0.0], [0.0, 1.0]],
    }
    assert loaded.calibration == model.calibration
    with pytest.raises(ValueError, match="hold what JSON can; got set"):
        save_model(tmp_path / "other", dataclasses.replace(model, details={"a": {1}}))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("step", range(4))
def test_a_kill_leaves_the_old_model_or_the_new_one(copied, step, monkeypatch):
    class Killed(BaseException):
        pass

    steps = []

    def killed_at(name):
        whole = getattr(pathlib.Path, name)

        def maybe(path, *args):
            steps.append(name)
            if len(steps) > stop:
                raise Killed
            return whole(path, *args)

        monkeypatch.setattr(pathlib.Path, name, maybe)

    stop = (0, 3, 4, 5)[step]  # before all, before the last file, before either rename
    new = dataclasses.replace(load_model(copied), details={"new": True})
    with monkeypatch.context():
        killed_at("write_bytes")
        killed_at("rename")
        with pytest.raises(Killed):
            save_model(copied, new)
    monkeypatch.undo()
    assert len(steps) == stop + 1
    assert load_model(copied).details == {"seed": 3, "figures": {"accuracy": 0.5}}
    save_model(copied, new)
    assert load_model(copied).details == {"new": True}
    assert [path.name for path in copied.parent.iterdir()] == ["model"]


def test_only_a_model_or_an_empty_folder_is_overwritten(saved, tmp_path):
    model = pixel_model(Preparation(SIZE))
    (tmp_path / "mine").mkdir()
    save_model(tmp_path / "mine", model)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("of value")
    with pytest.raises(UserError, match=r"runs holds other files .* such as notes.txt"):
        save_model(tmp_path / "runs", model)
    with pytest.raises(UserError, match=r"notes.txt is a file; a folder is wanted"):
        save_model(tmp_path / "runs" / "notes.txt", model)
    (tmp_path / "mine" / "notes.txt").write_text("of value")
    with pytest.raises(UserError, match=r"mine holds other files"):
        save_model(tmp_path / "mine", model)
    save_model(tmp_path / "new" / "folder" / "model", model)
    assert load_model(tmp_path / "new" / "folder" / "model").params == {}


def test_a_folder_that_is_no_model_is_named(copied):
    with pytest.raises(UserError, match=r"nowhere is no model folder, which holds model\."):
        load_model(copied / "nowhere")
    with pytest.raises(UserError, match=r"is no model folder.*model is one$"):
        load_model(copied.parent)


def test_another_format_is_refused_by_name(copied):
    facts = json.loads((copied / "model.json").read_text())
    (copied / "model.json").write_text(json.dumps(facts | {"format_version": 7}))
    with pytest.raises(UserError, match=r"version 7; this version .* reads .*, version 2"):
        load_model(copied)
    (copied / "model.json").write_text(json.dumps(facts | {"format": "other"}))
    with pytest.raises(UserError, match="has the format 'other'"):
        load_model(copied)


@pytest.mark.parametrize("name", ["encoder.jax", "distances.jax", "parameters.safetensors"])
def test_a_missing_or_damaged_file_is_named(copied, name):
    whole = (copied / name).read_bytes()
    middle = len(whole) // 2
    flipped = bytes([whole[middle] ^ 1])
    for damaged in (whole[:-3], whole[:middle] + flipped + whole[middle + 1 :], b""):
        (copied / name).write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name} is damaged"):
            load_model(copied)
    (copied / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_model(copied)


def test_damaged_facts_are_named(copied):
    facts = json.loads((copied / "model.json").read_text())

    def fails(content):
        (copied / "model.json").write_text(content)
        with pytest.raises(UserError, match=r"model\.json is damaged or not of this"):
            load_model(copied)

    fails("{")
    fails("[]")
    for key in ("format", "preparation", "calibration", "details", "sha256"):
        fails(json.dumps({name: value for name, value in facts.items() if name != key}))
    fails(json.dumps(facts | {"preparation": facts["preparation"] | {"tilt": 3}}))
    fails(json.dumps(facts | {"preparation": facts["preparation"] | {"size": [0, 3]}}))
    fails(json.dumps(facts | {"calibration": {"threshold": 1.0}}))
    for name, value in (
        ("threshold", None),
        ("num_classes", "30"),
        ("num_different", 3.5),
        ("pairs", 3),
        ("ranks", [1, 2, "3"]),
        ("thresholds", 0.5),
    ):
        fails(json.dumps(facts | {"calibration": facts["calibration"] | {name: value}}))
    fails(json.dumps(facts | {"calibration": {}}))
    for name, value in (
        ("size", [2.0, 2.0]),
        ("size", [3, 3]),
        ("size", 8),
        ("color", True),
        ("color", "no"),
        ("invert", 1),
        ("background", 0.5),
    ):
        fails(json.dumps(facts | {"preparation": facts["preparation"] | {name: value}}))
    fails(json.dumps(facts | {"image_shape": [*SIZE, 3]}))
    fails(json.dumps({k: value for k, value in facts.items() if k != "image_shape"}))


def run_python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, **options
    ).stdout


def write_kinds_of_images(folder):
    """A turned phone picture, a scan, a transparent drawing, a palette; of many sizes."""
    rng, exif = np.random.default_rng(0), Image.Exif()
    exif[274] = 6
    pixels = rng.integers(0, 256, (20, 31, 4), dtype=np.uint8)
    Image.fromarray(pixels[..., :3]).save(folder / "phone.jpg", exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(folder / "scan.tif")
    Image.fromarray(pixels).save(folder / "drawing.png")
    Image.fromarray(pixels[:9, :, :3]).quantize(16).save(folder / "palette.gif")
    return [
        folder / name for name in ("phone.jpg", "scan.tif", "drawing.png", "palette.gif")
    ]


@pytest.mark.parametrize(
    "preparation",
    [
        Preparation(SIZE, invert=True),
        Preparation(SIZE, background=0),
        Preparation(SIZE, resampling="every-second-pixel"),
    ],
)
def test_the_lines_of_the_docstring_give_the_distance_of_verify(tmp_path, preparation):
    model, folder = make_model(preparation=preparation), tmp_path / "a model"
    save_model(folder, model)
    files = write_kinds_of_images(tmp_path)
    lines = inspect.cleandoc(model_module.__doc__).split("    import json, pathlib\n")[1]
    lines = inspect.cleandoc("    import json, pathlib\n" + lines)
    used = lines.replace('pathlib.Path("model")', f"pathlib.Path({str(folder)!r})")
    used = used.replace('["a.png", "b.png"]', str([str(file) for file in files]))
    assert used.count(str(folder)) == 1
    assert used.count("phone.jpg") == 1
    blocked = ("flax", "optax", "siamese_jax.model", "experiments", "orbax", "tyro")
    code = (
        f"import sys\nfor name in {blocked}:\n    sys.modules[name] = None\n{used}\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, matrix)\n"
    )
    printed = float(run_python(code, cwd=tmp_path))
    matrix = np.load(tmp_path / "out.npy")
    assert printed == pytest.approx(matrix[0, 1])
    for other, distance in zip(files[1:], matrix[0, 1:], strict=True):
        answer = model.verify(files[0], other)
        assert answer.distance == pytest.approx(distance, rel=1e-4)
    assert len(set(matrix[0].tolist())) == 4


def test_a_model_without_a_ground_has_a_white_one(copied):
    path = copied / "model.json"
    facts = json.loads(path.read_text())
    assert facts["preparation"].pop("background") == 255
    path.write_text(json.dumps(facts))
    assert load_model(copied).preparation == Preparation(SIZE, invert=True)
    facts["preparation"]["background"] = 256
    path.write_text(json.dumps(facts))
    with pytest.raises(
        UserError, match=r"model.json is damaged .* background must be a whole number in 0"
    ):
        load_model(copied)


def test_importing_brings_in_no_package_that_is_used_later():
    packages = {"flax", "optax", "PIL", "safetensors", "tyro"}
    code = "import sys, siamese_jax.model; print(*sys.modules)"
    imported = {name.split(".")[0] for name in run_python(code).split()}
    assert "siamese_jax" in imported
    assert not packages & imported


@pytest.mark.parametrize("name", ["safetensors", "flatbuffers"])
def test_a_missing_package_is_named_with_the_extra(saved, tmp_path, monkeypatch, name):
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    words = rf"{name} is not installed: pip install 'siamese_jax\[cli\]'"
    with pytest.raises(UserError, match=words):
        load_model(saved[1])
    with pytest.raises(UserError, match=words):
        save_model(tmp_path / "model", saved[0])
