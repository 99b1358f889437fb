"""Folders, digits, letters and TFDS sets; what is wrong with a file is said by its name."""

import json
import pathlib

import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image

from experiments import data, letters
from experiments.run import UserError
from siamese_jax import samplers


def write_folder(root, sizes=(("a", 2), ("b", 3)), suffix="png", shape=(5, 4)):
    rng = np.random.default_rng(0)
    for name, num in sizes:
        (root / name).mkdir(parents=True)
        for i in range(num):
            image = Image.fromarray(rng.integers(0, 256, size=shape, dtype=np.uint8))
            image.save(root / name / f"{i}.{suffix}")
    return root


@pytest.mark.parametrize("suffix", ["png", "pgm", "jpg"])
def test_a_folder_has_one_class_a_sub_folder(tmp_path, suffix):
    images, labels = data.load_folder(write_folder(tmp_path, suffix=suffix))
    assert images.shape == (5, 5, 4, 1)
    assert images.dtype == np.uint8
    assert labels.tolist() == ["a", "a", "b", "b", "b"]
    if suffix != "jpg":
        wanted = np.random.default_rng(0).integers(0, 256, size=(5, 4), dtype=np.uint8)
        np.testing.assert_array_equal(images[0, :, :, 0], wanted)


def test_images_can_be_resized_and_kept_in_color(tmp_path):
    folder = write_folder(tmp_path)
    assert data.load_folder(folder, size=(7, 6)).images.shape == (5, 7, 6, 1)
    assert data.load_folder(folder, color=True).images.shape == (5, 5, 4, 3)


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        data.load_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no sub-folders"):
        data.load_folder(tmp_path)
    folder = write_folder(tmp_path / "faces")
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="class 'empty' has no image"):
        data.load_folder(folder)
    (folder / "empty").rmdir()
    (folder / "a" / "1.png").write_bytes((folder / "a" / "0.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"a/1.png cannot be read as an image"):
        data.load_folder(folder)
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "a" / "1.png")
    with pytest.raises(UserError, match=r"a/1.png has 3 x 3 pixels.*5 x 4; give a size"):
        data.load_folder(folder)


def test_a_class_with_one_image_is_named_by_the_sampler(tmp_path):
    folder = write_folder(tmp_path, sizes=(("anna", 2), ("bert", 1)))
    index = samplers.class_index(data.load_folder(folder).labels)
    with pytest.raises(ValueError, match="class 'bert' has 1"):
        samplers.sample_pairs(jax.random.key(0), index, 2)


def test_digits_are_split_without_overlap():
    train, test = data.load_digits("train"), data.load_digits("test")
    assert len(train.images) + len(test.images) == 1797
    assert train.images.shape[1:] == (8, 8, 1)
    assert train.images.max() == 255
    assert set(test.labels) == set(range(10))


# TFDS: a set written as TFDS prepares it, in array_record form ---------------------------


def _varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number % 128 + 128]), number // 128
    return out + bytes([number])


def _field(number, payload):
    return _varint(number * 8 + 2) + _varint(len(payload)) + payload


def _example(image, label):
    """A tf.train.Example by its wire format: no TensorFlow needed."""
    entries = {
        "image": _field(1, _field(1, image)),  # bytes_list
        "label": _field(3, _field(1, _varint(label))),  # int64_list, packed
    }
    features = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, feature))
        for name, feature in entries.items()
    )
    return _field(1, features)


def write_tfds(folder, images, labels):
    import io

    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True)
    writer = ArrayRecordWriter(
        str(folder / "tiny-train.array_record-00000-of-00001"), "group_size:1"
    )
    for image, label in zip(images, labels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image[:, :, 0]).save(buffer, format="PNG")
        writer.write(_example(buffer.getvalue(), label))
    writer.close()
    names = "tensorflow_datasets.core.features"
    shape = {"dimensions": [str(size) for size in images.shape[1:]]}
    features = {
        "image": {
            "image": {"dtype": "uint8", "shape": shape},
            "pythonClassName": f"{names}.image_feature.Image",
        },
        "label": {
            "classLabel": {"numClasses": "3"},
            "pythonClassName": f"{names}.class_label_feature.ClassLabel",
        },
    }
    (folder / "features.json").write_text(
        json.dumps(
            {
                "featuresDict": {"features": features},
                "pythonClassName": f"{names}.features_dict.FeaturesDict",
            }
        )
    )
    split = {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": "train",
        "numBytes": "1",
        "shardLengths": [str(len(images))],
    }
    info = {"name": "tiny", "version": "1.0.0", "fileFormat": "array_record"}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": [split]}))


@pytest.mark.filterwarnings("ignore")  # of tensorflow_datasets and what it imports
def test_a_tfds_set_is_read_without_tensorflow_and_decoded_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(5, 6, 4, 1), dtype=np.uint8)
    labels = [0, 1, 2, 1, 0]
    write_tfds(tmp_path / "tfds" / "tiny" / "1.0.0", images, labels)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("SIAMESE_JAX_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        found = data.load_tfds("tiny", "train")
        np.testing.assert_array_equal(found.images, images)
        assert found.labels.tolist() == labels
        monkeypatch.setattr(data, "_decode", None)  # the second time it is not called


def test_a_missing_tfds_set_says_where_it_looked_and_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        data.load_tfds("mnist", "train")
    assert str(tmp_path) in str(caught.value)
    assert "python -m experiments.data mnist" in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_broken_tfds_set_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "tfds" / "tiny" / "1.0.0"
    write_tfds(folder, np.zeros((2, 4, 4, 1), np.uint8), [0, 1])
    (folder / "tiny-train.array_record-00000-of-00001").write_bytes(b"cut")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("SIAMESE_JAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"tiny/1.0.0, split 'train', cannot be read"):
        data.load_tfds("tiny", "train")
    assert not (tmp_path / "cache").exists()


# Letters --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    return letters.draw_letters()


def test_letters_come_in_twelve_faces_and_five_alphabets(drawn):
    assert drawn.images.shape[1:] == (32, 32, 1)
    names, counts = np.unique(drawn.letters, return_counts=True)
    assert (counts == 12).all()
    assert len(names) > 1100
    assert drawn.only(letters.TEST).num_letters > 100
    assert set(drawn.alphabets) == {*letters.TRAINING, *letters.TEST}
    assert (drawn.images.reshape(len(drawn.images), -1).max(axis=1) > 100).all()


def test_letters_drawn_alike_are_one_class_and_seen_shapes_are_not_tested(drawn):
    names = set(drawn.letters.tolist())
    for latin, others in (("A", "\u0391\u0410"), ("o", "\u03bf\u043e")):
        assert latin in names
        assert not names & set(others)
    assert not names & {"\u0555", "\u0585"}  # the Armenian letters drawn as O and o
    assert {"\u0531", "\u10d0"} <= names  # the first letters of both test alphabets


def test_fonts_of_the_user_are_added_and_bad_ones_named(tmp_path, drawn):
    source = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "copy.ttf").write_bytes(source.read_bytes())
    more = letters.draw_letters(tmp_path / "mine")
    assert set(np.unique(more.letters, return_counts=True)[1]) == {13}
    (tmp_path / "mine" / "broken.ttf").write_bytes(b"not a font")
    with pytest.raises(UserError, match=r"broken.ttf cannot be read as a font"):
        letters.draw_letters(tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no .ttf or .otf file under"):
        letters.draw_letters(tmp_path / "empty")
    with pytest.raises(UserError, match="is not a folder"):
        letters.draw_letters(tmp_path / "nowhere")
